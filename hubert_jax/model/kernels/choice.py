"""Which form of each computation a network runs with."""

import dataclasses
import functools
import importlib
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from hubert_jax.model.architecture import (
    NO_REGULARIZATION,
    Architecture,
    Execution,
    LmArchitecture,
    Regularization,
)
from hubert_jax.model.kernels import attention, dense, dropout, grouped_convolution, norm

_CUDNN_MAX_HEAD_DIM = 128
_POWERS = (16, 32, 64, 128)  # of two, which our kernel for GPU loads
_CAPABLE = re.compile(r"([89]|\d\d)\.\d")  # of Triton's products of halves; AMD's are gfx90a


@dataclasses.dataclass(frozen=True)
class Kernels:
    """How a network computes; the functions are described in their modules."""

    attention: Callable[..., jax.Array]  # those with dropout take its rate and key, too
    attention_backend: str
    attention_reason: str  # why this back-end
    dropout: Callable[[jax.Array, float, jax.Array], jax.Array]
    layer_norm: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    time_norm: Callable[[jax.Array, jax.Array, jax.Array, jax.Array | None], jax.Array]
    dot_general: Callable[..., jax.Array]
    grouped_convolution: Callable[[jax.Array, jax.Array, int], jax.Array]
    dtype: jnp.dtype
    rematerialize: str = "nothing"  # of a layer, beyond attention
    scan_unroll: int = 1


def choose(
    execution: Execution,
    architecture: Architecture | LmArchitecture,
    regularization: Regularization = NO_REGULARIZATION,
    activations: NamedSharding | None = None,
    *,
    causal: bool = False,
) -> Kernels:
    """The fastest kernels that compute the same.

    `activations` says where (B, T, heads, head_dim) lies on the mesh, None: on one device;
    `causal`, that no frame attends to later ones. Raises as `Execution.require_dropout`.
    """
    platform = execution.platform or jax.default_backend()
    backend, reason = _attention_backend(execution, architecture, regularization, platform, causal)
    on_cpu = platform == "cpu"
    drop = dropout.on_cpu if on_cpu else dropout.plain
    convolve: Callable[..., jax.Array] = grouped_convolution.plain
    if on_cpu:
        convolve = grouped_convolution.on_cpu
    elif activations is not None:
        convolve = functools.partial(grouped_convolution.on_mesh, sharding=activations)
    attend: Callable[..., jax.Array]
    if backend in ("whole_rows", "blocks"):
        attend = functools.partial(_dropping, backend, activations)
    elif backend == "splash":
        attend = functools.partial(attention.splash, sharding=activations)
    elif backend == "cudnn":
        attend = attention.cudnn
    else:
        attend = functools.partial(attention.xla, dropout=drop)
    if causal:
        attend = functools.partial(attend, causal=True)
    if execution.rematerialize == "attention":
        attend = functools.partial(_recomputed, attend)
    return Kernels(
        attention=attend,
        attention_backend=backend,
        attention_reason=reason,
        dropout=drop,
        layer_norm=norm.on_cpu if on_cpu else norm.plain,
        time_norm=norm.over_time_on_cpu if on_cpu else norm.over_time,
        dot_general=dense.on_cpu if on_cpu else dense.plain,
        grouped_convolution=convolve,
        dtype=jnp.dtype(execution.dtype),
        rematerialize=execution.rematerialize,
        scan_unroll=execution.scan_unroll,
    )


def _recomputed(
    attend: Callable[..., jax.Array],
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    lengths: jax.Array | None,
    rate: float = 0.0,
    random: jax.Array | None = None,
) -> jax.Array:
    """Attention that leaves its arguments alone to the backward pass."""

    def weighed(*arrays: Any) -> jax.Array:
        return attend(*arrays[:4], rate, arrays[4]) if rate else attend(*arrays[:4])

    # Layers are scanned, and so XLA cannot take what the forward pass has computed.
    return jax.checkpoint(weighed, prevent_cse=False)(query, key, value, lengths, random)


def _dropping(
    backend: str, activations: NamedSharding | None, query: jax.Array, *rest: Any, **named: Any
) -> jax.Array:
    """Our kernel where it has room, which it has for all but very long or very many rows."""
    # Imported where it is used: Pallas takes an eighth of a second.
    kernel = importlib.import_module(f"hubert_jax.model.kernels.{backend}")
    if kernel.has_room(query, activations):
        return kernel.attend(query, *rest, **named, sharding=activations)
    return attention.xla(query, *rest, **named)


def _attention_backend(
    execution: Execution,
    architecture: Architecture | LmArchitecture,
    regularization: Regularization,
    platform: str,
    causal: bool,
) -> tuple[str, str]:
    """Name of the attention kernel, and why it is the one."""
    rate, head_dim = regularization.attention_dropout, architecture.head_dim
    execution.require_dropout(regularization)
    if execution.attention != "auto":
        return execution.attention, "config.execution.attention"
    if platform == "cpu":
        return "xla", "the fused kernels need an accelerator"
    if rate and causal:
        return "xla", f"sentences are too short for a kernel with dropout, here {rate:g}"
    if platform == "tpu":
        if rate:
            return "whole_rows", f"our Pallas kernel for TPU, with attention dropout {rate:g}"
        return "splash", "Pallas kernel for TPU"
    if rate and not _CAPABLE.match(capability := _capability()):
        return "xla", f"our kernel needs NVIDIA's compute capability 8 or more, here {capability}"
    if rate and head_dim not in _POWERS:
        return "xla", f"our kernel for GPU takes heads of {_POWERS} channels, here {head_dim}"
    if rate:
        return "blocks", f"our Pallas kernel for GPU, with attention dropout {rate:g}"
    if execution.dtype != "bfloat16":
        return "xla", f"cuDNN's kernel takes half precision alone, here {execution.dtype}"
    if head_dim % 8 or head_dim > _CUDNN_MAX_HEAD_DIM:
        limit = f"a multiple of 8 and at most {_CUDNN_MAX_HEAD_DIM} channels"
        return "xla", f"cuDNN's kernel takes heads of {limit}, here {head_dim}"
    return "cudnn", "cuDNN's flash kernel for GPU"


def _capability() -> str:
    """Of the GPU that is there; where one is compiled for that is not, that of an H100."""
    if jax.default_backend() != "gpu":
        return "9.0"
    return str(getattr(jax.local_devices()[0], "compute_capability", "unknown"))
