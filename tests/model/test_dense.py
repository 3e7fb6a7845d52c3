"""The dense product against NumPy in float64."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hubert_jax.model.kernels import dense

PRODUCT = (((1,), (0,)), ((), ()))


@pytest.mark.parametrize("rows", [(5,), (2, 3)])
def test_product_and_gradients(rows):
    random = np.random.default_rng(0)
    x, kernel = random.normal(size=(*rows, 7)), random.normal(size=(7, 4))
    gradient = random.normal(size=(*rows, 4))
    single = (jnp.asarray(a, jnp.float32) for a in (x, kernel))
    numbers = (((len(rows),), (0,)), ((), ()))
    y, backward = jax.vjp(lambda x, kernel: dense.on_cpu(x, kernel, numbers), *single)
    to_x, to_kernel = backward(jnp.asarray(gradient, jnp.float32))
    np.testing.assert_allclose(y, x @ kernel, rtol=0, atol=1e-5)
    np.testing.assert_allclose(to_x, gradient @ kernel.T, rtol=0, atol=1e-5)
    expected = x.reshape(-1, 7).T @ gradient.reshape(-1, 4)
    np.testing.assert_allclose(to_kernel, expected, rtol=0, atol=1e-5)


def test_dense_layer_uses_it_in_the_compute_dtype():
    x = jax.random.normal(jax.random.key(0), (2, 3, 7), jnp.bfloat16)
    plain = nn.Dense(4, dtype=jnp.bfloat16)
    layer = nn.Dense(4, dtype=jnp.bfloat16, dot_general=dense.on_cpu)
    params = plain.init(jax.random.key(1), x)

    def value_and_gradients(dense):
        def loss(params, x):
            return dense.apply(params, x).astype(jnp.float32).var()

        return jax.value_and_grad(loss, argnums=(0, 1))(params, x)

    (value, found), (expected_value, expected) = map(value_and_gradients, (layer, plain))
    assert value == expected_value
    # Another order of summation, rounded to 8 bits of mantissa.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=2**-7, atol=1e-4
        ),
        found,
        expected,
    )
    assert found[1].dtype == jnp.bfloat16


def test_what_it_is_not_made_for_is_left_to_xla():
    """A precision, an accumulator of another type, another contraction."""
    x, kernel = jnp.ones((3, 7)), jnp.ones((7, 4))

    def lowered(*arguments, **named):
        return jax.make_jaxpr(lambda x, k: dense.on_cpu(x, k, *arguments, **named))

    assert "custom_vjp" in str(lowered(PRODUCT)(x, kernel))
    precise = str(lowered(PRODUCT, jax.lax.Precision.HIGHEST)(x, kernel))
    assert "custom_vjp" not in precise and "HIGHEST" in precise
    wide = str(lowered(PRODUCT, None, preferred_element_type=jnp.float32)(x, kernel))
    assert "custom_vjp" not in wide
    other = (((1,), (1,)), ((), ()))
    assert "custom_vjp" not in str(lowered(other)(x, kernel.T))
