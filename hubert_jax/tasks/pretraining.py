"""Masked prediction of units (Hsu et al. 2021, section II)."""

import dataclasses
import math
import pathlib
import sys
from collections.abc import Callable, Generator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from hubert_jax import config as config_lib
from hubert_jax.config import MayChange, Reads
from hubert_jax.convert.network import FAIRSEQ_SPECIALS, Units
from hubert_jax.data import batches, label_sets, manifests, schedule
from hubert_jax.distributed import DistributedConfig
from hubert_jax.errors import InputError
from hubert_jax.frames import num_samples
from hubert_jax.model.architecture import Architecture, Execution, Head, Regularization
from hubert_jax.model.hubert import HubertForPretraining
from hubert_jax.model.kernels import choice
from hubert_jax.model.loss import masked_prediction_loss
from hubert_jax.model.masking import span_mask
from hubert_jax.training import optimizer, sharding
from hubert_jax.training.fit import LoopConfig, require_seed
from hubert_jax.training.optimizer import OptimizerConfig
from hubert_jax.training.sharding import MeshConfig
from hubert_jax.training.task import AdditiveLoss, Batch, Task

VERSION = 1  # raise it when the same configuration and inputs give other weights


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Masks and loss; the defaults are BASE's as released."""

    mask_probability: float = 0.8  # expected fraction of masked frames before overlaps
    mask_span: int = 10  # frames
    mask_group_rows: int = 5  # trimmed to equally many masked frames; as released, on one GPU
    alpha: tuple[float, ...] = (1.0,)  # weight of the masked frames; the paper's default
    alpha_steps: tuple[int, ...] = (0,)  # where alpha has these values; linear in between
    feature_penalty: float = 10.0  # weight of the mean square of the front-end's output

    def __post_init__(self) -> None:
        if len(self.alpha) != len(self.alpha_steps) or not self.alpha:
            raise InputError(
                f"config.loss: alpha has {len(self.alpha)} values and alpha_steps "
                f"{len(self.alpha_steps)}; expected as many of both, at least one"
            )
        for name, holds, expected in (
            ("alpha", all(0 <= alpha <= 1 for alpha in self.alpha), "values in [0, 1]"),
            ("alpha_steps", list(self.alpha_steps) == sorted(set(self.alpha_steps)), "ascending"),
            ("mask_probability", 0 < self.mask_probability <= 1, "(0, 1]"),
            ("mask_span", self.mask_span >= 1, "1 or more frames"),
            ("mask_group_rows", self.mask_group_rows >= 1, "1 or more"),
        ):
            if not holds:
                found = getattr(self, name)
                raise InputError(f"config.loss.{name}={found}: expected {expected}")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Configuration of pre-training."""

    workdir: MayChange[str]
    audio: Reads[str]  # a prepared split
    labels: Reads[tuple[str, ...]]  # its label sets, one a codebook
    loop: LoopConfig
    architecture: Architecture = Architecture()
    head: Head = Head()
    regularization: Regularization = Regularization()
    execution: MayChange[Execution] = Execution()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MayChange[MeshConfig] = MeshConfig()
    distributed: MayChange[DistributedConfig] = DistributedConfig()
    frames_per_step: int = 140_000  # frames (20 ms) of one update over all devices
    max_frames: int = 768  # of a crop
    micro_batches: MayChange[int] = 1  # that a batch is computed in; 0: as few as fit the device
    skip_damaged: MayChange[bool] = False  # a damaged shard is named and its sound records read
    init_from: Reads[str] = ""  # orbax:DIR, hf:DIR, fairseq:FILE or torchaudio:FILE; or scratch
    keep_head: bool = False  # of init_from: the labels are of its codebook, if it names none
    seed: int = 1337  # of weights, data order, crops, masks and dropout

    def __post_init__(self) -> None:
        require_seed(self.seed)
        if self.keep_head and not self.init_from:
            raise InputError(
                "config.keep_head=True: there is no config.init_from whose head it could keep"
            )

    @property
    def specials(self) -> int:
        """How many classes of the head may come before unit 0: those that fairseq's heads have."""
        return len(FAIRSEQ_SPECIALS) if self.keep_head else 0


@dataclasses.dataclass(frozen=True)
class Data:
    """An audio split and its label sets, as their manifests describe them."""

    audio: manifests.AudioManifest
    label_sets: tuple[batches.LabelSet, ...]
    units: Units  # what the classes of the network stand for


def read(config: TrainConfig) -> Data:
    """The data of a run, from manifests alone; InputError where labels do not fit audio or head."""
    audio = manifests.read_manifest(config.audio)
    sizes = config.head.codebook_sizes
    found = label_sets.read_label_sets(audio, config.labels, sizes, config.specials)
    sets = tuple(
        batches.LabelSet(pathlib.Path(directory), manifest, size - manifest.num_classes)
        for directory, manifest, size in zip(config.labels, found, sizes, strict=True)
    )
    units = Units.numbered(
        sizes,
        [manifest.num_classes for manifest in found],
        rate_hz=float(found[0].rate_hz),
        codebook_digests=tuple(manifest.codebook_digest for manifest in found),
    )
    return Data(audio, sets, units)


def task(config: TrainConfig, data: Data, mesh: Mesh) -> Task:
    """Pre-training as `fit` takes it; InputError if no utterance is long enough or no row fits."""
    multiple = math.lcm(config.loss.mask_group_rows, sharding.batch_shards(mesh))
    buckets = schedule.crop_buckets(data.audio, config.frames_per_step, config.max_frames, multiple)
    plan = schedule.BucketSchedule(buckets, config.seed)
    network = _network(config, mesh)

    def read_batches(first_step: int) -> Generator[dict[str, np.ndarray]]:
        return batches.pretraining_batches(
            pathlib.Path(config.audio),
            data.audio,
            list(data.label_sets),
            plan,
            seed=config.seed,
            first_step=first_step,
            last_step=config.loop.steps,
            normalize_waveform=config.architecture.normalize_waveform,
            host=batches.Host(jax.process_index(), jax.process_count()),
            on_damage=_warn if config.skip_damaged else None,
        )

    def shapes(bucket: schedule.Bucket) -> dict[str, jax.ShapeDtypeStruct]:
        labels = jax.ShapeDtypeStruct((bucket.rows, bucket.batch_frames), jnp.int32)
        waveform = (bucket.rows, num_samples(bucket.batch_frames))
        return {
            "waveform": jax.ShapeDtypeStruct(waveform, jnp.float32),
            **{f"labels_{i}": labels for i in range(len(data.label_sets))},
        }

    return Task(
        kind="pretraining",
        init=init(config.architecture, config.head),
        loss=loss_function(network, config.loss),
        optimizer=optimizer.build(config.optimizer, config.loop.steps),
        learning_rate=optimizer.learning_rate(config.optimizer, config.loop.steps),
        batch_shapes=tuple(map(shapes, buckets)),
        batches=read_batches,
        facts={
            "architecture": config_lib.to_dict(config.architecture),
            "head": config_lib.to_dict(config.head),
            "regularization": config_lib.to_dict(config.regularization),
            "inputs": {
                "audio": data.audio.digest,
                "labels": [labels.manifest.digest for labels in data.label_sets],
            },
            "labels": [_without_shards(labels.manifest) for labels in data.label_sets],
            "config": config_lib.decisive(config, complete=True),
            "decisive": config_lib.decisive(config),
            "rows": {str(bucket.frames): bucket.rows for bucket in buckets},
            "version": VERSION,
        },
    )


def description(config: TrainConfig, data: Data, mesh: Mesh, task: Task) -> str:
    """One line on what is trained, on what, and where."""
    network = _network(config, mesh)
    crops = sorted({shapes["labels_0"].shape for shapes in task.batch_shapes}, key=lambda s: s[1])
    listed = ", ".join(f"{rows} x {frames}" for rows, frames in crops)
    return (
        f"{data.audio.seconds / 3600:.2f} h of audio; batches of {listed} frames; "
        f"{jax.device_count()} {jax.default_backend()} device(s); attention by "
        f"{network.kernels.attention_backend} ({network.kernels.attention_reason})"
    )


def init(architecture: Architecture, head: Head) -> Callable[[jax.Array], dict]:
    """key -> fresh parameters of the network with its pre-training head."""
    network = HubertForPretraining(architecture, head, choice.choose(Execution(), architecture))
    silence = jnp.zeros((1, num_samples(2)))  # shapes of parameters do not depend on its length
    return lambda key: network.init(key, silence)["params"]


def loss_function(network: HubertForPretraining, loss: LossConfig) -> AdditiveLoss:
    """(params, batch, key, step) -> (loss, metrics) on crops of equal length.

    The batch holds `waveform` (B, N) float32 and, a codebook each, `labels_0`, `labels_1`, ...
    (B, T) int32; B is a multiple of `loss.mask_group_rows`.
    """

    def prepare(batch: Batch, key: jax.Array) -> Batch:
        mask_key, _ = jax.random.split(key)
        rows, frames = batch["labels_0"].shape
        mask = span_mask(
            mask_key, rows, frames, loss.mask_probability, loss.mask_span, loss.mask_group_rows
        )
        masked = jnp.asarray(mask, jnp.float32)
        counts = {"masked_frames": masked.sum(), "unmasked_frames": (1.0 - masked).sum()}
        return {**batch, "mask": mask, **counts}

    def part(
        params: dict, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        _, dropout_key = jax.random.split(key)
        mask, counts = batch["mask"], (batch["masked_frames"], batch["unmasked_frames"])
        labels = [batch[f"labels_{i}"] for i in range(len(network.head.codebook_sizes))]
        outputs: Any = network.apply(
            {"params": params}, batch["waveform"], mask, False, rngs={"dropout": dropout_key}
        )
        alpha = jnp.interp(step, jnp.array(loss.alpha_steps), jnp.array(loss.alpha))
        features, penalty = outputs["features"], loss.feature_penalty
        return masked_prediction_loss(
            outputs["logits"], labels, mask, alpha, features, penalty, counts
        )

    return AdditiveLoss(prepare, part)


def _network(config: TrainConfig, mesh: Mesh) -> HubertForPretraining:
    where = sharding.attention_sharding(mesh)
    kernels = choice.choose(config.execution, config.architecture, config.regularization, where)
    return HubertForPretraining(config.architecture, config.head, kernels, config.regularization)


def _without_shards(manifest: manifests.LabelManifest) -> dict[str, Any]:
    """What checkpoints say of a label set: not its shards, of which it may have 100,000."""
    values = dataclasses.asdict(dataclasses.replace(manifest, shards=()))
    del values["shards"]
    return values


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)
