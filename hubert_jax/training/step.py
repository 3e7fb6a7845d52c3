"""One update of the parameters, compiled for every shape that a batch can have."""

import concurrent.futures
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hubert_jax import distributed
from hubert_jax.errors import InputError
from hubert_jax.training import sharding
from hubert_jax.training.state import TrainState
from hubert_jax.training.task import AdditiveLoss, Batch, Task

_Step = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]
_Compiled = jax.stages.Compiled
USABLE = 0.95  # of a device's memory; free pieces can be too small
_WAITING = 2  # batches on the device beside the one that a step works on


def train_step(task: Task, mesh: Mesh, seed: int, micro_batches: int = 1) -> _Step:
    """(state, batch) -> (state, metrics), not compiled; micro-batches need an AdditiveLoss.

    The metrics are scalars: `loss`, `gradient_norm`, `learning_rate`, the task's own, and root mean
    squares of gradients, updates and parameters by group.
    """

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        trained, frozen = task.divided(state.params)
        loss_of = task.loss_of_trained(frozen)
        if isinstance(loss_of, AdditiveLoss) and micro_batches > 1:
            gradient_of = _accumulated(loss_of, mesh, micro_batches)
        else:
            gradient_of = jax.value_and_grad(loss_of, has_aux=True)
        (loss, metrics), gradients = gradient_of(trained, batch, key, state.step)
        updates, opt_state = task.optimizer.update(gradients, state.opt_state, trained)
        params = {**optax.apply_updates(trained, updates), **frozen}
        metrics = {
            "loss": loss,
            "gradient_norm": optax.tree.norm(gradients),
            "learning_rate": task.learning_rate(state.step),
            **metrics,
            **_rms("gradient_rms", gradients),
            **_rms("update_rms", updates),
            **_rms("parameter_rms", trained),
        }
        return TrainState(state.step + 1, params, opt_state), metrics

    return update


def compile_steps(
    task: Task, mesh: Mesh, state: TrainState, seed: int, micro_batches: Sequence[int] = (1,)
) -> dict[tuple[int, ...], _Compiled]:
    """`shape_of` a batch -> the compiled update, which takes the state (donated) and the batch.

    `state` is `abstract_state`; the mesh may be of described devices. Of several numbers of
    `micro_batches`, ascending, it takes the first that fits the memory of every device, or 1 where
    devices do not say how much they have, and announces it; a bucket whose rows this number does
    not divide is cut into the next one that does. Raises InputError where none fits.
    """
    rows = NamedSharding(mesh, sharding.BATCH)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    distinct = {shape_of(shapes): shapes for shapes in task.batch_shapes}

    def compiled(count: int, shapes: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], _Compiled]:
        def compile_one(shape: tuple[int, ...]) -> _Compiled:
            own = shape[0] // sharding.batch_shards(mesh)  # rows of a device
            parts = next((part for part in range(count, own) if own % part == 0), own)
            update = jax.jit(
                train_step(task, mesh, seed, parts),
                in_shardings=(shardings, rows),
                out_shardings=(shardings, NamedSharding(mesh, P())),
                donate_argnums=0,
            )
            batch = {
                name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=rows)
                for name, array in distinct[shape].items()
            }
            return update.lower(state, batch).compile()

        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            return dict(zip(shapes, pool.map(compile_one, shapes), strict=True))

    # Attention's memory grows with the square of the length.
    longest_first = sorted(distinct, key=lambda shape: shape[1:], reverse=True)
    if len(micro_batches) == 1:
        return compiled(micro_batches[0], longest_first)
    memory = _device_memory(mesh)
    if memory is None:
        distributed.announce("1 micro-batch: the devices do not say how much memory they have")
        return compiled(1, longest_first)
    for count in micro_batches:
        steps: dict[tuple[int, ...], _Compiled] = {}
        for shapes in (longest_first[:1], longest_first[1:]):
            try:
                steps |= compiled(count, shapes)
                needed = max(
                    needed_memory(step, distinct[shape], mesh) for shape, step in steps.items()
                )
            except jax.errors.JaxRuntimeError as error:  # TPU's compiler counts by itself
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                needed = math.inf
            if (needed := _over_processes(np.max, needed)) > memory:
                break
        else:
            held = f"{needed / 2**30:.1f} of {memory / 2**30:.1f} GiB a device"
            distributed.announce(f"{count} micro-batch(es) a step: {held}")
            return steps
    raise InputError(
        f"config.micro_batches=0: {micro_batches[-1]} micro-batches, the most that rows allow, do "
        f"not fit the {memory / 2**30:.1f} GiB of a device; use config.execution.dtype=bfloat16 or "
        "rematerialize, cut the network by config.mesh.fsdp, or lower config.frames_per_step"
    )


def shape_of(batch: Batch) -> tuple[int, ...]:
    """The shape of a batch's largest array: of audio, its waveforms (B, N)."""
    shapes = (tuple(array.shape) for array in batch.values())
    return max(shapes, key=lambda shape: (math.prod(shape), shape))


def needed_memory(step: _Compiled, batch: Batch, mesh: Mesh) -> float:
    """Bytes of a device while the update runs, batches that wait for it included."""
    found: Any = step.memory_analysis()
    rows = sum(math.prod(array.shape) * array.dtype.itemsize for array in batch.values())
    program = found.temp_size_in_bytes + found.generated_code_size_in_bytes
    results = found.output_size_in_bytes - found.alias_size_in_bytes
    waiting = _WAITING * rows / sharding.batch_shards(mesh)
    return found.argument_size_in_bytes + program + results + waiting


def _rms(name: str, tree: dict) -> dict[str, jax.Array]:
    """`name/GROUP` -> root mean square; a group is a module of the encoder, or a kind of head."""
    groups: dict[str, list[jax.Array]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        first, _, rest = sharding.path_name(path).partition("/")
        group = rest.partition("/")[0] if first == "hubert" else first.rstrip("_0123456789")
        groups.setdefault(group, []).append(leaf)
    return {
        f"{name}/{group}": jnp.sqrt(
            # A float: a group of large networks has more numbers than an int32 counts.
            sum(jnp.sum(jnp.square(leaf)) for leaf in leaves)
            / float(sum(leaf.size for leaf in leaves))
        )
        for group, leaves in sorted(groups.items())
    }


def _accumulated(loss: AdditiveLoss, mesh: Mesh, count: int) -> Callable:
    """As `jax.value_and_grad` of the loss, of one micro-batch after the other.

    Each is a part of every device's own rows, so that none moves, and has dropout keys of its own.
    """
    shards = sharding.batch_shards(mesh)

    def cut(array: jax.Array) -> jax.Array:
        """(R, ...) -> (count, R / count, ...)."""
        own = jax.lax.with_sharding_constraint(array, NamedSharding(mesh, sharding.BATCH))
        parts = own.reshape(shards, count, -1, *array.shape[1:]).swapaxes(0, 1)
        parts = parts.reshape(count, -1, *array.shape[1:])
        lies = NamedSharding(mesh, P(None, *sharding.BATCH))
        return jax.lax.with_sharding_constraint(parts, lies)

    def gradient_of(params: dict, batch: Batch, key: jax.Array, step: jax.Array) -> tuple:
        prepared = loss.prepare(batch, key)
        scalars = {name: value for name, value in prepared.items() if value.ndim == 0}
        parts = {name: cut(value) for name, value in prepared.items() if name not in scalars}

        def add(gradients: dict, numbered: tuple[jax.Array, Batch]) -> tuple[dict, Any]:
            number, part = numbered
            found, more = jax.value_and_grad(loss.part, has_aux=True)(
                params, {**part, **scalars}, jax.random.fold_in(key, number), step
            )
            return jax.tree.map(jnp.add, gradients, more), found

        zeros = jax.tree.map(jnp.zeros_like, params)
        gradients, found = jax.lax.scan(add, zeros, (jnp.arange(count), parts))
        return jax.tree.map(lambda values: values.sum(axis=0), found), gradients

    return gradient_of


def _device_memory(mesh: Mesh) -> float | None:
    """Bytes that a program can use of the smallest device; None where one does not say."""
    limits = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in mesh.local_devices]
    return _over_processes(np.min, min(limits)) * USABLE or None


def _over_processes(choose: Callable, value: float) -> float:
    """The smallest or largest value of all processes, which must run the same program."""
    return float(choose(multihost_utils.process_allgather(np.float32(value))))
