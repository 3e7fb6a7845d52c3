"""Shards and manifests: round trips, and refusal of everything that was damaged."""

import dataclasses
import hashlib
import json
import struct

import numpy as np
import pytest
import splits

from hubert_jax.data import manifests, records
from hubert_jax.data.records import Utterance
from hubert_jax.errors import InputError


def _utterances(count: int) -> list[Utterance]:
    random = np.random.default_rng(0)
    return [
        Utterance(
            id=f"speaker-{i}",
            audio=random.integers(-32768, 32768, 400 + 37 * i).astype(np.int16),
            speaker=f"s{i % 2}",
            text="" if i == 1 else f"TEXT Ü {i}",
        )
        for i in range(count)
    ]


def _equal(left: Utterance, right: Utterance) -> bool:
    same = (left.id, left.speaker, left.text) == (right.id, right.speaker, right.text)
    return same and left.audio.dtype == np.int16 and np.array_equal(left.audio, right.audio)


def _split(directory, utterances) -> manifests.AudioManifest:
    shards = (
        splits.write_shard(directory / "audio-b0000-00000-of-00002.tfrecord", utterances[:2]),
        splits.write_shard(directory / "audio-b0000-00001-of-00002.tfrecord", utterances[2:]),
    )
    manifest = manifests.AudioManifest(
        split="some",
        sample_rate=16_000,
        utterances=len(utterances),
        seconds=sum(len(u.audio) for u in utterances) / 16_000,
        speakers=2,
        transcribed=len(utterances) - 1,
        rejected=0,
        digest=manifests.shards_digest(shards),
        shards=shards,
    )
    manifests.write_manifest(directory, manifest)
    return manifest


def test_audio_comes_back_as_written(tmp_path):
    utterances = _utterances(5)
    manifest = _split(tmp_path, utterances)
    assert manifests.read_manifest(tmp_path) == manifest
    found = list(records.read_audio(tmp_path))
    assert all(map(_equal, found, utterances)) and len(found) == 5
    assert manifest.shards[1].utterances == 3
    assert manifest.shards[1].samples == sum(len(u.audio) for u in utterances[2:])


def test_digests_are_sha256_of_the_files(tmp_path):
    manifest = _split(tmp_path, _utterances(3))
    digests = [
        hashlib.sha256((tmp_path / shard.file).read_bytes()).hexdigest()
        for shard in manifest.shards
    ]
    assert [shard.digest for shard in manifest.shards] == digests
    assert manifest.digest == hashlib.sha256("".join(digests).encode()).hexdigest()


def test_shard_is_read_by_tensorflow_with_the_documented_fields(tmp_path):
    import tensorflow as tf

    (utterance,) = _utterances(1)
    path = tmp_path / "audio-b0000-00000-of-00001.tfrecord"
    splits.write_shard(path, [utterance])
    (record,) = tf.data.TFRecordDataset(str(path))
    kinds = {"id": tf.string, "audio": tf.string, "speaker": tf.string, "text": tf.string}
    features = {name: tf.io.FixedLenFeature([], kind) for name, kind in kinds.items()}
    features["num_samples"] = tf.io.FixedLenFeature([], tf.int64)
    parsed = tf.io.parse_single_example(record, features)
    samples = tf.io.decode_raw(parsed["audio"], tf.int16, little_endian=True).numpy()
    np.testing.assert_array_equal(samples, utterance.audio)
    assert parsed["num_samples"].numpy() == len(utterance.audio)
    assert parsed["text"].numpy().decode() == utterance.text


def test_labels_come_back_as_written_in_shards_named_after_the_audio(tmp_path):
    labels = [("a", np.array([0, 65535, 7])), ("b", np.zeros(0, np.int32)), ("c", np.arange(9))]
    name = manifests.label_file("audio-b0128-00003-of-00007.tfrecord")
    assert name == "labels-b0128-00003-of-00007.tfrecord"
    shard = splits.write_label_shard(tmp_path / name, labels)
    manifest = manifests.LabelManifest(
        split="some",
        audio_digest="1" * 64,
        rate_hz=50,
        num_classes=65536,
        feature={"kind": "layer", "layer": 6, "checkpoint": "x"},
        codebook_digest="2" * 64,
        utterances=3,
        frames=12,
        class_counts=(12,),
        digest=manifests.shards_digest((shard,)),
        shards=(shard,),
    )
    manifests.write_manifest(tmp_path, manifest)
    assert manifests.read_label_manifest(tmp_path) == manifest
    found = list(records.read_labels(tmp_path))
    assert [name for name, _ in found] == ["a", "b", "c"]
    for (_, expected), (_, values) in zip(labels, found, strict=True):
        assert values.dtype == np.uint16
        np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize(
    "values", [np.array([65536]), np.array([-1]), np.array([0.5]), np.zeros((2, 2), np.int32)]
)
def test_labels_that_do_not_fit_are_refused(tmp_path, values):
    with pytest.raises(ValueError, match="utt"):
        records.write_label_shard(tmp_path / "labels.tfrecord", [("utt", values)])


def _record_starts(content: bytes) -> list[int]:
    """Byte offsets of the records, by TFRecord's framing: length, its CRC, data, its CRC."""
    starts, position = [], 0
    while position < len(content):
        starts.append(position)
        position += 16 + struct.unpack_from("<Q", content, position)[0]
    return starts


@pytest.mark.parametrize("where", ["header", "data", "checksum"])
def test_a_flipped_bit_is_found_and_the_record_named(tmp_path, where):
    path = tmp_path / "shard.tfrecord"
    splits.write_shard(path, _utterances(4))
    content = bytearray(path.read_bytes())
    starts = _record_starts(content)
    position = {"header": starts[2] + 1, "data": starts[2] + 200, "checksum": starts[3] - 1}
    content[position[where]] ^= 1
    path.write_bytes(content)
    reader = records.read_shard(path)
    assert [next(reader).id for _ in range(2)] == ["speaker-0", "speaker-1"]
    with pytest.raises(InputError, match=r"shard\.tfrecord, record 2: cut off or damaged"):
        next(reader)


@pytest.mark.parametrize("kept", [3, 14, 300])
def test_a_cut_off_record_is_named(tmp_path, kept):
    path = tmp_path / "shard.tfrecord"
    splits.write_shard(path, _utterances(3))
    content = path.read_bytes()
    path.write_bytes(content[: _record_starts(content)[1] + kept])
    with pytest.raises(InputError, match=r"shard\.tfrecord, record 1: cut off or damaged"):
        list(records.read_shard(path))


def test_a_disk_that_fails_is_named(tmp_path, monkeypatch):
    path = tmp_path / "shard.tfrecord"
    splits.write_shard(path, _utterances(1))

    class Failing:
        def as_numpy_iterator(self):
            raise records.tf.errors.UnknownError(None, None, "Input/output error")
            yield

    monkeypatch.setattr(records.tf.data, "TFRecordDataset", lambda path: Failing())
    with pytest.raises(InputError, match=r"record 0: cannot be read \(Input/output error\); the"):
        list(records.read_shard(path))


def test_a_shard_cut_between_two_records_is_found_by_its_count(tmp_path):
    manifest = _split(tmp_path, _utterances(5))
    path = tmp_path / manifest.shards[1].file
    content = path.read_bytes()
    path.write_bytes(content[: _record_starts(content)[2]])
    with pytest.raises(InputError, match=r"00001-of-00002.tfrecord: 2 records, but .* says 3"):
        list(records.read_audio(tmp_path))


def test_labels_are_no_audio(tmp_path):
    path = tmp_path / "labels.tfrecord"
    records.write_label_shard(path, [("a", np.arange(3))])
    with pytest.raises(InputError, match="record 0: expected the fields id, audio"):
        list(records.read_shard(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda v: v | {"format": 1},
            "expected the audio manifest format 2, found 1; run .*prepare again",
        ),
        (lambda v: v | {"utterances": "many"}, "utterances: expected int, found str 'many'"),
        (lambda v: v | {"digest": "0"}, "the digest is not that of its shards"),
        (lambda v: [], "expected the audio manifest format 2, found None"),
    ],
)
def test_manifests_that_were_changed_are_refused(tmp_path, change, message):
    _split(tmp_path, _utterances(3))
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(InputError, match=message):
        manifests.read_manifest(tmp_path)


def test_missing_shard_and_missing_manifest(tmp_path):
    manifest = _split(tmp_path, _utterances(3))
    (tmp_path / manifest.shards[0].file).unlink()
    with pytest.raises(InputError, match="listed in the audio manifest but not there"):
        manifests.read_manifest(tmp_path)
    elsewhere = dataclasses.replace(manifest.shards[0], file="sub/audio.tfrecord")
    shards = (elsewhere, *manifest.shards[1:])
    manifests.write_manifest(tmp_path, dataclasses.replace(manifest, shards=shards))
    with pytest.raises(InputError, match="sub/audio.tfrecord: listed in the audio manifest but"):
        manifests.read_manifest(tmp_path)
    with pytest.raises(InputError, match="audio manifest not found"):
        manifests.read_manifest(tmp_path / "elsewhere")


@pytest.mark.parametrize("encoded", ["pcm16", "flac"])
@pytest.mark.parametrize("samples", [400, 20_000, 3_000_000])  # lengths of one to four bytes
def test_a_row_of_the_index_is_found_behind_the_audio(encoded, samples):
    audio = (3_000 * np.sin(np.arange(samples) / 9)).astype(np.int16)
    for text in ("", "ÜBER " * 9):
        record = records.serialize(records.Utterance("ü-1", audio, "s", text), encoded)
        expected = (len(record) + records.FRAMING_BYTES, samples, "ü-1", "s", bool(text))
        assert records.index_row(record) == records.index_row(memoryview(record)) == expected


def test_what_is_no_record_has_no_row():
    record = records.serialize(records.Utterance("a", np.zeros(400, np.int16)))
    for damaged in (b"", record[:3], record[:40], record[:-3], b"\xff" * 40):
        with pytest.raises(ValueError):
            records.index_row(damaged)
