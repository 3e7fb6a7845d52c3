"""Same-length grouped cross-correlation over time, the core of the position embedding."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

_NARROW = 16  # kernels below it are faster as a convolution on CPU too


def plain(x: jax.Array, kernel: jax.Array, groups: int) -> jax.Array:
    """(B, T, C), of x (B, T, C) with K // 2 zeros on both sides and kernel (K, C / groups, C).

    With an even K the last frame, which would be the T + 1st, is dropped (as released).
    """
    width = kernel.shape[0]
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1,),
        padding=((width // 2, (width - 1) // 2),),
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=groups,
    )


def on_mesh(x: jax.Array, kernel: jax.Array, groups: int, sharding: NamedSharding) -> jax.Array:
    """As `plain`, each device on its own rows, which lie as `sharding` says of the first axis.

    XLA would collect the rows of all devices on each of them for the kernel's gradient.
    """
    rows = PartitionSpec(sharding.spec[0])
    run = functools.partial(plain, groups=groups)
    return jax.shard_map(run, mesh=sharding.mesh, in_specs=(rows, PartitionSpec()), out_specs=rows)(
        x, kernel
    )


def on_cpu(x: jax.Array, kernel: jax.Array, groups: int) -> jax.Array:
    """`plain` through the Fourier transform, in float32, where the kernel is wide.

    XLA's CPU back-end has no fast grouped convolution; small matrix products cost less.
    """
    (batch, frames, channels), width = x.shape, kernel.shape[0]
    if width < _NARROW:
        return plain(x, kernel, groups)
    per_group = channels // groups
    length = frames + width - 1
    length += -length % 32  # a size with small prime factors
    x_spectrum = jnp.fft.rfft(x.astype(jnp.float32), length, axis=1)
    x_spectrum = x_spectrum.reshape(batch, -1, groups, per_group)
    kernel = kernel.astype(jnp.float32).reshape(width, per_group, groups, per_group)
    kernel_spectrum = jnp.conj(jnp.fft.rfft(kernel, length, axis=0))
    spectrum = jnp.einsum("bfgi,figo->bfgo", x_spectrum, kernel_spectrum)
    y = jnp.fft.irfft(spectrum.reshape(batch, -1, channels), length, axis=1)
    # Output t sums x[t + k - width // 2] kernel[k]: the correlation shifted by width // 2.
    return jnp.roll(y, width // 2, axis=1)[:, :frames].astype(x.dtype)
