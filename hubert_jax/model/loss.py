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
    counts: tuple[jax.Array, jax.Array] | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss (alpha S_m + (1 - alpha) S_u) / (alpha M + (1 - alpha) U) + penalty, and metrics.

    S_m and S_u sum the cross-entropies of the M masked and U unmasked frames of the batch over all
    codebooks (paper eqs 1-2, with the minus sign that the paper misses). The paper names no
    normaliser; fairseq's is this one at alpha = 0 and 1, but M + U in between, so that its gradient
    jumps. Per codebook, logits are (B, T, K) float32 and labels (B, T) int; `mask` is (B, T) bool.
    `feature_penalty` weights the mean square of `features` (B, T, C), the front-end's output (10 as
    released; fairseq issue 3315: it stabilises the GroupNorm model). Of the metrics, losses are
    means per frame, summed over codebooks, accuracies means over codebooks (of several, each has
    its own too), and the feature penalty is before its weight. `targets_i` and `predictions_i` (K,)
    count the masked frames by their unit and by the likeliest one.

    Rows that are a part of the batch come with its `counts`, M and U: then loss and metrics are
    their contributions, which add up to the batch's.
    """
    masked = mask.astype(jnp.float32)
    unmasked = 1.0 - masked
    masked_count, unmasked_count = counts or (masked.sum(), unmasked.sum())
    cross_entropy = jnp.zeros(mask.shape, jnp.float32)
    correct = jnp.zeros(mask.shape, jnp.float32)
    by_codebook = {}
    for i, (codebook_logits, codebook_labels) in enumerate(zip(logits, labels, strict=True)):
        log_probabilities = jax.nn.log_softmax(codebook_logits.astype(jnp.float32))
        chosen = jnp.take_along_axis(log_probabilities, codebook_labels[..., None], axis=-1)
        cross_entropy -= chosen[..., 0]
        predictions = jnp.argmax(codebook_logits, axis=-1)
        right = predictions == codebook_labels
        correct += right / len(logits)
        for name, units in (("targets", codebook_labels), ("predictions", predictions)):
            of_unit = units[..., None] == jnp.arange(codebook_logits.shape[-1])
            by_codebook[f"{name}_{i}"] = jnp.sum(of_unit & mask[..., None], axis=(0, 1))
        if len(logits) > 1:
            found = jnp.sum(right * masked) / jnp.maximum(masked_count, 1)
            by_codebook[f"masked_accuracy_{i}"] = found
    masked_sum = jnp.sum(cross_entropy * masked)
    unmasked_sum = jnp.sum(cross_entropy * unmasked)
    count = alpha * masked_count + (1 - alpha) * unmasked_count
    prediction = (alpha * masked_sum + (1 - alpha) * unmasked_sum) / jnp.maximum(count, 1)
    fraction = mask.size / (masked_count + unmasked_count)  # of the batch
    penalty = jnp.mean(jnp.square(features.astype(jnp.float32))) * fraction
    metrics = {
        "masked_loss": masked_sum / jnp.maximum(masked_count, 1),
        "unmasked_loss": unmasked_sum / jnp.maximum(unmasked_count, 1),
        "masked_accuracy": jnp.sum(correct * masked) / jnp.maximum(masked_count, 1),
        "unmasked_accuracy": jnp.sum(correct * unmasked) / jnp.maximum(unmasked_count, 1),
        "feature_penalty": penalty,
        "masked_frames": masked.sum(),
        **by_codebook,
    }
    return prediction + feature_penalty * penalty, metrics
