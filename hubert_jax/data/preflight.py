"""Pre-flight: reads a split and its label sets once, by the record, and refuses what misfits."""

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

_EXAMPLES = 10  # ids that are named of those that are flagged


@dataclasses.dataclass
class _Flagged:
    """Utterances that can be used but that somebody should listen to."""

    utterances: int = 0
    seconds: float = 0.0
    examples: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class _Findings:
    """What was found in a split; utterances are flagged as by the preparation."""

    silent: _Flagged
    clipped: _Flagged
    class_counts: tuple[np.ndarray, ...]  # of each label set, (classes,) int64


def inspect(
    audio_dir: pathlib.Path,
    audio: AudioManifest,
    label_sets: Sequence[tuple[pathlib.Path, LabelManifest]] = (),
    progress: Callable[[float], None] = lambda seconds: None,
) -> _Findings:
    """Reads every record of a split and of its label sets, which `check_labels` must have passed.

    `progress` is called with the seconds of audio of each shard that is done. Raises InputError,
    naming the shard and, where one is to blame, the record (counted from 0).
    """
    if audio.sample_rate != SAMPLE_RATE:
        raise InputError(
            f"{audio_dir / MANIFEST}: sample_rate: found {audio.sample_rate}, expected "
            f"{SAMPLE_RATE}; prepare the corpus again with --config.convert=True"
        )
    index = read_index(audio_dir, audio)
    flagged = {"silent": _Flagged(), "clipped": _Flagged()}
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
                flagged[kind].utterances += 1
                flagged[kind].seconds += len(utterance.audio) / SAMPLE_RATE
                if len(flagged[kind].examples) < _EXAMPLES:
                    flagged[kind].examples.append(utterance.id)
        _require(path, "samples", samples, shard.samples)
        # After the records: what is wrong with one of them is said with its number.
        _require(path, "digest", files.sha256_file(path), shard.digest)
        for labels, (_, manifest) in zip(label_shards, label_sets, strict=True):
            expected = manifest.shards[number]
            _require(labels.path, "frames", labels.frames, expected.frames)
            _require(labels.path, "digest", files.sha256_file(labels.path), expected.digest)
        progress(samples / SAMPLE_RATE)
    for (folder, manifest), count in zip(label_sets, counts, strict=True):
        for label in np.flatnonzero(count != manifest.class_counts)[:1]:
            what = f"class_counts[{label}]"
            _require(folder / MANIFEST, what, int(count[label]), manifest.class_counts[label])
    return _Findings(**flagged, class_counts=counts)


class _LabelShard:
    """A label shard while it is read beside its audio."""

    def __init__(self, path: pathlib.Path, manifest: LabelManifest, counts: np.ndarray) -> None:
        self.path, self.frames = path, 0
        self._rate, self._counts = manifest.rate_hz, counts

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
    """A shard's utterances, once they and their labels are found to fit."""
    readers = [
        records.read_shard(path, shard.utterances),
        *(records.read_label_shard(labels.path, shard.utterances) for labels in label_shards),
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
    """What pre-training makes of a bucket."""

    utterances: int
    seconds: float
    shards: int
    batch: tuple[int, int] | None  # frames and rows; None where the bucket is left out
    crop_loss: float  # fraction of its audio outside the crops, 1 where it is left out
    step_share: float  # fraction of the steps that draw from it


def bucket_uses(audio: AudioManifest, buckets: Sequence[Bucket]) -> dict[int, BucketUse]:
    """How pre-training over `buckets` uses a split, by the buckets' frames."""
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
    """Fraction of a split's audio that an epoch leaves out, short utterances included."""
    lost = sum(use.crop_loss * use.seconds for use in uses.values())
    return lost / sum(use.seconds for use in uses.values())
