"""Frames in time: how many an utterance has and where they are.

A frame sees 400 samples (25 ms) at 16 kHz; frame t of `rate` Hz begins at sample t * 16000 / rate.
The network's frames come at 50 Hz (hop 320), MFCC at 100 Hz (hop 160).
"""

import numpy as np

from hubert_jax.data.waveform import SAMPLE_RATE

WINDOW = 400  # samples
RATES = (50, 100)  # frames per second


def num_frames(num_samples: int, rate: int) -> int:
    """Frames of an utterance of `num_samples` samples: (n - 400) // hop + 1, 0 if too short."""
    return max(0, (num_samples - WINDOW) // (SAMPLE_RATE // rate) + 1)


def centres(frames: int, rate: int) -> np.ndarray:
    """Seconds at the centres of frames 0 ... T - 1, float64, shape (T,)."""
    return (np.arange(frames) * (SAMPLE_RATE // rate) + WINDOW // 2) / SAMPLE_RATE
