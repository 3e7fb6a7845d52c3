"""Pre-flight: reads an audio split and its label sets once and refuses what does not fit.

A manifest says what its job meant to write; this looks at what is there, record by record. It
streams: one shard is open at a time and one record in memory, with its labels.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

import numpy as np

from hubert_jax import files
from hubert_jax.data import buckets, manifests, records, waveform
from hubert_jax.data.index import INDEX, read_index
from hubert_jax.data.manifests import MANIFEST, AudioManifest, LabelManifest, ShardInfo
from hubert_jax.data.schedule import Bucket
from hubert_jax.errors import InputError
from hubert_jax.frames import SAMPLE_RATE, num_frames, num_samples

_EXAMPLES = 10  # ids that are named of those that are odd


@dataclasses.dataclass
class Odd:
    """Utterances that can be used but that somebody should listen to."""

    utterances: int = 0
    seconds: float = 0.0
    examples: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Findings:
    """What was found in a split.

    Attributes:
      silent, clipped: utterances, as the preparation flags them.
      class_counts: of every label set, labels of each class, (classes,) int64.
    """

    silent: Odd
    clipped: Odd
    class_counts: tuple[np.ndarray, ...]


def inspect(
    audio_dir: pathlib.Path,
    audio: AudioManifest,
    label_sets: Sequence[tuple[pathlib.Path, LabelManifest]] = (),
    progress: Callable[[float], None] = lambda seconds: None,
) -> Findings:
    """Reads every record of a split and of its label sets.

    Args:
      audio_dir, audio: the split.
      label_sets: directory and manifest of each; `check_labels` must have passed them.
      progress: called with the seconds of audio of every shard that is done.

    Raises:
      InputError: names the shard, and the record (counted from 0) where one is to blame.
    """
    if audio.sample_rate != SAMPLE_RATE:
        raise InputError(
            f"{audio_dir / MANIFEST}: sample_rate: found {audio.sample_rate}, expected "
            f"{SAMPLE_RATE}; prepare the corpus again with --config.convert=True"
        )
    index = read_index(audio_dir, audio)
    odd = {"silent": Odd(), "clipped": Odd()}
    counts = tuple(np.zeros(manifest.num_classes, np.int64) for _, manifest in label_sets)
    for number, shard in enumerate(audio.shards):
        path = audio_dir / shard.file
        label_shards = [
            _LabelShard(folder / manifests.label_file(shard.file), manifest, count)
            for (folder, manifest), count in zip(label_sets, counts, strict=True)
        ]
        samples = 0
        for record, utterance in zip(
            index.shard(number), _utterances(path, shard, label_shards), strict=True
        ):
            samples += len(utterance.audio)
            indexed = int(index.samples[record]), index.ids[record]
            if indexed != (len(utterance.audio), utterance.id):
                raise InputError(
                    f"{path}, record {record - index.shard(number).start}: found "
                    f"{len(utterance.audio)} samples of {utterance.id!r}, expected {indexed[0]} of "
                    f"{indexed[1]!r} as {INDEX} says; run hubert_jax.prepare again"
                )
            kind = waveform.flag(utterance.audio).partition(":")[0]
            if kind:
                odd[kind].utterances += 1
                odd[kind].seconds += len(utterance.audio) / SAMPLE_RATE
                if len(odd[kind].examples) < _EXAMPLES:
                    odd[kind].examples.append(utterance.id)
        _require(path, "samples", samples, shard.samples)
        # After the records: what is wrong with one of them is said with its number.
        _require(path, "digest", files.sha256_file(path), shard.digest)
        for labels, (_, manifest) in zip(label_shards, label_sets, strict=True):
            expected = manifest.shards[number]
            _require(labels.path, "frames", labels.frames, expected.frames)
            _require(labels.path, "digest", files.sha256_file(labels.path), expected.digest)
        progress(samples / SAMPLE_RATE)
    for (folder, manifest), count in zip(label_sets, counts, strict=True):
        for index in np.flatnonzero(count != manifest.class_counts)[:1]:
            what = f"class_counts[{index}]"
            _require(folder / MANIFEST, what, int(count[index]), manifest.class_counts[index])
    return Findings(odd["silent"], odd["clipped"], counts)


class _LabelShard:
    """A label shard while it is read beside its audio."""

    def __init__(self, path: pathlib.Path, manifest: LabelManifest, counts: np.ndarray) -> None:
        self.path = path
        self.frames = 0
        self._rate = manifest.rate_hz
        self._counts = counts

    def read(self, utterances: int) -> Iterator[tuple[str, np.ndarray]]:
        return records.read_label_shard(self.path, utterances)

    def check(
        self, number: int, utterance: records.Utterance, name: str, labels: np.ndarray
    ) -> None:
        """Refuses labels that are not those of this utterance; counts them."""

        def refuse(found: str, expected: str) -> NoReturn:
            raise InputError(
                f"{self.path}, record {number}: found {found}, expected {expected}; run the label "
                "job on this audio again"
            )

        if name != utterance.id:
            refuse(f"labels of {name!r}", f"those of {utterance.id!r}, as in the audio shard")
        expected = num_frames(len(utterance.audio), self._rate)
        if len(labels) != expected:
            refuse(
                f"{len(labels)} labels of {name!r}",
                f"{expected} at {self._rate} Hz for {len(utterance.audio)} samples",
            )
        classes = len(self._counts)
        if labels.max() >= classes:
            refuse(f"label {labels.max()} of {name!r}", f"0 to {classes - 1}")
        self._counts += np.bincount(labels, minlength=classes)
        self.frames += len(labels)


def _utterances(
    path: pathlib.Path, shard: ShardInfo, label_shards: list[_LabelShard]
) -> Iterator[records.Utterance]:
    """A shard's utterances, once they and their labels are found to be what they should be."""
    readers = [
        records.read_shard(path, shard.utterances),
        *(labels.read(shard.utterances) for labels in label_shards),
    ]
    # Every reader refuses another number of records than it should have, if it comes to its end.
    for number, (utterance, *labelled) in enumerate(zip(*readers, strict=False)):
        samples = len(utterance.audio)
        if buckets.bucket_of(samples) != shard.bucket_frames or not num_frames(samples, 50):
            raise InputError(
                f"{path}, record {number}: found {samples} samples of {utterance.id!r}, expected a "
                f"length of bucket {shard.bucket_frames}; run hubert_jax.prepare again"
            )
        for labels, (name, values) in zip(label_shards, labelled, strict=True):
            labels.check(number, utterance, name, values)
        yield utterance
    for reader in readers:
        for _ in reader:
            pass


def _require(path: pathlib.Path, what: str, found: int | str, expected: int | str) -> None:
    if found != expected:
        raise InputError(
            f"{path}: {what}: found {str(found)[:16]}, expected {str(expected)[:16]} as "
            f"{MANIFEST} says; the file was changed, run the job that wrote it again"
        )


@dataclasses.dataclass(frozen=True)
class BucketUse:
    """What pre-training makes of a bucket.

    Attributes:
      utterances, seconds, shards: what is in it.
      batch: frames and rows of its batches; None where it is left out.
      crop_loss: share of its audio that a crop leaves out, 1 where all of it is left out.
      step_share: share of the steps that draw from it.
    """

    utterances: int
    seconds: float
    shards: int
    batch: tuple[int, int] | None
    crop_loss: float
    step_share: float


def bucket_uses(audio: AudioManifest, buckets: Sequence[Bucket]) -> dict[int, BucketUse]:
    """How pre-training over `buckets` uses a split, by the buckets' frames.

    A crop is as long as its bucket's floor, or the longest crop allowed: another part of the
    utterance in every pass, but always as much of it.
    """
    planned = {bucket.frames: bucket for bucket in buckets}
    batches = {frames: bucket.visits / bucket.rows for frames, bucket in planned.items()}
    uses = {}
    for frames in sorted({shard.bucket_frames for shard in audio.shards}):
        held = [shard for shard in audio.shards if shard.bucket_frames == frames]
        utterances = sum(shard.utterances for shard in held)
        samples = sum(shard.samples for shard in held)
        bucket = planned.get(frames)
        kept = utterances * num_samples(bucket.batch_frames) if bucket else 0
        uses[frames] = BucketUse(
            utterances=utterances,
            seconds=samples / SAMPLE_RATE,
            shards=len(held),
            batch=(bucket.batch_frames, bucket.rows) if bucket else None,
            crop_loss=1 - kept / max(samples, 1),
            step_share=batches.get(frames, 0.0) / sum(batches.values()),
        )
    return uses


def crop_loss(uses: dict[int, BucketUse]) -> float:
    """Share of a split's audio that one pass leaves out, short utterances included."""
    lost = sum(use.crop_loss * use.seconds for use in uses.values())
    return lost / sum(use.seconds for use in uses.values())
