"""LayerNorm over channels and GroupNorm over time, with float32 statistics."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from hubert_jax.model.kernels.choice import Kernels
from hubert_jax.model.kernels.norm import EPSILON


class LayerNorm(nn.Module):
    """LayerNorm over the last axis; epsilon 1e-5; statistics in float32."""

    kernels: Kernels

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: (..., C); returns the same shape in float32."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        return self.kernels.layer_norm(x.astype(jnp.float32), scale, bias)


class TimeGroupNorm(nn.Module):
    """GroupNorm with one channel a group: each channel normalised over the row's own frames.

    Padding must not enter the statistics, or an utterance would give other features in a padded
    batch than alone (torchaudio issue 2242, transformers issue 21534).
    """

    @nn.compact
    def __call__(self, x: jax.Array, lengths: jax.Array | None) -> jax.Array:
        """x: (B, T, C); lengths: (B,) valid frames of each row, or None; returns (B, T, C)."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
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
