"""Tables of transcripts beside audio files, in the five forms that corpora have them."""

import collections
import csv
import dataclasses
import functools
import io
import json
import pathlib
import re
import unicodedata
from collections.abc import Iterator

from hubert_jax.corpus.sources import splits
from hubert_jax.corpus.sources.utterances import (
    Row,
    SourceUtterance,
    composed,
    normalised,
    read_lines,
    read_text,
)
from hubert_jax.errors import InputError, printable

CHAPTER_SUFFIX = ".trans.txt"
TABLE = "transcripts.tsv"
METADATA = ("metadata.csv", "metadata.jsonl")
_FILE_COLUMNS = ("file", "utterance", "id")  # the first one of transcripts.tsv
# The names under which Hugging Face's corpora have them, the first one that is there.
_TEXT_COLUMNS = ("transcription", "text", "sentence", "transcript", "normalized_text")
_SPEAKER_COLUMNS = ("speaker_id", "speaker", "client_id")
COLUMNS = ("id", *_TEXT_COLUMNS, *_SPEAKER_COLUMNS)


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Transcript:
    """What a table says about one file; `text` is None where it has no such column."""

    text: str | None
    speaker: str
    split: str = ""  # as `splits.split_of_row`


_Rows = Iterator[tuple[int, str, Transcript]]  # line, name, what is said about it


@dataclasses.dataclass(frozen=True)
class Table:
    """One file of transcripts; names are relative to its folder, with or without suffix."""

    path: pathlib.Path
    entries: dict[str, Transcript]
    deep: bool  # whether it speaks for folders below its own
    transcribes: bool  # whether it gives transcripts, and not only speakers
    chosen: bool = False  # whether it is only about the audio of a split

    def find(self, audio: pathlib.Path) -> Transcript | None:
        """The entry of an audio file below the table's folder."""
        relative = audio.relative_to(self.path.parent)
        for name in (relative.as_posix(), relative.with_suffix("").as_posix()):
            if (entry := self.entries.get(composed(name))) is not None:
                return entry
        return None

    def alike(self, audio: pathlib.Path) -> str:
        """A name that looks like that of an audio file, "" where none does."""
        return self._by_look.get(_look(audio.relative_to(self.path.parent).as_posix()), "")

    @functools.cached_property
    def _by_look(self) -> dict[str, str]:
        return {_look(name): name for name in self.entries}


def _look(name: str) -> str:
    """A name without suffix, case, spaces and what is invisible."""
    name = re.sub(r"\.[a-z]\w+$", "", unicodedata.normalize("NFKC", name).casefold())
    return "".join(c for c in name if unicodedata.category(c)[0] not in "CZ")


def read_table(path: pathlib.Path, split: str = "") -> Table:
    """Reads a table of any form, or a split's rows of one that has several.

    Raises InputError for a file named twice, a missing column, or several splits without `split`.
    """
    chapter = path.name.endswith(CHAPTER_SUFFIX)
    if chapter:
        rows = _chapter(path)
    elif path.name == TABLE:
        rows = _table(path)
    elif path.suffix == ".jsonl":
        rows = _jsonl(path)
    else:
        lines = read_lines(path)
        ljspeech = lines and "|" in lines[0][1] and "file_name" not in lines[0][1]
        rows = _ljspeech(path, lines) if ljspeech else _csv(path)
    entries: dict[str, Transcript] = {}
    for number, name, transcript in rows:
        name = composed(name)
        if name in entries:
            raise InputError(
                f"{path}, line {number}: {name} has a transcript already; expected one"
            )
        entries[name] = transcript
    has = collections.Counter(transcript.split for transcript in entries.values())
    if split and set(has) != {""}:
        entries = {name: said for name, said in entries.items() if said.split == split}
    else:
        splits.refuse_several(path, has.elements())
    transcribes = path.name not in METADATA or any(
        transcript.text is not None for transcript in entries.values()
    )
    chosen = bool(split) and set(has) != {""}
    return Table(path, entries, deep=not chapter, transcribes=transcribes, chosen=chosen)


def _chapter(path: pathlib.Path) -> _Rows:
    """LibriSpeech's SPEAKER-CHAPTER.trans.txt: lines `UTT-ID TRANSCRIPT`."""
    for number, line in read_lines(path):
        name, _, text = line.strip().partition(" ")
        yield number, name, Transcript(normalised(text), "")


def _table(path: pathlib.Path) -> _Rows:
    """transcripts.tsv: lines `FILE<TAB>TEXT`, or columns named in the first line."""
    columns = ["file", "text"]
    for number, line in read_lines(path):
        cells = line.split("\t")
        if number == 1 and "text" in cells and cells[0] in _FILE_COLUMNS:
            columns = cells
            if len({*columns}) < len(columns):
                twice = max(columns, key=columns.count)
                raise InputError(f"{path}, line 1: the column {twice!r} is there twice")
            continue
        row = dict(zip(columns, cells, strict=False))
        if "text" not in row or any(cells[len(columns) :]):
            raise InputError(
                f"{path}, line {number}: expected {'<TAB>'.join(columns).upper()}, found "
                f"{len(cells)} columns"
            )
        try:
            split = splits.split_of_row(row)
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error}") from None
        said = Transcript(normalised(row["text"]), row.get("speaker", "").strip(), split)
        yield number, pathlib.PurePosixPath(cells[0].strip()).as_posix(), said


def _ljspeech(path: pathlib.Path, lines: list[tuple[int, str]]) -> _Rows:
    """metadata.csv of one speaker: lines `ID|TEXT|TEXT WITHOUT NUMBERS` for `wavs/ID.wav`."""
    speaker = path.absolute().parent.name
    columns = len(lines[0][1].split("|"))
    for number, line in lines:
        cells = line.split("|")
        if not 2 <= columns <= 3 or len(cells) != columns:
            expected = {2: "ID|TEXT"}.get(columns, "ID|TEXT|TEXT WITHOUT NUMBERS")
            raise InputError(f"{path}, line {number}: expected {expected}, found {line[:40]!r}")
        yield number, f"wavs/{cells[0].strip()}", Transcript(normalised(cells[-1]), speaker)


def _csv(path: pathlib.Path) -> _Rows:
    """metadata.csv of a Hugging Face audio folder: a column `file_name`, others by name."""
    text = read_text(path)
    lines = text.split("\n")
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    begins = 1
    try:
        names = [name for name in reader.fieldnames or [] if name]  # spreadsheets add empty ones
        if len({*names}) < len(names):
            twice = max(names, key=list(names).count)
            raise InputError(f"{path}, line 1: the column {twice!r} is there twice; expected once")
        while True:
            # Cells may hold line breaks, and blank lines are left out.
            begins = reader.line_num + 1
            while begins < len(lines) and not lines[begins - 1].strip("\r"):
                begins += 1
            if (row := next(reader, None)) is None:
                return
            if any(more := row.pop(None, [])):
                raise InputError(
                    f"{path}, line {begins}: more cells than columns, {more[0]!r:.40} for one; put "
                    "quotation marks around a cell that has commas"
                )
            yield _metadata(path, begins, row)
    except csv.Error as error:
        raise InputError(
            f"{path}, line {begins}: not comma-separated values ({error}); expected quotation "
            "marks at both ends of a cell, and twice within it"
        ) from None


def _jsonl(path: pathlib.Path) -> _Rows:
    """metadata.jsonl of a Hugging Face audio folder: an object a line."""
    for number, line in read_lines(path):
        try:
            row = json.loads(line, object_pairs_hook=_object)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number}: expected an object, found {line[:40]!r}")
        yield _metadata(path, number, row)


def _object(pairs: list[tuple[str, object]]) -> dict:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{max(names, key=names.count)!r} is there twice")
    return row


def _metadata(path: pathlib.Path, number: int, row: dict) -> tuple[int, str, Transcript]:
    name = row.get("file_name")
    if not isinstance(name, str) or not name.strip():
        raise InputError(
            f"{path}, line {number}: expected the column file_name, found "
            f"{', '.join(str(column) for column in row)}; rename the file if it is not a Hugging "
            "Face audio folder's"
        )
    try:
        said = _of_columns(row)
    except InputError as error:
        raise InputError(f"{path}, line {number}: {error}") from None
    return number, pathlib.PurePosixPath(name.strip()).as_posix(), said


def _of_columns(row: dict) -> Transcript:
    """What a row says; raises InputError where a text is something else."""
    for columns in (_TEXT_COLUMNS, _SPEAKER_COLUMNS):
        column = next((name for name in columns if name in row), "")
        if isinstance(value := row.get(column), (list, dict, bool)):
            raise InputError(f"{column} is {str(value)[:40]}; expected a text")
    texts = [row[name] for name in _TEXT_COLUMNS if name in row]
    speakers = [row[name] for name in _SPEAKER_COLUMNS if name in row]
    text = None if not texts else normalised("" if texts[0] is None else str(texts[0]))
    speaker = "" if not speakers or speakers[0] is None else str(speakers[0]).strip()
    return Transcript(text, speaker, splits.split_of_row(row))


def utterance_of(
    name: str, folder: pathlib.Path, file: str, columns: dict, row: Row
) -> SourceUtterance:
    """An utterance whose transcript and speaker are in a row of named columns."""
    try:
        said = _of_columns(columns)
    except InputError as error:
        raise InputError(f"{folder / file}, {name}: {error}") from None
    defect = SourceUtterance.defect_of_names(name, said.speaker)
    if not defect and said.text == "":
        defect = "empty transcript; expected words"
    return SourceUtterance(
        printable(name), folder, file, printable(said.speaker), said.text, defect, row
    )
