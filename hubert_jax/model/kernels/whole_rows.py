"""Attention with dropout of its weights on TPU: a Pallas kernel that never writes the weights.

Crops of speech are short: a block of queries sees all keys of its row and head at once, so that the
softmax is one pass, and the backward pass computes it again. Written out by XLA, the weights of
BASE's 12 heads, their softmax and what is dropped of them go through memory several times.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import NamedSharding

from hubert_jax.model.kernels import weights
from hubert_jax.model.kernels.weights import MASKED, dropped, product

_Ref = Any  # of memory on the chip, read and written by index
_LANES = 128  # frames are padded to a multiple of a TPU's
_MOST_FRAMES, _MOST_HEADS = 2048, 2**16  # of a row; of all rows of a device
_SCORES = 2**18  # of a block of queries, at most: 1 MiB in float32


def has_room(query: jax.Array, sharding: NamedSharding | None) -> bool:
    """Whether frames, and the rows and heads of a device, fit the kernel's memory on the chip."""
    rows, frames, heads, _ = query.shape
    if sharding is not None:
        rows //= math.prod(sharding.mesh.shape[axis] for axis in sharding.spec[0])
    return frames <= _MOST_FRAMES and rows * heads <= _MOST_HEADS


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    lengths: jax.Array | None = None,
    rate: float = 0.0,
    random: jax.Array | None = None,
    *,
    causal: bool = False,
    sharding: NamedSharding | None = None,
    interpret: bool = False,
) -> jax.Array:
    """As the functions of `attention`, the weights dropped with probability `rate`.

    What is dropped is a function of the key `random`, the row, the head and the two frames: the
    same on any devices. With `sharding` each device runs its own rows and heads.
    """
    return weights.attend(
        *(_attended, _LANES, query, key, value, lengths, rate, random),
        causal=causal,
        sharding=sharding,
        interpret=interpret,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attended(
    rate: float,
    causal: bool,
    interpret: bool,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    lengths: jax.Array,
    words: jax.Array,
) -> jax.Array:
    """On one device, of scaled queries and whole blocks, (B, T, heads, head_dim)."""
    return _forward(rate, causal, interpret, query, key, value, lengths, words)[0]


def _forward(
    rate: float,
    causal: bool,
    interpret: bool,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    lengths: jax.Array,
    words: jax.Array,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    by_head = [x.swapaxes(1, 2) for x in (query, key, value)]
    grid, of_block, of_row = _blocks(by_head[0])
    out = pl.pallas_call(
        functools.partial(_forward_kernel, rate=rate, causal=causal),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=grid,
            in_specs=[of_block, of_row, of_row],
            out_specs=of_block,
        ),
        out_shape=jax.ShapeDtypeStruct(by_head[0].shape, value.dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel")
        ),
        interpret=interpret,
        name="whole_rows_forward",
    )(lengths, words.ravel(), *by_head)  # flat, or each row would be padded to whole tiles
    return out.swapaxes(1, 2), (query, key, value, lengths, words)


def _backward(
    rate: float,
    causal: bool,
    interpret: bool,
    kept: tuple[jax.Array, ...],
    cotangent: jax.Array,
) -> tuple[jax.Array | None, ...]:
    *inputs, lengths, words = kept
    by_head = [x.swapaxes(1, 2) for x in (*inputs, cotangent)]
    grid, of_block, of_row = _blocks(by_head[0])
    frames, width = by_head[0].shape[2:]
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in by_head[:3]]
    found = pl.pallas_call(
        functools.partial(_backward_kernel, rate=rate, causal=causal),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=grid,
            in_specs=[of_block, of_row, of_row, of_block],
            out_specs=[of_block, of_row, of_row],
            scratch_shapes=[pltpu.VMEM((frames, width), jnp.float32) for _ in range(2)],
        ),
        out_shape=shapes,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        interpret=interpret,
        name="whole_rows_backward",
    )(lengths, words.ravel(), *by_head)
    return (*(x.swapaxes(1, 2) for x in found), None, None)


_attended.defvjp(_forward, _backward)


def _blocks(query: jax.Array) -> tuple[tuple[int, int, int], pl.BlockSpec, pl.BlockSpec]:
    """The grid of rows, heads and blocks of queries; what a step sees of queries, and of keys."""
    rows, heads, frames, width = query.shape
    sizes = [size for size in range(_LANES, frames + 1, _LANES) if frames % size == 0]
    block = max([size for size in sizes if size * frames <= _SCORES], default=_LANES)
    of_block = pl.BlockSpec((1, 1, block, width), lambda row, head, part, *_: (row, head, part, 0))
    of_row = pl.BlockSpec((1, 1, frames, width), lambda row, head, part, *_: (row, head, 0, 0))
    return (rows, heads, frames // block), of_block, of_row


def _softmax(
    query: jax.Array, key: jax.Array, lengths: _Ref, words: _Ref, rate: float, causal: bool
) -> tuple[jax.Array, jax.Array | None]:
    """The softmax of a block, float32 (Q, K), and what stays of it, bool (Q, K), or None: all."""
    row, head, part = (pl.program_id(axis) for axis in range(3))
    scores = product(query, key, 1, 1)
    to = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
    whence = part * scores.shape[0] + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
    valid = to < lengths[row]
    if causal:
        valid &= to <= whence
    scores = jnp.where(valid, scores, MASKED)
    powers = jnp.exp(scores - scores.max(axis=1, keepdims=True))
    softmax = powers / powers.sum(axis=1, keepdims=True)
    if not rate:
        return softmax, None
    own = 2 * (row * pl.num_programs(1) + head)
    return softmax, weights.stays(whence, to, words[own], words[own + 1], rate)


def _forward_kernel(
    lengths: _Ref,
    words: _Ref,
    query: _Ref,
    key: _Ref,
    value: _Ref,
    out: _Ref,
    *,
    rate: float,
    causal: bool,
) -> None:
    softmax, kept = _softmax(query[0, 0], key[0, 0], lengths, words, rate, causal)
    staying = dropped(softmax, kept, rate).astype(value.dtype)
    out[0, 0] = product(staying, value[0, 0], 1, 0).astype(out.dtype)


def _backward_kernel(
    lengths: _Ref,
    words: _Ref,
    query: _Ref,
    key: _Ref,
    value: _Ref,
    cotangent: _Ref,
    to_query: _Ref,
    to_key: _Ref,
    to_value: _Ref,
    sum_key: _Ref,
    sum_value: _Ref,
    *,
    rate: float,
    causal: bool,
) -> None:
    part, last = pl.program_id(2), pl.num_programs(2) - 1

    @pl.when(part == 0)
    def begin() -> None:
        sum_key[...] = jnp.zeros_like(sum_key)
        sum_value[...] = jnp.zeros_like(sum_value)

    q, k, v, outer = query[0, 0], key[0, 0], value[0, 0], cotangent[0, 0]
    softmax, kept = _softmax(q, k, lengths, words, rate, causal)
    staying = dropped(softmax, kept, rate).astype(v.dtype)
    sum_value[...] += product(staying, outer, 0, 0)
    to_weights = dropped(product(outer, v, 1, 1), kept, rate)
    to_scores = softmax * (to_weights - (softmax * to_weights).sum(axis=1, keepdims=True))
    to_scores = to_scores.astype(k.dtype)
    to_query[0, 0] = product(to_scores, k, 1, 0).astype(to_query.dtype)
    sum_key[...] += product(to_scores, q, 0, 0)

    @pl.when(part == last)
    def end() -> None:
        to_key[0, 0] = sum_key[...].astype(to_key.dtype)
        to_value[0, 0] = sum_value[...].astype(to_value.dtype)
