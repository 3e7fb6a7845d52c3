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
      init: key -> parameters, float32.
      loss: (params, batch, key, step) -> (scalar loss, scalar metrics); random by the key alone.
      batch_shapes: of all global batches; each is compiled before step 1.
      batches: first step -> this process's rows from there on; endless, or until the last step.
      facts: JSON-able, for checkpoints; `inputs` (digests), `decisive` (see `config.decisive`),
        `rows` (of a batch, by frames) and `version` make the fingerprint; a run goes on only where
        these and `config` are the same.
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
    """What a run takes over from another network."""

    params: dict[str, Any]  # some top-level entries of the task's; host arrays, float32
    fingerprint: str
    description: str  # which network, what became of its head and why; one line
