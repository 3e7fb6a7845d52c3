"""HuBERT: the encoder, its masked-prediction head and its CTC head."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from hubert_jax.frames import num_frames
from hubert_jax.model.architecture import NO_REGULARIZATION, Architecture, Head, Regularization
from hubert_jax.model.frontend import FrontEnd, scale_gradient
from hubert_jax.model.kernels.choice import Kernels
from hubert_jax.model.layers import Dropout, LayerNorm
from hubert_jax.model.positional import PositionalConvolution
from hubert_jax.model.transformer import Transformer


class Hubert(nn.Module):
    """Waveform to contextual frames."""

    architecture: Architecture
    kernels: Kernels
    regularization: Regularization = NO_REGULARIZATION

    def setup(self) -> None:  # noqa: D102
        dim, kernels, regularization = self.architecture.dim, self.kernels, self.regularization
        self.frontend = FrontEnd(self.architecture, kernels)
        self.frontend_norm = LayerNorm(kernels)
        channels = self.architecture.conv_channels[-1]
        self.feature_projection = _torch_dense(channels, dim, kernels.dtype)
        self.mask_embedding = self.param("mask_embedding", nn.initializers.uniform(1.0), (dim,))
        self.positional = PositionalConvolution(self.architecture, kernels)
        self.encoder_norm = LayerNorm(kernels)
        self.transformer = Transformer(self.architecture, regularization, kernels)
        self.input_dropout = Dropout(regularization.input_dropout, kernels)
        self.encoder_dropout = Dropout(regularization.dropout, kernels)

    def __call__(
        self,
        waveform: jax.Array,
        num_samples: jax.Array | None = None,
        mask: jax.Array | None = None,
        channel_mask: jax.Array | None = None,
        deterministic: bool = True,
        collect: bool = False,
        freeze_frontend: bool = False,
    ) -> dict[str, Any]:
        """`output` (B, T, dim), what the heads read; `features` (B, T, C), the front-end's output.

        With `collect` also `layers` (num_layers + 1, B, T, dim), else None: layer 0 is the input of
        block 1, layer l the output of block l (pre-LN: without the encoder's LayerNorm).

        `waveform` is (B, N) float at 16 kHz, normalised where the architecture asks for it, with
        `num_samples` (B,) valid samples a row, None: all; anything may stand in the padding. `mask`
        (B, T) bool puts the mask embedding in place of frames, `channel_mask` (B, dim) bool sets
        channels to zero in all frames.
        """
        dtype, gradient_scale = self.kernels.dtype, self.regularization.frontend_gradient_scale
        features = self.frontend(waveform, num_samples)
        if freeze_frontend:
            features = jax.lax.stop_gradient(features)
        elif gradient_scale != 1.0:
            features = scale_gradient(features, gradient_scale)
        x = self.feature_projection(self.frontend_norm(features).astype(dtype))
        x = self.input_dropout(x, deterministic=deterministic)
        if mask is not None:
            x = jnp.where(mask[:, :, None], self.mask_embedding.astype(dtype), x)
        if channel_mask is not None:
            x = jnp.where(channel_mask[:, None, :], jnp.zeros((), dtype), x)
        lengths = None
        if num_samples is not None:
            lengths = num_frames(num_samples)
            valid = jnp.arange(x.shape[1]) < lengths[:, None]
            # The position convolution looks 64 frames ahead: padding must be zero there.
            x = jnp.where(valid[:, :, None], x, jnp.zeros((), dtype))
        x = x + self.positional(x)
        if not self.architecture.pre_norm:
            x = self.encoder_norm(x).astype(dtype)
        x = self.encoder_dropout(x, deterministic=deterministic)
        output, layers = self.transformer(x, lengths, deterministic, collect)
        if self.architecture.pre_norm:
            output = self.encoder_norm(output).astype(dtype)
        if layers is not None:
            layers = jnp.concatenate([x[None], layers])
        return {"output": output, "features": features, "layers": layers}


class HubertForPretraining(nn.Module):
    """HuBERT with one projection and one table of label embeddings for each codebook."""

    architecture: Architecture
    head: Head
    kernels: Kernels
    regularization: Regularization = NO_REGULARIZATION

    @nn.compact
    def __call__(
        self, waveform: jax.Array, mask: jax.Array | None = None, deterministic: bool = True
    ) -> dict[str, Any]:
        """`logits`, (B, T, classes) float32 of every codebook, and `features` as of `Hubert`.

        Rows of `waveform` are crops of equal length, never padded.
        """
        hubert = Hubert(self.architecture, self.kernels, self.regularization, name="hubert")
        encoded = hubert(waveform, None, mask, None, deterministic)
        width, dtype = self.head.projection_dim, self.kernels.dtype
        logits = []
        for i, classes in enumerate(self.head.codebook_sizes):
            dense = _torch_dense(self.architecture.dim, width, dtype, f"final_proj_{i}")
            projected = dense(encoded["output"])
            embeddings = self.param(
                f"label_embeddings_{i}", nn.initializers.uniform(1.0), (classes, width)
            )
            logits.append(cosine_logits(projected, embeddings, self.head.temperature))
        return {"logits": logits, "features": encoded["features"]}


def cosine_logits(projected: jax.Array, embeddings: jax.Array, temperature: float) -> jax.Array:
    """(B, T, K) float32, cosines of (B, T, D) and (K, D) over the temperature (paper eq. 3)."""

    def unit(x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        squared = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
        return x * jax.lax.rsqrt(jnp.maximum(squared, 1e-16))

    # Accelerators round float32 factors to TF32 or bfloat16 unless told otherwise.
    precision = jax.lax.Precision.HIGHEST
    cosine = jnp.einsum("btd,kd->btk", unit(projected), unit(embeddings), precision=precision)
    return cosine / temperature


class HubertForCTC(nn.Module):
    """HuBERT with a linear layer over characters."""

    architecture: Architecture
    vocabulary_size: int
    kernels: Kernels
    regularization: Regularization = NO_REGULARIZATION
    final_dropout: float = 0.0

    def setup(self) -> None:  # noqa: D102
        self.hubert = Hubert(self.architecture, self.kernels, self.regularization)
        self.output_dropout = Dropout(self.final_dropout, self.kernels)
        init = nn.initializers.xavier_uniform()
        self.ctc_head = nn.Dense(self.vocabulary_size, kernel_init=init)

    def __call__(self, waveform: jax.Array, num_samples: jax.Array | None = None) -> jax.Array:
        """Character logits (B, T, vocabulary), float32, without dropout; arguments of `Hubert`."""
        return self.classify(self.encode(waveform, num_samples))

    def encode(
        self,
        waveform: jax.Array,
        num_samples: jax.Array | None = None,
        mask: jax.Array | None = None,
        channel_mask: jax.Array | None = None,
        deterministic: bool = True,
        freeze_frontend: bool = True,
    ) -> jax.Array:
        """What the linear layer reads, (B, T, dim) in the compute dtype; arguments of `Hubert`."""
        return self.hubert(
            waveform, num_samples, mask, channel_mask, deterministic, False, freeze_frontend
        )["output"]

    def classify(self, encoded: jax.Array, deterministic: bool = True) -> jax.Array:
        """Character logits (B, T, vocabulary), float32, of `encoded` (B, T, dim)."""
        encoded = self.output_dropout(encoded, deterministic=deterministic)
        return self.ctc_head(encoded.astype(jnp.float32))


def _torch_dense(inputs: int, width: int, dtype: DTypeLike, name: str | None = None) -> nn.Dense:
    """A dense layer of `inputs` numbers; kernel and bias begin in U(-b, b), b = inputs^-0.5."""

    def draw(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
        bound = inputs**-0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nn.Dense(width, kernel_init=draw, bias_init=draw, dtype=dtype, name=name)
