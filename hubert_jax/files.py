"""Files and directories that appear complete or not at all."""

import collections
import contextlib
import csv
import errno
import fcntl
import hashlib
import io
import json
import operator
import os
import pathlib
import re
import secrets
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from hubert_jax import storage
from hubert_jax.errors import InputError

_SENT_SECONDS = 60  # between two of a file that grows
_MOST_DEEP = 100  # folders in each other
_MOST_LINKS = 16  # to one folder; two in each of some folders would soon be a million
_NUMBERS = re.compile(r"\[\n[-+.\deE,\s]+\]")  # a string has no newline of its own
_PAGES = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--", b"<title", b"<body", b"<meta")
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)  # no fault of the program


def _aside(path: pathlib.Path) -> pathlib.Path:
    """A name that nobody can have made a link of before."""
    return path.with_name(f"{path.name}.tmp-{secrets.token_hex(8)}")


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Writes `content` beside `path`, then renames it onto `path`."""
    with writing_file(path) as aside:
        aside.write_bytes(content)


@contextlib.contextmanager
def writing_file(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary file's path; the file becomes `path` when the block ends well.

    It is a sibling of `path`, or on this host where `path` is in a bucket.
    """
    path = storage.path(path).absolute()
    if isinstance(path, storage.BucketPath):
        with storage.sending_file(path) as aside:
            yield aside
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = _aside(path)
    try:
        yield aside
        try:
            os.replace(aside, path)
        except IsADirectoryError:
            raise InputError(f"{path}: is a folder; expected a file, or a free name") from None
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """As `write_bytes`, for UTF-8 text."""
    write_bytes(path, text.encode())


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes `value` as indented JSON, a list of numbers on one line, atomically."""
    text = _NUMBERS.sub(lambda found: " ".join(found[0].split()), json.dumps(value, indent=1))
    write_text(path, text + "\n")


def write_table(path: str | os.PathLike, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes `rows`, of which all have the keys of the first, as CSV; floats with six digits."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, rows[0], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    write_text(path, buffer.getvalue())


def read_json(path: str | os.PathLike, what: str, writer: str = "the job that writes it") -> Any:
    """Reads a JSON file; messages call it `what` and advise to run `writer`.

    Raises InputError for a file that is missing, cannot be read, is not JSON or has a key twice
    with different values.
    """
    try:
        text = storage.path(path).read_text(encoding="utf-8")
        return json.loads(text, object_pairs_hook=_object)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path}: {what} not found; run {writer} first") from None
    except OSError as error:
        raise InputError(f"{path}: {what} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: {what} is not valid JSON ({error}); write it again") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values and values[key] != value:
            raise ValueError(f"{key!r:.100} is there twice, with different values")
        values[key] = value
    return values


def sha256_file(path: str | os.PathLike) -> str:
    """SHA-256 (hex) of a file's content."""
    with open(storage.path(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pretence(start: bytes) -> str:
    """What a file that begins so is in place of its content, and the remedy; "" for others."""
    start = start.replace(b"\0", b"")  # as UTF-16 has them
    start = re.sub(rb"^(\xef\xbb\xbf|\xff\xfe|\xfe\xff)?\s*", b"", start)
    if start.startswith(b"version https://git-lfs.github.com/"):
        return (
            "a pointer of Git LFS and not the file itself; run git lfs pull where it was cloned, "
            "or download the file"
        )
    if start.lower().startswith(_PAGES):
        return "a web page saved under this name; download the file itself"
    return ""


class KeptLines:
    """JSON values by name, in a file that grows line by line and outlives a job that is killed.

    Of another `key` than the file has nothing is there; from a damaged line on, neither: each has a
    checksum. In memory are names alone. A bucket gets the file each minute, and when it is closed.
    """

    def __init__(self, path: str | os.PathLike, key: str) -> None:
        path, self._copy = storage.path(path), None
        if isinstance(path, storage.BucketPath):
            self._copy = storage.WorkingCopy(path.parent, [path.name])
            path = self._copy.local / path.name
        self._sent = time.monotonic()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self._file = path.open("r+b")
        self._places: dict[str, int] = {}
        good = 0
        with contextlib.suppress(ValueError):  # what was written as the job ended
            while (line := self._file.readline()).endswith(b"\n"):
                found = _unsealed(line)
                if good:
                    self._places[found[0]] = good
                elif found != key:
                    break
                good = self._file.tell()
        self._file.seek(good)
        self._file.truncate()
        if not good:
            self._write(key)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __getitem__(self, name: str) -> Any:
        self._file.seek(self._places[name])
        return _unsealed(self._file.readline())[1]

    def add(self, name: str, value: Any) -> None:
        """Keeps a value, in place of an older one."""
        self._places[name] = self._file.seek(0, os.SEEK_END)
        self._write([name, value])

    def close(self) -> None:
        """Ends the writing; the file stays."""
        self._file.close()
        if self._copy:
            self._copy.push()
            self._copy.close()

    def _write(self, value: Any) -> None:
        line = json.dumps(value).encode()
        self._file.write(b"%08x %b\n" % (zlib.crc32(line), line))
        self._file.flush()
        if self._copy and time.monotonic() - self._sent > _SENT_SECONDS:
            self._copy.push()
            self._sent = time.monotonic()


def _unsealed(line: bytes) -> Any:
    """The value of a line of `KeptLines`; ValueError for a damaged one."""
    checksum, _, value = line.rstrip(b"\n").partition(b" ")
    if int(checksum, 16) != zlib.crc32(value):
        raise ValueError("damaged")
    return json.loads(value)


@contextlib.contextmanager
def writing_directory(
    path: str | os.PathLike,
    marker: str = "manifest.json",
    ours: Callable[[str], bool] = lambda name: True,
) -> Iterator[pathlib.Path]:
    """Yields a temporary folder that replaces `path` when the block ends well.

    It is a sibling of `path`; what an interrupted process left aside is swept away first. What is
    there and not `ours`, by its name at the top, stays. Then, and in a bucket, where folders are
    not replaced at once, the file `marker` goes first and comes last.
    """
    path = storage.path(path).absolute()
    if isinstance(path, storage.BucketPath):
        with storage.sending_directory(path, marker, ours) as aside:
            yield aside
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f"{path.name}.tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    aside = _aside(path)
    aside.mkdir()
    try:
        yield aside
        if path.exists() and not all(ours(entry.name) for entry in path.iterdir()):
            _replace_entries(path, aside, marker, ours)
            return
        if path.exists():
            shutil.rmtree(path)
        os.rename(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _replace_entries(
    path: pathlib.Path, aside: pathlib.Path, marker: str, ours: Callable[[str], bool]
) -> None:
    def remove(entry: pathlib.Path) -> None:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)

    (path / marker).unlink(missing_ok=True)
    new = sorted(aside.iterdir(), key=lambda entry: entry.name == marker)
    names = {entry.name for entry in new}
    for entry in list(path.iterdir()):
        if ours(entry.name) and entry.name not in names:
            remove(entry)
    for entry in new:
        target = path / entry.name
        if entry.is_dir() or target.is_dir():
            remove(target)
        os.replace(entry, target)


def folders_below(top: str | os.PathLike) -> Iterator[tuple[pathlib.Path, list[os.DirEntry]]]:
    """A folder and those below it that no dot hides, with what is in each, sorted by name.

    Links are followed, but not in circles. Raises InputError for a folder that cannot be listed,
    a hundred folders in each other, or one that links lead to again and again.
    """
    top = storage.path(top)
    if isinstance(top, storage.BucketPath):  # which has no links
        try:
            yield from top.folders()  # type: ignore[misc]  # entries of their own class
        except OSError as error:
            raise InputError(f"{top}: cannot be listed ({error.strerror})") from None
        return
    waiting: list[tuple[pathlib.Path, tuple[tuple[int, int], ...]]] = [(top, ())]
    reached: collections.Counter[tuple[int, int]] = collections.Counter()
    while waiting:
        folder, above = waiting.pop()
        try:
            status = folder.stat()
            here = (status.st_dev, status.st_ino)
            if here in above:  # a link back to a folder that it is in
                continue
            with os.scandir(folder) as entries:
                found = sorted(entries, key=operator.attrgetter("name"))
        except OSError as error:
            raise InputError(
                f"{folder}: cannot be listed ({error.strerror}); nothing may change in {top} "
                "while it is read"
            ) from None
        reached[here] += 1
        if reached[here] > _MOST_LINKS or len(above) >= _MOST_DEEP:
            why = f"reached by more than {_MOST_LINKS} links"
            if len(above) >= _MOST_DEEP:
                why = f"in {_MOST_DEEP} other folders"
            raise InputError(f"{folder}: {why}; expected a corpus, remove it from {top}")
        yield folder, found
        within = (*above, here)
        waiting += [
            (folder / entry.name, within)
            for entry in reversed(found)
            if is_folder(entry) and not entry.name.startswith(".")
        ]


def is_folder(entry: os.DirEntry) -> bool:
    """Whether an entry is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: reading it will say so
        return False


@contextlib.contextmanager
def locked(path: str | os.PathLike, what: str) -> Iterator[None]:
    """Raises InputError where another `what` has locked the file.

    A killed one leaves no lock, but in a bucket, for minutes (`storage.leased`).
    """
    path = storage.path(path)
    if isinstance(path, storage.BucketPath):
        with storage.leased(path, what):
            yield
        return
    # A link would be another's file.
    flags = os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be opened ({error.strerror}); expected a file that you may write"
        ) from None
    with open(descriptor, "w") as file:
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
    path = storage.path(workdir)
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
