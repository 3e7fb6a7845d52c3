"""Records of a split in a bucket."""

import numpy as np
import pytest

from hubert_jax import storage
from hubert_jax.data import manifests, records
from hubert_jax.data.reading import RecordReader
from hubert_jax.errors import InputError, Unavailable


@pytest.fixture
def split(bucket, speech_split, speech_labels):
    """The folders of `speech_split` and its labels in a bucket."""
    for name, folder in (("audio", speech_split), ("labels", speech_labels)):
        for path in folder.iterdir():
            (bucket / name / path.name).send(path)
    return bucket / "audio", bucket / "labels"


def _readers(split, speech_split, speech_labels, **options):
    for audio, labels in (split, (speech_split, speech_labels)):
        described = manifests.read_manifest(audio)
        of_labels = [(labels, manifests.read_label_manifest(labels))]
        yield RecordReader(audio, described, of_labels, **options)


def test_records_are_those_of_a_folder(split, speech_split, speech_labels, bucket_server):
    ours, theirs = _readers(split, speech_split, speech_labels)
    numbers = np.random.default_rng(0).permutation(len(theirs.index.samples))
    expected, _ = theirs.read(numbers)
    shards = len(manifests.read_manifest(split[0]).shards)
    bucket_server.requests.clear()
    for _ in range(2):
        found, stood_in = ours.read(numbers)
        assert (stood_in < 0).all()
        for column, wanted in zip(found, expected, strict=True):
            assert column.tolist() == wanted.tolist()
    # Each shard of audio and labels once, whatever is read of it; its version before and after.
    assert bucket_server.requests == {"HEAD": 4 * shards, "GET": 2 * shards}
    assert list(ours.transcripts()) == list(theirs.transcripts())


def test_a_record_of_more_than_the_cache_holds_is_one_request(
    split, speech_split, speech_labels, bucket_server, monkeypatch
):
    monkeypatch.setenv("HUBERT_JAX_CACHE_BYTES", "4000000")
    ours, theirs = _readers(split, speech_split, speech_labels)
    numbers = np.arange(len(theirs.index.samples))
    ours.read(numbers[:1])
    shards = len(manifests.read_manifest(split[0]).shards)
    bucket_server.requests.clear()
    found, _ = ours.read(numbers)
    assert found[0].tolist() == theirs.read(numbers)[0][0].tolist()
    assert len(numbers) <= bucket_server.requests["GET"] <= len(numbers) + shards
    assert bucket_server.requests["HEAD"] <= 2 * shards
    assert list(ours.transcripts()) == list(theirs.transcripts())


def test_damage_in_a_bucket_is_told(split, speech_split, speech_labels, monkeypatch):
    monkeypatch.setenv("HUBERT_JAX_CACHE_BYTES", "4000000")
    first = manifests.read_manifest(split[0]).shards[0]
    content = (speech_split / first.file).read_bytes()
    (split[0] / first.file).write_bytes(content[: len(content) // 2])
    ours, _ = _readers(split, speech_split, speech_labels)
    with pytest.raises(InputError, match=f"{split[0] / first.file}, record .: cut off or damaged"):
        ours.read(np.arange(first.utterances))
    ours, _ = _readers(split, speech_split, speech_labels)
    (split[0] / first.file).unlink()
    with pytest.raises(InputError, match=f"{split[0] / first.file}, record 0: cannot be read"):
        ours.read(np.arange(1))
    with pytest.raises(InputError, match="listed in the audio manifest but not there"):
        manifests.read_manifest(split[0])
    with pytest.raises(InputError, match=f"{split[0] / first.file}: cannot be read"):
        list(records.read_shard(storage.path(split[0], first.file)))


def test_no_record_stands_in_while_the_service_fails(
    split, speech_split, speech_labels, bucket_server, monkeypatch
):
    monkeypatch.setenv("HUBERT_JAX_CACHE_BYTES", "4000000")
    ours, _ = _readers(split, speech_split, speech_labels, skip_damaged=True)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    bucket_server.failing = 1.0
    with pytest.raises(Unavailable):
        ours.read(np.arange(4))
    assert not ours.damaged
