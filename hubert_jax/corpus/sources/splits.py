"""The splits after which tables, rows and folders are called, so that none are mixed."""

import collections
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from hubert_jax.corpus.sources.utterances import SourceUtterance
from hubert_jax.errors import InputError

_KINDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_KINDS_IN_ORDER = ["", "test", "validation", "train"]  # the last is named as an example
_NAMES = {name: kind for kind, names in _KINDS.items() for name in names}
_NAME = re.compile(rf"(?<![a-z])({'|'.join(_NAMES)})(?:[_ -]?set)?(?![a-z])", re.IGNORECASE)
COLUMNS = ("split", "subset", "partition")  # of tables, in which rows say of which they are


def split_of(name: str) -> str:
    """train, validation or test, whichever a path or a cell names last; "" for none."""
    found = _NAME.findall(name)
    return _NAMES[found[-1].lower()] if found else ""


def split_of_row(row: Mapping[str, Any]) -> str:
    """As `split_of`, of the first column of a table that names one.

    Another column than `split` may be of something else: there a name has to stand alone.
    """
    if found := split_of(str(row.get(COLUMNS[0]) or "")):
        return found
    cells = (str(row.get(name) or "").strip() for name in COLUMNS[1:])
    return next((split_of(cell) for cell in cells if _NAME.fullmatch(cell)), "")


def refuse_several(where: pathlib.Path, splits: Iterable[str]) -> None:
    """Raises InputError for more than one, "" included; `where` are the tables."""
    counts = collections.Counter(splits)
    if len(counts) > 1:
        listed = ", ".join(f"{split or 'none'} ({n})" for split, n in sorted(counts.items()))
        folder = where if where.is_dir() else where.parent
        raise InputError(
            f"{where}: tables or rows of several splits: {listed}; take one with its name behind "
            f"the folder's, such as {folder.name}/{max(counts, key=_KINDS_IN_ORDER.index)}"
        )


def splits_of_folders(folder: pathlib.Path, utterances: list[SourceUtterance]) -> list[str]:
    """The splits after which folders are called, up to two levels below `folder`."""
    folders = {utterance.folder for utterance in utterances}
    found = {
        split_of("/".join(path.relative_to(folder).parts[:2]))
        for path in folders
        if path.is_relative_to(folder)
    }
    return sorted(found - {""})
