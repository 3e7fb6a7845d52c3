"""Pre-trains HuBERT by masked prediction of units.

Reads audio shards (prepare) and one or more label sets of the same audio (label); checks that
they fit, then trains over all devices. Writes WORKDIR/train/checkpoints, metrics.jsonl,
tensorboard/ and, at the end, WORKDIR/train/result.json. The same command continues an
interrupted run from its newest checkpoint. On several hosts, started on each of them with
`--config.processes.coordinator`, it is one run; all need the same files under the same paths.
"""

import dataclasses
import pathlib
import sys
import time

from hubert_jax import config as config_lib
from hubert_jax import files, job
from hubert_jax.model.architecture import HubertConfig
from hubert_jax.training.loop import LoopConfig
from hubert_jax.training.optimizer import OptimizerConfig
from hubert_jax.training.pretraining import LossConfig
from hubert_jax.training.processes import ProcessesConfig

# Keys of the configuration that a run may be continued with other values of.
_WITHOUT_EFFECT = (
    "workdir",
    "audio",
    "labels",
    "init_from",
    "mesh",
    "processes",
    "skip_damaged",
)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the mesh; `data` = -1 takes what the others leave."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Configuration of pre-training.

    Attributes:
      workdir: where the run is written.
      audio: directory of a prepared audio split.
      labels: directories of its label sets, one for each of `model.codebooks`.
      model, loss, optimizer, loop, mesh, processes: see there.
      frames_per_step: frames (20 ms) of one update over all devices.
      max_frames: longest crop, in frames.
      skip_damaged: name a shard that is found damaged and put records from before the damage in the
        place of damaged ones; otherwise it ends the run.
      init_from: network that this run starts from: hf:DIR, fairseq:FILE, torchaudio:FILE, or
        orbax:DIR (checkpoints of another run); its head is kept where it predicts the same
        codebooks; empty: from scratch.
      seed: of weights, data order, crops, masks and dropout.
    """

    workdir: str
    audio: str
    labels: tuple[str, ...]
    loop: LoopConfig
    model: HubertConfig = HubertConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    processes: ProcessesConfig = ProcessesConfig()
    frames_per_step: int = 140_000
    max_frames: int = 768
    skip_damaged: bool = False
    init_from: str = ""
    seed: int = 1337


def run(config: TrainConfig) -> dict:
    """Trains; returns the content of `WORKDIR/train/result.json`.

    Order of resume: the run's own checkpoint, then `init_from`, then scratch.

    Raises:
      InputError: inputs that do not fit together, before anything expensive starts.
    """
    started = time.monotonic()
    workdir = files.require_writable(config.workdir)
    directory = pathlib.Path(workdir) / "train"
    from hubert_jax.data import manifests
    from hubert_jax.data.label_sets import read_label_sets

    manifest = manifests.read_manifest(config.audio)
    label_manifests = read_label_sets(manifest, config.labels, config.model.codebooks)

    import jax

    from hubert_jax.data import batches, schedule
    from hubert_jax.model.transformer import attention_backend
    from hubert_jax.training import optimizer as optimizer_lib
    from hubert_jax.training import processes, sharding, state
    from hubert_jax.training.checkpoint import identity
    from hubert_jax.training.loop import run_digest, run_loop
    from hubert_jax.training.pretraining import init_pretraining, pretraining_loss, train_step

    processes.join(config.processes)
    mesh = sharding.make_mesh(**dataclasses.asdict(config.mesh))
    cut = mesh.shape["data"] * mesh.shape["fsdp"]
    buckets = schedule.crop_buckets(manifest, config.frames_per_step, config.max_frames, cut)
    plan = schedule.BucketSchedule(buckets, config.seed)
    optimizer = optimizer_lib.build(config.optimizer, config.loop.steps)
    inputs = {
        "audio": manifest.digest,
        "labels": [label_manifest.digest for label_manifest in label_manifests],
        "train": run_digest(config, _WITHOUT_EFFECT),
    }
    start = None
    if config.init_from:
        from hubert_jax.convert import continuing

        digests = tuple(label_manifest.codebook_digest for label_manifest in label_manifests)
        start = continuing.for_pretraining(config.init_from, config.model, digests)
        inputs["init_from"] = start.identity

    init = init_pretraining(config.model)
    abstract = state.abstract_state(init, optimizer, mesh)

    def new_state():
        created = state.create_state(init, optimizer, mesh, config.seed)
        if start is None:
            return created
        processes.announce(start.description)
        return state.with_parameters(created, start.params)

    update = train_step(pretraining_loss(config.model, config.loss), optimizer, config.seed)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(abstract.params))
    without_head = sum(leaf.size for leaf in jax.tree.leaves(abstract.params["hubert"]))
    crops = sorted({(b.batch_frames, b.rows) for b in buckets})
    processes.announce(
        f"{parameters:,} parameters ({without_head:,} without the head); "
        f"{manifest.seconds / 3600:.2f} h of audio; batches of "
        + ", ".join(f"{rows} x {frames}" for frames, rows in crops)
        + " frames"
        + f"; {jax.device_count()} {jax.default_backend()} device(s); "
        f"attention by {attention_backend(config.model, deterministic=False)}"
    )
    label_sets = [
        batches.LabelSet(pathlib.Path(path), label_manifest)
        for path, label_manifest in zip(config.labels, label_manifests, strict=True)
    ]
    metadata = {
        "kind": "pretraining",
        "model": config_lib.to_dict(config.model),
        "inputs": inputs,
        "config": config_lib.to_dict(config),
        "labels": [_described(label_manifest) for label_manifest in label_manifests],
    }
    outcome = run_loop(
        config.loop,
        directory,
        metadata,
        mesh,
        new_state,
        abstract,
        lambda step: update,
        lambda first_step: batches.pretraining_batches(
            pathlib.Path(config.audio),
            manifest,
            label_sets,
            plan,
            seed=config.seed,
            first_step=first_step,
            last_step=config.loop.steps,
            normalize_waveform=config.model.normalize_waveform,
            host=batches.Host(jax.process_index(), jax.process_count()),
            on_damage=_warn if config.skip_damaged else None,
        ),
    )
    counts = label_manifests[0].class_counts
    result = {
        "steps": config.loop.steps,
        "parameters": parameters,
        "checkpoint": str(directory / "checkpoints"),
        "checkpoint_identity": identity({**metadata, "step": config.loop.steps}),
        "commonest_unit_share": max(counts) / sum(counts),
        "audio_seconds": manifest.seconds,
        **dataclasses.asdict(outcome),
        "inputs": inputs,
    }
    return job.finish(config.workdir, "train", result, started, write=processes.is_first())


def _described(manifest) -> dict:
    """What checkpoints say of a label set: not its shards, of which it may have 100,000."""
    values = dataclasses.asdict(dataclasses.replace(manifest, shards=()))
    return {name: value for name, value in values.items() if name != "shards"}


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    job.main("train", TrainConfig, run)
