"""One update of the parameters, compiled for every shape that a batch can have."""

import concurrent.futures
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hubert_jax.training import sharding
from hubert_jax.training.state import TrainState
from hubert_jax.training.task import Batch, Task

_Step = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]


def train_step(task: Task, seed: int) -> _Step:
    """(state, batch) -> (state, metrics), not compiled.

    The metrics are scalars: `loss`, `gradient_norm`, `learning_rate`, the task's own, and root mean
    squares of gradients, updates and parameters by group.
    """

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        (loss, metrics), gradients = jax.value_and_grad(task.loss, has_aux=True)(
            state.params, batch, key, state.step
        )
        updates, opt_state = task.optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": loss,
            "gradient_norm": optax.tree.norm(gradients),
            "learning_rate": task.learning_rate(state.step),
            **metrics,
            **_rms("gradient_rms", gradients),
            **_rms("update_rms", updates),
            **_rms("parameter_rms", state.params),
        }
        return TrainState(state.step + 1, params, opt_state), metrics

    return update


def compile_steps(
    task: Task, mesh: Mesh, state: TrainState, seed: int
) -> dict[tuple[int, ...], _Step]:
    """`shape_of` a batch -> the compiled update, which takes the state (donated) and the batch.

    `state` is `abstract_state`; the mesh may be of described devices.
    """
    rows = NamedSharding(mesh, sharding.BATCH)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    update = jax.jit(
        train_step(task, seed),
        in_shardings=(shardings, rows),
        out_shardings=(shardings, NamedSharding(mesh, P())),
        donate_argnums=0,
    )

    def compiled(shapes: dict[str, jax.ShapeDtypeStruct]) -> _Step:
        batch = {
            name: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=rows)
            for name, shape in shapes.items()
        }
        return update.lower(state, batch).compile()

    distinct = {shape_of(shapes): shapes for shapes in task.batch_shapes}
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(distinct, pool.map(compiled, distinct.values()), strict=True))


def shape_of(batch: Batch) -> tuple[int, ...]:
    """The shape of a batch's `waveform`, or else of its first array by name."""
    return tuple(batch[min(batch, key=lambda name: (name != "waveform", name))].shape)


def _rms(name: str, tree: dict) -> dict[str, jax.Array]:
    """`name/GROUP` -> root mean square; a group is a module of the encoder, or a kind of head."""
    groups: dict[str, list[jax.Array]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        first, _, rest = sharding.path_name(path).partition("/")
        group = rest.partition("/")[0] if first == "hubert" else first.rstrip("_0123456789")
        groups.setdefault(group, []).append(leaf)
    return {
        f"{name}/{group}": jnp.sqrt(
            sum(jnp.sum(jnp.square(leaf)) for leaf in leaves) / sum(leaf.size for leaf in leaves)
        )
        for group, leaves in sorted(groups.items())
    }
