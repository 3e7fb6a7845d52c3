"""Digests of the content of files and folders, each file read only when it may have changed."""

import concurrent.futures
import os
import pathlib
import time

from hubert_jax import config as config_lib
from hubert_jax import files, job, storage
from hubert_jax.errors import InputError

_FILES = 10_000  # at once
_SAVE_SECONDS = 60
_OF_DESKTOPS = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r")


class ContentDigests:
    """Remembers the digest of every file beside its path, size and time of change."""

    def __init__(self, cache: pathlib.Path, keeps: bool = True) -> None:
        """Begins with what was written to `cache`; `keeps` what it reads there, now and then."""
        self._cache, self._keeps = cache, keeps
        self._known: dict[str, list] = {}
        if cache.exists():
            try:
                self._known = dict(files.read_json(cache, "digests of files"))
            except (InputError, ValueError, TypeError):
                print(f"{cache}: damaged; files are read again", flush=True)
        self._changed, self._saved = False, time.monotonic()

    def of(self, path: str | os.PathLike, ends: tuple[str, ...] = ("",)) -> str:
        """SHA-256 (hex) of a file's content, or of a folder's contents and names.

        Of a folder those files count that no dot hides, that end in one of `ends` and that no
        desktop leaves. In a bucket the versions that it lists stand for contents, which are not
        read: another one may be of the same content.

        Raises InputError for what cannot be read, and as `files.folders_below`.
        """
        root = storage.path(path)
        if not root.exists():
            raise InputError(f"{path}: not found")
        if isinstance(root, storage.BucketPath):
            return _of_bucket(root, ends)
        try:
            listed = [root]
            if root.is_dir():
                entries = (entry for _, found in files.folders_below(root) for entry in found)
                # Desktops and file systems leave files.
                listed = sorted(
                    storage.path(entry.path) for entry in entries if _counts(entry, ends)
                )
            digests: list[str] = []
            progress = job.Progress(f"read {path}", len(listed), "{} of {} files")
            with concurrent.futures.ThreadPoolExecutor() as pool:  # hashing releases the lock
                for first in range(0, len(listed), _FILES):
                    for digest in pool.map(self._of_file, listed[first : first + _FILES]):
                        digests.append(digest)
                        progress(1)
                    if time.monotonic() - self._saved > _SAVE_SECONDS:
                        self.save()
        except OSError as error:
            raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from None
        names = [os.path.relpath(file, root) for file in listed]
        return config_lib.digest([list(pair) for pair in zip(names, digests, strict=True)])

    def save(self) -> None:
        """Writes what was read since the last call, if anything was."""
        if self._changed and self._keeps:
            files.write_json(self._cache, self._known)
            self._changed, self._saved = False, time.monotonic()

    def _of_file(self, path: pathlib.Path) -> str:
        status = path.stat()
        stamp = [status.st_size, status.st_mtime_ns]
        known = self._known.get(str(path.absolute()))
        if isinstance(known, list) and known[:2] == stamp:
            return known[2]
        digest = files.sha256_file(path)
        self._known[str(path.absolute())] = [*stamp, digest]
        self._changed = True
        return digest


def _counts(entry: os.DirEntry, ends: tuple[str, ...]) -> bool:
    """Whether an entry is a file of those that a folder's digest is of."""
    hidden = entry.name.startswith(".") or entry.name.lower() in _OF_DESKTOPS
    return not hidden and entry.name.endswith(ends) and entry.is_file()


def _of_bucket(root: storage.BucketPath, ends: tuple[str, ...]) -> str:
    try:
        if root.is_file():
            return config_lib.digest([[".", root.found()]])
        listed = sorted(
            [each.path, each.stat().st_size, each.stat().st_mtime_ns]
            for _, found in files.folders_below(root)
            for each in found
            if _counts(each, ends)
        )
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from None
    return config_lib.digest([[path.removeprefix(f"{root}/"), *what] for path, *what in listed])
