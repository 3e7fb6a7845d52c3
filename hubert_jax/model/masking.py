"""Span masks, drawn on the device from a key, with the released semantics."""

import jax
import jax.numpy as jnp


def span_mask(
    key: jax.Array,
    rows: int,
    positions: int,
    probability: float,
    span: int,
    lengths: jax.Array | None = None,
    least_spans: int = 2,
) -> jax.Array:
    """Draws spans for every row and trims all rows to the smallest row's count.

    A row of length T gets n = floor(probability * T / span + u) spans, u ~ U(0, 1), at least
    `least_spans`; their starts are drawn without replacement from [0, T - span); spans may
    overlap (about 57 % of the frames end up masked at T = 781, probability 0.8, span 10). Then
    masked positions are dropped at random from every row until all rows have the same count:
    equal weight for every utterance, and static shapes for whoever gathers the masked frames.
    A row too short for a single span is masked not at all, and does not enter the smallest count.

    Args:
      key: PRNG key.
      rows: B.
      positions: T, the padded length (frames, or channels for a channel mask).
      probability: expected share of masked positions before overlaps.
      span: positions of one span.
      lengths: (B,) valid positions of each row; None: all T.
      least_spans: spans that every row gets at least.

    Returns:
      (B, T) bool, True where masked.

    Source: Hsu et al. 2021, section IV; released `compute_mask_indices`.
    """
    if lengths is None:
        lengths = jnp.full((rows,), positions)
    count_key, start_key, trim_key = jax.random.split(key, 3)
    jitter = jax.random.uniform(count_key, (rows,))
    num_spans = jnp.floor(probability * lengths / span + jitter).astype(jnp.int32)
    num_spans = jnp.maximum(num_spans, least_spans)
    # Drawing without replacement: the starts with the n largest of independent scores.
    candidates = jnp.arange(positions) < (lengths - span)[:, None]
    scores = jnp.where(candidates, jax.random.uniform(start_key, (rows, positions)), -1.0)
    starts = (_rank_descending(scores) < num_spans[:, None]) & candidates
    begun = jnp.cumsum(starts, axis=1)
    before = jnp.pad(begun, ((0, 0), (span, 0)))[:, :positions]
    masked = (begun - before) > 0

    counts = masked.sum(axis=1)
    fewest = jnp.min(jnp.where(counts > 0, counts, positions))
    scores = jnp.where(masked, jax.random.uniform(trim_key, (rows, positions)), -1.0)
    return masked & (_rank_descending(scores) < fewest)


def _rank_descending(scores: jax.Array) -> jax.Array:
    """Rank of each entry within its row, 0 for the largest."""
    order = jnp.argsort(-scores, axis=1)
    return jnp.argsort(order, axis=1)
