"""The training state: its shapes, or created on the mesh."""

import functools

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
    params = jax.eval_shape(task.init, jax.random.key(0))
    shapes = jax.eval_shape(functools.partial(_begun, task), params)
    where = sharding.parameter_shardings(mesh, params, task.sharding_rules)
    return jax.tree.map(
        lambda shape, where: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where),
        shapes,
        sharding.state_shardings(mesh, shapes, where),
    )


def create_state(task: Task, abstract: TrainState, seed: int) -> TrainState:
    """A new state, initialised where it lies: no device ever holds the whole of a sharded one.

    `abstract` is the task's `abstract_state`. Tasks that share an `init` share what is compiled.
    """
    where = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    params = jax.jit(task.init, out_shardings=where.params)(jax.random.key(seed))
    begin = functools.partial(_begun, task)
    return jax.jit(begin, out_shardings=where, donate_argnums=0)(params)


def with_parameters(state: TrainState, params: dict) -> TrainState:
    """`state` with `params`, host arrays, in place of some of its top-level entries."""

    def place(new: np.ndarray, old: jax.Array) -> jax.Array:
        # Of several processes device_put would gather a copy each, to see that they are the same.
        return jax.make_array_from_callback(new.shape, old.sharding, lambda index: new[index])

    placed = jax.tree.map(place, params, {name: state.params[name] for name in params})
    return TrainState(state.step, {**state.params, **placed}, state.opt_state)


def _begun(task: Task, params: dict) -> TrainState:
    trained, _ = task.divided(params)
    return TrainState(jnp.zeros((), jnp.int32), params, task.optimizer.init(trained))
