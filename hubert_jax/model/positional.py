"""The convolutional position embedding: a grouped, weight-normalised convolution over time."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from hubert_jax.model.architecture import HubertConfig
from hubert_jax.model.frontend import gelu
from hubert_jax.model.platform import target_platform


def grouped_convolution(x: jax.Array, kernel: jax.Array, groups: int) -> jax.Array:
    """Same-length grouped cross-correlation over time, by XLA's convolution.

    Args:
      x: (B, T, C).
      kernel: (K, C / groups, C).
      groups: number of groups.

    Returns:
      (B, T, C): K // 2 zeros are put on both sides, and with an even K the last frame, which
      would be the T + 1st, is dropped (as released).
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


def grouped_convolution_by_fft(x: jax.Array, kernel: jax.Array, groups: int) -> jax.Array:
    """`grouped_convolution` through the Fourier transform, in float32.

    XLA's CPU back-end has no fast grouped convolution; one small matrix product for each group
    and frequency costs a fraction of it.
    """
    batch, frames, channels = x.shape
    width = kernel.shape[0]
    per_group = channels // groups
    length = frames + width - 1
    length += -length % 32  # a size with small prime factors
    # (B, F, G, I) and (F, G, I, O)
    x_spectrum = jnp.fft.rfft(x.astype(jnp.float32), length, axis=1)
    x_spectrum = x_spectrum.reshape(batch, -1, groups, per_group)
    kernel = kernel.astype(jnp.float32).reshape(width, per_group, groups, per_group)
    kernel_spectrum = jnp.conj(jnp.fft.rfft(kernel, length, axis=0))
    spectrum = jnp.einsum("bfgi,figo->bfgo", x_spectrum, kernel_spectrum)
    y = jnp.fft.irfft(spectrum.reshape(batch, -1, channels), length, axis=1)
    # Output t sums x[t + k - width // 2] kernel[k]: the correlation shifted by width // 2.
    return jnp.roll(y, width // 2, axis=1)[:, :frames].astype(x.dtype)


class PositionalConvolution(nn.Module):
    """Weight-normalised grouped convolution with exact GELU; its output is added to the input."""

    config: HubertConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: (B, T, dim), zero on padded frames; returns the embedding to be added, same shape."""
        config = self.config
        width, groups, dim = config.positional_kernel, config.positional_groups, config.dim
        deviation = (4.0 / (width * dim)) ** 0.5
        direction = self.param(
            "direction", nn.initializers.normal(deviation), (width, dim // groups, dim)
        )
        # Weight norm over the kernel axis (torch: dim=2): one magnitude for each kernel position.
        norm = jnp.sqrt(jnp.sum(jnp.square(direction), axis=(1, 2)))
        magnitude = self.param("magnitude", lambda _: norm)
        bias = self.param("bias", nn.initializers.zeros, (dim,))
        kernel = direction * (magnitude / norm)[:, None, None]
        convolve = (
            grouped_convolution_by_fft
            if target_platform() == "cpu" and width >= 16
            else grouped_convolution
        )
        return gelu(convolve(x, kernel.astype(x.dtype), groups) + bias.astype(x.dtype))
