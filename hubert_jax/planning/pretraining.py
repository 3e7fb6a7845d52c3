"""A step of pre-training on machines that are not here: compiled as `fit` does, and read."""

import dataclasses
import math
import re
import time
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from hubert_jax import storage
from hubert_jax.data import batches, manifests
from hubert_jax.data.buckets import BUCKETS
from hubert_jax.errors import InputError
from hubert_jax.frames import HOP, SAMPLE_RATE, num_samples
from hubert_jax.model.kernels import choice
from hubert_jax.planning import flops, program
from hubert_jax.planning.chips import Topology
from hubert_jax.tasks import pretraining
from hubert_jax.tasks.pretraining import TrainConfig
from hubert_jax.training import sharding, step
from hubert_jax.training.sharding import MeshConfig
from hubert_jax.training.state import TrainState, abstract_state
from hubert_jax.training.task import Task
from hubert_jax.unit_classes import Units

_USED = re.compile(r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What an update costs a device, and how long it takes at best; bytes and seconds.

    Products and traffic of memory overlap, what devices send each other does not.
    """

    devices: int
    mesh: dict[str, int]
    rematerialize: str
    attention: str
    micro_batches: int  # 0: no number of them fits
    rows: int  # of the longest bucket, over all devices
    frames: int  # of its crops
    parameters: int  # bytes of a device, as all of the following
    optimizer: int
    activations: int  # and whatever else the program needs for a while
    needed: float  # in all, batches that wait included
    available: float
    model_flops: float  # of the formulas, without rematerialisation
    flops: float  # with it
    memory_bytes: float  # read and written
    collectives: tuple[program.Collective, ...]
    compute_seconds: float
    memory_seconds: float
    network_seconds: float
    compiled_seconds: float

    @property
    def fits(self) -> bool:
        """Whether a device has room for it."""
        return self.needed <= self.available

    @property
    def seconds(self) -> float:
        """Of an update, at best."""
        return max(self.compute_seconds, self.memory_seconds) + self.network_seconds

    @property
    def bound(self) -> str:
        """What takes longest."""
        parts = {
            "compute": self.compute_seconds,
            "memory": self.memory_seconds,
            "network": self.network_seconds,
        }
        return max(parts, key=lambda name: parts[name])

    @property
    def audio_rate(self) -> float:
        """Seconds of audio that a device trains on in a second, at best."""
        return self.rows * self.frames * HOP / SAMPLE_RATE / self.devices / self.seconds

    def utilisation(self, peak: float) -> float:
        """The formulas' operations over those that `peak` a second would allow."""
        return self.model_flops / (self.seconds * peak)


def estimate(config: TrainConfig, topology: Topology) -> Estimate:
    """Of the longest bucket of `config.audio`, or of crops of `max_frames` where it is not there.

    Other buckets have fewer frames a row and about as many in all. Micro-batches are as few as fit,
    or `config.micro_batches` if that is 2 or more. Raises InputError for meshes and batches that do
    not fit together, and for a step that does not compile.
    """
    chip, devices = topology.chip, len(topology.devices)
    execution = dataclasses.replace(config.execution, platform=chip.platform)
    config = dataclasses.replace(config, execution=execution)
    mesh = sharding.make_mesh(config.mesh, topology.devices)
    attention, task = _longest(config, mesh)
    (shapes,) = task.batch_shapes
    rows, samples = shapes["waveform"].shape
    frames = samples // HOP
    wanted = config.micro_batches if config.micro_batches > 1 else 0
    counts = task.micro_batch_counts(wanted, sharding.batch_shards(mesh))
    state = abstract_state(task, mesh)
    started = time.monotonic()
    available = chip.memory * step.USABLE
    count, needed, compiled = _compiled(task, mesh, state, config.seed, counts, available)
    seconds = time.monotonic() - started
    of_crop = flops.of_crop(config.architecture, config.head, frames)
    model = rows * of_crop.step / devices
    again = {"attention": of_crop.attention, "everything": of_crop.layers}
    again["all_but_dots"] = of_crop.attention
    done = model + rows * again.get(config.execution.rematerialize, 0.0) / devices
    found = program.Traffic(0.0, ())
    activations = 0
    if compiled is not None:
        found = program.traffic(compiled.as_text() or "", mesh.shape)
        account: Any = compiled.memory_analysis()
        activations = account.temp_size_in_bytes
    network_seconds = sum(
        chip.seconds_of(each.sent, each.group, each.together(mesh.shape, chip.node), devices)
        for each in found.collectives
    )
    return Estimate(
        devices=devices,
        mesh=dict(mesh.shape),
        rematerialize=config.execution.rematerialize,
        attention=attention,
        micro_batches=count,
        rows=rows,
        frames=frames,
        parameters=_bytes_of_a_device(state.params),
        optimizer=_bytes_of_a_device(state.opt_state),
        activations=activations,
        needed=needed,
        available=available,
        model_flops=model,
        flops=done,
        memory_bytes=found.memory,
        collectives=found.collectives,
        compute_seconds=done / chip.flops,
        memory_seconds=found.memory / chip.bandwidth,
        network_seconds=network_seconds,
        compiled_seconds=seconds,
    )


def meshes(devices: int) -> list[MeshConfig]:
    """Those worth trying: the state whole on every device, cut over eight of them, over all."""
    sizes = [size for size in (1, 8, devices) if devices % size == 0]
    return [MeshConfig(fsdp=size) for size in dict.fromkeys(sizes)]


def require_fitting(found: list[Estimate], topology: Topology) -> Estimate:
    """The fastest of those that fit; InputError where none does."""
    fitting = [each for each in found if each.fits]
    if fitting:
        return min(fitting, key=lambda each: each.seconds)
    least = min(found, key=lambda each: each.needed)
    raise InputError(
        f"config.plan.topology={topology.name}: nothing that was tried fits; the least needs "
        f"{least.needed / 2**30:.1f} of {least.available / 2**30:.1f} GiB a device; use more "
        "devices, config.mesh.fsdp, config.execution.rematerialize, or fewer frames_per_step"
    )


def _longest(config: TrainConfig, mesh: Mesh) -> tuple[str, Task]:
    """The attention's back-end, and the task as training has it, of its longest bucket alone."""
    data = _data(config)
    task = pretraining.task(config, data, mesh)
    longest = max(task.batch_shapes, key=lambda shapes: shapes["waveform"].shape[1])
    frames = str(longest["waveform"].shape[1] // HOP)
    rows = {frames: longest["waveform"].shape[0]}
    task = dataclasses.replace(task, batch_shapes=(longest,), facts={**task.facts, "rows": rows})
    where = sharding.attention_sharding(mesh)
    kernels = choice.choose(config.execution, config.architecture, config.regularization, where)
    return f"{kernels.attention_backend} ({kernels.attention_reason})", task


def _data(config: TrainConfig) -> pretraining.Data:
    """The split that is there, or one of a single bucket; with labels that are not read."""
    if storage.path(config.audio, "manifest.json").exists():
        audio = manifests.read_manifest(config.audio)
    else:
        # The bucket whose crops have max_frames, or as many as there can be.
        frames = next((each for each in BUCKETS if each >= config.max_frames), BUCKETS[-1])
        shard = manifests.ShardInfo("", frames, 1, num_samples(frames), "")
        seconds = shard.samples / SAMPLE_RATE
        audio = manifests.AudioManifest("", SAMPLE_RATE, 1, seconds, 0, 0, 0, "", (shard,))
    sizes = config.head.codebook_sizes
    sets = tuple(
        batches.LabelSet(
            storage.path(),
            manifests.LabelManifest("", "", 50, size, {}, "", 1, 0, (0,) * size, "", ()),
        )
        for size in sizes
    )
    return pretraining.Data(audio, sets, Units.numbered(sizes, sizes, rate_hz=50.0))


def _compiled(
    task: Task,
    mesh: Mesh,
    state: TrainState,
    seed: int,
    counts: Sequence[int],
    available: float,
) -> tuple[int, float, jax.stages.Compiled | None]:
    """The first of the `counts` of micro-batches that fits, the bytes it needs, and its program.

    0 and None where none fits; the bytes are those of the last one then.
    """
    (shapes,) = task.batch_shapes
    count = counts[0]
    while True:
        try:
            (program_of,) = step.compile_steps(task, mesh, state, seed, (count,)).values()
            needed = step.needed_memory(program_of, shapes, mesh)
        except RuntimeError as error:
            if "cuDNN not found" in str(error):
                raise InputError(
                    "config.plan.topology: cuDNN is not installed, which compiling for GPUs needs; "
                    "`pip install -e '.[cuda]'` brings it"
                ) from None
            used = _USED.search(str(error))  # TPU's compiler counts by itself
            if used is None:
                told = " ".join(str(error).split())[:300]
                raise InputError(
                    f"config.plan.topology: the step does not compile ({told})"
                ) from None
            needed = max(float(used.group(1)) * _UNITS[used.group(2)], 1.01 * available)
        if needed <= available:
            return count, needed, program_of
        wanted = count * needed / available  # less than so many cannot be enough
        more = [each for each in counts if each > count]
        if not more:
            return 0, needed, None
        count = next((each for each in more if each >= wanted), more[-1])


def _bytes_of_a_device(tree: Any) -> int:
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
