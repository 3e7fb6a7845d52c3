"""The convolutional position embedding: a grouped, weight-normalised convolution over time."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from hubert_jax.model.architecture import Architecture
from hubert_jax.model.kernels.choice import Kernels
from hubert_jax.model.layers import gelu


class PositionalConvolution(nn.Module):
    """Weight-normalised grouped convolution with exact GELU; its output is added to the input."""

    architecture: Architecture
    kernels: Kernels

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: (B, T, dim), zero on padded frames; returns the embedding to be added, same shape."""
        width, dim = self.architecture.positional_kernel, self.architecture.dim
        groups = self.architecture.positional_groups
        init = nn.initializers.normal((4.0 / (width * dim)) ** 0.5)
        direction = self.param("direction", init, (width, dim // groups, dim))
        # Weight norm over the kernel axis (torch: dim=2): one magnitude for each kernel position.
        norm = jnp.sqrt(jnp.sum(jnp.square(direction), axis=(1, 2)))
        magnitude = self.param("magnitude", lambda _: norm)
        bias = self.param("bias", nn.initializers.zeros, (dim,))
        kernel = direction * (magnitude / norm)[:, None, None]
        convolved = self.kernels.grouped_convolution(x, kernel.astype(x.dtype), groups)
        return gelu(convolved + bias.astype(x.dtype))
