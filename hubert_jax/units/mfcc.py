"""Mel-frequency cepstra and log-mels at 100 Hz; row t is of samples 160 t to 160 t + 400."""

import collections
import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hubert_jax import distributed
from hubert_jax.errors import InputError
from hubert_jax.frames import SAMPLE_RATE, WINDOW, num_frames

Key = TypeVar("Key")
RATE = 100  # frames per second
# Numbers a frame, of all kinds.
DIMS = {"mfcc": 39, "mfcc_librosa": 39, "cepstra": 13, "log_mel": 23, "random_projection": 23}
_HOP = SAMPLE_RATE // RATE  # samples
_CEPSTRA = 13
_BINS = 23  # of Kaldi's mel scale
_PRE_EMPHASIS = 0.97
_EDGE = 4  # frames on either side that differences reach
_BLOCK = 512  # frames whose spectra are in memory at once; about what a core's cache holds
_STRIP = 12_288  # frames that are computed together, but for longer utterances
_CORES = min(8, os.cpu_count() or 1)


def mfcc(
    waveforms: Iterable[tuple[Key, np.ndarray]], kind: str = "mfcc"
) -> Iterator[tuple[Key, np.ndarray]]:
    """Yields (key, float32 (T, D)) of every (key, waveform), in order, as `DIMS` has it of `kind`.

    Waveforms are floats (n,) in [-1, 1] at 16 kHz; no value depends on another one of them. The
    kind `mfcc`, 13 and their differences, equals `torchaudio.compliance.kaldi.mfcc` with
    `use_energy=False` and two of `compute_deltas`, `mfcc_librosa` librosa's defaults on the same
    frames. Mel scale, window, floor and dynamic range differ, so that k-means gives other units.
    `cepstra` are the 13 of `mfcc`, `log_mel` the 23 of Kaldi's `fbank` that they are made from,
    which a `random_projection` takes.
    Raises InputError for another shape or type, or fewer than 400 samples.
    """
    compiled = _compiled(_FUNCTIONS[kind])

    def computed(utterances: list[tuple[Key, np.ndarray]]) -> list[tuple[Key, np.ndarray]]:
        strip = _Strip([waveform for _, waveform in utterances])
        with _wide():
            rows = np.asarray(compiled(strip.waveform, strip.source, strip.first))[:, : DIMS[kind]]
        return [
            (key, rows[start : start + count])
            for (key, _), (start, count) in zip(utterances, strip.places, strict=True)
        ]

    under_way: collections.deque[futures.Future] = collections.deque()
    # XLA's CPU back-end gives a program of this size one core, a thread of ours each.
    with futures.ThreadPoolExecutor(_CORES) as pool:
        for utterances in _grouped(waveforms):
            under_way.append(pool.submit(computed, utterances))
            if len(under_way) > _CORES:
                yield from under_way.popleft().result()
        while under_way:
            yield from under_way.popleft().result()


def _grouped(
    waveforms: Iterable[tuple[Key, np.ndarray]],
) -> Iterator[list[tuple[Key, np.ndarray]]]:
    """As many at a time as a strip has room for."""
    waiting: list[tuple[Key, np.ndarray]] = []
    frames = 0
    for key, waveform in waveforms:
        waveform = _checked(waveform)
        more = num_frames(len(waveform), RATE) + 2 * _EDGE
        if waiting and frames + more > _STRIP:
            yield waiting
            waiting, frames = [], 0
        waiting.append((key, waveform))
        frames += more
    if waiting:
        yield waiting


class _Strip:
    """Waveforms one after the other, so that few lengths are compiled and little is padding.

    Frame t of the strip is of its samples 160 t to 160 t + 400. Around an utterance lie edges of
    some frames, which have no meaning but that of `source`.
    """

    def __init__(self, waveforms: list[np.ndarray]) -> None:
        counts = [num_frames(len(waveform), RATE) for waveform in waveforms]
        total = _STRIP  # one program for all but the longest, and so the same rounding
        while total < sum(counts) + 2 * _EDGE * len(counts):
            total *= 2
        # One sample more in front, for the pre-emphasis of the first one.
        self.waveform = np.zeros(_HOP * (total + 3) + 1, np.float32)
        # The frame itself, or in an edge the frame that it repeats; the utterance's first frame.
        self.source = np.arange(total, dtype=np.int32)
        self.first = self.source.copy()
        self.places: list[tuple[int, int]] = []  # first frame and number of frames of an utterance
        start = _EDGE
        for waveform, count in zip(waveforms, counts, strict=True):
            self.waveform[1 + _HOP * start : 1 + _HOP * start + len(waveform)] = waveform
            around = slice(start - _EDGE, start + count + _EDGE)
            self.source[around] = self.source[around].clip(start, start + count - 1)
            self.first[around] = start
            self.places.append((start, count))
            start += count + 2 * _EDGE


def _checked(waveform: np.ndarray) -> np.ndarray:
    waveform = np.asarray(waveform)
    if waveform.ndim != 1 or not np.issubdtype(waveform.dtype, np.floating):
        raise InputError(
            f"MFCC: found a waveform of shape {waveform.shape} and type {waveform.dtype}, expected "
            "one channel of float samples in [-1, 1]; divide 16-bit samples by 32768"
        )
    if len(waveform) < WINDOW:
        raise InputError(
            f"MFCC: found a waveform of {len(waveform)} samples, expected at least {WINDOW} "
            "(one window of 25 ms at 16 kHz); leave the utterance out"
        )
    return waveform


def _log_mel(waveform: jax.Array, source: jax.Array, first: jax.Array) -> jax.Array:
    fft, low = 512, 20.0
    edges = np.linspace(_mel(low), _mel(SAMPLE_RATE / 2), _BINS + 2)
    rising = (_mel(np.arange(fft // 2) * SAMPLE_RATE / fft)[:, None] - edges[:-2]) / (
        edges[1] - edges[0]
    )
    mel = np.zeros((fft // 2 + 1, _BINS))
    mel[:-1] = np.maximum(0.0, np.minimum(rising, 2.0 - rising))
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / (WINDOW - 1))) ** 0.85

    def logarithms(samples: jax.Array, before: jax.Array) -> jax.Array:
        # Pre-emphasis commutes with framing but for a frame's first sample, where the window is 0,
        # and with the removal of the mean but for a factor.
        samples, before = samples.astype(float), before.astype(float)
        hops = samples.reshape(-1, _HOP)
        whole, half = hops.sum(axis=1), hops[2:-1, : WINDOW - 2 * _HOP].sum(axis=1)
        mean = (1.0 - _PRE_EMPHASIS) / WINDOW * (whole[:-3] + whole[1:-2] + half)
        power = _power(samples - _PRE_EMPHASIS * before, mean, window, fft)
        return jnp.log(jnp.maximum(_filtered(power, mel), np.finfo(np.float32).eps))

    return _by_block(logarithms, waveform)


def _kaldi(waveform: jax.Array, source: jax.Array, first: jax.Array) -> jax.Array:
    def differences(features: jax.Array) -> jax.Array:
        return _slopes(features[source], 0.1 * np.arange(-2, 3))

    lifter = 1.0 + 11.0 * np.sin(np.pi * np.arange(_CEPSTRA) / 22.0)
    cepstra = _transformed(_log_mel(waveform, source, first), _cosines(_BINS) * lifter)
    slopes = differences(cepstra)
    return jnp.concatenate([cepstra, slopes, differences(slopes)], axis=1)


def _librosa(waveform: jax.Array, source: jax.Array, first: jax.Array) -> jax.Array:
    import librosa

    bins, fft, dynamic_range = 128, 2048, 80.0
    # librosa centres the window of 400 in 2,048: nothing but the phase depends on where it lies.
    window = librosa.filters.get_window("hann", WINDOW)
    mel = librosa.filters.mel(sr=SAMPLE_RATE, n_fft=fft, n_mels=bins).T

    decibels = 10.0 / np.log(10.0)

    def logarithms(samples: jax.Array, before: jax.Array) -> jax.Array:
        power = _power(samples.astype(float), jnp.zeros(_BLOCK), window, fft)
        return jnp.log(jnp.maximum(_filtered(power, mel), 1e-10))

    levels = _by_block(logarithms, waveform)
    loudest = jax.ops.segment_max(levels.max(axis=1)[source], first, len(first))[first]
    levels = jnp.maximum(levels, loudest[:, None] - dynamic_range / decibels)
    cepstra = _transformed(levels, decibels * _cosines(bins))
    places = np.arange(-_EDGE, _EDGE + 1)
    # Coefficients of parabolas fitted to nine frames: slope, and twice the quadratic one.
    fits = np.linalg.pinv(np.stack([places**0, places, places**2], axis=1))
    slopes = [_slopes(cepstra[source], weights) for weights in (fits[1], 2 * fits[2])]
    return jnp.concatenate([cepstra, *slopes], axis=1)


_FUNCTIONS = {"mfcc": _kaldi, "mfcc_librosa": _librosa, "cepstra": _kaldi, "log_mel": _log_mel} | {
    "random_projection": _log_mel
}


@functools.cache
def _compiled(function: Callable) -> Callable[[np.ndarray, np.ndarray, np.ndarray], jax.Array]:
    """(waveform, source, first) of a strip -> (T, D)."""
    return jax.jit(function, **distributed.compiled_here())


def _wide() -> contextlib.AbstractContextManager[None]:
    """Makes `float` mean float64 where devices have it; TPU have no such FFT.

    A band 100 dB below the loudest drowns in float32's rounding of the others.
    """
    return jax.enable_x64(jax.default_backend() != "tpu")


def _by_block(
    function: Callable[[jax.Array, jax.Array], jax.Array], waveform: jax.Array
) -> jax.Array:
    """What `function` gives for all frames, from some's samples and the samples before these."""

    def block(start: jax.Array) -> jax.Array:
        size = (_HOP * (_BLOCK + 3),)
        return function(*(lax.dynamic_slice(waveform, (start + i,), size) for i in (1, 0)))

    values = lax.map(block, _HOP * _BLOCK * jnp.arange(waveform.size // (_HOP * _BLOCK)))
    return values.reshape(-1, values.shape[-1])


def _power(samples: jax.Array, mean: jax.Array, window: np.ndarray, fft: int) -> jax.Array:
    """Power spectra of the frames, less `mean` (T,), under a window: (T, fft // 2 + 1)."""
    hops = samples.reshape(-1, _HOP)
    count = len(hops) - 3
    parts = [
        (hops[i : i + count, : min(_HOP, WINDOW - _HOP * i)] - mean[:, None])
        * window[_HOP * i : _HOP * (i + 1)]
        for i in range(-(-WINDOW // _HOP))
    ]
    silence = jnp.zeros((count, fft - WINDOW))
    spectrum = jnp.fft.rfft(jnp.concatenate([*parts, silence], axis=1))
    return jnp.square(spectrum.real) + jnp.square(spectrum.imag)


def _slopes(features: jax.Array, weights: np.ndarray) -> jax.Array:
    """Sums over (T, D) of neighbours times `weights`, an odd number; around, the end repeats."""
    reach = len(weights) // 2
    padded = jnp.pad(features, ((reach, reach), (0, 0)), mode="edge")
    size = len(features)
    return sum(w * padded[i : i + size] for i, w in enumerate(weights.tolist()) if w)


def _filtered(power: jax.Array, filters: np.ndarray) -> jax.Array:
    """The product with triangular `filters` (bins, F), sixteen and the bins they have at a time."""
    parts = []
    for start in range(0, filters.shape[1], 16):
        some = filters[:, start : start + 16]
        used = np.flatnonzero(some.any(axis=1))
        bins = slice(used[0], used[-1] + 1)
        parts.append(_product(power[:, bins].astype(jnp.float32), some[bins].astype(np.float32)))
    return jnp.concatenate(parts, axis=1)


def _transformed(levels: jax.Array, cosines: np.ndarray) -> jax.Array:
    return _product(levels.astype(float), cosines).astype(jnp.float32)


def _product(values: jax.Array, matrix: np.ndarray) -> jax.Array:
    return jnp.dot(values, matrix, precision=lax.Precision.HIGHEST)


def _cosines(bins: int) -> np.ndarray:
    """The orthonormal DCT-II of `bins` values to 13 cepstra: (bins, 13)."""
    angles = np.outer(np.arange(bins) + 0.5, np.arange(_CEPSTRA)) * np.pi / bins
    return np.cos(angles) * np.where(np.arange(_CEPSTRA) > 0, np.sqrt(2.0 / bins), bins**-0.5)


def _mel(hertz: float | np.ndarray) -> np.ndarray:
    return 1127.0 * np.log(1.0 + hertz / 700.0)
