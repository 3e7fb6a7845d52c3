"""HuBERT: the encoder, its masked-prediction head and its CTC head."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from hubert_jax.model.architecture import HubertConfig
from hubert_jax.model.dropout import Dropout
from hubert_jax.model.frontend import FrontEnd, scale_gradient
from hubert_jax.model.norm import LayerNorm
from hubert_jax.model.positional import PositionalConvolution
from hubert_jax.model.transformer import Transformer


class Hubert(nn.Module):
    """Waveform to contextual frames."""

    config: HubertConfig

    def setup(self):
        config = self.config
        self.frontend = FrontEnd(config)
        self.frontend_norm = LayerNorm()
        self.projection = nn.Dense(
            config.dim, kernel_init=nn.initializers.normal(0.02), dtype=config.compute_dtype
        )
        self.mask_embedding = self.param(
            "mask_embedding", nn.initializers.uniform(1.0), (config.dim,)
        )
        self.positional = PositionalConvolution(config)
        self.encoder_norm = LayerNorm()
        self.transformer = Transformer(config)
        self.input_dropout = Dropout(config.input_dropout)
        self.encoder_dropout = Dropout(config.dropout)

    def __call__(
        self,
        waveform: jax.Array,
        num_samples: jax.Array | None = None,
        mask: jax.Array | None = None,
        channel_mask: jax.Array | None = None,
        deterministic: bool = True,
        collect: bool = False,
        freeze_frontend: bool = False,
    ) -> dict[str, jax.Array | None]:
        """Runs the network.

        Args:
          waveform: (B, N) float at 16 kHz; normalised per utterance where the architecture's
            `normalize_waveform` says so; anything may stand in the padding.
          num_samples: (B,) int, valid samples of each row; None: no padding.
          mask: (B, T) bool, frames replaced by the mask embedding; None: none.
          channel_mask: (B, dim) bool, channels set to zero in all frames; None: none.
          deterministic: no dropout, no LayerDrop.
          collect: return the hidden state of every layer.
          freeze_frontend: no gradient into the front-end (fine-tuning).

        Returns:
          `output` (B, T, dim): what the heads read (pre-LN: after the encoder's LayerNorm);
          `features` (B, T, C): the front-end's output, before its LayerNorm (for the penalty);
          `layers`: with `collect`, (num_layers + 1, B, T, dim): layer 0 is the input of block 1,
          layer l the output of block l (pre-LN: without the encoder's LayerNorm); else None.
        """
        config, dtype = self.config, self.config.compute_dtype
        features = self.frontend(waveform, num_samples)
        if freeze_frontend:
            features = jax.lax.stop_gradient(features)
        elif config.frontend_gradient_scale != 1.0:
            features = scale_gradient(features, config.frontend_gradient_scale)
        x = self.projection(self.frontend_norm(features).astype(dtype))
        x = self.input_dropout(x, deterministic=deterministic)
        if mask is not None:
            x = jnp.where(mask[:, :, None], self.mask_embedding.astype(dtype), x)
        if channel_mask is not None:
            x = jnp.where(channel_mask[:, None, :], jnp.zeros((), dtype), x)
        lengths = None
        if num_samples is not None:
            lengths = config.num_frames(num_samples)
            valid = jnp.arange(x.shape[1]) < lengths[:, None]
            # The position convolution looks 64 frames ahead: padding must be zero there.
            x = jnp.where(valid[:, :, None], x, jnp.zeros((), dtype))
        x = x + self.positional(x)
        if not config.pre_norm:
            x = self.encoder_norm(x).astype(dtype)
        x = self.encoder_dropout(x, deterministic=deterministic)
        output, layers = self.transformer(x, lengths, deterministic, collect)
        if config.pre_norm:
            output = self.encoder_norm(output).astype(dtype)
        if collect:
            layers = jnp.concatenate([x[None], layers])
        return {"output": output, "features": features, "layers": layers}


class HubertForPretraining(nn.Module):
    """HuBERT with one projection and one table of code embeddings for each codebook."""

    config: HubertConfig

    @nn.compact
    def __call__(
        self,
        waveform: jax.Array,
        mask: jax.Array | None = None,
        deterministic: bool = True,
    ) -> dict[str, jax.Array | list[jax.Array]]:
        """Logits of every codebook at every frame.

        Args:
          waveform: (B, N) float at 16 kHz, rows of equal length (crops, never padded).
          mask: (B, T) bool or None.
          deterministic: no dropout, no LayerDrop.

        Returns:
          `logits`: a list, one (B, T, classes) float32 a codebook: the cosine similarity of the
          projected frame and the code embeddings over tau (paper eq. 3);
          `features`: (B, T, C), the front-end's output.
        """
        config = self.config
        encoded = Hubert(config, name="hubert")(waveform, None, mask, None, deterministic)
        logits = []
        for i, classes in enumerate(config.codebooks):
            projected = nn.Dense(
                config.projection_dim,
                kernel_init=nn.initializers.normal(0.02),
                dtype=config.compute_dtype,
                name=f"projection_{i}",
            )(encoded["output"])
            codes = self.param(
                f"codes_{i}", nn.initializers.uniform(1.0), (classes, config.projection_dim)
            )
            logits.append(cosine_logits(projected, codes, config.temperature))
        return {"logits": logits, "features": encoded["features"]}


def cosine_logits(projected: jax.Array, codes: jax.Array, temperature: float) -> jax.Array:
    """Cosine similarity over temperature, in float32 (paper eq. 3).

    Args:
      projected: (B, T, D).
      codes: (K, D).
      temperature: tau.

    Returns:
      (B, T, K) float32.
    """

    def unit(x):
        x = x.astype(jnp.float32)
        squared = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
        return x * jax.lax.rsqrt(jnp.maximum(squared, 1e-16))

    # Accelerators round float32 factors to TF32 or bfloat16 unless told otherwise.
    precision = jax.lax.Precision.HIGHEST
    cosine = jnp.einsum("btd,kd->btk", unit(projected), unit(codes), precision=precision)
    return cosine / temperature


class HubertForCTC(nn.Module):
    """HuBERT with a linear layer over characters."""

    config: HubertConfig
    vocabulary_size: int
    final_dropout: float = 0.0

    @nn.compact
    def __call__(
        self,
        waveform: jax.Array,
        num_samples: jax.Array | None = None,
        mask: jax.Array | None = None,
        channel_mask: jax.Array | None = None,
        deterministic: bool = True,
        freeze_hubert: bool = False,
        freeze_frontend: bool = True,
    ) -> jax.Array:
        """Character logits (B, T, vocabulary) in float32; arguments as of `Hubert`.

        With `freeze_hubert` nothing but the linear layer gets a gradient (masks and dropout stay
        on); `freeze_frontend` is False only for a network that learns from scratch.
        """
        encoded = Hubert(self.config, name="hubert")(
            waveform, num_samples, mask, channel_mask, deterministic, False, freeze_frontend
        )["output"]
        if freeze_hubert:
            encoded = jax.lax.stop_gradient(encoded)
        encoded = Dropout(self.final_dropout)(encoded, deterministic=deterministic)
        return nn.Dense(
            self.vocabulary_size, kernel_init=nn.initializers.normal(0.02), name="characters"
        )(encoded.astype(jnp.float32))
