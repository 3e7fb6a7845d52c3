"""LayerNorm over channels and GroupNorm over time, with float32 statistics."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from hubert_jax.model.platform import target_platform

NORM_EPSILON = 1e-5


def _mean(x: jax.Array) -> jax.Array:
    """Mean over the last axis, kept as an axis of size 1."""
    # XLA's CPU back-end reduces a short minor axis much more slowly than it multiplies matrices.
    # Elsewhere a product of float32 matrices would be rounded to TF32 or bfloat16 by default.
    if target_platform() == "cpu":
        average = jnp.full((x.shape[-1], 1), 1.0 / x.shape[-1], x.dtype)
        return jnp.matmul(x, average, precision=jax.lax.Precision.HIGHEST)
    return jnp.mean(x, axis=-1, keepdims=True)


def _standardise(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`x` with zero mean and unit variance over its last axis, and the reciprocal deviation."""
    deviation = x - _mean(x)
    reciprocal = jax.lax.rsqrt(_mean(jnp.square(deviation)) + NORM_EPSILON)
    return deviation * reciprocal, reciprocal


@jax.custom_vjp
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """LayerNorm over the last axis: x (..., C) float32, scale and bias (C,); returns (..., C).

    The derivative is written out: it needs the normalised values alone, in one pass, where
    automatic differentiation of the 3,200 Hz front-end layers takes four times as long on CPU.
    """
    return _standardise(x)[0] * scale + bias


def _layer_norm_forward(x, scale, bias):
    normalised, reciprocal = _standardise(x)
    return normalised * scale + bias, (normalised, reciprocal, scale)


def _layer_norm_backward(residuals, gradient):
    normalised, reciprocal, scale = residuals
    channels = normalised.shape[-1]
    scaled = gradient * scale
    to_x = reciprocal * (scaled - _mean(scaled) - normalised * _mean(scaled * normalised))
    to_scale = jnp.sum((gradient * normalised).reshape(-1, channels), axis=0)
    to_bias = jnp.sum(gradient.reshape(-1, channels), axis=0)
    return to_x, to_scale, to_bias


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


class LayerNorm(nn.Module):
    """LayerNorm over the last axis; epsilon 1e-5; statistics in float32."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: (..., C); returns the same shape in float32."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        return layer_norm(x.astype(jnp.float32), scale, bias)


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
        normalised = (values - mean) * jax.lax.rsqrt(variance + NORM_EPSILON)
        return (normalised * scale + bias).astype(x.dtype)
