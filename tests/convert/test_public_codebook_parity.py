"""From a network in fairseq's format and its codebook to labels, and on with training."""

import dataclasses
import json

import joblib
import numpy as np
import pytest
import torch
import transformers
from oracles import Described
from sklearn.cluster import MiniBatchKMeans
from splits import TINY_BASE

from hubert_jax import check, label, train
from hubert_jax import config as config_lib
from hubert_jax.convert import formats
from hubert_jax.convert.network import Description, Network
from hubert_jax.data import records
from hubert_jax.errors import InputError
from hubert_jax.model.architecture import NO_REGULARIZATION, Architecture, Head
from hubert_jax.networks import trained, warm_start
from hubert_jax.tasks import pretraining
from hubert_jax.training import sharding
from hubert_jax.unit_classes import Units
from hubert_jax.units.features import hidden_states

pytestmark = pytest.mark.usefixtures("two_devices")

TOLERANCE = 1e-4
UNITS, SPECIALS, LAYER = 500, 4, 2
ARCHITECTURE = Architecture(**TINY_BASE["architecture"])
HEAD = Head((UNITS + SPECIALS,), projection_dim=8)


@pytest.fixture(scope="module")
def public(make_params, tmp_path_factory):
    """A network as fairseq releases them: 504 classes, which name no codebook."""
    params = make_params(Described(ARCHITECTURE, HEAD))
    units = Units.numbered(HEAD.codebook_sizes, (UNITS,))
    where = f"fairseq:{tmp_path_factory.mktemp('public')}/hubert.pt"
    formats.write(where, Network(params, ARCHITECTURE, HEAD, units=units))
    return where


@pytest.fixture(scope="module")
def features(public, speech_split):
    """{utterance id: float32 (T, dim)} of its layer."""
    found = hidden_states(trained.load(public), speech_split, (LAYER,))
    return {name: states[LAYER] for _, name, states in found}


@pytest.fixture(scope="module")
def labelled(public, features, speech_split, tmp_path_factory):
    """A k-means that scikit-learn fitted on them, and what labelling with its file gives."""
    directory = tmp_path_factory.mktemp("labelled")
    model = MiniBatchKMeans(UNITS, n_init=1, random_state=0, batch_size=2_000)
    joblib.dump(model.fit(np.concatenate(list(features.values()))), directory / "km500.bin")
    config = label.LabelConfig(
        str(directory),
        (str(speech_split),),
        feature="layer",
        layer=LAYER,
        checkpoint=public,
        codebook=str(directory / "km500.bin"),
    )
    return model, label.run(config)


@pytest.fixture
def config(public, labelled, speech_split, tmp_path):
    values = dict(
        workdir=str(tmp_path),
        audio=str(speech_split),
        labels=(labelled[1]["splits"]["speech"]["directory"],),
        loop=dict(steps=1, log_every=1, save_every=1),
        architecture=TINY_BASE["architecture"],
        head=dict(codebook_sizes=HEAD.codebook_sizes, projection_dim=HEAD.projection_dim),
        regularization=config_lib.to_dict(NO_REGULARIZATION),
        frames_per_step=512,
        max_frames=64,
        loss=dict(mask_group_rows=4),
        init_from=public,
        keep_head=True,
    )
    return config_lib.build(train.TrainConfig, values)


def fairseq_loss(public, batch, units, mask, directory) -> float:
    """What HubertModel and HubertCriterion of fairseq 0.12.2 give, restated.

    The transformer is transformers' own. Unit u is symbol u + 4 of the dictionary. A frame's logits
    are cosines of its projection and all label embeddings over 0.1; the loss is the sum of the
    masked frames' cross-entropies, and 10 times their number times the features' mean square, over
    that number.
    """
    formats.write(f"hf:{directory}", formats.read(public))
    model = transformers.HubertModel.from_pretrained(directory).eval()
    tensors = torch.load(public.partition(":")[2], weights_only=True)["model"]
    waveform, mask = torch.tensor(batch["waveform"]), torch.tensor(mask)
    with torch.no_grad():
        penalty = model.feature_extractor(waveform).square().mean()
        output = model(waveform, mask_time_indices=mask).last_hidden_state[mask]
        projected = output @ tensors["final_proj.weight"].T + tensors["final_proj.bias"]
        cosines = torch.cosine_similarity(
            projected[:, None], tensors["label_embs_concat"][None], dim=-1
        )
        targets = torch.from_numpy(units)[mask].long() + SPECIALS
        summed = torch.nn.functional.cross_entropy(cosines / 0.1, targets, reduction="sum")
    count = int(mask.sum())
    return float((summed + 10 * count * penalty) / count)


def test_units_are_those_of_scikit_learn(labelled, features):
    model, result = labelled
    found = dict(records.read_labels(result["splits"]["speech"]["directory"]))
    assert set(found) == set(features) and result["k"] == UNITS
    for name, units in found.items():
        np.testing.assert_array_equal(units, model.predict(features[name]))


def test_training_goes_on_with_the_released_head(
    config, public, labelled, tmp_path, monkeypatch, capsys, figure
):
    data = pretraining.read(config)
    plan = pretraining.task(config, data, sharding.make_mesh(config.mesh))
    batches = plan.batches(0)
    batch = next(batches)
    batches.close()
    units = batch["labels_0"] - SPECIALS
    assert units.min() >= 0 and units.max() < UNITS
    mask = np.zeros(units.shape, bool)
    mask[:, 5:25] = mask[::2, 40:50] = True
    monkeypatch.setattr(pretraining, "span_mask", lambda *arguments: mask)
    train.run(config)
    assert f"network from {public}, with its head" in capsys.readouterr().out
    line = json.loads((tmp_path / "train" / "metrics.jsonl").read_text().splitlines()[0])
    expected = fairseq_loss(public, batch, units, mask, tmp_path / "hf")
    difference = abs(line["loss"] - expected) / expected
    figure("fairseq", Described(ARCHITECTURE), "loss of step 1 with its head, relative", difference)
    assert line["step"] == 1 and difference < TOLERANCE

    # Its checkpoint knows its classes and its codebook, whatever it is written as.
    checkpoint = f"orbax:{tmp_path}/train/checkpoints"
    formats.write(f"fairseq:{tmp_path}/again.pt", formats.read(checkpoint))
    found = formats.read(f"fairseq:{tmp_path}/again.pt").units
    assert found.symbols == formats.read(public).units.symbols and found.offset == SPECIALS
    assert found.codebook_digests == (labelled[1]["codebook_digest"],)
    start = warm_start.for_pretraining(checkpoint, ARCHITECTURE, HEAD, data.units, True)
    assert start.description.endswith("with its head")
    other = dataclasses.replace(data.units, codebook_digests=("0" * 64,))
    with pytest.raises(InputError, match="cannot be kept: its head predicts another codebook"):
        warm_start.for_pretraining(checkpoint, ARCHITECTURE, HEAD, other, True)
    assert check.run(config)["labels"][0]["num_classes"] == UNITS


def test_a_plan_knows_what_files_of_torch_hold(public, tmp_path):
    formats.write(f"torchaudio:{tmp_path}/hubert.pt", formats.read(public))
    for where in (public, f"torchaudio:{tmp_path}/hubert.pt"):
        described = formats.describe(where, "config.init_from")
        known = (formats.read(where).fingerprint,)
        assert described == Description("pretraining", ARCHITECTURE, HEAD, known)


def test_classes_that_nothing_names_stay_so(public, tmp_path):
    network = dataclasses.replace(formats.read(public), units=None)
    for where in (
        f"fairseq:{tmp_path}/hubert.pt",
        f"hf:{tmp_path}/hubert",
        f"fairseq:{tmp_path}/2",
    ):
        assert not network.units.known
        formats.write(where, network)
        network = formats.read(where)


def test_a_head_that_cannot_be_kept_is_refused(config, public, tmp_path):
    with pytest.raises(InputError, match="config.keep_head=True: there is no config.init_from"):
        dataclasses.replace(config, init_from="")
    with pytest.raises(InputError, match="num_classes: found 500, expected 504.*keep_head=True"):
        train.run(dataclasses.replace(config, keep_head=False))
    narrow = dataclasses.replace(config, head=Head((UNITS,), projection_dim=8))
    message = r"cannot be kept: its head has codebook_sizes \(504,\), config.head.codebook_sizes is"
    with pytest.raises(InputError, match=message):
        train.run(narrow)

    network = formats.read(public)
    units = pretraining.read(config).units
    symbols = list(network.units.symbols[0])
    symbols[4], symbols[7] = symbols[7], symbols[4]  # as fairseq orders dictionaries by count
    sorted_otherwise = dataclasses.replace(network, units=Units((tuple(symbols),)))
    encoder = dataclasses.replace(
        network, params={"hubert": network.params["hubert"]}, head=None, units=None
    )
    for changed, message in (
        (sorted_otherwise, "class 4 of its head is '3', here it is '0'"),
        (dataclasses.replace(network, units=Units.numbered((504,))), "class 0 .* '0', .* '<s>'"),
        (encoder, "it has no pre-training head"),
    ):
        where = f"fairseq:{tmp_path}/changed.pt"
        formats.write(where, changed)
        with pytest.raises(InputError, match=f"cannot be kept: {message}"):
            warm_start.for_pretraining(where, ARCHITECTURE, HEAD, units, True)
    # A file that says nothing of its classes, 504 for 500 units, is taken at the user's word.
    stripped = torch.load(public.removeprefix("fairseq:"), weights_only=True)
    for key in ("task_state", "hubert_jax"):
        stripped.pop(key, None)
    torch.save(stripped, tmp_path / "stripped.pt")
    start = warm_start.for_pretraining(
        f"fairseq:{tmp_path}/stripped.pt", ARCHITECTURE, HEAD, units, True
    )
    assert start.description.endswith("with its head")
    fresh = warm_start.for_pretraining(public, ARCHITECTURE, HEAD, units)
    assert "fresh head: it does not say which codebook its head predicts" in fresh.description
