"""The splits after which tables, rows and folders are called, so that none are mixed."""

import collections
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from hubert_jax.corpus.sources.utterances import SourceUtterance
from hubert_jax.errors import InputError, printable

_KINDS = {  # the last that is there is named as an example
    "test": ("test", "testing", "tst", "eval", "evaluation"),
    "validation": ("validation", "valid", "val", "dev"),
    "train": ("train", "training", "trn"),
}
_NAMES = {name: kind for kind, names in _KINDS.items() for name in names}
_LETTER = "[a-z\u00aa-\u058f]"  # of alphabets with spaces between words and two cases
_NAME = re.compile(
    rf"(?<!{_LETTER})(?:my)?({'|'.join(_NAMES)})(?:[_ -]?(?:set|data|split))?(?!{_LETTER})",
    re.IGNORECASE | re.ASCII,  # or a Turkish i without a dot would be one
)
# Columns of tables, in any case, in which rows say of which split they are.
_SURE = ("split", "data_split")  # others may be of something else
COLUMNS = (*_SURE, "subset", "partition", "set", "fold", "dataset", "usage")
OTHER = "other words"  # in these others, which then are of something else
_NUMBERS = {"0", "1", "2", "3"}  # as data sets of Hugging Face write the names
_TOGETHER = {"tr", "cv"}  # training and cross-validation; one alone is a language


def split_of(name: str) -> str:
    """train, validation or test, whichever a path or a cell names last; "" for none."""
    found = _NAME.findall(name)
    return _NAMES[found[-1].lower()] if found else ""


def split_of_row(row: Mapping[str, Any]) -> str:
    """As `split_of`, of the columns of a table; what else a column `split` says, where none does.

    Where that names one, the others are not asked; in these a name has to stand alone.

    Raises InputError for two columns that name different ones.
    """
    said = ""
    surely = any(column.strip().casefold() in _SURE for column in row)
    found: dict[bool, dict[str, str]] = {True: {}, False: {}}  # of sure columns, and of others
    for column, value in row.items():
        if (name := column.strip().casefold()) not in COLUMNS:
            continue
        cell, sure = "" if value is None else str(value).strip(), name in _SURE
        if (sure or _NAME.fullmatch(cell)) and (split := split_of(cell)):
            found[sure][split] = column
        elif cell and sure == surely:
            said = said or (cell.removesuffix(".0")[:40] if sure else OTHER)
    named = found[True] or found[False]
    if len(named) > 1:
        both = ", ".join(f"{column} names {split}" for split, column in named.items())
        raise InputError(f"{both}; expected one split")
    return next(iter(named), said)


def refuse_several(where: pathlib.Path, splits: Iterable[str]) -> None:
    """Raises InputError for more than one, "" included; `where` are the tables.

    A warning says where a column `split` has only other words, and where one that may be of
    something else names a split in some rows; what numbers mean is unknown.
    """
    counts = collections.Counter(splits)
    if not (named := _KINDS.keys() & counts.keys()):
        counts[""] += counts.pop(OTHER, 0)
    counts = +counts
    if len(counts) < 2:
        return
    listed = ", ".join(f"{split or 'none'} ({n})" for split, n in sorted(counts.items())[:8])
    if len(named) > 1 or named and OTHER not in counts:
        folder = where if where.is_dir() else where.parent
        raise InputError(
            f"{where}: tables or rows of several splits: {printable(listed)}; take one with its "
            f"name behind the folder's, such as {folder.name}/{max(named, key=list(_KINDS).index)} "
            "(told by names, or by columns such as split, set and fold)"
        )
    words = counts.keys() - {""}
    if len(words) > 1 and words <= _NUMBERS:
        raise InputError(
            f"{where}: rows of several splits: {listed}; expected their names, train, validation "
            "or test, instead of numbers"
        )
    print(
        f"{where}: warning: rows of several splits: {printable(listed)}; all are taken", flush=True
    )


def splits_of_folders(folder: pathlib.Path, utterances: list[SourceUtterance]) -> list[str]:
    """The splits after which folders and tables are called, up to two levels below `folder`."""
    places = {(each.folder, each.file if each.row is not None else "") for each in utterances}
    paths = {parent / table.removesuffix(".parquet") for parent, table in places}
    below = {path.relative_to(folder).parts[:2] for path in paths if path.is_relative_to(folder)}
    found = {split_of("/".join(parts)) for parts in below}
    if _TOGETHER <= {part.lower() for parts in below for part in parts}:
        found |= _TOGETHER
    return sorted(found - {""})
