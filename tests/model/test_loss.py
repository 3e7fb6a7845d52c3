"""The masked-prediction loss against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hubert_jax.model.loss import masked_prediction_loss

CLASSES = (11, 5)


@pytest.fixture
def batch():
    random = np.random.default_rng(0)
    return {
        "logits": [random.normal(size=(3, 20, k)).astype(np.float32) * 4 for k in CLASSES],
        "labels": [random.integers(k, size=(3, 20)) for k in CLASSES],
        "mask": random.random((3, 20)) < 0.6,
        "features": random.normal(size=(3, 20, 8)).astype(np.float32),
    }


def reference(batch, alpha, penalty):
    """Equations 1 and 2 with their minus sign, frame by frame."""
    sums, counts, correct = {True: 0.0, False: 0.0}, {True: 0, False: 0}, {True: 0, False: 0}
    units = {
        f"{name}_{i}": np.zeros(k)
        for name in ("targets", "predictions")
        for i, k in enumerate(CLASSES)
    }
    own = np.zeros(len(CLASSES))
    for row, frame in np.ndindex(batch["mask"].shape):
        masked = bool(batch["mask"][row, frame])
        counts[masked] += 1
        for i, (logits, labels) in enumerate(zip(batch["logits"], batch["labels"], strict=True)):
            values = logits[row, frame].astype(np.float64)
            probability = np.exp(values[labels[row, frame]]) / np.exp(values).sum()
            sums[masked] -= np.log(probability)
            correct[masked] += (values.argmax() == labels[row, frame]) / len(batch["logits"])
            own[i] += masked and values.argmax() == labels[row, frame]
            units[f"targets_{i}"][labels[row, frame]] += masked
            units[f"predictions_{i}"][values.argmax()] += masked
    count = alpha * counts[True] + (1 - alpha) * counts[False]
    square = np.mean(batch["features"].astype(np.float64) ** 2)
    loss = (alpha * sums[True] + (1 - alpha) * sums[False]) / count + penalty * square
    metrics = {
        "masked_loss": sums[True] / counts[True],
        "unmasked_loss": sums[False] / counts[False],
        "masked_accuracy": correct[True] / counts[True],
        "unmasked_accuracy": correct[False] / counts[False],
        "feature_penalty": square,
        "masked_frames": counts[True],
        **{f"masked_accuracy_{i}": right / counts[True] for i, right in enumerate(own)},
        **units,
    }
    return loss, metrics


@pytest.mark.parametrize("alpha", [1.0, 0.75, 0.5, 0.0])
@pytest.mark.parametrize("penalty", [0.0, 10.0])
def test_loss_and_metrics(batch, alpha, penalty):
    loss, metrics = jax.jit(masked_prediction_loss)(
        **batch, alpha=jnp.float32(alpha), feature_penalty=penalty
    )
    expected_loss, expected_metrics = reference(batch, alpha, penalty)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    assert set(metrics) == set(expected_metrics)
    for name, value in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_loss_and_gradient_are_continuous_where_alpha_ends(batch, end):
    @jax.jit
    def compute(logits, alpha):
        return masked_prediction_loss(
            **{**batch, "logits": logits}, alpha=alpha, feature_penalty=0.0
        )[0]

    at, near = (
        jax.value_and_grad(compute)(batch["logits"], jnp.float32(alpha))
        for alpha in (end, abs(end - 1e-4))
    )
    np.testing.assert_allclose(near[0], at[0], rtol=1e-3)
    for ours, theirs in zip(near[1], at[1], strict=True):
        assert np.linalg.norm(ours - theirs) < 1e-3 * np.linalg.norm(theirs)


def test_half_of_alpha_is_the_plain_mean_over_frames(batch):
    half = masked_prediction_loss(**batch, alpha=0.5, feature_penalty=0.0)[0]
    share = batch["mask"].mean()
    _, metrics = masked_prediction_loss(**batch, alpha=1.0, feature_penalty=0.0)
    expected = share * metrics["masked_loss"] + (1 - share) * metrics["unmasked_loss"]
    np.testing.assert_allclose(half, expected, rtol=1e-5)


def test_gradient_reaches_masked_frames_alone_by_default(batch):
    def loss(logits):
        return masked_prediction_loss(
            **{**batch, "logits": logits}, alpha=1.0, feature_penalty=10.0
        )[0]

    for gradient in jax.grad(loss)(batch["logits"]):
        moved = np.abs(np.asarray(gradient)).sum(axis=-1) > 0
        np.testing.assert_array_equal(moved, batch["mask"])


def test_batch_without_masked_frames_is_finite(batch):
    loss, metrics = masked_prediction_loss(
        **{**batch, "mask": np.zeros_like(batch["mask"])}, alpha=1.0, feature_penalty=0.0
    )
    assert loss == 0 and np.isfinite(metrics["masked_loss"])


def test_huge_logits_do_not_overflow(batch):
    logits = [values * 1e4 for values in batch["logits"]]
    loss, _ = masked_prediction_loss(**{**batch, "logits": logits}, alpha=1.0, feature_penalty=0.0)
    assert np.isfinite(loss)
