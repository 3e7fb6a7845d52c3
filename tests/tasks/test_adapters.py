"""Fine-tuning of low-rank adapters beside a frozen network."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from splits import TINY_BASE, TINY_LARGE, random_parameters

from hubert_jax import config as config_lib
from hubert_jax import finetune
from hubert_jax.asr.emissions import emissions
from hubert_jax.convert import formats
from hubert_jax.convert.network import Network
from hubert_jax.errors import InputError
from hubert_jax.model.adapters import Adapters
from hubert_jax.model.architecture import Architecture, Execution, Regularization
from hubert_jax.model.hubert import HubertForCTC
from hubert_jax.model.kernels import choice
from hubert_jax.networks import forward, trained
from hubert_jax.networks.sharding_rules import SHARDING_RULES
from hubert_jax.tasks import ctc
from hubert_jax.training import sharding
from hubert_jax.training.checkpoint import Checkpoints, restore_parameters
from hubert_jax.training.state import abstract_state
from hubert_jax.training.task import AdditiveLoss
from hubert_jax.vocabulary import LIBRISPEECH

pytestmark = pytest.mark.usefixtures("two_devices")

ALL = ("query", "key", "value", "output", "ffn_in", "ffn_out")


@pytest.mark.parametrize("model", [TINY_BASE, TINY_LARGE])
def test_adapters_are_what_is_added_to_the_matrices(model):
    """Values and gradients, in training with dropout and LayerDrop, are those of W + s A B."""
    architecture = Architecture(**model["architecture"])
    regularization = Regularization(**model["regularization"])
    execution = Execution(rematerialize="nothing" if architecture.pre_norm else "everything")
    kernels = choice.choose(execution, architecture, regularization)
    network = HubertForCTC(architecture, 29, kernels, regularization)
    params = random_parameters(architecture, vocabulary_size=29)
    # Far from a uniform attention, whose queries and keys have gradients near zero.
    layer = params["hubert"]["transformer"]["layers"]["layer"]
    for norm in (layer["attention_norm"], params["hubert"]["encoder_norm"]):
        norm["scale"] += 1
    for name in ("query", "key"):
        layer[name]["kernel"] *= 4
    lora = Adapters(rank=3, alpha=7.5, matrices=ALL)
    random = np.random.default_rng(1)
    fresh = lora.added(params, jax.random.key(1))
    drawn = jax.tree.map(
        lambda leaf: jnp.asarray(random.normal(0, 0.2, leaf.shape), jnp.float32), fresh["adapters"]
    )
    waveform = jax.random.normal(jax.random.key(2), (2, 6_000))

    def value(trained, form):
        inputs = (waveform, None, None, None, False)
        rngs = {"dropout": jax.random.key(3)}
        variables = form({**params, "adapters": trained})
        found = network.apply(variables, *inputs, rngs=rngs, method="encode")
        return jnp.sum(found * jnp.cos(jnp.arange(found.size).reshape(found.shape)))

    def as_sum(params):
        return {"params": lora.merged(params)}

    step = jax.jit(jax.value_and_grad(value), static_argnums=1)
    (ours, gradients), (expected, wanted) = (step(drawn, f) for f in (lora.variables, as_sum))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)
    largest = [float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(wanted)]
    assert min(largest) > 4e-5 * max(largest)
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(largest))
    for name, leaf in lora.merged(fresh).items():
        jax.tree.map(np.testing.assert_array_equal, leaf, params[name])
    mesh = sharding.make_mesh(sharding.MeshConfig(fsdp=2, tensor=2))
    cut = sharding.parameter_shardings(mesh, fresh, SHARDING_RULES)
    layer = cut["adapters"]["hubert"]["transformer"]["layers"]["layer"]
    assert layer["query_up"].spec[2] == layer["output_down"].spec[1] == "tensor"


@pytest.fixture
def values(tmp_path, speech_split, held_out_split):
    """A configuration of three updates of adapters beside a network of random weights."""
    architecture = Architecture(**TINY_BASE["architecture"])
    where = f"hf:{tmp_path}/source"
    formats.write(where, Network(random_parameters(architecture), architecture))
    return dict(
        workdir=str(tmp_path),
        audio=str(speech_split),
        init_from=where,
        architecture=TINY_BASE["architecture"],
        regularization=TINY_BASE["regularization"],
        loop=dict(steps=3, log_every=1, save_every=1, keep=10),
        ctc=dict(freeze_steps=1, channel_mask_probability=0.1, channel_mask_span=4),
        # Decay would move a frozen parameter that has no gradient.
        optimizer=dict(peak_learning_rate=1e-2, weight_decay=0.1, schedule="tri_stage"),
        lora=dict(rank=2, alpha=5.0, matrices=("query", "ffn_out")),
        frames_per_step=768,
        padded_frames=(384,),
        validation_audio=str(held_out_split),
    )


def test_adapters_learn_and_the_network_stays(values, held_out_split, tmp_path, monkeypatch):
    config = config_lib.build(ctc.FinetuneConfig, values)
    save = Checkpoints.save

    def killed(checkpoints, step, state, metadata):
        save(checkpoints, step, state, metadata)
        if step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            finetune.run(config)
    result = finetune.run(config)
    assert result["resumed_from"] == 2
    with pytest.raises(InputError, match="config.lora.rank was 2, is 4"):
        finetune.run(config_lib.build(ctc.FinetuneConfig, {**values, "lora": dict(rank=4)}))
    other = config_lib.build(ctc.FinetuneConfig, {**values, "workdir": f"{tmp_path}/whole"})
    whole = finetune.run(other)
    params, metadata = restore_parameters(result["checkpoint"])
    jax.tree.map(np.testing.assert_array_equal, params, restore_parameters(whole["checkpoint"])[0])
    source = formats.read(values["init_from"]).params
    jax.tree.map(np.testing.assert_array_equal, params["hubert"], source["hubert"])
    learnt = params["adapters"]["hubert"]["transformer"]["layers"]["layer"]
    assert sorted(learnt) == ["ffn_out_down", "ffn_out_up", "query_down", "query_up"]
    assert all(np.abs(leaf).max() > 0 for leaf in learnt.values())
    trainable = sum(leaf.size for leaf in jax.tree.leaves([learnt, params["ctc_head"]]))
    assert result["parameters"] == trainable

    # Whoever reads the run's checkpoint gets one network, of the same outputs.
    where = f"orbax:{result['checkpoint']}"
    network = formats.read(where)
    assert sorted(network.params) == ["ctc_head", "hubert"]
    formats.write(f"hf:{tmp_path}/exported", network)
    kernels = choice.choose(Execution(), network.architecture)
    model = HubertForCTC(network.architecture, LIBRISPEECH.size, kernels)
    waveform = np.random.default_rng(0).normal(size=(1, 8_000)).astype(np.float32)
    apply = jax.jit(lambda variables: model.apply(variables, waveform))
    assert metadata["adapters"] == dict(rank=2, alpha=5.0, matrices=["query", "ffn_out"])
    ours = apply(config.lora.variables(params))
    for read in (network, formats.read(f"hf:{tmp_path}/exported")):
        found = apply({"params": dict(read.params)})
        np.testing.assert_allclose(found, ours, atol=1e-5)
    unchanged = {"hubert": source["hubert"], "ctc_head": params["ctc_head"]}
    assert np.abs(apply({"params": unchanged}) - ours).max() > 1e-3
    losses = []
    for _, emitted in emissions(trained.load(where), forward.utterances(held_out_split)):
        spoken = LIBRISPEECH.encode(emitted.text)
        arrays = (
            emitted.log_probs,
            np.zeros(len(emitted.log_probs)),
            spoken,
            np.zeros(len(spoken)),
        )
        losses.append(float(optax.ctc_loss(*(np.asarray(array)[None] for array in arrays))[0]))
    assert result["validation"]["last"]["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    # The mean of checkpoints is that of their networks: A B is not linear in both.
    steps = [formats.read(f"{where}@{step}").params for step in (2, 3)]
    mean = jax.tree.map(lambda *leaves: sum(leaves) / 2, *steps)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7),
        dict(formats.read(f"{where}@mean2").params),
        mean,
    )


def test_frozen_parameters_have_neither_moments_nor_gradients(values):
    config = config_lib.build(ctc.FinetuneConfig, values)
    audio, held_out = ctc.read(config)
    mesh = sharding.make_mesh(config.mesh)
    task = ctc.task(config, audio, held_out, LIBRISPEECH, mesh)
    state = abstract_state(task, mesh)
    trained_part, frozen = task.divided(state.params)
    assert sorted(trained_part) == ["adapters", "ctc_head"] and sorted(frozen) == ["hubert"]
    numbers = sum(leaf.size for leaf in jax.tree.leaves(trained_part))
    moments = [leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert sum(moments) == 2 * numbers
    assert isinstance(task.loss_of_trained(frozen), AdditiveLoss)


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (dict(rank=-1), "config.lora.rank=-1: expected 0 or more"),
        (dict(rank=17), "config.lora.rank=17: expected at most config.architecture.dim=16"),
        (dict(rank=2, alpha=0.0), "config.lora.alpha=0.0: expected more than 0"),
        (dict(rank=2, matrices=("query", "queries")), "expected some of query, key, value"),
        (dict(rank=2, matrices=("key", "key")), "each once"),
        (dict(rank=2, matrices=()), "each once"),
        (dict(alpha=3.0), "config.lora.alpha=3.0: found without config.lora.rank"),
    ],
)
def test_impossible_adapters_are_refused(values, lora, message):
    with pytest.raises(InputError, match=message):
        config_lib.build(ctc.FinetuneConfig, {**values, "lora": lora})


def test_adapters_need_steps_that_train_them(values):
    with pytest.raises(InputError, match="config.ctc.freeze_steps=3: expected fewer than .*=3"):
        config_lib.build(ctc.FinetuneConfig, {**values, "ctc": dict(freeze_steps=3)})
    muon = {**values["optimizer"], "name": "muon"}
    with pytest.raises(InputError, match="config.optimizer.name=muon: .* expected adam"):
        config_lib.build(ctc.FinetuneConfig, {**values, "optimizer": muon})


def test_adapters_need_a_network_that_has_learnt(values):
    with pytest.raises(InputError, match="config.lora.rank=2: found without config.init_from"):
        config_lib.build(ctc.FinetuneConfig, {**values, "init_from": ""})
