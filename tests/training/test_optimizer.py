"""Learning-rate schedules against closed forms; who is updated by what."""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from splits import TINY_BASE

from hubert_jax import config as config_lib
from hubert_jax.errors import InputError
from hubert_jax.model.architecture import Architecture, Head
from hubert_jax.tasks import ctc, pretraining
from hubert_jax.training import optimizer as optimizer_lib
from hubert_jax.training.optimizer import OptimizerConfig


def _factor(config, steps):
    """The learning rate over its peak."""
    return optimizer_lib.learning_rate(dataclasses.replace(config, peak_learning_rate=1.0), steps)


def test_linear_schedule():
    config = OptimizerConfig(schedule="linear", warmup_fraction=0.08)
    factor = _factor(config, 250_000)
    for step in (0, 1, 10_000, 19_999, 20_000, 20_001, 135_000, 249_999, 250_000):
        expected = step / 20_000 if step <= 20_000 else (250_000 - step) / 230_000
        assert float(factor(step)) == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_tri_stage_schedule():
    config = OptimizerConfig(schedule="tri_stage", warmup_fraction=0.1, hold_fraction=0.4)
    factor = _factor(config, 13_000)
    for step in (0, 1, 650, 1299, 1300, 5000, 6499, 6500, 6501, 9750, 12_999, 13_000, 14_000):
        if step < 1300:
            expected = 0.01 + 0.99 * step / 1300
        elif step < 6500:
            expected = 1.0
        else:
            expected = np.exp(np.log(0.05) * min(step - 6500, 6500) / 6500)
        assert float(factor(step)) == pytest.approx(expected, rel=1e-5)


# Of the published recipes: steps, then steps of warm-up, hold and decay.
STAGES = {
    ("base", "10min"): (13_000, 1_300, 5_200, 6_500),
    ("base", "1h"): (13_000, 1_300, 5_200, 6_500),
    ("base", "10h"): (25_000, 8_000, 0, 72_000),
    ("base", "100h"): (80_000, 8_000, 32_000, 40_000),
    ("base", "960h"): (320_000, 32_000, 128_000, 160_000),
    ("large", "10min"): (13_000, 1_300, 5_200, 6_500),
    ("large", "1h"): (13_000, 1_300, 5_200, 6_500),
    ("large", "10h"): (20_000, 2_000, 8_000, 10_000),
    ("large", "100h"): (80_000, 8_000, 32_000, 40_000),
    ("large", "960h"): (320_000, 32_000, 128_000, 160_000),
}


@pytest.mark.parametrize(("network", "part"), STAGES)
def test_finetuning_configurations_have_the_published_schedules(network, part):
    steps, warmup, hold, decay = STAGES[network, part]
    config = importlib.import_module(f"configs.finetune.{network}").get_config(part)
    assert config.loop.steps == steps
    settings = config_lib.build(OptimizerConfig, config.optimizer, "config.optimizer")
    factor = _factor(settings, steps)
    for step in np.linspace(0, steps - 1, 20).astype(int):
        if step < warmup:
            expected = (1 * (warmup - step) + 100 * step) / (100 * warmup)
        elif step < warmup + hold:
            expected = 1.0
        else:
            expected = 20 ** (-(step - warmup - hold) / decay)
        assert float(factor(step)) == pytest.approx(expected, rel=1e-5), step
    if (network, part) == ("base", "10h"):
        assert float(factor(steps - 1)) == pytest.approx(0.493, abs=0.001)


def test_a_linear_decay_may_be_longer_than_the_run():
    factor = _factor(OptimizerConfig(warmup_fraction=0.1, decay_fraction=1.8), 100)
    for step in (10, 55, 100):
        assert float(factor(step)) == pytest.approx(1 - (step - 10) / 180, rel=1e-6)


@pytest.mark.parametrize(
    "values",
    [
        {"name": "adamw"},
        {"schedule": "cosine"},
        {"warmup_fraction": 0.7, "hold_fraction": 0.3},
        {"decay_fraction": 0.0},
        {"warmup_fraction": -0.1, "hold_fraction": 0.2},
        {"peak_learning_rate": -1e-3},
        {"beta2": 1.0},
        {"epsilon": 0.0},
        {"weight_decay": -0.1},
        {"clip_norm": -1.0},
    ],
)
def test_unknown_values_are_named(values):
    with pytest.raises(InputError, match=f"config.optimizer.*{next(iter(values))}"):
        OptimizerConfig(**values)


@pytest.fixture(scope="module")
def params():
    architecture, head = Architecture(**TINY_BASE["architecture"]), Head(**TINY_BASE["head"])
    return pretraining.init(architecture, head)(jax.random.key(0))


def _gradients(params, scale=1.0):
    random = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: (scale * random.normal(size=leaf.shape)).astype(np.float32), params
    )


def test_muon_leaves_all_but_the_transformers_kernels_to_adam(params):
    config = OptimizerConfig(clip_norm=0.0, warmup_fraction=0.0, peak_learning_rate=1e-3)
    gradients, updates = _gradients(params), {}
    factor = _factor(config, 100)
    adam = optax.nadamw(
        lambda step: 1e-3 * factor(step), b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.01
    )
    muon = optimizer_lib.build(dataclasses.replace(config, name="muon"), 100)
    for name, transform in (("adam", adam), ("muon", muon)):
        state = transform.init(params)
        for _ in range(3):
            updates[name], state = transform.update(gradients, state, params)
    rate = 1e-3 * float(factor(2))
    matrices = 0
    for (path, adam), muon, value in zip(
        jax.tree_util.tree_leaves_with_path(updates["adam"]),
        jax.tree.leaves(updates["muon"]),
        jax.tree.leaves(params),
        strict=True,
    ):
        keys = [key.key for key in path]
        if "transformer" in keys and keys[-1] == "kernel":
            matrices += 1
            assert np.abs(muon - adam).max() > 1e-5
            # Every layer's update is nearly orthogonal up to its scale, of an RMS of about 0.2.
            step = -muon / rate - config.weight_decay * value
            assert 0.1 < float(jnp.sqrt(jnp.mean(step**2))) < 0.3
            for layer in step:
                singular = np.linalg.svd(layer, compute_uv=False)
                # Newton and Schulz's iteration leaves the smallest ones behind.
                assert np.mean(singular > 0.6 * singular.max()) > 0.6
        else:
            np.testing.assert_allclose(muon, adam, rtol=1e-5, atol=1e-9)
    assert matrices == 6


def test_clipping_bounds_the_global_norm(params):
    config = OptimizerConfig(clip_norm=0.5, warmup_fraction=0.0)
    transform = optimizer_lib.build(config, 10)
    clipped = transform.init(params), _gradients(params, 1.0)
    norm = float(optax.tree.norm(clipped[1]))
    scaled = jax.tree.map(lambda gradient: gradient * (0.5 / norm), clipped[1])
    unclipped = optimizer_lib.build(dataclasses.replace(config, clip_norm=0.0), 10)
    ours, _ = transform.update(clipped[1], clipped[0], params)
    theirs, _ = unclipped.update(scaled, unclipped.init(params), params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-9), ours, theirs)


@pytest.fixture(scope="module")
def ctc_params():
    return ctc.init(Architecture(**TINY_BASE["architecture"]), 29)(jax.random.key(0))


def _finetuning_config(**values):
    return OptimizerConfig(
        **{
            "peak_learning_rate": 1e-3,
            "weight_decay": 0.0,
            "clip_norm": 0.0,
            "schedule": "tri_stage",
            **values,
        }
    )


def _build(config, steps=10, **values):
    return optimizer_lib.build_finetuning(config, steps, head="ctc_head", **values)


def _count(state, group) -> int:
    """Updates that the Adam of "network" or "head" has made."""
    counts = [
        int(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if f"'{group}'" in jax.tree_util.keystr(path)
        and jax.tree_util.keystr(path)[-6:] == ".count"
    ]
    (count,) = counts
    return count


def test_the_network_begins_with_a_fresh_adam_at_the_runs_learning_rate(ctc_params):
    config = _finetuning_config()
    optimizer = _build(config, 100, freeze_steps=50)
    state, params = optimizer.init(ctc_params), ctc_params
    gradients = _gradients(ctc_params)
    update = jax.jit(optimizer.update)
    for _ in range(50):
        updates, state = update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    for ours, theirs in zip(
        jax.tree.leaves(params["hubert"]), jax.tree.leaves(ctc_params["hubert"]), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    assert _count(state, "network") == 0 and _count(state, "head") == 50
    updates, state = update(gradients, state, params)
    params = optax.apply_updates(params, updates)
    assert _count(state, "network") == 1 and _count(state, "head") == 51
    # Adam's first update has the size of the learning rate, whatever the gradient's.
    rate = 1e-3 * float(_factor(config, 100)(50))
    for before, after, gradient in zip(
        *map(jax.tree.leaves, (ctc_params["hubert"], params["hubert"], gradients["hubert"])),
        strict=True,
    ):
        np.testing.assert_allclose(after - before, -rate * np.sign(gradient), rtol=0.01, atol=1e-6)


def test_muon_of_a_network_begins_after_the_frozen_steps_and_leaves_the_head_to_adam(ctc_params):
    values = dict(weight_decay=0.01, hold_fraction=0.5, warmup_fraction=0.0)
    adam, muon = (
        _build(_finetuning_config(name=name, **values), 100, freeze_steps=2, train_frontend=True)
        for name in ("adam", "muon")
    )
    gradients = _gradients(ctc_params)
    states = {each: each.init(ctc_params) for each in (adam, muon)}
    for step in range(4):
        updates = {}
        for each in (adam, muon):
            updates[each], states[each] = each.update(gradients, states[each], ctc_params)
        jax.tree.map(
            np.testing.assert_array_equal, updates[muon]["ctc_head"], updates[adam]["ctc_head"]
        )
        if step < 2:
            assert not any(change.any() for change in jax.tree.leaves(updates[muon]["hubert"]))
    expected = optax.contrib.muon(
        1e-3,
        weight_decay=0.01,
        adam_b1=0.9,
        adam_b2=0.98,
        eps=1e-6,
        adam_weight_decay=0.01,
        muon_weight_dimension_numbers=optimizer_lib._matrices,
        consistent_rms=0.2,
    )
    given = gradients["hubert"], ctc_params["hubert"]
    state = expected.init(given[1])
    for _ in range(2):
        changes, state = expected.update(given[0], state, given[1])
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-9),
        updates[muon]["hubert"],
        changes,
    )


@pytest.mark.parametrize("train_frontend", [False, True])
def test_weight_decay_spares_a_frozen_frontend(ctc_params, train_frontend):
    optimizer = _build(_finetuning_config(weight_decay=0.1), train_frontend=train_frontend)
    zeros = jax.tree.map(jnp.zeros_like, ctc_params)
    updates, _ = optimizer.update(zeros, optimizer.init(ctc_params), ctc_params)
    for group, before in ctc_params["hubert"].items():
        for change, value in zip(
            jax.tree.leaves(updates["hubert"][group]), jax.tree.leaves(before), strict=True
        ):
            changes = np.any(np.asarray(value)) and (train_frontend or group != "frontend")
            assert bool((change != 0).any()) == bool(changes)


def test_the_heads_learning_rate_is_scaled(ctc_params):
    gradients = _gradients(ctc_params)
    for scale in (1.0, 30.0):
        optimizer = _build(_finetuning_config(), head_scale=scale)
        updates, _ = optimizer.update(gradients, optimizer.init(ctc_params), ctc_params)
        rate = 1e-3 * 0.01  # the schedule's first factor
        np.testing.assert_allclose(np.abs(updates["ctc_head"]["bias"]), scale * rate, rtol=0.01)
        np.testing.assert_allclose(
            np.abs(updates["hubert"]["feature_projection"]["bias"]), rate, rtol=0.01
        )


def test_finetuning_clips_the_global_norm(ctc_params):
    gradients = _gradients(ctc_params)
    # A frozen network has no gradient.
    gradients["hubert"] = jax.tree.map(np.zeros_like, gradients["hubert"])
    optimizer = _build(_finetuning_config(clip_norm=0.1))
    _, state = optimizer.update(gradients, optimizer.init(ctc_params), ctc_params)
    # The first moment after one update is 0.1 of the clipped gradient.
    moments = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if ".mu" in jax.tree_util.keystr(path)
    ]
    assert float(optax.tree.norm(moments)) / 0.1 == pytest.approx(0.1, rel=1e-4)
