"""Small layers with HuBERT's numerics: exact GELU, dropout, norms with float32 statistics."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from hubert_jax.model.kernels.choice import Kernels

linear_init = nn.initializers.normal(0.02)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, x * Phi(x), in float32; returns the shape and dtype of x.

    `jax.nn.gelu` computes Phi through erfc, which takes longer on CPU. The backward pass needs only
    x, in its own dtype; automatic differentiation would keep three float32 arrays.
    """
    values = x.astype(jnp.float32)
    return (values * _below(values)).astype(x.dtype)


def _below(values: jax.Array) -> jax.Array:
    """Phi: the probability that a normal variable is below each of the values."""
    return 0.5 * (1.0 + jax.lax.erf(values * 0.5**0.5))


def _gelu_gradient(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    values = x.astype(jnp.float32)
    density = jnp.exp(-0.5 * jnp.square(values)) * (2.0 * math.pi) ** -0.5
    slope = _below(values) + values * density
    return ((gradient.astype(jnp.float32) * slope).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_gradient)


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


class LayerNorm(nn.Module):
    """LayerNorm over the last axis."""

    kernels: Kernels

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: (..., C); returns the same shape in float32."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        return self.kernels.layer_norm(x, scale, bias)


class TimeGroupNorm(nn.Module):
    """GroupNorm with one channel a group: each channel normalised over the row's own frames.

    With padding in the statistics an utterance would give other features in a padded batch than
    alone (torchaudio issue 2242, transformers issue 21534).
    """

    kernels: Kernels

    @nn.compact
    def __call__(self, x: jax.Array, lengths: jax.Array | None) -> jax.Array:
        """x: (B, T, C); lengths: (B,) valid frames of each row, or None; returns (B, T, C)."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        return self.kernels.time_norm(x, scale, bias, lengths)
