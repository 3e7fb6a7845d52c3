"""Buckets against brute force, and the division of a split into shards."""

import numpy as np
import pytest
import splits

from hubert_jax.corpus import assembly, parts
from hubert_jax.data import buckets, records
from hubert_jax.data.records import Utterance
from hubert_jax.errors import InputError
from hubert_jax.frames import num_samples


def _frames(samples: int) -> int:
    """Frames of the network's seven convolutions, one after the other."""
    for kernel, stride in ((10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2)):
        samples = (samples - kernel) // stride + 1
    return samples


def test_crop_is_the_shortest_waveform_with_its_frames():
    for frames in buckets.BUCKETS:
        assert _frames(num_samples(frames)) == frames
        assert _frames(num_samples(frames) - 1) == frames - 1


def test_buckets_against_brute_force():
    edges = [num_samples(frames) + d for frames in buckets.BUCKETS for d in (-1, 0, 1)]
    for samples in [400, 31_999, 32_000, 10**7, *edges, *range(400, 260_000, 997)]:
        fitting = [frames for frames in buckets.BUCKETS if frames <= _frames(samples)]
        expected = fitting[-1] if samples >= 32_000 else 0
        assert buckets.bucket_of(samples) == expected, samples


def _utterances(lengths) -> list[Utterance]:
    return [Utterance(f"u{i}", np.full(n, i, np.int16)) for i, n in enumerate(lengths)]


def test_shards_are_filled_in_order_and_named_with_their_number(tmp_path):
    # 260,000 samples are 0.52 MB: two fill a shard of 1 MB.
    utterances = _utterances([260_000, 20_000, 260_000, 260_000, 260_000, 50_000, 260_000])
    manifest = splits.write_split(tmp_path, "some", utterances, [("f.wav", "bad")], 1)
    found = [(s.file, s.bucket_frames, s.utterances, s.samples) for s in manifest.shards]
    assert found == [
        ("audio-b0000-00000-of-00001.tfrecord", 0, 1, 20_000),
        ("audio-b0128-00000-of-00001.tfrecord", 128, 1, 50_000),
        ("audio-b0768-00000-of-00003.tfrecord", 768, 2, 520_000),
        ("audio-b0768-00001-of-00003.tfrecord", 768, 2, 520_000),
        ("audio-b0768-00002-of-00003.tfrecord", 768, 1, 260_000),
    ]
    assert [u.id for u in records.read_audio(tmp_path)] == [
        "u1",
        "u5",
        "u0",
        "u2",
        "u3",
        "u4",
        "u6",
    ]
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {name for name, *_ in found} | {
        "index.npz",
        "manifest.json",
        "rejected.tsv",
        "flagged.tsv",
    }
    assert (manifest.utterances, manifest.rejected) == (7, 1)
    assert manifest.seconds == pytest.approx(
        sum(len(u.audio) for u in utterances) / 16_000, abs=1e-3
    )
    assert (tmp_path / "rejected.tsv").read_text() == "f.wav\tbad\n"
    # Constant samples of 0 to 6 steps.
    flagged = (tmp_path / "flagged.tsv").read_text().splitlines()
    assert flagged[3] == "u3\tsilent: no sample beyond 3 of 32768" and len(flagged) == 7


def test_division_into_shards_against_brute_force():
    random = np.random.default_rng(0)
    for megabytes in (0.1, 1, 2):
        samples = random.integers(400, 500_000, 300)
        expected, first, size = [], 0, 0
        for i, count in enumerate(samples):
            size += 2 * count
            if size >= megabytes * 10**6 or i == len(samples) - 1:
                expected.append((first, i + 1))
                first, size = i + 1, 0
        assert assembly.plan_shards(samples, megabytes) == expected
    assert assembly.plan_shards(samples[:0], 1) == []


def test_two_utterances_of_one_order_are_refused(tmp_path):
    utterance = Utterance("a", np.zeros(400, np.int16))
    item = parts.Item("x", [(assembly.shuffle_order("a"), utterance)])
    written = parts.write(tmp_path / "part.tfrecord", [item, item], "pcm16")
    with pytest.raises(InputError, match="two utterances have the same id"):
        assembly.assemble(tmp_path, "some", [written], 1)
