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
class Validation:
    """How a run is measured on a held-out split, without anything random.

    `evaluate` takes (params, batch); `summarise` what it gave for all batches, as NumPy arrays of
    all processes' rows. Where `facts` change, earlier figures are of another measurement.
    """

    batch_shapes: tuple[dict[str, jax.ShapeDtypeStruct], ...]
    batches: Callable[[], Generator[dict[str, np.ndarray]]]  # this process's, the same each time
    evaluate: Callable[[dict, Batch], dict[str, jax.Array]]
    summarise: Callable[[list[dict[str, np.ndarray]]], dict[str, float]]
    facts: dict[str, Any]
    every: int  # steps
    metric: str  # among the figures, of the best checkpoint
    larger_is_better: bool
    patience: int  # validations without a better value that end the run; 0: never


@dataclasses.dataclass(frozen=True)
class Task:
    """A model, its loss and its data.

    `loss` takes (params, batch, key, step), returns scalars, and is random by the key alone.
    `facts` go into checkpoints: `inputs` (digests), `decisive` (see `config.decisive`), `rows` (of
    a batch, by frames) and `version` make the fingerprint; a run goes on only where these and
    `config` are the same.
    """

    kind: str
    init: Callable[[jax.Array], dict]  # key -> parameters, float32
    loss: Callable[[dict, Batch, jax.Array, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
    optimizer: optax.GradientTransformation
    learning_rate: Callable[[jax.Array], jax.Array]
    batch_shapes: tuple[dict[str, jax.ShapeDtypeStruct], ...]  # each compiled before step 1
    batches: Callable[[int], Generator[dict[str, np.ndarray]]]  # this process's, from a step on
    facts: dict[str, Any]
    sharding_rules: tuple[tuple[str, PartitionSpec], ...] = HUBERT_RULES
    validation: Validation | None = None


@dataclasses.dataclass(frozen=True)
class WarmStart:
    """What a run takes over from another network."""

    params: dict[str, Any]  # some top-level entries of the task's; host arrays, float32
    fingerprint: str
    description: str  # which network, what became of its head and why; one line
