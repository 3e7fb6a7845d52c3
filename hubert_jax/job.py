"""What every job's main does: flags, typed configuration, one-line errors, `result.json`."""

import importlib
import platform
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

import hubert_jax
from hubert_jax import config as config_lib
from hubert_jax import files
from hubert_jax.errors import InputError

_started = time.monotonic()


def main(name: str, schema: type, run: Callable[[Any], dict]) -> None:
    """Runs a job from the command line and exits.

    Args:
      name: the job's name, for example `train`; a config file's `get_config(name)` is asked for
        this job's part unless the flag says otherwise (`--config=configs/demo.py:finetune`).
      schema: the frozen dataclass of the job's configuration.
      run: does the work; it takes a `schema` and returns the result.

    Exit status: 0 when finished, 1 for bad input (one line on standard error) and for a crash
    (with its traceback), 130 when interrupted from the keyboard.
    """
    module = sys.modules["__main__"]
    flag = config_flags.DEFINE_config_file(
        "config",
        lock_config=True,
        help_string=(
            "Configuration file, with `:PART` for one part of it (configs/demo.py:train); override "
            "any key with --config.KEY=VALUE. Keys: " + ", ".join(_keys(schema))
        ),
    )
    flags.mark_flag_as_required("config")

    def parse(argv: list[str]) -> list[str]:
        try:
            return app.parse_flags_with_usage(_with_part(argv, name))
        except InputError as error:
            _stop(error)
        except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
            # ml_collections reports unknown keys and ill-typed overrides as these.
            _stop(InputError("flags: " + " ".join(str(error).strip("'\"").split())))

    def absl_main(argv: list[str]) -> None:
        if len(argv) > 1:
            _stop(InputError(f"unexpected argument {argv[1]!r}; options are --config.KEY=VALUE"))
        logging.set_verbosity(logging.WARNING)
        try:
            run(config_lib.build(schema, flag.value))
        except InputError as error:
            _stop(error)
        except KeyboardInterrupt:
            sys.exit(130)
        except Exception:
            traceback.print_exc()
            sys.exit(1)

    sys.modules["__main__"].__doc__ = module.__doc__
    app.run(absl_main, flags_parser=parse)


def _keys(schema: type) -> list[str]:
    return list(schema.__dataclass_fields__)


def _with_part(argv: list[str], name: str) -> list[str]:
    """Asks a config file for the part of job `name` where the user named none."""
    changed = []
    for i, argument in enumerate(argv):
        is_value = i > 0 and argv[i - 1] in ("--config", "-config")
        if is_value or argument.startswith(("--config=", "-config=")):
            if argument.endswith(".py"):
                argument += f":{name}"
        changed.append(argument)
    return changed


def _stop(error: InputError) -> None:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    sys.exit(1)


def versions() -> dict[str, str]:
    """Versions of Python, of hubert_jax and of the libraries loaded so far."""
    found = {"python": platform.python_version(), "hubert_jax": hubert_jax.__version__}
    for library in ("jax", "flax", "optax", "tensorflow", "numpy", "sklearn"):
        if library in sys.modules:
            found[library] = importlib.import_module(library).__version__
    return found


def finish(workdir: str, name: str, result: dict[str, Any], started: float | None = None) -> dict:
    """Writes `WORKDIR/<name>/result.json`, the sign that the job is finished.

    Args:
      workdir: the job's working directory.
      name: the job's name.
      result: what was done; JSON-able.
      started: `time.monotonic()` at the job's start; the process's start when left out.

    Returns:
      `result` with `seconds` and `versions`, as written.
    """
    seconds = round(time.monotonic() - (_started if started is None else started), 2)
    result = {"job": name, **result, "seconds": seconds, "versions": versions()}
    files.write_json(f"{workdir}/{name}/result.json", result)
    return result
