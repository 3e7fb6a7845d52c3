"""The index of a split: where every record lies and what is known of it without reading it.

`index.npz` lies beside the manifest, which has its digest. Records are numbered through all shards
in the manifest's order. Shards hold nothing but records, one behind another, so their lengths say
where each begins. Label sets have an index of their own, of lengths alone.
"""

import dataclasses
import functools
import os
import pathlib
import zipfile
from collections.abc import Iterable, Sequence

import numpy as np

from hubert_jax import files
from hubert_jax.data.manifests import (
    MANIFEST,
    AudioManifest,
    LabelManifest,
    LabelShardInfo,
    ShardInfo,
)
from hubert_jax.errors import InputError

INDEX = "index.npz"


@dataclasses.dataclass(frozen=True)
class Locations:
    """Where the records of a directory of shards lie.

    Attributes:
      first: (shards + 1,) int64, the number of each shard's first record; the last is n.
      ends: (n + 1,) int64, bytes up to the end of the records before each, over all shards.
    """

    first: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, lengths: np.ndarray, shards: Sequence[ShardInfo | LabelShardInfo]) -> "Locations":
        """From the records' lengths in the file, (n,), framing included."""
        first = np.zeros(len(shards) + 1, np.int64)
        np.cumsum([shard.utterances for shard in shards], out=first[1:])
        ends = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=ends[1:])
        return cls(first, ends)

    def locate(self, records: np.ndarray | int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(shard, offset in its file, length) of records (n,): three int64 (n,)."""
        shard = np.searchsorted(self.first, records, side="right") - 1
        begin = self.ends[records]
        return shard, begin - self.ends[self.first[shard]], self.ends[records + 1] - begin


class Strings(Sequence[str]):
    """Many short strings as one block of bytes; each is decoded when it is asked for."""

    def __init__(self, content: np.ndarray) -> None:
        """Of (bytes,) uint8: UTF-8, with a zero byte behind every string."""
        self._content = content
        self._ends = np.flatnonzero(content == 0)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, number: int) -> str:  # type: ignore[override]  # no slices
        if not 0 <= number < len(self):
            raise IndexError(number)
        begin = self._ends[number - 1] + 1 if number else 0
        return self._content[begin : self._ends[number]].tobytes().decode()


@dataclasses.dataclass(frozen=True)
class Index:
    """All records of a split, in the order of its shards; names are read once asked for.

    Attributes:
      path: of the file.
      locations: where the records lie.
      samples: (n,) uint32, at 16 kHz.
      transcribed: (n,) bool, whether there is a transcript.
    """

    path: pathlib.Path
    locations: Locations
    samples: np.ndarray
    transcribed: np.ndarray

    def __len__(self) -> int:
        return len(self.samples)

    def shard(self, number: int) -> range:
        """The records of the manifest's `number`-th shard."""
        return range(*self.locations.first[number : number + 2].tolist())

    @functools.cached_property
    def ids(self) -> Strings:
        """Of all utterances."""
        return Strings(self._stored("ids"))

    @functools.cached_property
    def speaker(self) -> np.ndarray:
        """(n,) int32, places in `speakers`."""
        return self._stored("speaker")

    @functools.cached_property
    def speakers(self) -> tuple[str, ...]:
        """Sorted; "" is unknown."""
        return tuple(Strings(self._stored("speakers")))

    def _stored(self, name: str) -> np.ndarray:
        with np.load(self.path) as stored:
            return stored[name]


@dataclasses.dataclass(frozen=True)
class ShardIndex:
    """What the index says of one shard, while its split is written.

    Attributes:
      lengths, samples: (n,) uint32; bytes in the file, framing included, and samples.
      transcribed: (n,) bool.
      ids, speakers: n strings each, (bytes,) uint8 as `Strings` takes them.
    """

    lengths: np.ndarray
    samples: np.ndarray
    transcribed: np.ndarray
    ids: np.ndarray
    speakers: np.ndarray

    @classmethod
    def of(cls, rows: Iterable[tuple[int, int, str, str, bool]]) -> "ShardIndex":
        """Of (length, samples, id, speaker, transcribed) of one record or more, in order.

        Raises:
          InputError: a name has a zero byte.
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
    joined = np.frombuffer(b"".join(name + b"\0" for name in names), np.uint8)
    speakers = ([number[name] for name in _names(shard.speakers)] for shard in shards)
    return _save(
        directory,
        {
            "lengths": (np.uint32, records, (shard.lengths for shard in shards)),
            "samples": (np.uint32, records, (shard.samples for shard in shards)),
            "transcribed": (bool, records, (shard.transcribed for shard in shards)),
            "ids": (
                np.uint8,
                sum(len(shard.ids) for shard in shards),
                (shard.ids for shard in shards),
            ),
            "speaker": (np.int32, records, speakers),
            "speakers": (np.uint8, len(joined), [joined]),
        },
    )


def write_label_index(directory: str | os.PathLike, lengths: Sequence[np.ndarray]) -> str:
    """Writes a label set's index, of each shard's records' lengths; returns its digest."""
    return _save(directory, {"lengths": (np.uint32, sum(map(len, lengths)), lengths)})


def read_index(split_dir: str | os.PathLike, manifest: AudioManifest) -> Index:
    """The index of a prepared split.

    Raises:
      InputError: it is missing, or not the one that the manifest names.
    """
    path = _checked(split_dir, manifest, "hubert_jax.prepare")
    with np.load(path) as stored:
        locations = Locations.of(stored["lengths"], manifest.shards)
        return Index(path, locations, stored["samples"], stored["transcribed"])


def read_label_index(label_dir: str | os.PathLike, manifest: LabelManifest) -> Locations:
    """Where the records of a label set lie; raises as `read_index`."""
    with np.load(_checked(label_dir, manifest, "hubert_jax.label")) as stored:
        return Locations.of(stored["lengths"], manifest.shards)


def _checked(
    directory: str | os.PathLike, manifest: AudioManifest | LabelManifest, writer: str
) -> pathlib.Path:
    path = pathlib.Path(directory, INDEX)
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
    """Writes an index of (type, length, pieces) columns; returns its digest.

    Piece by piece, where `np.savez` would need all of a column in one array.
    """
    path = pathlib.Path(directory, INDEX)
    try:
        with zipfile.ZipFile(path, "w") as archive:
            for name, (kind, length, pieces) in columns.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array_header_1_0(
                        file,
                        {
                            "descr": np.lib.format.dtype_to_descr(np.dtype(kind)),
                            "fortran_order": False,
                            "shape": (length,),
                        },
                    )
                    for piece in pieces:
                        file.write(np.asarray(piece, kind).tobytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None
    return files.sha256_file(path)


def _names(joined: np.ndarray) -> list[bytes]:
    return joined.tobytes().split(b"\0")[:-1]


def _joined(names: Sequence[str]) -> np.ndarray:
    content = "".join(f"{name}\0" for name in names).encode()
    if content.count(0) != len(names):
        name = next(name for name in names if "\0" in name)
        raise InputError(f"{name!r}: expected a name without zero bytes")
    return np.frombuffer(content, np.uint8)
