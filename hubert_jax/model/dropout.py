"""Dropout from 16 random bits for each value."""

import flax.linen as nn
import jax
import jax.numpy as jnp

_LEVELS = 2**16


def dropout(x: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    """Zeros each value with probability `rate` and scales the others by 1 / (1 - rate).

    A float32 of randomness for every value is the costliest part of BASE's attention on CPU.
    Half as many bits keep the rate to 2^-17, and the scale is that of the rate as rounded, so the
    expectation is exact.

    Args:
      x: any shape, floating point.
      rate: in [0, 1).
      key: PRNG key.

    Returns:
      The shape and dtype of `x`.
    """
    kept_levels = _LEVELS - round(rate * _LEVELS)
    bits = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.int32)
    return jnp.where(bits < kept_levels, x * (_LEVELS / kept_levels), 0)


class Dropout(nn.Module):
    """`dropout` with a key of the "dropout" stream."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        """x: any shape; returns the same shape and dtype."""
        if deterministic or self.rate == 0.0:
            return x
        return dropout(x, self.rate, self.make_rng("dropout"))
