"""The job: a step for described devices, here those of the CPU, and what it says of them."""

import csv
import dataclasses
import json

import jax
import pytest
from jax.experimental import topologies
from splits import TINY_LARGE

from hubert_jax import config as config_lib
from hubert_jax import plan
from hubert_jax.errors import InputError
from hubert_jax.model.architecture import REMATERIALIZE
from hubert_jax.planning import chips, pretraining
from hubert_jax.planning.chips import CHIPS, Chip, Topology
from hubert_jax.training import step
from hubert_jax.training.sharding import MeshConfig

CPU = Chip("cpu", 1e12, 2**30, 1e11, 1e10, axes=1, node=0)


@pytest.fixture
def devices(monkeypatch):
    """What is described has eight devices, of which each has as much memory as it is told."""

    def have(memory: float = 2**30) -> None:
        topology = Topology("cpu:8", dataclasses.replace(CPU, memory=memory), tuple(jax.devices()))
        monkeypatch.setattr(chips, "described", lambda name, target: topology)

    have()
    return have


@pytest.fixture
def values(tmp_path) -> dict:
    """A pre-training whose audio is not there."""
    return dict(
        workdir=str(tmp_path),
        audio=f"{tmp_path}/nowhere",
        labels=(f"{tmp_path}/nowhere/labels",),
        loop=dict(steps=1_000),
        loss=dict(mask_group_rows=8),
        frames_per_step=32 * 96,
        max_frames=96,
        **TINY_LARGE,
    )


def _config(values, **changes) -> plan.PlanConfig:
    return config_lib.build(plan.PlanConfig, {**values, **changes})


def test_a_sweep_tells_what_fits_and_which_is_fastest(
    devices, values, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(pretraining, "meshes", lambda devices: [MeshConfig()])
    cut = pretraining.estimate(_config(values, mesh=dict(fsdp=8)), chips.described("", ""))
    result = plan.run(_config(values, plan=dict(sweep=True)))
    assert json.loads((tmp_path / "plan/result.json").read_text()) == result
    assert [each["rematerialize"] for each in result["tried"]] == list(REMATERIALIZE)
    whole, *recomputed = result["tried"]
    assert sorted(found["activations"] for found in result["tried"]) == [
        result["tried"][i]["activations"] for i in (3, 2, 1, 0)
    ]
    assert (whole["rows"], whole["frames"], whole["micro_batches"]) == (32, 96, 1)
    # Adam has two moments of each parameter, and counts its steps.
    assert 0 <= whole["optimizer"] - 2 * whole["parameters"] <= 8
    assert cut.parameters < whole["parameters"]
    assert all(found["flops"] > whole["flops"] for found in recomputed)
    assert {found["model_flops"] for found in result["tried"]} == {whole["flops"]}
    # Gradients are summed over all devices, each of which has all of them.
    sums = [each for each in whole["collectives"] if each["kind"] == "all-reduce"]
    assert all(each["axes"] == ["data"] for each in sums)
    assert sum(each["bytes"] for each in sums) >= whole["parameters"]
    assert whole["compute_seconds"] == pytest.approx(whole["flops"] / 1e12)
    assert whole["memory_seconds"] == pytest.approx(whole["memory_bytes"] / 1e11)
    with (tmp_path / "plan/plan.csv").open() as file:
        rows = list(csv.DictReader(file))
    fastest = min(rows, key=lambda row: float(row["step_ms"]))
    assert float(fastest["step_ms"]) == result["best"]["step_ms"]
    hours = 1_000 * min(each["seconds"] for each in result["tried"]) / 3600
    assert result["best"]["hours"] == round(hours, 1)
    printed = capsys.readouterr().out
    assert "32 rows of 96 frames in 1 micro-batch(es)" in printed and "bound by" in printed


def test_micro_batches_are_found_for_a_split_that_is_there(devices, values, speech_split):
    changed = dict(audio=str(speech_split), max_frames=768, loss=dict(mask_group_rows=1))
    config = _config(values, **changed, frames_per_step=16 * 256, mesh=dict(fsdp=2))
    least = pretraining.estimate(config, chips.described("", ""))
    assert (least.rows, least.frames, least.micro_batches) == (16, 256, 1)
    assert least.mesh == {"data": 4, "fsdp": 2, "tensor": 1}
    devices(memory=least.needed)  # of which a part stays free
    found = pretraining.estimate(config, chips.described("", ""))
    assert found.micro_batches == 2 and found.fits and found.needed < least.needed


def test_what_never_fits_is_refused(devices, values):
    devices(memory=2**20)
    config = _config(values, frames_per_step=8 * 96)
    with pytest.raises(InputError, match="nothing that was tried fits; the least needs .* GiB a"):
        plan.run(config)


@pytest.mark.parametrize(
    ("told", "needed"),
    [
        ("RESOURCE_EXHAUSTED: Used 22.70G of 15.75G hbm. Exceeded", 22.7 * 2**30),
        ("RESOURCE_EXHAUSTED: Used 1.00M of 1.00M smem. Exceeded", None),
        ("INTERNAL: Mosaic failed", None),
    ],
)
def test_a_compiler_that_refuses_is_understood(devices, values, monkeypatch, told, needed):
    def refused(*arguments):
        raise jax.errors.JaxRuntimeError(told)

    monkeypatch.setattr(step, "compile_steps", refused)
    config = _config(values, frames_per_step=8 * 96)
    if needed:
        found = pretraining.estimate(config, chips.described("", ""))
        assert not found.fits and found.needed == needed and found.micro_batches == 0
    else:
        with pytest.raises(InputError, match="the step does not compile .(RESOURCE|INTERNAL)"):
            pretraining.estimate(config, chips.described("", ""))


def test_crops_without_audio_have_as_many_frames_as_asked(values, devices, monkeypatch):
    monkeypatch.setattr(step, "compile_steps", lambda *_: {(): None})
    monkeypatch.setattr(step, "needed_memory", lambda *_: 1e18)
    for most, frames in ((700, 700), (96, 96), (10_000, 768)):
        changed = dict(max_frames=most, frames_per_step=8 * most)
        found = pretraining.estimate(_config(values, **changed), chips.described("", ""))
        assert found.frames == frames


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e", "topology='v5e': expected one of v4, v5e, .* and its shape, such as v5e:4x4"),
        ("v5e:4x", "expected one of"),
        ("v9:2x2", "expected one of"),
        ("h100:4", "config.plan.gpu_target: missing; expected XLA's description"),
    ],
)
def test_topologies_that_are_none_are_refused(name, message):
    with pytest.raises(InputError, match=message):
        chips.described(name)


def test_a_compiler_that_is_not_there_is_named(monkeypatch, tmp_path):
    def missing(**options):
        raise RuntimeError("no such\nplugin")

    monkeypatch.setattr(topologies, "get_topology_desc", missing)
    with pytest.raises(InputError, match=r"v5e:2x2: cannot be described \(no such plugin\).*tpu"):
        chips.described("v5e:2x2")
    target = tmp_path / "h100.txtpb"
    with pytest.raises(InputError, match="gpu_target=.*h100.txtpb: No such file"):
        chips.described("h100:1", str(target))
    target.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="gpu_target=.*: expected a text of XLA's"):
        chips.described("h100:1", str(target))
    target.write_text("")
    with pytest.raises(InputError, match=r"h100:1: .*'\.\[cuda\]'"):
        chips.described("h100:1", str(target))


def test_what_is_sent_takes_the_links_that_a_group_has():
    torus, gpus = CHIPS["v5e"], CHIPS["h100"]
    assert torus.seconds_of(200e9, 256, 256, 256) == 1.0
    assert torus.seconds_of(200e9, 16, 16, 256) == 2.0  # one axis of two
    assert gpus.seconds_of(450e9, 8, 8, 32) == 1.0
    assert gpus.seconds_of(450e9, 4, 1, 32) == 9.0
    assert gpus.seconds_of(450e9, 32, 8, 32) == 450 / 400  # eight adapters of 50 GB/s
    with pytest.raises(InputError, match="config.plan.effort='X': expected one of"):
        plan.PlanOptions(effort="X")
    assert pretraining.meshes(4) == [MeshConfig(fsdp=1), MeshConfig(fsdp=4)]
