"""Objects and folders in buckets that appear complete or not at all.

One object appears by itself. A folder has one file that says it is complete, its marker: the old
one goes first, the new one comes last, and who reads takes a folder without it for absent.
"""

import contextlib
import fcntl
import os
import pathlib
import posixpath
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from hubert_jax.storage import cache
from hubert_jax.storage.paths import BucketPath, in_parallel

_YOUNG_SECONDS = 60  # in which a folder that was made is locked


@contextlib.contextmanager
def sending_file(goal: BucketPath) -> Iterator[pathlib.Path]:
    """Yields a local file's path; what is there becomes the object when the block ends well."""
    with _aside() as folder:
        yield folder / goal.name
        goal.send(folder / goal.name)


@contextlib.contextmanager
def sending_directory(
    goal: BucketPath, marker: str, ours: Callable[[str], bool] = lambda name: True
) -> Iterator[pathlib.Path]:
    """Yields a local folder; what is in it replaces `goal` when the block ends well.

    What is there and not `ours`, by its name at the top, stays.
    An interruption leaves `goal` without the file `marker`, wherever below that is.
    """
    with _aside() as folder:
        aside = folder / goal.name
        aside.mkdir()
        yield aside
        there = goal.find()
        for name in there:
            if posixpath.basename(name) == marker:
                (goal / name).unlink(missing_ok=True)
        here = [each.relative_to(aside).as_posix() for each in aside.rglob("*") if each.is_file()]
        _send_files(aside, goal, here, marker)
        gone = [name for name in there if name not in here and ours(name.partition("/")[0])]
        in_parallel(lambda name: (goal / name).unlink(missing_ok=True), gone)


def _send_files(folder: pathlib.Path, goal: BucketPath, names: list[str], marker: str) -> None:
    """Sends files of a local folder, those called `marker` last."""
    for last in (False, True):
        chosen = [name for name in names if (posixpath.basename(name) == marker) is last]
        in_parallel(lambda name: (goal / name).send(folder / name), chosen)


@contextlib.contextmanager
def _aside() -> Iterator[pathlib.Path]:
    """Yields a new folder, which is removed; those of processes that were killed are, too."""
    where = cache.folder() / "aside"
    where.mkdir(exist_ok=True)
    for left in where.iterdir():
        with contextlib.suppress(OSError):  # another process removes it
            if time.time() - left.stat().st_mtime > _YOUNG_SECONDS:
                with _locked(left):
                    shutil.rmtree(left)
    with tempfile.TemporaryDirectory(dir=where) as folder, _locked(pathlib.Path(folder)):
        yield pathlib.Path(folder)


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
    """Raises BlockingIOError where a process that lives has locked it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


class WorkingCopy:
    """A local folder for what writes one by itself; `push` sends what has changed since.

    It begins with those of `goal`'s objects that `names` lists, as far as they are there. One
    process at a time sends them, as a lease says.
    """

    def __init__(self, goal: BucketPath, names: Sequence[str] = ()) -> None:
        self.goal = goal
        self._open = contextlib.ExitStack()
        self.local = self._open.enter_context(_aside()) / goal.name
        self.local.mkdir()
        self._sent: dict[str, tuple[int, int]] = {}
        self._pushing = threading.Lock()
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                self.fetch([name])

    def fetch(self, names: Sequence[str]) -> None:
        """Fetches objects of the goal, by their names below it."""

        def fetch(name: str) -> None:
            target = self.local / name
            target.parent.mkdir(parents=True, exist_ok=True)
            (self.goal / name).fetch(target)
            self._sent[name] = _stamp(target)

        in_parallel(fetch, list(names))

    def push(self, marker: str = "", ready: Callable[[str], bool] = lambda name: True) -> None:
        """Sends the files whose names are `ready` and that are new or changed, `marker`s last."""
        with self._pushing:
            changed: dict[str, tuple[int, int]] = {}
            for file in self.local.rglob("*"):
                name = file.relative_to(self.local).as_posix()
                if ready(name) and file.is_file():
                    with contextlib.suppress(FileNotFoundError):  # a temporary file
                        if self._sent.get(name) != _stamp(file):
                            changed[name] = _stamp(file)
            _send_files(self.local, self.goal, sorted(changed), marker)
            self._sent |= changed

    def close(self) -> None:
        """Removes the local folder."""
        self._open.close()


def _stamp(file: pathlib.Path) -> tuple[int, int]:
    status = os.stat(file)
    return status.st_size, status.st_mtime_ns
