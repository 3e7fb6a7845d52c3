"""What a network is (Architecture, Head), how it is regularised, and how it runs (Execution)."""

import dataclasses
import math

from hubert_jax import frames
from hubert_jax.errors import InputError

_MOST_LAYERS, _MOST_CONVOLUTIONS, _WIDEST = 1024, 64, 2**16
_BAND_FACTOR = 4  # by which the dimensions of a band of rarer tokens are fewer


def _require(settings: object, field: str, holds: bool, expected: str) -> None:
    """Raises InputError about a field of `settings` unless `holds`."""
    if not holds:
        section = type(settings).__name__.removeprefix("Lm").lower()
        value = getattr(settings, field)
        raise InputError(f"config.{section}.{field}={value!r}: {expected}")


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Shapes of the encoder; the defaults are BASE as released (Hsu et al. 2021, Table I).

    The paper prints 8 attention heads for BASE; every released model has 12.
    """

    conv_channels: tuple[int, ...] = (512,) * 7
    conv_kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    frontend_norm: str = "group"  # after layer 1, over time (BASE); or layer: after all (LARGE)
    normalize_waveform: bool = False  # zero mean, unit variance of an utterance, before any crop
    dim: int = 768
    num_layers: int = 12
    ffn_dim: int = 3072
    num_heads: int = 12
    pre_norm: bool = False  # LayerNorm before each residual branch (LARGE), not after it (BASE)
    positional_kernel: int = 128
    positional_groups: int = 16

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # before anything grows with them
            value = getattr(self, field.name)
            listed = value if isinstance(value, tuple) else (value,)
            sizes = [size for size in listed if type(size) is int]
            most = _MOST_LAYERS if field.name == "num_layers" else _WIDEST
            _require(self, field.name, min(sizes, default=1) >= 1, "expected 1 or more")
            bounded = len(listed) <= _MOST_CONVOLUTIONS and max(sizes, default=1) <= most
            _require(self, field.name, bounded, f"expected at most {most:,}")
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
        known = self.frontend_norm in ("group", "layer")
        _require(self, "frontend_norm", known, "expected 'group' or 'layer'")
        for name in ("num_heads", "positional_groups"):
            divisor = getattr(self, name)
            divides = divisor >= 1 and self.dim % divisor == 0
            _require(self, name, divides, f"must divide config.architecture.dim={self.dim}")

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.dim // self.num_heads


@dataclasses.dataclass(frozen=True)
class LmArchitecture:
    """Shapes of the Transformer language model, pre-LN.

    The defaults are the paper's, of Synnaeve et al. 2020 as wav2letter's recipe has it. Tokens are
    ordered by frequency: each band of them has a quarter of the dimensions of the one before.
    """

    dim: int = 1280
    num_layers: int = 20
    ffn_dim: int = 6144
    num_heads: int = 16
    cutoffs: tuple[int, ...] = (60_000, 160_000)  # tokens before each further band; () is one band

    def __post_init__(self) -> None:
        for name in ("dim", "num_layers", "ffn_dim", "num_heads"):
            most = _MOST_LAYERS if name == "num_layers" else _WIDEST
            fits = 1 <= getattr(self, name) <= most
            _require(self, name, fits, f"expected 1 to {most:,}")
        divides = self.dim % self.num_heads == 0 and self.dim % 2 == 0
        _require(
            self, "num_heads", divides, f"must divide config.architecture.dim={self.dim}, even"
        )
        ascending = list(self.cutoffs) == sorted({*self.cutoffs}) and min((2, *self.cutoffs)) > 1
        _require(self, "cutoffs", ascending, "expected numbers of tokens that ascend, from 2 on")
        narrowest = self.dim // _BAND_FACTOR ** len(self.cutoffs)
        _require(
            self, "cutoffs", narrowest >= 1, f"the last band of dim={self.dim} has no dimension"
        )

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.dim // self.num_heads

    @property
    def pre_norm(self) -> bool:
        """Whether LayerNorm comes before each residual branch: always."""
        return True

    def bands(self, tokens: int) -> list[tuple[int, int, int]]:
        """(first token, number of tokens, dimensions) of each band of so many tokens."""
        ends = [*(end for end in self.cutoffs if end < tokens), tokens]
        starts = [0, *ends[:-1]]
        return [
            (start, end - start, self.dim // _BAND_FACTOR**number)
            for number, (start, end) in enumerate(zip(starts, ends, strict=True))
        ]


@dataclasses.dataclass(frozen=True)
class Head:
    """The masked-prediction head (paper eq. 3); the defaults are BASE's."""

    codebook_sizes: tuple[int, ...] = (500,)  # classes of each codebook
    projection_dim: int = 256  # width in which frames and label embeddings are compared
    temperature: float = 0.1  # tau of the cosine logits

    def __post_init__(self) -> None:
        _require(
            self,
            "codebook_sizes",
            min(self.codebook_sizes, default=0) >= 2,
            "expected the number of classes of each codebook, 2 or more",
        )
        _require(self, "projection_dim", self.projection_dim >= 1, "expected 1 or more")
        _require(self, "temperature", self.temperature > 0, "expected more than 0")


@dataclasses.dataclass(frozen=True)
class Regularization:
    """What training adds to the network; the defaults are BASE's pre-training."""

    dropout: float = 0.1  # after attention, feed-forward and the position embedding
    attention_dropout: float = 0.1  # of attention weights
    activation_dropout: float = 0.0  # inside the feed-forward network
    input_dropout: float = 0.1  # of the projected front-end features
    layer_drop: float = 0.05  # probability with which a whole layer is skipped
    frontend_gradient_scale: float = 0.1  # multiplies the gradient that reaches the front-end

    def __post_init__(self) -> None:
        for name, rate in dataclasses.asdict(self).items():
            if name == "frontend_gradient_scale":
                _require(self, name, rate >= 0, "expected at least 0")
            else:
                _require(self, name, 0 <= rate < 1, "expected at least 0 and less than 1")


NO_REGULARIZATION = Regularization(0.0, 0.0, 0.0, 0.0, 0.0, 1.0)


REMATERIALIZE = ("nothing", "attention", "all_but_dots", "everything")


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a network runs; may change whenever a run goes on or a checkpoint is used.

    Parameters, norms, softmax and loss are float32 in any `dtype`.
    """

    dtype: str = "float32"  # of the computation; or bfloat16
    attention: str = "auto"  # xla; on GPU cudnn, blocks; on TPU splash, whole_rows; auto
    rematerialize: str = "nothing"  # of a layer in the backward pass, so that it is not stored:
    # attention, from queries to its output; all_but_dots: not what dense layers give; everything
    scan_unroll: int = 1  # layers in a row: 1 compiles fastest, all of them run fastest
    platform: str = ""  # that is compiled for; empty: the one that is there

    def __post_init__(self) -> None:
        for name, known in (
            ("dtype", ("float32", "bfloat16")),
            ("attention", ("auto", "xla", "cudnn", "blocks", "splash", "whole_rows")),
            ("rematerialize", REMATERIALIZE),
            ("platform", ("", "cpu", "gpu", "tpu")),
        ):
            listed = ", ".join(map(repr, known))
            _require(self, name, getattr(self, name) in known, f"expected one of {listed}")
        _require(self, "scan_unroll", self.scan_unroll >= 1, "expected 1 or more")

    def require_dropout(self, regularization: Regularization) -> None:
        """Raises InputError where cuDNN's or splash attention is named, but weights are dropped."""
        rate = regularization.attention_dropout
        if rate and self.attention in ("cudnn", "splash"):
            raise InputError(
                f"config.execution.attention={self.attention!r} has no dropout of attention "
                f"weights, but config.regularization.attention_dropout={rate:g}; expected 'auto', "
                "'xla', 'whole_rows' (on TPUs), 'blocks' (on GPUs), or a dropout of 0"
            )
