"""Which bucket each step draws from, and which rows of it: a pure function of (seed, step)."""

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

from hubert_jax.data.index import Index
from hubert_jax.data.manifests import AudioManifest, ShardInfo
from hubert_jax.errors import InputError
from hubert_jax.frames import HOP, num_samples

_Held = collections.Counter[tuple[int, str]]  # utterances by the bucket's name and the corpus


@dataclasses.dataclass(frozen=True)
class _BucketGroup:
    """One corpus's utterances in a bucket."""

    name: str  # the corpus, as shards name it
    visits: float  # rows drawn per epoch, in which as much audio is drawn as the split has


@dataclasses.dataclass(frozen=True)
class Bucket:
    """The utterances of one length class, of all hosts."""

    frames: int  # its name: the bucket of its shards, or the padded length
    batch_frames: int  # of its batches: the crop, or the padded length
    rows: int  # utterances of one batch
    utterances: int
    samples: tuple[int, int] | None = None  # fewest, most of an utterance; None: all of its shards
    groups: tuple[_BucketGroup, ...] = ()  # the corpora of a mixture

    @property
    def visits(self) -> float:
        """Rows drawn per epoch."""
        return sum(group.visits for group in self.groups) if self.groups else self.utterances

    def records(self, index: Index, number: int, shard: ShardInfo) -> range | np.ndarray:
        """Those of the manifest's `number`-th shard that are in this bucket."""
        if self.samples is None:
            return index.shard(number) if shard.bucket_frames == self.frames else range(0)
        (fewest, most), samples = self.samples, index.samples_of(number)
        return index.shard(number).start + np.flatnonzero((fewest <= samples) & (samples <= most))


class BucketSchedule:
    """The bucket of every step, so that utterances of all lengths are seen equally often."""

    def __init__(self, buckets: list[Bucket], seed: int) -> None:
        self.buckets = buckets
        weights = np.array([bucket.visits / bucket.rows for bucket in buckets])
        self._edges = np.cumsum(weights / weights.sum())
        self._seed = seed

    def indices(self, num_steps: int) -> np.ndarray:
        """The index of the bucket of each of steps 0 ... num_steps - 1, int64."""
        draws = np.random.default_rng(self._seed).random(num_steps)  # a longer run begins alike
        return np.minimum(np.searchsorted(self._edges, draws, side="right"), len(self.buckets) - 1)

    def first_rows(self, num_steps: int) -> np.ndarray:
        """The row of its bucket with which each of steps 0 ... num_steps - 1 begins, int64."""
        indices = self.indices(num_steps)
        rows = np.empty(num_steps, np.int64)
        for index, bucket in enumerate(self.buckets):
            mine = np.flatnonzero(indices == index)
            rows[mine] = np.arange(len(mine)) * bucket.rows
        return rows


class OnePass(BucketSchedule):
    """Every utterance once, bucket by bucket in the split's order; crops begin at its start.

    The last batch of a bucket is filled up with rows that count for nothing.
    """

    def __init__(
        self,
        buckets: Sequence[Bucket],
        manifest: AudioManifest,
        index: Index,
        row_multiple: int,
        at_most: int = 0,
        wanted: np.ndarray | None = None,
    ) -> None:
        """Of all utterances or, `at_most` so many, of every second, third, ... of the split.

        `wanted`, (n,) bool, leaves out the others.
        """
        kept = np.ones(manifest.utterances, bool) if wanted is None else wanted.copy()
        if at_most:
            kept[kept] = np.arange(kept.sum()) % -(-kept.sum() // at_most) == 0
        self.buckets: list[Bucket] = []
        self._numbers: list[np.ndarray] = []
        for bucket in buckets:
            held = [bucket.records(index, *numbered) for numbered in enumerate(manifest.shards)]
            numbers = np.concatenate([np.array(records, np.int64) for records in held])
            if count := len(numbers := numbers[kept[numbers]]):
                rows = min(bucket.rows, -(-count // row_multiple) * row_multiple)
                self.buckets.append(dataclasses.replace(bucket, rows=rows, utterances=count))
                self._numbers.append(numbers)
        batches = [-(-bucket.utterances // bucket.rows) for bucket in self.buckets]
        self._indices = np.repeat(np.arange(len(batches)), batches)
        self.steps = len(self._indices)

    def indices(self, num_steps: int) -> np.ndarray:
        """As of a `BucketSchedule`, of at most `steps` steps."""
        return self._indices[:num_steps]

    def records(self, bucket: int, rows: np.ndarray) -> np.ndarray:
        """The records of rows (n,) of a bucket, int64 (n,); beyond its utterances the last one."""
        numbers = self._numbers[bucket]
        return numbers[np.minimum(rows, len(numbers) - 1)]


def crop_buckets(
    manifest: AudioManifest,
    frames_per_step: int,
    max_frames: int,
    row_multiple: int,
    wanted_multiple: int = 1,
) -> list[Bucket]:
    """The buckets of pre-training: crops to the bucket's floor, at most `max_frames`.

    Rows, a multiple of `row_multiple` (see `_rows`), grow as the crop shrinks. Bucket 0 (under 2 s)
    is left out. Corpora of a mixture get their shares of the cropped frames. Raises InputError if
    nothing is left of the split or of a corpus, or a step has no room for `row_multiple` rows.
    """
    held: _Held = collections.Counter()
    for shard in manifest.shards:
        held[shard.bucket_frames, shard.group] += shard.utterances
    buckets = []
    for frames in sorted({frames for (frames, _), count in held.items() if frames and count}):
        crop = min(frames, max_frames)
        rows = _rows(frames_per_step, crop, row_multiple, wanted_multiple)
        buckets.append(Bucket(frames, crop, rows, _of_bucket(held, frames)))
    if not buckets:
        raise InputError(
            f"{manifest.split}: no utterance of 2 s or more among {manifest.utterances}; "
            "pre-training needs longer audio"
        )
    crops = {bucket.frames: bucket.batch_frames for bucket in buckets}
    sizes: collections.Counter[str] = collections.Counter()
    for (frames, group), utterances in held.items():
        sizes[group] += utterances * crops.get(frames, 0)
    return _mixed(buckets, manifest, held, sizes)


def padded_buckets(
    manifest: AudioManifest,
    index: Index,
    frames_per_step: int,
    padded_frames: Sequence[int],
    row_multiple: int,
    wanted_multiple: int = 1,
) -> list[Bucket]:
    """The buckets of fine-tuning: utterances padded to the shortest of `padded_frames` they fit.

    The lengths ascend; rows are as of `_rows`. Raises InputError if nothing fits, of the split or
    of a corpus.
    """
    most = [num_samples(length) for length in padded_frames]
    held: _Held = collections.Counter()
    sizes: collections.Counter[str] = collections.Counter()
    for number, shard in enumerate(manifest.shards):
        samples = index.samples_of(number)
        counts = np.bincount(np.searchsorted(most, samples), minlength=len(most))
        for length, count in zip(padded_frames, counts.tolist(), strict=False):
            held[length, shard.group] += count
        sizes[shard.group] += int(samples[samples <= most[-1]].sum(dtype=np.int64))
    buckets = []
    for fewest, longest, length in zip([0, *most], most, padded_frames, strict=False):
        if utterances := _of_bucket(held, length):
            rows = _rows(frames_per_step, length, row_multiple, wanted_multiple)
            buckets.append(Bucket(length, length, rows, utterances, (fewest + 1, longest)))
    if not buckets:
        raise InputError(
            f"{manifest.split}: config.padded_frames={padded_frames} holds none of its utterances; "
            f"expected at least {int(index.samples.min()) // HOP} frames"
        )
    return _mixed(buckets, manifest, held, sizes)


def _of_bucket(held: _Held, frames: int) -> int:
    return sum(count for (name, _), count in held.items() if name == frames)


def _mixed(
    buckets: list[Bucket],
    manifest: AudioManifest,
    held: _Held,
    sizes: collections.Counter[str],
) -> list[Bucket]:
    """The buckets with their groups; the corpora's shares are of their `sizes`."""
    if not manifest.groups:
        return buckets
    for group in manifest.groups:
        if not sizes[group.name]:
            raise InputError(
                f"{manifest.split}: no utterance of {group.name} has a length that training takes; "
                "leave this corpus out"
            )
    factors = {
        group.name: group.share * sum(sizes.values()) / sizes[group.name]
        for group in manifest.groups
    }
    mixed = []
    for bucket in buckets:
        groups = tuple(
            _BucketGroup(name, held[bucket.frames, name] * factor)
            for name, factor in factors.items()
            if held[bucket.frames, name]
        )
        mixed.append(dataclasses.replace(bucket, groups=groups))
    return mixed


def _rows(frames_per_step: int, frames: int, row_multiple: int, wanted_multiple: int) -> int:
    """How many rows of `frames` a step has, in multiples of `row_multiple`, the devices.

    Of `wanted_multiple` instead, where the devices divide it and there are so many: then the rows
    are the same on any of these devices.
    """
    rows = frames_per_step // frames
    if wanted_multiple % row_multiple == 0 and rows >= wanted_multiple:
        return rows // wanted_multiple * wanted_multiple
    if rows < row_multiple:
        raise InputError(
            f"config.frames_per_step={frames_per_step}: no room for {row_multiple} rows of "
            f"{frames} frames, one for each of the devices that a batch is cut over; "
            f"raise it to {frames * row_multiple} or more, or use shorter crops"
        )
    return rows // row_multiple * row_multiple
