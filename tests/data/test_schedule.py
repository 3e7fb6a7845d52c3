"""The bucket of every step, and what the buckets of both kinds of training hold."""

import dataclasses
import functools
import importlib
import itertools

import numpy as np
import pytest
import soundfile

from hubert_jax.data.buckets import BUCKETS
from hubert_jax.data.manifests import AudioManifest, GroupInfo, ShardInfo
from hubert_jax.data.schedule import (
    Bucket,
    BucketSchedule,
    OnePass,
    crop_buckets,
    padded_buckets,
)
from hubert_jax.errors import InputError
from hubert_jax.frames import num_samples
from hubert_jax.tasks.ctc import FinetuneConfig

BUCKET_LIST = [Bucket(96, 96, 32, 400), Bucket(256, 256, 12, 1200), Bucket(768, 768, 4, 90)]


def _manifest(counts: dict[int, int]) -> AudioManifest:
    shards = tuple(
        ShardInfo(f"audio-b{frames:04d}", frames, utterances, 0, "")
        for frames, utterances in counts.items()
    )
    return AudioManifest("split", 16_000, sum(counts.values()), 0.0, 1, 0, 0, "", shards)


def test_bucket_of_a_step_does_not_depend_on_how_many_are_planned():
    schedule = BucketSchedule(BUCKET_LIST, seed=3)
    longest = schedule.indices(1000)
    for steps in (0, 1, 7, 999):
        np.testing.assert_array_equal(schedule.indices(steps), longest[:steps])
    assert (BucketSchedule(BUCKET_LIST, seed=4).indices(1000) != longest).any()


def test_a_step_begins_behind_the_rows_of_its_buckets_earlier_steps():
    schedule = BucketSchedule(BUCKET_LIST, seed=0)
    first_rows = schedule.first_rows(50)
    used = [0, 0, 0]
    for step, index in enumerate(schedule.indices(50)):
        assert first_rows[step] == used[index]
        used[index] += BUCKET_LIST[index].rows


@pytest.mark.parametrize("row_multiple", [1, 4])
def test_one_pass_holds_every_utterance_once(row_multiple):
    manifest = _manifest({96: 9, 0: 3, 256: 5})
    samples = _Samples([33_000] * 9, [9_000] * 3, [90_000] * 5)
    buckets = crop_buckets(manifest, 96 * 4, 96, row_multiple)

    def records(at_most=0, wanted=None):
        plan = OnePass(buckets, manifest, samples, row_multiple, at_most, wanted)
        found = []
        for bucket, first in zip(
            plan.indices(plan.steps), plan.first_rows(plan.steps), strict=True
        ):
            rows = first + np.arange(plan.buckets[bucket].rows)
            assert len(rows) % row_multiple == 0
            counted = rows < plan.buckets[bucket].utterances
            assert counted.any() and set(plan.records(bucket, rows)) <= set(range(17))
            found += plan.records(bucket, rows)[counted].tolist()
        return found

    assert records() == [*range(9), *range(12, 17)]
    assert records(at_most=6) == [0, 3, 6, 12, 15]
    assert records(at_most=1) == [0]
    odd = np.arange(17) % 2 == 1
    assert records(wanted=odd) == [1, 3, 5, 7, 13, 15]
    assert records(at_most=4, wanted=odd) == [1, 5, 13]


def test_every_utterance_is_seen_equally_often():
    schedule = BucketSchedule(BUCKET_LIST, seed=1)
    steps = np.bincount(schedule.indices(40_000))
    passes = steps * [bucket.rows / bucket.utterances for bucket in BUCKET_LIST]
    # A bucket of p = 0.13 is drawn 5,300 times with a deviation of 68: 1.3 %.
    np.testing.assert_allclose(passes, passes.mean(), rtol=0.05)


@pytest.mark.parametrize("padded", [False, True])
def test_each_corpus_is_expected_to_have_its_share(padded):
    """The second corpus is in one bucket only, and its natural share is another."""
    shards = tuple(
        ShardInfo(
            f"{frames}-{group}", frames, utterances, utterances * (frames + 90) * 320, "", group
        )
        for frames, group, utterances in ((96, "a", 70), (96, "b", 30), (256, "a", 60), (0, "a", 5))
    )
    manifest = dataclasses.replace(
        _manifest({}),
        shards=shards,
        groups=(GroupInfo("a", 0, 0.0, 0.3), GroupInfo("b", 0, 0.0, 0.7)),
    )
    if padded:
        samples = ([(shard.bucket_frames + 90) * 320] * shard.utterances for shard in shards)
        buckets = padded_buckets(manifest, _Samples(*samples), 4096, (90, 190, 350), 1)
    else:
        buckets = crop_buckets(manifest, 4096, 768, 1)
    steps = BucketSchedule(buckets, 0).indices(100_000)
    drawn = dict.fromkeys("ab", 0.0)
    for bucket, count in zip(buckets, np.bincount(steps), strict=True):
        frames = bucket.batch_frames
        for group in bucket.groups:
            drawn[group.name] += count * bucket.rows * frames * group.visits / bucket.visits
    assert drawn["a"] / sum(drawn.values()) == pytest.approx(0.3, abs=0.005)


def test_crops_are_the_floors_and_rows_fill_the_step():
    counts = {0: 5, 96: 40, 128: 0, 256: 9, 768: 1}
    buckets = crop_buckets(_manifest(counts), 4096, 600, row_multiple=2)
    assert buckets == [Bucket(96, 96, 42, 40), Bucket(256, 256, 16, 9), Bucket(768, 600, 6, 1)]


@pytest.mark.parametrize(
    ("counts", "frames_per_step", "max_frames", "message"),
    [
        ({0: 5}, 4096, 768, "no utterance of 2 s or more among 5"),
        ({}, 4096, 768, "no utterance of 2 s"),
        (
            {768: 1},
            6143,
            768,
            "config.frames_per_step=6143: no room for 8 rows of 768.*"
            "one for each of the devices.*6144",
        ),
    ],
)
def test_steps_without_rows_are_refused(counts, frames_per_step, max_frames, message):
    with pytest.raises(InputError, match=message):
        crop_buckets(_manifest(counts), frames_per_step, max_frames, row_multiple=8)


@pytest.mark.parametrize(
    ("name", "released", "group_rows", "rows"),
    [
        ("base_it1", 32, 5, (1440, 1088, 544, 352, 256, 192, 160)),
        ("base_it2", 32, 5, (1440, 1088, 544, 352, 256, 192, 160)),
        ("large", 128, 3, (3712, 2688, 1280, 896, 640, 512, 384)),
        ("xlarge", 256, 1, (2816, 2048, 1024, 512, 512, 256, 256)),
    ],
)
def test_configured_steps_have_the_released_rows(name, released, group_rows, rows):
    """As many for a device as fit its seconds of audio, and the same on fewer devices."""
    config = importlib.import_module(f"configs.{name}").get_config("train")
    assert config.loss.mask_group_rows == group_rows
    planned = functools.partial(
        crop_buckets,
        _manifest(dict.fromkeys(BUCKETS, 1)),
        config.frames_per_step,
        config.max_frames,
        wanted_multiple=config.row_multiple,
    )
    of_a_device = [config.frames_per_step // released // frames for frames in BUCKETS]
    assert rows == tuple(released * count for count in of_a_device)
    for devices in (1, 2, 4, 8, released // 2, released):
        assert tuple(bucket.rows for bucket in planned(devices)) == rows
    for devices in (48, 2 * released):  # which do not divide the released ones
        if config.frames_per_step // 768 < devices:
            continue
        for bucket in planned(devices):
            assert bucket.rows == config.frames_per_step // bucket.frames // devices * devices


def test_a_step_without_room_for_the_wanted_multiple_has_what_the_devices_divide():
    buckets = crop_buckets(_manifest({96: 9, 256: 9}), 96 * 40, 768, 4, wanted_multiple=32)
    assert [bucket.rows for bucket in buckets] == [32, 12]


class _Samples:
    """The part of an index that a plan asks for: samples of each shard's records."""

    def __init__(self, *shards):
        self._shards = [np.array(shard, np.uint32) for shard in shards]
        self.samples = np.concatenate(self._shards)

    def samples_of(self, number):
        return self._shards[number]

    def shard(self, number):
        first = sum(map(len, self._shards[:number]))
        return range(first, first + len(self._shards[number]))


def test_every_utterance_is_padded_to_the_shortest_length_that_holds_it():
    samples = np.arange(400, num_samples(1000) + 1, 7)
    lengths = (64, 100, 128, 256, 500, 1000)
    padded = padded_buckets(_manifest({96: len(samples)}), _Samples(samples), 4096, lengths, 1)
    assert [bucket.batch_frames for bucket in padded] == list(lengths)
    for bucket in padded:
        fewest, most = bucket.samples
        held = samples[(fewest <= samples) & (samples <= most)]
        assert len(held) == bucket.utterances and bucket.rows == 4096 // bucket.batch_frames
        assert held.max() <= num_samples(bucket.batch_frames)
    assert sum(bucket.utterances for bucket in padded) == len(samples)


def test_what_no_padding_holds_is_left_out_and_so_are_lengths_of_no_utterance():
    samples = [num_samples(100), num_samples(100) + 1, num_samples(768)], [num_samples(768) + 1]
    manifest = _manifest({96: 3, 768: 1})
    padded = padded_buckets(manifest, _Samples(*samples), 4096, (100, 128, 256, 768), 4)
    assert [(b.batch_frames, b.rows, b.utterances) for b in padded] == [
        (100, 40, 1),
        (128, 32, 1),
        (768, 4, 1),
    ]
    with pytest.raises(InputError, match="config.padded_frames=.64,.*at least 100 frames"):
        padded_buckets(manifest, _Samples(*samples), 4096, (64,), 1)


def test_no_fine_tuning_step_is_more_than_15_percent_padding(speech_lengths):
    lengths = FinetuneConfig.padded_frames
    for shorter, longer in itertools.pairwise(lengths):  # an utterance just too long for one
        assert (num_samples(shorter) + 1) / num_samples(longer) > 0.85, longer
    for name in ("base", "large", "xlarge"):
        config = importlib.import_module(f"configs.finetune.{name}").get_config("10h")
        padded = padded_buckets(
            _manifest({96: len(speech_lengths)}),
            _Samples(speech_lengths),
            config.frames_per_step,
            lengths,
            8,
        )
        padding = []
        for bucket in padded:
            fewest, most = bucket.samples
            held = speech_lengths[(fewest <= speech_lengths) & (speech_lengths <= most)]
            padding.append(1 - held.mean() / most)
        print(name, {b.batch_frames: round(p, 3) for b, p in zip(padded, padding, strict=True)})
        steps = [bucket.utterances / bucket.rows for bucket in padded]
        assert max(padding) < 0.15 and np.average(padding, weights=steps) < 0.06


@pytest.fixture(scope="module")
def speech_lengths(minilibri):
    """Samples of the embedded utterances."""
    return np.array([soundfile.info(path).frames for path in minilibri.rglob("*.opus")])
