"""Against torchaudio's HuBERT: logits, loss as its recipe computes it, and every gradient."""

import dataclasses

import jax
import numpy as np
import pytest
import torch
import torchaudio
from oracles import (
    BASE_LIKE,
    LARGE_LIKE,
    Described,
    gradient_differences,
    largest_difference,
    relative_difference,
)
from torchaudio.models.wav2vec2 import components

from hubert_jax import files
from hubert_jax.convert import torchaudio as torchaudio_format
from hubert_jax.convert.state_dicts import from_state_dict, to_state_dict
from hubert_jax.data.waveform import normalize, to_float
from hubert_jax.frames import num_samples
from hubert_jax.model.architecture import NO_REGULARIZATION, Execution
from hubert_jax.model.hubert import HubertForPretraining
from hubert_jax.model.kernels import choice
from hubert_jax.model.masking import span_mask
from hubert_jax.tasks import pretraining

pytestmark = pytest.mark.parity

TOLERANCE = 1e-4
FRAMES = 54


BASE = Described()


@pytest.fixture(params=[BASE_LIKE, LARGE_LIKE, BASE], ids=["base", "large", "base-full-size"])
def config(request):
    """One codebook, as torchaudio has, and nothing random."""
    scale = request.param.regularization.frontend_gradient_scale
    classes = 504 if request.param is BASE else 17
    return Described(
        request.param.architecture,
        dataclasses.replace(request.param.head, codebook_sizes=(classes,)),
        dataclasses.replace(NO_REGULARIZATION, frontend_gradient_scale=scale),
    )


@pytest.fixture
def theirs(config, make_params, tmp_path):
    """A network that torchaudio made at random, without any parameter left at its neutral value."""
    torch.manual_seed(4)
    # As our files tell torchaudio to build it.
    torchaudio_format.write(tmp_path / "model.pt", config.network(make_params(config)))
    described = files.read_json(tmp_path / "model.pt.json", "architecture")
    model = getattr(torchaudio.models, described["model"])(**described["arguments"])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.train()


@pytest.fixture
def batch(config, speech):
    """Crops of equal length, labels and one mask."""
    random = np.random.default_rng(0)
    waveforms = [to_float(samples) for samples in speech]
    if config.architecture.normalize_waveform:
        waveforms = [normalize(waveform) for waveform in waveforms]
    waveform = np.stack([w[: num_samples(FRAMES)] for w in waveforms])
    labels = random.integers(
        config.head.codebook_sizes[0], size=(len(waveform), FRAMES), dtype=np.int32
    )
    mask = np.array(span_mask(jax.random.key(5), len(waveform), FRAMES, 0.8, 10, 1))
    assert 0 < mask.sum() < mask.size
    return waveform, labels, mask


def all_logits(positive_first, labels):
    """(frames, K) from torchaudio's (frames, 1 + K): there the label's logit comes first, and is
    minus infinity in its own place."""
    logits = positive_first.detach().numpy()
    places = np.arange(logits.shape[1] - 1) == labels[:, None]
    assert (np.isneginf(logits[:, 1:]) == places).all()
    return np.where(places, logits[:, :1], logits[:, 1:])


def test_logits_loss_and_every_gradient(config, theirs, batch, monkeypatch, figure):
    """The recipe's loss is the sum of masked frames' cross-entropies plus 10 N times the feature
    penalty, divided by N, the masked frames of all devices: the mean cross-entropy plus 10 times
    the penalty, as here. (Another version in its history lacks the factor N.)"""
    waveform, labels, mask = batch
    # The generator's own code still puts the mask embedding in place.
    monkeypatch.setattr(
        components, "_compute_mask_indices", lambda *args, **more: torch.from_numpy(mask)
    )
    masked_logits, other_logits, penalty = theirs(
        torch.from_numpy(waveform), torch.from_numpy(labels)
    )
    count = len(masked_logits)
    summed = torch.nn.functional.cross_entropy(
        masked_logits, torch.zeros(count, dtype=torch.long), reduction="sum"
    )
    their_loss = (summed + 10 * count * penalty) / count
    their_loss.backward()

    def imported(tensors):
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        return from_state_dict(
            arrays, config.architecture, config.head, "torchaudio", "torchaudio's network"
        )

    params = imported(theirs.state_dict())
    monkeypatch.setattr(pretraining, "span_mask", lambda *args: mask)
    kernels = choice.choose(Execution(), config.architecture)
    network = HubertForPretraining(config.architecture, config.head, kernels, config.regularization)
    loss = pretraining.loss_function(network, pretraining.LossConfig())

    @jax.jit
    def compute(params):
        given = {"waveform": waveform, "labels_0": labels}
        value, gradients = jax.value_and_grad(loss, has_aux=True)(
            params, given, jax.random.key(0), 0
        )
        outputs = network.apply({"params": params}, waveform, mask)
        return *value, gradients, outputs["logits"][0]

    our_loss, metrics, gradients, logits = compute(params)
    logits = np.asarray(logits)
    for their_logits, chosen in ((masked_logits, mask), (other_logits, ~mask)):
        expected = all_logits(their_logits, labels[chosen])
        difference = largest_difference(logits[chosen], expected) / np.abs(expected).max()
        figure("torchaudio", config, "logits, relative to the largest", difference)
        assert difference < TOLERANCE

    assert metrics["masked_frames"] == count
    difference = relative_difference(our_loss, their_loss.item())
    figure("torchaudio", config, "loss, relative", difference)
    assert difference < TOLERANCE
    assert metrics["feature_penalty"] == pytest.approx(penalty.item(), rel=TOLERANCE)
    correct = (masked_logits.argmax(-1) == 0).float().mean()
    assert metrics["masked_accuracy"] == pytest.approx(float(correct), abs=1e-6)

    their_gradients = imported({name: p.grad for name, p in theirs.named_parameters()})
    differences = gradient_differences(
        to_state_dict(gradients, config.architecture, config.head, "torchaudio"),
        to_state_dict(their_gradients, config.architecture, config.head, "torchaudio"),
    )
    worst = max(differences, key=differences.get)
    what = f"gradients, relative, worst of {len(differences)} tensors ({worst})"
    figure("torchaudio", config, what, differences[worst])
    assert differences[worst] < TOLERANCE
