"""CTC loss against PyTorch and against the sum over all alignments."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hubert_jax.model.ctc import ctc_loss
from hubert_jax.vocabulary import LIBRISPEECH

JITTED_LOSS = jax.jit(ctc_loss)


def _batch(seed=0, rows=4, frames=30, classes=29, longest=10):
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((rows, frames, classes)).astype(np.float32)
    labels = rng.integers(1, classes, (rows, longest)).astype(np.int32)
    labels[1, 3] = labels[1, 4]
    return logits, np.array([30, 22, 25, 30]), labels, np.array([10, 7, 1, 0])


def test_loss_and_gradient_agree_with_torch():
    torch = pytest.importorskip("torch")
    logits, logit_lengths, labels, label_lengths = _batch()

    # In float64: torch's own float32 gradient is off by 2e-5.
    theirs_in = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    theirs = torch.nn.functional.ctc_loss(
        theirs_in.log_softmax(-1).transpose(0, 1),
        torch.tensor(labels, dtype=torch.long),
        torch.tensor(logit_lengths),
        torch.tensor(label_lengths),
        reduction="none",
    )
    theirs.sum().backward()

    def total(x):
        loss, feasible = ctc_loss(x, logit_lengths, labels, label_lengths)
        return loss.sum(), (loss, feasible)

    (_, (ours, feasible)), gradient = jax.value_and_grad(total, has_aux=True)(jnp.asarray(logits))
    assert feasible.all()
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-4)
    np.testing.assert_allclose(gradient, theirs_in.grad.numpy(), atol=1e-5)
    assert not np.any(np.asarray(gradient)[1, 22:])


@pytest.mark.parametrize("labels", [[], [1], [1, 2], [1, 1], [2, 1, 2], [1, 1, 1]])
@pytest.mark.parametrize("frames", [1, 3, 4])
def test_loss_is_the_sum_over_all_alignments(labels, frames):
    logits = np.random.default_rng(1).standard_normal((1, 4, 3)).astype(np.float32)
    log_probs = np.asarray(jax.nn.log_softmax(logits[0].astype(np.float64)))
    probability = sum(
        np.exp(sum(log_probs[t, c] for t, c in enumerate(path)))
        for path in itertools.product(range(3), repeat=frames)
        if LIBRISPEECH.collapse(path).tolist() == labels
    )
    padded = np.array([labels + [0] * (4 - len(labels))])
    loss, feasible = JITTED_LOSS(logits, np.array([frames]), padded, np.array([len(labels)]))
    assert bool(feasible[0]) == (probability > 0)
    expected = -np.log(probability) if probability > 0 else 0.0
    np.testing.assert_allclose(loss[0], expected, rtol=1e-5, atol=1e-6)


def test_forced_blanks_count_inside_the_length_only():
    logits = np.zeros((3, 8, 4), np.float32)
    labels = np.array([[1, 1, 2, 2, 2], [1, 1, 2, 2, 2], [3, 3, 3, 3, 3]])
    lengths, needed = np.array([5, 3, 1]), np.array([8, 4, 1])
    assert JITTED_LOSS(logits, needed, labels, lengths)[1].all()
    assert not JITTED_LOSS(logits, needed - 1, labels, lengths)[1].any()


def test_infeasible_row_leaves_the_rest_of_the_batch_alone():
    logits, logit_lengths, labels, label_lengths = _batch()
    alone, _ = ctc_loss(logits[:1], logit_lengths[:1], labels[:1], label_lengths[:1])
    short = logit_lengths.copy()
    short[1] = 7  # seven labels with one repeat need eight frames

    def total(x):
        loss, feasible = ctc_loss(x, short, labels, label_lengths)
        return loss.sum(), (loss, feasible)

    (_, (loss, feasible)), gradient = jax.value_and_grad(total, has_aux=True)(jnp.asarray(logits))
    np.testing.assert_array_equal(feasible, [True, False, True, True])
    assert loss[1] == 0 and not np.any(np.asarray(gradient)[1])
    np.testing.assert_allclose(loss[0], alone[0], rtol=1e-6)
    assert np.any(np.asarray(gradient)[0])
