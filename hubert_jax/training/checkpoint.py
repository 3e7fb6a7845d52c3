"""Checkpoints: orbax, asynchronous, with a JSON document beside the arrays.

The only module that knows orbax. A checkpoint directory holds one folder a step; its JSON
document (`metadata`) says what the checkpoint is: kind, architecture, configuration, labels.
"""

import os
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from hubert_jax import config as config_lib
from hubert_jax.errors import InputError


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, directory: str | os.PathLike, keep: int = 2):
        """Opens `directory`, creating it; the newest `keep` checkpoints are kept."""
        self._manager = ocp.CheckpointManager(
            pathlib.Path(directory).absolute(),
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

    def close(self) -> None:
        """Waits for saves under way and closes."""
        self._manager.wait_until_finished()
        self._manager.close()


def restore_parameters(directory: str | os.PathLike) -> tuple[dict, dict]:
    """A checkpoint's parameters and metadata, whatever mesh wrote them.

    Args:
      directory: a run's checkpoint directory (`WORKDIR/train/checkpoints`): its newest good
        checkpoint, any newer one that cannot be read being named on the way; or DIR@STEP.

    Returns:
      The parameters as nested dictionaries of NumPy arrays, and the metadata with `step`.

    Raises:
      InputError: there is no such checkpoint, or none that can be read.
    """
    folder, _, step = str(directory).rpartition("@")
    if not (folder and step.isdigit()):
        folder, step = str(directory), ""
    steps = _steps(pathlib.Path(folder))
    if step:
        if int(step) not in steps:
            raise InputError(
                f"{directory}: no such checkpoint; there are steps {', '.join(map(str, steps))}"
            )
        steps = [int(step)]
    problem = ""
    for number in reversed(steps):
        try:
            return _restore(pathlib.Path(folder).absolute() / str(number), number)
        except Exception as error:  # orbax and tensorstore have dozens
            reason = " ".join(str(error).split())[:200]
            problem = f"{folder}: checkpoint {number} cannot be read ({reason})"
            if number != steps[0]:
                print(f"warning: {problem}; taking the one before", flush=True)
    raise InputError(f"{problem}; expected a complete checkpoint: name another step or run")


def _steps(directory: pathlib.Path) -> list[int]:
    """The steps of a checkpoint directory, ascending; raises InputError where there are none."""
    steps: list[int] = []
    if directory.is_dir():
        steps = sorted(int(child.name) for child in directory.iterdir() if child.name.isdigit())
    if not steps:
        raise InputError(
            f"{directory}: no checkpoint found; expected the checkpoint directory of a run, "
            "for example WORKDIR/train/checkpoints"
        )
    return steps


def _restore(folder: pathlib.Path, step: int) -> tuple[dict, dict]:
    handlers = ocp.CompositeCheckpointHandler(
        state=ocp.PyTreeCheckpointHandler(), metadata=ocp.JsonCheckpointHandler()
    )
    with ocp.Checkpointer(handlers) as reader:
        tree = reader.metadata(folder).item_metadata.state.tree["params"]
        restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        state = ocp.args.PyTreeRestore(
            item={"params": tree}, restore_args={"params": restore_args}, partial_restore=True
        )
        metadata = ocp.args.JsonRestore()
        restored = reader.restore(folder, args=ocp.args.Composite(state=state, metadata=metadata))
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
