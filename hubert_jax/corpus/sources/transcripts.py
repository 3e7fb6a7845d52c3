"""Tables of transcripts that lie beside audio files, in the five forms that corpora have them.

    SPEAKER-CHAPTER.trans.txt   LibriSpeech: lines `UTT-ID TRANSCRIPT`, for its own folder
    transcripts.tsv             lines `FILE<TAB>TEXT`, or columns named in the first line
    metadata.csv                Hugging Face audio folder: a column `file_name`, others by name
    metadata.jsonl              the same, an object a line
    metadata.csv                LJSpeech: lines `ID|TEXT|NORMALISED TEXT` for `wavs/ID.wav`, all
                                by one speaker, called after the folder

Names in a table are relative to its folder, with or without suffix.
"""

import csv
import dataclasses
import io
import json
import pathlib
from collections.abc import Iterator

from hubert_jax.corpus.sources.utterances import composed, normalised, read_lines, read_text
from hubert_jax.errors import InputError

CHAPTER_SUFFIX = ".trans.txt"
TABLE = "transcripts.tsv"
METADATA = ("metadata.csv", "metadata.jsonl")
# First column of transcripts.tsv, where its first line names the columns.
_FILE_COLUMNS = ("file", "utterance", "id")
# The names under which Hugging Face's corpora have them, the first one that is there.
TEXT_COLUMNS = ("transcription", "text", "sentence", "transcript", "normalized_text")
SPEAKER_COLUMNS = ("speaker_id", "speaker", "client_id")


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Transcript:
    """What a table says about one file; `text` is None where it has no such column."""

    text: str | None
    speaker: str


@dataclasses.dataclass(frozen=True)
class Table:
    """One file of transcripts.

    Attributes:
      path: the file.
      entries: by name, relative to the file's folder.
      deep: whether it speaks for folders below its own.
      transcribes: whether it gives transcripts, and not only speakers.
    """

    path: pathlib.Path
    entries: dict[str, Transcript]
    deep: bool = True
    transcribes: bool = True

    def find(self, audio: pathlib.Path) -> Transcript | None:
        """The entry of an audio file below the table's folder."""
        relative = audio.relative_to(self.path.parent)
        for name in (relative.as_posix(), relative.with_suffix("").as_posix()):
            if (entry := self.entries.get(composed(name))) is not None:
                return entry
        return None


def read_table(path: pathlib.Path) -> Table:
    """Reads a file of any of the five forms, told apart by name and first line.

    Raises:
      InputError: not UTF-8, a line without a text column, a file named twice, a table without
        the columns it needs; names the line.
    """
    if path.name.endswith(CHAPTER_SUFFIX):
        return Table(path, _collected(path, _chapter(path)), deep=False)
    if path.name == TABLE:
        return Table(path, _collected(path, _table(path)))
    if path.suffix == ".csv":
        lines = read_lines(path)
        if lines and "file_name" not in lines[0][1] and "|" in lines[0][1]:
            return Table(path, _collected(path, _ljspeech(path, lines)))
    entries = _collected(path, _csv(path) if path.suffix == ".csv" else _jsonl(path))
    return Table(path, entries, transcribes=any(e.text is not None for e in entries.values()))


Entries = Iterator[tuple[int, str, Transcript]]  # line, name, what is said about it


def _collected(path: pathlib.Path, entries: Entries) -> dict[str, Transcript]:
    transcripts: dict[str, Transcript] = {}
    for number, name, transcript in entries:
        name = composed(name)
        if name in transcripts:
            raise InputError(
                f"{path}, line {number}: {name} has a transcript already; expected one"
            )
        transcripts[name] = transcript
    return transcripts


def _chapter(path: pathlib.Path) -> Entries:
    for number, line in read_lines(path):
        name, _, text = line.strip().partition(" ")
        yield number, name, Transcript(normalised(text), "")


def _table(path: pathlib.Path) -> Entries:
    columns = {"file": 0, "text": 1}
    for number, line in read_lines(path):
        cells = line.split("\t")
        if number == 1 and "text" in cells and cells[0] in _FILE_COLUMNS:
            columns = {"file": 0} | {name: i for i, name in enumerate(cells) if i}
            continue
        if len(cells) <= columns["text"]:
            raise InputError(
                f"{path}, line {number}: expected FILE<TAB>TEXT, found {len(cells)} columns"
            )
        has_speaker = columns.get("speaker", len(cells)) < len(cells)
        speaker = cells[columns["speaker"]].strip() if has_speaker else ""
        name = pathlib.PurePosixPath(cells[0].strip()).as_posix()
        yield number, name, Transcript(normalised(cells[columns["text"]]), speaker)


def _ljspeech(path: pathlib.Path, lines: list[tuple[int, str]]) -> Entries:
    speaker = path.absolute().parent.name
    for number, line in lines:
        cells = line.split("|")
        if len(cells) < 2:
            raise InputError(f"{path}, line {number}: expected ID|TEXT, found {line[:40]!r}")
        # The last column has numbers and abbreviations written out.
        yield number, f"wavs/{cells[0].strip()}", Transcript(normalised(cells[-1]), speaker)


def _csv(path: pathlib.Path) -> Entries:
    # A cell may hold line breaks, so the module counts the lines itself.
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        for row in reader:
            yield _metadata(path, reader.line_num, row)
    except csv.Error as error:
        raise InputError(
            f"{path}, line {reader.line_num}: not comma-separated values ({error})"
        ) from None


def _jsonl(path: pathlib.Path) -> Entries:
    for number, line in read_lines(path):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number}: expected an object, found {line[:40]!r}")
        yield _metadata(path, number, row)


def _metadata(path: pathlib.Path, number: int, row: dict) -> tuple[int, str, Transcript]:
    name = row.get("file_name")
    if not isinstance(name, str) or not name.strip():
        raise InputError(
            f"{path}, line {number}: expected the column file_name, found "
            f"{', '.join(str(column) for column in row)}; rename the file if it is not a Hugging "
            "Face audio folder's"
        )
    return number, pathlib.PurePosixPath(name.strip()).as_posix(), of_columns(row)


def of_columns(row: dict) -> Transcript:
    """Transcript and speaker of a row of named columns."""
    texts = [row[name] for name in TEXT_COLUMNS if name in row]
    speakers = [row[name] for name in SPEAKER_COLUMNS if name in row]
    text = None if not texts else normalised("" if texts[0] is None else str(texts[0]))
    speaker = "" if not speakers or speakers[0] is None else str(speakers[0]).strip()
    return Transcript(text, speaker)
