"""What our kernels of attention with dropout do alike: around them, which weights stay, products.

Both draw the same: a weight stays by a hash of the key, the row, the head and the two frames, so
that devices, blocks and padding change nothing.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from hubert_jax.model.kernels.attention import device_axes
from hubert_jax.model.kernels.dropout import threefry

MASKED = -1e9  # a score; finite, so that a row without a valid key gives numbers rather than NaN
_STRIDE = 2**16  # of queries among the places that are hashed, whatever the padding
_LEVELS = 2**24
_MIXERS = (0x7FEB352D, 0x846CA68B)  # Wellons' lowbias32


def attend(
    attended: Callable[..., jax.Array],
    block: int,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    lengths: jax.Array | None,
    rate: float,
    random: jax.Array | None,
    *,
    causal: bool,
    sharding: NamedSharding | None,
    interpret: bool,
) -> jax.Array:
    """Runs `attended`, a kernel, on scaled queries and frames in whole blocks.

    It takes the rate, `causal`, `interpret`, three arrays (B, T, heads, head_dim), lengths and
    words. With `sharding` each device runs its own rows and heads.
    """
    rows, frames, heads, width = query.shape
    if lengths is None:
        lengths = jnp.full((rows,), frames, jnp.int32)
    padding = [(0, 0), (0, -frames % block), (0, 0), (0, 0)]
    padded = [jnp.pad(x, padding) for x in (query * width**-0.5, key, value)]
    run = functools.partial(attended, rate if random is not None else 0.0, causal, interpret)
    if sharding is not None:
        over_rows, over_heads = device_axes(sharding, heads)
        divided = P(over_rows, None, over_heads)
        run = jax.shard_map(
            run,
            mesh=sharding.mesh,
            in_specs=(divided, divided, divided, P(over_rows), P(over_rows, over_heads)),
            out_specs=divided,
            check_vma=False,
        )
    found = run(*padded, lengths, _words(random, rows, heads))
    return found[:, :frames].astype(value.dtype)


def _words(random: jax.Array | None, rows: int, heads: int) -> jax.Array:
    """Two words of each row and head, drawn from a key: int32 (rows, heads, 2); zeros without."""
    if random is None:
        return jnp.zeros((rows, heads, 2), jnp.int32)
    of_row, of_head = (jax.lax.broadcasted_iota(jnp.uint32, (rows, heads), i) for i in (0, 1))
    drawn = threefry(jax.random.key_data(random)[:2], (of_row, of_head))
    return jax.lax.bitcast_convert_type(jnp.stack(drawn, axis=-1), jnp.int32)


def stays(
    whence: jax.Array, to: jax.Array, first: jax.Array, second: jax.Array, rate: float
) -> jax.Array:
    """Which weights are not dropped, from frames int32 and a row and head's words: bool."""
    # Multiplications wrap; shifts are logical.
    mixed = (whence * _STRIDE + to) ^ first
    mixed ^= jax.lax.shift_right_logical(mixed, 16)
    mixed *= _signed(_MIXERS[0])
    mixed ^= jax.lax.shift_right_logical(mixed, 15)
    mixed += second  # or places of two heads could be a permutation of each other
    mixed *= _signed(_MIXERS[1])
    mixed ^= jax.lax.shift_right_logical(mixed, 16)
    return jax.lax.shift_right_logical(mixed, 8) < _kept_levels(rate)


def dropped(found: jax.Array, kept: jax.Array | None, rate: float) -> jax.Array:
    """Weights, or their cotangents, of which those `kept` stay, larger; None: all."""
    if kept is None:
        return found
    return jnp.where(kept, found * (_LEVELS / _kept_levels(rate)), 0.0)


def product(a: jax.Array, b: jax.Array, over_a: int, over_b: int) -> jax.Array:
    """The product of two matrices over these axes, in float32."""
    # Products of halves are exact; float32 must not be rounded to halves.
    exactly = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(
        a,
        b,
        (((over_a,), (over_b,)), ((), ())),
        precision=exactly,
        preferred_element_type=jnp.float32,
    )


def _kept_levels(rate: float) -> int:
    """Of 2^24 levels those at which a weight stays."""
    return max(_LEVELS - round(rate * _LEVELS), 1)


def _signed(word: int) -> jax.Array:
    return jnp.int32(word - 2**32 if word >= 2**31 else word)
