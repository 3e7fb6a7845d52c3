"""Manifests: `manifest.json` is the only list of a directory's shards; nothing is globbed for.

A digest is a function of the shards' bytes, so that whatever is derived from them can name it.
"""

import dataclasses
import hashlib
import os
import pathlib
from typing import Any, TypeVar

from hubert_jax import config, files, storage
from hubert_jax.errors import InputError

_FORMAT = 2
_MOST = 2**53  # of anything that is counted
MANIFEST = "manifest.json"
_Manifest = TypeVar("_Manifest", "AudioManifest", "LabelManifest")


@dataclasses.dataclass(frozen=True)
class ShardInfo:
    """One audio shard."""

    file: str  # name in the split's directory
    bucket_frames: int  # fewest frames, at 50 Hz, of an utterance; 0: all are under 2 s
    utterances: int
    samples: int  # of all utterances, at 16 kHz
    digest: str  # SHA-256 (hex) of the file
    group: str = ""  # the corpus that its utterances are from; "" if the split has only one


@dataclasses.dataclass(frozen=True)
class GroupInfo:
    """One of several corpora that a split mixes."""

    name: str
    utterances: int
    seconds: float
    share: float  # of the audio that training draws; those of a split sum to 1


@dataclasses.dataclass(frozen=True)
class AudioManifest:
    """A prepared split; `speakers`, `transcribed`, `rejected` and `flagged` are counts."""

    split: str
    sample_rate: int
    utterances: int
    seconds: float
    speakers: int
    transcribed: int
    rejected: int
    digest: str
    shards: tuple[ShardInfo, ...]
    format: int = _FORMAT
    encoding: str = "pcm16"  # of the records' audio
    flagged: int = 0
    groups: tuple[GroupInfo, ...] = ()  # the corpora of a mixture
    index: str = ""  # digest of the split's index
    provenance: dict = dataclasses.field(default_factory=dict)  # of transcripts nobody wrote

    def described(self) -> list[dict[str, Any]]:
        """What a run's metadata say of it, and which fraction of what is drawn it is, JSON-able."""
        names = ("split", "utterances", "seconds", "digest", "provenance")
        return [{name: getattr(self, name) for name in names} | {"share": 1.0}]


@dataclasses.dataclass(frozen=True)
class LabelShardInfo:
    """One label shard, named by `label_file`; `frames` counts its labels."""

    file: str
    utterances: int
    frames: int
    digest: str


@dataclasses.dataclass(frozen=True)
class LabelManifest:
    """A label set of a split; its shards mirror the audio shards, in their order."""

    split: str
    audio_digest: str  # of the audio manifest
    rate_hz: int  # labels per second, 50 or 100
    num_classes: int  # labels are in [0, num_classes)
    feature: dict  # {"kind": "mfcc", "steps": [...]}, {"kind": "layer", "layer": l, ...}, ...
    codebook_digest: str
    utterances: int
    frames: int  # labels in all
    class_counts: tuple[int, ...]  # labels of each class, num_classes entries
    digest: str
    shards: tuple[LabelShardInfo, ...]
    format: int = _FORMAT
    index: str = ""  # digest of the label set's index
    version: int = 0  # of the label job that made it


def label_file(audio_file: str) -> str:
    """Name of the label shard that mirrors an audio shard."""
    return "labels-" + audio_file.removeprefix("audio-")


def shards_digest(shards: tuple[ShardInfo, ...] | tuple[LabelShardInfo, ...]) -> str:
    """SHA-256 (hex) over the shards' digests (hex) in order."""
    return hashlib.sha256("".join(shard.digest for shard in shards).encode()).hexdigest()


def write_manifest(directory: str | os.PathLike, manifest: AudioManifest | LabelManifest) -> None:
    """Writes `manifest.json`; its `format` comes first."""
    values = dataclasses.asdict(manifest)  # plain values already: its shards may be 100,000
    files.write_json(storage.path(directory, MANIFEST), {"format": values.pop("format")} | values)


def read_manifest(split_dir: str | os.PathLike) -> AudioManifest:
    """The manifest of a prepared split.

    Raises InputError if it is missing, damaged or of another format, or if a shard is missing.
    """
    return _read(split_dir, AudioManifest, "audio manifest", "hubert_jax.prepare")


def read_label_manifest(label_dir: str | os.PathLike) -> LabelManifest:
    """The manifest of a label set; raises as `read_manifest`."""
    return _read(label_dir, LabelManifest, "label manifest", "hubert_jax.label")


def _check(manifest: AudioManifest | LabelManifest, path: pathlib.Path, again: str) -> None:
    """Raises InputError for a name that leads elsewhere, and numbers that cannot be."""
    split = manifest.split  # names the folders that jobs write
    if split in ("", ".", "..") or set(split) & {"/", "\\", "\0"}:
        raise InputError(f"{path}: split: found {split!r}, expected a plain name; {again}")
    counts = [*getattr(manifest, "class_counts", ())]
    for described in (manifest, *manifest.shards):
        counts += [value for value in vars(described).values() if isinstance(value, (int, float))]
    if wrong := [count for count in counts if not 0 <= count < _MOST]:
        raise InputError(f"{path}: a count of {wrong[0]}; {again}")
    total = sum(shard.utterances for shard in manifest.shards)
    if total != manifest.utterances:
        raise InputError(
            f"{path}: utterances: found {manifest.utterances}, {total} in its shards; {again}"
        )


def _read(
    directory: str | os.PathLike, schema: type[_Manifest], what: str, writer: str
) -> _Manifest:
    path = storage.path(directory, MANIFEST)
    again = f"run {writer} again"
    values: Any = files.read_json(path, what, writer)
    found = values.get("format") if isinstance(values, dict) else None
    if found != _FORMAT:
        raise InputError(f"{path}: expected the {what} format {_FORMAT}, found {found}; {again}")
    manifest = config.build(schema, values, str(path))
    _check(manifest, path, again)
    if shards_digest(manifest.shards) != manifest.digest:
        raise InputError(
            f"{path}: the digest is not that of its shards, it was edited or damaged; {again}"
        )
    there = set(storage.names_in(path.parent))  # one question instead of one a shard
    for shard in manifest.shards:
        if shard.file not in there:
            missing = path.parent / shard.file
            raise InputError(f"{missing}: listed in the {what} but not there; {again}")
    return manifest
