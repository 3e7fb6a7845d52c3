"""A frozen probe: how well a linear classifier tells the phone of a frame from its features."""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hubert_jax.asr.error_rates import word_error_rate
from hubert_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class ProbeConfig:
    """A linear classifier of phones, trained on features of `probe_audio` at 50 Hz."""

    minutes: float = 10.0  # to train on, whole utterances drawn by the seed; 0: all
    weighted_sum: bool = False  # also of all config.layers, in memory at once, weights learnt
    l2: float = 1.0  # of the weights, 1 / C of scikit-learn's LogisticRegression
    iterations: int = 100  # of L-BFGS, each over all frames

    def __post_init__(self) -> None:
        for key, least in (("minutes", 0), ("l2", 0), ("iterations", 1)):
            if getattr(self, key) < least:
                raise InputError(
                    f"config.probe.{key}={getattr(self, key)}: expected {least} or more"
                )


@dataclasses.dataclass(frozen=True, eq=False)
class Probe:
    """A classifier of `phones`, str (P,); its layers' weights, float32 (L,), add up to 1."""

    phones: np.ndarray
    layer_weights: np.ndarray
    _matrix: np.ndarray  # (D, P)
    _bias: np.ndarray
    _mean: np.ndarray  # (L, 1, D), as _scale
    _scale: np.ndarray

    @classmethod
    def fit(cls, features: np.ndarray, phones: np.ndarray, config: ProbeConfig) -> "Probe":
        """Trained on float32 (L, F, D) and str (F,).

        Features are standardised; of several layers, their weighted sum is classified. Raises
        InputError for a single phone, and for features that are not finite.
        """
        classes, targets = np.unique(phones, return_inverse=True)
        if len(classes) < 2:
            raise InputError("probe: found fewer than two phones to tell apart; give more speech")
        params = {
            "layers": jnp.zeros(len(features)),
            "matrix": jnp.zeros((features.shape[2], len(classes))),
            "bias": jnp.zeros(len(classes)),
        }
        found = _minimised(params, features, targets, config.l2, config.iterations)
        if not np.isfinite(found["matrix"]).all():
            raise InputError(
                "probe: found NaN or infinite weights, expected finite features; check the "
                "checkpoint that they come from"
            )
        keys = ("weights", "matrix", "bias", "mean", "scale")
        return cls(classes, *(np.asarray(found[key]) for key in keys))

    def classify(self, features: np.ndarray) -> np.ndarray:
        """The likeliest phone of every frame of float32 (L, T, D): str (T,)."""
        standard = (features - self._mean) / self._scale
        summed = np.tensordot(self.layer_weights, standard, axes=1)
        return self.phones[(summed @ self._matrix + self._bias).argmax(axis=1)]


def scores(spoken: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> dict[str, float]:
    """`frame_accuracy` and `phone_error_rate` of utterances' phones, str (T,), silence included.

    Frames with one phone are one phone of either sequence that the error rate compares.
    """
    right = sum(int((spoken[name] == phones).sum()) for name, phones in found.items())
    frames = sum(map(len, found.values()))
    names = [name for name, phones in found.items() if len(phones)]
    if not names:
        raise InputError("probe: no frame to score; is the split empty?")
    known = np.unique(np.concatenate([*spoken.values(), *found.values()]))

    def text(phones: np.ndarray) -> str:
        numbers = np.searchsorted(known, phones)  # a phone may have spaces
        return " ".join(map(str, numbers[np.diff(numbers, prepend=-1) != 0]))

    errors = word_error_rate(*([text(of[name]) for name in names] for of in (spoken, found)))
    return {"frame_accuracy": right / frames, "phone_error_rate": errors.rate}


def _logits(params: dict[str, jax.Array], features: jax.Array) -> jax.Array:
    """Of float32 (L, F, D): (F, P)."""
    weights = jax.nn.softmax(params["layers"])
    summed = jnp.einsum("l,lfd->fd", weights, features, precision="highest")
    return jnp.dot(summed, params["matrix"], precision="highest") + params["bias"]


@functools.partial(jax.jit, static_argnames="iterations")
def _minimised(
    params: dict[str, jax.Array],
    features: jax.Array,
    targets: jax.Array,
    l2: float,
    iterations: int,
) -> dict[str, jax.Array]:
    """The parameters with the least loss, the layers' `weights`, `mean` and `scale`."""
    mean = features.mean(axis=1, keepdims=True)
    scale = jnp.sqrt(((features - mean) ** 2).mean(axis=1, keepdims=True))
    scale = jnp.where(scale > 0, scale, 1.0)
    standard = (features - mean) / scale

    def loss(params: dict[str, jax.Array]) -> jax.Array:
        losses = optax.softmax_cross_entropy_with_integer_labels(_logits(params, standard), targets)
        return losses.mean() + l2 / (2 * len(targets)) * (params["matrix"] ** 2).sum()

    solver = optax.lbfgs()
    evaluate = optax.value_and_grad_from_state(loss)

    def step(carry: tuple, _: None) -> tuple[tuple, None]:
        params, state = carry
        value, grad = evaluate(params, state=state)
        updates, state = solver.update(grad, state, params, value=value, grad=grad, value_fn=loss)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, solver.init(params)), length=iterations)
    return params | {"weights": jax.nn.softmax(params["layers"]), "mean": mean, "scale": scale}
