"""Units of utterances, by codebooks over one feature or its steps."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hubert_jax import distributed, storage
from hubert_jax.data.records import Utterance
from hubert_jax.errors import InputError
from hubert_jax.frames import WINDOW, num_frames
from hubert_jax.model.architecture import Execution
from hubert_jax.networks import forward, trained
from hubert_jax.units import kmeans
from hubert_jax.units.features import Feature, of_utterances, states_of
from hubert_jax.units.kmeans import Codebook
from hubert_jax.units.nearest import Nearest

_FEWEST = 64  # frames that are fetched together


class Labeller:
    """Gives utterances' units by each of some codebooks, of as many features.

    The features differ in their steps alone. The nearest codewords of a layer without steps are
    found where the network runs, and nothing but their numbers leaves the devices.
    """

    def __init__(
        self,
        features: Sequence[Feature],
        codebooks: Sequence[Codebook],
        frames_per_batch: int | None = None,
    ) -> None:
        """`frames_per_batch` is what of a layer is computed together, None: as is fastest."""
        self._features, self._codebooks = features, codebooks
        self._applied: forward.Applied | None = None
        plain = not any(feature.steps for feature in features)
        if features[0].trained is not None and plain:
            function, trained = states_of(features[0].trained, (features[0].layer,))
            nearest = [Nearest(codebook.centroids) for codebook in codebooks]
            batch = {} if frames_per_batch is None else {"frames_per_batch": frames_per_batch}
            self._applied = forward.Applied(
                functools.partial(_searched, function, nearest),
                trained,
                functools.partial(_decided, nearest),
                **batch,
            )

    def __call__(self, groups: forward.Groups) -> Iterator[tuple[int, Utterance, list[np.ndarray]]]:
        """Yields (number of the group, utterance, uint16 (T,) by each codebook), by groups.

        Within a group the order is free. Raises InputError for NaN or infinite features.
        """
        if self._applied is None:
            features = of_utterances(self._features, groups)
            yield from kmeans.assign_each(self._codebooks, features)
            return
        for outputs in self._applied(groups):
            yield outputs.group, outputs.utterance, [*outputs.values.T]


def _searched(
    states_of_layer: Callable[[dict, jax.Array, jax.Array], jax.Array],
    nearest: Sequence[Nearest],
    params: dict,
    waveform: jax.Array,
    num_samples: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Labels uint16 (B, T, codebooks), which of them rounding decided, and the states (B, T, D)."""
    states = states_of_layer(params, waveform, num_samples)[:, :, 0]
    found = [each.search(states) for each in nearest]
    labels, close = (jnp.stack([each[i] for each in found], axis=-1) for i in (0, 1))
    spoken = jnp.arange(states.shape[1]) < num_frames(num_samples)[:, None]
    return labels, close & spoken[:, :, None], states


def _decided(
    nearest: Sequence[Nearest], values: tuple[jax.Array, jax.Array, jax.Array]
) -> np.ndarray:
    """The labels, those that rounding decided by float64."""
    labels, close = (np.array(value) for value in values[:2])
    by_frame, close = labels.reshape(-1, len(nearest)), close.reshape(-1, len(nearest))
    frames = np.flatnonzero(close.any(axis=1))
    if len(frames):
        size = _FEWEST
        while size < len(frames):
            size *= 2
        padded = np.zeros(size, np.int32)
        padded[: len(frames)] = frames
        some = np.asarray(_taken()(values[2], padded))[: len(frames)]
        if not np.isfinite(some).all():
            raise InputError(
                "k-means: found NaN or infinite features; check the checkpoint that they come from"
            )
        for number, each in enumerate(nearest):
            here = close[frames, number]
            by_frame[frames[here], number] = each.exactly(some[here])
    return labels


@functools.cache
def _taken() -> Any:
    """Some frames of (B, T, D) by their numbers."""

    def taken(states: jax.Array, numbers: jax.Array) -> jax.Array:
        return states.reshape(-1, states.shape[-1])[numbers]

    return jax.jit(taken, **distributed.compiled_here())


def open_codebook(
    codebook: str,
    checkpoint: str = "",
    layer: int = -1,
    execution: Execution | None = None,
    key: str = "config.",
) -> tuple[Feature, Codebook]:
    """A codebook, and the feature that it is of, with its network.

    `codebook` is a label job's directory, or another library's file, which does not say its
    feature: it is of `layer` of the `checkpoint`, or without one of MFCC. Raises InputError, in
    which parameters are named after `key`, for a codebook of another network or layer.
    """
    kind, steps = ("layer" if checkpoint else "mfcc"), ()
    if not storage.path(codebook).is_file():
        described = Codebook.load(codebook).feature
        kind, steps = described["kind"], tuple(described.get("steps", ()))
        layer = described.get("layer", -1) if layer == -1 else layer
    if (kind == "layer") != bool(checkpoint):
        expected = f"the network whose layer {layer} it is of" if kind == "layer" else "none"
        raise InputError(
            f"{key}checkpoint={checkpoint}: {key}codebook={codebook} is of {kind}; expected "
            f"{expected}"
        )
    if kind == "layer" and layer < 0:
        raise InputError(
            f"{key}layer={layer}: {key}codebook={codebook} does not say of which layer it is; "
            "expected 0, the input of block 1, or more"
        )
    network = None
    if checkpoint:
        network = trained.load(checkpoint, execution=execution, key=f"{key}checkpoint")
    feature = Feature(kind, network, max(layer, 0), steps)
    return feature, kmeans.read(codebook, feature.describe(), feature.dim, f"{key}codebook")


class Encoded(NamedTuple):
    """Units without repetitions, and how many frames each lasts."""

    units: np.ndarray  # uint16 (U,)
    durations: np.ndarray  # int64 (U,); `numpy.repeat(units, durations)` are all frames'

    @classmethod
    def of_frames(cls, units: np.ndarray) -> "Encoded":
        """From a unit for each frame, uint16 (T,)."""
        starts = np.concatenate([[0], np.flatnonzero(units[1:] != units[:-1]) + 1])
        return cls(units[starts], np.diff(starts, append=len(units)))


class Encoder:
    """Gives waveforms' units, by programs that are compiled once for each of few lengths."""

    def __init__(self, checkpoint: str, codebook: str, layer: int = -1) -> None:
        """As `open_codebook`; a `checkpoint` is hf:DIR, orbax:DIR, fairseq:FILE, ..., or ""."""
        feature, found = open_codebook(codebook, checkpoint, layer, key="")
        self._label = Labeller([feature], [found], frames_per_batch=1)
        self.rate = feature.rate  # frames per second
        self.num_units = len(found.centroids)

    def __call__(self, waveform: np.ndarray) -> Encoded:
        """Units of one waveform of any length, (n,) at 16 kHz: int16, or floats in [-1, 1].

        Frame t is of samples t * hop to t * hop + 400, with a hop of 320 at 50 Hz and of 160 at
        100 Hz. Raises InputError for another shape or type, fewer than 400 samples, and NaN.
        """
        waveform = np.asarray(waveform)
        known = np.issubdtype(waveform.dtype, np.floating) or waveform.dtype == np.int16
        if waveform.ndim != 1 or not known or len(waveform) < WINDOW:
            raise InputError(
                f"waveform of shape {waveform.shape}, {waveform.dtype}: expected one channel of at "
                f"least {WINDOW} samples at 16 kHz, int16 or floats in [-1, 1]"
            )
        if not np.isfinite(waveform).all():
            raise InputError("waveform: has NaN or infinite samples; expected finite ones")
        [(_, _, [units])] = self._label([(0, [Utterance("waveform", waveform)])])
        return Encoded.of_frames(units)
