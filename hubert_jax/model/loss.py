"""The masked-prediction loss, in float32."""

import jax
import jax.numpy as jnp


def masked_prediction_loss(
    logits: list[jax.Array],
    labels: list[jax.Array],
    mask: jax.Array,
    alpha: jax.Array | float,
    features: jax.Array,
    feature_penalty: float,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """L = alpha L_m + (1 - alpha) L_u, summed over codebooks, plus the feature penalty.

    L_m and L_u are the summed cross-entropies of masked and unmasked frames (paper eqs 1-2, with
    the minus sign that the paper misses). The sum is normalised once, even with several
    codebooks, by alpha M + (1 - alpha) U, the masked and unmasked frames of the whole batch: the
    loss is a weighted mean over frames, continuous in alpha, and at alpha = 0.5 the plain mean. The
    paper names no normaliser. fairseq divides by M at alpha = 1, by U at alpha = 0, as here, but by
    M + U in between, so that its gradient jumps by M / (M + U) where alpha reaches 1.

    Args:
      logits: a list, one (B, T, K) float32 a codebook.
      labels: a list, one (B, T) int a codebook.
      mask: (B, T) bool, True where the input was masked.
      alpha: weight of the masked frames, in [0, 1]; may be traced.
      features: (B, T, C), the front-end's output.
      feature_penalty: weight of the mean square of `features` (10 as released; fairseq issue
        3315: it stabilises the GroupNorm model).

    Returns:
      The loss, and scalars: `masked_loss` and `unmasked_loss` (mean cross-entropy per frame,
      summed over codebooks), `masked_accuracy`, `unmasked_accuracy` (mean over codebooks),
      `feature_penalty` (the mean square, before its weight), `masked_frames`.
    """
    masked = mask.astype(jnp.float32)
    unmasked = 1.0 - masked
    masked_count, unmasked_count = masked.sum(), unmasked.sum()
    cross_entropy = jnp.zeros(mask.shape, jnp.float32)
    correct = jnp.zeros(mask.shape, jnp.float32)
    for codebook_logits, codebook_labels in zip(logits, labels, strict=True):
        log_probabilities = jax.nn.log_softmax(codebook_logits.astype(jnp.float32))
        chosen = jnp.take_along_axis(log_probabilities, codebook_labels[..., None], axis=-1)
        cross_entropy -= chosen[..., 0]
        correct += (jnp.argmax(codebook_logits, axis=-1) == codebook_labels) / len(logits)
    masked_sum = jnp.sum(cross_entropy * masked)
    unmasked_sum = jnp.sum(cross_entropy * unmasked)
    count = alpha * masked_count + (1 - alpha) * unmasked_count
    prediction = (alpha * masked_sum + (1 - alpha) * unmasked_sum) / jnp.maximum(count, 1)
    penalty = jnp.mean(jnp.square(features.astype(jnp.float32)))
    metrics = {
        "masked_loss": masked_sum / jnp.maximum(masked_count, 1),
        "unmasked_loss": unmasked_sum / jnp.maximum(unmasked_count, 1),
        "masked_accuracy": jnp.sum(correct * masked) / jnp.maximum(masked_count, 1),
        "unmasked_accuracy": jnp.sum(correct * unmasked) / jnp.maximum(unmasked_count, 1),
        "feature_penalty": penalty,
        "masked_frames": masked_count,
    }
    return prediction + feature_penalty * penalty, metrics
