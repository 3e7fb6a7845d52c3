"""The activation function and dropout of the network's layers."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from hubert_jax.model.kernels.choice import Kernels


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, x * Phi(x), in float32, as HuBERT uses it (Flax's default is another one).

    x of any shape; returns its shape and dtype. `jax.nn.gelu` computes Phi through erfc, which
    takes longer on CPU.
    """
    values = x.astype(jnp.float32)
    return (0.5 * values * (1.0 + jax.lax.erf(values * 0.5**0.5))).astype(x.dtype)


class Dropout(nn.Module):
    """Dropout with a key of the "dropout" stream."""

    rate: float
    kernels: Kernels

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        """x: any shape; returns the same shape and dtype."""
        if deterministic or self.rate == 0.0:
            return x
        return self.kernels.dropout(x, self.rate, self.make_rng("dropout"))
