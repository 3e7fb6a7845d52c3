"""Quality of units: phone purity, cluster purity, PNMI (HuBERT, eqs 5-12), entropy and bitrate.

Smaller sets and more units raise PNMI: compare at the same set, rate and number of units.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
import scipy.sparse
import scipy.special

from hubert_jax.errors import InputError
from hubert_jax.frames import num_frames
from hubert_jax.units.alignments import Alignment, phones_at_frames

_TOGETHER = 2**22  # counts of draws that are looked at together


@dataclasses.dataclass(frozen=True)
class Quality:
    """Figures of one set of labels."""

    pnmi: float  # I(phone; unit) / H(phone)
    phone_purity: float  # fraction of frames whose phone is their unit's commonest
    cluster_purity: float  # fraction of frames whose unit is their phone's commonest
    commonest_unit_share: float
    used_units: int
    entropy: float  # of the frames' units, bits
    perplexity: float  # 2 to the entropy: as many units, equally frequent, have it
    mean_run: float  # frames for which a unit lasts
    bitrate: float  # bits a second: runs a second times the entropy of the runs' units
    frames: int


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
    """How often phones meet units in frames of `rate` Hz; `phones` are sorted.

    `runs`, int64 (K,), counts the stretches of frames with one unit.
    """

    def __init__(self, alignments: Mapping[str, Alignment], num_units: int, rate: int) -> None:
        self.phones = np.unique(np.concatenate([a.phones for a in alignments.values()]))
        self.runs = np.zeros(num_units, np.int64)
        self.rate = rate
        self._alignments = alignments
        self._pairs: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    @property
    def counts(self) -> np.ndarray:
        """Of all utterances, int64 (phones, units)."""
        total = np.asarray(self.by_utterance().sum(axis=0))
        return total.reshape(len(self.phones), len(self.runs))

    def by_utterance(self) -> scipy.sparse.csr_array:
        """Int64 (utterances, phones * units), in the order of the alignments."""
        nothing = np.zeros(0, np.int64), np.zeros(0, np.int64)
        found = [self._pairs.get(name, nothing) for name in self._alignments]
        pairs, counts = map(np.concatenate, zip(*found, strict=True))
        ends = np.cumsum([0, *(len(pairs) for pairs, _ in found)])
        shape = len(found), len(self.phones) * len(self.runs)
        return scipy.sparse.csr_array((counts, pairs, ends), shape=shape)

    def add(self, utterance_id: str, num_samples: int, labels: np.ndarray, label_rate: int) -> None:
        """Counts one utterance of `num_samples` samples (16 kHz) with its labels.

        Raises InputError for another's alignment, too few labels or one out of range.
        """
        frames = num_frames(num_samples, self.rate)
        try:
            phones = phones_at_frames(self._alignments[utterance_id], frames, self.rate)
            units = units_at_frames(labels, label_rate, frames, self.rate).astype(np.int64)
        except InputError as error:
            raise InputError(f"utterance {utterance_id}: {error}") from None
        num_units = len(self.runs)
        if frames and units.max() >= num_units:
            raise InputError(
                f"utterance {utterance_id}: found label {units.max()}, expected labels below "
                f"{num_units}; use the labels and the codebook of one labelling"
            )
        rows = np.searchsorted(self.phones, phones)
        self._pairs[utterance_id] = np.unique(rows * num_units + units, return_counts=True)
        begins = np.diff(units, prepend=-1) != 0
        self.runs += np.bincount(units[begins], minlength=num_units)


def score(joint: JointCounts) -> Quality:
    """The figures of all utterances; InputError for no frame or a single phone.

    The bitrate is that of ZeroSpeech (Dunbar et al. 2019): a run is sent as one symbol, without its
    length, in as many bits as the entropy of the runs' units.
    """
    counts = joint.counts
    frames = int(counts.sum())
    if not frames:
        raise InputError("quality: no frame to score; is the split empty?")
    if np.count_nonzero(counts.sum(axis=1)) == 1:
        raise InputError(
            "quality: all frames have one phone, so PNMI is not defined; score more speech"
        )
    unit = counts.sum(axis=0)
    entropy, runs = float(_entropy(unit)), int(joint.runs.sum())
    return Quality(
        pnmi=float(_pnmi(counts)),
        phone_purity=float(counts.max(axis=0).sum() / frames),
        cluster_purity=float(counts.max(axis=1).sum() / frames),
        commonest_unit_share=float(unit.max() / frames),
        used_units=int(np.count_nonzero(unit)),
        entropy=entropy,
        perplexity=2.0**entropy,
        mean_run=frames / runs,
        bitrate=float(_entropy(joint.runs)) * runs * joint.rate / frames,
        frames=frames,
    )


def _entropy(counts: np.ndarray) -> np.ndarray:
    """Bits, of the distribution in the last axis of counts (..., n)."""
    total = counts.sum(axis=-1)
    weighted = scipy.special.xlogy(counts, counts).sum(axis=-1)
    return (np.log(total) - weighted / total) / np.log(2)


def _pnmi(counts: np.ndarray) -> np.ndarray:
    """Of counts (..., phones, units)."""
    phone = _entropy(counts.sum(axis=-1))
    both = _entropy(counts.reshape(*counts.shape[:-2], -1))
    return (phone + _entropy(counts.sum(axis=-2)) - both) / phone


class PairedBootstrap:
    """For intervals of the difference of two sets' PNMI, over `draws` of `groups` with replacement.

    `groups` has the number, from 0, of every utterance's group: itself, or its speaker. Both sets
    are drawn alike, from `seed` alone. Intervals are of differences, as plug-in mutual information
    is biased upwards, and more so in draws, which repeat utterances: one set's draws may all lie
    above its own PNMI. In a difference much of that cancels; what is left, the mean of the draws
    less the difference, is taken off their percentiles by `interval`.
    """

    def __init__(self, groups: np.ndarray, draws: int, seed: int) -> None:
        self.groups = int(groups.max()) + 1
        drawn = np.random.default_rng(seed).multinomial(
            self.groups, np.full(self.groups, 1 / self.groups), draws
        )
        self._weights = drawn[:, groups].astype(np.float64)

    def pnmi(self, joint: JointCounts) -> np.ndarray:
        """Of every draw, float64 (draws,); NaN where all its frames have one phone."""
        of_utterances = joint.by_utterance().astype(np.float64)
        shape = len(joint.phones), len(joint.runs)
        step = max(1, _TOGETHER // of_utterances.shape[1])
        found = []
        for first in range(0, len(self._weights), step):
            drawn = self._weights[first : first + step] @ of_utterances
            with np.errstate(divide="ignore", invalid="ignore"):
                found.append(_pnmi(drawn.reshape(-1, *shape)))
        return np.concatenate(found)


def interval(difference: float, draws: np.ndarray) -> list[float]:
    """The 95 % interval of a `difference` of PNMI whose draws are float64 (draws,)."""
    return (difference + np.nanpercentile(draws - np.nanmean(draws), [2.5, 97.5])).tolist()
