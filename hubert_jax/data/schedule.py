"""Which bucket each step draws from, and which rows of it: a pure function of (seed, step)."""

import dataclasses
from collections.abc import Callable

import numpy as np

from hubert_jax.data.manifests import AudioManifest, ShardInfo
from hubert_jax.errors import InputError

_SHORT_FRAMES = 100  # more than any utterance under 2 s (bucket 0) has


@dataclasses.dataclass(frozen=True)
class BucketGroup:
    """Those utterances of a bucket that are from one of several corpora.

    Attributes:
      name: the corpus, as shards name it.
      visits: how many rows are drawn from it in the time in which training draws as much audio as
        the split has; as many as it has utterances where its share is its natural one.
    """

    name: str
    visits: float


@dataclasses.dataclass(frozen=True)
class Bucket:
    """The utterances of one length class.

    Attributes:
      frames: the class's floor; every utterance in it has at least as many frames.
      batch_frames: frames of its batches: the crop, or the padded length.
      rows: utterances of one batch, over all hosts.
      utterances: how many there are, over all hosts.
      groups: the corpora that it mixes, none where there is one only.
    """

    frames: int
    batch_frames: int
    rows: int
    utterances: int
    groups: tuple[BucketGroup, ...] = ()

    @property
    def visits(self) -> float:
        """Rows drawn from it in the time in which training draws as much as the split has."""
        return sum(group.visits for group in self.groups) if self.groups else self.utterances


class BucketSchedule:
    """The bucket of every step, the same on every host.

    A bucket is drawn with the probability with which its batches occur in an epoch, so frames
    are seen equally often whatever their utterance's length. Where corpora are mixed, each is
    visited more or less often by one factor in all buckets.
    """

    def __init__(self, buckets: list[Bucket], seed: int) -> None:
        """Plans over `buckets`, which must not be empty."""
        self.buckets = buckets
        weights = np.array([bucket.visits / bucket.rows for bucket in buckets])
        self._edges = np.cumsum(weights / weights.sum())
        self._seed = seed

    def indices(self, num_steps: int) -> np.ndarray:
        """The index of the bucket of steps 0 ... num_steps - 1, (num_steps,) int."""
        # A generator's n-th value does not depend on how many are drawn.
        draws = np.random.default_rng(self._seed).random(num_steps)
        return np.minimum(np.searchsorted(self._edges, draws, side="right"), len(self.buckets) - 1)

    def first_rows(self, num_steps: int) -> np.ndarray:
        """The row of its bucket with which each of steps 0 ... num_steps - 1 begins, int64."""
        indices = self.indices(num_steps)
        rows = np.empty(num_steps, np.int64)
        for index, bucket in enumerate(self.buckets):
            mine = np.flatnonzero(indices == index)
            rows[mine] = np.arange(len(mine)) * bucket.rows
        return rows

    def rows_before(self, step: int) -> list[int]:
        """Rows of every bucket that steps 0 ... step - 1 have used."""
        counts = np.bincount(self.indices(step), minlength=len(self.buckets))
        return [
            int(count) * bucket.rows for count, bucket in zip(counts, self.buckets, strict=True)
        ]


def crop_buckets(
    manifest: AudioManifest, frames_per_step: int, max_frames: int, row_multiple: int
) -> list[Bucket]:
    """The buckets of pre-training: crops to the bucket's floor, at most `max_frames`.

    Frames per step stay about constant, so rows grow as the crop shrinks; rows are a multiple of
    `row_multiple` (of the mesh's batch shards, and of the rows whose masks are trimmed together:
    their least common multiple). Utterances under 2 s (bucket 0) are
    left out. Of a split that mixes corpora, each gets its share of the cropped frames.

    Raises:
      InputError: nothing is left, of the split or of one of its corpora, or a step has no room for
        `row_multiple` rows.
    """
    if max_frames < 1:
        raise InputError(f"config.max_frames={max_frames}: expected 1 or more")
    buckets = []
    for frames, utterances in _utterances_by_bucket(manifest).items():
        if frames == 0:
            continue
        crop = min(frames, max_frames)
        rows = _rows(
            frames_per_step,
            crop,
            row_multiple,
            "config.loss.mask_group_rows and of the devices that a batch is cut over",
        )
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

    A bucket gets the shortest length that holds all of its utterances. The last bucket is open:
    it gets the longest length, and the batches leave out what is longer still. A bucket that has
    no such length is left out.

    Args:
      manifest: the split.
      floors: all bucket floors, ascending; a bucket reaches up to the next floor.
      frames_per_step: padded frames of a step at most.
      padded_frames: the padded lengths that may occur, ascending (each compiles once).
      row_multiple: rows are a multiple of it.

    Raises:
      InputError: no bucket fits into the longest padded length, or none of one of the corpora.
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
    """The buckets with their corpora's visits; `size` of a shard is what shares are shares of."""
    if not manifest.groups:
        return buckets
    batch_frames = {bucket.frames: bucket.batch_frames for bucket in buckets}
    sizes = dict.fromkeys((group.name for group in manifest.groups), 0.0)
    utterances: dict[tuple[int, str], int] = {}
    for shard in manifest.shards:
        if shard.utterances and shard.bucket_frames in batch_frames:
            sizes[shard.group] += size(shard, batch_frames[shard.bucket_frames])
            key = (shard.bucket_frames, shard.group)
            utterances[key] = utterances.get(key, 0) + shard.utterances
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
    return [
        dataclasses.replace(
            bucket,
            groups=tuple(
                BucketGroup(name, utterances[bucket.frames, name] * factor)
                for name, factor in factors.items()
                if (bucket.frames, name) in utterances
            ),
        )
        for bucket in buckets
    ]


def _utterances_by_bucket(manifest: AudioManifest) -> dict[int, int]:
    counts: dict[int, int] = {}
    for shard in manifest.shards:
        if shard.utterances:
            counts[shard.bucket_frames] = counts.get(shard.bucket_frames, 0) + shard.utterances
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
