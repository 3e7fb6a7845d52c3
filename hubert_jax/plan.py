"""What a pre-training would need on machines that are not here: memory, traffic, time, chip-hours.

Takes the configuration of the train job and compiles its very step for a described topology, such
as --config.plan.topology=v5p:4x4x8 (`pip install -e '.[tpu]'` brings the compiler; no TPU is
needed). The audio may be missing: all crops have config.max_frames then. Prints and writes
WORKDIR/plan/result.json and plan.csv: bytes of a device, what devices send each other, and from the
chip's published figures how long a step takes at best. With --config.plan.sweep=True several meshes
are tried, with and without rematerialisation. Fails where nothing fits.
"""

import dataclasses
import os
import time
from typing import TYPE_CHECKING, Any

from hubert_jax import config as config_lib
from hubert_jax import files, job, storage
from hubert_jax.config import MayChange
from hubert_jax.errors import InputError
from hubert_jax.model.architecture import REMATERIALIZE
from hubert_jax.tasks.pretraining import TrainConfig
from hubert_jax.training.sharding import MeshConfig

if TYPE_CHECKING:
    from hubert_jax.planning.pretraining import Estimate

VERSION = 1  # raise it when the same configuration and inputs give another output
_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class PlanOptions:
    """What is planned for."""

    topology: str = "v5e:16x16"  # kind and shape of TPUs, or nodes of eight GPUs such as h100:4
    gpu_target: str = ""  # XLA's description of a GPU, of its xla/backends/gpu/target_config/specs
    sweep: bool = False  # tries meshes, with and without rematerialisation, not config.mesh alone
    effort: str = "O1"  # of the compiler; O2 is what training has, and takes several times as long

    def __post_init__(self) -> None:
        known = ("O0", "O1", "O2", "O3")
        if self.effort not in known:
            raise InputError(f"config.plan.effort={self.effort!r}: expected one of {known}")


@dataclasses.dataclass(frozen=True)
class PlanConfig(TrainConfig):
    """Configuration of a pre-training, and what is planned for."""

    plan: MayChange[PlanOptions] = PlanOptions()


def run(config: PlanConfig) -> dict:
    """Returns the content of `WORKDIR/plan/result.json`; InputError where nothing fits."""
    started = time.monotonic()
    workdir = files.require_writable(config.workdir)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # what is planned for is not here
    import jax

    from hubert_jax.planning import chips, pretraining

    jax.config.update("jax_optimization_level", config.plan.effort)
    if not storage.path(config.audio, "manifest.json").exists():
        print(f"config.audio={config.audio}: no prepared split there; crops of config.max_frames")
    topology = chips.described(config.plan.topology, config.plan.gpu_target)
    peak = topology.chip.flops
    tried = [(config.mesh, config.execution.rematerialize)]
    if config.plan.sweep:
        meshes = pretraining.meshes(len(topology.devices))
        if config.mesh not in (MeshConfig(), *meshes):
            meshes.insert(0, config.mesh)
        tried = [(mesh, again) for mesh in meshes for again in REMATERIALIZE]
    found: list[Estimate] = []
    for mesh, again in tried:
        execution = dataclasses.replace(config.execution, rematerialize=again)
        asked = dataclasses.replace(config, mesh=mesh, execution=execution)
        found.append(pretraining.estimate(asked, topology))
        for line in _described(found[-1], peak):
            print(line, flush=True)
    best = pretraining.require_fitting(found, topology)
    rows = [_row(config, topology.name, each, peak) for each in found]
    files.write_table(storage.path(workdir, "plan", "plan.csv"), rows)
    steps = config.loop.steps
    hours = steps * best.seconds / 3600
    print(
        f"{topology.name}: {_mesh(best)}{_again(best)}, "
        f"config.micro_batches={1 if best.micro_batches == 1 else 0}: at best {_few(hours)} hours "
        f"for {steps:,} steps, {_few(hours * best.devices)} chip-hours"
    )
    result = dict(
        topology=topology.name,
        chip=dataclasses.asdict(topology.chip),
        tried=[config_lib.to_dict(each) | dict(seconds=each.seconds) for each in found],
        best=rows[found.index(best)],
    )
    return job.finish(config.workdir, "plan", result, started)


def _described(each: "Estimate", peak: float) -> list[str]:
    parts = f" in {each.micro_batches} micro-batch(es)" if each.fits else ""
    lines = [
        f"{each.devices} devices, {_mesh(each)}{_again(each)}; {each.rows} rows of {each.frames} "
        f"frames{parts}; attention by {each.attention}; compiled in {each.compiled_seconds:.0f} s",
        f"  {each.needed / _GIB:.2f} of {each.available / _GIB:.2f} GiB a device: parameters "
        f"{each.parameters / _GIB:.2f}, optimiser {each.optimizer / _GIB:.2f}, while the step runs "
        f"{each.activations / _GIB:.2f}{'' if each.fits else '; does not fit'}",
    ]
    if not each.fits:
        return lines
    for exchange in each.collectives:
        lines.append(
            f"  {exchange.kind} over {' x '.join(exchange.axes)}: {exchange.count} of "
            f"{exchange.bytes / 1e6:,.1f} MB in all, the largest {exchange.largest / 1e6:,.1f} MB"
        )
    lines.append(
        f"  at best {each.seconds * 1e3:,.1f} ms a step, bound by {each.bound}: compute "
        f"{each.compute_seconds * 1e3:,.1f} ({each.flops / 1e12:,.2f} TFLOP), memory "
        f"{each.memory_seconds * 1e3:,.1f} ({each.memory_bytes / 1e9:,.1f} GB), network "
        f"{each.network_seconds * 1e3:,.1f}; {each.audio_rate:,.0f} audio-s/s a chip, "
        f"{each.utilisation(peak):.0%} of the peak"
    )
    return lines


def _few(number: float) -> str:
    """With three digits, of small numbers."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _again(each: "Estimate") -> str:
    what = each.rematerialize
    return "" if what == "nothing" else f", {what.replace('_', ' ')} rematerialised"


def _mesh(each: "Estimate") -> str:
    return " x ".join(f"{name} {size}" for name, size in each.mesh.items() if size > 1) or "one"


def _row(config: PlanConfig, topology: str, each: "Estimate", peak: float) -> dict[str, Any]:
    hours = config.loop.steps * each.seconds / 3600
    fits = each.fits
    return dict(
        topology=topology,
        **each.mesh,
        rematerialize=each.rematerialize,
        micro_batches=each.micro_batches,
        rows=each.rows,
        frames=each.frames,
        fits=fits,
        needed_gib=round(each.needed / _GIB, 3),
        available_gib=round(each.available / _GIB, 3),
        parameters_gib=round(each.parameters / _GIB, 3),
        optimizer_gib=round(each.optimizer / _GIB, 3),
        tflop=round(each.flops / 1e12, 4),
        memory_gb=round(each.memory_bytes / 1e9, 2),
        sent_gb=round(sum(exchange.sent for exchange in each.collectives) / 1e9, 4),
        compute_ms=round(each.compute_seconds * 1e3, 2),
        memory_ms=round(each.memory_seconds * 1e3, 2),
        network_ms=round(each.network_seconds * 1e3, 2),
        step_ms=round(each.seconds * 1e3, 2) if fits else None,
        bound=each.bound if fits else None,
        audio_rate=round(each.audio_rate, 1) if fits else None,
        utilisation=round(each.utilisation(peak), 4) if fits else None,
        hours=round(hours, 1) if fits else None,
        chip_hours=round(hours * each.devices) if fits else None,
    )


if __name__ == "__main__":
    job.main("plan", PlanConfig, run, part="train", computes=False)
