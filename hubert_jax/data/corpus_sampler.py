"""Which of several corpora each row of a bucket is drawn from."""

from collections.abc import Sequence

import numpy as np

_CYCLE, _STRIDE = 2**32, 2_654_435_769  # the stride is the cycle's golden section


class CorpusSampler:
    """The corpus of each row of a bucket, as a function of the row's number alone.

    Row r lies at (start + r * stride) mod cycle on a circle divided by the corpora's weights.
    Multiples of the golden section spread evenly: a batch has its shares to within a few rows,
    and the rows a corpus had before a step are a sum that needs no replay.
    """

    def __init__(self, weights: Sequence[float], seed: Sequence[int]) -> None:
        """Divides the circle by `weights` (positive, in any unit); `seed` decides its start."""
        parts = np.cumsum(np.asarray(weights, np.float64))
        self._ends = np.round(parts / parts[-1] * _CYCLE).astype(np.int64)
        self._start = int(np.random.default_rng(seed).integers(_CYCLE))

    def before(self, row: int) -> list[int]:
        """How many of rows 0 ... `row` - 1 each corpus has."""
        below = [_count_below(row, self._start, int(end)) for end in self._ends]
        return [int(count) for count in np.diff([0, *below])]

    def turns(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Each row's corpus, and its number among that corpus's rows: int64 (n,) to two of them.

        Takes time in proportion to the distance from the lowest row to the highest.
        """
        first, last = int(rows.min()), int(rows.max())
        places = (self._start + np.arange(first, last + 1) * _STRIDE) % _CYCLE
        corpora = np.searchsorted(self._ends, places, side="right")
        turns = np.empty(len(corpora), np.int64)
        for corpus, used in enumerate(self.before(first)):
            mine = corpora == corpus
            turns[mine] = used + np.arange(np.count_nonzero(mine))
        return corpora[rows - first], turns[rows - first]


def _count_below(count: int, start: int, end: int) -> int:
    """How many of rows 0 ... count - 1 lie below `end` on the circle."""
    beyond = _floor_sum(count, _CYCLE, _STRIDE, start + _CYCLE - end)
    return count - (beyond - _floor_sum(count, _CYCLE, _STRIDE, start))


def _floor_sum(count: int, divisor: int, factor: int, offset: int) -> int:
    """Sum of (factor * i + offset) // divisor over i = 0 ... count - 1, as by Euclid."""
    total = 0
    while count:
        total += count * (count - 1) // 2 * (factor // divisor) + count * (offset // divisor)
        factor, offset = factor % divisor, offset % divisor
        count, offset = divmod(factor * count + offset, divisor)
        factor, divisor = divisor, factor
    return total
