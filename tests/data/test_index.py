"""The index of a split: what it says of each record, and that it is bound to its manifest."""

import dataclasses
import pathlib

import numpy as np
import pytest
import splits

from hubert_jax.data import index, manifests, reading, records
from hubert_jax.errors import InputError


@pytest.fixture(scope="module")
def split(tmp_path_factory) -> pathlib.Path:
    """Nine utterances in two buckets, several shards in one of them."""
    directory = tmp_path_factory.mktemp("audio")
    utterances = [
        records.Utterance(
            f"Ü-{number}",
            np.full(20_000 + 40_000 * (number % 3), number, np.int16),
            "" if number == 4 else f"speaker {number % 2}",
            "" if number % 4 else "WORDS",
        )
        for number in range(9)
    ]
    splits.write_split(directory, "some", utterances, [], 0.2)
    return directory


@pytest.fixture
def copy(split, tmp_path) -> pathlib.Path:
    for path in split.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_it_says_what_the_records_say(split):
    manifest = manifests.read_manifest(split)
    found = index.read_index(split, manifest)
    utterances = list(records.read_audio(split))
    assert len(found.samples) == len(found.ids) == len(utterances) == 9
    assert list(found.ids) == [utterance.id for utterance in utterances]
    assert found.samples.tolist() == [len(utterance.audio) for utterance in utterances]
    with np.load(found.paths[0]) as stored:
        transcribed, speaker, speakers = (stored[n] for n in ("transcribed", "speaker", "speakers"))
    assert transcribed.tolist() == [utterance.text != "" for utterance in utterances]
    names = speakers.tobytes().decode().split("\0")
    assert names == ["", "speaker 0", "speaker 1", ""]
    assert [names[number] for number in speaker] == [u.speaker for u in utterances]
    assert found.speakers == [u.speaker for u in utterances]
    shards = [list(found.shard(number)) for number in range(len(manifest.shards))]
    assert [len(shard) for shard in shards] == [shard.utterances for shard in manifest.shards]
    assert sum(shards, []) == list(range(9)) and len(shards) > 3


def test_ids_that_two_splits_share(split, tmp_path, monkeypatch):
    texts = {"one": [f"Ü-{n}" for n in range(40, 8, -8)] + ["Ü-7", "Ü-"], "other": ["Ü"]}
    mine = index.read_index(split, manifests.read_manifest(split))
    for block_bytes in (8, 2**24):  # an id and the beginning of the next, or all of them
        monkeypatch.setattr(index, "_BLOCK_BYTES", block_bytes)
        for name, ids in texts.items():
            np.savez(tmp_path / f"{name}.npz", ids=np.frombuffer(_joined(ids), np.uint8))
            samples = np.ones(len(ids), np.uint32)
            theirs = dataclasses.replace(mine, paths=(tmp_path / f"{name}.npz",), samples=samples)
            assert mine.shared(theirs) == theirs.shared(mine) == sorted({*ids} & {*mine.ids})
        assert mine.shared(mine) == sorted(mine.ids)


def _joined(ids) -> bytes:
    return "".join(f"{name}\0" for name in ids).encode()


def test_records_are_read_by_it_in_any_order(split):
    manifest = manifests.read_manifest(split)
    reader = reading.RecordReader(split, manifest)
    utterances = list(records.read_audio(split))
    numbers = np.array([7, 0, 8, 3, 3])
    (contents,), stood_in = reader.read(numbers)
    assert (stood_in == -1).all()
    for number, content in zip(numbers, contents, strict=True):
        assert content == records.serialize(utterances[number])


def test_equal_utterances_have_equal_indexes(split, tmp_path):
    splits.write_split(tmp_path, "some", list(records.read_audio(split)), [], 0.2)
    assert (tmp_path / index.INDEX).read_bytes() == (split / index.INDEX).read_bytes()


def test_a_missing_and_a_foreign_index_are_refused(copy, split, tmp_path_factory):
    manifest = manifests.read_manifest(copy)
    (copy / index.INDEX).unlink()
    with pytest.raises(InputError, match=r"index.npz: the index is not there; run .*prepare again"):
        index.read_index(copy, manifest)
    other = tmp_path_factory.mktemp("other")
    splits.write_split(other, "some", list(records.read_audio(split))[:5], [], 0.2)
    (copy / index.INDEX).write_bytes((other / index.INDEX).read_bytes())
    with pytest.raises(InputError, match=r"index.npz: index: found the digest .* expected"):
        index.read_index(copy, manifest)


def test_names_with_a_zero_byte_are_refused():
    with pytest.raises(InputError, match="zero bytes"):
        index.ShardIndex.of([(30, 400, "a\0b", "", False)])
