"""What a trainable brings along; the loop knows nothing else of it."""

import dataclasses
from collections.abc import Callable, Generator
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import PartitionSpec

from hubert_jax.training.sharding import HUBERT_RULES

Batch = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Task:
    """A model, its loss and its data.

    Attributes:
      kind: what its checkpoints are: "pretraining", "ctc", ...
      init: key -> parameters, float32.
      loss: (params, batch, key, step) -> (scalar loss, scalar metrics); randomness comes from the
        key alone, which is a function of (seed, step).
      optimizer: the gradient transformation.
      learning_rate: step -> learning rate, for the log.
      batch_shapes: every shape that a global batch can have; each is compiled before step 1.
      batches: first step -> this process's rows of the batches from there on; endless, or until
        the last step.
      sharding_rules: where its parameters lie, see `sharding.parameter_shardings`.
      facts: what its checkpoints say of it, JSON-able; `inputs` (digests), `decisive` (see
        `config.decisive`), `rows` (of a batch, by frames) and `version` (of its code) make the
        fingerprint, and a run goes on only where these and `config` are the same.
    """

    kind: str
    init: Callable[[jax.Array], dict]
    loss: Callable[[dict, Batch, jax.Array, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
    optimizer: optax.GradientTransformation
    learning_rate: Callable[[jax.Array], jax.Array]
    batch_shapes: tuple[dict[str, jax.ShapeDtypeStruct], ...]
    batches: Callable[[int], Generator[dict[str, np.ndarray]]]
    facts: dict[str, Any]
    sharding_rules: tuple[tuple[str, PartitionSpec], ...] = HUBERT_RULES


@dataclasses.dataclass(frozen=True)
class WarmStart:
    """Parameters that a run takes over from another network.

    Attributes:
      params: some of the top-level entries of the task's parameters; host arrays, float32.
      fingerprint: of the network.
      description: which network, what became of its head and why, one line.
    """

    params: dict[str, Any]
    fingerprint: str
    description: str
