"""Long recordings cut at silences, in memory that does not grow with their length.

The recording is laid out in 10 ms steps of energy. A piece ends in the middle of the last silence
(0.3 s in which every step is 30 dB or more below speech, see `_cut`) that leaves it at most
`longest` and at least 2 s long. Where there is none, it ends at the quietest 0.3 s. The pieces lie
end to end: nothing is lost, and the cuts are a function of the recording alone.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from hubert_jax.frames import SAMPLE_RATE

SHORTEST_SECONDS = 2  # below it, pre-training would leave a piece out
_STEP = SAMPLE_RATE // 100
_SILENCE_STEPS = 30
# Speech is what the loudest twentieth of the last half minute exceeds; in read speech pauses are
# 40 to 60 dB below it, in noise less, and then the quietest place is taken.
_SPEECH_PERCENTILE = 95
_BELOW_SPEECH = 1000  # 30 dB of energy


def pieces(
    blocks: Iterable[np.ndarray], longest_seconds: float
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Cuts a recording.

    Args:
      blocks: int16 waveform at 16 kHz, in blocks of any size.
      longest_seconds: of a piece; at least 4, so that both sides of a cut can have 2 s.

    Yields:
      (start, end, waveform): the piece in samples of the recording, its int16 samples
      (end - start,). A recording of `longest_seconds` or less is one piece.
    """
    longest = int(longest_seconds * SAMPLE_RATE)
    shortest = SHORTEST_SECONDS * SAMPLE_RATE
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
    # In integers: every machine finds the same cut.
    energy = (waveform[: steps * _STEP].reshape(steps, _STEP).astype(np.int64) ** 2).sum(axis=1)
    # The loudest step of the 0.3 s around each boundary between two steps.
    around = np.lib.stride_tricks.sliding_window_view(energy, _SILENCE_STEPS).max(axis=1)
    first = SHORTEST_SECONDS * SAMPLE_RATE // _STEP - _SILENCE_STEPS // 2
    around = around[first : latest // _STEP - _SILENCE_STEPS // 2 + 1]
    speech = np.percentile(energy, _SPEECH_PERCENTILE, method="lower")
    silent = np.flatnonzero(around * _BELOW_SPEECH <= speech)
    best = silent[-1] if len(silent) else np.argmin(around)
    return int(first + best + _SILENCE_STEPS // 2) * _STEP
