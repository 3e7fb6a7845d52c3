"""Checkpoints: orbax, asynchronous, with a JSON document beside the arrays.

The only module that knows orbax. A checkpoint directory holds one folder a step; its JSON
document (`metadata`) says what the checkpoint is: kind, model, configuration, identity, labels.
"""

import dataclasses
import os
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from hubert_jax import config as config_lib
from hubert_jax.errors import InputError
from hubert_jax.model.architecture import HubertConfig


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


def identity(metadata: dict) -> str:
    """What a label set or another run names a checkpoint by.

    Training is a function of its configuration and its inputs' digests, so their digest together
    with the step identifies the weights without hashing gigabytes of them.
    """
    named = {key: metadata[key] for key in ("kind", "model", "inputs", "step")}
    return config_lib.digest(named)


def require_architecture(found: dict, expected: HubertConfig, where: str) -> None:
    """Refuses a checkpoint whose network is another one than `expected`.

    Raises:
      InputError: names the first field that differs.
    """
    expected_values = config_lib.to_dict(expected)
    for field in dataclasses.fields(HubertConfig):
        if field.name in _NOT_ARCHITECTURE:
            continue
        if found.get(field.name) != expected_values[field.name]:
            raise InputError(
                f"{where}: checkpoint of another architecture: {field.name} is "
                f"{found.get(field.name)}, config.model.{field.name} is "
                f"{expected_values[field.name]}; use the configuration that it was trained with"
            )


# Fields that may differ between a checkpoint and the run that loads it: they change the
# computation's randomness or speed, or belong to the replaceable head, not the weights' shapes.
_NOT_ARCHITECTURE = frozenset(
    "codebooks projection_dim temperature dropout attention_dropout activation_dropout "
    "input_dropout layer_drop dtype attention rematerialize scan_unroll "
    "frontend_gradient_scale".split()
)
