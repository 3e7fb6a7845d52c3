"""The training state and its creation, abstract or on the mesh."""

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from hubert_jax.training import sharding
from hubert_jax.training.task import Task


@flax.struct.dataclass
class TrainState:
    """All that a run carries from step to step; randomness is a function of (seed, step).

    Attributes:
      step: () int32, updates done so far.
      params: the parameters, float32.
      opt_state: the optimiser's state.
    """

    step: jax.Array
    params: dict
    opt_state: optax.OptState


def abstract_state(task: Task, mesh: Mesh) -> TrainState:
    """The state's shapes, dtypes and shardings, as `jax.ShapeDtypeStruct`s, without any memory."""
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
    create = jax.jit(lambda key: _create(task, key), out_shardings=shardings)
    return create(jax.random.key(seed))


def with_parameters(state: TrainState, params: dict) -> TrainState:
    """`state` with another network's parameters in place of its own; the others stay as they are.

    Args:
      state: on the mesh.
      params: some of the top-level entries of `state.params` (`hubert`, heads), host arrays.
    """
    placed = jax.tree.map(
        lambda value, like: jax.device_put(value, like.sharding),
        params,
        {name: state.params[name] for name in params},
    )
    return TrainState(state.step, {**state.params, **placed}, state.opt_state)


def _create(task: Task, key: jax.Array) -> TrainState:
    params = task.init(key)
    return TrainState(jnp.zeros((), jnp.int32), params, task.optimizer.init(params))
