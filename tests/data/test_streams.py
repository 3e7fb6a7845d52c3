"""What training may rely on over many steps: restarts, hosts, mixed corpora, damaged records."""

import collections
import dataclasses
import hashlib
import itertools
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest
import splits

from hubert_jax.data import batches, manifests, reading, records, schedule
from hubert_jax.data.corpus_sampler import CorpusSampler
from hubert_jax.errors import InputError
from hubert_jax.frames import num_frames
from hubert_jax.units.kmeans import Codebook

SEED, STEPS = 11, 200
FRAMES_PER_STEP = 800
ALONE = batches.Host()


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
    return _labelled(split, tmp_path_factory.mktemp("labels") / "number", 50)


@pytest.fixture(scope="module")
def faster_set(split, tmp_path_factory) -> batches.LabelSet:
    """The same at 100 Hz."""
    return _labelled(split, tmp_path_factory.mktemp("labels") / "faster", 100)


def _labelled(split, directory, rate) -> batches.LabelSet:
    rows = (
        (utterance.id, np.full(num_frames(len(utterance.audio), rate), _number(utterance.id)))
        for utterance in records.read_audio(split)
    )
    codebook = Codebook(np.zeros((80, 1), np.float32), {}, 0.0, 0, 0, 0)
    return batches.LabelSet(directory, splits.write_labels(split, directory, rows, codebook, rate))


def _number(name: str) -> int:
    return int(name.rpartition("-")[2])


def _read(split, label_sets, first, last, host=ALONE, plan=None, manifest=None, on_damage=None):
    manifest = manifest or manifests.read_manifest(split)
    return batches.pretraining_batches(
        split,
        manifest,
        label_sets,
        plan or _plan(manifest),
        seed=SEED,
        first_step=first,
        last_step=last,
        normalize_waveform=False,
        host=host,
        on_damage=on_damage,
    )


def _plan(manifest, frames_per_step=FRAMES_PER_STEP, multiple=1):
    buckets = schedule.crop_buckets(manifest, frames_per_step, 768, multiple)
    return schedule.BucketSchedule(buckets, SEED)


def _digests(read) -> list[str]:
    digests = []
    for batch in read:
        digest = hashlib.sha256()
        for column in batch.values():
            digest.update(np.ascontiguousarray(column).view(np.uint8).data)
        digests.append(digest.hexdigest())
    return digests


def test_batches_are_those_that_they_always_were(split, label_set):
    # Whoever changes this digest changes what every interrupted run goes on with.
    digests = _digests(_read(split, [label_set], 0, 30))
    assert hashlib.sha256("".join(digests).encode()).hexdigest() == GOLDEN


GOLDEN = "0becd92de7798acad95a2e5df28e99a4d5f165e1e7694bc48f086a8ce08fcb2b"


def test_a_run_interrupted_at_any_step_goes_on_alike(split, label_set, monkeypatch):
    whole = _digests(_read(split, [label_set], 0, STEPS))
    assert len(set(whole)) == STEPS
    for first in (1, 38, 101, 166, 199):
        resumed = _read(split, [label_set], first, STEPS)
        assert _digests(itertools.islice(resumed, 7)) == whole[first : first + 7]
        resumed.close()  # the next interruption
    reads = collections.Counter()
    read = reading.RecordReader.read

    def counting(reader, numbers):
        reads["batches"] += 1
        reads["records"] += len(numbers)
        return read(reader, numbers)

    monkeypatch.setattr(reading.RecordReader, "read", counting)
    plan = _plan(manifests.read_manifest(split))
    for step in (120, 199):
        reads.clear()
        assert _digests(_read(split, [label_set], step, step + 1)) == [whole[step]]
        assert reads["records"] == plan.buckets[plan.indices(STEPS)[step]].rows
    # A batch is ready, and each thread may be at another one.
    reads.clear()
    resumed = _read(split, [label_set], 50, STEPS)
    for taken in range(1, 20):
        next(resumed)
        time.sleep(0.02)
        assert reads["batches"] <= taken + 1 + 2 * batches._THREADS
    resumed.close()


def _rows(plan, read) -> dict[int, list[int]]:
    """Numbers of the utterances that were drawn, by the bucket's frames."""
    rows = collections.defaultdict(list)
    for batch in read:
        rows[batch["labels_0"].shape[1]] += batch["labels_0"][:, 0].tolist()
    return rows


def test_epochs_are_complete_and_each_in_another_order(split, label_set):
    plan = _plan(manifests.read_manifest(split))
    read = list(_read(split, [label_set], 0, 100))
    lengths = [batch["labels_0"].shape[1] for batch in read]
    assert lengths == [plan.buckets[index].frames for index in plan.indices(100)]
    drawn = _rows(plan, read)
    for bucket in plan.buckets:
        rows, size = drawn[bucket.frames], bucket.utterances
        epochs = [rows[i : i + size] for i in range(0, len(rows) - size + 1, size)]
        assert len(epochs) >= 2
        assert all(len(set(epoch)) == size for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


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


def test_corpora_get_their_shares_and_keep_their_epochs(split, label_set, mixed):
    group_of = {
        _number(utterance.id): shard.group
        for shard in mixed.shards
        for utterance in records.read_shard(split / shard.file)
    }
    few = sum(group == "few" for group in group_of.values()) / len(group_of)
    assert few < 0.4
    plan = _plan(mixed)
    frames = collections.Counter()
    whole = list(_read(split, [label_set], 0, STEPS, plan=plan, manifest=mixed))
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
        resumed = _read(split, [label_set], first, first + 4, plan=plan, manifest=mixed)
        assert _digests(resumed) == _digests(whole[first : first + 4])
    # The buckets are drawn at random, so the share is only what is to be expected.
    assert frames["few"] / frames.total() == pytest.approx(0.5, abs=0.02)


@pytest.fixture(scope="module")
def one_shard_each(split, tmp_path_factory) -> pathlib.Path:
    """The same utterances, ten minutes of the usual size of shards: one a bucket."""
    directory = tmp_path_factory.mktemp("few")
    splits.write_split(directory, "noise", list(records.read_audio(split)), [], 64)
    buckets = [shard.bucket_frames for shard in manifests.read_manifest(directory).shards]
    assert len(buckets) == len(set(buckets)) == 2
    return directory


@pytest.mark.parametrize(
    ("case", "steps"), [("plain", STEPS), ("mixed", 60), ("one shard a bucket", 60)]
)
def test_batches_are_the_same_on_any_number_of_hosts(
    split, label_set, faster_set, mixed, one_shard_each, tmp_path, case, steps
):
    manifest = mixed if case == "mixed" else manifests.read_manifest(split)
    label_sets = [label_set, faster_set]
    if case == "one shard a bucket":
        split, manifest = one_shard_each, manifests.read_manifest(one_shard_each)
        label_sets = [_labelled(split, tmp_path / str(rate), rate) for rate in (50, 100)]
    plan = _plan(manifest, 3600, 28)
    assert [bucket.rows for bucket in plan.buckets] == [28, 28]

    def together(hosts):
        """Digests of batches put together from the rows of all hosts."""
        read = [
            _read(split, label_sets, 0, steps, batches.Host(i, hosts), plan, manifest)
            for i in range(hosts)
        ]
        for parts in zip(*read, strict=True):
            assert {len(part["waveform"]) for part in parts} == {28 // hosts}
            yield {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    alone = _digests(together(1))
    assert len(set(alone)) == steps
    for hosts in (2, 4, 7):
        assert _digests(together(hosts)) == alone
    with pytest.raises(InputError, match="28 rows .* does not divide over 3 hosts"):
        next(together(3))


def test_a_corpus_that_training_cannot_take_is_named(mixed):
    groups = (*mixed.groups, manifests.GroupInfo("none", 0, 0.0, 0.1))
    with pytest.raises(InputError, match="no utterance of none has a length"):
        _plan(dataclasses.replace(mixed, groups=groups))


def test_turns_have_the_weights_and_are_counted_without_replay():
    sampler = CorpusSampler([5.0, 0.1, 3.0, 1.9], [3, 96])
    corpora, turns = sampler.turns(np.arange(6000))
    for corpus in range(4):
        mine = turns[corpora == corpus]
        assert mine.tolist() == list(range(len(mine)))
    for count in (0, 1, 17, 5999):
        assert sampler.before(count) == np.bincount(corpora[:count], minlength=4).tolist()
    rows = np.array([70, 5999, 71, 4000])
    for found, whole in zip(sampler.turns(rows), (corpora, turns), strict=True):
        np.testing.assert_array_equal(found, whole[rows])
    share = np.array(sampler.before(10**9)) / 10**9
    np.testing.assert_allclose(share, [0.5, 0.01, 0.3, 0.19], atol=1e-7)
    # A batch of 100 rows has its shares to within a few.
    np.testing.assert_allclose(sampler.before(100), [50, 1, 30, 19], atol=3)


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
    # Behind a flipped bit records are sound again, behind the end of the file there are none.
    lost = [_number(u.id) for u in records.read_shard(split / shard.file)][1 : 2 if flip else None]
    kept = _number(next(records.read_shard(path)).id)

    with pytest.raises(InputError, match=rf"{path}, record 1"):
        list(_read(damaged, [label_set], 0, 20))
    told = []
    sound = list(_read(split, [label_set], 0, 20))
    found = list(_read(damaged, [label_set], 0, 20, on_damage=told.append))
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
    resumed = _read(damaged, [label_set], 9, 20, on_damage=told.append)
    assert _digests(resumed) == _digests(found[9:])

    path.write_bytes(b"")
    with pytest.raises(InputError, match=rf"{path}, record \d: cut off .* no record before it"):
        list(_read(damaged, [label_set], 0, 20, on_damage=told.append))


def test_a_process_ends_with_batches_half_read(split, label_set, repository):
    program = """
import pathlib, sys
from hubert_jax.data import batches, manifests, schedule
audio, labels = map(pathlib.Path, sys.argv[1:])
manifest = manifests.read_manifest(audio)
read = batches.pretraining_batches(
    audio, manifest, [batches.LabelSet(labels, manifests.read_label_manifest(labels))],
    schedule.BucketSchedule(schedule.crop_buckets(manifest, 800, 768, 1), 0),
    seed=0, first_step=0, last_step=10**5, normalize_waveform=False,
)
next(read)
print("end", flush=True)
"""
    command = [sys.executable, "-c", program, str(split), str(label_set.directory)]
    done = subprocess.run(
        command, cwd=repository, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout == "end\n"
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
