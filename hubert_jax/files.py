"""Files and directories that appear complete or not at all."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator
from typing import Any

from hubert_jax.errors import InputError

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # no fault of the program


def _aside(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f"{path.name}.tmp-{os.getpid()}")


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Writes `content` beside `path`, then renames it onto `path`."""
    with writing_file(path) as aside:
        aside.write_bytes(content)


@contextlib.contextmanager
def writing_file(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary sibling of `path` that becomes `path` when the block ends well."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = _aside(path)
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """As `write_bytes`, for UTF-8 text."""
    write_bytes(path, text.encode())


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path: str | os.PathLike, what: str, writer: str = "the job that writes it") -> Any:
    """Reads a JSON file; messages call it `what` and advise to run `writer`.

    Raises InputError for a file that is missing or is not JSON.
    """
    try:
        return json.loads(pathlib.Path(path).read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path}: {what} not found; run {writer} first") from None
    except ValueError as error:
        raise InputError(f"{path}: {what} is not valid JSON ({error}); write it again") from None


def sha256_file(path: str | os.PathLike) -> str:
    """SHA-256 (hex) of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def writing_directory(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary sibling that replaces `path` when the block ends well.

    What an interrupted process left aside is swept away first.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f"{path.name}.tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    aside = _aside(path)
    aside.mkdir()
    try:
        yield aside
        if path.exists():
            shutil.rmtree(path)
        os.rename(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def locked(path: str | os.PathLike, what: str) -> Iterator[None]:
    """Raises InputError where another `what` has locked the file; a killed one leaves no lock."""
    path = pathlib.Path(path)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{path.parent}: another {what} is running there; wait for it or pass another "
                "--config.workdir"
            ) from None
        except OSError:
            pass  # the file system has no locks
        yield


def require_writable(workdir: str | os.PathLike) -> pathlib.Path:
    """Creates `workdir` where it is missing; raises InputError where it cannot be written."""
    path = pathlib.Path(workdir)
    # Several hosts may try at once, and processes in containers have the same number.
    probe = path / f".writable-{secrets.token_hex(8)}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"config.workdir={workdir}: cannot be written ({error.strerror}); "
            "pass --config.workdir=DIR with a directory that you may write"
        ) from None
    return path
