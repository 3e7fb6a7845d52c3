"""Common Voice: a table of each split, such as train.tsv, of recordings in the folder clips."""

import pathlib

from hubert_jax import storage
from hubert_jax.corpus.sources import splits
from hubert_jax.corpus.sources.utterances import SourceUtterance, identify, normalised, read_lines
from hubert_jax.errors import InputError, printable

_CLIPS = "clips"  # the folder of the recordings, beside the tables
_COLUMNS = ("path", "sentence")  # that every table has, beside client_id and others
_NAMES = ("other", "invalidated", "validated")  # of tables that are no split's


def is_table(path: pathlib.Path) -> bool:
    """Whether the first line of a .tsv names its columns; raises InputError for no text."""
    _, first = next(iter(read_lines(path)), (1, ""))
    return {*_COLUMNS} <= {*first.split("\t")}


def _is_readable_table(path: pathlib.Path) -> bool:
    try:
        return is_table(path)
    except InputError:  # no text; whoever takes it by name is told
        return False


def tables(paths: list[pathlib.Path]) -> list[pathlib.Path]:
    """Those of Common Voice, by their names, among tables that lie beside a folder of clips."""
    return [
        path
        for path in paths
        if path.suffix == ".tsv"
        and (path.stem in _NAMES or splits.split_of(path.stem))
        and (path.parent / _CLIPS).is_dir()
        and _is_readable_table(path)
    ]


def discover(table: pathlib.Path) -> list[SourceUtterance]:
    """The utterances of a table.

    Raises InputError, which names the line, for one cut short and a clip that is there twice.
    """
    (_, first), *lines = read_lines(table)
    columns = first.split("\t")
    if any(columns.count(name) > 1 for name in _COLUMNS):
        raise InputError(f"{table}, line 1: expected the columns path and sentence once")
    if not lines:
        raise InputError(f"{table}: expected a recording in each line, found none after line 1")
    clips = table.parent / _CLIPS
    utterances = []
    listed: dict[str, int] = {}  # in which line
    for number, line in lines:
        cells = line.split("\t")
        if len(cells) < len(columns) or any(cells[len(columns) :]):
            raise InputError(
                f"{table}, line {number}: expected {len(columns)} columns, found {len(cells)}"
            )
        row = dict(zip(columns, cells, strict=False))
        file = row["path"].strip()
        relative = pathlib.PurePosixPath(file)
        if not relative.name or relative.is_absolute() or ".." in relative.parts:
            raise InputError(
                f"{table}, line {number}: expected a path below {clips}, found {file[:80]!r}"
            )
        below = relative.relative_to(_CLIPS) if relative.parts[0] == _CLIPS else relative
        # As other tools write them: with the folder, or without the suffix.
        names = (file, f"{below}", f"{below}.mp3")
        found = next((each for each in names if storage.is_file(clips / each)), "")
        file = found or file
        name, _, defect = identify(clips, pathlib.PurePosixPath(file))
        if listed.setdefault(name, number) != number:
            raise InputError(
                f"{table}, line {number}: {printable(file)} is in line {listed[name]} already; "
                "expected every clip once"
            )
        if not defect and not found:
            defect = f"no such file in {clips}"
        text = normalised(row["sentence"])
        if not defect and not text:
            defect = f"empty transcript in {table}, line {number}; expected words"
        speaker = printable(row.get("client_id", "").strip())
        utterances.append(SourceUtterance(name, clips, file, speaker, text, defect))
    return utterances
