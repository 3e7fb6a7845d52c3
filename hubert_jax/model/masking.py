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
    """(rows, positions) bool, True where masked, as released (fairseq's `compute_mask_indices`).

    A row of length T (`lengths` (rows,), None: all `positions`) gets floor(probability * T / span
    + u) spans, u ~ U(0, 1), at least `least_spans`; their starts are drawn without replacement from
    [0, T - span). Then each `group_rows` consecutive rows, in released code the batch of a device,
    drop masked positions at random down to the smallest count among them; a row too short for a
    span is not masked and does not enter it. Rows of different lengths need groups of 1, which drop
    nothing. At T = 768, probability 0.8 and span 10, groups of one row have 56.6 % of their frames
    masked, of three 54.5 %, of five 53.7 %.

    A group's mask is a function of the key and the group's number, whatever the number of rows or
    devices. Raises InputError where rows are not a multiple of `group_rows`.
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

    draw = functools.partial(
        _group_mask,
        positions=positions,
        probability=probability,
        span=span,
        least_spans=least_spans,
    )
    return jax.vmap(draw)(keys, lengths.reshape(groups, group_rows)).reshape(rows, positions)


def _group_mask(
    key: jax.Array,
    lengths: jax.Array,
    positions: int,
    probability: float,
    span: int,
    least_spans: int,
) -> jax.Array:
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
    return jnp.argsort(jnp.argsort(-scores, axis=1), axis=1)
