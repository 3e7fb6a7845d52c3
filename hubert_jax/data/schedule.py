"""Which bucket each step draws from, and which rows of it: a pure function of (seed, step)."""

import collections
import dataclasses
from collections.abc import Callable

import numpy as np

from hubert_jax.data.manifests import AudioManifest, ShardInfo
from hubert_jax.errors import InputError

_SHORT_FRAMES = 100  # more than any utterance under 2 s (bucket 0) has


@dataclasses.dataclass(frozen=True)
class _BucketGroup:
    """One corpus's utterances in a bucket."""

    name: str  # the corpus, as shards name it
    visits: float  # rows drawn per epoch, in which as much audio is drawn as the split has


@dataclasses.dataclass(frozen=True)
class Bucket:
    """The utterances of one length class, of all hosts."""

    frames: int  # the class's floor: fewest frames of an utterance
    batch_frames: int  # of its batches: the crop, or the padded length
    rows: int  # utterances of one batch
    utterances: int
    groups: tuple[_BucketGroup, ...] = ()  # the corpora of a mixture

    @property
    def visits(self) -> float:
        """Rows drawn per epoch."""
        return sum(group.visits for group in self.groups) if self.groups else self.utterances


class BucketSchedule:
    """The bucket of every step, the same on every host.

    A bucket's probability is its fraction of an epoch's batches, so that utterances of all lengths
    are seen equally often.
    """

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


def crop_buckets(
    manifest: AudioManifest, frames_per_step: int, max_frames: int, row_multiple: int
) -> list[Bucket]:
    """The buckets of pre-training: crops to the bucket's floor, at most `max_frames`.

    Rows, a multiple of `row_multiple`, grow as the crop shrinks. Bucket 0 (under 2 s) is left out.
    Corpora of a mixture get their shares of the cropped frames. Raises InputError if nothing is
    left of the split or of a corpus, or if a step has no room for `row_multiple` rows.
    """
    if max_frames < 1:
        raise InputError(f"config.max_frames={max_frames}: expected 1 or more")
    buckets = []
    for frames, utterances in _utterances_by_bucket(manifest).items():
        if frames == 0:
            continue
        crop = min(frames, max_frames)
        multiple_of = "config.loss.mask_group_rows and of the devices that a batch is cut over"
        rows = _rows(frames_per_step, crop, row_multiple, multiple_of)
        buckets.append(Bucket(frames, crop, rows, utterances))
    if not buckets:
        raise InputError(
            f"{manifest.split}: no utterance of 2 s or more among {manifest.utterances}; "
            "pre-training needs longer audio"
        )
    return _mixed(buckets, manifest, lambda shard, crop: shard.utterances * crop)


def padded_buckets(
    manifest: AudioManifest,
    floors: tuple[int, ...],
    frames_per_step: int,
    padded_frames: tuple[int, ...],
    row_multiple: int,
) -> list[Bucket]:
    """The buckets of fine-tuning: whole utterances, padded to one of `padded_frames`.

    A bucket, which reaches up to the next of the ascending `floors`, gets the shortest length that
    holds all of it, or is left out. The last one is open: it gets the longest length, and batches
    leave out what is longer. Raises InputError if nothing fits, of the split or of a corpus.
    """
    buckets = []
    for frames, utterances in _utterances_by_bucket(manifest).items():
        longer = [floor for floor in floors if floor > frames]
        if frames == 0:
            ceiling = _SHORT_FRAMES
        else:
            ceiling = longer[0] if longer else max(frames + 1, *padded_frames)
        fitting = [length for length in sorted(padded_frames) if length >= ceiling]
        if fitting:
            rows = _rows(frames_per_step, fitting[0], row_multiple, "the devices")
            buckets.append(Bucket(frames, fitting[0], rows, utterances))
    if not buckets:
        raise InputError(
            f"{manifest.split}: config.padded_frames={padded_frames} holds no bucket of utterances "
            f"whole; expected a length of {_SHORT_FRAMES} frames or more, above the shortest bucket"
        )
    return _mixed(buckets, manifest, lambda shard, padded: shard.samples)


def _mixed(
    buckets: list[Bucket], manifest: AudioManifest, size: Callable[[ShardInfo, int], float]
) -> list[Bucket]:
    """The buckets with their groups; the corpora's shares are of the shards' `size`s."""
    if not manifest.groups:
        return buckets
    batch_frames = {bucket.frames: bucket.batch_frames for bucket in buckets}
    sizes = dict.fromkeys((group.name for group in manifest.groups), 0.0)
    utterances: collections.Counter[tuple[int, str]] = collections.Counter()
    for shard in manifest.shards:
        if shard.utterances and shard.bucket_frames in batch_frames:
            sizes[shard.group] += size(shard, batch_frames[shard.bucket_frames])
            utterances[shard.bucket_frames, shard.group] += shard.utterances
    for name, held in sizes.items():
        if not held:
            raise InputError(
                f"{manifest.split}: no utterance of {name} has a length that training takes; "
                "leave this corpus out"
            )
    factors = {
        group.name: group.share * sum(sizes.values()) / sizes[group.name]
        for group in manifest.groups
    }
    mixed = []
    for bucket in buckets:
        groups = tuple(
            _BucketGroup(name, utterances[bucket.frames, name] * factor)
            for name, factor in factors.items()
            if (bucket.frames, name) in utterances
        )
        mixed.append(dataclasses.replace(bucket, groups=groups))
    return mixed


def _utterances_by_bucket(manifest: AudioManifest) -> dict[int, int]:
    counts: collections.Counter[int] = collections.Counter()
    for shard in manifest.shards:
        if shard.utterances:
            counts[shard.bucket_frames] += shard.utterances
    return dict(sorted(counts.items()))


def _rows(frames_per_step: int, frames: int, row_multiple: int, multiple_of: str) -> int:
    rows = frames_per_step // frames // row_multiple * row_multiple
    if rows < 1:
        raise InputError(
            f"config.frames_per_step={frames_per_step}: no room for {row_multiple} rows of "
            f"{frames} frames (a multiple of {multiple_of}); "
            f"raise it to {frames * row_multiple} or more, or use shorter crops"
        )
    return rows
