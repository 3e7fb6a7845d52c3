"""Files that others wrote: what lies there in place of them, and their JSON within bounds."""

import codecs
import os
import pathlib
from typing import Any

from hubert_jax import files, storage
from hubert_jax.errors import InputError

_MOST_BYTES = 2**24  # of JSON: a vocabulary of 100,000 tokens has a tenth
_DEEPEST = 100


def require_genuine(path: str | os.PathLike, expected: str = "") -> None:
    """Raises InputError for no file, an empty one, a pointer of Git LFS and a saved web page.

    Where something other than a text is `expected`, for every text and for zeros as well.
    """
    if not storage.is_file(path):
        raise InputError(f"{path}: {'a directory' if storage.is_dir(path) else 'no such file'}")
    try:
        with open(storage.path(path), "rb") as file:
            start = file.read(512)
        found = files.pretence(start) if start else "an empty file (0 bytes); copy it again"
        if expected and not found and not any(start):
            found = f"begins with zeros, expected {expected}; copy it again"
        elif expected and not found and (text := _text(start)):
            found = (
                f"a text that begins {text[:40]!r}, expected {expected}; where it is a server's "
                "answer the download failed: download the file itself"
            )
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if found:
        raise InputError(f"{path}: {found}")


def _text(start: bytes) -> str:
    """The text, in UTF-8 or UTF-16, of a file that begins so; "" where it is none."""
    encoding = "utf-8-sig"
    for marked, zeros, kind in ((b"\xff\xfe", 1, "utf-16-le"), (b"\xfe\xff", 0, "utf-16-be")):
        if start.startswith(marked) or not any(start[zeros::2]):
            start, encoding = start.removeprefix(marked), kind
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(start)  # a character may be cut off
    except UnicodeDecodeError:
        return ""
    text = " ".join(text.split())
    return text if text.isprintable() else ""


def read_json(path: pathlib.Path, what: str) -> dict[str, Any]:
    """A JSON object, called `what` in messages.

    Raises InputError for anything else, more than 16 MiB and more than 100 levels.
    """
    require_genuine(path)
    if path.stat().st_size > _MOST_BYTES:
        raise InputError(f"{path}: {what} of more than 16 MiB")
    try:
        values = files.read_json(path, what)
        _require_flat([values], _DEEPEST)
    except RecursionError:
        raise InputError(f"{path}: {what} is nested more than {_DEEPEST} levels deep") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: {what} is a {type(values).__name__}, expected a JSON object")
    return values


def _require_flat(value: dict | list, levels: int) -> None:
    if levels < 0:
        raise RecursionError
    for item in value.values() if isinstance(value, dict) else value:
        if isinstance(item, (dict, list)):
            _require_flat(item, levels - 1)
