"""Masked prediction of units (Hsu et al. 2021, section II)."""

import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Generator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from hubert_jax import config as config_lib
from hubert_jax import storage
from hubert_jax.config import MayChange, Reads
from hubert_jax.data import batches, label_sets, manifests, schedule
from hubert_jax.data.buckets import BUCKETS
from hubert_jax.data.schedule import Bucket
from hubert_jax.distributed import DistributedConfig
from hubert_jax.errors import InputError
from hubert_jax.frames import SAMPLE_RATE, num_samples
from hubert_jax.model.architecture import Architecture, Execution, Head, Regularization
from hubert_jax.model.hubert import HubertForPretraining
from hubert_jax.model.kernels import choice
from hubert_jax.model.loss import masked_prediction_loss
from hubert_jax.model.masking import span_mask
from hubert_jax.networks.sharding_rules import SHARDING_RULES
from hubert_jax.tasks.held_out import HeldOut, ValidationConfig
from hubert_jax.training import optimizer, sharding
from hubert_jax.training.fit import LoopConfig, require_run
from hubert_jax.training.optimizer import OptimizerConfig
from hubert_jax.training.sharding import MeshConfig
from hubert_jax.training.task import AdditiveLoss, Batch, Task, Validation
from hubert_jax.unit_classes import FAIRSEQ_SPECIALS, Units

VERSION = 2  # raise it when the same configuration and inputs give other weights


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
            ("feature_penalty", self.feature_penalty >= 0, "at least 0"),
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
    row_multiple: int = 1  # of a batch's rows, where it has as many; released: the devices
    max_frames: int = 768  # of a crop
    micro_batches: MayChange[int] = 1  # that a batch is computed in; 0: as few as fit the device
    skip_damaged: MayChange[bool] = False  # a damaged shard is named and its sound records read
    init_from: Reads[str] = ""  # orbax:DIR, hf:DIR, fairseq:FILE or torchaudio:FILE; or scratch
    keep_head: bool = False  # of init_from: the labels are of its codebook, if it names none
    validation_audio: Reads[str] = ""  # a held-out split; empty: no validation
    validation_labels: Reads[tuple[str, ...]] = ()  # its label sets, by the codebooks of `labels`
    validation: ValidationConfig = ValidationConfig()
    seed: int = 1337  # of weights, data order, crops, masks and dropout

    def __post_init__(self) -> None:
        require_run(self.seed, self.micro_batches, self.row_multiple)
        self.execution.require_dropout(self.regularization)
        codebooks = len(self.head.codebook_sizes)
        self.validation.require_meant(self.validation_audio, _figures(codebooks))
        if self.max_frames < 1:
            raise InputError(f"config.max_frames={self.max_frames}: expected 1 or more")
        rows = self.frames_per_step // min(self.max_frames, BUCKETS[0])  # at most
        if self.loss.mask_group_rows > rows:
            raise _no_whole_group(self.loss, rows)
        if self.loss.mask_span >= self.max_frames:
            raise InputError(
                f"config.loss.mask_span={self.loss.mask_span}: expected less than "
                f"config.max_frames={self.max_frames}"
            )
        if self.validation_labels and not self.validation_audio:
            raise InputError("config.validation_labels: found without config.validation_audio")
        if self.keep_head and not self.init_from:
            raise InputError(
                "config.keep_head=True: there is no config.init_from whose head it could keep"
            )

    def buckets(self, audio: manifests.AudioManifest, shards: int) -> list[Bucket]:
        """The buckets of a run whose rows are divided over `shards` devices.

        Raises InputError if no utterance is long enough, no row or group fits, or no span has room.
        """
        rows = (self.frames_per_step, self.max_frames, shards, self.row_multiple)
        found = schedule.crop_buckets(audio, *rows)
        fewest = min(bucket.rows for bucket in found)
        if self.loss.mask_group_rows > fewest:
            raise _no_whole_group(self.loss, fewest)
        shortest = min(bucket.batch_frames for bucket in found)
        if self.loss.mask_span >= shortest:
            raise InputError(
                f"config.loss.mask_span={self.loss.mask_span}: expected less than {shortest}, the "
                "frames of the shortest crop; lower it or raise config.max_frames"
            )
        return found

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
    held_out: HeldOut | None = None
    held_out_labels: tuple[batches.LabelSet, ...] = ()


def read(config: TrainConfig) -> Data:
    """The data of a run, from manifests and indices; InputError for what does not fit.

    Labels have to fit audio and head, a held-out split's those of training.
    """
    audio = manifests.read_manifest(config.audio)
    sets = _label_sets(config, audio, config.labels, "config.labels")
    units = Units.numbered(
        config.head.codebook_sizes,
        [labels.manifest.num_classes for labels in sets],
        rate_hz=float(sets[0].manifest.rate_hz),
        codebook_digests=tuple(labels.manifest.codebook_digest for labels in sets),
    )
    if not config.validation_audio:
        return Data(audio, sets, units)
    held_out = HeldOut.read(config.validation_audio, config.audio, audio)
    key = "config.validation_labels"
    theirs = _label_sets(config, held_out.audio, config.validation_labels, key)
    for mine, other in zip(theirs, sets, strict=True):
        found, expected = (each.manifest.codebook_digest for each in (mine, other))
        if found != expected:
            raise InputError(
                f"{key}: {mine.directory}: found units of the codebook {found[:12]}, expected "
                f"{expected[:12]}, as in {other.directory}; label both splits by one codebook"
            )
    return Data(audio, sets, units, held_out, theirs)


def task(config: TrainConfig, data: Data, mesh: Mesh) -> Task:
    """Pre-training as `fit` takes it; InputError as of `TrainConfig.buckets`."""
    buckets = config.buckets(data.audio, sharding.batch_shards(mesh))
    plan = schedule.BucketSchedule(buckets, config.seed)
    network = _network(config, mesh)

    def read_batches(first_step: int) -> Generator[dict[str, np.ndarray]]:
        return batches.pretraining_batches(
            storage.path(config.audio),
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

    return Task(
        kind="pretraining",
        init=init(config.architecture, config.head),
        loss=loss_function(network, config.loss),
        optimizer=optimizer.build(config.optimizer, config.loop.steps),
        learning_rate=optimizer.learning_rate(config.optimizer, config.loop.steps),
        batch_shapes=tuple(_shapes(bucket, len(data.label_sets)) for bucket in buckets),
        batches=read_batches,
        sharding_rules=SHARDING_RULES,
        audio_seconds=lambda batch: batch["waveform"].size / SAMPLE_RATE,
        validation=_validation(config, data, data.held_out, mesh) if data.held_out else None,
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


@functools.cache
def init(architecture: Architecture, head: Head) -> Callable[[jax.Array], dict]:
    """key -> fresh parameters of the network with its pre-training head."""
    network = HubertForPretraining(architecture, head, choice.choose(Execution(), architecture))
    silence = jnp.zeros((1, num_samples(2)))  # shapes of parameters do not depend on its length
    return lambda key: network.init(key, silence)["params"]


def loss_function(network: HubertForPretraining, loss: LossConfig) -> AdditiveLoss:
    """(params, batch, key, step) -> (loss, metrics) on crops of equal length.

    The batch holds `waveform` (B, N) float32 and, a codebook each, `labels_0`, `labels_1`, ...
    (B, T) int32. Masks are drawn in whole groups of rows, of which the last may go beyond B.
    """

    def prepare(batch: Batch, key: jax.Array) -> Batch:
        mask_key, _ = jax.random.split(key)
        rows, frames = batch["labels_0"].shape
        spans = (frames, loss.mask_probability, loss.mask_span, loss.mask_group_rows)
        mask = span_mask(mask_key, rows + -rows % loss.mask_group_rows, *spans)[:rows]
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


def _evaluation(network: HubertForPretraining, loss: LossConfig, seed: int) -> Callable:
    """(params, batch) -> sums over the masked frames of a batch of `OnePass`, without dropout.

    An utterance's mask is a function of the seed and its number in the split; it is not trimmed to
    others' as in training.
    """

    def evaluate(params: dict, batch: Batch) -> dict[str, jax.Array]:
        labels = [batch[f"labels_{i}"] for i in range(len(network.head.codebook_sizes))]
        spans = (labels[0].shape[1], loss.mask_probability, loss.mask_span, 1)

        def mask_of(record: jax.Array) -> jax.Array:
            return span_mask(jax.random.fold_in(jax.random.key(seed), record), 1, *spans)[0]

        mask = jax.vmap(mask_of)(batch["record"]) & (batch["record"] >= 0)[:, None]
        outputs: Any = network.apply({"params": params}, batch["waveform"], mask)
        _, metrics = masked_prediction_loss(
            outputs["logits"], labels, mask, 1.0, outputs["features"], 0.0
        )
        frames = metrics["masked_frames"]
        means = {name: metrics[name] for name in _figures(len(labels))}
        return {"masked_frames": frames, **{name: m * frames for name, m in means.items()}}

    return evaluate


def _figures(codebooks: int) -> dict[str, bool]:
    """What validation gives, and whether larger is better."""
    own = {f"masked_accuracy_{i}": True for i in range(codebooks if codebooks > 1 else 0)}
    return {"masked_loss": False, "masked_accuracy": True, **own}


def _validation(config: TrainConfig, data: Data, held_out: HeldOut, mesh: Mesh) -> Validation:
    sets = data.held_out_labels
    plan = held_out.one_pass(
        mesh,
        config.max_frames,
        config.validation.utterances,
        lambda frames, rows: schedule.crop_buckets(held_out.audio, frames, config.max_frames, rows),
    )

    def read_batches() -> Generator[dict[str, np.ndarray]]:
        return batches.pretraining_batches(
            held_out.directory,
            held_out.audio,
            list(sets),
            plan,
            **held_out.reading(plan, config.seed, config.architecture.normalize_waveform),
        )

    def summarise(found: list[dict[str, np.ndarray]]) -> dict[str, float]:
        totals = {name: math.fsum(sums[name] for sums in found) for name in found[0]}
        frames = max(totals.pop("masked_frames"), 1.0)
        return {name: total / frames for name, total in totals.items()}

    return Validation(
        batch_shapes=tuple(
            _shapes(bucket, len(sets)) | {"record": jax.ShapeDtypeStruct((bucket.rows,), jnp.int32)}
            for bucket in plan.buckets
        ),
        batches=read_batches,
        evaluate=_evaluation(_network(config, mesh), config.loss, config.seed),
        summarise=summarise,
        facts={
            "audio": held_out.audio.digest,
            "labels": [labels.manifest.digest for labels in sets],
            "utterances": config.validation.utterances,
        },
        **config.validation.chosen(config.loop.save_every, _figures(len(sets))),
    )


def _shapes(bucket: schedule.Bucket, codebooks: int) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of crops with their labels."""
    labels = jax.ShapeDtypeStruct((bucket.rows, bucket.batch_frames), jnp.int32)
    waveform = (bucket.rows, num_samples(bucket.batch_frames))
    return {
        "waveform": jax.ShapeDtypeStruct(waveform, jnp.float32),
        **{f"labels_{i}": labels for i in range(codebooks)},
    }


def _label_sets(
    config: TrainConfig, audio: manifests.AudioManifest, directories: tuple[str, ...], key: str
) -> tuple[batches.LabelSet, ...]:
    sizes = config.head.codebook_sizes
    found = label_sets.read_label_sets(audio, directories, sizes, config.specials, key)
    return tuple(
        batches.LabelSet(storage.path(directory), manifest, size - manifest.num_classes)
        for directory, manifest, size in zip(directories, found, sizes, strict=True)
    )


def _network(config: TrainConfig, mesh: Mesh) -> HubertForPretraining:
    where = sharding.attention_sharding(mesh)
    kernels = choice.choose(config.execution, config.architecture, config.regularization, where)
    return HubertForPretraining(config.architecture, config.head, kernels, config.regularization)


def _no_whole_group(loss: LossConfig, rows: int) -> InputError:
    return InputError(
        f"config.loss.mask_group_rows={loss.mask_group_rows}: found batches of {rows} rows, "
        "expected one whole group; lower it or raise config.frames_per_step"
    )


def _without_shards(manifest: manifests.LabelManifest) -> dict[str, Any]:
    """What checkpoints say of a label set: not its shards, of which it may have 100,000."""
    values = dataclasses.asdict(dataclasses.replace(manifest, shards=()))
    del values["shards"]
    return values


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)
