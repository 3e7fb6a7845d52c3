"""Multi-head self-attention behind one function."""

import jax
import jax.numpy as jnp

_MASKED = -1e9  # finite, so that a row without a valid key gives numbers rather than NaN


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    valid: jax.Array | None = None,
    dropout: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Scaled dot-product attention; softmax in float32.

    Args:
      query, key, value: (B, T, heads, head_dim).
      valid: (B, T) bool, the keys that may be attended to; None: all of them.
      dropout: probability with which an attention weight is dropped.
      dropout_key: its key; None: no dropout.

    Returns:
      (B, T, heads, head_dim) in the dtype of `value`.
    """
    scale = query.shape[-1] ** -0.5
    logits = jnp.einsum("bqhd,bkhd->bhqk", query * scale, key, preferred_element_type=jnp.float32)
    if valid is not None:
        logits = jnp.where(valid[:, None, None, :], logits, _MASKED)
    weights = jax.nn.softmax(logits, axis=-1)
    if dropout and dropout_key is not None:
        kept = jax.random.bernoulli(dropout_key, 1.0 - dropout, weights.shape)
        weights = jnp.where(kept, weights / (1.0 - dropout), 0.0)
    return jnp.einsum("bhqk,bkhd->bqhd", weights.astype(value.dtype), value)
