"""Manifests: what the shards of a split and of its label sets hold, bound by digests.

`manifest.json` beside the shards is the only list of them; nothing is found by globbing. The digest
of a split is a function of its shards' bytes, so whatever is derived from the split can name it.
"""

import dataclasses
import hashlib
import os
import pathlib
from typing import Any, TypeVar

from hubert_jax import config, files
from hubert_jax.errors import InputError

FORMAT = 2
MANIFEST = "manifest.json"

Manifest = TypeVar("Manifest", "AudioManifest", "LabelManifest")


@dataclasses.dataclass(frozen=True)
class ShardInfo:
    """One audio shard.

    Attributes:
      file: name in the split's directory.
      bucket_frames: every utterance has at least this many 50 Hz frames (0: shorter than 2 s).
      utterances: number of records.
      samples: of all its utterances, at 16 kHz.
      digest: SHA-256 (hex) of the file.
      group: of the corpus that all its utterances are from, "" where there is one only.
    """

    file: str
    bucket_frames: int
    utterances: int
    samples: int
    digest: str
    group: str = ""


@dataclasses.dataclass(frozen=True)
class GroupInfo:
    """One of several corpora that a split mixes.

    Attributes:
      name: as its shards name it.
      utterances, seconds: what it has.
      share: of the audio that training is to draw from it; the shares of a split sum to 1.
    """

    name: str
    utterances: int
    seconds: float
    share: float


@dataclasses.dataclass(frozen=True)
class AudioManifest:
    """A prepared split; `speakers`, `transcribed`, `rejected` and `flagged` are counts.

    `encoding` is how the records hold audio (`hubert_jax.data.encoding`); `groups` are the corpora
    that it mixes; `index` is the digest of the split's index (`hubert_jax.data.index`).
    """

    split: str
    sample_rate: int
    utterances: int
    seconds: float
    speakers: int
    transcribed: int
    rejected: int
    digest: str
    shards: tuple[ShardInfo, ...]
    format: int = FORMAT
    encoding: str = "pcm16"
    flagged: int = 0
    groups: tuple[GroupInfo, ...] = ()
    index: str = ""


@dataclasses.dataclass(frozen=True)
class LabelShardInfo:
    """One label shard; its file name has the same suffix as its audio shard's."""

    file: str
    utterances: int
    frames: int
    digest: str


@dataclasses.dataclass(frozen=True)
class LabelManifest:
    """A label set of a split.

    Attributes:
      split: the split's name.
      audio_digest: digest of the audio manifest that it labels.
      rate_hz: labels per second, 50 or 100.
      num_classes: labels are in [0, num_classes).
      feature: {"kind": "mfcc"} or {"kind": "layer", "layer": l, "checkpoint": identity}.
      codebook_digest: of the codebook that gave the labels.
      utterances, frames: totals; `frames` counts labels.
      class_counts: labels of each class, num_classes entries.
      digest: over the shards' digests.
      shards: in the order of the audio shards.
      index: digest of the label set's index.
    """

    split: str
    audio_digest: str
    rate_hz: int
    num_classes: int
    feature: dict
    codebook_digest: str
    utterances: int
    frames: int
    class_counts: tuple[int, ...]
    digest: str
    shards: tuple[LabelShardInfo, ...]
    format: int = FORMAT
    index: str = ""


def label_file(audio_file: str) -> str:
    """Name of the label shard that mirrors an audio shard."""
    return "labels-" + audio_file.removeprefix("audio-")


def shards_digest(shards: tuple[ShardInfo, ...] | tuple[LabelShardInfo, ...]) -> str:
    """SHA-256 (hex) over the shards' digests (hex) in order."""
    return hashlib.sha256("".join(shard.digest for shard in shards).encode()).hexdigest()


def write_manifest(directory: str | os.PathLike, manifest: AudioManifest | LabelManifest) -> None:
    """Writes `manifest.json`; its `format` comes first."""
    values = dataclasses.asdict(manifest)  # plain values already: its shards may be 100,000
    files.write_json(pathlib.Path(directory, MANIFEST), {"format": values.pop("format")} | values)


def read_manifest(split_dir: str | os.PathLike) -> AudioManifest:
    """The manifest of a prepared split.

    Raises:
      InputError: it is missing or damaged, of another format, or a shard is missing.
    """
    return _read(split_dir, AudioManifest, "audio manifest", "hubert_jax.prepare")


def read_label_manifest(label_dir: str | os.PathLike) -> LabelManifest:
    """The manifest of a label set; raises as `read_manifest`."""
    return _read(label_dir, LabelManifest, "label manifest", "hubert_jax.label")


def _read(directory: str | os.PathLike, schema: type[Manifest], what: str, writer: str) -> Manifest:
    path = pathlib.Path(directory, MANIFEST)
    values: Any = files.read_json(path, what, writer)
    found = values.get("format") if isinstance(values, dict) else None
    if found != FORMAT:
        raise InputError(
            f"{path}: expected the {what} format {FORMAT}, found {found}; run {writer} again"
        )
    manifest = config.build(schema, values, str(path))
    if shards_digest(manifest.shards) != manifest.digest:
        raise InputError(
            f"{path}: the digest is not that of its shards, it was edited or damaged; "
            f"run {writer} again"
        )
    there = set(os.listdir(path.parent))  # one question instead of one a shard
    for shard in manifest.shards:
        if shard.file not in there:
            raise InputError(
                f"{path.parent / shard.file}: listed in the {what} but not there; "
                f"run {writer} again"
            )
    return manifest
