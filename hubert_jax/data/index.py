"""The index of a split, `index.npz`: where each record lies, and what is known of it unread.

Records are numbered through all shards in the manifest's order. Of labels there are lengths only.
"""

import dataclasses
import functools
import itertools
import os
import pathlib
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from hubert_jax import files, storage
from hubert_jax.data.joined import JoinedManifest
from hubert_jax.data.manifests import (
    MANIFEST,
    AudioManifest,
    LabelManifest,
    LabelShardInfo,
    ShardInfo,
)
from hubert_jax.errors import InputError

INDEX = "index.npz"
_BLOCK_BYTES = 2**24
_LONGEST_ID = 2**16  # bytes
_DAMAGED = (KeyError, ValueError, OSError, EOFError, RuntimeError)  # the last of encryption
_AGAIN = "it was damaged: run the job that wrote it again"


@dataclasses.dataclass(frozen=True)
class _Locations:
    """Where the records of a directory of shards lie."""

    first: np.ndarray  # (shards + 1,) int64, number of each shard's first record; the last is n
    begins: np.ndarray  # (n + 1,) int64, where each record begins, in bytes over all shards

    @classmethod
    def of(cls, lengths: np.ndarray, shards: Sequence[ShardInfo | LabelShardInfo]) -> "_Locations":
        """From the records' lengths in the file, (n,), framing included."""
        return cls(_sums([shard.utterances for shard in shards]), _sums(lengths))

    def locate(self, records: np.ndarray | int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(shard, offset in its file, length) of records (n,): three int64 (n,)."""
        shard = np.searchsorted(self.first, records, side="right") - 1
        begin = self.begins[records]
        return shard, begin - self.begins[self.first[shard]], self.begins[records + 1] - begin


class _Strings(Sequence[str]):
    """Strings that are decoded when asked for, of (bytes,) uint8 with a zero byte behind each."""

    def __init__(self, content: np.ndarray) -> None:
        self._content = content
        self._ends = np.flatnonzero(content == 0)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, number: int) -> str:  # type: ignore[override]  # no slices
        if not 0 <= number < len(self):
            raise IndexError(number)
        begin = self._ends[number - 1] + 1 if number else 0
        return self._content[begin : self._ends[number]].tobytes().decode(errors="replace")


@dataclasses.dataclass(frozen=True)
class Index:
    """The records of a split."""

    paths: tuple[pathlib.Path, ...]  # several of splits that are joined
    locations: _Locations
    samples: np.ndarray  # (n,) uint32, at 16 kHz

    def shard(self, number: int) -> range:
        """The records of the manifest's `number`-th shard."""
        return range(*self.locations.first[number : number + 2].tolist())

    def samples_of(self, number: int) -> np.ndarray:
        """Of that shard's records, uint32."""
        return self.samples[slice(*self.locations.first[number : number + 2].tolist())]

    @functools.cached_property
    def ids(self) -> Sequence[str]:
        """Of all utterances; read when they are first asked for."""
        return _Strings(self._joined_ids())

    @property
    def speakers(self) -> list[str]:
        """Of each utterance, "" where it is unknown; read when it is asked for."""
        found = []
        for path in self.paths:
            names = _Strings(_column(path, "speakers", np.uint8))
            found += [names[number] for number in _column(path, "speaker", np.int32).tolist()]
        return found

    @property
    def transcribed(self) -> np.ndarray:
        """Whether each has a transcript, (n,) bool; read when it is asked for."""
        return np.concatenate([_column(path, "transcribed", np.bool_) for path in self.paths])

    def shared(self, other: "Index") -> list[str]:
        """The ids that both splits have, sorted; all those of `other` are in memory at once."""
        wanted = frozenset(itertools.chain.from_iterable(other._id_blocks()))
        found = (wanted.intersection(block) for block in self._id_blocks())
        return sorted(name.decode() for name in frozenset().union(*found))

    def _id_blocks(self) -> Iterator[list[bytes]]:
        """All ids, some hundred thousand at a time."""
        joined, begin = self._joined_ids(), 0
        while begin < len(joined):
            block = joined[begin : begin + _BLOCK_BYTES].tobytes()
            block = block[: block.rindex(b"\0") + 1]
            begin += len(block)
            yield block.split(b"\0")[:-1]

    def _joined_ids(self) -> np.ndarray:
        joined = np.concatenate([_column(path, "ids", np.uint8) for path in self.paths])
        lengths = np.diff(np.flatnonzero(joined == 0), prepend=-1)
        found = lengths.sum() == len(joined) and lengths.max(initial=0) <= _LONGEST_ID
        if not found or len(lengths) != len(self.samples):
            raise InputError(f"{self.paths[0]}: ids: expected one for each record; {_AGAIN}")
        return joined


@dataclasses.dataclass(frozen=True)
class ShardIndex:
    """What the index says of one shard's n records, while its split is written."""

    lengths: np.ndarray  # (n,) uint32, bytes in the file, framing included
    samples: np.ndarray  # (n,) uint32
    transcribed: np.ndarray  # (n,) bool
    ids: np.ndarray  # (bytes,) uint8: UTF-8, a zero byte behind each string
    speakers: np.ndarray  # as `ids`; "" is unknown

    @classmethod
    def of(cls, rows: Iterable[tuple[int, int, str, str, bool]]) -> "ShardIndex":
        """Of (length, samples, id, speaker, transcribed) of one record or more, in order.

        Raises InputError if a name has a zero byte.
        """
        lengths, samples, ids, speakers, transcribed = zip(*rows, strict=True)
        return cls(
            np.array(lengths, np.uint32),
            np.array(samples, np.uint32),
            np.array(transcribed, bool),
            _joined(ids),
            _joined(speakers),
        )


def write_index(directory: str | os.PathLike, shards: Sequence[ShardIndex]) -> str:
    """Writes a split's index; returns its digest, for the manifest."""
    names = sorted({name for shard in shards for name in _names(shard.speakers)})
    number = {name: place for place, name in enumerate(names)}
    records = sum(len(shard.lengths) for shard in shards)
    id_bytes = sum(len(shard.ids) for shard in shards)
    joined = np.frombuffer(b"".join(name + b"\0" for name in names), np.uint8)
    speakers = ([number[name] for name in _names(shard.speakers)] for shard in shards)
    return _save(
        directory,
        {
            "lengths": (np.uint32, records, (shard.lengths for shard in shards)),
            "samples": (np.uint32, records, (shard.samples for shard in shards)),
            "transcribed": (bool, records, (shard.transcribed for shard in shards)),
            "ids": (np.uint8, id_bytes, (shard.ids for shard in shards)),
            "speaker": (np.int32, records, speakers),
            "speakers": (np.uint8, len(joined), [joined]),
        },
    )


def write_label_index(directory: str | os.PathLike, lengths: Sequence[np.ndarray]) -> str:
    """Writes a label set's index, of each shard's records' lengths; returns its digest."""
    return _save(directory, {"lengths": (np.uint32, sum(map(len, lengths)), lengths)})


def read_index(split_dir: str | os.PathLike, manifest: AudioManifest) -> Index:
    """The index of a prepared split; InputError if it is missing or not the manifest's.

    Of a `JoinedManifest` it is that of all its parts, wherever `split_dir` is.
    """
    parts = manifest.parts if isinstance(manifest, JoinedManifest) else [(split_dir, manifest)]
    paths = [_checked(*part, "hubert_jax.prepare") for part in parts]
    lengths, samples = (
        np.concatenate(
            [
                _column(path, name, np.uint32, part)
                for path, (_, part) in zip(paths, parts, strict=True)
            ]
        )
        for name in ("lengths", "samples")
    )
    return Index(tuple(paths), _Locations.of(lengths, manifest.shards), samples)


def read_label_index(label_dir: str | os.PathLike, manifest: LabelManifest) -> _Locations:
    """Where the records of a label set lie; raises as `read_index`."""
    path = _checked(label_dir, manifest, "hubert_jax.label")
    return _Locations.of(_column(path, "lengths", np.uint32, manifest), manifest.shards)


def _column(
    path: pathlib.Path,
    name: str,
    kind: type,
    manifest: AudioManifest | LabelManifest | None = None,
) -> np.ndarray:
    """What `_save` wrote, of as many records as the manifest counts; a header may claim anything.

    Raises InputError where the file holds anything else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            described = archive.getinfo(f"{name}.npy")
            if described.compress_type != zipfile.ZIP_STORED:
                raise ValueError("it is compressed")
            content = archive.read(described)
        column: np.ndarray = np.frombuffer(
            content, kind, offset=10 + int.from_bytes(content[8:10], "little")
        )
        if manifest and len(column) != manifest.utterances:
            raise ValueError(f"expected {manifest.utterances} numbers, found {len(column)}")
    except (*_DAMAGED, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: {name}: {error}; {_AGAIN}") from None
    return column


def _checked(
    directory: str | os.PathLike, manifest: AudioManifest | LabelManifest, writer: str
) -> pathlib.Path:
    path = storage.path(directory, INDEX)
    if not path.is_file():
        raise InputError(f"{path}: the index is not there; run {writer} again")
    found = files.sha256_file(path)
    if found != manifest.index:
        raise InputError(
            f"{path}: index: found the digest {found[:12]}, expected {manifest.index[:12]} as "
            f"{MANIFEST} says; it belongs to other shards or was damaged: run {writer} again"
        )
    return path


def _save(directory: str | os.PathLike, columns: dict[str, tuple[type, int, Iterable]]) -> str:
    """Writes (type, length, pieces) columns without joining a column's pieces, as `np.savez` would.

    Returns the file's digest.
    """
    path = storage.path(directory, INDEX)
    try:
        with files.writing_file(path) as aside, zipfile.ZipFile(aside, "w") as archive:
            for name, (kind, length, pieces) in columns.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    header = {"descr": np.dtype(kind).str, "shape": (length,)}
                    np.lib.format.write_array_header_1_0(file, header | {"fortran_order": False})
                    for piece in pieces:
                        file.write(np.asarray(piece, kind).tobytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None
    return files.sha256_file(path)


def _sums(sizes: np.ndarray | list[int]) -> np.ndarray:
    """0 and the running sums of sizes (n,): int64 (n + 1,)."""
    sums = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=sums[1:])
    return sums


def _names(joined: np.ndarray) -> list[bytes]:
    return joined.tobytes().split(b"\0")[:-1]


def _joined(names: Sequence[str]) -> np.ndarray:
    content = "".join(f"{name}\0" for name in names).encode()
    if content.count(0) != len(names):
        name = next(name for name in names if "\0" in name)
        raise InputError(f"{name!r}: expected a name without zero bytes")
    return np.frombuffer(content, np.uint8)
