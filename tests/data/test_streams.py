"""What training may rely on over many steps: restarts, hosts, mixed corpora, damaged shards."""

import collections
import dataclasses
import hashlib
import itertools
import pathlib

import numpy as np
import pytest
import splits
import tensorflow as tf

from hubert_jax.data import batches, manifests, records, schedule, streams
from hubert_jax.data.corpus_sampler import CorpusSampler
from hubert_jax.errors import InputError
from hubert_jax.frames import num_frames
from hubert_jax.units.kmeans import Codebook

SEED, STEPS = 11, 200
FRAMES_PER_STEP = 800
ALONE = streams.Host()


@pytest.fixture(scope="module")
def split(tmp_path_factory) -> pathlib.Path:
    """80 utterances in shards of about five, in the buckets of 96 and 128 frames."""
    directory = tmp_path_factory.mktemp("audio")
    random = np.random.default_rng(0)
    utterances = [
        records.Utterance(
            f"utterance-{number:02d}",
            random.integers(-3000, 3000, size=32_000 + 231 * number, dtype=np.int16),
        )
        for number in range(80)
    ]
    splits.write_split(directory, "noise", utterances, [], 0.35)
    return directory


@pytest.fixture(scope="module")
def label_set(split, tmp_path_factory) -> batches.LabelSet:
    """At 50 Hz, the number of the utterance in every frame."""
    directory = tmp_path_factory.mktemp("labels") / "number"
    rows = (
        (utterance.id, np.full(num_frames(len(utterance.audio), 50), _number(utterance.id)))
        for utterance in records.read_audio(split)
    )
    codebook = Codebook(np.zeros((80, 1), np.float32), {}, 0.0, 0, 0, 0)
    return batches.LabelSet(directory, splits.write_labels(split, directory, rows, codebook, 50))


def _number(name: str) -> int:
    return int(name.rpartition("-")[2])


def _read(split, label_set, first, last, host=ALONE, manifest=None, on_damage=None):
    manifest = manifest or manifests.read_manifest(split)
    return batches.pretraining_batches(
        split,
        manifest,
        [label_set],
        _plan(manifest, host.count),
        seed=SEED,
        first_step=first,
        last_step=last,
        normalize_waveform=False,
        host=host,
        on_damage=on_damage,
    )


def _plan(manifest, hosts=1):
    buckets = schedule.crop_buckets(manifest, FRAMES_PER_STEP, 768, hosts)
    return schedule.BucketSchedule(buckets, SEED)


def _digests(read) -> list[str]:
    return [
        hashlib.sha256(batch["waveform"].tobytes() + batch["labels_0"].tobytes()).hexdigest()
        for batch in read
    ]


def test_batches_are_those_that_they_always_were(split, label_set):
    # Whoever changes this digest changes what every interrupted run goes on with.
    digests = _digests(_read(split, label_set, 0, 30))
    assert hashlib.sha256("".join(digests).encode()).hexdigest() == GOLDEN


GOLDEN = "0becd92de7798acad95a2e5df28e99a4d5f165e1e7694bc48f086a8ce08fcb2b"


def test_a_run_interrupted_at_any_step_goes_on_alike(split, label_set, monkeypatch):
    whole = _digests(_read(split, label_set, 0, STEPS))
    assert len(set(whole)) == STEPS
    for first in (1, 38, 101, 166, 199):
        resumed = _read(split, label_set, first, STEPS)
        assert _digests(itertools.islice(resumed, 7)) == whole[first : first + 7]
        resumed.close()  # the next interruption
    reads = collections.Counter()
    original = tf.data.TFRecordDataset

    def counting(files, **settings):
        def count(file, record):
            reads[pathlib.Path(file.decode()).parent == split] += 1
            return record

        def counted(record):
            return tf.ensure_shape(tf.numpy_function(count, [files, record], tf.string), [])

        return original(files, **settings).map(counted)

    monkeypatch.setattr(tf.data, "TFRecordDataset", counting)
    manifest = manifests.read_manifest(split)
    plan = _plan(manifest)
    largest = max(shard.utterances for shard in manifest.shards)
    for step in (120, 199):
        reads.clear()
        assert _digests(_read(split, label_set, step, step + 1)) == [whole[step]]
        rows = plan.buckets[plan.indices(STEPS)[step]].rows
        # The rest of the shard in which the batch begins, and of the one in which it ends.
        assert rows <= reads[True] <= rows + 2 * (largest - 1)
        assert reads[False] == reads[True]


def _rows(plan, read) -> dict[int, list[int]]:
    """Numbers of the utterances that were drawn, by the bucket's frames."""
    rows = collections.defaultdict(list)
    for batch in read:
        rows[batch["labels_0"].shape[1]] += batch["labels_0"][:, 0].tolist()
    return rows


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_hosts_see_disjoint_and_complete_epochs_of_the_same_buckets(split, label_set, hosts):
    manifest = manifests.read_manifest(split)
    plan = _plan(manifest, hosts)
    seen = collections.defaultdict(list)
    lengths = []
    for index in range(hosts):
        read = list(_read(split, label_set, 0, 100, streams.Host(index, hosts)))
        lengths.append([batch["labels_0"].shape[1] for batch in read])
        for frames, rows in _rows(plan, read).items():
            mine = len(set(rows))
            epochs = [set(rows[i : i + mine]) for i in range(0, len(rows) - mine + 1, mine)]
            assert len(epochs) >= 2 and all(epoch == epochs[0] for epoch in epochs)
            seen[frames] += epochs[0]
    assert all(other == lengths[0] for other in lengths)
    floors = [plan.buckets[index].frames for index in plan.indices(100)]
    assert lengths[0] == floors
    for bucket in plan.buckets:
        assert len(seen[bucket.frames]) == len(set(seen[bucket.frames])) == bucket.utterances


@pytest.fixture(scope="module")
def mixed(split) -> manifests.AudioManifest:
    """The same shards as two corpora of about a fifth and four fifths, of which half is wanted."""
    manifest = manifests.read_manifest(split)
    counts = collections.Counter()
    marked = []
    for shard in manifest.shards:
        few = counts[shard.bucket_frames] < 2
        counts[shard.bucket_frames] += 1
        marked.append(dataclasses.replace(shard, group="few" if few else "many"))
    groups = tuple(manifests.GroupInfo(name, 0, 0.0, 0.5) for name in ("few", "many"))
    return dataclasses.replace(manifest, shards=tuple(marked), groups=groups)


@pytest.mark.parametrize("hosts", [1, 2])
def test_corpora_get_their_shares_and_keep_their_epochs(split, label_set, mixed, hosts):
    group_of = {
        _number(utterance.id): shard.group
        for shard in mixed.shards
        for utterance in records.read_shard(split / shard.file)
    }
    few = sum(group == "few" for group in group_of.values()) / len(group_of)
    assert few < 0.4
    plan = _plan(mixed, hosts)
    frames = collections.Counter()
    for index in range(hosts):
        host = streams.Host(index, hosts)
        whole = list(_read(split, label_set, 0, STEPS, host, mixed))
        for crop, rows in _rows(plan, whole).items():
            for name in ("few", "many"):
                drawn = [number for number in rows if group_of[number] == name]
                frames[name] += crop * len(drawn)
                size = len(set(drawn))
                epochs = [drawn[i : i + size] for i in range(0, len(drawn) - size + 1, size)]
                assert len(epochs) > 3
                assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
                assert len({tuple(epoch) for epoch in epochs}) > 1
        for first in (3, 150):
            resumed = _digests(_read(split, label_set, first, first + 4, host, mixed))
            assert resumed == _digests(whole[first : first + 4])
    # The buckets are drawn at random, so the share is only what is to be expected.
    assert frames["few"] / frames.total() == pytest.approx(0.5, abs=0.02)


def test_a_corpus_that_training_cannot_take_is_named(mixed):
    groups = (*mixed.groups, manifests.GroupInfo("none", 0, 0.0, 0.1))
    with pytest.raises(InputError, match="no utterance of none has a length"):
        _plan(dataclasses.replace(mixed, groups=groups))


def test_turns_have_the_weights_and_are_counted_without_replay():
    turns = CorpusSampler([5.0, 0.1, 3.0, 1.9], [3, 96])
    for hosts, host in ((1, 0), (3, 2), (32, 7)):
        rows = np.arange(host, 6000 * hosts, hosts)
        places = (turns.start + rows * turns.STRIDE) % turns.CYCLE
        corpora = np.searchsorted(turns.ends, places, side="right")
        for count in (0, 1, 17, 5999):
            expected = np.bincount(corpora[:count], minlength=4).tolist()
            assert turns.before(count, host, hosts) == expected
    share = np.array(turns.before(10**9)) / 10**9
    np.testing.assert_allclose(share, [0.5, 0.01, 0.3, 0.19], atol=1e-7)
    # A batch of 100 rows has its shares to within a few.
    np.testing.assert_allclose(turns.before(100), [50, 1, 30, 19], atol=3)


@pytest.mark.parametrize("flip", [False, True], ids=["cut off", "flipped"])
def test_damage_is_named_once_and_moves_no_other_row(split, label_set, tmp_path, flip):
    damaged = tmp_path / "audio"
    damaged.mkdir()
    for path in split.iterdir():
        (damaged / path.name).write_bytes(path.read_bytes())
    shard = next(s for s in manifests.read_manifest(split).shards if s.bucket_frames == 128)
    path = damaged / shard.file
    content = bytearray(path.read_bytes())
    first = 16 + int.from_bytes(content[:8], "little")
    content[first + 5000] ^= flip
    path.write_bytes(content if flip else content[: first + 5000])
    lost = {_number(u.id) for u in list(records.read_shard(split / shard.file))[1:]}
    kept = _number(next(records.read_shard(path)).id)

    with pytest.raises(InputError, match=rf"{path}, record 1"):
        list(_read(damaged, label_set, 0, 20))
    told = []
    sound = list(_read(split, label_set, 0, 20))
    found = list(_read(damaged, label_set, 0, 20, on_damage=told.append))
    assert len(told) == 1 and f"{path}, record 1" in told[0] and "\n" not in told[0]
    replaced = 0
    for expected, batch in zip(sound, found, strict=True):
        assert batch.keys() == expected.keys()
        for row, number in enumerate(expected["labels_0"][:, 0]):
            if number in lost:
                replaced += 1
                assert (batch["labels_0"][row] == kept).all()
            elif number != kept:
                np.testing.assert_array_equal(batch["labels_0"][row], expected["labels_0"][row])
                np.testing.assert_array_equal(batch["waveform"][row], expected["waveform"][row])
    assert replaced
    resumed = _read(damaged, label_set, 9, 20, on_damage=told.append)
    assert _digests(resumed) == _digests(found[9:])

    path.write_bytes(b"")
    with pytest.raises(InputError, match=rf"{path}: 0 records"):
        list(_read(damaged, label_set, 0, 20, on_damage=told.append))
