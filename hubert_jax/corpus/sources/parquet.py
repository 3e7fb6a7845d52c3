"""Parquet tables as Hugging Face's data sets have them: audio files' bytes in a struct column.

Needs pyarrow (`pip install hubert_jax[parquet]`). Without an `id` an utterance is FILE:ROW.
"""

import contextlib
import dataclasses
import json
import pathlib
import re
import threading
from collections.abc import Iterator
from typing import Any

from hubert_jax import files
from hubert_jax.corpus.sources import splits
from hubert_jax.corpus.sources.transcripts import COLUMNS, utterance_of
from hubert_jax.corpus.sources.utterances import SourceUtterance
from hubert_jax.errors import InputError

_cache = threading.local()  # the row group that this thread has read last


@dataclasses.dataclass(frozen=True, slots=True)
class ParquetRow:
    """The audio of one row; rows of a group are best read one after the other."""

    path: pathlib.Path
    column: str
    group: int
    row: int

    def load(self) -> bytes:
        """The audio file's content; raises InputError if it is damaged or missing."""
        key = (self.path, self.column, self.group)
        if getattr(_cache, "key", None) != key:
            _cache.key = None
            table = _open(self.path)
            with _guarded(self.path):
                _cache.values = table.read_row_group(self.group, [self.column]).column(0)
            _cache.key = key
        with _guarded(self.path):
            value = _cache.values[self.row].as_py()
        if not value or not value.get("bytes"):
            raise InputError(
                f"{self.path}: no audio in row {self.row} of row group {self.group}; "
                "expected a file's bytes, embed the files in the table"
            )
        return value["bytes"]


def discover(
    paths: list[pathlib.Path], folder: pathlib.Path, chosen: str = ""
) -> list[SourceUtterance]:
    """The utterances of the tables of a folder, or of those and the rows of a `chosen` split.

    Raises:
      InputError: pyarrow is missing, a file is damaged, not Parquet or has no audio column, or
        there are several splits and none is chosen.
    """
    if chosen:
        paths = _of_split(folder, paths, chosen)
    else:
        names = (str(path.relative_to(folder)) for path in paths)
        splits.refuse_several(folder, map(splits.split_of, names))
    found: list[tuple[str, SourceUtterance]] = []
    if paths:
        shared = (each for each in paths[0].parents if all(each in p.parents for p in paths))
        top = next(shared)
        if splits.split_of(top.name):  # else rows of train/0.parquet and test/0.parquet share ids
            top = top.parent
        for path in paths:
            rows = _rows(path, top)
            named = splits.split_of(str(path.relative_to(folder)))
            said = {split for split, _ in rows}
            if named and (splits.OTHER in said or not any(map(splits.split_of, said))):
                rows = [(named, utterance) for _, utterance in rows]
            found += rows
    if not chosen:
        splits.refuse_several(
            paths[0] if len(paths) == 1 else folder, (split for split, _ in found)
        )
    kind = splits.split_of(chosen)
    utterances = [utterance for split, utterance in found if not chosen or split == kind]
    if chosen and not utterances:
        raise InputError(f"{folder / chosen}: no tables or rows of this split in {folder}")
    return utterances


def _of_split(folder: pathlib.Path, tables: list[pathlib.Path], chosen: str) -> list[pathlib.Path]:
    """The tables below a folder whose file or folders are called `chosen`, or as that split is.

    Without names of splits all of them are returned: their rows may have some.
    """
    names = {table: table.relative_to(folder).with_suffix("") for table in tables}
    if not any(splits.split_of(str(name)) for name in names.values()):
        return tables
    named = [
        table
        for table, name in names.items()
        if chosen in (*name.parts, re.sub(r"-\d+-of-\d+$", "", name.name))
    ]
    kind = splits.split_of(chosen)
    return named or [table for table, name in names.items() if splits.split_of(str(name)) == kind]


def _rows(path: pathlib.Path, top: pathlib.Path) -> list[tuple[str, SourceUtterance]]:
    """Utterances, and the splits that a column names."""
    table = _open(path)
    column = _audio_column(path, table.schema_arrow)
    there = table.schema_arrow.names
    of_splits = [name for name in there if name.strip().casefold() in splits.COLUMNS]
    labels = _labels(table.schema_arrow, of_splits)
    names = [name for name in COLUMNS if name in there] + of_splits
    stem = path.relative_to(top).with_suffix("").as_posix()
    folder, file = path.parent, path.name
    utterances: list[tuple[str, SourceUtterance]] = []
    for group in range(table.num_row_groups):
        rows = table.metadata.row_group(group).num_rows
        with _guarded(path):
            columns = table.read_row_group(group, names).to_pylist()
        for number, values in enumerate(columns or [{}] * rows):
            name = values.get("id")
            name = f"{stem}:{len(utterances)}" if name in (None, "") else str(name)
            row = ParquetRow(path, column, group, number)
            for said, kinds in labels.items():
                values[said] = kinds.get(str(values[said]), values[said])
            utterance = utterance_of(name, folder, file, values, row)
            utterances.append((splits.split_of_row(values), utterance))
    return utterances


def _labels(schema: Any, columns: list[str]) -> dict[str, dict[str, str]]:
    """What the numbers of columns stand for, where a data set of Hugging Face says so."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            name: {str(number): str(kind) for number, kind in enumerate(features[name]["names"])}
            for name in columns
            if "names" in features.get(name, {})
        }
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return {}


def _audio_column(path: pathlib.Path, schema: Any) -> str:
    import pyarrow

    for field in schema:
        if pyarrow.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
            return field.name
    raise InputError(
        f"{path}: expected a column of audio, a struct with a field `bytes`, found the columns "
        f"{', '.join(schema.names)}"
    )


def _open(path: pathlib.Path) -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise InputError(
            f"{path}: reading Parquet needs pyarrow; install hubert_jax[parquet]"
        ) from None
    with _guarded(path):
        with path.open("rb") as file:
            found = files.pretence(file.read(512))
        if found:
            raise InputError(f"{path}: {found}")
        return pyarrow.parquet.ParquetFile(path)


@contextlib.contextmanager
def _guarded(path: pathlib.Path) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (OSError, pyarrow.ArrowException, UnicodeDecodeError, IndexError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: damaged or not Parquet ({reason[:200]})") from None
