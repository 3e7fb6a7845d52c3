"""Long recordings cut at silences, in memory that does not grow with their length."""

from collections.abc import Iterable, Iterator

import numpy as np

from hubert_jax.frames import SAMPLE_RATE

_SHORTEST_SECONDS = 2  # below it, pre-training would leave a piece out
_STEP = SAMPLE_RATE // 100
_SILENCE_STEPS = 30
# In read speech pauses are 40 to 60 dB below it; in noise less, so the quietest place is taken.
_SPEECH_PERCENTILE = 95
_BELOW_SPEECH = 1000  # 30 dB of energy


def pieces(
    blocks: Iterable[np.ndarray], longest_seconds: float
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yields (start, end, int16 waveform) of a recording's pieces, end to end, in its samples.

    `blocks` are its int16 waveform at 16 kHz; `longest_seconds` are at least 4. A cut is in the
    middle of the last silence (0.3 s of 10 ms steps 30 dB or more below speech) that leaves a
    piece of 2 s to `longest_seconds`; without one, at the quietest 0.3 s.
    """
    longest = int(longest_seconds * SAMPLE_RATE)
    shortest = _SHORTEST_SECONDS * SAMPLE_RATE
    pending, start = np.zeros(0, np.int16), 0
    for block in blocks:
        pending = np.concatenate([pending, block])
        # With that much at hand, what is left after a cut is never too short.
        while len(pending) >= longest + shortest:
            end = _cut(pending[: longest + shortest], longest)
            yield start, start + end, pending[:end]
            pending, start = pending[end:], start + end
    if len(pending) > longest:
        end = _cut(pending, min(longest, len(pending) - shortest))
        yield start, start + end, pending[:end]
        pending, start = pending[end:], start + end
    if len(pending):
        yield start, start + len(pending), pending


def _cut(waveform: np.ndarray, latest: int) -> int:
    """Where to cut, in samples between 2 s and `latest`; a multiple of 10 ms."""
    steps = len(waveform) // _STEP
    # In integers, so that every machine finds the same cut.
    energy = (waveform[: steps * _STEP].reshape(steps, _STEP).astype(np.int64) ** 2).sum(axis=1)
    around = np.lib.stride_tricks.sliding_window_view(energy, _SILENCE_STEPS).max(axis=1)
    first = _SHORTEST_SECONDS * SAMPLE_RATE // _STEP - _SILENCE_STEPS // 2
    around = around[first : latest // _STEP - _SILENCE_STEPS // 2 + 1]
    speech = np.percentile(energy, _SPEECH_PERCENTILE, method="lower")
    silent = np.flatnonzero(around * _BELOW_SPEECH <= speech)
    best = silent[-1] if len(silent) else np.argmin(around)
    return int(first + best + _SILENCE_STEPS // 2) * _STEP
