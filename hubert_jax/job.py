"""What every job's main does: typed configuration, one-line errors, `result.json`."""

import contextlib
import errno
import gc
import importlib.metadata
import logging
import os
import platform
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from absl import logging as absl_logging

import hubert_jax
from hubert_jax import command_line, files, host_memory, storage
from hubert_jax.errors import (
    CRASHED,
    Diverged,
    InputError,
    Preempted,
    Unavailable,
    printable,
)

# Tracing a network makes many objects, few of them garbage; Python's own thresholds (700, 10, 10)
# have it look through all of them for a tenth of the time.
GARBAGE_THRESHOLDS = (100_000, 50, 100)

_LIBRARIES = {
    **{name: (name,) for name in ("jax", "flax", "optax")},
    "tensorflow": ("tensorflow", "tensorflow-cpu"),
    "numpy": ("numpy",),
    "sklearn": ("scikit-learn",),
}
_NOT_WRITTEN = re.compile(r"\d+ requested and \d+ written")  # NumPy's word for a full disk
_PROGRESS_SECONDS = 5.0

_started = time.monotonic()


def main(
    name: str,
    schema: type | tuple[type, ...],
    run: Callable[[Any], dict],
    part: str = "",
    computes: bool = True,
    listed: str = "",
) -> None:
    """Runs a job from the command line, as its module's docstring describes it.

    A configuration file is asked for `part`, or for the job's `name`. Of several schemas the one is
    taken whose keys the file has. A job that `computes` keeps freed memory on the CPU back-end.
    With `listed` it is called with values of that key, and needs no file.

    Exit status: 0 when finished, 1 for bad input (one line on standard error), 3 when training
    diverged, 70 for a crash (with its traceback), such as a lost device, and (in one line) for a
    bucket whose service fails, 75 when SIGTERM ended it at a checkpoint, 143 when SIGTERM ended it
    elsewhere, 130 when interrupted from the keyboard.
    """
    arguments = sys.argv[1:]
    schemas = schema if isinstance(schema, tuple) else (schema,)
    if command_line.wants_help(arguments):
        described = sys.modules[run.__module__].__doc__ or ""
        print(command_line.usage(name, schemas, described, part, listed))
        return
    gc.freeze()  # what was imported stays
    gc.set_threshold(*GARBAGE_THRESHOLDS)
    if computes:
        host_memory.keep_freed_memory()
    signal.signal(signal.SIGTERM, _terminated)  # trainings have one of their own
    guarded(lambda: run(command_line.read(arguments, part or name, *schemas, listed=listed)))


def guarded(work: Callable[[], Any]) -> None:
    """Does a job's work; the process ends as `main` says."""
    # Orbax warns of files that parts of its own checkpoints do not have, and logs what it raises;
    # so does asyncio of its tasks.
    absl_logging.set_verbosity(absl_logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    try:
        work()
    except InputError as error:
        _fail("error", error, 1)
    except Diverged as error:
        _fail("diverged", error, 3)
    except Preempted as error:
        _fail("preempted", error, 75)
    except Unavailable as error:
        _fail("error", error, CRASHED)
    except KeyboardInterrupt:
        _fail("interrupted", "", 130)
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            _fail("error", f"{str(error.filename)[:100]}...: too long for a name of a file", 1)
        if isinstance(error, OSError) and (
            error.errno in files.UNWRITABLE or _NOT_WRITTEN.fullmatch(str(error))
        ):
            where = f"{error.filename}: " if error.filename else ""
            remedy = "make room or make it writable, and give the same command again"
            _fail("error", f"{where}cannot be written ({error.strerror or error}); {remedy}", 1)
        if isinstance(error, PermissionError) and storage.is_url(error.filename):
            _fail("error", f"{error.filename}: {error.strerror}; expected credentials that may", 1)
        if others := _others():
            others.await_cause()
        traceback.print_exc()
        _tell_others("crashed", repr(error), CRASHED)
        sys.exit(CRASHED)  # who starts jobs again tries a crash again, and bad input never


def _terminated(*_: Any) -> NoReturn:
    """At once, as a cluster does not wait for long; what is half-written has another name."""
    line = b"terminated: SIGTERM; what is finished is kept, and the same command goes on with it\n"
    os.write(2, line)  # `print` may have been interrupted
    os._exit(128 + signal.SIGTERM)


def _fail(kind: str, error: Any, status: int) -> NoReturn:
    message = printable(str(error))
    _tell_others(kind, message, status)
    print(f"{kind}: {message}" if message else kind, file=sys.stderr, flush=True)
    sys.exit(status)


def _tell_others(kind: str, message: str, status: int) -> None:
    if others := _others():
        others.tell_failure(kind, message, status)


def _others() -> Any:
    """The module `distributed`; None where this process cannot have joined others."""
    if "jax" not in sys.modules:  # which those that have joined have imported
        return None
    from hubert_jax import distributed

    return distributed


def versions() -> dict[str, str]:
    """Versions of Python, of hubert_jax and of the libraries that its numbers depend on."""
    found = {"python": platform.python_version(), "hubert_jax": hubert_jax.__version__}
    for library, packages in _LIBRARIES.items():
        for package in packages:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found[library] = importlib.metadata.version(package)
    return found


class Progress:
    """Prints how much of a job is done, every five seconds, in the first of its processes."""

    def __init__(self, what: str, total: float, line: str) -> None:
        """`line` is the format of the amounts done and in `total`, such as "{} of {} files"."""
        self._what, self._total, self._line = what, total, line
        self._done, self._printed = type(total)(0), time.monotonic()

    def __call__(self, done: float) -> None:
        """Adds `done` to what is done."""
        self._done += done
        if time.monotonic() - self._printed > _PROGRESS_SECONDS:
            self._printed = time.monotonic()
            if (others := _others()) and not others.is_first():
                return
            print(f"{self._what}: {self._line.format(self._done, self._total)}", flush=True)


def finish(
    workdir: str,
    name: str,
    result: dict[str, Any],
    started: float | None = None,
    path: str | os.PathLike | None = None,
) -> dict:
    """Writes WORKDIR/NAME/result.json, or `path`, the sign that the job is finished; returns it.

    Seconds are counted from `started`, by `time.monotonic()`, or from the process's start.
    """
    seconds = round(time.monotonic() - (_started if started is None else started), 2)
    result = {"job": name, **result, "seconds": seconds, "versions": versions()}
    files.write_json(path or f"{workdir}/{name}/result.json", result)
    return result
