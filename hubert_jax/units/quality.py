"""Phonetic quality of units: phone purity, cluster purity, PNMI (HuBERT, eqs 5-12).

The units of frames are compared with the phones that an aligner put at the frames' centres.
Frames come at 50 Hz, the rate of the network, or at 100 Hz, where published practice repeats
labels of 50 Hz; silence counts as a phone. Small evaluation sets and more clusters raise PNMI:
compare only figures of the same set, rate and number of clusters.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping

import numpy as np

from hubert_jax.errors import InputError
from hubert_jax.frames import centres, num_frames

_TOLERANCE = 0.02  # seconds by which times may miss one another: one frame of 50 Hz


@dataclasses.dataclass(frozen=True, eq=False)
class Alignment:
    """The phones of one utterance, in time order and without gaps.

    Attributes:
      starts, ends: float64, shape (P,), seconds.
      phones: str, shape (P,), without stress digits.
    """

    starts: np.ndarray
    ends: np.ndarray
    phones: np.ndarray


@dataclasses.dataclass(frozen=True)
class Quality:
    """Figures of one set of labels.

    Attributes:
      pnmi: I(phone; unit) / H(phone): the share of the uncertainty about the phone that the unit
        removes.
      phone_purity: share of frames whose phone is their unit's commonest.
      cluster_purity: share of frames whose unit is their phone's commonest.
      commonest_unit_share: share of frames with the commonest unit.
      used_units: units that occur.
      frames: number of frames.
    """

    pnmi: float
    phone_purity: float
    cluster_purity: float
    commonest_unit_share: float
    used_units: int
    frames: int


def read_alignments(path: str | os.PathLike) -> dict[str, Alignment]:
    """Reads lines `UTT-ID START END PHONE` (seconds), each utterance's in time order.

    Stress digits are stripped (AH0 is AH).

    Raises:
      InputError: the file is missing, empty or malformed; the line is named.
    """
    path = pathlib.Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{path}: alignments cannot be read ({error.strerror}); expected lines "
            "'UTT-ID START END PHONE'"
        ) from None
    except UnicodeDecodeError:
        raise InputError(
            f"{path}: not a text file; expected lines 'UTT-ID START END PHONE'"
        ) from None
    segments: dict[str, list[tuple[float, float, str]]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.rsplit(maxsplit=3)  # names of files may have spaces
        if not fields:
            continue
        try:
            utterance_id, *times, phone = fields
            utterance_id = utterance_id.lstrip()
            start, end = map(float, times)
        except ValueError:
            raise InputError(
                f"{path}, line {number}: found {line.strip()!r}, expected 'UTT-ID START END PHONE' "
                "with times in seconds"
            ) from None
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
        raise InputError(f"{path}: no alignments in it; expected lines 'UTT-ID START END PHONE'")
    return {
        utterance_id: Alignment(
            np.array([s[0] for s in rows]),
            np.array([s[1] for s in rows]),
            np.array([s[2] for s in rows]),
        )
        for utterance_id, rows in segments.items()
    }


def alignment_of(alignments: Mapping[str, Alignment], utterance_id: str) -> Alignment:
    """The alignment of one utterance. Raises InputError, naming it, where there is none."""
    try:
        return alignments[utterance_id]
    except KeyError:
        raise InputError(
            f"utterance {utterance_id}: no alignment; give the alignments of this split, or leave "
            "the utterance out of it"
        ) from None


def phones_at_frames(alignment: Alignment, frames: int, rate: int) -> np.ndarray:
    """The phone at the centre of every frame; the first phone where the alignment starts later.

    Args:
      alignment: of the utterance.
      frames: their number T.
      rate: frames per second; the centre of frame t is at (t * 16000 / rate + 200) / 16000 s.

    Returns:
      str, shape (T,).

    Raises:
      InputError: the alignment ends before the last frame's centre.
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
    """Labels of `label_rate` read at T frames of `rate`: label floor(t * label_rate / rate).

    100 Hz labels are read at every second label for 50 Hz frames; 50 Hz labels are repeated for
    100 Hz frames. Shape (T,).

    Raises:
      InputError: too few labels.
    """
    index = np.arange(frames) * label_rate // rate
    if frames and index[-1] >= len(labels):
        raise InputError(
            f"found {len(labels)} labels at {label_rate} Hz, expected at least {index[-1] + 1} for "
            f"{frames} frames at {rate} Hz; label this audio again"
        )
    return np.asarray(labels)[index]


class JointCounts:
    """How often each phone meets each unit, utterance by utterance."""

    def __init__(self, alignments: Mapping[str, Alignment], num_units: int, rate: int) -> None:
        """Counts frames of `rate` Hz; rows are all phones of `alignments`, sorted."""
        self.phones = np.unique(np.concatenate([a.phones for a in alignments.values()]))
        self.counts = np.zeros((len(self.phones), num_units), np.int64)
        self._alignments, self._rate = alignments, rate

    def add(self, utterance_id: str, num_samples: int, labels: np.ndarray, label_rate: int) -> None:
        """Counts one utterance of `num_samples` samples (16 kHz) with its labels.

        Raises:
          InputError: no alignment, or one of other audio; too few labels; a label out of range.
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

    def quality(self) -> Quality:
        """The figures of everything counted. Raises InputError as `score`."""
        return score(self.counts)


def score(counts: np.ndarray) -> Quality:
    """Purities and PNMI of joint counts (HuBERT, eqs 5-12).

    Args:
      counts: integers, shape (phones, units).

    Raises:
      InputError: no frame, or a single phone, whose entropy is zero.
    """
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
