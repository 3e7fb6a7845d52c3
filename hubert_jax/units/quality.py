"""Phonetic quality of units: phone purity, cluster purity, PNMI (HuBERT, eqs 5-12).

Smaller sets and more units raise PNMI: compare at the same set, rate and number of units.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping

import numpy as np

from hubert_jax.errors import InputError
from hubert_jax.frames import centres, num_frames

_TOLERANCE = 0.02  # seconds by which times may miss one another: one frame of 50 Hz
_LONGEST_PHONE = 64  # characters
_LINES = "expected lines 'UTT-ID START END PHONE'"


@dataclasses.dataclass(frozen=True, eq=False)
class Alignment:
    """Phones of an utterance, str (P,), from `starts` to `ends`, float64 seconds, without gaps."""

    starts: np.ndarray
    ends: np.ndarray
    phones: np.ndarray


@dataclasses.dataclass(frozen=True)
class Quality:
    """Figures of one set of labels."""

    pnmi: float  # I(phone; unit) / H(phone)
    phone_purity: float  # fraction of frames whose phone is their unit's commonest
    cluster_purity: float  # fraction of frames whose unit is their phone's commonest
    commonest_unit_share: float
    used_units: int
    frames: int


def read_alignments(path: str | os.PathLike) -> dict[str, Alignment]:
    """Reads lines `UTT-ID START END PHONE` (seconds), each utterance's in time order.

    Stress digits are stripped (AH0 is AH). Raises InputError, naming the line, for a missing,
    empty or malformed file.
    """
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{path}: alignments cannot be read ({error.strerror}); {_LINES}"
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a text file; {_LINES}") from None
    segments: dict[str, list[tuple[float, float, str]]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if not line:
            continue
        try:
            utterance_id, *times, phone = line.rsplit(maxsplit=3)  # names may have spaces
            start, end = map(float, times)
        except ValueError:
            raise InputError(
                f"{path}, line {number}: found {line[:80]!r}, expected 'UTT-ID START END PHONE' "
                "with times in seconds"
            ) from None
        if len(phone) > _LONGEST_PHONE:  # arrays are as wide as the longest
            raise InputError(f"{path}, line {number}: found a phone of {len(phone)} characters")
        before = segments.setdefault(utterance_id, [])
        expected = before[-1][1] if before else 0.0
        if not abs(start - expected) <= _TOLERANCE or not end > start:
            raise InputError(
                f"{path}, line {number}: found {utterance_id} from {start} to {end} s, "
                f"expected a segment that starts at {expected} s; sort the segments and "
                "fill gaps with SIL"
            )
        before.append((start, end, phone.rstrip("012") or phone))
    if not segments:
        raise InputError(f"{path}: no alignments in it; {_LINES}")
    return {
        utterance_id: Alignment(*map(np.array, zip(*rows, strict=True)))
        for utterance_id, rows in segments.items()
    }


def alignment_of(alignments: Mapping[str, Alignment], utterance_id: str) -> Alignment:
    """The alignment of one utterance; raises InputError, naming it, where there is none."""
    try:
        return alignments[utterance_id]
    except KeyError:
        raise InputError(
            f"utterance {utterance_id}: no alignment; give the alignments of this split, or leave "
            "the utterance out of it"
        ) from None


def phones_at_frames(alignment: Alignment, frames: int, rate: int) -> np.ndarray:
    """The phone at the centre of each frame, str (T,); the first where the alignment starts later.

    Raises InputError where the alignment ends before the last frame's centre.
    """
    times = centres(frames, rate)
    if frames and times[-1] > alignment.ends[-1] + _TOLERANCE:
        raise InputError(
            f"found an alignment of {alignment.ends[-1]:.3f} s, expected at least "
            f"{times[-1]:.3f} s for {frames} frames at {rate} Hz; is it the alignment of "
            "this audio?"
        )
    index = np.searchsorted(alignment.starts, times, side="right") - 1
    return alignment.phones[np.maximum(index, 0)]


def units_at_frames(labels: np.ndarray, label_rate: int, frames: int, rate: int) -> np.ndarray:
    """A label for each frame of `rate`: 100 Hz labels are thinned for 50 Hz, 50 Hz ones repeated.

    Raises InputError for too few labels.
    """
    index = np.arange(frames) * label_rate // rate
    if frames and index[-1] >= len(labels):
        raise InputError(
            f"found {len(labels)} labels at {label_rate} Hz, expected at least {index[-1] + 1} for "
            f"{frames} frames at {rate} Hz; label this audio again"
        )
    return np.asarray(labels)[index]


class JointCounts:
    """Int64 `counts` of frames of `rate` Hz: rows are all `phones`, sorted, columns the units."""

    def __init__(self, alignments: Mapping[str, Alignment], num_units: int, rate: int) -> None:
        self.phones = np.unique(np.concatenate([a.phones for a in alignments.values()]))
        self.counts = np.zeros((len(self.phones), num_units), np.int64)
        self._alignments, self._rate = alignments, rate

    def add(self, utterance_id: str, num_samples: int, labels: np.ndarray, label_rate: int) -> None:
        """Counts one utterance of `num_samples` samples (16 kHz) with its labels.

        Raises InputError for no alignment or another's, too few labels or one out of range.
        """
        alignment = alignment_of(self._alignments, utterance_id)
        frames = num_frames(num_samples, self._rate)
        try:
            phones = phones_at_frames(alignment, frames, self._rate)
            units = units_at_frames(labels, label_rate, frames, self._rate)
        except InputError as error:
            raise InputError(f"utterance {utterance_id}: {error}") from None
        num_units = self.counts.shape[1]
        if frames and units.max() >= num_units:
            raise InputError(
                f"utterance {utterance_id}: found label {units.max()}, expected labels below "
                f"{num_units}; use the labels and the codebook of one labelling"
            )
        rows = np.searchsorted(self.phones, phones)
        pairs = np.bincount(rows * num_units + units, minlength=self.counts.size)
        self.counts += pairs.reshape(self.counts.shape)


def score(counts: np.ndarray) -> Quality:
    """Purities and PNMI of (phones, units) counts; InputError for no frame or a single phone."""
    frames = int(counts.sum())
    if not frames:
        raise InputError("quality: no frame to score; is the split empty?")
    joint = counts / frames
    phone, unit = joint.sum(axis=1), joint.sum(axis=0)
    entropy = -float(np.sum(phone[phone > 0] * np.log(phone[phone > 0])))
    if entropy == 0.0:
        raise InputError(
            "quality: all frames have one phone, so PNMI is not defined; score more speech"
        )
    seen = joint > 0
    information = float(np.sum(joint[seen] * np.log(joint[seen] / np.outer(phone, unit)[seen])))
    return Quality(
        pnmi=information / entropy,
        phone_purity=float(joint.max(axis=0).sum()),
        cluster_purity=float(joint.max(axis=1).sum()),
        commonest_unit_share=float(unit.max()),
        used_units=int(np.count_nonzero(unit)),
        frames=frames,
    )
