"""Dropout: its random numbers, its rate, and that values are dropped independently."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry_2x32

from hubert_jax.model.kernels.dropout import on_cpu, plain, threefry


def test_threefry_is_that_of_jax():
    key = jax.random.key_data(jax.random.key(7))
    counts = jnp.arange(2_000, dtype=jnp.uint32) * jnp.uint32(2_654_435_761)
    expected = threefry_2x32(key, counts)
    found = jnp.concatenate(threefry(key, (counts[:1000], counts[1000:])))
    np.testing.assert_array_equal(found, expected)


both = pytest.mark.parametrize("dropout", [plain, on_cpu], ids=["plain", "on_cpu"])


@both
@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_keeps_the_expectation_and_the_rate(rate, dropout):
    ones = jnp.ones((1000, 1000))
    kept = np.asarray(dropout(ones, rate, jax.random.key(3)))
    assert set(np.unique(kept)) == {np.float32(0), np.float32(kept.max())}
    assert kept.max() == pytest.approx(1 / (1 - rate), rel=1e-4)
    # Five standard deviations of a million draws.
    tolerance = 5 * np.sqrt(rate * (1 - rate) / ones.size)
    assert (kept == 0).mean() == pytest.approx(rate, abs=tolerance)
    assert dropout(ones.astype(jnp.bfloat16), rate, jax.random.key(3)).dtype == jnp.bfloat16


@pytest.mark.parametrize("shape", [(40, 3, 50, 499), (2000, 768), (100_000, 3), (300_000,)])
def test_values_are_dropped_independently(shape):
    """Also those that share a draw of 64 bits, or a key with the next step's."""
    rate = 0.25
    ones = jnp.ones(shape)
    dropped = np.asarray(on_cpu(ones, rate, jax.random.key(0))) == 0
    deviation = np.sqrt(rate**2 * (1 - rate**2))
    quarter = -(-shape[-1] // 4)
    neighbours = {
        (axis, distance)
        for axis, size in enumerate(shape)
        for distance in (1, quarter if axis == len(shape) - 1 else 2)
        if distance < size
    }
    pairs = [
        (np.moveaxis(dropped, axis, 0)[distance:], np.moveaxis(dropped, axis, 0)[:-distance])
        for axis, distance in neighbours
    ]
    pairs.append((dropped, np.asarray(on_cpu(ones, rate, jax.random.key(1))) == 0))
    for first, second in pairs:
        together = (first & second).mean()
        # Overlapping pairs vary a little more than separate ones.
        assert together == pytest.approx(rate**2, abs=7 * deviation / np.sqrt(first.size))
    assert dropped.mean() == pytest.approx(rate, abs=5 * np.sqrt(rate * (1 - rate) / dropped.size))


def test_keys_of_the_other_generator_do():
    x = jnp.ones((8, 499))
    key = jax.random.key(3, impl="rbg")
    np.testing.assert_array_equal(on_cpu(x, 0.3, key), on_cpu(x, 0.3, jax.random.key(3)))
    first, second = (on_cpu(x, 0.3, part) for part in jax.random.split(key))
    assert (np.asarray(first) != np.asarray(second)).mean() > 0.3


@both
def test_gradient_passes_where_values_were_kept(dropout):
    x = jax.random.normal(jax.random.key(2), (5, 7))
    y, backward = jax.vjp(lambda x: dropout(x, 0.4, jax.random.key(0)), x)
    (gradient,) = backward(jnp.ones_like(y))
    np.testing.assert_array_equal(np.asarray(gradient) == 0, np.asarray(y) == 0)
    np.testing.assert_allclose(gradient * x, y, rtol=1e-6)
