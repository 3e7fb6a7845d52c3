"""CTC fine-tuning on transcribed speech (Hsu et al. 2021, section IV-D)."""

import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Generator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from hubert_jax import config as config_lib
from hubert_jax import distributed, files, storage
from hubert_jax.asr.error_rates import character_error_rate, word_error_rate
from hubert_jax.asr.vocabularies import VocabularyConfig
from hubert_jax.config import MayChange, Reads
from hubert_jax.data import batches, manifests, schedule
from hubert_jax.data.index import read_index
from hubert_jax.data.joined import JoinedManifest
from hubert_jax.data.reading import RecordReader
from hubert_jax.distributed import DistributedConfig
from hubert_jax.errors import InputError
from hubert_jax.frames import HOP, SAMPLE_RATE, num_frames, num_samples
from hubert_jax.model.adapters import NO_ADAPTERS, Adapters
from hubert_jax.model.architecture import Architecture, Execution, Regularization
from hubert_jax.model.ctc import ctc_loss, is_feasible
from hubert_jax.model.hubert import HubertForCTC
from hubert_jax.model.kernels import choice
from hubert_jax.model.masking import span_mask
from hubert_jax.networks.sharding_rules import SHARDING_RULES
from hubert_jax.tasks import transcripts
from hubert_jax.tasks.held_out import HeldOut, ValidationConfig
from hubert_jax.training import optimizer, sharding
from hubert_jax.training.fit import LoopConfig, require_run
from hubert_jax.training.optimizer import OptimizerConfig
from hubert_jax.training.sharding import MeshConfig
from hubert_jax.training.task import AdditiveLoss, Batch, Task, Validation
from hubert_jax.vocabulary import Vocabulary

VERSION = 3  # raise it when the same configuration and inputs give other weights
# What validation gives, and whether larger is better.
_FIGURES = {"wer": False, "cer": False, "loss": False}


@dataclasses.dataclass(frozen=True)
class CTCConfig:
    """What fine-tuning does to the network; the defaults are wav2vec 2.0's for 10 h."""

    freeze_steps: int = 10_000  # first steps, of the linear layer alone; none from scratch
    time_mask_probability: float = 0.75
    time_mask_span: int = 10  # frames
    channel_mask_probability: float = 0.5  # of channels, for whole utterances
    channel_mask_span: int = 64
    final_dropout: float = 0.0  # before the linear layer
    head_learning_rate_scale: float = 1.0  # over the network's; above 1 shortens CTC's plateau

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            fits, expected = value >= 0, "at least 0"
            if name.endswith(("probability", "dropout")):
                fits, expected = 0 <= value < 1, "[0, 1)"
            elif name.endswith("span"):
                fits, expected = value >= 1, "1 or more"
            if not fits:
                raise InputError(f"config.ctc.{name}={value}: expected {expected}")


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """Configuration of fine-tuning; from scratch the front-end, otherwise frozen, learns too."""

    workdir: MayChange[str]
    audio: Reads[str]  # a prepared split with transcripts
    init_from: Reads[str]  # orbax:DIR, hf:DIR, fairseq:FILE or torchaudio:FILE; empty: from scratch
    loop: LoopConfig
    architecture: Architecture = Architecture()
    regularization: Regularization = Regularization()
    execution: MayChange[Execution] = Execution()
    more_audio: Reads[tuple[str, ...]] = ()  # others mixed with it, such as of pseudo_label
    audio_weights: tuple[float, ...] = ()  # how often `audio` and each of the others is drawn
    ctc: CTCConfig = CTCConfig()
    lora: Adapters = Adapters()
    optimizer: OptimizerConfig = OptimizerConfig(
        peak_learning_rate=2e-5,
        epsilon=1e-8,
        weight_decay=0.0,
        clip_norm=0.0,
        schedule="tri_stage",
        warmup_fraction=0.1,
        hold_fraction=0.4,
    )
    mesh: MayChange[MeshConfig] = MeshConfig()
    distributed: MayChange[DistributedConfig] = DistributedConfig()
    frames_per_step: int = 80_000  # padded frames (20 ms) of one update over all devices
    row_multiple: int = 1  # of a batch's rows, where it has as many; released: the devices
    # Utterances are padded to the shortest of these; each length compiles once.
    padded_frames: tuple[int, ...] = (
        *(96, 112, 128, 144, 168, 192, 224, 256, 288, 336, 384, 448),
        *(512, 576, 640, 704, 768, 832, 928, 1040, 1184, 1360, 1568, 1792),
    )
    micro_batches: MayChange[int] = 1  # that a batch is computed in; 0: as few as fit the device
    validation_audio: Reads[str] = ""  # a held-out split, scored where it has transcripts; or none
    validation: ValidationConfig = ValidationConfig()
    vocabulary: VocabularyConfig = VocabularyConfig()
    vocabulary_file: Reads[str] = ""  # a symbol a line, vocab.json or sentencepiece's .model
    seed: int = 1337  # of the linear layer, data order, masks and dropout

    def __post_init__(self) -> None:
        require_run(self.seed, self.micro_batches, self.row_multiple)
        self.execution.require_dropout(self.regularization)
        self.validation.require_meant(self.validation_audio, _FIGURES)
        self.vocabulary.require_meant(self.vocabulary_file, self.init_from)
        weights = self.audio_weights
        if weights and (len(weights) != 1 + len(self.more_audio) or min(weights) <= 0):
            raise InputError(
                f"config.audio_weights={weights}: expected numbers above 0, for config.audio and "
                f"for each of the {len(self.more_audio)} of config.more_audio, or none"
            )
        if self.lora.rank and not self.init_from:
            raise InputError(
                f"config.lora.rank={self.lora.rank}: found without config.init_from; expected a "
                "trained network for adapters to be beside, or 0 to learn from scratch"
            )
        if self.lora.rank > self.architecture.dim:
            raise InputError(
                f"config.lora.rank={self.lora.rank}: expected at most "
                f"config.architecture.dim={self.architecture.dim}"
            )
        if self.lora.rank and self.optimizer.name == "muon":
            raise InputError(
                "config.optimizer.name=muon: found with config.lora.rank, whose network is frozen; "
                "Muon is for the network's matrices: expected adam"
            )
        if self.lora.rank and self.ctc.freeze_steps >= self.loop.steps:
            raise InputError(
                f"config.ctc.freeze_steps={self.ctc.freeze_steps}: expected fewer than "
                f"config.loop.steps={self.loop.steps}, or no adapter of config.lora.rank learns"
            )
        lengths = self.padded_frames
        if list(lengths) != sorted({*lengths}) or min(lengths, default=0) < 1:
            raise InputError(f"config.padded_frames={lengths}: expected lengths that ascend")
        if self.frames_per_step < lengths[0]:
            raise InputError(
                f"config.frames_per_step={self.frames_per_step}: expected at least "
                f"{lengths[0]}, the shortest of config.padded_frames"
            )

    def buckets(self, audio: manifests.AudioManifest, shards: int) -> list[schedule.Bucket]:
        """The buckets of a run whose rows are divided over `shards` devices.

        Raises InputError where no utterance or no row fits.
        """
        rows = (self.frames_per_step, self.padded_frames, shards, self.row_multiple)
        return schedule.padded_buckets(audio, read_index(self.audio, audio), *rows)

    def learnable_seconds(
        self, audio: manifests.AudioManifest, held_out: HeldOut | None, vocabulary: Vocabulary
    ) -> float:
        """Seconds that are learnt from; InputError for a transcript at which a run would stop."""
        splits = {"config.audio": (self.audio, audio)}
        if held_out:
            splits["config.validation_audio"] = (self.validation_audio, held_out.audio)
        return transcripts.check(splits, vocabulary, self.padded_frames)


def read(config: FinetuneConfig) -> tuple[manifests.AudioManifest, HeldOut | None]:
    """The audio of a run and its held-out split, from their manifests and indices.

    Raises InputError where a transcript is missing, of the held-out split all of them, and where
    the splits share utterances.
    """
    splits = (config.audio, *config.more_audio)
    audio, held_out = JoinedManifest.read(splits, config.audio_weights), None
    if isinstance(audio, JoinedManifest):
        for one, other in itertools.combinations(audio.parts, 2):
            if shared := read_index(*one).shared(read_index(*other)):
                raise InputError(
                    f"{other[0]}: {len(shared)} of its {other[1].utterances} utterances are in "
                    f"{one[0]} too, {shared[0]} for one; expected splits without any in common"
                )
    if config.validation_audio:
        held_out = HeldOut.read(config.validation_audio, config.audio, audio)
    if audio.transcribed < audio.utterances:
        raise InputError(
            f"{', '.join(splits)}: {audio.utterances - audio.transcribed} of {audio.utterances} "
            "utterances have no transcript; fine-tune on a transcribed split"
        )
    if held_out is not None and not held_out.audio.transcribed:
        raise InputError(
            f"{config.validation_audio}: none of its {held_out.audio.utterances} utterances has a "
            "transcript; validate on a split that has some"
        )
    return audio, held_out


def task(
    config: FinetuneConfig,
    audio: manifests.AudioManifest,
    held_out: HeldOut | None,
    vocabulary: Vocabulary,
    mesh: Mesh,
) -> Task:
    """Fine-tuning as `fit` takes it.

    Raises InputError as `FinetuneConfig.buckets`.
    """
    padded = config.buckets(audio, sharding.batch_shards(mesh))
    if left_out := audio.utterances - sum(bucket.utterances for bucket in padded):
        distributed.announce(
            f"{left_out} of {audio.utterances} utterances are left out: longer than "
            f"{config.padded_frames[-1]} frames (config.padded_frames)"
        )
    plan = schedule.BucketSchedule(padded, config.seed)
    from_scratch = not config.init_from
    inputs = {"audio": audio.digest}
    if config.vocabulary_file:
        inputs["vocabulary_file"] = files.sha256_file(config.vocabulary_file)
    freeze_steps = 0 if from_scratch else config.ctc.freeze_steps
    if freeze_steps >= config.loop.steps:
        distributed.announce(
            f"all {config.loop.steps} steps train the linear layer alone "
            f"(config.ctc.freeze_steps={freeze_steps})"
        )

    def read_batches(first_step: int) -> Generator[dict[str, np.ndarray]]:
        rows = batches.finetuning_batches(
            storage.path(config.audio),
            audio,
            plan,
            seed=config.seed,
            first_step=first_step,
            last_step=config.loop.steps,
            normalize_waveform=config.architecture.normalize_waveform,
            host=batches.Host(jax.process_index(), jax.process_count()),
        )
        return _with_labels(rows, vocabulary)

    return Task(
        kind="ctc",
        init=init(config.architecture, vocabulary.size, config.lora),
        loss=loss_function(
            network(config, vocabulary.size, mesh),
            config.ctc,
            freeze_steps,
            from_scratch,
            config.lora,
        ),
        frozen=("hubert",) if config.lora.rank else (),
        optimizer=optimizer.build_finetuning(
            config.optimizer,
            config.loop.steps,
            head="ctc_head",
            head_scale=config.ctc.head_learning_rate_scale,
            freeze_steps=freeze_steps,
            train_frontend=from_scratch,
        ),
        learning_rate=optimizer.learning_rate(config.optimizer, config.loop.steps),
        batch_shapes=tuple(
            _shapes(bucket.rows, num_samples(bucket.batch_frames)) for bucket in padded
        ),
        batches=read_batches,
        sharding_rules=SHARDING_RULES,
        audio_seconds=lambda batch: float(batch["num_samples"].sum()) / SAMPLE_RATE,
        validation=_validation(config, held_out, vocabulary, mesh) if held_out else None,
        facts={
            "architecture": config_lib.to_dict(config.architecture),
            "regularization": config_lib.to_dict(config.regularization),
            "vocabulary": vocabulary.to_dict(),
            "data": audio.described(),
            "adapters": config_lib.to_dict(config.lora),
            "inputs": inputs,
            "config": config_lib.decisive(config, complete=True),
            "decisive": config_lib.decisive(config),
            "rows": {str(bucket.batch_frames): bucket.rows for bucket in padded},
            "version": VERSION,
        },
    )


def network(config: FinetuneConfig, classes: int, mesh: Mesh) -> HubertForCTC:
    """The network as it runs on the mesh."""
    where = sharding.attention_sharding(mesh)
    kernels = choice.choose(config.execution, config.architecture, config.regularization, where)
    return HubertForCTC(
        config.architecture, classes, kernels, config.regularization, config.ctc.final_dropout
    )


@functools.cache
def init(
    architecture: Architecture, classes: int, adapters: Adapters = NO_ADAPTERS
) -> Callable[[jax.Array], dict]:
    """key -> fresh parameters of the network, its linear layer over characters and its adapters."""
    network = HubertForCTC(architecture, classes, choice.choose(Execution(), architecture))
    silence = jnp.zeros((1, num_samples(2)))

    def create(key: jax.Array) -> dict:
        return adapters.added(network.init(key, silence)["params"], jax.random.fold_in(key, 1))

    return create


def loss_function(
    network: HubertForCTC,
    ctc: CTCConfig,
    freeze_steps: int,
    train_frontend: bool,
    adapters: Adapters = NO_ADAPTERS,
) -> AdditiveLoss:
    """(params, batch, key, step) -> (loss, metrics) on padded utterances.

    The batch holds `waveform` (B, N) float32, `num_samples` (B,), `labels` (B, L) int32 and
    `label_lengths` (B,), -1 of one that is not learnt from. The loss is per utterance of the global
    batch, as released, 0 for one too short for its transcript. In the first `freeze_steps` steps
    the linear layer alone gets a gradient, the front-end only with `train_frontend`. The parameters
    are as `adapters` describes them.
    """

    def prepare(batch: Batch, key: jax.Array) -> Batch:
        time_key, channel_key, _ = jax.random.split(key, 3)
        rows, padded = batch["waveform"].shape
        label_lengths = jnp.maximum(batch["label_lengths"], 0)
        lengths = num_frames(batch["num_samples"])
        feasible = is_feasible(lengths, batch["labels"], label_lengths)
        counts = {
            "utterances": jnp.maximum(jnp.sum(label_lengths > 0), 1),
            "rows": jnp.maximum(jnp.sum(batch["label_lengths"] != 0), 1),
            "characters": jnp.maximum(jnp.sum(label_lengths * feasible), 1),
        }
        masks = {}
        if ctc.time_mask_probability:
            spans = (ctc.time_mask_probability, ctc.time_mask_span)
            masks["mask"] = span_mask(
                time_key, rows, num_frames(padded), *spans, group_rows=1, lengths=lengths
            )
        if ctc.channel_mask_probability:
            spans = (ctc.channel_mask_probability, ctc.channel_mask_span)
            masks["channel_mask"] = span_mask(
                channel_key, rows, network.architecture.dim, *spans, group_rows=1, least_spans=0
            )
        return {**batch, **counts, **masks}

    def part(
        params: dict, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        *_, dropout_key = jax.random.split(key, 3)
        rngs = {"dropout": dropout_key}

        def encode(params: dict) -> Any:
            names = ("waveform", "num_samples", "mask", "channel_mask")
            inputs = [batch.get(name) for name in names]
            variables = adapters.variables(params)
            return network.apply(
                variables, *inputs, False, not train_frontend, rngs=rngs, method="encode"
            )

        if freeze_steps:  # a branch, so that a frozen network has no backward pass
            encoded = jax.lax.cond(
                step < freeze_steps, lambda p: jax.lax.stop_gradient(encode(p)), encode, params
            )
        else:
            encoded = encode(params)
        logits: Any = network.apply(
            {"params": params}, encoded, False, rngs=rngs, method="classify"
        )
        lengths, label_lengths = num_frames(batch["num_samples"]), batch["label_lengths"]
        left_out, label_lengths = label_lengths < 0, jnp.maximum(label_lengths, 0)
        losses, feasible = ctc_loss(logits, lengths, batch["labels"], label_lengths)
        present = label_lengths > 0
        total = jnp.sum(losses * (feasible & present))
        return total / batch["utterances"], {
            "loss_per_character": total / batch["characters"],
            "infeasible_fraction": jnp.sum(left_out | (present & ~feasible)) / batch["rows"],
            "characters": jnp.sum(label_lengths * feasible),
        }

    return AdditiveLoss(prepare, part)


def _evaluation(network: HubertForCTC, adapters: Adapters) -> Callable:
    """(params, batch) -> `losses` (B,), `classes` (B, T) and what `_error_rates` takes beside them.

    The batch is as of `loss_function`; there is no dropout and no mask.
    """

    def evaluate(params: dict, batch: Batch) -> dict[str, jax.Array]:
        lengths = num_frames(batch["num_samples"])
        variables = adapters.variables(params)
        logits: Any = network.apply(variables, batch["waveform"], batch["num_samples"])
        labels = {name: batch[name] for name in ("labels", "label_lengths")}
        losses, _ = ctc_loss(logits, lengths, **labels)
        return {"losses": losses, "classes": logits.argmax(-1), "lengths": lengths, **labels}

    return evaluate


def _error_rates(batches: list[dict[str, np.ndarray]], vocabulary: Vocabulary) -> dict[str, float]:
    """The loss per utterance, and WER and CER of greedy decoding, of what `_evaluation` gave.

    Rows without labels count for nothing.
    """
    losses, references, hypotheses = [], [], []
    for batch in batches:
        for row in np.flatnonzero(batch["label_lengths"]):
            losses.append(float(batch["losses"][row]))
            spoken = batch["labels"][row, : batch["label_lengths"][row]]
            references.append(vocabulary.decode(spoken))
            heard = vocabulary.collapse(batch["classes"][row, : batch["lengths"][row]])
            hypotheses.append(vocabulary.decode(heard))
    return {
        "loss": math.fsum(losses) / len(losses),
        "wer": word_error_rate(references, hypotheses).rate,
        "cer": character_error_rate(references, hypotheses).rate,
    }


def _validation(
    config: FinetuneConfig, held_out: HeldOut, vocabulary: Vocabulary, mesh: Mesh
) -> Validation:
    padded_frames = config.padded_frames
    plan = held_out.one_pass(
        mesh,
        padded_frames[-1],
        config.validation.utterances,
        lambda frames, rows: schedule.padded_buckets(
            held_out.audio, held_out.index, frames, padded_frames, rows
        ),
        _spelled(held_out, vocabulary),
    )

    def read_batches() -> Generator[dict[str, np.ndarray]]:
        rows = batches.finetuning_batches(
            held_out.directory,
            held_out.audio,
            plan,
            **held_out.reading(plan, config.seed, config.architecture.normalize_waveform),
        )
        return _with_labels(rows, vocabulary, held_out=True)

    return Validation(
        batch_shapes=tuple(
            _shapes(bucket.rows, num_samples(bucket.batch_frames), held_out=True)
            for bucket in plan.buckets
        ),
        batches=read_batches,
        evaluate=_evaluation(network(config, vocabulary.size, mesh), config.lora),
        summarise=lambda found: _error_rates(found, vocabulary),
        facts={"audio": held_out.audio.digest, "utterances": config.validation.utterances},
        **config.validation.chosen(config.loop.save_every, _FIGURES),
    )


def _spelled(held_out: HeldOut, vocabulary: Vocabulary) -> np.ndarray:
    """Which utterances have a transcript of which symbols spell something, (n,) bool."""
    reader = RecordReader(held_out.directory, held_out.audio)
    return np.array([bool(vocabulary.spell(text)[0]) for text in reader.transcripts()])


def _with_labels(
    batches: Generator[dict[str, np.ndarray]], vocabulary: Vocabulary, held_out: bool = False
) -> Generator[dict[str, np.ndarray]]:
    """Replaces `id` and `text` by `labels` (B, L) and `label_lengths` (B,), both int32.

    L is half the padded frames; a transcript longer than that gets length -1, as one of which
    nothing is left. Of `held_out` batches L is the padded frames, and length 0 have only rows that
    count for nothing. Raises InputError, which names the utterance, for what no symbol spells or,
    held out, for a longer transcript.
    """
    with contextlib.closing(batches):
        for batch in batches:
            rows, samples = batch["waveform"].shape
            shapes = _shapes(rows, samples, held_out)
            labels = np.zeros(shapes["labels"].shape, np.int32)
            label_lengths = np.zeros(shapes["label_lengths"].shape, np.int32)
            for row, text in enumerate(batch["text"]):
                if held_out and batch["record"][row] < 0:
                    continue
                name = batch["id"][row].decode()
                encoded = vocabulary.encode(text.decode(), name)
                if 0 < len(encoded) <= labels.shape[1]:
                    labels[row, : len(encoded)] = encoded
                    label_lengths[row] = len(encoded)
                elif not held_out:
                    label_lengths[row] = -1
                elif len(encoded):
                    raise transcripts.too_long(name, len(encoded), labels.shape[1])
            arrays = {name: batch[name] for name in ("waveform", "num_samples")}
            yield {**arrays, "labels": labels, "label_lengths": label_lengths}


def _shapes(rows: int, samples: int, held_out: bool = False) -> dict[str, jax.ShapeDtypeStruct]:
    """A padded batch with its labels."""
    characters = samples // HOP // (1 if held_out else transcripts.FRAMES_PER_CHARACTER)
    return {
        "waveform": jax.ShapeDtypeStruct((rows, samples), jnp.float32),
        "num_samples": jax.ShapeDtypeStruct((rows,), jnp.int32),
        "labels": jax.ShapeDtypeStruct((rows, characters), jnp.int32),
        "label_lengths": jax.ShapeDtypeStruct((rows,), jnp.int32),
    }
