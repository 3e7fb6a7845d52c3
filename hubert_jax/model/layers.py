"""Small layers with HuBERT's numerics: exact GELU, dropout, norms with float32 statistics."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from hubert_jax.model.kernels.choice import Kernels
from hubert_jax.model.kernels.norm import EPSILON

linear_init = nn.initializers.normal(0.02)


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, x * Phi(x), in float32; returns the shape and dtype of x.

    `jax.nn.gelu` computes Phi through erfc, which takes longer on CPU.
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


class LayerNorm(nn.Module):
    """LayerNorm over the last axis."""

    kernels: Kernels

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: (..., C); returns the same shape in float32."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        return self.kernels.layer_norm(x.astype(jnp.float32), scale, bias)


class TimeGroupNorm(nn.Module):
    """GroupNorm with one channel a group: each channel normalised over the row's own frames.

    With padding in the statistics an utterance would give other features in a padded batch than
    alone (torchaudio issue 2242, transformers issue 21534).
    """

    @nn.compact
    def __call__(self, x: jax.Array, lengths: jax.Array | None) -> jax.Array:
        """x: (B, T, C); lengths: (B,) valid frames of each row, or None; returns (B, T, C)."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        values = x.astype(jnp.float32)
        if lengths is None:
            mean = values.mean(axis=1, keepdims=True)
            variance = jnp.square(values - mean).mean(axis=1, keepdims=True)
        else:
            valid = (jnp.arange(x.shape[1]) < lengths[:, None])[:, :, None]
            count = jnp.maximum(lengths, 1)[:, None, None]
            mean = jnp.where(valid, values, 0).sum(axis=1, keepdims=True) / count
            deviation = jnp.where(valid, values - mean, 0)
            variance = jnp.square(deviation).sum(axis=1, keepdims=True) / count
        normalised = (values - mean) * jax.lax.rsqrt(variance + EPSILON)
        return (normalised * scale + bias).astype(x.dtype)
