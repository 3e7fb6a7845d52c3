"""What every job's main does: typed configuration, one-line errors, `result.json`."""

import importlib
import os
import platform
import sys
import time
from collections.abc import Callable
from typing import Any

from absl import logging

import hubert_jax
from hubert_jax import command_line, files, host_memory
from hubert_jax.errors import Diverged, InputError

_started = time.monotonic()


def main(
    name: str,
    schema: type,
    run: Callable[[Any], dict],
    part: str = "",
    computes: bool = True,
) -> None:
    """Runs a job from the command line.

    Args:
      name: the job's name, for example `train`; a configuration file is asked for the part of
        this name unless the user names another (`--config=configs/finetune/base.py:10h`).
      schema: the frozen dataclass of the job's configuration.
      run: does the work; it takes a `schema` and returns the result. Its module's docstring
        is the job's description.
      part: of the configuration file that it takes, if it is not its name.
      computes: whether it runs networks; on the CPU back-end such a job keeps freed memory.

    Exit status: 0 when finished, 1 for bad input (one line on standard error) and for a crash
    (with its traceback), 3 when training diverged, 130 when interrupted from the keyboard.
    """
    arguments = sys.argv[1:]
    if command_line.wants_help(arguments):
        print(command_line.usage(name, schema, sys.modules[run.__module__].__doc__ or "", part))
        return
    if computes:
        host_memory.keep_freed_memory()
    guarded(lambda: run(command_line.read(arguments, part or name, schema)))


def guarded(work: Callable[[], Any]) -> None:
    """Does a job's work; bad input and interruption end the process as `main` says."""
    # Orbax warns of files that parts of its own checkpoints do not have.
    logging.set_verbosity(logging.ERROR)
    try:
        work()
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        sys.exit(1)
    except Diverged as error:
        print(f"diverged: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        sys.exit(3)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        sys.exit(130)


def versions() -> dict[str, str]:
    """Versions of Python, of hubert_jax and of the libraries loaded so far."""
    found = {"python": platform.python_version(), "hubert_jax": hubert_jax.__version__}
    for library in ("jax", "flax", "optax", "tensorflow", "numpy", "sklearn"):
        if library in sys.modules:
            found[library] = importlib.import_module(library).__version__
    return found


def require_alone(name: str) -> None:
    """Refuses one of several processes that JAX has joined, where a job is done by one.

    Raises:
      InputError: there are several.
    """
    import jax

    # Not asked otherwise: it would start a back-end, which takes an accelerator's memory.
    if jax.distributed.is_initialized() and jax.process_count() > 1:
        raise InputError(
            f"{name}: started in {jax.process_count()} processes; expected one: it uses all "
            "devices of its host, and only train and finetune run on several"
        )


def finish(
    workdir: str,
    name: str,
    result: dict[str, Any],
    started: float | None = None,
    path: str | os.PathLike | None = None,
    write: bool = True,
) -> dict:
    """Writes `WORKDIR/<name>/result.json`, the sign that the job is finished.

    Args:
      workdir: the job's working directory.
      name: the job's name.
      result: what was done; JSON-able.
      started: `time.monotonic()` at the job's start; the process's start when left out.
      path: another file to write, for a job without a working directory.
      write: False in all but the first of several processes that do one job together.

    Returns:
      `result` with `seconds` and `versions`, as written.
    """
    seconds = round(time.monotonic() - (_started if started is None else started), 2)
    result = {"job": name, **result, "seconds": seconds, "versions": versions()}
    if write:
        files.write_json(path or f"{workdir}/{name}/result.json", result)
    return result
