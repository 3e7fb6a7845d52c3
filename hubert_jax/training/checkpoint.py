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
    """The newest checkpoint's parameters and metadata, whatever mesh wrote them.

    Args:
      directory: a run's checkpoint directory (`WORKDIR/train/checkpoints`).

    Returns:
      The parameters as nested dictionaries of NumPy arrays, and the metadata with `step`.

    Raises:
      InputError: there is no complete checkpoint.
    """
    metadata = read_metadata(directory)
    folder = pathlib.Path(directory).absolute() / str(metadata["step"])
    with _reader() as reader:
        tree = reader.metadata(folder).item_metadata.state.tree["params"]
        restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        state = ocp.args.PyTreeRestore(
            item={"params": tree}, restore_args={"params": restore_args}, partial_restore=True
        )
        restored = reader.restore(folder, args=ocp.args.Composite(state=state))
    return restored.state["params"], metadata


def _reader() -> ocp.Checkpointer:
    """Reads parts of a checkpoint without knowing its structure or the mesh that wrote it."""
    return ocp.Checkpointer(
        ocp.CompositeCheckpointHandler(
            state=ocp.PyTreeCheckpointHandler(), metadata=ocp.JsonCheckpointHandler()
        )
    )


def latest_step(directory: str | os.PathLike) -> int:
    """The newest complete checkpoint's step.

    Raises:
      InputError: the directory is missing or holds no complete checkpoint.
    """
    directory = pathlib.Path(directory)
    if directory.is_dir():
        steps = [int(child.name) for child in directory.iterdir() if child.name.isdigit()]
        if steps:
            return max(steps)
    raise InputError(
        f"{directory}: no checkpoint found; expected the checkpoint directory of a run, "
        "for example WORKDIR/train/checkpoints"
    )


def read_metadata(directory: str | os.PathLike) -> dict:
    """The newest checkpoint's metadata, without its arrays; raises as `restore_parameters`."""
    step = latest_step(directory)
    folder = pathlib.Path(directory).absolute() / str(step)
    with _reader() as reader:
        restored = reader.restore(folder, args=ocp.args.Composite(metadata=ocp.args.JsonRestore()))
    return {**restored.metadata, "step": step}


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
