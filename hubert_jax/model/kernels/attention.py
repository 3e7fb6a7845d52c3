"""Scaled dot-product self-attention: XLA's, cuDNN's, Pallas' (splash), and ours.

Query, key, value and what is returned, in the dtype of `value`, are (B, T, heads, head_dim); the
softmax is in float32. Of each row the first `lengths` (B,) int32 frames are attended to, None: all;
what comes out for the others is finite and differs between the kernels. Where it is `causal`, no
frame attends to later ones.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from hubert_jax.model.kernels.dropout import plain as plain_dropout

_MASKED = -1e9  # finite, so that a row without a valid key gives numbers rather than NaN
_QUERIES = 1024  # frames whose weights of all others are in memory at once, where there are many
_SPLASH_BLOCK = 128  # the lanes of a TPU: lengths are padded to a multiple of it


def xla(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    lengths: jax.Array | None = None,
    rate: float = 0.0,
    random: jax.Array | None = None,
    *,
    causal: bool = False,
    dropout: Callable[[jax.Array, float, jax.Array], jax.Array] = plain_dropout,
) -> jax.Array:
    """Attention written out, `causal` or not, its weights dropped at `rate` by the key `random`.

    With neither, memory grows with frames and not with their square from 4,096 on, where their
    number is known as it is compiled.
    """
    drop: Callable[[jax.Array], jax.Array] | None = None
    if rate and (drawn_by := random) is not None:
        drop = lambda weights: dropout(weights, rate, drawn_by)  # noqa: E731
    attend = functools.partial(_written_out, key=key, value=value, lengths=lengths)
    rows, frames, *each = query.shape
    many = isinstance(frames, int) and frames > 4 * _QUERIES  # or symbolic
    if causal or drop is not None or not many:
        return attend(query, drop=drop, causal=causal)
    padded = jnp.pad(query, [(0, 0), (0, -frames % _QUERIES), (0, 0), (0, 0)])
    blocks = padded.reshape(rows, -1, _QUERIES, *each).swapaxes(0, 1)
    return jax.lax.map(attend, blocks).swapaxes(0, 1).reshape(padded.shape)[:, :frames]


def _written_out(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    lengths: jax.Array | None,
    drop: Callable[[jax.Array], jax.Array] | None = None,
    causal: bool = False,
) -> jax.Array:
    scale = query.shape[-1] ** -0.5
    logits = jnp.einsum("bqhd,bkhd->bhqk", query * scale, key, preferred_element_type=jnp.float32)
    if lengths is not None:
        valid = jnp.arange(key.shape[1]) < lengths[:, None]
        logits = jnp.where(valid[:, None, None, :], logits, _MASKED)
    if causal:
        earlier = jnp.tri(query.shape[1], key.shape[1], dtype=bool)
        logits = jnp.where(earlier, logits, _MASKED)
    weights = jax.nn.softmax(logits, axis=-1)
    if drop is not None:
        weights = drop(weights)
    return jnp.einsum("bhqk,bkhd->bqhd", weights.astype(value.dtype), value)


def cudnn(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    lengths: jax.Array | None = None,
    *,
    causal: bool = False,
) -> jax.Array:
    """cuDNN's flash attention, for GPUs in half precision."""
    if lengths is not None:
        lengths = jnp.maximum(lengths, 1)  # a softmax over no key would be NaN
    attend = functools.partial(
        jax.nn.dot_product_attention, implementation="cudnn", is_causal=causal
    )
    return attend(query, key, value, query_seq_lengths=lengths, key_value_seq_lengths=lengths)


def splash(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    lengths: jax.Array | None = None,
    *,
    causal: bool = False,
    sharding: NamedSharding | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Pallas' splash attention, for TPUs, on frames padded to whole blocks.

    XLA cannot divide a Pallas call: with `sharding` each device runs its own rows and heads.
    """
    frames = query.shape[1]
    scaled = query * query.shape[-1] ** -0.5
    if lengths is None:
        lengths = jnp.full((query.shape[0],), frames, jnp.int32)
    padding = [(0, 0), (0, -frames % _SPLASH_BLOCK), (0, 0), (0, 0)]
    padded = [jnp.pad(x, padding) for x in (scaled, key, value)]
    run: Callable[..., jax.Array] = functools.partial(
        _splash_on_device, causal=causal, interpret=interpret
    )
    if sharding is not None:
        rows, heads = device_axes(sharding, query.shape[2])
        divided = PartitionSpec(rows, None, heads)
        run = jax.shard_map(
            run,
            mesh=sharding.mesh,
            in_specs=(divided, divided, divided, PartitionSpec(rows)),
            out_specs=divided,
            check_vma=False,
        )
    return run(*padded, lengths)[:, :frames].astype(value.dtype)


def device_axes(sharding: NamedSharding, heads: int) -> tuple[Any, str | None]:
    """The axes of the mesh that rows are cut over, and the one for so many heads if it divides."""
    over_rows, _, over_heads, *_ = sharding.spec
    if over_heads is not None and heads % sharding.mesh.shape[over_heads]:
        over_heads = None
    return over_rows, over_heads


def _splash_on_device(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    lengths: jax.Array,
    *,
    causal: bool,
    interpret: bool,
) -> jax.Array:
    from jax.experimental.pallas.ops.tpu import splash_attention as pallas

    frames, heads = query.shape[1:3]
    block = max(size for size in (128, 256, 384, 512) if frames % size == 0)
    mask = pallas.CausalMask if causal else pallas.FullMask
    kernel = pallas.make_splash_mha_single_device(
        pallas.MultiHeadMask([mask((frames, frames))] * heads),
        block_sizes=pallas.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        interpret=interpret,
    )
    segments = (jnp.arange(frames) >= lengths[:, None]).astype(jnp.int32)  # 1: padding
    q, k, v = (x.swapaxes(1, 2) for x in (query, key, value))
    attended = jax.vmap(lambda q, k, v, s: kernel(q, k, v, segment_ids=pallas.SegmentIds(s, s)))(
        q, k, v, segments
    )
    return attended.swapaxes(1, 2)
