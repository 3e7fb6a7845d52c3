"""The convolutional front-end: waveform at 16 kHz to frames at 50 Hz."""

import functools

import flax.linen as nn
import jax

from hubert_jax.model.architecture import Architecture
from hubert_jax.model.kernels.choice import Kernels
from hubert_jax.model.layers import LayerNorm, TimeGroupNorm, gelu


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def scale_gradient(x: jax.Array, scale: float) -> jax.Array:
    """The identity, whose gradient is multiplied by `scale`."""
    return x


scale_gradient.defvjp(lambda x, scale: (x, None), lambda scale, _, gradient: (gradient * scale,))


class FrontEnd(nn.Module):
    """Strided convolutions without bias, each with its norm and an exact GELU."""

    architecture: Architecture
    kernels: Kernels

    @nn.compact
    def __call__(self, waveform: jax.Array, num_samples: jax.Array | None) -> jax.Array:
        """(B, N) float, of each row `num_samples` (B,) or all valid -> (B, T, C), compute dtype."""
        architecture, dtype = self.architecture, self.kernels.dtype
        x, lengths = waveform[..., None].astype(dtype), num_samples
        layers = zip(
            architecture.conv_channels,
            architecture.conv_kernels,
            architecture.conv_strides,
            strict=True,
        )
        for i, (channels, kernel, stride) in enumerate(layers):
            x = nn.Conv(
                channels,
                (kernel,),
                strides=(stride,),
                padding="VALID",
                use_bias=False,
                kernel_init=nn.initializers.variance_scaling(2.0, "fan_in", "normal"),
                dtype=dtype,
                name=f"conv_{i}",
            )(x)
            if lengths is not None:
                lengths = (lengths - kernel) // stride + 1
            if architecture.frontend_norm == "layer":
                x = LayerNorm(self.kernels, name=f"norm_{i}")(x).astype(dtype)
            elif i == 0:
                x = TimeGroupNorm(self.kernels, name="norm_0")(x, lengths)
            x = gelu(x)
        return x
