"""How much of what training draws comes from each of several corpora, and in which turn."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Corpora that are drawn more or less often than their size has it.

    Attributes:
      weights: by corpus, factors on top of the up-sampling; names are in their order.
      language_exponent, corpus_exponent: of the up-sampling, see `shares`.
    """

    weights: dict[str, float]
    language_exponent: float = 1.0
    corpus_exponent: float = 1.0

    @property
    def even(self) -> bool:
        """Whether everything is drawn equally often, so that the corpora are like one."""
        factors = {*self.weights.values(), self.language_exponent, self.corpus_exponent}
        return factors == {1.0}

    def shares(self, seconds: dict[str, float]) -> dict[str, float]:
        """What is drawn of each corpus, by its seconds of audio."""
        return shares(seconds, self.weights, self.language_exponent, self.corpus_exponent)


def shares(
    seconds: dict[str, float],
    weights: dict[str, float],
    language_exponent: float,
    corpus_exponent: float,
) -> dict[str, float]:
    """Shares of corpora, up-sampled at two levels as mHuBERT-147 does it.

    The language of a corpus is the first part of its name (`de` of `de/mls`). A language has the
    share (its seconds / all seconds) ** language_exponent, divided among its corpora by (corpus
    seconds / language seconds) ** corpus_exponent, each normalised. Exponents of 1 draw everything
    equally often, 0 makes languages (or a language's corpora) equal.

    Args:
      seconds: of audio, by corpus; all above 0.
      weights: by corpus, factors on top; 1 where there is none.
      language_exponent, corpus_exponent: between 0 and 1.

    Returns:
      By corpus, in the same order; they sum to 1.
    """
    languages: dict[str, list[str]] = {}
    for name in seconds:
        languages.setdefault(name.partition("/")[0], []).append(name)
    raw = {}
    of_language = _tempered(
        {language: sum(seconds[n] for n in names) for language, names in languages.items()},
        language_exponent,
    )
    for language, names in languages.items():
        of_corpus = _tempered({name: seconds[name] for name in names}, corpus_exponent)
        for name in names:
            raw[name] = of_language[language] * of_corpus[name] * weights.get(name, 1.0)
    total = sum(raw.values())
    return {name: raw[name] / total for name in seconds}


def _tempered(seconds: dict[str, float], exponent: float) -> dict[str, float]:
    total = sum(seconds.values())
    tempered = {name: (value / total) ** exponent for name, value in seconds.items()}
    normaliser = sum(tempered.values())
    return {name: value / normaliser for name, value in tempered.items()}


class Turns:
    """Which corpus each row of a bucket is drawn from: a function of the row's number alone.

    Row r lies at (start + r * STRIDE) mod CYCLE on a circle that the corpora divide by their
    weights. STRIDE is the golden section of the circle, whose multiples spread over it as evenly
    as any: so a batch has its shares to within a few rows, where independent draws would scatter,
    and how many rows a corpus had before a step is a sum that needs no replay.

    Attributes:
      start: where row 0 lies.
      ends: (corpora,) int64, where each corpus's part of the circle ends; the last is CYCLE.
    """

    CYCLE, STRIDE = 2**32, 2_654_435_769

    def __init__(self, weights: Sequence[float], seed: Sequence[int]):
        """Divides the circle by `weights` (positive, in any unit); `seed` decides `start`."""
        parts = np.cumsum(np.asarray(weights, np.float64))
        self.ends = np.round(parts / parts[-1] * self.CYCLE).astype(np.int64)
        self.start = int(np.random.default_rng(seed).integers(self.CYCLE))

    def before(self, row: int, first: int = 0, every: int = 1) -> list[int]:
        """How many of `row` rows each corpus has; they are the rows first + i * every."""
        stride = self.STRIDE * every % self.CYCLE
        start = (self.start + self.STRIDE * first) % self.CYCLE
        below = [_count_below(row, stride, start, self.CYCLE, int(end)) for end in self.ends]
        return [int(count) for count in np.diff([0, *below])]


def _count_below(count: int, stride: int, start: int, cycle: int, end: int) -> int:
    """Of i = 0 ... count - 1, how many have (start + i * stride) mod cycle < end <= cycle."""
    beyond = _floor_sum(count, cycle, stride, start + cycle - end)
    return count - (beyond - _floor_sum(count, cycle, stride, start))


def _floor_sum(count: int, divisor: int, factor: int, offset: int) -> int:
    """Sum of (factor * i + offset) // divisor over i = 0 ... count - 1, as by Euclid."""
    total = 0
    while count:
        total += count * (count - 1) // 2 * (factor // divisor) + count * (offset // divisor)
        factor, offset = factor % divisor, offset % divisor
        count, offset = divmod(factor * count + offset, divisor)
        factor, divisor = divisor, factor
    return total
