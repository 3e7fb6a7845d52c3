"""Checkpoints of a run in a bucket: orbax writes a local folder, of which each step is sent whole.

Orbax itself knows no s3://, and renames folders, which buckets do not.
"""

import concurrent.futures
import pathlib
from collections.abc import Callable, Iterable

from hubert_jax import storage

_MARKER = "_CHECKPOINT_METADATA"  # of a step: comes last, goes first


class BucketSteps:
    """The steps of a checkpoint directory in a bucket, and a local folder for those at work."""

    def __init__(self, directory: storage.BucketPath, keep: int) -> None:
        self._directory, self._keep = directory, keep
        self._copy = storage.WorkingCopy(directory)
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "checkpoints to a bucket")
        self._sending: concurrent.futures.Future[None] | None = None

    @property
    def local(self) -> pathlib.Path:
        """The folder that orbax writes."""
        return self._copy.local

    def steps(self) -> list[int]:
        """The steps that are in the bucket completely, ascending."""
        return steps_in(self._directory)

    def fetch(self, step: int) -> None:
        """Copies a step into the local folder."""
        found = (self._directory / str(step)).find()
        self._copy.fetch([f"{step}/{name}" for name in found])

    def send(self, written: Callable[[], None], best: int | None) -> None:
        """Begins to send what is in the local folder once `written` returns.

        Then all steps are removed but the newest ones and the best. The one before has been waited
        for.
        """
        self._sending = self._pool.submit(self._send, written, best)

    def wait(self) -> None:
        """Waits for what is being sent; raises OSError where it cannot be."""
        if self._sending is not None:
            sending, self._sending = self._sending, None
            sending.result()

    def close(self) -> None:
        """Ends, and removes the local folder."""
        self._pool.shutdown()
        self._copy.close()

    def _send(self, written: Callable[[], None], best: int | None) -> None:
        written()
        names = self._directory.find()
        begun = {name.partition("/")[0] for name in names} - {str(step) for step in _whole(names)}
        for name in filter(str.isdecimal, begun):  # of a process that was killed meanwhile
            storage.remove_tree(self._directory / name)
        self._copy.push(_MARKER, lambda name: name.partition("/")[0].isdecimal())
        steps = steps_in(self._directory)
        for step in set(steps) - {*steps[-self._keep :], best}:
            storage.remove_tree(self._directory / str(step), markers=(_MARKER,))


def steps_in(directory: storage.BucketPath) -> list[int]:
    """The steps that are there completely, ascending."""
    return _whole(directory.find())


def _whole(names: Iterable[str]) -> list[int]:
    parts = (name.split("/") for name in names)
    return sorted(int(p[0]) for p in parts if len(p) == 2 and p[1] == _MARKER and p[0].isdecimal())
