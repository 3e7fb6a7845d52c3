"""Pre-training and fine-tuning on eight devices, however these lie, are those on one."""

import collections
import contextlib
import dataclasses
import itertools

import jax
import numpy as np
import optax
import pytest
from splits import TINY_BASE

from hubert_jax import config as config_lib
from hubert_jax.planning import program
from hubert_jax.tasks import ctc, pretraining
from hubert_jax.training import sharding
from hubert_jax.training.sharding import MeshConfig
from hubert_jax.training.state import TrainState, abstract_state, create_state
from hubert_jax.training.step import compile_steps, shape_of
from hubert_jax.training.task import Task
from hubert_jax.vocabulary import LIBRISPEECH

SEED, STEPS = 7, 2
RATES = {"pretraining": 0.1, "ctc": 1e-4}  # by the size of their gradients
LOGGED = {
    "pretraining": ("gradient_norm", "masked_loss", "unmasked_loss", "masked_accuracy"),
    "ctc": ("infeasible_fraction",),
}
MESHES = {
    "data 8": MeshConfig(data=8),
    "fsdp 8": MeshConfig(data=1, fsdp=8),
    "data 2, fsdp 4": MeshConfig(data=2, fsdp=4),
    "data 2, fsdp 2, tensor 2": MeshConfig(data=2, fsdp=2, tensor=2),
}

# Kilobytes that a device has of what it exchanges, at most. This is XLA for CPU of JAX 0.10, which
# gathers rows for the kernel's gradient of a convolution in groups; newer ones exchange less.
SENT = {
    "pretraining": {
        "data 8": {"all-gather data": 199, "all-reduce data": 49},
        "fsdp 8": {"all-gather fsdp": 320, "all-reduce fsdp": 630, "all-to-all fsdp": 25},
        "data 2, fsdp 4": {
            **{"all-gather data fsdp": 199, "all-gather fsdp": 94, "all-reduce data": 13},
            **{"all-reduce data fsdp": 0.6, "all-reduce fsdp": 318, "all-to-all fsdp": 20},
        },
        "data 2, fsdp 2, tensor 2": {
            **{"all-gather data": 8, "all-gather data fsdp": 199, "all-gather fsdp": 51},
            **{"all-gather tensor": 35, "all-reduce data": 5, "all-reduce data fsdp": 16},
            **{"all-reduce fsdp": 152, "all-reduce tensor": 98, "all-to-all fsdp": 41},
            "collective-permute": 49,
        },
    },
    "ctc": {
        "data 8": {"all-gather data": 854, "all-reduce data": 132},
        "fsdp 8": {"all-gather fsdp": 4771, "all-reduce fsdp": 3563, "all-to-all fsdp": 172},
        "data 2, fsdp 4": {
            **{"all-gather data fsdp": 854, "all-gather fsdp": 2086, "all-reduce data": 33},
            **{"all-reduce data fsdp": 1, "all-reduce fsdp": 1784, "all-to-all fsdp": 147},
        },
        "data 2, fsdp 2, tensor 2": {
            **{"all-gather data": 178, "all-gather data fsdp": 854, "all-gather fsdp": 1005},
            **{"all-gather tensor": 116, "all-reduce data": 4.6, "all-reduce data fsdp": 57},
            **{"all-reduce fsdp": 885, "all-reduce tensor": 591, "all-to-all fsdp": 295},
            "collective-permute": 252,
        },
    },
}


@pytest.fixture(scope="module")
def task_of(speech_split, speech_labels, tmp_path_factory):
    """(kind, mesh) -> a job's task, with the job's own reader: two shapes of 8 and 16 rows."""
    values = dict(
        workdir=str(tmp_path_factory.mktemp("meshes")),
        audio=str(speech_split),
        architecture=TINY_BASE["architecture"],
        regularization=dict(layer_drop=0.0),
        loop=dict(steps=STEPS),
        frames_per_step=512,
        seed=SEED,
    )

    def build(kind: str, mesh) -> Task:
        if kind == "pretraining":
            own = dict(labels=(str(speech_labels),), head=TINY_BASE["head"], max_frames=64)
            loss = dict(mask_group_rows=4, alpha=(0.7,))
            config = config_lib.build(pretraining.TrainConfig, values | own | dict(loss=loss))
            task = pretraining.task(config, pretraining.read(config), mesh)
        else:
            own = dict(init_from="", frames_per_step=3072, padded_frames=(384,))
            own |= dict(ctc=dict(channel_mask_span=4))
            config = config_lib.build(ctc.FinetuneConfig, values | own)
            task = ctc.task(config, *ctc.read(config), LIBRISPEECH, mesh)
        # Plain descent: Adam would blow up the rounding of gradients near zero to a step's size.
        return dataclasses.replace(task, optimizer=optax.sgd(RATES[kind], momentum=0.9))

    return build


def _train(task: Task, mesh, state: TrainState) -> tuple:
    """The state after the first steps from `state`, their metrics, and the programs."""
    abstract = abstract_state(task, mesh)
    programs = compile_steps(task, mesh, abstract, SEED)
    state = jax.device_put(state, jax.tree.map(lambda leaf: leaf.sharding, abstract))
    all_metrics = []
    with contextlib.closing(task.batches(0)) as batches:
        for rows in itertools.islice(batches, STEPS):
            batch = sharding.to_global(mesh, rows)
            state, metrics = programs[shape_of(batch)](state, batch)
            all_metrics.append(jax.device_get(metrics))
    return jax.device_get(state), all_metrics, programs


@pytest.mark.parametrize("kind", ["pretraining", "ctc"])
def test_every_mesh_trains_as_one_device(task_of, kind):
    one = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    task = task_of(kind, one)
    start = jax.device_get(create_state(task, abstract_state(task, one), SEED))
    alone, expected, programs = _train(task, one, start)
    for name, axes in MESHES.items():
        mesh = sharding.make_mesh(axes)
        state, found, sharded = _train(task_of(kind, mesh), mesh, start)
        assert sharded.keys() == programs.keys()  # one program a bucket
        for step in range(STEPS):
            for key in ("loss", *LOGGED[kind]):
                value = expected[step][key]
                assert found[step][key] == pytest.approx(value, rel=1e-5, abs=1e-7), (name, key)
        for ours, theirs in zip(*map(jax.tree.leaves, (state.params, alone.params)), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)
        for exchange, size in _sent(sharded, mesh).items():
            assert size < 1.1 * SENT[kind][name].get(exchange, 0), (name, exchange, size)


def _sent(programs: dict, mesh) -> dict[str, float]:
    """Kilobytes by kind of exchange and axes, of one call of each program."""
    found: dict[str, float] = collections.defaultdict(float)
    for each in programs.values():
        for one in program.traffic(each.as_text(), dict(mesh.shape)).collectives:
            found[f"{one.kind} {' '.join(one.axes)}".strip()] += one.bytes / 1e3
    return dict(found)
