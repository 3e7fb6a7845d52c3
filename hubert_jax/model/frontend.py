"""The convolutional front-end: waveform at 16 kHz to frames at 50 Hz."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from hubert_jax.model.architecture import HubertConfig
from hubert_jax.model.norm import LayerNorm, TimeGroupNorm


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, x * Phi(x), in float32, as HuBERT uses it (Flax's default is another one).

    x of any shape; returns its shape and dtype. `jax.nn.gelu` computes Phi through erfc, which
    takes longer on CPU.
    """
    values = x.astype(jnp.float32)
    return (0.5 * values * (1.0 + jax.lax.erf(values * 0.5**0.5))).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def scale_gradient(x: jax.Array, scale: float) -> jax.Array:
    """The identity, whose gradient is multiplied by `scale`."""
    return x


scale_gradient.defvjp(lambda x, scale: (x, None), lambda scale, _, gradient: (gradient * scale,))


class FrontEnd(nn.Module):
    """Strided convolutions without bias, each with its norm and an exact GELU."""

    config: HubertConfig

    @nn.compact
    def __call__(self, waveform: jax.Array, num_samples: jax.Array | None) -> jax.Array:
        """Runs the front-end.

        Args:
          waveform: (B, N) float, 16 kHz, normalised where the architecture asks for it.
          num_samples: (B,) int, valid samples of each row of a padded batch; None: all.

        Returns:
          (B, T, C) in the compute dtype, T = `config.num_frames(N)`.
        """
        config = self.config
        x = waveform[..., None].astype(config.compute_dtype)
        lengths = num_samples
        layers = zip(config.conv_channels, config.conv_kernels, config.conv_strides, strict=True)
        for i, (channels, kernel, stride) in enumerate(layers):
            x = nn.Conv(
                channels,
                (kernel,),
                strides=(stride,),
                padding="VALID",
                use_bias=False,
                kernel_init=nn.initializers.he_normal(),
                dtype=config.compute_dtype,
                name=f"conv_{i}",
            )(x)
            if lengths is not None:
                lengths = (lengths - kernel) // stride + 1
            if config.frontend_norm == "layer":
                x = LayerNorm(name=f"norm_{i}")(x).astype(config.compute_dtype)
            elif i == 0:
                x = TimeGroupNorm(name="norm_0")(x, lengths)
            x = gelu(x)
        return x
