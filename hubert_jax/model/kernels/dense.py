"""The matrix product of dense layers, as `nn.Dense(dot_general=...)` calls it."""

from typing import Any

import jax
import jax.numpy as jnp

plain = jax.lax.dot_general


def on_cpu(
    x: jax.Array,
    kernel: jax.Array,
    dimension_numbers: Any,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> jax.Array:
    """`plain` for x (..., inputs) and kernel (inputs, outputs), with its derivative written out."""
    product = (((x.ndim - 1,), (0,)), ((), ()))
    if dimension_numbers != product or precision is not None or preferred_element_type is not None:
        return plain(x, kernel, dimension_numbers, precision, preferred_element_type)
    return _product(x, kernel)


@jax.custom_vjp
def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    # Automatic differentiation takes the kernel's gradient as the transpose of a product: XLA's
    # CPU back-end copies a factor into another layout, which costs BASE a twentieth of its step.
    return jnp.matmul(x, kernel)


def _product_backward(residuals: tuple, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    to_x = jax.lax.dot_general(gradient, kernel, (((gradient.ndim - 1,), (1,)), ((), ())))
    # Rows as one axis: contracting two axes makes XLA copy both factors.
    rows, gradient_rows = (a.reshape(-1, a.shape[-1]) for a in (x, gradient))
    to_kernel = jax.lax.dot_general(rows, gradient_rows, (((0,), (0,)), ((), ())))
    return to_x, to_kernel


_product.defvjp(lambda x, kernel: (_product(x, kernel), (x, kernel)), _product_backward)
