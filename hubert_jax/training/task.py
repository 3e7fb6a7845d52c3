"""What a trainable brings along; the loop knows nothing else of it."""

import dataclasses
import math
from collections.abc import Callable, Generator, Mapping
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import PartitionSpec

from hubert_jax.errors import InputError

Batch = dict[str, Any]
_Scalars = tuple[jax.Array, dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class AdditiveLoss:
    """A loss of a batch that is the sum over any parts of its rows, as are its metrics.

    `prepare` takes (batch, key) and adds what depends on the whole batch: arrays with a row of the
    batch each, and scalars, such as counts to divide by. `part` takes (params, batch, key, step),
    where the batch is some rows of the prepared one's arrays and all of its scalars.
    """

    prepare: Callable[[Batch, jax.Array], Batch]
    part: Callable[[dict, Batch, jax.Array, jax.Array], _Scalars]

    def __call__(self, params: dict, batch: Batch, key: jax.Array, step: jax.Array) -> _Scalars:
        """Loss and metrics of the whole batch."""
        return self.part(params, self.prepare(batch, key), key, step)


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

    `loss` takes (params, batch, key, step), returns scalars, and is random by the key alone; an
    AdditiveLoss can be computed in micro-batches.
    `facts` go into checkpoints: `inputs` (digests), `config` (all that `config.decisive` gives),
    `rows` (of a batch, by frames) and `version` make the fingerprint; a run goes on only where they
    are the same, but for keys that are new and not in `decisive`: they have their defaults.
    """

    kind: str
    init: Callable[[jax.Array], dict]  # key -> parameters, float32
    loss: Callable[[dict, Batch, jax.Array, jax.Array], _Scalars]
    optimizer: optax.GradientTransformation
    learning_rate: Callable[[jax.Array], jax.Array]
    batch_shapes: tuple[dict[str, jax.ShapeDtypeStruct], ...]  # each compiled before step 1
    batches: Callable[[int], Generator[dict[str, np.ndarray]]]  # this process's, from a step on
    facts: dict[str, Any]
    sharding_rules: tuple[tuple[str, PartitionSpec], ...]  # pattern of the whole path -> partition
    audio_seconds: Callable[[dict[str, np.ndarray]], float] = lambda batch: 0.0  # without padding
    validation: Validation | None = None
    frozen: tuple[str, ...] = ()  # top-level entries of the parameters that are never updated

    def divided(self, params: dict) -> tuple[dict, dict]:
        """The entries of `params` that are trained, and those that are frozen."""
        frozen = {name: params[name] for name in self.frozen}
        return {name: leaf for name, leaf in params.items() if name not in frozen}, frozen

    def loss_of_trained(
        self, frozen: dict
    ) -> Callable[[dict, Batch, jax.Array, jax.Array], _Scalars]:
        """`loss` as a function of the trained entries, beside the `frozen` ones."""
        loss = self.loss
        if isinstance(loss, AdditiveLoss):
            part = loss.part
            return AdditiveLoss(
                loss.prepare, lambda params, *rest: part({**params, **frozen}, *rest)
            )
        return lambda params, *rest: loss({**params, **frozen}, *rest)

    def micro_batch_counts(self, wanted: int, shards: int) -> tuple[int, ...]:
        """`micro_batch_counts` of its rows; InputError for several of a loss of another kind."""
        additive = isinstance(self.loss, AdditiveLoss)
        if not additive and wanted > 1:
            raise InputError(f"config.micro_batches={wanted}: expected 1 for {self.kind}")
        return micro_batch_counts(self.facts["rows"] if additive else {}, wanted, shards)


def micro_batch_counts(rows: Mapping[str, int], wanted: int, shards: int) -> tuple[int, ...]:
    """Into how many micro-batches a batch may be cut: `wanted`, or all there are if it is 0.

    `rows` are a batch's, by its frames. All there are: of the longest bucket, which has the fewest
    rows. Raises InputError where `wanted` ones are not equally many rows of every bucket for each
    of `shards` devices.
    """
    if wanted == 0:
        return _divisors(rows[max(rows, key=int)] // shards if rows else 1)
    counts = _divisors(math.gcd(*rows.values()) // shards or 1)
    if wanted in counts:
        return (wanted,)
    name = f"config.micro_batches={wanted}"
    for frames, count in rows.items():
        if wanted > 0 and count % (wanted * shards):
            raise InputError(
                f"{name}: the batches of bucket {frames} have {count} rows on {shards} "
                f"device(s), expected a multiple of {wanted * shards}; use one of "
                f"{', '.join(map(str, counts))}, or 0, which cuts each bucket as it needs"
            )
    raise InputError(f"{name}: expected 0 or more")


def _divisors(number: int) -> tuple[int, ...]:
    lower = [count for count in range(1, math.isqrt(number) + 1) if number % count == 0]
    return tuple(sorted({*lower, *(number // count for count in lower)}))


@dataclasses.dataclass(frozen=True)
class WarmStart:
    """What a run takes over from another network."""

    params: dict[str, Any]  # some top-level entries of the task's; host arrays, float32
    fingerprint: str
    where: str  # the value of config.init_from
    description: str  # which network, what became of its head and why; one line
