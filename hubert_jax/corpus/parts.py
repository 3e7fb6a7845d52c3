"""Parts: what one worker made of some of a split's files; shards are put together from them."""

import dataclasses
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from hubert_jax import files
from hubert_jax.data import waveform
from hubert_jax.data.records import RecordWriter, Utterance, serialize
from hubert_jax.errors import InputError

INDEX = np.dtype(
    [
        ("order", "<u8", (2,)),  # the record's place in its split; the first number counts most
        ("group", "<i4"),  # number of its corpus
        ("samples", "<u4"),
        ("offset", "<i8"),  # bytes in the part's file
        ("length", "<u4"),
    ]
)


@dataclasses.dataclass(frozen=True, slots=True)
class Notes:
    """What is known of utterances beside their records.

    `rejected` and `flagged` are (file or utterance, reason) pairs; two fields are counts.
    """

    rejected: tuple[tuple[str, str], ...] = ()
    flagged: tuple[tuple[str, str], ...] = ()
    speakers: tuple[str, ...] = ()
    transcribed: int = 0
    utterances: int = 0

    @classmethod
    def of(cls, utterance: Utterance) -> "Notes":
        """Of an utterance that is kept."""
        flag = waveform.flag(utterance.audio)
        return cls(
            flagged=((_one_line(utterance.id), flag),) if flag else (),
            speakers=(utterance.speaker,) if utterance.speaker else (),
            transcribed=int(bool(utterance.text)),
            utterances=1,
        )

    @classmethod
    def of_refused(cls, name: str, message: str) -> "Notes":
        """Of a file that cannot be used; the message is `NAME: REASON`."""
        reason = message.removeprefix(f"{name}: ")
        return cls(rejected=((_one_line(name), _one_line(reason)),))

    @classmethod
    def of_odd(cls, name: str, remarks: Sequence[str]) -> "Notes":
        """Of a file that is kept, and what is odd about it."""
        return cls(flagged=((_one_line(name), "; ".join(remarks)),) if remarks else ())

    @classmethod
    def joined(cls, notes: Sequence["Notes"]) -> "Notes":
        """All of them in order, each speaker once."""
        return cls(
            rejected=tuple(row for each in notes for row in each.rejected),
            flagged=tuple(row for each in notes for row in each.flagged),
            speakers=tuple(sorted({speaker for each in notes for speaker in each.speakers})),
            transcribed=sum(each.transcribed for each in notes),
            utterances=sum(each.utterances for each in notes),
        )


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
    """One file's (order, utterance) pairs, the number of its corpus, what is odd about the file.

    Iterating `utterances` fills `remarks`, and may raise InputError, `NAME: REASON`; then none of
    them counts.
    """

    name: str
    utterances: Iterable[tuple[tuple[int, int], Utterance]]
    group: int = 0
    remarks: Sequence[str] = ()


def write(path: pathlib.Path, items: Iterable[Item], encoded: str) -> Part:
    """Writes a part: records to `path` (.tfrecord), their index beside it, and notes last.

    Items that raise InputError are noted as rejected. `encoded` is one of `encoding.ENCODINGS`.
    Raises InputError if a file cannot be written.
    """
    with RecordWriter(path) as writer:
        written = [_write_item(writer, item, encoded) for item in items]
    index = np.array([row for rows, _ in written for row in rows], INDEX)
    notes = Notes.joined([noted for _, noted in written])
    try:
        np.save(path.with_suffix(".npy"), index)
        files.write_json(path.with_suffix(".json"), dataclasses.asdict(notes))
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None
    return Part(path, notes)


def _write_item(writer: RecordWriter, item: Item, encoded: str) -> tuple[list[tuple], Notes]:
    """Writes one file's utterances; returns their rows of the index, and notes."""
    rows: list[tuple] = []
    notes: list[Notes] = []
    utterances = iter(item.utterances)
    while True:
        try:
            order, utterance = next(utterances)
            record = serialize(utterance, encoded)
        except StopIteration:
            return rows, Notes.joined([*notes, Notes.of_odd(item.name, item.remarks)])
        except InputError as error:
            # A damaged end makes void what came before: those records stay unused.
            return [], Notes.of_refused(item.name, str(error))
        offset = writer.bytes
        length = writer.write(record)
        rows.append((order, item.group, len(utterance.audio), offset, length))
        notes.append(Notes.of(utterance))


def _one_line(text: str) -> str:
    """Text as a cell of a table: without tabs, line breaks and what UTF-8 cannot hold."""
    return " ".join(text.encode("utf-8", "backslashreplace").decode().split())


def read(path: pathlib.Path) -> Part | None:
    """A part that was written completely and has all its files, None otherwise."""
    if not all(path.with_suffix(suffix).is_file() for suffix in (".json", ".npy", ".tfrecord")):
        return None
    return Part(path, read_notes(path.with_suffix(".json")))


def read_notes(path: pathlib.Path) -> Notes:
    """Notes as `files.write_json` writes them."""
    values = files.read_json(path, "notes of a preparation", "hubert_jax.prepare")
    pairs = {name: tuple(map(tuple, values[name])) for name in ("rejected", "flagged")}
    return Notes(**values | pairs | {"speakers": tuple(values["speakers"])})
