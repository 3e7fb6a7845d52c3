"""Label directories mirror their audio, and labels of anything else are refused."""

import dataclasses
import functools
import importlib

import numpy as np
import pytest
import splits

from hubert_jax.data import manifests, records
from hubert_jax.data.label_sets import check_labels, read_label_sets
from hubert_jax.errors import InputError
from hubert_jax.frames import num_frames
from hubert_jax.units.kmeans import Codebook
from hubert_jax.units.labels import commonest_share, write_labels

CODEBOOK = Codebook(np.eye(5, dtype=np.float32), {"kind": "mfcc"}, 0.0, 0, 0, 10)


def some_labels(speech, rate=100):
    for name, audio in speech.items():
        yield name, (np.arange(num_frames(len(audio), rate)) % 4).astype(np.uint16)


@pytest.fixture(scope="module")
def label_dir(split, speech, tmp_path_factory):
    directory = tmp_path_factory.mktemp("label") / "dev"
    # In another order than the shards': layers' features come grouped by length.
    stream = sorted(some_labels(speech), reverse=True)
    splits.write_labels(split, directory, stream, CODEBOOK, 100)
    return directory


def test_labels_mirror_the_audio(split, speech, label_dir):
    audio, labels = manifests.read_manifest(split), manifests.read_label_manifest(label_dir)
    check_labels(audio, labels, num_classes=5)
    assert [s.file for s in labels.shards] == [manifests.label_file(s.file) for s in audio.shards]
    expected = dict(some_labels(speech))
    for utterance, (name, values) in zip(
        records.read_audio(split), records.read_labels(label_dir), strict=True
    ):
        assert utterance.id == name
        np.testing.assert_array_equal(values, expected[name])
    everything = np.concatenate(list(expected.values()))
    assert labels.class_counts == tuple(np.bincount(everything, minlength=5))
    assert commonest_share(labels) == max(labels.class_counts) / len(everything)
    assert (labels.codebook_digest, labels.feature) == (CODEBOOK.digest, {"kind": "mfcc"})


def test_wrong_number_of_labels_writes_nothing(split, speech, tmp_path):
    with pytest.raises(InputError, match="found .* labels, expected .* at 100 Hz for"):
        splits.write_labels(split, tmp_path / "dev", some_labels(speech, 50), CODEBOOK, 100)
    # What is finished waits for the next call, under another name.
    assert [path.name.partition("-")[0] for path in tmp_path.iterdir()] == [".dev.parts"]


def test_missing_utterance_writes_nothing(split, speech, tmp_path):
    with pytest.raises(InputError, match="found no labels"):
        splits.write_labels(split, tmp_path / "dev", list(some_labels(speech))[:-1], CODEBOOK, 100)
    # What is finished waits for the next call, under another name.
    assert [path.name.partition("-")[0] for path in tmp_path.iterdir()] == [".dev.parts"]


def test_labels_of_other_audio_are_refused(make_split, speech, label_dir, tmp_path):
    other = make_split(tmp_path / "other", tuple(speech)[:4], "other")
    with pytest.raises(InputError) as refusal:
        check_labels(
            manifests.read_manifest(other), manifests.read_label_manifest(label_dir), where="here"
        )
    assert str(refusal.value).startswith("here: audio_digest: found ")
    assert "(labels of split 'dev'), expected" in str(refusal.value)
    assert "run the label job on this audio" in str(refusal.value)


def changed_shard(labels, **changes):
    first = dataclasses.replace(labels.shards[0], **changes)
    return {"shards": (first, *labels.shards[1:])}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda m: {"utterances": m.utterances - 1}, "utterances"),
        (lambda m: {"rate_hz": 25}, "rate_hz"),
        (lambda m: {"rate_hz": 50}, "frames of labels-b"),
        (lambda m: changed_shard(m, frames=m.shards[0].frames // 2), "frames of labels-b"),
        (lambda m: changed_shard(m, utterances=1), "utterances of labels-b"),
        (lambda m: changed_shard(m, file="labels-x"), "shards"),
        (lambda m: {"shards": ()}, "shards"),
        (lambda m: {"num_classes": 6}, "class_counts"),
        (lambda m: {"class_counts": (0, 0, 0, 0, 1)}, "class_counts"),
        (lambda m: {"class_counts": (m.frames, 0, 0, 0, 0)}, "class_counts"),
    ],
)
def test_labels_that_do_not_fit_are_refused(split, label_dir, change, field):
    labels = manifests.read_label_manifest(label_dir)
    wrong = dataclasses.replace(labels, **change(labels))
    with pytest.raises(InputError, match=rf"^labels: {field}.*: found .*, expected .*; "):
        check_labels(manifests.read_manifest(split), wrong)


def test_another_number_of_classes_is_refused(split, label_dir):
    with pytest.raises(InputError, match="num_classes: found 5, expected 9"):
        check_labels(
            manifests.read_manifest(split),
            manifests.read_label_manifest(label_dir),
            num_classes=9,
        )


def configured_pairs():
    """The label and train parts of every configuration that has both."""
    for name in ("base_it1", "base_it2", "large", "xlarge", "small"):
        get_config = importlib.import_module(f"configs.{name}").get_config
        yield pytest.param(get_config("label"), get_config("train"), id=name)
    stages = importlib.import_module("configs.demo").get_config().stages
    for name in ("it1", "it2"):
        yield pytest.param(stages[name].label, stages[name].train, id=f"demo-{name}")


@pytest.mark.parametrize(("label", "train"), list(configured_pairs()))
def test_every_configuration_trains_on_the_labels_it_makes(label, train, split, speech, tmp_path):
    codebook = dataclasses.replace(CODEBOOK, centroids=np.eye(label.num_clusters, dtype=np.float32))
    splits.write_labels(split, tmp_path / "labels", some_labels(speech), codebook, 100)
    (manifest,) = read_label_sets(
        manifests.read_manifest(split), (str(tmp_path / "labels"),), train.head.codebook_sizes
    )
    assert manifest.num_classes == label.num_clusters


def test_finished_shards_are_kept_and_damaged_ones_are_not(speech_split, tmp_path):
    audio = manifests.read_manifest(speech_split)
    assert len(audio.shards) >= 2
    asked = []

    def assigned(shards, until):
        for number, shard in enumerate(audio.shards):
            if shards(number):
                if number == until:
                    raise KeyboardInterrupt
                asked.append(number)
                for utterance in records.read_shard(speech_split / shard.file):
                    frames = num_frames(len(utterance.audio), 100)
                    yield number, utterance.id, [(np.arange(frames) % 4).astype(np.uint16)]

    def write(directory, until=None, version=1):
        asked.clear()
        labels = functools.partial(assigned, until=until)
        inventories = {tmp_path / directory: splits.inventory_of(CODEBOOK)}
        return write_labels(speech_split, inventories, labels, 100, version)[0]

    last = len(audio.shards) - 1
    whole = write("whole")
    with pytest.raises(KeyboardInterrupt):
        write("labels", until=last)
    (parts,) = tmp_path.glob(".labels.parts-*")
    assert not (tmp_path / "labels").exists() and len(list(parts.iterdir())) == last
    (parts / f"{manifests.label_file(audio.shards[0].file)}.tmp-1").write_bytes(b"half")
    assert write("labels") == whole and asked == [last]
    assert {path.name for path in (tmp_path / "labels").iterdir()} == {
        path.name for path in (tmp_path / "whole").iterdir()
    }
    # Whole: nothing is computed again, unless it is damaged or another codebook is wanted.
    assert write("labels") == whole and asked == []
    first = tmp_path / "labels" / whole.shards[0].file
    first.write_bytes(first.read_bytes()[:-1])
    assert write("labels") == whole and asked == list(range(len(audio.shards)))

    with pytest.raises(KeyboardInterrupt):
        write("again", until=last)
    (parts,) = tmp_path.glob(".again.parts-*")
    first = parts / whole.shards[0].file
    first.write_bytes(first.read_bytes()[:-1])
    assert write("again") == whole and asked == [0, last]

    # Nor do a whole set, or parts of one, count that another definition made.
    everything = list(range(len(audio.shards)))
    newer = dataclasses.replace(whole, version=2)
    assert write("labels", version=2) == newer and asked == everything
    with pytest.raises(KeyboardInterrupt):
        write("newer", until=last)
    assert write("newer", version=2) == newer and asked == everything
    assert not list(tmp_path.glob(".newer.parts-*"))
