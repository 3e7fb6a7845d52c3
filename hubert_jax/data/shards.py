"""Buckets, and writing the shards of one split.

Training crops, it never pads (GroupNorm sees padding), and XLA wants few shapes: so a crop has one
of a few lengths, and an utterance is in the bucket of the longest crop that it can give.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Iterable

from hubert_jax.data import manifests
from hubert_jax.data.manifests import AudioManifest, ShardInfo
from hubert_jax.data.records import ShardWriter, Utterance
from hubert_jax.data.waveform import SAMPLE_RATE

HOP, RECEPTIVE_FIELD = 320, 400
# Crop lengths in 50 Hz frames. The paper's 15.6 s is rounded down to 768; 96 is just under 2 s.
BUCKETS = (96, 128, 256, 384, 512, 640, 768)
# Pre-training leaves out utterances under 2 s (as released); they are in the bucket 0.
MIN_TRAINING_SAMPLES = 32_000


def crop_samples(frames: int) -> int:
    """The shortest waveform that gives this many frames: 320 frames + 80 samples."""
    return HOP * frames + RECEPTIVE_FIELD - HOP


def bucket_of(num_samples: int) -> int:
    """Bucket (in frames) of an utterance: its longest possible crop, 0 if it is under 2 s."""
    if num_samples < MIN_TRAINING_SAMPLES:
        return 0
    return max(frames for frames in BUCKETS if crop_samples(frames) <= num_samples)


def shuffle_key(utterance_id: str) -> bytes:
    """Position of an utterance in a split: random-looking, the same everywhere and always."""
    return hashlib.sha256(utterance_id.encode()).digest()


@dataclasses.dataclass
class _Bucket:
    """Shards of one bucket; only the last one is open."""

    closed: list[ShardWriter] = dataclasses.field(default_factory=list)
    open: ShardWriter | None = None

    def close(self) -> None:
        if self.open is not None:
            self.open.close()
            self.closed.append(self.open)
            self.open = None


def write_split(
    directory: pathlib.Path,
    split: str,
    utterances: Iterable[Utterance],
    rejected: list[tuple[str, str]],
    shard_megabytes: int,
) -> AudioManifest:
    """Writes a split's shards, `rejected.tsv` and `manifest.json` into an empty directory.

    Utterances are consumed one at a time and go to their bucket's shard in the order in which they
    come (by `shuffle_key`, where the caller wants a random one). A shard is full once its audio
    has `shard_megabytes`; it is a function of the utterances alone, so equal input gives equal
    bytes. Buckets without utterances have no shard.

    Args:
      directory: of a `files.writing_directory`.
      split: the split's name.
      utterances: what to write.
      rejected: (file, reason) pairs; read after the last utterance, so it may still be growing.
      shard_megabytes: 10**6 bytes of audio per shard; 64 are 2,000 s.
    """
    buckets = {frames: _Bucket() for frames in (0, *BUCKETS)}
    speakers, transcribed = set(), 0
    try:
        for utterance in utterances:
            frames = bucket_of(len(utterance.audio))
            bucket = buckets[frames]
            if bucket.open is None:
                number = len(bucket.closed)
                bucket.open = ShardWriter(directory / f"audio-b{frames:04d}-{number:05d}")
            bucket.open.write(utterance)
            if 2 * bucket.open.samples >= shard_megabytes * 10**6:
                bucket.close()
            if utterance.speaker:
                speakers.add(utterance.speaker)
            transcribed += bool(utterance.text)
    finally:
        for bucket in buckets.values():
            bucket.close()
    shards = tuple(
        shard for frames, bucket in buckets.items() for shard in _named(bucket.closed, frames)
    )
    rows = "".join(f"{file}\t{reason}\n" for file, reason in rejected)
    (directory / "rejected.tsv").write_text(rows)
    manifest = AudioManifest(
        split=split,
        sample_rate=SAMPLE_RATE,
        utterances=sum(shard.utterances for shard in shards),
        seconds=round(sum(shard.samples for shard in shards) / SAMPLE_RATE, 3),
        speakers=len(speakers),
        transcribed=transcribed,
        rejected=len(rejected),
        digest=manifests.shards_digest(shards),
        shards=shards,
    )
    manifests.write_manifest(directory, manifest)
    return manifest


def _named(writers: list[ShardWriter], frames: int) -> Iterable[ShardInfo]:
    """Gives the shards of a bucket their names, which say how many there are."""
    for number, writer in enumerate(writers):
        name = f"audio-b{frames:04d}-{number:05d}-of-{len(writers):05d}.tfrecord"
        info = writer.info(name, frames)
        writer.path.rename(writer.path.with_name(name))
        yield info
