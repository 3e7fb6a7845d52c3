"""Mel-frequency cepstra at 100 Hz; row t is of samples 160 t to 160 t + 400."""

import functools
from collections.abc import Callable

import numpy as np
import scipy.fft

from hubert_jax.errors import InputError
from hubert_jax.frames import SAMPLE_RATE, WINDOW, num_frames

RATE = 100  # frames per second
DIM = 39  # numbers a frame, of all kinds
_HOP = SAMPLE_RATE // RATE  # samples
_CEPSTRA = 13
_MEL_BINS = 23
_LOW_HZ = 20.0
_PRE_EMPHASIS = 0.97
_LIFTER = 22.0
_FFT = 512
_BLOCK = 512  # frames whose spectra are in memory at once; about what a core's cache holds


def mfcc(waveform: np.ndarray) -> np.ndarray:
    """Kaldi's 13 MFCC, their first and their second differences: float32 (T, 39).

    Takes float32 (n,) in [-1, 1] at 16 kHz, and equals `torchaudio.compliance.kaldi.mfcc` with
    `use_energy=False`. Raises InputError for another shape or type, or fewer than 400 samples.
    """
    waveform = _checked(waveform)
    total = num_frames(len(waveform), RATE)
    # Pre-emphasis commutes with framing but for a frame's first sample, and with the removal of
    # the mean but for the factor 0.03: one pass over the waveform instead of 2.5 over the frames.
    emphasised = waveform.copy()
    emphasised[1:] -= np.float32(_PRE_EMPHASIS) * waveform[:-1]
    raw, emphasised = _frames(waveform), _frames(emphasised)
    remainder = np.float32(1.0 - _PRE_EMPHASIS)
    window, mel, cosine = _povey_window(), _mel_matrix(), _cosine_matrix()
    cepstra = np.empty((total, _CEPSTRA), np.float32)
    padded = np.zeros((min(total, _BLOCK), _FFT), np.float32)
    for start in range(0, total, _BLOCK):
        block = slice(start, min(start + _BLOCK, total))
        frames = padded[: block.stop - start]
        mean = raw[block].mean(axis=1, keepdims=True)
        np.subtract(emphasised[block], remainder * mean, out=frames[:, :WINDOW])
        frames[:, :1] = remainder * (raw[block, :1] - mean)
        frames[:, :WINDOW] *= window
        spectrum = scipy.fft.rfft(frames)[:, : _FFT // 2]
        power = np.square(spectrum.real)
        power += np.square(spectrum.imag)
        energies = np.maximum(power @ mel, np.finfo(np.float32).eps)
        cepstra[block] = np.log(energies) @ cosine
    first = _differences(cepstra)
    return np.concatenate([cepstra, first, _differences(first)], axis=1)


def mfcc_librosa(waveform: np.ndarray) -> np.ndarray:
    """librosa's MFCC and differences with its own defaults, on the frames of `mfcc`; else as that.

    Mel scale, window, floor and dynamic range differ, so that k-means gives other units.
    """
    import librosa

    fft = 2048
    cepstra = librosa.feature.mfcc(
        # librosa centres the window of 400 in 2,048: it never sees these zeros.
        y=np.pad(_checked(waveform), (fft - WINDOW) // 2),
        sr=SAMPLE_RATE,
        n_mfcc=_CEPSTRA,
        n_fft=fft,
        hop_length=_HOP,
        win_length=WINDOW,
        center=False,
    )
    deltas = [librosa.feature.delta(cepstra, order=order, mode="nearest") for order in (1, 2)]
    return np.ascontiguousarray(np.concatenate([cepstra, *deltas]).T, np.float32)


KINDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"mfcc": mfcc, "mfcc_librosa": mfcc_librosa}


def _differences(features: np.ndarray) -> np.ndarray:
    """Slopes of (T, D) over 5 frames, edges repeated: sum of n (x[t + n] - x[t - n]) / 10."""
    padded = np.pad(features, ((2, 2), (0, 0)), mode="edge")
    slopes = padded[4:] - padded[:-4]
    slopes *= 2
    slopes += padded[3:-1]
    slopes -= padded[1:-3]
    slopes /= 10
    return slopes


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
    return waveform.astype(np.float32, copy=False)


def _frames(signal: np.ndarray) -> np.ndarray:
    """Overlapping windows, a read-only view of shape (T, 400)."""
    return np.lib.stride_tricks.sliding_window_view(signal, WINDOW)[::_HOP]


@functools.cache
def _povey_window() -> np.ndarray:
    """Kaldi's window, float32 (400,): a symmetric Hann window to the power 0.85."""
    phase = 2 * np.pi * np.arange(WINDOW) / (WINDOW - 1)
    return ((0.5 - 0.5 * np.cos(phase)) ** 0.85).astype(np.float32)


@functools.cache
def _mel_matrix() -> np.ndarray:
    """Weights of the triangular filters, linear in mel, for FFT bins 0 to 255: (256, 23)."""
    low, high = _mel(np.array([_LOW_HZ, SAMPLE_RATE / 2]))
    width = (high - low) / (_MEL_BINS + 1)
    bins = _mel(np.arange(_FFT // 2) * SAMPLE_RATE / _FFT)[:, None]
    left = low + width * np.arange(_MEL_BINS)
    rising = (bins - left) / width
    return np.maximum(0.0, np.minimum(rising, 2.0 - rising)).astype(np.float32)


def _mel(hertz: np.ndarray) -> np.ndarray:
    return 1127.0 * np.log(1.0 + hertz / 700.0)


@functools.cache
def _cosine_matrix() -> np.ndarray:
    """Orthonormal DCT-II of 23 log energies to 13 cepstra, times the lifter: (23, 13)."""
    order = np.arange(_CEPSTRA)
    centres = np.arange(_MEL_BINS)[:, None] + 0.5
    matrix = np.cos(np.pi * centres * order / _MEL_BINS) * np.sqrt(2.0 / _MEL_BINS)
    matrix[:, 0] = np.sqrt(1.0 / _MEL_BINS)
    lifter = 1.0 + 0.5 * _LIFTER * np.sin(np.pi * order / _LIFTER)
    return (matrix * lifter).astype(np.float32)
