"""Local copies of objects, each of one version, in a bounded folder of this host.

HUBERT_JAX_CACHE names the folder, HUBERT_JAX_CACHE_BYTES bounds it (50 GB).
"""

import contextlib
import functools
import hashlib
import os
import pathlib
import secrets
import shutil
import tempfile
import threading
import time

from hubert_jax.errors import InputError
from hubert_jax.storage.paths import BucketPath, in_parallel, path

_BYTES = 50 * 10**9
_YOUNG_SECONDS = 60.0  # in which what was used stays, so that it can be opened
_making_room = threading.Lock()
_fetched = float("inf")  # bytes since the folder was looked through


def folder() -> pathlib.Path:
    """The folder of copies, which nobody else may enter; raises InputError where it cannot be."""
    if given := os.environ.get("HUBERT_JAX_CACHE"):
        if isinstance(path(given), BucketPath):
            raise InputError(f"HUBERT_JAX_CACHE={given}: expected a folder of this host")
        return _made(given)
    # A link there may be anybody's.
    return _made(os.path.join(tempfile.gettempdir(), f"hubert_jax-{os.getuid()}"), links=False)


def bound() -> int:
    """How many bytes copies may have; raises InputError where that is no number."""
    given = os.environ.get("HUBERT_JAX_CACHE_BYTES", "")
    if given and not given.isdigit():
        raise InputError(f"HUBERT_JAX_CACHE_BYTES={given}: expected a number of bytes")
    return int(given) if given else _BYTES


@functools.cache
def _made(name: str, links: bool = True) -> pathlib.Path:
    found = pathlib.Path(name).absolute()
    try:
        found.mkdir(parents=True, exist_ok=True, mode=0o700)
        mine = os.stat(found, follow_symlinks=links).st_uid == os.getuid()
    except OSError as error:
        raise InputError(
            f"HUBERT_JAX_CACHE={name}: cannot be made ({error.strerror}); expected a folder for "
            "copies of what is in buckets"
        ) from None
    if not mine:  # who owns it could put other content there
        raise InputError(f"HUBERT_JAX_CACHE={name}: another user's; expected a folder of yours")
    return found


def local(name: str | os.PathLike) -> pathlib.Path:
    """A file or folder that any library can open: a local path itself, a copy of what is not.

    The copy is of the object as it is now, which one request asks; it is fetched where this
    version is not there already. Raises FileNotFoundError and other OSErrors, as of a local file.
    """
    source = path(name)
    if not isinstance(source, BucketPath):
        return source
    try:
        found = source.found()
    except IsADirectoryError:
        return _folder_of(source)
    return _copy(source, found.size, found.version)


def scratch(name: str | os.PathLike) -> pathlib.Path:
    """A local file or folder that outlives a job: the path itself, or one on this host for it."""
    goal = path(name)
    if not isinstance(goal, BucketPath):
        return goal
    found = folder() / "scratch" / hashlib.sha256(f"{goal}".encode()).hexdigest()[:32] / goal.name
    found.parent.mkdir(parents=True, exist_ok=True)
    return found


def _folder_of(source: BucketPath) -> pathlib.Path:
    """A folder of copies, of links to the files of the cache."""
    found = source.find()
    described = "\n".join(f"{name} {version}" for name, (_, version) in found.items())
    target = _place(source, described)
    if all([_is_copy(target / name, size) for name, (size, _) in found.items()]):
        return target
    shutil.rmtree(target, ignore_errors=True)  # part of it was dropped
    copies: dict[str, pathlib.Path] = {}

    def fetch(name: str) -> None:
        copies[name] = _copy(source / name, *found[name])

    in_parallel(fetch, list(found))
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{secrets.token_hex(8)}")
    for name, copy in copies.items():
        (aside / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(copy, aside / name)
    with contextlib.suppress(OSError):  # another thread was faster
        os.rename(aside, target)
    shutil.rmtree(aside, ignore_errors=True)
    return target


def _place(source: BucketPath, version: str) -> pathlib.Path:
    key = hashlib.sha256(f"{source}\n{version}".encode()).hexdigest()[:32]
    return folder() / "copies" / key / source.name


def _copy(source: BucketPath, size: int, version: str) -> pathlib.Path:
    while True:
        target = _place(source, version)
        if _is_copy(target, size):
            return target
        _make_room(size)
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f".{secrets.token_hex(8)}")
        try:
            source.fetch(aside)
            if (found := source.found()) == (size, version):
                os.replace(aside, target)
                return target
        finally:
            aside.unlink(missing_ok=True)
        size, version = found  # it was replaced while it was fetched


def _is_copy(target: pathlib.Path, size: int) -> bool:
    """Whether the copy is there, whole; it is used now."""
    with contextlib.suppress(OSError):
        os.utime(target)
        return target.stat().st_size == size
    return False


def _make_room(size: int) -> None:
    """Drops what was used longest ago; looks through the folder after a tenth of its bound."""
    global _fetched
    most = bound()
    with _making_room:
        _fetched += size
        if _fetched < most / 10:
            return
        _fetched = size
        kept = []
        for place in (folder() / "copies").glob("*"):
            with contextlib.suppress(OSError):  # another process drops it
                of = [each.stat() for each in (place, *place.rglob("*"))]
                # A link of a folder is no second file.
                bytes_of = sum(each.st_size for each in of[1:])
                kept.append((max(each.st_mtime for each in of), bytes_of, place))
        room = most - size - sum(each for _, each, _ in kept)
        for used, freed, place in sorted(kept):
            if room >= 0 or used > time.time() - _YOUNG_SECONDS:
                break
            shutil.rmtree(place, ignore_errors=True)  # who has it open reads on
            room += freed
