"""One step of CTC fine-tuning, compiled for the mesh."""

import dataclasses
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hubert_jax.asr.ctc import ctc_loss
from hubert_jax.asr.vocabulary import Vocabulary
from hubert_jax.errors import InputError
from hubert_jax.model.architecture import HubertConfig
from hubert_jax.model.hubert import HubertForCTC
from hubert_jax.model.masking import span_mask
from hubert_jax.training import optimizer as optimizer_lib
from hubert_jax.training.optimizer import OptimizerConfig
from hubert_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class CTCConfig:
    """What fine-tuning does to the network; the defaults are wav2vec 2.0's for 10 h.

    Attributes:
      freeze_steps: first steps in which the linear layer alone learns (masks and dropout on).
      time_mask_probability, time_mask_span: span masks over frames.
      channel_mask_probability, channel_mask_span: span masks over channels, whole utterances long.
      final_dropout: before the linear layer.
      head_learning_rate_scale: the linear layer's learning rate over the network's; 1 as
        released. A larger one shortens the plateau of CTC, where all outputs are blank.
    """

    freeze_steps: int = 10_000
    time_mask_probability: float = 0.75
    time_mask_span: int = 10
    channel_mask_probability: float = 0.5
    channel_mask_span: int = 64
    final_dropout: float = 0.0
    head_learning_rate_scale: float = 1.0

    def __post_init__(self):
        for name in ("time_mask_probability", "channel_mask_probability"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"config.ctc.{name}={getattr(self, name)}: expected [0, 1)")


def init_ctc(config: HubertConfig, vocabulary_size: int) -> Callable[[jax.Array], dict]:
    """key -> fresh parameters of the network with its linear layer over characters."""
    model = HubertForCTC(config, vocabulary_size)
    silence = jnp.zeros((1, config.num_samples(2)))
    return lambda key: model.init(key, silence)["params"]


def ctc_objective(
    config: HubertConfig, ctc: CTCConfig, vocabulary_size: int, train_frontend: bool = False
) -> Callable:
    """(params, batch, key, frozen) -> (loss, metrics); `frozen` is static.

    The batch holds `waveform` (B, N) float32, `num_samples` (B,), `labels` (B, L) int32 and
    `label_lengths` (B,). The loss is the summed CTC loss per character of the global batch.
    Utterances too short for their transcript have no weight; their share is a metric. The
    front-end learns only with `train_frontend` (a network from scratch).
    """
    model = HubertForCTC(config, vocabulary_size, ctc.final_dropout)

    def compute(params, batch, key, frozen: bool):
        time_key, channel_key, dropout_key = jax.random.split(key, 3)
        rows, padded = batch["waveform"].shape
        frames = config.num_frames(padded)
        lengths = jnp.maximum(config.num_frames(batch["num_samples"]), 0)
        mask = channel_mask = None
        if ctc.time_mask_probability:
            mask = span_mask(
                time_key,
                rows,
                frames,
                ctc.time_mask_probability,
                ctc.time_mask_span,
                group_rows=1,  # or the shortest row of a padded batch would unmask all others
                lengths=lengths,
            )
        if ctc.channel_mask_probability:
            channel_mask = span_mask(
                channel_key,
                rows,
                config.dim,
                ctc.channel_mask_probability,
                ctc.channel_mask_span,
                group_rows=1,
                least_spans=0,
            )
        logits = model.apply(
            {"params": params},
            batch["waveform"],
            batch["num_samples"],
            mask,
            channel_mask,
            False,
            frozen,
            not train_frontend,
            rngs={"dropout": dropout_key},
        )
        losses, feasible = ctc_loss(logits, lengths, batch["labels"], batch["label_lengths"])
        present = batch["label_lengths"] > 0
        feasible = feasible & present
        characters = jnp.sum(batch["label_lengths"] * feasible)
        loss = jnp.sum(losses * feasible) / jnp.maximum(characters, 1)
        infeasible = 1.0 - jnp.sum(feasible) / jnp.maximum(jnp.sum(present), 1)
        return loss, {"infeasible_share": infeasible, "characters": characters}

    return compute


class FinetuningOptimizer:
    """Adam for the linear layer and for the network, each with its own count of updates.

    While the network is frozen its Adam does not advance, so its moments and their bias
    correction begin when it begins to learn (as in fairseq, where it has no gradient until then);
    the learning rate follows the run's step all the same.
    """

    def __init__(
        self,
        config: OptimizerConfig,
        total_steps: int,
        train_frontend: bool = False,
        head_learning_rate_scale: float = 1.0,
    ):
        """Builds from the `adam` settings of `config`.

        Args:
          config: which settings.
          total_steps: length of the schedule, in updates.
          train_frontend: whether the front-end learns; where it does not, it gets no gradient
            and must not decay either.
          head_learning_rate_scale: the linear layer's learning rate over the network's.

        Raises:
          InputError: another optimiser than "adam".
        """
        if config.name != "adam":
            raise InputError(
                f"config.optimizer.name={config.name!r}: fine-tuning takes 'adam' alone"
            )
        self._adam = optax.chain(
            optax.scale_by_adam(config.beta1, config.beta2, config.epsilon),
            optax.add_decayed_weights(
                config.weight_decay,
                lambda group: {name: train_frontend or name != "frontend" for name in group},
            ),
        )
        factor = optimizer_lib.schedule(config, total_steps)
        self._learning_rate = lambda step: config.peak_learning_rate * factor(step)
        self._clip_norm = config.clip_norm
        self._head_scale = head_learning_rate_scale

    def init(self, params: dict) -> dict:
        """The state: one Adam state for each top-level group of parameters."""
        return {group: self._adam.init(values) for group, values in params.items()}

    def update(self, gradients: dict, opt_state: dict, params: dict, step, groups: list[str]):
        """New parameters and state; only `groups` change."""
        if self._clip_norm:
            norm = optax.global_norm({group: gradients[group] for group in groups})
            scale = jnp.minimum(1.0, self._clip_norm / (norm + 1e-6))
            gradients = jax.tree.map(lambda gradient: gradient * scale, gradients)
        params, opt_state = dict(params), dict(opt_state)
        for group in groups:
            updates, opt_state[group] = self._adam.update(
                gradients[group], opt_state[group], params[group]
            )
            rate = -self._learning_rate(step)
            if group == "characters":
                rate *= self._head_scale
            params[group] = jax.tree.map(
                lambda value, change, rate=rate: value + rate * change, params[group], updates
            )
        return params, opt_state


def finetuning_step(objective: Callable, optimizer: FinetuningOptimizer, seed: int) -> Callable:
    """The jitted update (state, batch, frozen) -> (state, metrics); the state is donated."""

    def update(state: TrainState, batch: dict, frozen: bool) -> tuple[TrainState, dict]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        (loss, metrics), gradients = jax.value_and_grad(objective, has_aux=True)(
            state.params, batch, key, frozen
        )
        groups = ["characters"] if frozen else sorted(state.params)
        params, opt_state = optimizer.update(
            gradients, state.opt_state, state.params, state.step, groups
        )
        metrics = {"loss": loss, "gradient_norm": optax.global_norm(gradients), **metrics}
        return TrainState(state.step + 1, params, opt_state), metrics

    return jax.jit(update, static_argnums=2, donate_argnums=0)


def with_labels(
    batches: Iterator[dict[str, np.ndarray]], vocabulary: Vocabulary
) -> Iterator[dict[str, np.ndarray]]:
    """Replaces `id` and `text` by `labels` (B, L) and `label_lengths` (B,), both int32.

    L is half the padded frames: 25 characters a second, more than anybody reads aloud. A longer
    transcript could not be aligned either; it gets length 0 and no weight, like an utterance that
    did not fit into the padding.

    Raises:
      InputError: a transcript with a character outside the vocabulary; names the utterance.
    """
    try:
        for batch in batches:
            rows, padded = batch["waveform"].shape
            labels = np.zeros((rows, padded // 640), np.int32)
            label_lengths = np.zeros((rows,), np.int32)
            for row, text in enumerate(batch["text"]):
                encoded = vocabulary.encode(text.decode(), batch["id"][row].decode())
                if batch["num_samples"][row] > 0 and len(encoded) <= labels.shape[1]:
                    labels[row, : len(encoded)] = encoded
                    label_lengths[row] = len(encoded)
            arrays = {name: batch[name] for name in ("waveform", "num_samples")}
            yield {**arrays, "labels": labels, "label_lengths": label_lengths}
    finally:
        batches.close()
