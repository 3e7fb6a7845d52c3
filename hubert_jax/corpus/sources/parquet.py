"""Parquet tables as Hugging Face's data sets have them: audio files' bytes in a struct column.

Needs pyarrow (`pip install hubert_jax[parquet]`). Without an `id` an utterance is FILE:ROW.
"""

import contextlib
import dataclasses
import os
import pathlib
import threading
from collections.abc import Iterator
from typing import Any

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
        value = _cache.values[self.row].as_py()
        if not value or not value.get("bytes"):
            raise InputError(
                f"{self.path}: no audio in row {self.row} of row group {self.group}; "
                "expected a file's bytes, embed the files in the table"
            )
        return value["bytes"]


def discover(paths: list[pathlib.Path]) -> list[SourceUtterance]:
    """The utterances of one or more tables that make up a corpus.

    Raises:
      InputError: pyarrow is missing, or a file is damaged, not Parquet or has no audio column.
    """
    top = pathlib.Path(os.path.commonpath([path.parent for path in paths]))
    return [utterance for path in paths for utterance in _rows(path, top)]


def _rows(path: pathlib.Path, top: pathlib.Path) -> list[SourceUtterance]:
    table = _open(path)
    column = _audio_column(path, table.schema_arrow)
    names = [name for name in COLUMNS if name in table.schema_arrow.names]
    stem = path.relative_to(top).with_suffix("").as_posix()
    folder, file = path.parent, path.name
    utterances: list[SourceUtterance] = []
    for group in range(table.num_row_groups):
        rows = table.metadata.row_group(group).num_rows
        with _guarded(path):
            columns = table.read_row_group(group, names).to_pylist()
        for number, values in enumerate(columns or [{}] * rows):
            name = values.get("id")
            name = f"{stem}:{len(utterances)}" if name in (None, "") else str(name)
            row = ParquetRow(path, column, group, number)
            utterances.append(utterance_of(name, folder, file, values, row))
    return utterances


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
        return pyarrow.parquet.ParquetFile(path)


@contextlib.contextmanager
def _guarded(path: pathlib.Path) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (OSError, pyarrow.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: damaged or not Parquet ({reason[:200]})") from None
