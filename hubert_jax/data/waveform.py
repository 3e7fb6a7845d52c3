"""Waveforms as the network takes them."""

import numpy as np

SAMPLE_RATE = 16_000
# As transformers adds to the variance, so that an exported network hears what it was trained on.
# fairseq's layer_norm adds 1e-5, which leaves quiet recordings quieter than the others.
NORMALISATION_EPSILON = 1e-7


def to_float(audio: np.ndarray) -> np.ndarray:
    """int16 samples (n,) as float32 in [-1, 1)."""
    return audio.astype(np.float32) / 32768.0


def normalize(waveform: np.ndarray) -> np.ndarray:
    """Zero mean, unit variance over the whole utterance: (n,) float32 to (n,) float32."""
    variance = waveform.var(dtype=np.float64)
    centred = waveform - waveform.mean(dtype=np.float64)
    return (centred / np.sqrt(variance + NORMALISATION_EPSILON)).astype(np.float32)
