"""Which record each row of a bucket is: a function of (seed, row), found without a replay."""

from __future__ import annotations  # TensorFlow's types are not looked at before it is used

import functools
from collections.abc import Sequence

import numpy as np

from hubert_jax.data.corpus_sampler import CorpusSampler
from hubert_jax.data.tensorflow import tf

_WINDOW = 1024  # records shuffled together; never across a shard's end
_KEPT = 64  # orders that are remembered; a batch goes through a few


class _CorpusOrder:
    """Endless rows of one corpus in one bucket, shard by shard so that reads are close together.

    The order of the shards, and of the records in each window of one, are by (seed, epoch).
    """

    def __init__(self, shards: Sequence[range | np.ndarray], seed: int) -> None:
        self._shards, self._seed = shards, seed
        self._counts = np.array([len(records) for records in shards], np.int64)
        self._size = int(self._counts.sum())
        self._epoch = functools.lru_cache(4)(self._ordered_shards)
        self._window = functools.lru_cache(_KEPT)(self._ordered_window)

    def records(self, rows: np.ndarray) -> np.ndarray:
        found = np.empty(len(rows), np.int64)
        for i, row in enumerate(rows.tolist()):
            epoch, row = divmod(row, self._size)
            order, ends = self._epoch(epoch)
            place = int(np.searchsorted(ends, row, side="right"))
            shard = int(order[place])
            records = self._shards[shard]
            number, row = divmod(row - int(ends[place]) + len(records), _WINDOW)
            found[i] = records[number * _WINDOW + int(self._window(epoch, shard, number)[row])]
        return found

    def _ordered_shards(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """An epoch's order of the shards, and the row at which each ends in it."""
        order = _shuffled(len(self._shards), tf.int64, [self._seed, epoch])
        return order, np.cumsum(self._counts[order])

    def _ordered_window(self, epoch: int, shard: int, number: int) -> np.ndarray:
        size = min(_WINDOW, len(self._shards[shard]) - number * _WINDOW)
        key = epoch * 1_000_003 + shard * 1_009 + number
        return _shuffled(size, tf.int32, [self._seed, key])


class BucketOrder:
    """Endless rows of a bucket, whose corpora take turns by their weights."""

    def __init__(
        self,
        corpora: Sequence[Sequence[range | np.ndarray]],
        weights: list[float],
        frames: int,
        seed: int,
    ):
        """Of the records of each corpus's shards, none empty; `frames` names the bucket."""
        self._corpora = [
            _CorpusOrder(shards, (number << 32) + seed * 1009 + frames)
            for number, shards in enumerate(corpora)
        ]
        self._sampler = CorpusSampler(weights, [seed, frames])

    def records(self, rows: np.ndarray) -> np.ndarray:
        """The records of rows (n,) int64, in any order: int64 (n,)."""
        if len(self._corpora) == 1:
            return self._corpora[0].records(rows)
        found = np.empty(len(rows), np.int64)
        corpora, turns = self._sampler.turns(rows)
        for number, corpus in enumerate(self._corpora):
            mine = corpora == number
            found[mine] = corpus.records(turns[mine])
        return found


def _shuffled(size: int, kind: tf.DType, seed: list[int]) -> np.ndarray:
    shuffle = tf.random.experimental.stateless_shuffle
    with tf.device("CPU"):
        return shuffle(tf.range(size, dtype=kind), tf.constant(seed, tf.int64)).numpy()
