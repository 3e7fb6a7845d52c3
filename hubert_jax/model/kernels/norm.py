"""LayerNorm over the last axis, and normalisation of each channel over a row's frames.

Statistics are in float32. The derivatives are written out and keep their input in its own dtype,
where automatic differentiation keeps several float32 arrays, at the front-end's 3,200 Hz.
"""

import jax
import jax.numpy as jnp

EPSILON = 1e-5


@jax.custom_vjp
def plain(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """x (..., C) of any dtype, scale and bias (C,) float32; returns float32 (..., C)."""
    normalised, _ = _normalised(x)
    return normalised * scale + bias


def _normalised(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x without its mean and with variance 1, float32, and what it was multiplied by."""
    values = x.astype(jnp.float32)
    deviation = values - jnp.mean(values, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(deviation), axis=-1, keepdims=True)
    reciprocal = jax.lax.rsqrt(variance + EPSILON)
    return deviation * reciprocal, reciprocal


def _plain_backward(
    kept: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, scale = kept
    normalised, reciprocal = _normalised(x)
    scaled = gradient * scale
    along = jnp.mean(scaled * normalised, axis=-1, keepdims=True)
    to_x = reciprocal * (scaled - jnp.mean(scaled, axis=-1, keepdims=True) - normalised * along)
    rows = tuple(range(x.ndim - 1))
    return to_x.astype(x.dtype), jnp.sum(gradient * normalised, axis=rows), jnp.sum(gradient, rows)


plain.defvjp(lambda x, scale, bias: (plain(x, scale, bias), (x, scale)), _plain_backward)


def on_cpu(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """As `plain`; its derivative is computed from the normalised values alone."""
    return _on_cpu(x.astype(jnp.float32), scale, bias)


@jax.custom_vjp
def _on_cpu(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    return _forward(x, scale, bias)[0]


def _mean(x: jax.Array) -> jax.Array:
    # As a product: XLA's CPU back-end reduces a short minor axis much more slowly.
    average = jnp.full((x.shape[-1], 1), 1.0 / x.shape[-1], x.dtype)
    return jnp.matmul(x, average, precision=jax.lax.Precision.HIGHEST)


def _forward(x: jax.Array, scale: jax.Array, bias: jax.Array) -> tuple[jax.Array, tuple]:
    deviation = x - _mean(x)
    reciprocal = jax.lax.rsqrt(_mean(jnp.square(deviation)) + EPSILON)
    normalised = deviation * reciprocal
    return normalised * scale + bias, (normalised, reciprocal, scale)


def _backward(residuals: tuple, gradient: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    normalised, reciprocal, scale = residuals
    channels = normalised.shape[-1]
    scaled = gradient * scale
    to_x = reciprocal * (scaled - _mean(scaled) - normalised * _mean(scaled * normalised))
    to_scale = jnp.sum((gradient * normalised).reshape(-1, channels), axis=0)
    to_bias = jnp.sum(gradient.reshape(-1, channels), axis=0)
    return to_x, to_scale, to_bias


_on_cpu.defvjp(_forward, _backward)


@jax.custom_vjp
def over_time(
    x: jax.Array, scale: jax.Array, bias: jax.Array, lengths: jax.Array | None
) -> jax.Array:
    """x (B, T, C) with each channel normalised over the first `lengths` (B,) frames, None: all.

    Frames beyond them are normalised by the same statistics. scale and bias are (C,) float32;
    returns the shape and dtype of x.
    """
    return _over_time_forward(x, scale, bias, lengths)[0]


def _over_time_forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, lengths: jax.Array | None
) -> tuple[jax.Array, tuple]:
    # TPU's compiler cuts time into pieces for convolutions, and puts them together for statistics:
    # so it does it with x, and not with several arrays in float32.
    return _over_time(jax.lax.optimization_barrier(x), scale, bias, lengths)


def _over_time(
    x: jax.Array, scale: jax.Array, bias: jax.Array, lengths: jax.Array | None
) -> tuple[jax.Array, tuple]:
    values, valid, count = x.astype(jnp.float32), _valid(x, lengths), _count(x, lengths)
    mean = jnp.where(valid, values, 0).sum(axis=1, keepdims=True) / count
    deviation = values - mean
    squares = jnp.where(valid, jnp.square(deviation), 0)
    reciprocal = jax.lax.rsqrt(squares.sum(axis=1, keepdims=True) / count + EPSILON)
    normalised = (deviation * reciprocal * scale + bias).astype(x.dtype)
    return normalised, (x, mean, reciprocal, scale, lengths)


def over_time_on_cpu(
    x: jax.Array, scale: jax.Array, bias: jax.Array, lengths: jax.Array | None
) -> jax.Array:
    """As `over_time`, differentiated automatically: so XLA's CPU back-end takes half as long."""
    return _over_time(x, scale, bias, lengths)[0]


def _valid(x: jax.Array, lengths: jax.Array | None) -> jax.Array | bool:
    if lengths is None:
        return True
    return (jnp.arange(x.shape[1]) < lengths[:, None])[:, :, None]


def _count(x: jax.Array, lengths: jax.Array | None) -> jax.Array | int:
    return x.shape[1] if lengths is None else jnp.maximum(lengths, 1)[:, None, None]


def _over_time_backward(kept: tuple, gradient: jax.Array) -> tuple:
    x, mean, reciprocal, scale, lengths = kept
    x, gradient = jax.lax.optimization_barrier((x, gradient))
    valid, count = _valid(x, lengths), _count(x, lengths)
    normalised = (x.astype(jnp.float32) - mean) * reciprocal
    gradient = gradient.astype(jnp.float32)
    scaled = gradient * scale
    total = scaled.sum(axis=1, keepdims=True)
    along = (scaled * normalised).sum(axis=1, keepdims=True)
    through = jnp.where(valid, (total + normalised * along) / count, 0)
    to_x = (reciprocal * (scaled - through)).astype(x.dtype)
    to_scale = jnp.sum(gradient * normalised, axis=(0, 1))
    return to_x, to_scale, jnp.sum(gradient, axis=(0, 1)), None


over_time.defvjp(_over_time_forward, _over_time_backward)
