"""What a network is (Architecture, Head), how it is regularised, and how it runs (Execution)."""

import dataclasses
import math

from hubert_jax import frames
from hubert_jax.errors import InputError

ATTENTION_BACKENDS = ("xla", "cudnn", "splash")
DTYPES = ("float32", "bfloat16")
PLATFORMS = ("cpu", "gpu", "tpu")


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Shapes of the encoder; the defaults are BASE as released (Hsu et al. 2021, Table I).

    The paper prints 8 attention heads for BASE; every released model has 12.

    Attributes:
      conv_channels, conv_kernels, conv_strides: the convolutional front-end, a layer an entry; a
        frame sees 400 samples, 320 samples after the one before it.
      frontend_norm: "group" (over time, after the first layer only; BASE) or "layer" (over
        channels, after every layer; LARGE and X-LARGE).
      normalize_waveform: zero mean, unit variance over the whole utterance, before any crop.
      dim, num_layers, ffn_dim, num_heads: the transformer.
      pre_norm: LayerNorm before each residual branch (LARGE) instead of after it (BASE).
      positional_kernel, positional_groups: the convolutional position embedding.
    """

    conv_channels: tuple[int, ...] = (512,) * 7
    conv_kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    frontend_norm: str = "group"
    normalize_waveform: bool = False
    dim: int = 768
    num_layers: int = 12
    ffn_dim: int = 3072
    num_heads: int = 12
    pre_norm: bool = False
    positional_kernel: int = 128
    positional_groups: int = 16

    def __post_init__(self) -> None:
        if not len(self.conv_channels) == len(self.conv_kernels) == len(self.conv_strides) > 0:
            raise InputError(
                "config.architecture: conv_channels, conv_kernels and conv_strides must have the "
                f"same length, found {len(self.conv_channels)}, {len(self.conv_kernels)}, "
                f"{len(self.conv_strides)}"
            )
        hop = math.prod(self.conv_strides)
        window = 1 + sum(
            (kernel - 1) * math.prod(self.conv_strides[:i])
            for i, kernel in enumerate(self.conv_kernels)
        )
        if (hop, window) != (frames.HOP, frames.WINDOW):
            raise InputError(
                f"config.architecture: conv_kernels and conv_strides give frames of {window} "
                f"samples, one every {hop}; expected {frames.WINDOW} and {frames.HOP}, as shards "
                "and labels are made for"
            )
        if self.frontend_norm not in ("group", "layer"):
            raise InputError(
                f"config.architecture.frontend_norm={self.frontend_norm!r}: expected 'group' or "
                "'layer'"
            )
        for name, divisor in (
            ("num_heads", self.num_heads),
            ("positional_groups", self.positional_groups),
        ):
            if divisor < 1 or self.dim % divisor:
                raise InputError(
                    f"config.architecture.{name}={divisor}: must divide "
                    f"config.architecture.dim={self.dim}"
                )
        if self.num_layers < 1:
            raise InputError(
                f"config.architecture.num_layers={self.num_layers}: expected 1 or more"
            )

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.dim // self.num_heads


@dataclasses.dataclass(frozen=True)
class Head:
    """The masked-prediction head (paper eq. 3); the defaults are BASE's.

    Attributes:
      codebook_sizes: number of classes of each codebook.
      projection_dim: width in which frames and label embeddings are compared.
      temperature: tau of the cosine logits.
    """

    codebook_sizes: tuple[int, ...] = (500,)
    projection_dim: int = 256
    temperature: float = 0.1

    def __post_init__(self) -> None:
        if not self.codebook_sizes or min(self.codebook_sizes) < 2:
            raise InputError(
                f"config.head.codebook_sizes={self.codebook_sizes}: expected the number of "
                "classes of each codebook, 2 or more"
            )


@dataclasses.dataclass(frozen=True)
class Regularization:
    """What training adds to the network; the defaults are BASE's pre-training.

    Attributes:
      dropout: after attention and feed-forward, and after the position embedding.
      attention_dropout: on attention weights.
      activation_dropout: inside the feed-forward network.
      input_dropout: on the projected front-end features.
      layer_drop: probability with which a whole layer is skipped.
      frontend_gradient_scale: multiplies the gradient that reaches the front-end.
    """

    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.0
    input_dropout: float = 0.1
    layer_drop: float = 0.05
    frontend_gradient_scale: float = 0.1

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            rate = getattr(self, field.name)
            if field.name != "frontend_gradient_scale" and not 0 <= rate < 1:
                raise InputError(
                    f"config.regularization.{field.name}={rate}: expected at least 0 and less "
                    "than 1"
                )


NO_REGULARIZATION = Regularization(0.0, 0.0, 0.0, 0.0, 0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a network runs; may change whenever a run goes on or a checkpoint is used.

    Attributes:
      dtype: "float32" or "bfloat16", of the computation; parameters, norms, softmax and loss are
        always float32.
      attention: "xla", "cudnn" (GPU) or "splash" (TPU); "auto" takes the fastest that platform,
        `dtype` and attention dropout allow.
      rematerialize: recompute each transformer layer in the backward pass instead of storing it.
      scan_unroll: layers of the scan that are laid out in a row: 1 compiles fastest, the number
        of layers runs fastest on CPU.
      platform: "cpu", "gpu" or "tpu" that is compiled for; empty: the one that is there.
    """

    dtype: str = "float32"
    attention: str = "auto"
    rematerialize: bool = False
    scan_unroll: int = 1
    platform: str = ""

    def __post_init__(self) -> None:
        for name, known in (
            ("dtype", DTYPES),
            ("attention", ("auto", *ATTENTION_BACKENDS)),
            ("platform", ("", *PLATFORMS)),
        ):
            value = getattr(self, name)
            if value not in known:
                listed = ", ".join(map(repr, known))
                raise InputError(f"config.execution.{name}={value!r}: expected one of {listed}")
        if self.scan_unroll < 1:
            raise InputError(f"config.execution.scan_unroll={self.scan_unroll}: expected 1 or more")
