"""Span masks, drawn on the device from a key, with the released semantics."""

import functools

import jax
import jax.numpy as jnp

from hubert_jax.errors import InputError


def span_mask(
    key: jax.Array,
    rows: int,
    positions: int,
    probability: float,
    span: int,
    group_rows: int,
    lengths: jax.Array | None = None,
    least_spans: int = 2,
) -> jax.Array:
    """Draws spans for every row and trims each group of rows to its smallest count.

    A row of length T gets n = floor(probability * T / span + u) spans, u ~ U(0, 1), at least
    `least_spans`; their starts are drawn without replacement from [0, T - span); spans may
    overlap. Then masked positions are dropped at random until all rows of a group of `group_rows`
    consecutive rows have equally many. At T = 768, probability 0.8 and span 10 this masks 56.6 % of
    the frames in groups of one row (nothing is dropped), 54.5 % of three and 53.7 % of five.

    A group's mask is a function of the key and the group's number, whatever the number of rows or
    devices. A row too short for a single span is not masked and does not enter the smallest count.

    Args:
      key: PRNG key.
      rows: B, a multiple of `group_rows`.
      positions: T, the padded length (frames, or channels for a channel mask).
      probability: expected fraction of masked positions before overlaps.
      span: positions of one span.
      group_rows: rows trimmed together, in released code the batch of one device; 1: no trimming,
        as rows of different lengths need it.
      lengths: (B,) valid positions of each row; None: all T.
      least_spans: spans that every row gets at least.

    Returns:
      (B, T) bool, True where masked.

    Raises:
      InputError: rows are not a multiple of `group_rows`.

    Source: Hsu et al. 2021, section IV; released `compute_mask_indices`.
    """
    if rows % group_rows:
        raise InputError(
            f"span mask of {rows} rows in groups of {group_rows}: expected a multiple; change the "
            "batch or config.loss.mask_group_rows"
        )
    groups = rows // group_rows
    if lengths is None:
        lengths = jnp.full((rows,), positions)
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(groups))

    def draw(group_key: jax.Array, group_lengths: jax.Array) -> jax.Array:
        return _group_mask(group_key, group_lengths, positions, probability, span, least_spans)

    return jax.vmap(draw)(keys, lengths.reshape(groups, group_rows)).reshape(rows, positions)


def _group_mask(
    key: jax.Array,
    lengths: jax.Array,
    positions: int,
    probability: float,
    span: int,
    least_spans: int,
) -> jax.Array:
    """The mask of the rows of one group, (rows, positions) bool."""
    rows = len(lengths)
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
    if rows == 1:
        return masked

    counts = masked.sum(axis=1)
    fewest = jnp.min(jnp.where(counts > 0, counts, positions))
    scores = jnp.where(masked, jax.random.uniform(trim_key, (rows, positions)), -1.0)
    return masked & (_rank_descending(scores) < fewest)


def _rank_descending(scores: jax.Array) -> jax.Array:
    """Rank of each entry within its row, 0 for the largest."""
    order = jnp.argsort(-scores, axis=1)
    return jnp.argsort(order, axis=1)
