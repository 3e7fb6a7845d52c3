"""Utterances in padded batches of few shapes: whole, or in windows where they are long."""

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np

from hubert_jax.data.records import Utterance
from hubert_jax.data.waveform import normalize, to_float
from hubert_jax.frames import HOP, WINDOW, num_frames, num_samples

LONGEST = 16_384  # frames of a window, 5.5 minutes: what memory has to suffice for
_AROUND = 1_024  # frames on either side that a window hears for those that are its own
_STEP_FRAMES = 256  # padded lengths are multiples of it: each shape compiles once
_STEPS = 16  # of these; longer ones are multiples of eight times as much


@dataclasses.dataclass(frozen=True)
class Window:
    """A stretch of an utterance, mostly all of it."""

    utterance: Utterance
    waveform: np.ndarray  # float32 (n,)
    own: slice  # frames of the window that stand for the utterance's
    last: bool  # of its utterance's windows


@dataclasses.dataclass(frozen=True)
class _PaddedBatch:
    """Windows of about the same length; the last of the B rows may have none."""

    windows: tuple[Window, ...]
    waveform: np.ndarray  # (B, N) float32, zero in the padding and in rows without a window
    num_samples: np.ndarray  # (B,) int32, valid samples; 400 in rows without a window


def windows(utterance: Utterance, normalize_waveform: bool) -> Iterator[Window]:
    """An utterance, or the overlapping windows of a long one: each frame is one window's own.

    Waveforms are normalised over the utterance, not over a window.
    """
    waveform = to_float(utterance.audio)
    if normalize_waveform:
        waveform = normalize(waveform)
    frames = max(1, num_frames(len(waveform)))
    done = 0
    while done < frames:
        # The last one is as long as the others.
        start = max(0, min(done - _AROUND, frames - LONGEST))
        stop = min(start + LONGEST, frames)
        own = stop if stop == frames else stop - _AROUND
        samples = len(waveform) if stop == frames else HOP * start + num_samples(LONGEST)
        heard = waveform[HOP * start : samples]
        yield Window(utterance, heard, slice(done - start, own - start), own == frames)
        done = own


def padded_batches(
    utterances: Iterable[Utterance],
    frames_per_batch: int,
    normalize_waveform: bool,
    row_multiple: int = 1,
) -> Iterator[_PaddedBatch]:
    """Every utterance once, padded to a multiple of 256 frames, or of 2,048 from 4,096 on.

    A batch has up to `frames_per_batch` padded frames, in `row_multiple` rows or a multiple of it.
    What is left over of a length comes in batches of a quarter of the rows, as empty rows cost as
    much as full ones; so each length has two shapes. Some batches' worth is held in memory.
    """

    def rows_of(frames: int, padded: int) -> int:
        return max(1, frames // padded // row_multiple) * row_multiple

    waiting: dict[int, list[Window]] = {}
    for utterance in utterances:
        for window in windows(utterance, normalize_waveform):
            padded = _padded(max(1, num_frames(len(window.waveform))))
            group, rows = waiting.setdefault(padded, []), rows_of(frames_per_batch, padded)
            group.append(window)
            if len(group) == rows:
                yield _pad(waiting.pop(padded), padded, rows)
    for padded, group in sorted(waiting.items()):
        rows, quarter = (rows_of(n, padded) for n in (frames_per_batch, frames_per_batch // 4))
        if len(group) <= rows - quarter:
            rows = quarter
        for first in range(0, len(group), rows):
            yield _pad(group[first : first + rows], padded, rows)


def _padded(frames: int) -> int:
    step = _STEP_FRAMES if frames <= _STEPS * _STEP_FRAMES else 8 * _STEP_FRAMES
    return -(-frames // step) * step


def _pad(group: list[Window], padded: int, rows: int) -> _PaddedBatch:
    # The last frame of the padded length may begin before the utterance's odd samples end.
    waveform = np.zeros((rows, HOP * padded + WINDOW), np.float32)
    lengths = np.full((rows,), WINDOW, np.int32)
    for row, window in enumerate(group):
        waveform[row, : len(window.waveform)] = window.waveform
        lengths[row] = len(window.waveform)
    return _PaddedBatch(tuple(group), waveform, lengths)
