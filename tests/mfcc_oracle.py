"""MFCC by NumPy, one utterance at a time: the oracle of `hubert_jax.units.mfcc`."""

import librosa
import numpy as np
import scipy.fft

WINDOW, HOP, FFT, BINS = 400, 160, 512, 23


def mfcc(waveform):
    """Kaldi's 13 MFCC, their first and their second differences, in float64: (T, 39)."""
    lifter = 1 + 11 * np.sin(np.pi * np.arange(13) / 22)
    cepstra = scipy.fft.dct(log_mel(waveform), norm="ortho")[:, :13] * lifter
    first = differences(cepstra)
    return np.concatenate([cepstra, first, differences(first)], axis=1)


def cepstra(waveform):
    return mfcc(waveform)[:, :13]


def log_mel(waveform):
    """Kaldi's `fbank` of 23 bins, in float64: (T, 23)."""
    frames = np.lib.stride_tricks.sliding_window_view(waveform.astype(np.float64), WINDOW)[::HOP]
    frames = frames - frames.mean(axis=1, keepdims=True)
    frames[:, 1:] -= 0.97 * frames[:, :-1]
    frames[:, 0] *= 0.03
    frames *= (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / (WINDOW - 1))) ** 0.85
    power = np.square(np.abs(np.fft.rfft(frames, FFT)[:, : FFT // 2]))
    edges = np.linspace(*mel(np.array([20.0, 8000.0])), BINS + 2)
    rising = (mel(np.arange(FFT // 2) * 16_000 / FFT)[:, None] - edges[:-2]) / (edges[1] - edges[0])
    energies = power @ np.maximum(0.0, np.minimum(rising, 2.0 - rising))
    return np.log(np.maximum(energies, 2.0**-23))


random_projection = log_mel  # what is projected


def mel(hertz):
    return 1127.0 * np.log(1.0 + hertz / 700.0)


def differences(features):
    padded = np.pad(features, ((2, 2), (0, 0)), mode="edge")
    return (2 * (padded[4:] - padded[:-4]) + padded[3:-1] - padded[1:-3]) / 10


def mfcc_librosa(waveform):
    """librosa's MFCC and differences with its own defaults on those frames, in float64: (T, 39)."""
    cepstra = librosa.feature.mfcc(
        y=np.pad(waveform.astype(np.float64), (2048 - WINDOW) // 2),
        sr=16_000,
        n_mfcc=13,
        hop_length=HOP,
        win_length=WINDOW,
        center=False,
    )
    deltas = [librosa.feature.delta(cepstra, order=order, mode="nearest") for order in (1, 2)]
    return np.concatenate([cepstra, *deltas]).T
