"""Samples and frames: the geometry that audio, units and network share.

A frame sees 400 samples (25 ms) at 16 kHz; frame t of `rate` Hz begins at sample t * 16000 / rate.
The network's frames come at 50 Hz (hop 320), MFCC at 100 Hz (hop 160).
"""

from typing import Any

import numpy as np

SAMPLE_RATE = 16_000
WINDOW = 400  # samples that a frame sees
HOP = 320  # samples between two frames of the network
RATES = (50, 100)  # frames per second


def num_frames(num_samples: Any, rate: int = 50) -> Any:
    """Frames at `rate` Hz of n samples: (n - 400) // hop + 1, or 0 where that is less.

    Takes an int or an integer array and returns the same.
    """
    count = (num_samples - WINDOW) // (SAMPLE_RATE // rate) + 1
    return count * (count > 0)


def num_samples(frames: Any) -> Any:
    """The shortest waveform with T = `frames` frames of 50 Hz: 320 T + 80 samples."""
    return HOP * frames + WINDOW - HOP


def centres(frames: int, rate: int) -> np.ndarray:
    """Seconds at the centres of frames 0 ... T - 1, float64, shape (T,)."""
    return (np.arange(frames) * (SAMPLE_RATE // rate) + WINDOW // 2) / SAMPLE_RATE
