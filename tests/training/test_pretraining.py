"""The pre-training step: goldens on real speech, learning, and the same result on any mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from splits import CLUSTERS, TINY_BASE, TINY_LARGE

from hubert_jax.data import batches, manifests, schedule
from hubert_jax.errors import InputError
from hubert_jax.model.architecture import HubertConfig
from hubert_jax.training import optimizer as optimizer_lib
from hubert_jax.training import sharding
from hubert_jax.training.optimizer import OptimizerConfig
from hubert_jax.training.pretraining import (
    LossConfig,
    init_pretraining,
    pretraining_loss,
    train_step,
)
from hubert_jax.training.state import abstract_state, create_state

SEED = 7
ADAM = OptimizerConfig()
LOSS = LossConfig(mask_group_rows=4)
NO_DROPOUT = dict(dropout=0.0, attention_dropout=0.0, input_dropout=0.0, layer_drop=0.0)


@pytest.fixture(scope="module")
def read(speech_split, speech_labels):
    """Batches of 8 crops of 64 frames."""
    manifest = manifests.read_manifest(speech_split)
    label_sets = [batches.LabelSet(speech_labels, manifests.read_label_manifest(speech_labels))]
    plan = schedule.BucketSchedule(schedule.crop_buckets(manifest, 512, 64, 8), SEED)

    def read(normalize_waveform):
        return list(
            batches.pretraining_batches(
                speech_split,
                manifest,
                label_sets,
                plan,
                seed=SEED,
                first_step=0,
                last_step=3,
                normalize_waveform=normalize_waveform,
            )
        )

    return {normalize: read(normalize) for normalize in (False, True)}


def _mesh(data=1, fsdp=1, tensor=1) -> Mesh:
    devices = np.array(jax.devices()[: data * fsdp * tensor]).reshape(data, fsdp, tensor)
    return Mesh(devices, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


def _train(model, read, steps=1, mesh=None, optimizer=ADAM):
    """The state after `steps` updates on the batches in turn, and every update's metrics."""
    mesh = mesh or _mesh()
    config = HubertConfig(**model)
    transform = optimizer_lib.build(optimizer, steps)
    state = create_state(init_pretraining(config), transform, mesh, SEED)
    update = train_step(pretraining_loss(config, LOSS), transform, SEED)
    all_metrics = []
    given = read[config.normalize_waveform]
    for step in range(steps):
        batch = sharding.to_global(mesh, given[step % len(given)])
        state, metrics = update(state, batch)
        all_metrics.append(jax.device_get(metrics))
    return jax.device_get(state), all_metrics


GOLDENS = {
    "base": (TINY_BASE, dict(loss=3.5410554, gradient_norm=28.879562, masked_frames=236)),
    "large": (TINY_LARGE, dict(loss=6.5301523, gradient_norm=35.156189, masked_frames=236)),
}


@pytest.mark.parametrize("name", GOLDENS)
def test_one_step_golden(read, name):
    model, golden = GOLDENS[name]
    # Units that do not depend on a machine's k-means.
    labels = np.tile(np.arange(64, dtype=np.int32) // 5 % CLUSTERS, (8, 1))
    read = {key: [{**given[0], "labels_0": labels}] for key, given in read.items()}
    _, (metrics,) = _train(model, read)
    assert {key: float(metrics[key]) for key in golden} == pytest.approx(golden, rel=1e-5)


def test_learns(read):
    optimizer = OptimizerConfig(peak_learning_rate=5e-3, warmup_share=0.1)
    _, metrics = _train(TINY_LARGE, read, 24, optimizer=optimizer)
    losses = [entry["masked_loss"] for entry in metrics]
    assert np.mean(losses[:3]) > np.log(CLUSTERS) - 0.3
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.2


@pytest.mark.parametrize(
    ("model", "axes"),
    [
        ({**TINY_BASE, **NO_DROPOUT}, dict(data=2, fsdp=2, tensor=2)),
        (TINY_LARGE, dict(data=8)),
    ],
    ids=["base", "large"],
)
def test_the_mesh_changes_nothing(read, model, axes):
    # Plain descent: Adam would blow rounding of near-zero gradients up to its step's size.
    alone, (one,) = _train(model, read)
    sharded, (many,) = _train(model, read, mesh=_mesh(**axes))
    for key, value in one.items():
        assert many[key] == pytest.approx(value, rel=1e-5, abs=1e-6), key
    moments = [state.opt_state[1][0].mu for state in (alone, sharded)]
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(moments[0]))
    for ours, theirs in zip(*map(jax.tree.leaves, moments), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * largest)


def test_matrices_are_cut_over_the_mesh():
    config = HubertConfig(**TINY_BASE)
    transform = optimizer_lib.build(OptimizerConfig(), 10)
    abstract = abstract_state(init_pretraining(config), transform, _mesh(2, 2, 2))
    cut = abstract.params["hubert"]["transformer"]["layers"]["layer"]["ffn_in"]["kernel"]
    assert cut.sharding.shard_shape(cut.shape) == (2, 8, 16)
    # Adam's moments lie as their parameters do.
    for moment in (abstract.opt_state[1][0].mu, abstract.opt_state[1][0].nu):
        for ours, theirs in zip(
            jax.tree.leaves(moment), jax.tree.leaves(abstract.params), strict=True
        ):
            assert ours.sharding == theirs.sharding


def test_every_parameter_has_exactly_one_rule(monkeypatch):
    params = jax.eval_shape(init_pretraining(HubertConfig(**TINY_BASE)), jax.random.key(0))
    sharding.parameter_shardings(_mesh(), params)
    for rules, count in ((sharding.RULES[:-1], 1), ((*sharding.RULES, sharding.RULES[0]), 2)):
        monkeypatch.setattr(sharding, "RULES", rules)
        if count == 1:
            params = {**params, "characters": {"bias": jnp.zeros(3)}}
            message = "characters/bias: matched by 0 sharding rules"
        else:
            params.pop("characters")
            message = "hubert/frontend/.*: matched by 2 sharding rules"
        with pytest.raises(InputError, match=message):
            sharding.parameter_shardings(_mesh(), params)


@pytest.mark.parametrize(
    ("values", "millions"),
    [
        (dict(dim=1024, num_layers=24, ffn_dim=4096, num_heads=16, projection_dim=768), 316.61),
        (dict(dim=1280, num_layers=48, ffn_dim=5120, num_heads=16, projection_dim=1024), 964.32),
    ],
    ids=["large", "xlarge"],
)
@pytest.mark.parametrize("name", ["adam", "muon"])
def test_large_states_build_without_memory(values, millions, name):
    config = HubertConfig(**values, frontend_norm="layer", pre_norm=True, normalize_waveform=True)
    transform = optimizer_lib.build(OptimizerConfig(name=name), 400_000)
    mesh = _mesh(1, 4, 2)
    abstract = abstract_state(init_pretraining(config), transform, mesh)
    count = sum(leaf.size for leaf in jax.tree.leaves(abstract.params))
    assert count / 1e6 == pytest.approx(millions, abs=0.005)
    held = sum(
        np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=np.int64)
        for leaf in jax.tree.leaves(abstract.params)
    )
    assert held < 0.16 * count


def test_alpha_is_interpolated(read):
    model = {**TINY_BASE, **NO_DROPOUT}
    loss = dataclasses.replace(LOSS, alpha=(0.5, 1.0), alpha_steps=(2, 4), feature_penalty=0.0)
    config = HubertConfig(**model)
    params = init_pretraining(config)(jax.random.key(0))
    compute = jax.jit(pretraining_loss(config, loss))
    batch = read[False][0]
    for step, alpha in ((0, 0.5), (2, 0.5), (3, 0.75), (4, 1.0), (99, 1.0)):
        found, metrics = compute(params, batch, jax.random.key(1), step)
        masked, total = float(metrics["masked_frames"]), batch["labels_0"].size
        sums = masked * metrics["masked_loss"], (total - masked) * metrics["unmasked_loss"]
        count = alpha * masked + (1 - alpha) * (total - masked)
        expected = (alpha * sums[0] + (1 - alpha) * sums[1]) / count
        assert float(found) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    "values",
    [
        dict(alpha=(1.0, 0.5)),
        dict(alpha=()),
        dict(alpha=(1.5,)),
        dict(alpha=(0.5, 1.0), alpha_steps=(5, 5)),
        dict(mask_probability=0.0),
        dict(mask_span=0),
        dict(mask_group_rows=0),
    ],
)
def test_impossible_losses_are_refused(values):
    with pytest.raises(InputError, match="config.loss"):
        dataclasses.replace(LossConfig(), **values)
