"""A Transformer language model: each token from those before it in its sentence."""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Generator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from hubert_jax import config as config_lib
from hubert_jax import distributed
from hubert_jax.config import MayChange, Reads
from hubert_jax.data.batches import Host
from hubert_jax.data.manifests import AudioManifest, read_manifest
from hubert_jax.data.order import BucketOrder
from hubert_jax.data.schedule import Bucket, BucketSchedule
from hubert_jax.distributed import DistributedConfig
from hubert_jax.errors import InputError
from hubert_jax.language.encoded import Encoded
from hubert_jax.language.text import Text
from hubert_jax.language.tokens import UNITS, UNKNOWN, Tokens
from hubert_jax.model.architecture import Execution, LmArchitecture, Regularization
from hubert_jax.model.kernels import choice
from hubert_jax.model.language_model import LanguageModel
from hubert_jax.networks.sharding_rules import SHARDING_RULES
from hubert_jax.tasks.held_out import HeldOut, ValidationConfig
from hubert_jax.training import optimizer, sharding
from hubert_jax.training.fit import LoopConfig, require_run
from hubert_jax.training.optimizer import OptimizerConfig
from hubert_jax.training.sharding import MeshConfig
from hubert_jax.training.task import AdditiveLoss, Batch, Task, Validation

VERSION = 1  # raise it when the same configuration and inputs give other weights
# What validation gives, and whether larger is better.
_FIGURES = {"perplexity": False, "loss": False}
_SHARD = 8_192  # sentences that are read close together
_VALIDATION_TOKENS = 8_192  # padded, of a device's batch


@dataclasses.dataclass(frozen=True)
class TrainLmConfig:
    """Configuration of the Transformer language model."""

    workdir: MayChange[str]
    loop: LoopConfig
    audio: Reads[tuple[str, ...]] = ()  # prepared splits, whose transcripts are taken
    texts: Reads[tuple[str, ...]] = ()  # files, a sentence in each line, .gz or plain UTF-8
    checkpoint: Reads[str] = ""  # network with a CTC head, for its letters; empty: LibriSpeech's
    unit: str = "word"  # or piece, learnt by sentencepiece, or letter: a symbol of the CTC head
    vocabulary_size: int = 220_000  # most frequent words, or pieces
    architecture: LmArchitecture = LmArchitecture()
    dropout: float = 0.1  # of embeddings, after attention and within and after the feed-forward
    attention_dropout: float = 0.1  # of attention weights
    execution: MayChange[Execution] = Execution()
    optimizer: OptimizerConfig = OptimizerConfig(clip_norm=1.0)
    mesh: MayChange[MeshConfig] = MeshConfig()
    distributed: MayChange[DistributedConfig] = DistributedConfig()
    tokens_per_step: int = 262_144  # padded tokens of one update over all devices
    row_multiple: int = 1  # of a batch's rows, where it has as many; released: the devices
    # Sentences are padded to the shortest of these; longer ones are left out.
    padded_tokens: tuple[int, ...] = (8, 16, 24, 32, 48, 64, 96, 128, 256)
    micro_batches: MayChange[int] = 1  # that a batch is computed in; 0: as few as fit the device
    validation_audio: Reads[str] = ""  # a held-out split, of whose transcripts the perplexity is
    validation: ValidationConfig = ValidationConfig()
    seed: int = 1337  # of weights, data order and dropout

    def __post_init__(self) -> None:
        require_run(self.seed, self.micro_batches, self.row_multiple)
        if not self.audio and not self.texts:
            raise InputError("config.audio, config.texts: both empty, expected text from one")
        if self.unit not in UNITS:
            raise InputError(f"config.unit={self.unit!r}: expected one of {UNITS}")
        if self.vocabulary_size < 2:
            raise InputError(f"config.vocabulary_size={self.vocabulary_size}: expected 2 or more")
        for name in ("dropout", "attention_dropout"):
            if not 0 <= (rate := getattr(self, name)) < 1:
                raise InputError(f"config.{name}={rate}: expected at least 0 and less than 1")
        self.execution.require_dropout(self.regularization)
        self.validation.require_meant(self.validation_audio, _FIGURES)
        lengths = self.padded_tokens
        if list(lengths) != sorted({*lengths}) or min(lengths, default=1) < 2:
            raise InputError(f"config.padded_tokens={lengths}: expected lengths that ascend from 2")

    @property
    def regularization(self) -> Regularization:
        """What training adds to the layers."""
        rates = (self.dropout, self.attention_dropout, self.dropout, self.dropout)
        return Regularization(*rates, layer_drop=0.0, frontend_gradient_scale=1.0)

    def buckets(self, text: Encoded, shards: int) -> list[Bucket]:
        """The buckets of a run whose rows are divided over `shards` devices.

        Raises InputError where no sentence or no row fits.
        """
        held = _bucket_of(text, self.padded_tokens)
        found = []
        for i, length in enumerate(self.padded_tokens):
            if count := int((held == i).sum()):
                rows, multiple = self.tokens_per_step // length, shards
                if self.row_multiple % shards == 0 and rows >= self.row_multiple:
                    multiple = self.row_multiple
                if rows < multiple:
                    raise InputError(
                        f"config.tokens_per_step={self.tokens_per_step}: no room for {multiple} "
                        f"rows of {length} tokens, one for each device; raise it to "
                        f"{length * multiple} or more"
                    )
                found.append(Bucket(length, length, rows // multiple * multiple, count))
        if not found:
            raise InputError(
                f"config.padded_tokens={self.padded_tokens}: all sentences are longer; expected "
                f"{text.lengths.min()} or more"
            )
        return found


@dataclasses.dataclass(frozen=True)
class Data:
    """A text in tokens, with its digest, and transcripts of a held-out split."""

    text: Encoded
    digest: str
    held_out: Encoded | None = None
    held_out_audio: AudioManifest | None = None


def read(config: TrainLmConfig, directory: pathlib.Path) -> Data:
    """The data of a run, kept in tokens below `directory`, where the first process writes them.

    Raises InputError for text that cannot be read, or is none, and where the held-out split shares
    utterances with what is learnt, or has no transcripts.
    """
    audio = _held_out(config)
    text = Text(config.audio, config.texts, config.checkpoint)
    digest, encoded = _encode(config, text, directory)
    if audio is None:
        return Data(encoded, digest)
    sentences = list(text.of_split(config.validation_audio))
    if at_most := config.validation.utterances:
        sentences = sentences[:: -(-len(sentences) // at_most)]
    if not sentences:
        raise InputError(
            f"config.validation_audio={config.validation_audio}: nothing is left of its "
            "transcripts by the vocabulary's policy; validate on another split"
        )
    held_out = Encoded.of(sentences, encoded.tokens)
    return Data(encoded, digest, held_out, audio)


def _held_out(config: TrainLmConfig) -> AudioManifest | None:
    if not config.validation_audio:
        return None
    for path in config.audio:
        HeldOut.read(config.validation_audio, path, read_manifest(path))
    found = read_manifest(config.validation_audio)
    if not found.transcribed:
        raise InputError(
            f"config.validation_audio={config.validation_audio}: none of its {found.utterances} "
            "utterances has a transcript; validate on a split that has some"
        )
    return found


def _encode(config: TrainLmConfig, text: Text, directory: pathlib.Path) -> tuple[str, Encoded]:
    """A digest of the text in tokens, and itself; what is there is kept."""
    size = config.vocabulary_size if config.unit != "letter" else 0
    sources = [text.audio_digests, text.texts_digests, text.vocabulary.to_dict()]
    digest = config_lib.digest([VERSION, *sources, config.unit, size])
    place = directory / digest[:16]

    def write() -> None:
        if Encoded.read(place) is None:
            print("reading the text; it is kept as numbers of its tokens", flush=True)
            tokens = Tokens.learn(config.unit, size, text.sentences(), text.vocabulary)
            Encoded.write(place, text.sentences(), tokens)
            found = Encoded.read(place)
            if found and found.unknown == found.words:
                raise InputError(
                    f"config.texts, config.audio: none of the {found.words} words can be spelled "
                    f"with {''.join(text.vocabulary.characters)}; expected text in the letters of "
                    "the network's vocabulary (config.checkpoint)"
                )
            if text.outside:
                print(text.outside, flush=True)

    distributed.from_first(write)
    found = Encoded.read(place)
    if found is None:
        raise InputError(f"{place}: cannot be read; remove it, and give the same command again")
    return digest, found


def task(config: TrainLmConfig, data: Data, mesh: Mesh) -> Task:
    """The language model as `fit` takes it; InputError as of `TrainLmConfig.buckets`."""
    text = data.text
    buckets = config.buckets(text, sharding.batch_shards(mesh))
    if left_out := len(text.ends) - sum(bucket.utterances for bucket in buckets):
        distributed.announce(
            f"{left_out} of {len(text.ends)} sentences are left out: longer than "
            f"{config.padded_tokens[-1]} tokens (config.padded_tokens)"
        )
    model = _network(config, text.tokens.size, mesh)
    return Task(
        kind="language_model",
        init=init(config.architecture, text.tokens.size),
        loss=_loss(model),
        optimizer=optimizer.build(config.optimizer, config.loop.steps),
        learning_rate=optimizer.learning_rate(config.optimizer, config.loop.steps),
        batch_shapes=tuple(_shapes(bucket.rows, bucket.frames) for bucket in buckets),
        batches=lambda first_step: _batches(config, text, buckets, first_step),
        sharding_rules=SHARDING_RULES,
        validation=_validation(config, data, data.held_out, model, mesh) if data.held_out else None,
        facts={
            "architecture": config_lib.to_dict(config.architecture),
            "tokens": text.tokens.to_dict(),
            "inputs": {"text": data.digest},
            "config": config_lib.decisive(config, complete=True),
            "decisive": config_lib.decisive(config),
            "rows": {str(bucket.frames): bucket.rows for bucket in buckets},
            "version": VERSION,
        },
    )


def _network(config: TrainLmConfig, tokens: int, mesh: Mesh) -> LanguageModel:
    """The network as it runs on the mesh."""
    made = (config.execution, config.architecture, config.regularization)
    kernels = choice.choose(*made, sharding.attention_sharding(mesh), causal=True)
    return LanguageModel(config.architecture, tokens, kernels, config.regularization)


@functools.cache
def init(architecture: LmArchitecture, tokens: int) -> Callable[[jax.Array], dict]:
    """key -> fresh parameters."""
    model = LanguageModel(architecture, tokens, choice.choose(Execution(), architecture))
    few = jnp.zeros((1, 2), jnp.int32)
    return lambda key: model.init(key, few, few)["params"]


def _loss(model: LanguageModel) -> AdditiveLoss:
    """(params, batch, key, step) -> (loss, metrics), in nats per token of the global batch.

    The batch is as `Encoded.rows` gives it.
    """

    def prepare(batch: Batch, key: jax.Array) -> Batch:
        return {**batch, "count": jnp.maximum(jnp.sum(batch["lengths"]), 1)}

    def part(
        params: dict, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        losses = _losses(model, params, batch, False, {"dropout": key})
        return losses.sum() / batch["count"], {"tokens": jnp.sum(batch["lengths"])}

    return AdditiveLoss(prepare, part)


def _losses(
    model: LanguageModel, params: dict, batch: Batch, deterministic: bool = True, rngs: Any = None
) -> jax.Array:
    """(B, T) float32, in nats, 0 beyond a row's length."""
    tokens, lengths = batch["tokens"], batch["lengths"]
    targets = tokens[:, 1:]
    log_p: Any = model.apply({"params": params}, tokens[:, :-1], targets, deterministic, rngs=rngs)
    return -jnp.where(jnp.arange(targets.shape[1]) < lengths[:, None], log_p, 0)


def _batches(
    config: TrainLmConfig, text: Encoded, buckets: list[Bucket], first_step: int
) -> Generator[dict[str, np.ndarray]]:
    """This process's rows of every step."""
    host = Host(jax.process_index(), jax.process_count())
    plan, held = BucketSchedule(buckets, config.seed), _bucket_of(text, config.padded_tokens)
    orders = []
    for bucket in buckets:
        numbers = np.flatnonzero(held == config.padded_tokens.index(bucket.frames))
        shards = [numbers[i : i + _SHARD] for i in range(0, len(numbers), _SHARD)]
        orders.append(BucketOrder([shards], [1.0], bucket.frames, config.seed))
    indices, rows = (f(config.loop.steps) for f in (plan.indices, plan.first_rows))
    for step in range(first_step, config.loop.steps):
        bucket = buckets[indices[step]]
        mine = orders[indices[step]].records(rows[step] + host.rows(bucket))
        yield text.rows(mine, bucket.frames)


def _bucket_of(text: Encoded, padded_tokens: tuple[int, ...]) -> np.ndarray:
    """(sentences,) the index of each one's padded length; their number for longer ones."""
    return np.searchsorted(padded_tokens, text.lengths).astype(np.int16)


def _validation(
    config: TrainLmConfig, data: Data, text: Encoded, model: LanguageModel, mesh: Mesh
) -> Validation:
    shards, host = sharding.batch_shards(mesh), Host(jax.process_index(), jax.process_count())
    lengths = list(config.padded_tokens)
    while lengths[-1] < text.lengths.max():  # none is left out
        lengths.append(2 * lengths[-1])
    held = _bucket_of(text, tuple(lengths))
    buckets, sentences = [], []
    for i, length in enumerate(lengths):
        numbers = np.flatnonzero(held == i)
        if count := len(numbers):
            most = max(1, _VALIDATION_TOKENS // length) * shards
            rows = min(most, -(-count // shards) * shards)
            buckets.append(Bucket(length, length, rows, count))
            sentences.append(np.append(numbers, np.full(-count % rows, -1)).reshape(-1, rows))
    distributed.announce(
        f"validation on {len(held)} sentences of {config.validation_audio}; unknown are "
        f"{100 * text.unknown / max(text.words, 1):.2f} % of its {text.words} words"
    )

    def read_batches() -> Generator[dict[str, np.ndarray]]:
        for bucket, batches in zip(buckets, sentences, strict=True):
            for numbers in batches:
                yield text.rows(numbers[host.rows(bucket)], bucket.frames)

    def evaluate(params: dict, batch: Batch) -> dict[str, jax.Array]:
        losses = _losses(model, params, batch)
        unknown = batch["tokens"][:, 1:] == UNKNOWN
        return {
            "losses": losses.sum(axis=1),
            "of_unknown": (losses * unknown).sum(axis=1),
            "unknown": unknown.sum(axis=1),
            "tokens": batch["lengths"],
        }

    assert data.held_out_audio is not None
    return Validation(
        batch_shapes=tuple(_shapes(bucket.rows, bucket.frames) for bucket in buckets),
        batches=read_batches,
        evaluate=evaluate,
        summarise=lambda found: _summary(found, text.words, len(text.ends)),
        facts={"audio": data.held_out_audio.digest, "utterances": config.validation.utterances},
        **config.validation.chosen(config.loop.save_every, _FIGURES),
    )


def _summary(found: list[dict[str, np.ndarray]], words: int, sentences: int) -> dict[str, float]:
    """Per word, with the ends of sentences, as n-grams are measured; `loss` is per token."""
    sums = {name: math.fsum(np.concatenate([each[name] for each in found])) for name in found[0]}
    count, unknown = words + sentences, sums["unknown"]
    known = max(count - unknown, 1)
    return {
        "loss": sums["losses"] / sums["tokens"],
        "perplexity": _exp(sums["losses"] / count),
        "perplexity_without_unknown": _exp((sums["losses"] - sums["of_unknown"]) / known),
        "unknown_rate": unknown / max(words, 1),
    }


def _exp(nats: float) -> float:
    return math.exp(min(nats, 700.0))  # JSON knows no infinity


def _shapes(rows: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of sentences."""
    return {
        "tokens": jax.ShapeDtypeStruct((rows, length + 1), jnp.int32),
        "lengths": jax.ShapeDtypeStruct((rows,), jnp.int32),
    }
