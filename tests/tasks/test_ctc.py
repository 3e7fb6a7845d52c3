"""What the CTC objective gives the network to see."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from splits import TINY_BASE

from hubert_jax.errors import InputError
from hubert_jax.frames import num_samples
from hubert_jax.model.architecture import Architecture
from hubert_jax.tasks import ctc

ROWS, PADDED_FRAMES = 160, 256
ARCHITECTURE = Architecture(**{**TINY_BASE["architecture"], "dim": 512})


@pytest.fixture
def masks_of():
    """lengths (B,) -> the masks (B, T) of time and (B, C) of channels that the network is given."""

    class Network:
        architecture = ARCHITECTURE

        def apply(self, params, *inputs, rngs, method):
            if method == "classify":
                return jnp.zeros((*inputs[0].shape, 29))
            mask, channel_mask = inputs[2:4]
            given.append((np.asarray(mask), np.asarray(channel_mask)))
            return mask

    given = []
    config = ctc.CTCConfig(time_mask_probability=0.75, channel_mask_probability=0.5)
    loss = ctc.loss_function(Network(), config, freeze_steps=0, train_frontend=False)

    def masks_of(lengths):
        batch = {
            "waveform": jnp.zeros((len(lengths), num_samples(PADDED_FRAMES))),
            "num_samples": num_samples(jnp.asarray(lengths)),
            "labels": jnp.ones((len(lengths), 8), jnp.int32),
            "label_lengths": jnp.full((len(lengths),), 8),
        }
        loss({}, batch, jax.random.key(0), 0)
        return given.pop()

    return masks_of


@pytest.mark.parametrize("shortest", [128, 60, 20])
def test_the_shortest_row_does_not_unmask_the_others(masks_of, shortest):
    lengths = np.random.default_rng(0).integers(128, 257, ROWS)
    lengths[0] = 128
    whole, _ = masks_of(lengths)
    lengths[0] = shortest
    mask, channels = masks_of(lengths)
    np.testing.assert_array_equal(mask[1:], whole[1:])
    valid = np.arange(PADDED_FRAMES) < lengths[:, None]
    assert not mask[~valid].any()
    print(f"shortest row {shortest}: {mask[valid].mean():.3f} of the valid frames are masked")
    assert mask[valid].mean() == pytest.approx(0.54, abs=0.01)
    longest = lengths > 224
    assert mask[longest].sum() / lengths[longest].sum() == pytest.approx(0.54, abs=0.02)
    # Channels are masked in whole spans of 64.
    edges = np.diff(np.pad(channels.astype(int), ((0, 0), (1, 1))), axis=1)
    assert (np.nonzero(edges == -1)[1] - np.nonzero(edges == 1)[1] >= 64).all()


def test_the_loss_is_per_utterance_as_released():
    """fairseq's `sentence_avg`: one too short for its transcript counts, with a loss of 0."""
    generator = np.random.default_rng(0)
    logits = jnp.asarray(generator.normal(size=(4, 20, 6)), jnp.float32)
    labels = jnp.asarray(generator.integers(1, 6, (4, 12)), jnp.int32)
    label_lengths = np.array([3, 12, 9, 0])
    frames = np.array([20, 11, 18, 20])  # the second row is too short, the last has no transcript

    class Network:
        architecture = ARCHITECTURE

        def apply(self, params, *inputs, rngs, method):
            return logits if method == "classify" else None

    config = ctc.CTCConfig(time_mask_probability=0.0, channel_mask_probability=0.0)
    loss = ctc.loss_function(Network(), config, freeze_steps=0, train_frontend=False)
    batch = {
        "waveform": jnp.zeros((4, num_samples(20))),
        "num_samples": num_samples(jnp.asarray(frames)),
        "labels": labels,
        "label_lengths": jnp.asarray(label_lengths),
    }
    found, metrics = loss({}, batch, jax.random.key(0), 0)
    padding = [
        np.arange(n) >= lengths[:, None] for n, lengths in ((20, frames), (12, label_lengths))
    ]
    rows = np.asarray(optax.ctc_loss(logits, padding[0], labels, padding[1]))
    expected = float(rows[0] + rows[2])
    assert float(found) == pytest.approx(expected / 3, rel=1e-5)
    assert float(metrics["loss_per_character"]) == pytest.approx(expected / 12, rel=1e-5)
    assert float(metrics["infeasible_fraction"]) == pytest.approx(1 / 3)
    assert metrics["characters"] == 12


@pytest.mark.parametrize(
    "values",
    [
        dict(time_mask_probability=1.0),
        dict(time_mask_span=0),
        dict(channel_mask_span=-1),
        dict(final_dropout=1.0),
        dict(freeze_steps=-1),
        dict(head_learning_rate_scale=-1.0),
    ],
)
def test_impossible_values_are_refused(values):
    with pytest.raises(InputError, match=f"config.ctc.{next(iter(values))}="):
        ctc.CTCConfig(**values)
