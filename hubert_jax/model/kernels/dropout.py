"""Zeroing each value with a probability and scaling the others up."""

import math

import jax
import jax.numpy as jnp

_LEVELS = 2**16
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def threefry(key_words: jax.Array, counts: tuple[jax.Array, jax.Array]) -> tuple:
    """Threefry-2x32 with 20 rounds (Salmon et al. 2011), which is also what JAX's keys are for.

    `jax.random.bits` makes one word of the two that come out, spends a word on 16 bits, and on
    CPU runs the rounds as a loop over arrays in memory. Written out, they become one loop over
    values: a quarter of the time for BASE's attention.

    Args:
      key_words: uint32 (2,).
      counts: two uint32 arrays of one shape; no pair of counts may be used twice with a key.

    Returns:
      Two uint32 arrays of that shape, 64 random bits for each pair of counts.
    """
    schedule = (*key_words, key_words[0] ^ key_words[1] ^ jnp.uint32(0x1BD11BDA))
    left, right = counts[0] + schedule[0], counts[1] + schedule[1]
    for block in range(5):
        for distance in _ROTATIONS[block % 2]:
            left = left + right
            right = (right << jnp.uint32(distance)) | (right >> jnp.uint32(32 - distance))
            right = right ^ left
        left = left + schedule[(block + 1) % 3]
        right = right + schedule[(block + 2) % 3] + jnp.uint32(block + 1)
    return left, right


def plain(x: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    """Zeros each value of x (any shape) with probability `rate` in [0, 1), by `key`.

    Returns:
      The shape and dtype of `x`; kept values are scaled by 1 / (1 - rate).
    """
    kept = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(kept, x / (1.0 - rate), 0)


def on_cpu(x: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    """As `plain`, from 16 random bits for each value.

    16 bits keep the rate to 2^-17, and the scale is that of the rate as rounded, so the
    expectation is exact. Which values are dropped depends on the key and on their place alone, so
    each device draws for the values that it holds.

    Args:
      x: (..., n), floating point.
      rate: in [0, 1).
      key: a key of JAX's generators "threefry2x32", which is the default, or "rbg".

    Returns:
      The shape and dtype of `x`.
    """
    kept_levels = max(_LEVELS - round(rate * _LEVELS), 1)
    # One count for each quarter of a row's values: of 64 bits four values have 16 each.
    shape = (*x.shape[:-1], -(-x.shape[-1] // 4))
    *places, column = (jax.lax.broadcasted_iota(jnp.uint32, shape, i) for i in range(x.ndim))
    row = sum(
        (place * jnp.uint32(math.prod(shape[i + 1 : -1])) for i, place in enumerate(places)),
        jnp.zeros(shape, jnp.uint32),
    )
    # The four words of an "rbg" key, which TPUs are often run with, are two keys of Threefry.
    words = threefry(jax.random.key_data(key)[:2], (row, column))
    levels = (half for word in words for half in (word & jnp.uint32(_LEVELS - 1), word >> 16))
    kept = jnp.concatenate([level < kept_levels for level in levels], axis=-1)
    return jnp.where(kept[..., : x.shape[-1]], x * (_LEVELS / kept_levels), 0)
