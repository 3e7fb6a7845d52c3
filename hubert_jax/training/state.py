"""The training state: its shapes, or created on the mesh."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from hubert_jax.training import sharding
from hubert_jax.training.task import Task


@flax.struct.dataclass
class TrainState:
    """What a run carries from step to step; randomness is a function of (seed, step)."""

    step: jax.Array  # () int32, updates done
    params: dict  # float32
    opt_state: optax.OptState  # of the parameters that are trained


def abstract_state(task: Task, mesh: Mesh) -> TrainState:
    """The state's shapes, dtypes and shardings, without any memory."""
    shapes = jax.eval_shape(lambda key: _create(task, key), jax.random.key(0))
    params = sharding.parameter_shardings(mesh, shapes.params, task.sharding_rules)
    return jax.tree.map(
        lambda shape, where: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where),
        shapes,
        sharding.state_shardings(mesh, shapes, params),
    )


def create_state(task: Task, mesh: Mesh, seed: int) -> TrainState:
    """A new state, initialised where it lies: no device ever holds the whole of a sharded one."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(task, mesh))
    return jax.jit(lambda key: _create(task, key), out_shardings=shardings)(jax.random.key(seed))


def with_parameters(state: TrainState, params: dict) -> TrainState:
    """`state` with `params`, host arrays, in place of some of its top-level entries."""

    def place(new: np.ndarray, old: jax.Array) -> jax.Array:
        # Of several processes device_put would gather a copy each, to see that they are the same.
        return jax.make_array_from_callback(new.shape, old.sharding, lambda index: new[index])

    placed = jax.tree.map(place, params, {name: state.params[name] for name in params})
    return TrainState(state.step, {**state.params, **placed}, state.opt_state)


def _create(task: Task, key: jax.Array) -> TrainState:
    params = task.init(key)
    return TrainState(
        jnp.zeros((), jnp.int32), params, task.optimizer.init(task.divided(params)[0])
    )
