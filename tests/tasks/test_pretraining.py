"""The pre-training step: goldens on real speech, learning, and the same result on any mesh."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from splits import CLUSTERS, TINY_BASE, TINY_LARGE

from hubert_jax.data import batches, manifests, schedule
from hubert_jax.errors import InputError
from hubert_jax.model.architecture import Architecture, Execution, Head, Regularization
from hubert_jax.model.hubert import HubertForPretraining
from hubert_jax.model.kernels import choice
from hubert_jax.networks.sharding_rules import SHARDING_RULES
from hubert_jax.tasks import pretraining
from hubert_jax.tasks.pretraining import LossConfig
from hubert_jax.training import optimizer as optimizer_lib
from hubert_jax.training import sharding
from hubert_jax.training.optimizer import OptimizerConfig
from hubert_jax.training.state import abstract_state, create_state
from hubert_jax.training.step import compile_steps, shape_of
from hubert_jax.training.task import Task

SEED = 7
ADAM = OptimizerConfig()
LOSS = LossConfig(mask_group_rows=4)
NO_DROPOUT = dict(dropout=0.0, attention_dropout=0.0, input_dropout=0.0, layer_drop=0.0)
WITHOUT_DROPOUT = {**TINY_BASE, "regularization": NO_DROPOUT}


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


def _network(model) -> HubertForPretraining:
    architecture, head = Architecture(**model["architecture"]), Head(**model["head"])
    regularization = Regularization(**model["regularization"])
    kernels = choice.choose(Execution(), architecture, regularization)
    return HubertForPretraining(architecture, head, kernels, regularization)


def _task(model, steps, optimizer=ADAM, loss=LOSS, batch=None) -> Task:
    network = _network(model)
    return Task(
        kind="pretraining",
        init=pretraining.init(network.architecture, network.head),
        loss=pretraining.loss_function(network, loss),
        optimizer=optimizer_lib.build(optimizer, steps),
        learning_rate=optimizer_lib.learning_rate(optimizer, steps),
        batch_shapes=(batch,),
        batches=lambda first_step: iter(()),
        facts={},
        sharding_rules=SHARDING_RULES,
    )


def _train(model, read, steps=1, mesh=None, optimizer=ADAM):
    """The state after `steps` updates on the batches in turn, and every update's metrics."""
    mesh = mesh or _mesh()
    given = read[model["architecture"].get("normalize_waveform", False)]
    batches = [sharding.to_global(mesh, batch) for batch in given]
    task = _task(model, steps, optimizer, batch=batches[0])
    abstract = abstract_state(task, mesh)
    state = create_state(task, abstract, SEED)
    update = compile_steps(task, mesh, abstract, SEED)[shape_of(batches[0])]
    all_metrics = []
    for step in range(steps):
        state, metrics = update(state, batches[step % len(batches)])
        all_metrics.append(jax.device_get(metrics))
    return jax.device_get(state), all_metrics


GOLDENS_VERSION = 2  # pipelines skip what they have trained by this version: raise it with these
GOLDENS = {
    "base": (TINY_BASE, dict(loss=3.8161869, gradient_norm=6.3776202, masked_frames=236)),
    "large": (TINY_LARGE, dict(loss=6.6438351, gradient_norm=11.840560, masked_frames=236)),
}


@pytest.mark.parametrize("name", GOLDENS)
def test_one_step_golden(read, name):
    model, golden = GOLDENS[name]
    # Units that do not depend on a machine's k-means.
    labels = np.tile(np.arange(64, dtype=np.int32) // 5 % CLUSTERS, (8, 1))
    read = {key: [{**given[0], "labels_0": labels}] for key, given in read.items()}
    _, (metrics,) = _train(model, read)
    assert {key: float(metrics[key]) for key in golden} == pytest.approx(golden, rel=1e-5)
    assert pretraining.VERSION == GOLDENS_VERSION


def test_learns(read):
    optimizer = OptimizerConfig(peak_learning_rate=5e-3, warmup_fraction=0.1)
    _, metrics = _train(TINY_LARGE, read, 24, optimizer=optimizer)
    losses = [entry["masked_loss"] for entry in metrics]
    assert np.mean(losses[:3]) > np.log(CLUSTERS) - 0.3
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.2


def test_matrices_are_cut_over_the_mesh():
    abstract = abstract_state(_task(TINY_BASE, 10), _mesh(2, 2, 2))
    cut = abstract.params["hubert"]["transformer"]["layers"]["layer"]["ffn_in"]["kernel"]
    assert cut.sharding.shard_shape(cut.shape) == (2, 8, 16)
    # Adam's moments lie as their parameters do.
    for moment in (abstract.opt_state[1][0].mu, abstract.opt_state[1][0].nu):
        for ours, theirs in zip(
            jax.tree.leaves(moment), jax.tree.leaves(abstract.params), strict=True
        ):
            assert ours.sharding == theirs.sharding


def test_every_parameter_has_exactly_one_rule():
    params = jax.eval_shape(_task(TINY_BASE, 1).init, jax.random.key(0))
    rules = SHARDING_RULES
    sharding.parameter_shardings(_mesh(), params, rules)
    message = "ctc_head/bias: matched by 0 sharding rules"
    with pytest.raises(InputError, match=message):
        sharding.parameter_shardings(
            _mesh(),
            {**params, "ctc_head": {"bias": jnp.zeros(3)}},
            tuple(rule for rule in rules if "ctc_head" not in rule[0]),
        )
    with pytest.raises(InputError, match="hubert/frontend/.*: matched by 2 sharding rules"):
        sharding.parameter_shardings(_mesh(), params, (*rules, rules[0]))


@pytest.mark.parametrize(
    ("values", "millions"),
    [
        (dict(dim=768, num_layers=12, ffn_dim=3072, num_heads=12), 94.70),
        (dict(dim=1024, num_layers=24, ffn_dim=4096, num_heads=16), 316.61),
        (dict(dim=1280, num_layers=48, ffn_dim=5120, num_heads=16), 964.32),
    ],
    ids=["base", "large", "xlarge"],
)
@pytest.mark.parametrize("name", ["adam", "muon"])
def test_large_states_build_without_memory(values, millions, name):
    dim = values["dim"]
    model = dict(
        architecture=dict(values, frontend_norm="layer", pre_norm=True, normalize_waveform=True),
        head=dict(codebook_sizes=(504,), projection_dim={768: 256, 1024: 768, 1280: 1024}[dim]),
        regularization={},
    )
    task = _task(model, 400_000, OptimizerConfig(name=name))
    for axes, most in (((1, 4, 2), 1.2 / 8), ((1, 8, 1), 1.02 / 8)):
        abstract = abstract_state(task, _mesh(*axes))
        count = sum(leaf.size for leaf in jax.tree.leaves(abstract.params))
        assert count / 1e6 == pytest.approx(millions, abs=0.005)
        leaves = jax.tree.leaves(abstract)
        held = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves)
        assert held < most * sum(leaf.size for leaf in leaves)


def test_alpha_is_interpolated(read):
    loss = dataclasses.replace(LOSS, alpha=(0.5, 1.0), alpha_steps=(2, 4), feature_penalty=0.0)
    task = _task(WITHOUT_DROPOUT, 1, loss=loss)
    params = task.init(jax.random.key(0))
    compute = jax.jit(task.loss)
    batch = read[False][0]
    for step, alpha in ((0, 0.5), (2, 0.5), (3, 0.75), (4, 1.0), (99, 1.0)):
        found, metrics = compute(params, batch, jax.random.key(1), step)
        masked, total = float(metrics["masked_frames"]), batch["labels_0"].size
        sums = masked * metrics["masked_loss"], (total - masked) * metrics["unmasked_loss"]
        count = alpha * masked + (1 - alpha) * (total - masked)
        expected = (alpha * sums[0] + (1 - alpha) * sums[1]) / count
        assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_groups_of_masks_need_not_divide_the_rows():
    """A row's mask is that of a larger batch, so that rows follow from the devices alone."""
    loss = pretraining.loss_function(None, dataclasses.replace(LOSS, mask_group_rows=5))
    few, many = (
        loss.prepare({"labels_0": jnp.zeros((rows, 200), int)}, jax.random.key(1))
        for rows in (8, 20)
    )
    np.testing.assert_array_equal(few["mask"], many["mask"][:8])
    counts = np.asarray(few["mask"]).sum(axis=1)
    assert len({*counts[:5]}) == len({*counts[5:]}) == 1
    assert few["masked_frames"] == counts.sum() == 8 * 200 - few["unmasked_frames"]


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
        dict(feature_penalty=-1.0),
    ],
)
def test_impossible_losses_are_refused(values):
    with pytest.raises(InputError, match="config.loss"):
        dataclasses.replace(LossConfig(), **values)
