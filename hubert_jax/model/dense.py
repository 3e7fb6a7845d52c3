"""The matrix product of dense layers."""

from typing import Any

import jax
import jax.numpy as jnp


@jax.custom_vjp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x (..., inputs) times kernel (inputs, outputs): (..., outputs), of the same dtype.

    The derivative is written out: automatic differentiation takes the kernel's gradient as the
    transpose of a product. XLA's CPU back-end then copies a factor into another layout and
    multiplies at half the speed, which costs BASE a twentieth of its step.
    """
    return jnp.matmul(x, kernel)


def _product_forward(x, kernel):
    return product(x, kernel), (x, kernel)


def _product_backward(residuals, gradient):
    x, kernel = residuals
    to_x = jax.lax.dot_general(gradient, kernel, (((gradient.ndim - 1,), (1,)), ((), ())))
    # Rows as one axis: contracting two axes makes XLA copy both factors.
    rows, gradient_rows = (a.reshape(-1, a.shape[-1]) for a in (x, gradient))
    to_kernel = jax.lax.dot_general(rows, gradient_rows, (((0,), (0,)), ((), ())))
    return to_x, to_kernel


product.defvjp(_product_forward, _product_backward)


def dot_general(
    x: jax.Array, kernel: jax.Array, dimension_numbers: Any, precision: Any = None
) -> jax.Array:
    """`product` as `nn.Dense(dot_general=...)` calls it."""
    del dimension_numbers, precision  # Dense's are those of a product, at default precision
    return product(x, kernel)
