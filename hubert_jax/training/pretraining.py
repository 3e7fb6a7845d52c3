"""One step of masked-prediction pre-training, compiled for the mesh."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from hubert_jax.errors import InputError
from hubert_jax.model.architecture import HubertConfig
from hubert_jax.model.hubert import HubertForPretraining
from hubert_jax.model.loss import masked_prediction_loss
from hubert_jax.model.masking import span_mask
from hubert_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Masks and loss; the defaults are the released ones.

    Attributes:
      mask_probability: expected share of masked frames before overlaps.
      mask_span: frames of one span.
      mask_group_rows: consecutive rows whose masks are trimmed to the smallest one's count. The
        released batch of one device: 5 rows of BASE, 3 of LARGE, 1 of X-LARGE. The rows of a batch
        are a multiple of it.
      alpha: weight of the masked frames at the steps `alpha_steps`, linear in between, constant
        beyond: (1.0,) is the paper's default, alpha = 1 throughout; (0.5, 1.0) with steps
        (300, 600) begins with the plain mean over all frames and ends with masked frames alone.
      alpha_steps: as many steps as there are values of alpha, ascending.
      feature_penalty: weight of the mean square of the front-end's output.
    """

    mask_probability: float = 0.8
    mask_span: int = 10
    mask_group_rows: int = 5
    alpha: tuple[float, ...] = (1.0,)
    alpha_steps: tuple[int, ...] = (0,)
    feature_penalty: float = 10.0

    def __post_init__(self):
        if len(self.alpha) != len(self.alpha_steps) or not self.alpha:
            raise InputError(
                f"config.loss: alpha has {len(self.alpha)} values and alpha_steps "
                f"{len(self.alpha_steps)}; expected as many of both, at least one"
            )
        if not all(0 <= alpha <= 1 for alpha in self.alpha):
            raise InputError(f"config.loss.alpha={self.alpha}: expected values in [0, 1]")
        if not 0 < self.mask_probability <= 1 or self.mask_span < 1:
            raise InputError(
                f"config.loss: mask_probability={self.mask_probability}, mask_span="
                f"{self.mask_span}: expected a probability in (0, 1] and a span of 1 or more frames"
            )
        if self.mask_group_rows < 1:
            raise InputError(
                f"config.loss.mask_group_rows={self.mask_group_rows}: expected 1 or more"
            )
        if list(self.alpha_steps) != sorted(set(self.alpha_steps)):
            raise InputError(f"config.loss.alpha_steps={self.alpha_steps}: must ascend")


def init_pretraining(config: HubertConfig) -> Callable[[jax.Array], dict]:
    """key -> fresh parameters of the network with its pre-training head."""
    model = HubertForPretraining(config)
    # Two frames' worth of silence: shapes of parameters do not depend on the length.
    silence = jnp.zeros((1, config.num_samples(2)))
    return lambda key: model.init(key, silence)["params"]


def pretraining_loss(config: HubertConfig, loss: LossConfig) -> Callable:
    """(params, batch, key, step) -> (loss, metrics) on crops of equal length.

    The batch holds `waveform` (B, N) float32 and `labels_0`, `labels_1`, ... (B, T) int32, one a
    codebook.
    """
    model = HubertForPretraining(config)

    def compute(params, batch, key, step):
        mask_key, dropout_key = jax.random.split(key)
        waveform = batch["waveform"]
        labels = [batch[f"labels_{i}"] for i in range(len(config.codebooks))]
        rows, frames = labels[0].shape
        mask = span_mask(
            mask_key, rows, frames, loss.mask_probability, loss.mask_span, loss.mask_group_rows
        )
        outputs = model.apply(
            {"params": params}, waveform, mask, False, rngs={"dropout": dropout_key}
        )
        alpha = jnp.interp(step, jnp.array(loss.alpha_steps), jnp.array(loss.alpha))
        return masked_prediction_loss(
            outputs["logits"], labels, mask, alpha, outputs["features"], loss.feature_penalty
        )

    return compute


def train_step(
    loss_function: Callable, optimizer: optax.GradientTransformation, seed: int
) -> Callable[[TrainState, dict], tuple[TrainState, dict]]:
    """The jitted update; the state is donated.

    Args:
      loss_function: (params, batch, key, step) -> (loss, metrics).
      optimizer: the gradient transformation.
      seed: the run's seed; masks and dropout are a function of (seed, step).

    Returns:
      (state, batch) -> (state, metrics): scalars, among them `loss` and `gradient_norm`.
    """

    def update(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        (loss, metrics), gradients = jax.value_and_grad(loss_function, has_aux=True)(
            state.params, batch, key, state.step
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, "gradient_norm": optax.global_norm(gradients), **metrics}
        return TrainState(state.step + 1, params, opt_state), metrics

    return jax.jit(update, donate_argnums=0)
