"""Whole utterances in padded batches of few shapes."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from hubert_jax.data.records import Utterance
from hubert_jax.data.waveform import normalize, to_float
from hubert_jax.frames import HOP, WINDOW, num_frames

_STEP_FRAMES = 256  # padded lengths are multiples of it: each shape compiles once


@dataclasses.dataclass(frozen=True)
class PaddedBatch:
    """Utterances of about the same length.

    Attributes:
      ids, texts: of the utterances; there may be fewer of them than rows.
      waveform: (B, N) float32, zero in the padding and in rows without an utterance.
      num_samples: (B,) int32, valid samples; rows without an utterance have 400.
    """

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    waveform: np.ndarray
    num_samples: np.ndarray


def padded_batches(
    utterances: Iterable[Utterance],
    frames_per_batch: int,
    normalize_waveform: bool,
    row_multiple: int = 1,
    wanted: Callable[[str], bool] | None = None,
) -> Iterator[PaddedBatch]:
    """Every utterance once, grouped by padded length.

    What is left over at the end comes in batches of a quarter of the rows: empty rows cost as much
    as full ones.

    Args:
      utterances: what to batch; some batches' worth is held in memory.
      frames_per_batch: padded frames of a batch, at least one row for each device.
      normalize_waveform: zero mean, unit variance over each utterance.
      row_multiple: rows are a multiple of it.
      wanted: tells by its id whether an utterance takes part; None: all do.

    Yields:
      Batches of one padded length each, a multiple of 256 frames; of each length there are two
      shapes.
    """

    def rows_of(frames: int, padded: int) -> int:
        return max(1, frames // padded // row_multiple) * row_multiple

    waiting: dict[int, list[Utterance]] = {}
    for utterance in utterances:
        if wanted is not None and not wanted(utterance.id):
            continue
        frames = max(1, num_frames(len(utterance.audio)))
        padded = -(-frames // _STEP_FRAMES) * _STEP_FRAMES
        rows = rows_of(frames_per_batch, padded)
        group = waiting.setdefault(padded, [])
        group.append(utterance)
        if len(group) == rows:
            yield _pad(waiting.pop(padded), padded, rows, normalize_waveform)
    for padded, group in sorted(waiting.items()):
        rows, quarter = (rows_of(n, padded) for n in (frames_per_batch, frames_per_batch // 4))
        if len(group) <= rows - quarter:
            rows = quarter
        for first in range(0, len(group), rows):
            yield _pad(group[first : first + rows], padded, rows, normalize_waveform)


def _pad(group: list[Utterance], padded: int, rows: int, normalize_waveform: bool) -> PaddedBatch:
    # The last frame of the padded length may begin before the utterance's odd samples end.
    waveform = np.zeros((rows, HOP * padded + WINDOW), np.float32)
    num_samples = np.full((rows,), WINDOW, np.int32)
    for row, utterance in enumerate(group):
        values = to_float(utterance.audio)
        waveform[row, : len(values)] = normalize(values) if normalize_waveform else values
        num_samples[row] = len(values)
    return PaddedBatch(
        tuple(utterance.id for utterance in group),
        tuple(utterance.text for utterance in group),
        waveform,
        num_samples,
    )
