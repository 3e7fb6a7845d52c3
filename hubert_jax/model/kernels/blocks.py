"""Attention with dropout of its weights on GPU: a Pallas kernel that never writes the weights.

A block of queries goes through blocks of keys, with a running softmax (FlashAttention-2, Dao 2023);
the backward pass computes the weights again, once by keys and once by queries. cuDNN's kernel has
dropout, too, but draws by a seed that is compiled in.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.sharding import NamedSharding

from hubert_jax.model.kernels import weights
from hubert_jax.model.kernels.weights import MASKED, dropped, product

_Ref = Any  # of memory on the chip, read and written by index
_BLOCK = 64  # frames
_MOST_FRAMES = 2048  # of a row
_WARPS, _STAGES = 4, 2


def has_room(query: jax.Array, sharding: NamedSharding | None) -> bool:
    """Whether the kernel takes so many frames."""
    del sharding  # each device has its rows
    return query.shape[1] <= _MOST_FRAMES


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
    same on any devices, and as on TPU. With `sharding` each device runs its own rows and heads.
    """
    return weights.attend(
        *(_attended, _BLOCK, query, key, value, lengths, rate, random),
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
    rows, frames, heads, _ = query.shape
    out, norms = _call(
        _forward_kernel,
        "blocks_forward",
        (rate, causal, interpret),
        ("block", "row", "row"),
        (query, key, value),
        (lengths, words),
        [("block", value), ("numbers", jax.ShapeDtypeStruct((rows, heads, frames), jnp.float32))],
    )
    return out, (query, key, value, lengths, words, out, norms)


def _backward(
    rate: float,
    causal: bool,
    interpret: bool,
    kept: tuple[jax.Array, ...],
    cotangent: jax.Array,
) -> tuple[jax.Array | None, ...]:
    query, key, value, lengths, words, out, norms = kept
    both = out.astype(jnp.float32) * cotangent.astype(jnp.float32)
    means = both.sum(axis=-1).swapaxes(1, 2)  # of the weights' cotangents, by the weights
    options, small = (rate, causal, interpret), (lengths, words)
    arrays = (query, key, value, cotangent, norms, means)
    to_key, to_value = _call(
        _to_keys_kernel,
        "blocks_backward_of_keys",
        options,
        ("row", "block", "block", "row", "all numbers", "all numbers"),
        arrays,
        small,
        [("block", key), ("block", value)],
    )
    (to_query,) = _call(
        _to_queries_kernel,
        "blocks_backward_of_queries",
        options,
        ("block", "row", "row", "block", "numbers", "numbers"),
        arrays,
        small,
        [("block", query)],
    )
    return to_query, to_key, to_value, None, None


_attended.defvjp(_forward, _backward)


def _call(
    kernel: Any,
    name: str,
    options: tuple[float, bool, bool],
    kinds: tuple[str, ...],
    arrays: tuple[jax.Array, ...],
    small: tuple[jax.Array, jax.Array],
    results: list[tuple[str, Any]],
) -> list[jax.Array]:
    """Runs a kernel for each row, head and block of frames; `kinds` say what it sees of each."""
    rate, causal, interpret = options
    rows, frames, heads, width = arrays[0].shape
    # Blocks are next to each other: they read the same keys.
    specs = {
        "block": pl.BlockSpec(
            (None, _BLOCK, None, width), lambda part, head, row: (row, part, head, 0)
        ),
        "row": pl.BlockSpec((None, frames, None, width), lambda part, head, row: (row, 0, head, 0)),
        "numbers": pl.BlockSpec((None, None, _BLOCK), lambda part, head, row: (row, head, part)),
        "all numbers": pl.BlockSpec((None, None, frames), lambda part, head, row: (row, head, 0)),
    }
    own = [
        pl.BlockSpec((1,), lambda part, head, row: (row,)),
        pl.BlockSpec((None, None, 2), lambda part, head, row: (row, head, 0)),
    ]
    return pl.pallas_call(
        functools.partial(kernel, rate=rate, causal=causal),
        grid=(frames // _BLOCK, heads, rows),
        in_specs=[*own, *(specs[kind] for kind in kinds)],
        out_specs=[specs[kind] for kind, _ in results],
        out_shape=[jax.ShapeDtypeStruct(like.shape, like.dtype) for _, like in results],
        compiler_params=triton.CompilerParams(num_warps=_WARPS, num_stages=_STAGES),
        interpret=interpret,
        name=name,
    )(*small, *arrays)


def _scores(
    query: jax.Array,
    key: jax.Array,
    whence: jax.Array,
    to: jax.Array,
    length: jax.Array,
    causal: bool,
) -> jax.Array:
    """Of blocks of queries and keys that begin at these frames: float32 (Q, K)."""
    scores = product(query, key, 1, 1)
    from_frame, to_frame = _frames(whence, to)
    valid = to_frame < length
    if causal:
        valid &= to_frame <= from_frame
    return jnp.where(valid, scores, MASKED)


def _frames(whence: jax.Array, to: jax.Array) -> tuple[jax.Array, jax.Array]:
    shape = (_BLOCK, _BLOCK)
    return (
        whence + jax.lax.broadcasted_iota(jnp.int32, shape, 0),
        to + jax.lax.broadcasted_iota(jnp.int32, shape, 1),
    )


def _stays(words: _Ref, whence: jax.Array, to: jax.Array, rate: float) -> jax.Array | None:
    return weights.stays(*_frames(whence, to), words[0], words[1], rate) if rate else None


def _blocks_of_keys(length: jax.Array, frames: int) -> jax.Array:
    """How many have a valid key; one at least."""
    return jnp.clip((length + _BLOCK - 1) // _BLOCK, 1, frames // _BLOCK)


def _forward_kernel(
    lengths: _Ref,
    words: _Ref,
    query: _Ref,
    key: _Ref,
    value: _Ref,
    out: _Ref,
    norms: _Ref,
    *,
    rate: float,
    causal: bool,
) -> None:
    whence, length, q = pl.program_id(0) * _BLOCK, lengths[0], query[...]

    def add(number: jax.Array, carried: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        total, most, sums = carried
        to = number * _BLOCK
        at = pl.ds(to, _BLOCK)
        scores = _scores(q, key[at, :], whence, to, length, causal)
        higher = jnp.maximum(most, scores.max(axis=1))
        powers, shrunk = jnp.exp(scores - higher[:, None]), jnp.exp(most - higher)
        staying = dropped(powers, _stays(words, whence, to, rate), rate).astype(value.dtype)
        total = total * shrunk[:, None] + product(staying, value[at, :], 1, 0)
        return total, higher, sums * shrunk + powers.sum(axis=1)

    begin = (
        jnp.zeros(q.shape, jnp.float32),
        jnp.full((_BLOCK,), -jnp.inf, jnp.float32),
        jnp.zeros((_BLOCK,), jnp.float32),
    )
    blocks = _blocks_of_keys(length, key.shape[0])
    total, most, sums = jax.lax.fori_loop(0, blocks, add, begin)
    out[...] = (total / sums[:, None]).astype(out.dtype)
    norms[...] = most + jnp.log(sums)


def _again(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    outer: jax.Array,
    norm: jax.Array,
    mean: jax.Array,
    words: _Ref,
    whence: jax.Array,
    to: jax.Array,
    length: jax.Array,
    rate: float,
    causal: bool,
) -> tuple[jax.Array, jax.Array]:
    """What stays of the weights of a block, (Q, K), and the cotangent of its scores."""
    softmax = jnp.exp(_scores(q, k, whence, to, length, causal) - norm[:, None])
    kept = _stays(words, whence, to, rate)
    to_weights = dropped(product(outer, v, 1, 1), kept, rate)
    to_scores = softmax * (to_weights - mean[:, None])
    return dropped(softmax, kept, rate).astype(v.dtype), to_scores.astype(k.dtype)


def _to_keys_kernel(
    lengths: _Ref,
    words: _Ref,
    query: _Ref,
    key: _Ref,
    value: _Ref,
    cotangent: _Ref,
    norms: _Ref,
    means: _Ref,
    to_key: _Ref,
    to_value: _Ref,
    *,
    rate: float,
    causal: bool,
) -> None:
    to, length, k, v = pl.program_id(0) * _BLOCK, lengths[0], key[...], value[...]

    def add(number: jax.Array, sums: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        whence = number * _BLOCK
        at = pl.ds(whence, _BLOCK)
        q, outer = query[at, :], cotangent[at, :]
        own = (norms[at], means[at], words, whence, to, length, rate, causal)
        staying, to_scores = _again(q, k, v, outer, *own)
        return sums[0] + product(to_scores, q, 0, 0), sums[1] + product(staying, outer, 0, 0)

    begin = (jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32))
    sums = jax.lax.fori_loop(0, query.shape[0] // _BLOCK, add, begin)
    to_key[...] = sums[0].astype(to_key.dtype)
    to_value[...] = sums[1].astype(to_value.dtype)


def _to_queries_kernel(
    lengths: _Ref,
    words: _Ref,
    query: _Ref,
    key: _Ref,
    value: _Ref,
    cotangent: _Ref,
    norms: _Ref,
    means: _Ref,
    to_query: _Ref,
    *,
    rate: float,
    causal: bool,
) -> None:
    whence, length, q, outer = pl.program_id(0) * _BLOCK, lengths[0], query[...], cotangent[...]
    norm, mean = norms[...], means[...]

    def add(number: jax.Array, total: jax.Array) -> jax.Array:
        to = number * _BLOCK
        at = pl.ds(to, _BLOCK)
        own = (norm, mean, words, whence, to, length, rate, causal)
        _, to_scores = _again(q, key[at, :], value[at, :], outer, *own)
        return total + product(to_scores, key[at, :], 1, 0)

    blocks = _blocks_of_keys(length, key.shape[0])
    total = jax.lax.fori_loop(0, blocks, add, jnp.zeros(q.shape, jnp.float32))
    to_query[...] = total.astype(to_query.dtype)
