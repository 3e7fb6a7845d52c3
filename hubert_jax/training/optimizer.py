"""Optimisers and learning-rate schedules."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from hubert_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Optimiser; the defaults are pre-training BASE as released.

    "muon" is Muon (Jordan et al. 2024) on the transformer's matrices, with updates of Adam's RMS,
    0.2 (Liu et al. 2025), and Adam on the rest, both with Nesterov's momentum.
    """

    name: str = "adam"  # with decoupled weight decay; or muon
    peak_learning_rate: float = 5e-4
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-6
    weight_decay: float = 0.01
    clip_norm: float = 10.0  # global gradient norm above which gradients are scaled down; 0: never
    schedule: str = "linear"  # to 0; or tri_stage: a hold, then exponential decay to 0.05
    warmup_fraction: float = 0.08  # of all steps
    hold_fraction: float = 0.0  # of all steps; of tri_stage
    decay_fraction: float | None = None  # of all steps, cut off by the run's end; None: the rest

    def __post_init__(self) -> None:
        for key, value, known in (
            ("name", self.name, ("adam", "muon")),
            ("schedule", self.schedule, ("linear", "tri_stage")),
        ):
            if value not in known:
                raise InputError(f"config.optimizer.{key}={value!r}: expected one of {known}")
        for key, fits, expected in (
            ("peak_learning_rate", self.peak_learning_rate >= 0, "at least 0"),
            ("beta1", 0 <= self.beta1 < 1, "[0, 1)"),
            ("beta2", 0 <= self.beta2 < 1, "[0, 1)"),
            ("epsilon", self.epsilon > 0, "more than 0"),
            ("weight_decay", self.weight_decay >= 0, "at least 0"),
            ("clip_norm", self.clip_norm >= 0, "at least 0"),
            ("warmup_fraction", self.warmup_fraction >= 0, "at least 0"),
            ("hold_fraction", self.hold_fraction >= 0, "at least 0"),
        ):
            if not fits:
                found = getattr(self, key)
                raise InputError(f"config.optimizer.{key}={found}: expected {expected}")
        if self.warmup_fraction + self.hold_fraction >= 1:
            raise InputError(
                "config.optimizer: warmup_fraction + hold_fraction must be below 1, found "
                f"{self.warmup_fraction} + {self.hold_fraction}"
            )
        if self.decay_fraction is not None and self.decay_fraction <= 0:
            raise InputError(
                f"config.optimizer.decay_fraction={self.decay_fraction}: expected more than 0; "
                "without this key it is the rest of the run"
            )


def _factor(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    warmup = max(1, round(config.warmup_fraction * total_steps))
    hold = round(config.hold_fraction * total_steps)
    decay = total_steps - warmup - hold
    if config.decay_fraction is not None:
        decay = round(config.decay_fraction * total_steps)
    decay = max(1, decay)
    if config.schedule == "linear":
        up, down = optax.linear_schedule(0.0, 1.0, warmup), optax.linear_schedule(1.0, 0.0, decay)
        return optax.join_schedules([up, down], [warmup])

    def tri_stage(step: jax.Array) -> jax.Array:
        up = 0.01 + 0.99 * step / warmup  # fairseq: from 0.01 of the peak
        down = 0.05 ** (jnp.clip(step - warmup - hold, 0, decay) / decay)
        return jnp.where(step < warmup, up, jnp.where(step < warmup + hold, 1.0, down))

    return tri_stage


def learning_rate(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """The learning rate at each step 0 ... total_steps - 1."""
    factor = _factor(config, total_steps)
    return lambda step: config.peak_learning_rate * factor(step)


def build(config: OptimizerConfig, total_steps: int) -> optax.GradientTransformation:
    """The optimiser of pre-training: clipping, then Adam (and Muon), over `total_steps` updates."""
    rate = learning_rate(config, total_steps)
    if config.name == "muon":
        transform = _muon(config, rate, config.weight_decay)
    else:
        adam = (config.beta1, config.beta2, config.epsilon)
        transform = optax.adamw(rate, *adam, weight_decay=config.weight_decay)
    if config.clip_norm:
        return optax.chain(optax.clip_by_global_norm(config.clip_norm), transform)
    return transform


def build_finetuning(
    config: OptimizerConfig,
    total_steps: int,
    *,
    head: str,
    head_scale: float = 1.0,
    freeze_steps: int = 0,
    train_frontend: bool = False,
) -> optax.GradientTransformation:
    """The optimiser of fine-tuning: Adam (and Muon) for the network, Adam for its new head, apart.

    The network's, with its moments and bias correction, begins after `freeze_steps` (as in
    fairseq); the schedule follows the run's step. `head` names its parameters, `head_scale` is its
    learning rate over the network's; a front-end that is not trained must not decay either.
    """

    def decays(params: dict) -> dict:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: train_frontend or not any(key.key == "frontend" for key in path), params
        )

    decay = optax.add_decayed_weights(config.weight_decay, decays)
    adam = optax.chain(optax.scale_by_adam(config.beta1, config.beta2, config.epsilon), decay)
    network = adam
    if config.name == "muon":
        network = optax.chain(_muon(config, -1.0), decay)  # the rate below turns its sign
    if freeze_steps:
        network = optax.conditionally_mask(network, lambda step: step >= freeze_steps)
    transforms = [
        optax.partition(
            {"head": optax.chain(adam, optax.scale(head_scale)), "network": network},
            lambda params: {name: "head" if name == head else "network" for name in params},
        ),
        optax.scale_by_learning_rate(learning_rate(config, total_steps)),
    ]
    if config.clip_norm:
        transforms.insert(0, optax.clip_by_global_norm(config.clip_norm))
    return optax.chain(*transforms)


def _muon(
    config: OptimizerConfig, rate: optax.ScalarOrSchedule, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    return optax.contrib.muon(
        rate,
        weight_decay=weight_decay,
        adam_b1=config.beta1,
        adam_b2=config.beta2,
        eps=config.epsilon,
        adam_weight_decay=weight_decay,
        muon_weight_dimension_numbers=_matrices,
        consistent_rms=0.2,
    )


def _matrices(params: dict) -> dict:
    """Which parameters Muon orthogonalises: the transformer's kernels, (layer, in, out)."""

    def dimensions(path: tuple, leaf: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
        keys = [getattr(key, "key", None) for key in path]
        matrix = "transformer" in keys and keys[-1] == "kernel" and leaf.ndim == 3
        return (
            optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2) if matrix else None
        )

    return jax.tree_util.tree_map_with_path(dimensions, params)
