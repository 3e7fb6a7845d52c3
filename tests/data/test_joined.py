"""Several splits as one: nothing is copied, and each is drawn by its weight."""

import collections
import pathlib

import numpy as np
import pytest
from splits import write_split

from hubert_jax.data import batches, encoding, records, schedule
from hubert_jax.data.index import read_index
from hubert_jax.data.joined import JoinedManifest
from hubert_jax.data.manifests import read_manifest
from hubert_jax.data.reading import RecordReader


@pytest.fixture
def both(speech_split, held_out_split):
    return str(speech_split), str(held_out_split)


def test_records_are_those_of_both_in_turn(both):
    joined = JoinedManifest.read(both)
    parts = [read_manifest(directory) for directory in both]
    index = read_index(both[0], joined)
    assert joined.utterances == len(index.ids) == sum(part.utterances for part in parts)
    indices = [read_index(*part) for part in zip(both, parts, strict=True)]
    assert [*index.ids] == [name for each in indices for name in each.ids]
    assert index.speakers == [name for each in indices for name in each.speakers]
    assert index.transcribed.all() and len(index.transcribed) == joined.utterances
    np.testing.assert_array_equal(index.samples, np.concatenate([i.samples for i in indices]))
    reader = RecordReader(pathlib.Path("anywhere"), joined)
    (found,), _ = reader.read(np.arange(joined.utterances))
    expected = [utterance for directory in both for utterance in records.read_audio(directory)]
    for content, utterance in zip(found, expected, strict=True):
        fields = records.parse(content, ("id", "audio", "text"))
        assert fields["id"].decode() == utterance.id and fields["text"].decode() == utterance.text
        assert fields["audio"] == utterance.audio.tobytes()
    assert list(reader.transcripts()) == [utterance.text for utterance in expected]
    assert JoinedManifest.read(both[:1]) == parts[0]


@pytest.mark.parametrize("weights", [(), (1.0, 6.0)])
def test_rows_are_drawn_by_weight(both, weights):
    joined = JoinedManifest.read(both, weights)
    index = read_index(both[0], joined)
    seconds = np.array([read_manifest(directory).seconds for directory in both])
    expected = seconds * (weights or (1.0, 1.0)) / (seconds @ (weights or (1.0, 1.0)))
    assert [part["share"] for part in joined.described()] == pytest.approx(expected.tolist())
    buckets = schedule.padded_buckets(joined, index, 3072, (384,), 1)
    plan = schedule.BucketSchedule(buckets, 0)
    drawn = batches.finetuning_batches(
        pathlib.Path(both[0]),
        joined,
        plan,
        seed=0,
        first_step=0,
        last_step=60,
        normalize_waveform=False,
    )
    heard: collections.Counter[str] = collections.Counter()
    for batch in drawn:
        for name, samples in zip(batch["id"], batch["num_samples"], strict=True):
            heard[name.decode()] += int(samples)
    first = sum(heard[name] for name in read_index(both[0], read_manifest(both[0])).ids)
    assert first / heard.total() == pytest.approx(expected[0], abs=0.02)
    assert len(heard) == joined.utterances


def test_flac_beside_pcm(both, tmp_path, monkeypatch):
    utterances = list(records.read_audio(both[1]))
    split = tmp_path / "flac"
    split.mkdir()
    serialize = records.serialize
    with monkeypatch.context() as patch:
        patch.setattr("hubert_jax.corpus.parts.serialize", lambda u, e: serialize(u, "flac"))
        write_split(split, "flac", utterances, [], 64)
    path = split / "manifest.json"
    path.write_text(path.read_text().replace('"pcm16"', '"flac"'))
    joined = JoinedManifest.read((both[0], str(split)))
    assert joined.encoding == "flac" and "flac" in encoding.ENCODINGS
    plan = schedule.BucketSchedule(
        schedule.padded_buckets(joined, read_index(split, joined), 3072, (384,), 1), 0
    )
    drawn = batches.finetuning_batches(
        split, joined, plan, seed=0, first_step=0, last_step=12, normalize_waveform=False
    )
    expected = {u.id: u.audio for u in [*records.read_audio(both[0]), *utterances]}
    seen = set()
    for batch in drawn:
        for row, name in enumerate(batch["id"]):
            audio = expected[name.decode()]
            found = batch["waveform"][row, : len(audio)]
            np.testing.assert_array_equal(found, audio.astype(np.float32) / 32768)
            seen.add(name.decode())
    assert seen >= {utterance.id for utterance in utterances}
