"""Padded batches: every utterance once, few shapes, few empty rows."""

import numpy as np
import pytest

from hubert_jax.data.inference_batches import LONGEST, padded_batches, windows
from hubert_jax.data.records import Utterance
from hubert_jax.data.waveform import normalize, to_float
from hubert_jax.frames import HOP, WINDOW, num_frames, num_samples


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
    rows = {
        window.utterance.id: (batch, row)
        for batch in batches
        for row, window in enumerate(batch.windows)
    }
    assert set(rows) == {u.id for u in utterances}
    assert sum(len(batch.windows) for batch in batches) == len(utterances)
    for utterance in utterances:
        batch, row = rows[utterance.id]
        samples = len(utterance.audio)
        assert batch.num_samples[row] == samples
        assert batch.windows[row].utterance is utterance
        np.testing.assert_array_equal(batch.waveform[row, :samples] * 32768, utterance.audio)
        assert not batch.waveform[row, samples:].any()
    for batch in batches:
        empty = len(batch.num_samples) - len(batch.windows)
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


@pytest.mark.parametrize("frames", [16_384, 16_385, 17_408, 30_720, 30_721, 47_000])
@pytest.mark.parametrize("normalised", [False, True])
def test_every_frame_of_a_long_one_is_one_windows_own(frames, normalised):
    length = num_samples(frames) + 319
    audio = np.random.default_rng(0).integers(-9999, 9999, length).astype(np.int16)
    whole = normalize(to_float(audio)) if normalised else to_float(audio)
    found = list(windows(Utterance("long", audio), normalised))
    assert [window.last for window in found] == [False] * (len(found) - 1) + [True]
    place = 0
    for window in found:
        # A frame's samples stand where they stand in the recording.
        first = HOP * window.own.start
        start = HOP * place - first
        np.testing.assert_array_equal(window.waveform, whole[start : start + len(window.waveform)])
        heard = num_frames(len(window.waveform))
        assert heard <= LONGEST and (len(found) == 1 or heard == LONGEST)
        around = (window.own.start, heard - window.own.stop)
        assert all(n >= 1_024 for n in around[: 1 + (not window.last)][place == 0 :])
        place += window.own.stop - window.own.start
    assert place == num_frames(length)
    shapes = {b.waveform.shape for b in padded_batches([Utterance("long", audio)], 4096, False)}
    assert len(shapes) == 1
