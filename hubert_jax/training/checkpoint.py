"""Checkpoints: orbax, asynchronous, with a JSON document beside the arrays.

The only module that knows orbax. A checkpoint directory holds one folder a step; its JSON
document (`metadata`) says what the checkpoint is: kind, architecture, configuration, labels.
"""

import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from hubert_jax import config as config_lib
from hubert_jax.errors import InputError


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, directory: str | os.PathLike, keep: int = 2) -> None:
        """Opens `directory`, creating it; the newest `keep` checkpoints are kept."""
        self._directory = pathlib.Path(directory).absolute()
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, create=True, enable_async_checkpointing=True
            ),
        )

    @property
    def latest_step(self) -> int | None:
        """The newest complete checkpoint's step, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, metadata: dict) -> None:
        """Begins to save `state` (a tree of arrays); returns once it is copied."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), metadata=ocp.args.JsonSave(metadata)
            ),
        )

    def metadata(self, step: int) -> dict:
        """The JSON document of a step's checkpoint."""
        return self._manager.restore(
            step, args=ocp.args.Composite(metadata=ocp.args.JsonRestore())
        ).metadata

    def restore(self, step: int, like: Any) -> Any:
        """The state of `step` with the shapes and shardings of `like`."""
        return self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(like))
        ).state

    def restore_newest(self, like: Any, check: Callable[[dict], Any]) -> tuple[int, Any, Any]:
        """The newest checkpoint that can be read; newer ones are named in a printed line.

        They are moved beside the directory of checkpoints, so that their steps can be saved again.

        Args:
          like: as in `restore`.
          check: takes the metadata of a checkpoint before its state is read; may refuse it.

        Returns:
          Its step, its state and what `check` returned.

        Raises:
          InputError: none can be read, and then nothing is moved; or what `check` raised.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for number, step in enumerate(steps):
            try:
                checked = check(self.metadata(step))
                state = self.restore(step, like)
            except InputError:
                raise
            except Exception as error:  # orbax and tensorstore raise dozens of types
                reason = " ".join(str(error).split())[:200]
                problem = f"{self._directory}: checkpoint {step} cannot be read ({reason})"
                if step == steps[-1]:
                    raise InputError(
                        f"{problem}, nor any before it; restore it from a copy, or remove "
                        f"{self._directory.parent} to begin again"
                    ) from None
                print(f"{problem}; the one before is used", flush=True)
            else:
                self._set_aside(steps[:number])
                return step, state, checked
        raise InputError(f"{self._directory}: no checkpoint found")

    def _set_aside(self, steps: list[int]) -> None:
        if not steps:
            return
        if jax.process_index() == 0:
            for step in steps:
                aside = self._directory.with_name(f"damaged-{step}")
                shutil.rmtree(aside, ignore_errors=True)
                (self._directory / str(step)).rename(aside)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints are set aside")
        self._manager.reload()

    def close(self) -> None:
        """Waits for saves under way and closes."""
        self._manager.wait_until_finished()
        self._manager.close()


Shardings = Callable[[Any], Any]


def restore_parameters(
    directory: str | os.PathLike, shardings: Shardings | None = None
) -> tuple[dict, dict]:
    """A checkpoint's parameters and metadata, whatever mesh wrote them.

    Args:
      directory: a run's checkpoint directory (`WORKDIR/train/checkpoints`): its newest checkpoint
        that can be read, any newer one being named in a printed line; or DIR@STEP.
      shardings: gives the sharding of every parameter, from the tree of their shapes; the arrays
        are then read straight onto these devices.

    Returns:
      The parameters as nested dictionaries of NumPy arrays, with `shardings` of JAX arrays, and
      the metadata with `step`.

    Raises:
      InputError: there is no such checkpoint, or none that can be read.
    """
    folder, named = _named_step(pathlib.Path(directory).absolute())
    steps = _steps(folder)
    there = f"there are steps {', '.join(map(str, steps))}"
    if named is not None and named not in steps:
        raise InputError(f"{directory}: no such checkpoint; {there}")
    problem = ""
    for step in [named] if named is not None else reversed(steps):
        try:
            return _restore(folder, step, shardings)
        except InputError:
            raise
        except Exception as error:  # orbax and tensorstore raise dozens of types
            reason = " ".join(str(error).split())[:200]
            problem = f"{folder}: checkpoint {step} cannot be read ({reason})"
            if named is None and step != steps[0]:
                print(f"{problem}; the one before is used", flush=True)
    raise InputError(f"{problem}; {there}: name another (orbax:DIR@STEP), or another run")


def _named_step(directory: pathlib.Path) -> tuple[pathlib.Path, int | None]:
    """DIR and STEP of DIR@STEP; a directory may also have such a name itself."""
    name, at, step = directory.name.rpartition("@")
    if at and name and step.isdecimal() and not directory.is_dir():
        return directory.with_name(name), int(step)
    return directory, None


def _steps(directory: pathlib.Path) -> list[int]:
    """The steps of a checkpoint directory, ascending; raises InputError where there are none."""
    steps: list[int] = []
    if directory.is_dir():
        steps = sorted(int(child.name) for child in directory.iterdir() if child.name.isdecimal())
    if not steps:
        raise InputError(
            f"{directory}: no checkpoint found; expected the checkpoint directory of a run, "
            "for example WORKDIR/train/checkpoints"
        )
    return steps


def _restore(folder: pathlib.Path, step: int, shardings: Shardings | None) -> tuple[dict, dict]:
    path = folder / str(step)
    for part in ("state", "metadata"):
        if not (path / part).is_dir():
            raise FileNotFoundError(f"its part {part} is missing")
    handlers = ocp.CompositeCheckpointHandler(
        state=ocp.PyTreeCheckpointHandler(), metadata=ocp.JsonCheckpointHandler()
    )
    with ocp.Checkpointer(handlers) as reader:
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
        metadata = ocp.args.JsonRestore()
        restored = reader.restore(path, args=ocp.args.Composite(state=state, metadata=metadata))
    return restored.state["params"], {**restored.metadata, "step": step}


# What decides a checkpoint's weights; a converted network has some of these only.
_DECISIVE = ("kind", "inputs", "decisive", "rows", "version", "step")


def fingerprint(metadata: dict) -> str:
    """What a label set or another run names a checkpoint by.

    Training is a function of its inputs' digests, of the values of its configuration that differ
    from their defaults, of the rows of its batches and of the code's version, so their digest
    together with the step stands for the weights without hashing gigabytes of them. How a run was
    executed (`Execution`, mesh, hosts) is not in it.
    """
    return config_lib.digest({key: metadata[key] for key in _DECISIVE if key in metadata})
