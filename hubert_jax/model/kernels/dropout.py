"""Zeroing each value with a probability and scaling the others up."""

import math

import jax
import jax.numpy as jnp

_LEVELS = 2**16
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def threefry(key_words: jax.Array, counts: tuple[jax.Array, jax.Array]) -> tuple:
    """64 random bits for each pair of `counts`: Threefry-2x32, 20 rounds (Salmon et al. 2011).

    All are uint32: `key_words` (2,), two `counts` of one shape, and two arrays of that shape that
    come out. `jax.random.bits` spends a word on 16 bits and on CPU loops over arrays in memory;
    written out, the rounds are one loop over values: a quarter of the time for BASE's attention.
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
    """x (any shape), values zeroed with probability `rate` in [0, 1), the others over 1 - rate."""
    kept = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(kept, x / (1.0 - rate), 0)


def on_cpu(x: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    """As `plain`, from 16 random bits a value; the key is of "threefry2x32" or "rbg".

    The scale is that of the rate as rounded, to 2^-17, so the expectation is exact. What is dropped
    depends on the key and its place alone: each device draws for the values that it holds.
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
