"""Padded batches: every utterance once, few shapes, few empty rows."""

import numpy as np
import pytest

from hubert_jax.data.inference_batches import padded_batches
from hubert_jax.data.records import Utterance
from hubert_jax.frames import WINDOW, num_samples


@pytest.fixture(scope="module")
def utterances():
    """21 of up to 256 frames, 7 of up to 512, one longer than a batch."""
    frames = [100] * 21 + [300] * 7 + [2100]
    random = np.random.default_rng(0)
    audio = [random.integers(-99, 99, num_samples(n)).astype(np.int16) for n in frames]
    return [Utterance(f"utt-{i}", samples, text=str(i)) for i, samples in enumerate(audio)]


@pytest.mark.parametrize("multiple", [1, 4])
def test_every_utterance_once_in_two_shapes_of_each_length(utterances, multiple):
    batches = list(padded_batches(iter(utterances), 2048, False, multiple))
    rows = {name: (batch, row) for batch in batches for row, name in enumerate(batch.ids)}
    assert set(rows) == {u.id for u in utterances}
    assert sum(len(batch.ids) for batch in batches) == len(utterances)
    for utterance in utterances:
        batch, row = rows[utterance.id]
        samples = len(utterance.audio)
        assert batch.num_samples[row] == samples and batch.texts[row] == utterance.text
        np.testing.assert_array_equal(batch.waveform[row, :samples] * 32768, utterance.audio)
        assert not batch.waveform[row, samples:].any()
    for batch in batches:
        empty = len(batch.num_samples) - len(batch.ids)
        assert len(batch.num_samples) % multiple == 0
        assert not empty or (batch.num_samples[-empty:] == WINDOW).all()
    by_length = {}
    for batch in batches:
        by_length.setdefault(batch.waveform.shape[1], set()).add(len(batch.waveform))
    assert all(len(sizes) <= 2 for sizes in by_length.values())


def test_what_is_left_over_fills_most_rows(utterances):
    batches = list(padded_batches(iter(utterances[:21]), 2048, False))
    # 8 rows of 256 frames; the last five utterances in rows of two.
    assert [len(batch.waveform) for batch in batches] == [8, 8, 2, 2, 2]
    assert sum(len(batch.waveform) for batch in batches) == 22


def test_only_wanted_utterances(utterances):
    wanted = {"utt-3", "utt-25"}
    batches = padded_batches(iter(utterances), 2048, True, wanted=wanted.__contains__)
    assert {name for batch in batches for name in batch.ids} == wanted
