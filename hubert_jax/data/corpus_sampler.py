"""Which of several corpora each row of a bucket is drawn from."""

from collections.abc import Sequence

import numpy as np


class CorpusSampler:
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

    def __init__(self, weights: Sequence[float], seed: Sequence[int]) -> None:
        """Divides the circle by `weights` (positive, in any unit); `seed` decides `start`."""
        parts = np.cumsum(np.asarray(weights, np.float64))
        self.ends = np.round(parts / parts[-1] * self.CYCLE).astype(np.int64)
        self.start = int(np.random.default_rng(seed).integers(self.CYCLE))

    def before(self, row: int) -> list[int]:
        """How many of rows 0 ... `row` - 1 each corpus has."""
        below = [_count_below(row, self.STRIDE, self.start, self.CYCLE, int(e)) for e in self.ends]
        return [int(count) for count in np.diff([0, *below])]

    def turns(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Each row's corpus, and which of that corpus's rows it is: int64 (n,) to two int64 (n,).

        Takes as long as the rows reach from the lowest to the highest.
        """
        first, last = int(rows.min()), int(rows.max())
        places = (self.start + np.arange(first, last + 1) * self.STRIDE) % self.CYCLE
        corpora = np.searchsorted(self.ends, places, side="right")
        turns = np.empty(len(corpora), np.int64)
        for corpus, used in enumerate(self.before(first)):
            mine = corpora == corpus
            turns[mine] = used + np.arange(np.count_nonzero(mine))
        return corpora[rows - first], turns[rows - first]


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
