"""Buckets: utterances by the longest crop that they can give, of the few lengths that compile."""

import numpy as np

from hubert_jax import frames as frames_lib

# Crop lengths in 50 Hz frames. The paper's 15.6 s is rounded down to 768; 96 is just under 2 s.
BUCKETS = (96, 128, 256, 384, 512, 640, 768)
MIN_TRAINING_SAMPLES = 32_000  # shorter ones, in bucket 0, are left out as in the release
_FLOORS = np.array([max(MIN_TRAINING_SAMPLES, frames_lib.num_samples(n)) for n in BUCKETS])


def bucket_of(num_samples: int) -> int:
    """Bucket (in frames) of an utterance: its longest possible crop, 0 if it is under 2 s."""
    return (0, *BUCKETS)[int(np.searchsorted(_FLOORS, num_samples, "right"))]


def bucket_numbers(num_samples: np.ndarray) -> np.ndarray:
    """Place in (0, *BUCKETS) of each utterance's bucket: integers (n,) to uint8 (n,)."""
    numbers = np.zeros(len(num_samples), np.uint8)
    for floor in _FLOORS:  # one pass a floor: `searchsorted` would convert all of them to int64
        numbers += num_samples >= floor
    return numbers
