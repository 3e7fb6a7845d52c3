"""Multi-head self-attention behind one function, with a back-end for each kind of machine."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from hubert_jax.errors import InputError
from hubert_jax.model.dropout import dropout as drop

BACKENDS = ("xla", "cudnn", "splash")

_MASKED = -1e9  # finite, so that a row without a valid key gives numbers rather than NaN
_CUDNN_MAX_HEAD_DIM = 128
_SPLASH_BLOCK = 128  # the lanes of a TPU: lengths are padded to a multiple of it
# Axes of the mesh, where there is one, over which rows and heads are cut.
_ROW_AXES, _HEAD_AXIS = ("data", "fsdp"), "tensor"


@dataclasses.dataclass(frozen=True)
class Choice:
    """A back-end and why it is the one."""

    backend: str
    reason: str

    def __str__(self) -> str:
        return f"{self.backend} ({self.reason})"


def choose(platform: str, dtype: str, dropout: float, head_dim: int) -> Choice:
    """The fastest back-end that computes the same.

    Args:
      platform: "cpu", "gpu" or "tpu".
      dtype: of the computation, "float32" or "bfloat16".
      dropout: of attention weights, as it is in effect: 0 in evaluation. The fused kernels never
        hold the weights that it would drop.
      head_dim: channels of one head.
    """
    if platform == "cpu":
        return Choice("xla", "the fused kernels need an accelerator")
    if dropout:
        return Choice("xla", f"the fused kernels have no attention dropout, here {dropout:g}")
    if platform == "tpu":
        return Choice("splash", "Pallas kernel for TPU")
    if dtype != "bfloat16":
        return Choice("xla", f"cuDNN's kernel takes half precision alone, here {dtype}")
    if head_dim % 8 or head_dim > _CUDNN_MAX_HEAD_DIM:
        return Choice(
            "xla",
            f"cuDNN's kernel takes heads of a multiple of 8 and at most {_CUDNN_MAX_HEAD_DIM} "
            f"channels, here {head_dim}",
        )
    return Choice("cudnn", "flash attention of cuDNN")


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    lengths: jax.Array | None = None,
    dropout: float = 0.0,
    dropout_key: jax.Array | None = None,
    backend: str = "xla",
) -> jax.Array:
    """Scaled dot-product attention; softmax in float32.

    Args:
      query, key, value: (B, T, heads, head_dim).
      lengths: (B,) int32, valid frames at the beginning of each row; only they are attended to.
        What comes out for the others is finite and depends on the back-end. None: all are valid.
      dropout: probability with which an attention weight is dropped; "xla" alone can.
      dropout_key: its key; None: no dropout.
      backend: one of `BACKENDS`, see `choose`.

    Returns:
      (B, T, heads, head_dim) in the dtype of `value`.

    Raises:
      InputError: an unknown back-end, or dropout for one that has none.
    """
    if backend == "xla":
        return _xla(query, key, value, lengths, dropout, dropout_key)
    if dropout and dropout_key is not None:
        raise InputError(f"attention: back-end {backend!r} has no dropout; expected 'xla'")
    if backend == "cudnn":
        return _cudnn(query, key, value, lengths)
    if backend == "splash":
        return _splash(query, key, value, lengths)
    raise InputError(f"attention: back-end {backend!r}; expected one of {', '.join(BACKENDS)}")


def _xla(query, key, value, lengths, dropout, dropout_key):
    scale = query.shape[-1] ** -0.5
    logits = jnp.einsum("bqhd,bkhd->bhqk", query * scale, key, preferred_element_type=jnp.float32)
    if lengths is not None:
        valid = jnp.arange(key.shape[1]) < lengths[:, None]
        logits = jnp.where(valid[:, None, None, :], logits, _MASKED)
    weights = jax.nn.softmax(logits, axis=-1)
    if dropout and dropout_key is not None:
        weights = drop(weights, dropout, dropout_key)
    return jnp.einsum("bhqk,bkhd->bqhd", weights.astype(value.dtype), value)


def _cudnn(query, key, value, lengths):
    if lengths is not None:
        lengths = jnp.maximum(lengths, 1)  # a softmax over no key would be NaN
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation="cudnn",
    )


def _splash(query, key, value, lengths, interpret: bool = False):
    """The kernel wants whole blocks of frames; what is added is a segment of its own.

    XLA cannot cut a Pallas call over devices by itself: inside `jax.set_mesh`, each device runs
    the kernel on its own rows and heads.
    """
    frames = query.shape[1]
    scaled = query * query.shape[-1] ** -0.5
    if lengths is None:
        lengths = jnp.full((query.shape[0],), frames, jnp.int32)
    padding = [(0, 0), (0, -frames % _SPLASH_BLOCK), (0, 0), (0, 0)]
    padded = (jnp.pad(x, padding) for x in (scaled, key, value))
    run = functools.partial(_splash_on_device, interpret=interpret)
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty:
        rows = tuple(axis for axis in _ROW_AXES if axis in mesh.axis_names)
        heads = _HEAD_AXIS if query.shape[2] % mesh.shape.get(_HEAD_AXIS, 1) == 0 else None
        cut = PartitionSpec(rows, None, heads)
        run = jax.shard_map(
            run, in_specs=(cut, cut, cut, PartitionSpec(rows)), out_specs=cut, check_vma=False
        )
    return run(*padded, lengths)[:, :frames].astype(value.dtype)


def _splash_on_device(query, key, value, lengths, interpret):
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    frames, heads = query.shape[1:3]
    block = max(size for size in (128, 256, 384, 512) if frames % size == 0)
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([splash.FullMask((frames, frames))] * heads),
        block_sizes=splash.BlockSizes(
            block_q=block,
            block_kv=block,
            block_kv_compute=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_kv_dkv_compute=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    segments = (jnp.arange(frames) >= lengths[:, None]).astype(jnp.int32)
    by_head = (x.swapaxes(1, 2) for x in (query, key, value))
    attended = jax.vmap(lambda q, k, v, s: kernel(q, k, v, segment_ids=splash.SegmentIds(s, s)))(
        *by_head, segments
    )
    return attended.swapaxes(1, 2)
