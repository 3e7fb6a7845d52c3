"""The architecture's hyper-parameters and the frame arithmetic that follows from them."""

import dataclasses

import jax.numpy as jnp

from hubert_jax.errors import InputError
from hubert_jax.model import attention


@dataclasses.dataclass(frozen=True)
class HubertConfig:
    """One HuBERT network; the defaults are BASE as released (Hsu et al. 2021, Table I).

    The paper prints 8 attention heads for BASE; every released model has 12.

    Attributes:
      conv_channels, conv_kernels, conv_strides: the convolutional front-end, a layer an entry.
      frontend_norm: "group" (over time, after the first layer only; BASE) or "layer" (over
        channels, after every layer; LARGE and X-LARGE).
      normalize_waveform: zero mean, unit variance over the whole utterance, before any crop.
      frontend_gradient_scale: multiplies the gradient that reaches the front-end.
      dim, num_layers, ffn_dim, num_heads: the transformer.
      pre_norm: LayerNorm before each residual branch (LARGE) instead of after it (BASE).
      positional_kernel, positional_groups: the convolutional position embedding.
      projection_dim: width in which frames and code embeddings are compared.
      codebooks: number of classes of each codebook that the pre-training head predicts.
      temperature: tau of the cosine logits.
      dropout: after attention and feed-forward, and after the position embedding.
      attention_dropout: on attention weights.
      activation_dropout: inside the feed-forward network.
      input_dropout: on the projected front-end features.
      layer_drop: probability with which a whole layer is skipped in training.
      attention: back-end of attention, "xla", "cudnn" (GPU) or "splash" (TPU); "auto" takes the
        fastest that the machine, `dtype` and `attention_dropout` allow.
      dtype: "float32" or "bfloat16", of the computation; parameters, norms, softmax and loss are
        always float32.
      rematerialize: recompute each transformer layer in the backward pass instead of storing it.
      scan_unroll: how many layers of the scan are laid out in a row: 1 compiles fastest,
        `num_layers` runs fastest on CPU. Changes nothing in the parameters.
    """

    conv_channels: tuple[int, ...] = (512,) * 7
    conv_kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    frontend_norm: str = "group"
    normalize_waveform: bool = False
    frontend_gradient_scale: float = 0.1
    dim: int = 768
    num_layers: int = 12
    ffn_dim: int = 3072
    num_heads: int = 12
    pre_norm: bool = False
    positional_kernel: int = 128
    positional_groups: int = 16
    projection_dim: int = 256
    codebooks: tuple[int, ...] = (504,)
    temperature: float = 0.1
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.0
    input_dropout: float = 0.1
    layer_drop: float = 0.05
    attention: str = "auto"
    dtype: str = "float32"
    rematerialize: bool = False
    scan_unroll: int = 1

    def __post_init__(self):
        if not len(self.conv_channels) == len(self.conv_kernels) == len(self.conv_strides) > 0:
            raise InputError(
                "config.model: conv_channels, conv_kernels and conv_strides must have the same "
                f"length, found {len(self.conv_channels)}, {len(self.conv_kernels)}, "
                f"{len(self.conv_strides)}"
            )
        if self.frontend_norm not in ("group", "layer"):
            raise InputError(
                f"config.model.frontend_norm={self.frontend_norm!r}: expected 'group' or 'layer'"
            )
        if self.dtype not in ("float32", "bfloat16"):
            raise InputError(f"config.model.dtype={self.dtype!r}: expected 'float32' or 'bfloat16'")
        backends = ("auto", *attention.BACKENDS)
        if self.attention not in backends:
            raise InputError(
                f"config.model.attention={self.attention!r}: expected one of {', '.join(backends)}"
            )
        if self.attention in ("cudnn", "splash") and self.attention_dropout:
            raise InputError(
                f"config.model.attention={self.attention!r} has no dropout of attention weights, "
                f"but config.model.attention_dropout={self.attention_dropout:g}; expected 'auto', "
                "'xla' or a dropout of 0"
            )
        for name, divisor in (
            ("num_heads", self.num_heads),
            ("positional_groups", self.positional_groups),
        ):
            if divisor < 1 or self.dim % divisor:
                raise InputError(
                    f"config.model.{name}={divisor}: must divide config.model.dim={self.dim}"
                )
        if not self.codebooks or min(self.codebooks) < 2:
            raise InputError(
                f"config.model.codebooks={self.codebooks}: expected the number of classes of "
                "each codebook, 2 or more"
            )
        if self.num_layers < 1:
            raise InputError(f"config.model.num_layers={self.num_layers}: expected 1 or more")

    @property
    def compute_dtype(self) -> jnp.dtype:
        """The dtype of the computation."""
        return jnp.dtype(self.dtype)

    @property
    def hop(self) -> int:
        """Samples from one frame to the next (320 for HuBERT: 20 ms at 16 kHz)."""
        product = 1
        for stride in self.conv_strides:
            product *= stride
        return product

    @property
    def receptive_field(self) -> int:
        """Samples that one frame sees (400 for HuBERT)."""
        field, hop = 1, 1
        for kernel, stride in zip(self.conv_kernels, self.conv_strides, strict=True):
            field += (kernel - 1) * hop
            hop *= stride
        return field

    def num_frames(self, num_samples):
        """Frames of an utterance of `num_samples` samples (an int or an integer array)."""
        return (num_samples - self.receptive_field) // self.hop + 1

    def num_samples(self, num_frames: int) -> int:
        """The shortest crop, in samples, that gives `num_frames` frames: 320 T + 80."""
        return (num_frames - 1) * self.hop + self.receptive_field
