"""Whole utterances in padded batches of few shapes."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from hubert_jax.data.records import Utterance
from hubert_jax.data.waveform import normalize, to_float
from hubert_jax.frames import HOP, WINDOW, num_frames

_STEP_FRAMES = 256  # padded lengths are multiples of it: each shape compiles once


@dataclasses.dataclass(frozen=True)
class _PaddedBatch:
    """Utterances of about the same length; the last of the B rows may have none."""

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    speakers: tuple[str, ...]
    waveform: np.ndarray  # (B, N) float32, zero in the padding and in rows without an utterance
    num_samples: np.ndarray  # (B,) int32, valid samples; 400 in rows without an utterance


def padded_batches(
    utterances: Iterable[Utterance],
    frames_per_batch: int,
    normalize_waveform: bool,
    row_multiple: int = 1,
    wanted: Callable[[str], bool] | None = None,
) -> Iterator[_PaddedBatch]:
    """Every utterance whose id is `wanted` once, padded to a multiple of 256 frames.

    A batch has up to `frames_per_batch` padded frames, in `row_multiple` rows or a multiple of it.
    What is left over of a length comes in batches of a quarter of the rows, as empty rows cost as
    much as full ones; so each length has two shapes. Some batches' worth is held in memory.
    """

    def rows_of(frames: int, padded: int) -> int:
        return max(1, frames // padded // row_multiple) * row_multiple

    waiting: dict[int, list[Utterance]] = {}
    for utterance in utterances:
        if wanted is not None and not wanted(utterance.id):
            continue
        frames = max(1, num_frames(len(utterance.audio)))
        padded = -(-frames // _STEP_FRAMES) * _STEP_FRAMES
        group, rows = waiting.setdefault(padded, []), rows_of(frames_per_batch, padded)
        group.append(utterance)
        if len(group) == rows:
            yield _pad(waiting.pop(padded), padded, rows, normalize_waveform)
    for padded, group in sorted(waiting.items()):
        rows, quarter = (rows_of(n, padded) for n in (frames_per_batch, frames_per_batch // 4))
        if len(group) <= rows - quarter:
            rows = quarter
        for first in range(0, len(group), rows):
            yield _pad(group[first : first + rows], padded, rows, normalize_waveform)


def _pad(group: list[Utterance], padded: int, rows: int, normalize_waveform: bool) -> _PaddedBatch:
    # The last frame of the padded length may begin before the utterance's odd samples end.
    waveform = np.zeros((rows, HOP * padded + WINDOW), np.float32)
    num_samples = np.full((rows,), WINDOW, np.int32)
    for row, utterance in enumerate(group):
        values = to_float(utterance.audio)
        waveform[row, : len(values)] = normalize(values) if normalize_waveform else values
        num_samples[row] = len(values)
    return _PaddedBatch(
        tuple(utterance.id for utterance in group),
        tuple(utterance.text for utterance in group),
        tuple(utterance.speaker for utterance in group),
        waveform,
        num_samples,
    )
