"""Parts: what one worker made of some of a split's files, before shards are put together.

A part is a file of records in the order of the sources, an index that says where each record lies,
and notes on what was refused. Shards are then made by copying records, so that they depend on the
utterances alone: not on which worker had which files, nor on how often it was interrupted.
"""

import dataclasses
import pathlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from hubert_jax import files
from hubert_jax.data import waveform
from hubert_jax.data.records import RecordWriter, Utterance, serialize
from hubert_jax.errors import InputError

# One row a record: its place in the split's order (two numbers, the first one counts most), the
# number of its corpus, its samples, and the bytes of the part where it lies.
INDEX = np.dtype(
    [
        ("order", "<u8", (2,)),
        ("group", "<i4"),
        ("samples", "<u4"),
        ("offset", "<i8"),
        ("length", "<u4"),
    ]
)


@dataclasses.dataclass(frozen=True, slots=True)
class Notes:
    """What is known of a part beside its records; `transcribed` is a count.

    `rejected` and `flagged` are (file or utterance, reason) pairs.
    """

    rejected: tuple[tuple[str, str], ...] = ()
    flagged: tuple[tuple[str, str], ...] = ()
    speakers: tuple[str, ...] = ()
    transcribed: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """A complete part: its records' file, and its notes."""

    path: pathlib.Path
    notes: Notes

    def read_index(self) -> np.ndarray:
        """INDEX, one row a record; not kept, since there may be ten million in all parts."""
        return np.load(self.path.with_suffix(".npy"))


@dataclasses.dataclass(frozen=True)
class Item:
    """Utterances that belong together: those of one file, with their order and their corpus.

    Iterating `utterances` may raise InputError, `NAME: REASON`; then none of them counts.
    """

    name: str
    utterances: Iterable[tuple[tuple[int, int], Utterance]]
    group: int = 0


def write(path: pathlib.Path, items: Iterable[Item], encoded: str) -> Part:
    """Writes a part; it is complete when its notes are there, which come last.

    Args:
      path: of the records, `.tfrecord`; index and notes lie beside it.
      items: what to write; those that raise InputError are noted as rejected.
      encoded: one of `encoding.ENCODINGS`.

    Raises:
      InputError: a file cannot be written.
    """
    rows: list[tuple] = []
    taken = NoteTaker()
    with RecordWriter(path) as writer:
        for item in items:
            try:
                written = list(_written(writer, item, encoded))
            except _Unusable as error:
                # A damaged end makes void what came before: those records stay unused.
                taken.reject(item.name, str(error))
            else:
                taken.keep(described for described, _ in written)
                rows += [row for _, row in written]
    index, notes = np.array(rows, INDEX), taken.notes()
    try:
        np.save(path.with_suffix(".npy"), index)
        files.write_json(path.with_suffix(".json"), dataclasses.asdict(notes))
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None
    return Part(path, notes)


class Described(NamedTuple):
    """What the notes need of an utterance."""

    id: str
    speaker: str
    transcribed: bool
    flag: str


def describe(utterance: Utterance) -> Described:
    """What the notes need of an utterance, without its audio."""
    return Described(
        utterance.id, utterance.speaker, bool(utterance.text), waveform.flag(utterance.audio)
    )


class NoteTaker:
    """Collects notes, file by file."""

    def __init__(self) -> None:
        self._rejected: list[tuple[str, str]] = []
        self._kept: list[Described] = []

    def reject(self, name: str, message: str) -> None:
        """Notes a file that cannot be used; the message is `NAME: REASON`."""
        reason = message.removeprefix(f"{name}: ")
        self._rejected.append((_one_line(name), _one_line(reason)))

    def keep(self, utterances: Iterable[Described]) -> None:
        """Notes the utterances of a file."""
        self._kept += utterances

    def notes(self) -> Notes:
        """All that was noted."""
        return Notes(
            rejected=tuple(self._rejected),
            flagged=tuple((_one_line(row.id), row.flag) for row in self._kept if row.flag),
            speakers=tuple(sorted({row.speaker for row in self._kept if row.speaker})),
            transcribed=sum(row.transcribed for row in self._kept),
        )


class _Unusable(Exception):
    """A file cannot be read, as opposed to a part that cannot be written."""


def _written(writer: RecordWriter, item: Item, encoded: str) -> Iterator[tuple[Described, tuple]]:
    """Writes one file's utterances; gives what is noted and the index's row of each."""
    utterances = iter(item.utterances)
    while True:
        try:
            order, utterance = next(utterances)
            record = serialize(utterance, encoded)
        except StopIteration:
            return
        except InputError as error:
            raise _Unusable(str(error)) from None
        offset = writer.bytes
        length = writer.write(record)
        yield describe(utterance), (order, item.group, len(utterance.audio), offset, length)


def _one_line(text: str) -> str:
    """Text as a cell of a table: without tabs, line breaks and what UTF-8 cannot hold."""
    return " ".join(text.encode("utf-8", "backslashreplace").decode().split())


def read(path: pathlib.Path) -> Part | None:
    """A part that was written completely, None otherwise."""
    # The notes are written last, but nothing says that they are removed first.
    if not all(path.with_suffix(suffix).is_file() for suffix in (".json", ".npy", ".tfrecord")):
        return None
    return Part(path, read_notes(path.with_suffix(".json")))


def read_notes(path: pathlib.Path) -> Notes:
    """Notes as `files.write_json` writes them."""
    values = files.read_json(path, "notes of a preparation", "hubert_jax.prepare")
    pairs = {name: tuple(map(tuple, values[name])) for name in ("rejected", "flagged")}
    return Notes(**pairs, speakers=tuple(values["speakers"]), transcribed=values["transcribed"])
