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

Step = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]


def train_step(task: Task, seed: int) -> Step:
    """(state, batch) -> (state, metrics), not compiled.

    The metrics are scalars: `loss`, `gradient_norm`, `learning_rate`, the task's own, and the root
    mean square of gradients, updates and parameters of every group of parameters.
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
) -> dict[tuple[int, ...], Step]:
    """The update for each of the task's batch shapes, compiled in parallel threads.

    Args:
      task: what is trained.
      mesh: where it runs; its devices may be described ones (ahead-of-time compilation).
      state: shapes and shardings, from `abstract_state`.
      seed: of the run.

    Returns:
      By the shape of the batch's `waveform`, or of its first array: executables that take the
      state (donated) and a global batch.
    """
    rows = NamedSharding(mesh, sharding.BATCH)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    everywhere = NamedSharding(mesh, P())
    update = train_step(task, seed)

    def compiled(shapes: dict[str, jax.ShapeDtypeStruct]) -> Step:
        batch = {
            name: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=rows)
            for name, shape in shapes.items()
        }
        step = jax.jit(
            update,
            in_shardings=(shardings, rows),
            out_shardings=(shardings, everywhere),
            donate_argnums=0,
        )
        return step.lower(state, batch).compile()

    distinct = {shape_of(shapes): shapes for shapes in task.batch_shapes}
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(distinct, pool.map(compiled, distinct.values()), strict=True))


def shape_of(batch: Batch) -> tuple[int, ...]:
    """What tells batches of different shapes apart."""
    return tuple(batch[min(batch, key=lambda name: (name != "waveform", name))].shape)


def _rms(name: str, tree: dict) -> dict[str, jax.Array]:
    """Root mean square of the leaves of every group: `name/GROUP` -> scalar."""
    groups: dict[str, list[jax.Array]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        groups.setdefault(_group(sharding.path_name(path)), []).append(leaf)
    return {
        f"{name}/{group}": jnp.sqrt(
            sum(jnp.sum(jnp.square(leaf)) for leaf in leaves) / sum(leaf.size for leaf in leaves)
        )
        for group, leaves in sorted(groups.items())
    }


def _group(path: str) -> str:
    """The top-level module of a parameter, those of the encoder by name; heads by their kind."""
    first, _, rest = path.partition("/")
    return rest.partition("/")[0] if first == "hubert" else first.rstrip("_0123456789")
