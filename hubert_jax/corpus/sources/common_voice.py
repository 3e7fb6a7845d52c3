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


def tables(paths: list[pathlib.Path]) -> list[pathlib.Path]:
    """Those of splits, by their names, among tables that lie beside a folder of clips."""
    return [
        path
        for path in paths
        if path.suffix == ".tsv"
        and splits.split_of(path.stem)
        and (path.parent / "clips").is_dir()
        and is_table(path)
    ]


def discover(table: pathlib.Path) -> list[SourceUtterance]:
    """The utterances of a table. Raises InputError, which names the line, for one cut short."""
    (_, first), *lines = read_lines(table)
    columns = first.split("\t")
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
        name, _, defect = identify(clips, pathlib.PurePosixPath(file))
        if not defect and not (clips / file).is_file():
            defect = f"no such file in {clips}"
        text = normalised(row["sentence"])
        if not defect and not text:
            defect = f"empty transcript in {table}, line {number}; expected words"
        speaker = printable(row.get("client_id", "").strip())
        utterances.append(SourceUtterance(name, clips, file, speaker, text, defect))
    return utterances
