"""Random reads of a split's records and their labels, each checked before it is used.

A record is read by its place in the index, whole and with its framing: the length and the two
checksums (masked CRC-32C) that TFRecord files have. So damage is found record by record.
"""

import contextlib
import os
import pathlib
from collections.abc import Sequence

import google_crc32c
import numpy as np

from hubert_jax.data import encoding, manifests, records
from hubert_jax.data.index import Index, Locations
from hubert_jax.data.manifests import AudioManifest
from hubert_jax.errors import InputError


class RecordReader:
    """Reads records of a split together with those of its label sets.

    Attributes:
      directory: of the audio.
      columns: 1 and the number of label sets.
      damaged: one line about a shard's first damaged record, by the shard's number in the manifest;
        of shards in which one was met.
    """

    def __init__(
        self,
        audio_dir: pathlib.Path,
        manifest: AudioManifest,
        index: Index,
        label_sets: Sequence[tuple[pathlib.Path, Locations]] = (),
        skip_damaged: bool = False,
    ):
        """Of a split, its index, and directory and locations of each of its label sets.

        With `skip_damaged` a sound record from before the damage, of the same shard, stands in for
        a damaged one.
        """
        self.directory = audio_dir
        self.columns = 1 + len(label_sets)
        self.damaged: dict[int, str] = {}
        self._sound: dict[int, int] = {}  # records before the first damage, by the shard's number
        names = [shard.file for shard in manifest.shards]
        self._index = index
        self._columns = [(audio_dir, names, index.locations)]
        labels = [manifests.label_file(name) for name in names]
        self._columns += [(folder, labels, locations) for folder, locations in label_sets]
        self._skip_damaged = skip_damaged

    def read(self, numbers: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """Records by their numbers in the index.

        Args:
          numbers: (B,) int64, in any order.

        Returns:
          For the audio and for each label set the serialised records, (B,) object of bytes; and
          (B,) int64, the shard in which another record had to stand in for the row's, or -1.

        Raises:
          InputError: a record is damaged and none may stand in for it, or none before it is sound.
        """
        columns = [np.empty(len(numbers), object) for _ in self._columns]
        stood_in = np.full(len(numbers), -1, np.int64)
        with contextlib.ExitStack() as opened:
            files = _Files(opened)
            for row, number in enumerate(numbers.tolist()):
                try:
                    found = self._record(files, number)
                except _Damage as damage:
                    stood_in[row] = self._shard(number)
                    found = self._record(files, self._stand_in(files, number, damage))
                for column, content in zip(columns, found, strict=True):
                    column[row] = content
        return columns, stood_in

    def refuse(self, numbers: np.ndarray) -> None:
        """Finds what is wrong with records whose batch could not be decoded.

        Raises:
          InputError: names the file and the record.
        """
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

    def _stand_in(self, files: "_Files", number: int, damage: "_Damage") -> int:
        """A record for a damaged one: of its shard, from before its first damage."""
        shard = self._shard(number)
        first = self._index.shard(shard).start
        if shard not in self.damaged:
            sound, message = number, str(damage)
            for earlier in range(first, number):
                try:
                    self._record(files, earlier)
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

    def _record(self, files: "_Files", number: int) -> list[bytes]:
        """The columns of one record, without their framing."""
        found = []
        for column, (folder, names, locations) in enumerate(self._columns):
            shard, offset, length = (int(value) for value in locations.locate(number))
            content = _read(files.open(folder / names[shard]), offset, length)
            if content is None:
                raise _Damage(f"{self._name(column, number)}: cut off or damaged; {records.REMEDY}")
            found.append(content)
        return found

    def _shard(self, number: int) -> int:
        return int(self._index.locations.locate(number)[0])

    def _name(self, column: int, number: int) -> str:
        folder, names, _ = self._columns[column]
        shard = self._shard(number)
        return f"{folder / names[shard]}, record {number - self._index.shard(shard).start}"


class _Damage(Exception):
    """A record is not what was written."""


class _Files:
    """Files that are open while a batch is read: its rows are from few."""

    def __init__(self, opened: contextlib.ExitStack) -> None:
        self._opened = opened
        self._descriptors: dict[pathlib.Path, int] = {}

    def open(self, path: pathlib.Path) -> int:
        if path not in self._descriptors:
            try:
                descriptor = os.open(path, os.O_RDONLY)
            except OSError as error:
                reason = f"cannot be read ({error.strerror})"
                raise _Damage(f"{path}: {reason}; {records.REMEDY}") from None
            self._opened.callback(os.close, descriptor)
            self._descriptors[path] = descriptor
        return self._descriptors[path]


def _read(descriptor: int, offset: int, length: int) -> bytes | None:
    """A record without its framing; None if it is not what its framing says."""
    size = length - records.FRAMING_BYTES
    header = os.pread(descriptor, records.HEADER_BYTES, offset)
    if header[:8] != size.to_bytes(8, "little") or _masked_crc(header[:8]) != header[8:]:
        return None
    content = os.pread(descriptor, size, offset + records.HEADER_BYTES)
    footer = os.pread(descriptor, records.FOOTER_BYTES, offset + records.HEADER_BYTES + size)
    return content if _masked_crc(content) == footer else None


def _masked_crc(content: bytes) -> bytes:
    """TFRecord's checksum: CRC-32C, rotated and shifted so that it is none of itself."""
    crc = google_crc32c.value(content)
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    return masked.to_bytes(4, "little")
