"""Connectionist temporal classification loss of a padded batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from hubert_jax.vocabulary import BLANK


def frames_needed(labels: jax.Array, label_lengths: jax.Array) -> jax.Array:
    """Fewest frames that can spell each labelling.

    One a label, and the blank that has to stand between two equal neighbours. labels (B, L),
    label_lengths (B,) -> int32 (B,).
    """
    pair_ends = jnp.arange(1, labels.shape[1])
    repeats = (labels[:, 1:] == labels[:, :-1]) & (pair_ends < label_lengths[:, None])
    return label_lengths.astype(jnp.int32) + repeats.sum(axis=1, dtype=jnp.int32)


def ctc_loss(
    logits: jax.Array,
    logit_lengths: jax.Array,
    labels: jax.Array,
    label_lengths: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Negative log probability of each labelling, summed over all its alignments.

    Args:
      logits: float32 (B, T, V), not normalised; class 0 is the blank.
      logit_lengths: int (B,), frames of each row that count.
      labels: int (B, L), classes 1 to V - 1; anything beyond a row's length is ignored.
      label_lengths: int (B,).

    Returns:
      loss: float32 (B,), in nats per utterance; 0, with zero gradient, where infeasible.
      feasible: bool (B,), False where the row has fewer frames than its labels need.

    `optax.ctc_loss` gives about 1e5 rather than infinity for a labelling that no alignment can
    spell, which would swamp the batch's gradient: such rows are left out and reported instead.
    """
    feasible = frames_needed(labels, label_lengths) <= logit_lengths
    frame_is_padding = jnp.arange(logits.shape[1]) >= logit_lengths[:, None]
    label_is_padding = jnp.arange(labels.shape[1]) >= label_lengths[:, None]
    loss = optax.ctc_loss(
        logits.astype(jnp.float32),
        frame_is_padding.astype(jnp.float32),
        jnp.where(label_is_padding, BLANK, labels),
        label_is_padding.astype(jnp.float32),
        blank_id=BLANK,
    )
    return jnp.where(feasible, loss, 0.0), feasible
