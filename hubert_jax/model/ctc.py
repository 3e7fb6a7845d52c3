"""Connectionist temporal classification loss of a padded batch."""

import jax
import jax.numpy as jnp
import optax

from hubert_jax.vocabulary import BLANK


def ctc_loss(
    logits: jax.Array, logit_lengths: jax.Array, labels: jax.Array, label_lengths: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Negative log probability (B,) of each labelling, in nats, and whether it is feasible (B,).

    logits (B, T, V) are not normalised, class 0 is the blank; labels are (B, L) int; what lies
    beyond a row's lengths (B,) is ignored. A row with fewer frames than its labels need is not
    feasible: its loss and gradient are 0, where `optax.ctc_loss` gives about 1e5, which would swamp
    the batch's gradient.
    """
    feasible = is_feasible(logit_lengths, labels, label_lengths)
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


def is_feasible(logit_lengths: jax.Array, labels: jax.Array, label_lengths: jax.Array) -> jax.Array:
    """(B,) bool: whether a row has as many frames as its labels need; arguments of `ctc_loss`."""
    repeats = labels[:, 1:] == labels[:, :-1]
    repeats &= jnp.arange(1, labels.shape[1]) < label_lengths[:, None]
    # A frame a label, and one for the blank that has to stand between two equal neighbours.
    return label_lengths + repeats.sum(axis=1, dtype=jnp.int32) <= logit_lengths
