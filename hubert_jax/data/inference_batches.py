"""Whole utterances in padded batches of few shapes, once through a split."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator

import numpy as np

from hubert_jax.data import records
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
    split_dir: str | pathlib.Path,
    frames_per_batch: int,
    normalize_waveform: bool,
    wanted: Callable[[str], bool] | None = None,
) -> Iterator[PaddedBatch]:
    """Every utterance of a split once.

    Args:
      split_dir: an audio split.
      frames_per_batch: padded frames of a batch; a longer utterance comes alone.
      normalize_waveform: zero mean, unit variance over each utterance.
      wanted: tells by its id whether an utterance takes part; None: all do.

    Yields:
      Batches of one padded length each, a multiple of 256 frames; the order is that of the shards
      but for the grouping by length.

    Raises:
      InputError: a damaged shard.
    """
    waiting: dict[int, list[records.Utterance]] = {}
    for utterance in records.read_audio(split_dir):
        if wanted is not None and not wanted(utterance.id):
            continue
        frames = max(1, num_frames(len(utterance.audio)))
        padded = -(-frames // _STEP_FRAMES) * _STEP_FRAMES
        group = waiting.setdefault(padded, [])
        group.append(utterance)
        if len(group) == max(1, frames_per_batch // padded):
            yield _pad(waiting.pop(padded), padded, frames_per_batch, normalize_waveform)
    for padded, group in sorted(waiting.items()):
        yield _pad(group, padded, frames_per_batch, normalize_waveform)


def _pad(group, padded: int, frames_per_batch: int, normalize_waveform: bool) -> PaddedBatch:
    rows = max(1, frames_per_batch // padded)
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
