"""Common Voice: a table of each split, such as train.tsv, of recordings in the folder clips."""

import pathlib

from hubert_jax.corpus.sources import splits
from hubert_jax.corpus.sources.utterances import SourceUtterance, identify, normalised, read_lines
from hubert_jax.errors import InputError, printable

_COLUMNS = ("path", "sentence")  # that every table has, beside client_id and others


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
    """Those of splits, by their names, among tables that lie beside a folder of clips."""
    return [
        path
        for path in paths
        if path.suffix == ".tsv"
        and splits.split_of(path.stem)
        and (path.parent / "clips").is_dir()
        and _is_readable_table(path)
    ]


def discover(table: pathlib.Path) -> list[SourceUtterance]:
    """The utterances of a table. Raises InputError, which names the line, for one cut short."""
    (_, first), *lines = read_lines(table)
    columns = first.split("\t")
    if any(columns.count(name) > 1 for name in _COLUMNS):
        raise InputError(f"{table}, line 1: expected the columns path and sentence once")
    if not lines:
        raise InputError(f"{table}: expected a recording in each line, found none after line 1")
    clips = table.parent / "clips"
    utterances = []
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
        name, _, defect = identify(clips, relative)
        if not defect and not (clips / file).is_file():
            defect = f"no such file in {clips}"
        text = normalised(row["sentence"])
        if not defect and not text:
            defect = f"empty transcript in {table}, line {number}; expected words"
        speaker = printable(row.get("client_id", "").strip())
        utterances.append(SourceUtterance(name, clips, file, speaker, text, defect))
    return utterances
