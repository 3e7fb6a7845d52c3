"""Checkpoints: orbax, asynchronous; a JSON document (`metadata`) says what the arrays are.

Orbax keeps no checksum of the arrays' bytes, so each part has a list of its files' SHA-256 beside
them, written before the checkpoint appears and compared whenever it is read.
"""

import concurrent.futures
import contextlib
import errno
import functools
import json
import operator
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from hubert_jax import config as config_lib
from hubert_jax import distributed, files, storage
from hubert_jax.errors import CRASHED, InputError, Unavailable
from hubert_jax.training.bucket_steps import BucketSteps, steps_in

_Shardings = Callable[[Any], Any]
_NAMED = re.compile(r"(?P<folder>.+)@(?P<which>[1-9][0-9]*|best|mean(?P<count>[1-9][0-9]*))")
_REMEDY = "; make room or make it writable, and give the same command again"
_PARTS = ("state", "metadata")
_CHECKSUMS = "sha256.json"
_UNLISTED = {_CHECKSUMS, "commit_success.txt"}  # written after what the list names
# What file systems, copying programs and desktops leave beside files; they write no such names.
_FOREIGN = re.compile(
    r"(^|/)(\.|@eaDir/|#)|_\.gstmp$|\.(rclone-)?partial$|~$|:Zone\.Identifier$"
    r"|(^|/)((eh)?thumbs\.db|desktop\.ini|icon\r)$",
    re.IGNORECASE,
)
_DECISIVE = ("kind", "inputs", "config", "rows", "version", "step")


class _Handler:
    """What both parts of a checkpoint have of ours: checksums, and failures that are told."""

    background: Callable[[], contextlib.AbstractContextManager[None]]

    async def async_save(self, *arguments: Any, **named: Any) -> list["_Write"]:
        writes = await super().async_save(*arguments, **named)  # type: ignore[misc]
        return [_Write(write, self.background) for write in writes or ()]

    def finalize(self, directory: Any) -> None:
        with self.background():
            super().finalize(directory)  # type: ignore[misc]
            _write_checksums(directory)


class _StateHandler(_Handler, ocp.StandardCheckpointHandler):
    def __init__(self, multiprocessing_options: ocp.options.MultiprocessingOptions) -> None:
        super().__init__(multiprocessing_options=multiprocessing_options)
        # Orbax compresses. Weights and moments become 8 % smaller by it, and take three times as
        # long to write and twice as long to read.
        self._impl = ocp.PyTreeCheckpointHandler(
            multiprocessing_options=multiprocessing_options, use_compression=False
        )


class _MetadataHandler(_Handler, ocp.JsonCheckpointHandler):
    pass


class _Write:
    """One that is under way, as orbax waits for it."""

    def __init__(
        self, write: Any, background: Callable[[], contextlib.AbstractContextManager[None]]
    ) -> None:
        self._write, self._background = write, background

    def result(self, timeout: float | None = None) -> Any:
        with self._background():
            return self._write.result(timeout)

    def cancel(self) -> bool | None:
        return self._write.cancel()


class _Step:
    """Preserves the checkpoint of one step."""

    step: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        return [checkpoint.step == self.step for checkpoint in checkpoints]


class Checkpoints:
    """The newest `keep` checkpoints of one run, and its best, in a directory that is created.

    All processes of a run save together, unless it is done `alone` by one of them. In a bucket the
    first process writes what the others have, too, and each reads a copy of its own.
    """

    def __init__(self, directory: str | os.PathLike, keep: int = 2, alone: bool = False) -> None:
        self._directory = self._local = storage.path(directory).absolute()
        self._bucket: BucketSteps | None = None
        self._gathers = False
        if isinstance(self._directory, storage.BucketPath):
            self._bucket = BucketSteps(self._directory, keep)
            self._local = self._bucket.local
            self._gathers, alone = jax.process_count() > 1 and not alone, True
        self._keep, self._best = keep, _Step()
        self._failure: Exception | None = None
        policies = ocp.checkpoint_managers
        preserved = [policies.LatestN(keep), self._best]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(preserved)
        )
        with self._writing():
            self._local.mkdir(parents=True, exist_ok=True)
        if alone:
            options.create = False  # orbax would ask the other processes
            options.multiprocessing_options = _alone()
        registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
        args, multiprocessing = ocp.args, options.multiprocessing_options
        for part, kind, kinds in (
            ("state", _StateHandler, (args.StandardSave, args.StandardRestore)),
            ("metadata", _MetadataHandler, (args.JsonSave, args.JsonRestore)),
        ):
            handler = kind(multiprocessing_options=multiprocessing)
            handler.background = self._background
            for each in kinds:
                registry.add(part, each, handler)
        with self._writing():
            self._manager = ocp.CheckpointManager(
                self._local, options=options, handler_registry=registry
            )

    def save(self, step: int, state: Any, metadata: dict) -> None:
        """Begins to save `state` (a tree of arrays); returns once it is copied.

        The best checkpoint is that of the step `metadata["validation"]["best"]["step"]`. Raises
        InputError where it, or the one before, cannot be written.
        """
        if self._gathers:
            state = _whole(state)
            if not distributed.is_first():
                return
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self._local).free
        if free < needed:  # orbax may wait forever for a write that failed
            sizes = f"{needed / 1e9:.3g} GB needed, {free / 1e9:.3g} GB free"
            raise InputError(f"{self._local}: no room for checkpoint {step}: {sizes}{_REMEDY}")
        metadata = {**metadata, "keep": self._keep}
        self._best.step = _best_step(metadata)
        parts = {"state": ocp.args.StandardSave(state), "metadata": ocp.args.JsonSave(metadata)}
        if self._bucket:
            self._bucket.wait()  # as this one's end removes older ones
        with self._writing():
            self._manager.save(step, args=ocp.args.Composite(**parts))
        if self._bucket:
            self._bucket.send(self._manager.wait_until_finished, self._best.step)

    def check(self) -> None:
        """Raises what keeps the save that is under way from being written, once it is known."""
        if self._failure:
            raise self._failure

    def metadata(self, step: int) -> dict:
        """The JSON document of a step's checkpoint."""
        return self._restore(step, metadata=ocp.args.JsonRestore()).metadata

    @staticmethod
    def newest_metadata(directory: str | os.PathLike) -> dict:
        """Metadata of a directory's newest readable checkpoint, {} where there is none."""
        try:
            return read_metadata(directory)
        except InputError:  # to be told by who needs it
            return {}

    def restore(self, step: int, like: Any) -> Any:
        """The state of `step` with the shapes and shardings of `like`."""
        return self._restore(step, state=ocp.args.StandardRestore(like)).state

    def _restore(self, step: int, **parts: Any) -> Any:
        return self._manager.restore(step, args=ocp.args.Composite(**parts))

    def restore_newest(
        self, like: Any, check: Callable[[dict], Any]
    ) -> tuple[int, Any, Any] | None:
        """Step and state of the newest checkpoint that can be read, and what `check` returned.

        `check` gets the metadata before the state is read, and may refuse it. Damaged newer ones
        are moved beside the directory, so that their steps can be saved again. None without any
        checkpoint; InputError, and nothing is moved, where none can be read.
        """
        there = self._bucket.steps if self._bucket else self._manager.all_steps
        steps = sorted(distributed.from_first(lambda: [*there()]), reverse=True)
        if not steps:
            return None
        step, (checked, state) = _first_readable(
            self._directory,
            steps,
            lambda step: _together(lambda: (self._checked(step, check), self.restore(step, like))),
            ", nor any after it; restore one from a copy, or remove "
            f"{self._directory.parent} to begin again",
        )
        self._set_aside(steps[: steps.index(step)])
        return step, state, checked

    def _checked(self, step: int, check: Callable[[dict], Any]) -> Any:
        if self._bucket:
            self._bucket.fetch(step)
            self._manager.reload()
        path = self._local / str(step)
        # One process reads all bytes for the others, unless each has its own.
        damage = _damage(path) if self._bucket else distributed.from_first(lambda: _damage(path))
        if damage:
            raise ValueError(damage)
        return check(self.metadata(step))

    def _set_aside(self, steps: list[int]) -> None:
        if not steps:
            return
        if jax.process_index() == 0:
            for step in steps:
                aside = self._directory.with_name(f"damaged-{step}")
                storage.remove_tree(aside, ignore_errors=True)
                (self._directory / str(step)).rename(aside)
        for step in steps if self._bucket else ():
            shutil.rmtree(self._local / str(step))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints are set aside")
        self._manager.reload()

    def close(self) -> None:
        """Waits for saves under way and closes; raises InputError where one cannot be written.

        Where a bucket does not take it, that is an OSError.
        """
        with self._writing():
            self._manager.wait_until_finished()
        self._manager.close()
        if self._bucket:
            self._bucket.wait()
            self._bucket.close()

    @contextlib.contextmanager
    def _background(self) -> Iterator[None]:
        """What fails here is raised by `check`; and all processes end.

        Orbax would have them wait for each other.
        """
        try:
            with self._writing():
                yield
        except Exception as error:
            self._failure = error
            if isinstance(error, InputError | Unavailable):
                status = 1 if isinstance(error, InputError) else CRASHED
                distributed.end_all("error", str(error), status)
            else:
                distributed.end_all("crashed", repr(error), CRASHED)
            raise

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (FileExistsError, NotADirectoryError):
            raise InputError(
                f"{self._directory}: expected a folder or nothing, but a file is in the way; move "
                "it elsewhere"
            ) from None
        except (OSError, ValueError) as error:  # the latter from tensorstore
            for reason in map(os.strerror, files.UNWRITABLE):
                if reason in str(error):
                    raise InputError(
                        f"{self._directory}: a checkpoint cannot be written ({reason}){_REMEDY}"
                    ) from None
            raise


def restore_parameters(
    directory: str | os.PathLike,
    shardings: _Shardings | None = None,
    merge: Callable[[dict, dict], dict] = lambda params, metadata: params,
) -> tuple[dict, dict]:
    """A checkpoint's parameters, and its metadata with `step`, whatever mesh wrote them.

    `directory` is a run's checkpoint directory, for its newest readable one; DIR@STEP; DIR@best,
    by the run's validation; or DIR@meanN, the mean of the newest N, where `step` lists their steps.
    With `shardings` (tree of shapes -> of shardings) they are read onto these devices, else as
    NumPy arrays. `merge` makes the parameters of each step's parameters and metadata, before the
    mean. Raises InputError where there are none, or too few, or they cannot be read.
    """
    folder, steps, count = _named(directory)

    def read(step: int) -> tuple[dict, dict]:
        params, metadata = _restore(folder, step, shardings)
        return merge(params, metadata), metadata

    if count:
        return _mean(
            steps, lambda step: _first_readable(folder, [step], read, _advice(folder, [step]))[1]
        )
    return _first_readable(folder, steps, read, _advice(folder, steps))[1]


def read_metadata(directory: str | os.PathLike) -> dict:
    """The metadata that `restore_parameters` gives, without arrays.

    Raises InputError as that does, but for arrays that cannot be read.
    """
    folder, steps, count = _named(directory)
    read = functools.partial(_read_metadata, folder)
    for step in steps[:0:-1] if count else ():
        _first_readable(folder, [step], read, _advice(folder, [step]))
    tried = steps[:1] if count else steps
    step, metadata = _first_readable(folder, tried, read, _advice(folder, tried))
    return {**metadata, "step": steps[::-1] if count else step}


def _named(directory: str | os.PathLike) -> tuple[pathlib.Path, list[int], int]:
    """The folder, the steps to try one after the other, and of how many the mean is asked for."""
    path = storage.path(directory).absolute()
    named = None if storage.is_dir(path) else _NAMED.fullmatch(str(path))
    folder = storage.path(named["folder"]) if named else path
    steps = _steps(folder)
    if named is None:
        return folder, steps[::-1], 0
    if named["which"].isdecimal():
        step: int | None = int(named["which"])
    else:
        read = functools.partial(_read_metadata, folder)
        _, newest = _first_readable(folder, steps[::-1], read, _advice(folder, steps))
        if named["count"]:
            kept = steps[-newest.get("keep", len(steps)) :]  # without the best of before
            count = int(named["count"])
            if len(kept) < count:
                raise InputError(
                    f"{directory}: expected {count} checkpoints, found {len(kept)} of the newest "
                    f"(steps {', '.join(map(str, kept))}); loop.keep of the run says how many "
                    "it keeps"
                )
            return folder, kept[-count:][::-1], count
        step = _best_step(newest)
        if step is None:
            raise InputError(
                f"{directory}: no validation of the run found a best one{_advice(folder)}"
            )
    if step not in steps:
        raise InputError(
            f"{directory}: no such checkpoint; there are steps {', '.join(map(str, steps))}"
        )
    return folder, [step], 0


def _advice(folder: pathlib.Path, tried: Sequence[int] = ()) -> str:
    """What to do where a checkpoint cannot be read, or none of all that were tried."""
    steps = _steps(folder)
    if len(tried) == len(steps):
        return ", nor any after it; restore one from a copy, or name another run"
    there = ", ".join(str(step) for step in steps if step not in tried)
    also = " too" if tried else ""
    return f"; there are steps {there}{also}: name one (orbax:DIR@STEP), or another run"


def fingerprint(metadata: dict) -> str:
    """A digest of what decides a checkpoint's weights (of a converted network in part)."""
    return config_lib.digest({key: metadata[key] for key in _DECISIVE if key in metadata})


def _first_readable(
    folder: pathlib.Path, steps: Sequence[int], read: Callable[[int], Any], remedy: str
) -> tuple[int, Any]:
    """The first readable of `steps`, and what `read` returned; InputError where there is none."""
    problem = ""
    for step in steps:
        try:
            return step, read(step)
        except (InputError, Unavailable):
            raise
        except PermissionError as error:  # whoever may read it may find nothing wrong
            raise InputError(
                f"{folder}: checkpoint {step}: {error.filename} cannot be read "
                f"({error.strerror}); make it readable"
            ) from None
        except Exception as error:  # orbax and tensorstore raise dozens of types
            reason = " ".join(str(error).split())[:200]
            problem = f"{folder}: checkpoint {step} cannot be read ({reason})"
            if step != steps[-1]:
                distributed.announce(f"{problem}; the one before is used")
    raise InputError(problem + remedy)


def _together(read: Callable[[], Any]) -> Any:
    """What `read` returns, or ValueError in all processes where any of them cannot read."""
    found, problem = None, ""
    try:
        found = read()
    except (InputError, PermissionError, Unavailable):
        raise
    except Exception as error:  # as in `_first_readable`
        problem = str(error) or repr(error)
    problems = distributed.gather(problem)
    if first := distributed.from_first(lambda: next(filter(None, problems), "")):
        raise ValueError(first)
    return found


def _whole(state: Any) -> Any:
    """What is divided among processes, whole: leaf by leaf, kept by the first process alone."""

    def whole(leaf: Any) -> Any:
        found = leaf
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            found = multihost_utils.process_allgather(leaf, tiled=True)
        return np.asarray(found) if distributed.is_first() else None

    return jax.tree.map(whole, state)


def _best_step(metadata: dict) -> int | None:
    return ((metadata.get("validation") or {}).get("best") or {}).get("step")


def _mean(steps: Sequence[int], read: Callable[[int], tuple[dict, dict]]) -> tuple[dict, dict]:
    """The mean of the parameters of `steps`, newest first, and the newest one's metadata."""
    total: Any = None
    for step in steps[::-1]:
        params, metadata = read(step)
        total = params if total is None else jax.tree.map(operator.add, total, params)
    mean = jax.tree.map(lambda leaf: leaf / len(steps), total)
    return mean, {**metadata, "step": [*steps[::-1]]}


def _steps(directory: pathlib.Path) -> list[int]:
    """The steps of a checkpoint directory, ascending; raises InputError where there are none."""
    why = ""
    try:
        if isinstance(directory, storage.BucketPath):
            steps = steps_in(directory)
        else:
            steps = sorted(int(name) for name in storage.names_in(directory) if name.isdecimal())
    except OSError as error:
        steps, why = [], f" ({error.strerror})"
    if directory.name.isdecimal() and not steps:
        why = f"; step {directory.name} of the run is named {directory.parent}@{directory.name}"
    if not steps:
        raise InputError(
            f"{directory}: no checkpoint found{why}; expected the checkpoint directory of a run, "
            "for example WORKDIR/train/checkpoints"
        )
    return steps


def _alone() -> ocp.options.MultiprocessingOptions:
    here = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=here, active_processes={here})


def _write_checksums(part: os.PathLike) -> None:
    files.write_json(storage.path(part, _CHECKSUMS), _checksums(storage.path(part)))


def _damage(step: pathlib.Path, parts: Sequence[str] = _PARTS) -> str:
    """What is wrong with a checkpoint's bytes; "" if they are those that were written.

    A checkpoint of a version that kept no checksums is taken as it is, and that is said.
    """
    if gone := [part for part in parts if not (step / part).is_dir()]:
        return f"its part {gone[0]} is missing"
    if not any((step / part / _CHECKSUMS).exists() for part in _PARTS):
        distributed.announce(f"{step}: written without checksums, so its bytes are not compared")
        return ""
    for part in parts:
        try:
            expected = dict(json.loads((step / part / _CHECKSUMS).read_bytes()))
            found = _checksums(step / part)
        except (ValueError, TypeError, RecursionError):
            expected = {}
        except PermissionError:
            raise
        except OSError as error:
            return f"{error.filename}: {error.strerror}"
        if not expected:
            return f"{part}/{_CHECKSUMS} is damaged"
        for name, checksum in expected.items():
            if found.get(name) != checksum:
                return f"{part}/{name} is {'not what was written' if name in found else 'missing'}"
        if more := sorted(found.keys() - expected.keys() - _UNLISTED):
            return f"{part}/{more[0]} is not among what was written"
    return ""


def _checksums(part: pathlib.Path) -> dict[str, str]:
    """SHA-256 of a part's files, by their names below it."""

    def refuse(error: OSError) -> None:
        raise error

    walked = os.walk(part, onerror=refuse)
    below = (storage.path(folder, name) for folder, _, names in walked for name in names)
    paths = sorted(path for path in below if not _FOREIGN.search(path.relative_to(part).as_posix()))
    for path in paths:
        if not path.is_file() and path.exists():  # a pipe would be waited for
            raise OSError(errno.EINVAL, "not a regular file", str(path))
    with concurrent.futures.ThreadPoolExecutor() as pool:
        checksums = pool.map(files.sha256_file, paths)
        return {p.relative_to(part).as_posix(): c for p, c in zip(paths, checksums, strict=True)}


def _read_metadata(folder: pathlib.Path, step: int) -> dict:
    # Without orbax, which would start a back-end.
    part = storage.local(folder / str(step) / "metadata")  # of a bucket, no more than that
    if damage := _damage(part.parent, ["metadata"]):
        raise ValueError(damage)
    return dict(json.loads((part / "metadata").read_bytes()))


def _restore(folder: pathlib.Path, step: int, shardings: _Shardings | None) -> tuple[dict, dict]:
    path = storage.local(folder / str(step))
    if damage := _damage(path):
        raise ValueError(damage)
    alone = _alone()  # each process reads for itself, as one may do it while the others wait
    handlers = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=alone),
        state=ocp.PyTreeCheckpointHandler(multiprocessing_options=alone),
        metadata=ocp.JsonCheckpointHandler(multiprocessing_options=alone),
    )
    with ocp.Checkpointer(handlers, multiprocessing_options=alone) as reader:
        tree = reader.metadata(path).item_metadata.state.tree["params"]
        if shardings is None:
            restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        else:
            restore_args = jax.tree.map(
                lambda sharding: ocp.ArrayRestoreArgs(sharding=sharding), shardings(tree)
            )
        state = ocp.args.PyTreeRestore(
            item={"params": tree}, restore_args={"params": restore_args}, partial_restore=True
        )
        restored = reader.restore(
            path, args=ocp.args.Composite(state=state, metadata=ocp.args.JsonRestore())
        )
    return restored.state["params"], {**restored.metadata, "step": step}
