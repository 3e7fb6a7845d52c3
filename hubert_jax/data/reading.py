"""Random reads of a split's records and their labels, each checked by TFRecord's checksums."""

import contextlib
import functools
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence

import google_crc32c
import numpy as np
from google.protobuf.message import DecodeError

from hubert_jax import files, storage
from hubert_jax.data import encoding, manifests, records
from hubert_jax.data.index import read_index, read_label_index
from hubert_jax.data.manifests import AudioManifest, LabelManifest
from hubert_jax.data.tensorflow import tf
from hubert_jax.errors import InputError
from hubert_jax.storage import cache

_TEXT_KEY = b"\n\4text\x12"  # how the field `text`, a record's last, begins
_TAIL_BYTES = 2**11  # of a record, which hold most transcripts


class RecordReader:
    """Reads records of a split, with those of its label sets, by their numbers in the index.

    Of a bucket, label shards are copied to this host, and so is audio of which the cache holds
    twice as much; a record of more audio is one request.

    Of the shards in which damage was met, `damaged` has one line about the first damaged record,
    by the shard's number in the manifest.
    """

    def __init__(
        self,
        audio_dir: pathlib.Path,
        manifest: AudioManifest,
        label_sets: Sequence[tuple[pathlib.Path, LabelManifest]] = (),
        skip_damaged: bool = False,
    ):
        self.directory, self.index = audio_dir, read_index(audio_dir, manifest)
        self.damaged: dict[int, str] = {}
        self._sound: dict[int, int] = {}  # records before the first damage, by the shard's number
        self._skip_damaged = skip_damaged
        names = [shard.file for shard in manifest.shards]
        self._columns = [(audio_dir, names, self.index.locations)]
        self._paths: dict[tuple[int, int], pathlib.Path] = {}  # of columns and shards
        self._copies: dict[pathlib.Path, pathlib.Path] = {}
        self._copies_audio = 2 * int(self.index.locations.begins[-1]) <= cache.bound()
        names = [manifests.label_file(name) for name in names]
        for folder, labels in label_sets:
            self._columns.append((folder, names, read_label_index(folder, labels)))
        self.columns = len(self._columns)

    def read(self, numbers: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """Serialised records, (B,) object of bytes for the audio and each label set.

        With them (B,) int64: the shard of a damaged record for which, with `skip_damaged`, a sound
        one from before the damage stands in, or -1. `numbers` are (B,) int64, in any order. Raises
        InputError if a record is damaged and none may stand in for it, or none before it is sound.
        """
        columns = [np.empty(len(numbers), object) for _ in self._columns]
        stood_in = np.full(len(numbers), -1, np.int64)
        with contextlib.ExitStack() as opened:
            open_file = functools.cache(functools.partial(self._open, opened))  # rows are from few
            for row, number in enumerate(numbers.tolist()):
                try:
                    found = self._record(open_file, number)
                except _Damage as damage:
                    stood_in[row] = self._shard(number)
                    found = self._record(open_file, self._stand_in(open_file, number, damage))
                for column, content in zip(columns, found, strict=True):
                    column[row] = content
        return columns, stood_in

    def transcripts(self) -> Iterator[str]:
        """The text of every record in order, "" if it has none; of most their ends are read alone.

        Raises InputError for a shard that is missing or, where all of it was needed, a damaged
        record.
        """
        _, names, locations = self._columns[0]
        try:
            for shard in range(len(names)):
                with contextlib.ExitStack() as opened:
                    open_file = functools.cache(functools.partial(self._open, opened))
                    file = open_file(0, shard)
                    for number in self.index.shard(shard):
                        _, offset, length = (int(value) for value in locations.locate(number))
                        size = min(_TAIL_BYTES, length - records.FRAMING_BYTES)
                        end = offset + length - records.FOOTER_BYTES
                        text = _last_text(_pread(file, size, end - size)) if size > 0 else None
                        if text is None:
                            content = self._record(open_file, number)[0]
                            text = (records.parse(content, ("text",)) or {"text": b""})["text"]
                        yield text.decode(errors="replace")  # which no vocabulary has
        except _Damage as damage:
            raise InputError(str(damage)) from None

    def refuse(self, numbers: np.ndarray) -> None:
        """Raises InputError for the first of `numbers` whose content could not be decoded."""
        (audio, *labels), _ = self.read(numbers)
        for row, number in enumerate(numbers.tolist()):
            expected = self._parsed(0, number, audio[row], ("id", "audio", "num_samples"))
            if encoding.decode(expected["audio"], expected["num_samples"]) is None:
                raise InputError(
                    f"{self._name(0, number)}: {len(expected['audio'])} bytes of audio are not "
                    f"{expected['num_samples']} samples; {records.REMEDY}"
                )
            for column, contents in enumerate(labels, start=1):
                found = self._parsed(column, number, contents[row], ("id", "labels"))
                if found["id"] != expected["id"]:
                    raise InputError(
                        f"{self._name(column, number)}: labels of {found['id'].decode()!r}, but "
                        f"the audio is of {expected['id'].decode()!r}; run the label job on this "
                        "audio again"
                    )

    def _parsed(self, column: int, number: int, content: bytes, names: tuple[str, ...]) -> dict:
        fields = records.parse(content, names)
        if fields is None:
            raise InputError(
                f"{self._name(column, number)}: expected the fields {', '.join(names)}; "
                f"{records.REMEDY}"
            )
        return fields

    def _stand_in(self, open_file: "_Opener", number: int, damage: "_Damage") -> int:
        """A record for a damaged one: of its shard, from before its first damage."""
        shard = self._shard(number)
        first = self.index.shard(shard).start
        if shard not in self.damaged:
            sound, message = number, str(damage)
            for earlier in range(first, number):
                try:
                    self._record(open_file, earlier)
                except _Damage as found:
                    sound, message = earlier, str(found)
                    break
            self._sound[shard] = sound - first
            self.damaged[shard] = message
        if not self._skip_damaged:
            raise InputError(self.damaged[shard]) from None
        if not self._sound[shard]:
            raise InputError(f"{self.damaged[shard]}; no record before it is sound") from None
        return first + (number - first) % self._sound[shard]

    def _record(self, open_file: "_Opener", number: int) -> list[bytes]:
        """The columns of one record, without their framing."""
        found = []
        for column, (_, _, locations) in enumerate(self._columns):
            shard, offset, length = (int(value) for value in locations.locate(number))
            file = open_file(column, shard)
            why = "cut off or damaged"
            try:
                content = _read(file, offset, length)
            except OSError as error:  # of the disk or the network
                content, why = None, f"cannot be read ({error.strerror})"
            if content is None:
                raise _Damage(f"{self._name(column, number)}: {why}; {records.REMEDY}")
            found.append(content)
        return found

    def _open(self, opened: contextlib.ExitStack, column: int, shard: int) -> "_Source":
        """A file's descriptor, closed with `opened`, or the object whose parts are asked for."""
        path = self._path(column, shard)
        if isinstance(path, storage.BucketPath) and column == 0 and not self._copies_audio:
            return path
        try:
            found = self._copy(path) if isinstance(path, storage.BucketPath) else path
            descriptor = os.open(found, os.O_RDONLY)
        except OSError as error:
            if error.errno in files.UNWRITABLE:  # where copies are kept
                raise
            raise _Damage(f"{path}: cannot be read ({error.strerror}); {records.REMEDY}") from None
        opened.callback(os.close, descriptor)
        return descriptor

    def _copy(self, path: pathlib.Path) -> pathlib.Path:
        """A local copy, about which the bucket is not asked again: shards stay as they are."""
        found = self._copies.get(path)
        if found is None or not found.exists():  # the cache has dropped it
            found = self._copies[path] = storage.local(path)
        return found

    def _shard(self, number: int) -> int:
        return int(self.index.locations.locate(number)[0])

    def _path(self, column: int, shard: int) -> pathlib.Path:
        key = column, shard
        if key not in self._paths:
            folder, names, _ = self._columns[column]
            self._paths[key] = storage.path(folder, names[shard])
        return self._paths[key]

    def _name(self, column: int, number: int) -> str:
        shard = self._shard(number)
        return f"{self._path(column, shard)}, record {number - self.index.shard(shard).start}"


class _Damage(Exception):
    """A record is not what was written."""


_Source = int | storage.BucketPath  # an open file's descriptor, or an object
_Opener = Callable[[int, int], _Source]  # of a column and a shard


def _pread(file: _Source, size: int, offset: int) -> bytes:
    return os.pread(file, size, offset) if isinstance(file, int) else file.read_range(offset, size)


def _read(file: _Source, offset: int, length: int) -> bytes | None:
    """A record without its framing; None if it is not what its framing says."""
    size = length - records.FRAMING_BYTES
    if isinstance(file, int):
        return _unframed(size, functools.partial(os.pread, file), offset)
    framed = file.read_range(offset, length)
    return _unframed(size, lambda size, begin: framed[begin : begin + size], 0)


def _unframed(size: int, read: Callable[[int, int], bytes], offset: int) -> bytes | None:
    header = read(records.HEADER_BYTES, offset)
    claimed = size.to_bytes(8, "little", signed=True)  # an index may say anything
    if header[:8] != claimed or _masked_crc(claimed) != header[8:]:
        return None
    content = read(size, offset + records.HEADER_BYTES)
    footer = read(records.FOOTER_BYTES, offset + records.HEADER_BYTES + size)
    return content if _masked_crc(content) == footer else None


def _last_text(tail: bytes) -> bytes | None:
    """The text at the end of a record; None where it does not begin in `tail`."""
    begin = tail.rfind(_TEXT_KEY)
    if begin < 0:
        return None
    try:
        entry = tf.train.Features.FeatureEntry.FromString(tail[begin:])
    except DecodeError:
        return None
    values = entry.value.bytes_list.value
    return values[0] if entry.key == "text" and len(values) == 1 else None


def _masked_crc(content: bytes) -> bytes:
    """TFRecord's checksum: CRC-32C, rotated and shifted so that it is none of itself."""
    crc = google_crc32c.value(content)
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    return masked.to_bytes(4, "little")
