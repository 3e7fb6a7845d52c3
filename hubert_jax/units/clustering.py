"""k-means over the devices of all processes: Lloyd's, or by mini-batches.

Every sum over frames is one of integers, exact in any order, and nearest centroids are exact: the
result depends on the frames and the seed alone, not on devices, processes or the order of frames.
"""

import copy
import dataclasses
import functools
import io
import math
import os
import pathlib
import zipfile
from collections.abc import Callable, Iterator
from concurrent import futures

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jax import lax

from hubert_jax import distributed, files
from hubert_jax.errors import InputError
from hubert_jax.units.nearest import Nearest

SCIKIT_LEARN = "scikit-learn"
_METHODS = ("lloyd", "minibatch", SCIKIT_LEARN)
_BITS = 30  # that frames are rounded to; float64 adds a block's exactly
_CHUNK = 8192  # frames that are looked at together
_TILE = 512  # of frames that starts are made from, whose distances a core's cache holds
_POLISHING = (3, 7)  # passes over these, of all starts and of the best quarter


@dataclasses.dataclass(frozen=True)
class KMeansConfig:
    """How codebooks are fitted."""

    method: str = "lloyd"  # or minibatch, or scikit-learn: its MiniBatchKMeans, on one host
    metric: str = "euclidean"  # or cosine: of frames and codewords of length 1
    n_init: int = 20  # starts of k-means++, the best of which is refined
    batch_frames: int = 10_000  # of minibatch and scikit-learn
    max_iter: int = 100  # passes over the frames at most; 2 or more
    tolerance: float = 1e-4  # ends when a pass lowers the inertia by a smaller fraction
    max_no_improvement: int = 100  # of scikit-learn, which ends after so many batches instead

    def __post_init__(self) -> None:
        for name, known in (("method", _METHODS), ("metric", ("euclidean", "cosine"))):
            if getattr(self, name) not in known:
                raise InputError(
                    f"config.kmeans.{name}={getattr(self, name)}: expected one of "
                    f"{', '.join(known)}"
                )
        for name in ("n_init", "batch_frames", "max_no_improvement"):
            if getattr(self, name) < 1:
                raise InputError(f"config.kmeans.{name}={getattr(self, name)}: expected 1 or more")
        if self.max_iter < 2:  # scikit-learn fails if one batch holds all
            raise InputError(f"config.kmeans.max_iter={self.max_iter}: expected 2 or more")
        if not 0.0 <= self.tolerance < 1.0:
            raise InputError(
                f"config.kmeans.tolerance={self.tolerance}: expected 0 or more, below 1"
            )
        if (self.method, self.metric) == (SCIKIT_LEARN, "cosine"):
            raise InputError(
                f"config.kmeans.metric=cosine: {SCIKIT_LEARN} has euclidean alone; expected "
                "another config.kmeans.method"
            )


def starts(frames: np.ndarray, num_clusters: int, seed: int, settings: KMeansConfig) -> np.ndarray:
    """The best centroids, float32 (K, D), of `n_init` starts of greedy k-means++ on float32 (N, D).

    All go through some of Lloyd's passes, the best quarter of them through more.
    """
    centre = frames.mean(axis=0, dtype=np.float64).astype(np.float32)
    moved = jax.device_put(frames - centre)
    keys = jax.random.split(jax.random.key(seed), settings.n_init)
    chosen, lloyds = _plus_plus(num_clusters), _lloyds()
    # XLA's CPU back-end gives most of this one core.
    with futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = list(pool.map(lambda key: jax.device_get(chosen(moved, key)), keys))
        for passes, kept in zip(_POLISHING, (-(-len(keys) // 4), 1), strict=True):
            tried = pool.map(lambda one: jax.device_get(lloyds(moved, one, passes)), found)  # noqa: B023
            found = [one for one, _ in sorted(tried, key=lambda each: each[1])[:kept]]
    best = found[0] + centre
    return unit(best) if settings.metric == "cosine" else best


def refine(
    frames: np.ndarray,
    keys: np.ndarray,
    centroids: np.ndarray,
    settings: KMeansConfig,
    most: int,
    kept: pathlib.Path | None = None,
) -> tuple[np.ndarray, float, int]:
    """Moves centroids to the means of their frames, in `most` passes at most.

    Returns them, the mean squared distance of the frames to them, and how many have no frames.
    `frames` are this process's float32 (N, D), in the order of their uint64 `keys`, of which no two
    processes have one in common; `centroids`, float32 (K, D), are the first process's. Centroids
    without frames are moved to frames far from theirs. What is done is kept in the file `kept`,
    where a later call goes on. Prints the inertia of every pass.
    """
    whole = _Frames(frames, keys)
    passes, before, weights, centroids = _first_state(centroids, kept)
    if passes:
        distributed.announce(f"k-means: goes on after pass {passes}")
    parts = [whole]
    if settings.method == "minibatch":
        parts = list(whole.parts(-(-whole.everywhere // settings.batch_frames)))
    cosine = settings.metric == "cosine"
    while passes < most:
        counts, squared = np.zeros_like(weights), 0.0
        for part in parts:
            sums, of_part, inertia = part.measured(centroids)
            weights = of_part if part is whole else weights + of_part
            moves = sums - of_part[:, None] * centroids.astype(np.float64)
            moved = centroids + moves / np.maximum(weights, 1)[:, None]
            centroids = unit(moved) if cosine else moved.astype(np.float32)
            counts, squared = counts + of_part, squared + inertia
        empty = np.flatnonzero(counts == 0)
        there = whole.drawn(centroids, len(empty), passes)
        centroids[empty[: len(there)]] = there
        weights[empty] = 0
        passes += 1
        mean = squared / whole.everywhere
        seeded = f", {len(there)} empty clusters re-seeded" if len(there) else ""
        distributed.announce(f"k-means: pass {passes}: inertia {mean:.6g} a frame{seeded}")
        if not len(there) and mean >= before * (1.0 - settings.tolerance):
            break
        before = mean
        if kept is not None and distributed.is_first():
            _write(kept, passes, before, weights, centroids)
    _, counts, total = whole.measured(centroids)
    return centroids, total / whole.everywhere, int((counts == 0).sum())


class _Frames:
    """This process's part of the frames that are clustered, and where they were found last."""

    def __init__(self, frames: np.ndarray, keys: np.ndarray) -> None:
        self._frames, self._keys = frames, keys
        self.everywhere = int(distributed.everywhere(np.array(len(frames))).sum())
        largest = np.zeros(frames.shape[1])
        for some in self._chunks():
            largest = np.maximum(largest, np.abs(some).max(axis=0))
        largest = distributed.everywhere(largest).max(axis=0)
        # Powers of two: no rounding.
        self._units = 2.0 ** (np.ceil(np.log2(np.maximum(largest, 1e-27))) + 1 - _BITS)
        # Of squared lengths, of which 2^62 have to be enough for all frames.
        self._square = 2.0 ** (
            math.ceil(math.log2(float(np.square(largest).sum()) + 1e-60))
            + math.ceil(math.log2(self.everywhere))
            - 61
        )
        self._start()

    def _start(self) -> None:
        self._labels, self._totals = np.zeros(0, np.int32), np.zeros((0, 0), np.int64)
        self._squares = 0
        for some in self._chunks():
            lengths = np.square(self._rounded(some) * self._units).sum(axis=1)
            self._squares += int(np.rint(lengths / self._square).astype(np.int64).sum())

    def _chunks(self) -> Iterator[np.ndarray]:
        return (self._frames[i : i + _CHUNK] for i in range(0, len(self._frames), _CHUNK))

    def _rounded(self, frames: np.ndarray) -> np.ndarray:
        """Whole numbers of units, float32 (T, D)."""
        return np.rint(frames * (1.0 / self._units).astype(np.float32))

    def parts(self, count: int) -> Iterator["_Frames"]:
        """All frames in `count` parts, about as many of all processes' in each."""
        last = distributed.everywhere(np.array(self._keys[-1:].max(initial=0)).view(np.int64))
        span = int(last.view(np.uint64).max()) + 1  # a sample has the smallest keys
        bounds = [np.uint64(i * span // count) for i in range(1, count)]
        cuts = [0, *np.searchsorted(self._keys, bounds).tolist(), len(self._keys)]
        for start, stop in zip(cuts[:-1], cuts[1:], strict=True):
            part = copy.copy(self)
            part._frames, part._keys = self._frames[start:stop], self._keys[start:stop]
            part._start()
            yield part

    def measured(self, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """Of the frames of all processes, divided by the nearest of the centroids.

        Sums of frames, float64 (K, D); their numbers, int64 (K,); the sum of squared distances.
        """
        k, dim = centroids.shape
        if not self._totals.size:  # one row more, for frames that have not been looked at
            self._labels = np.full(len(self._frames), k, np.int32)
            self._totals = np.zeros((k + 1, dim + 1), np.int64)

        def changes(start: int, labels: np.ndarray) -> np.ndarray:
            before = self._labels[start : start + len(labels)]
            changed = np.flatnonzero(labels != before)
            moved = np.ones((len(changed), dim + 1), np.float32)  # the last column counts them
            moved[:, :-1] = self._rounded(self._frames[start : start + len(labels)][changed])
            rows = np.stack([labels[changed], before[changed]], axis=1).ravel()
            signs, ends = np.tile([1.0, -1.0], len(changed)), 2 * np.arange(len(changed) + 1)
            belongs = scipy.sparse.csc_array((signs, rows, ends), shape=(k + 1, len(changed)))
            before[:] = labels
            return (belongs @ moved).astype(np.int64)

        for change in Nearest(centroids).blocks(self._frames, changes):
            self._totals += change
        totals = self._totals.copy()
        totals[-1] = self._squares
        totals = distributed.everywhere(totals).sum(axis=0)
        sums, counts = totals[:-1, :-1] * self._units, totals[:-1, -1]
        exact = centroids.astype(np.float64)
        distances = counts * np.square(exact).sum(axis=1) - 2.0 * (exact * sums).sum(axis=1)
        squared = distances.sum() + totals[-1, -1] * self._square
        return sums, counts, max(float(squared), 0.0)

    def drawn(self, centroids: np.ndarray, count: int, number: int) -> np.ndarray:
        """At most `count` frames of all processes, drawn as k-means++ does: by squared distance.

        Fewer where fewer are away from the centroids. `number` makes draws differ.
        """
        if not count:
            return self._frames[:0]
        labels = Nearest(centroids).labels(self._frames)
        distances, start = np.empty(len(labels)), 0
        for some in self._chunks():
            here = slice(start, start + len(some))
            away = some.astype(np.float64) - centroids[labels[here]]
            distances[here], start = np.square(away).sum(axis=1), start + len(some)
        mixed = self._keys ^ np.uint64(number)
        for factor in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB):
            mixed = (mixed ^ (mixed >> np.uint64(31))) * np.uint64(factor)
        uniform = (mixed >> np.uint64(11)).astype(np.float64) + 0.5
        # The smallest of exponential variables of these rates.
        with np.errstate(divide="ignore"):
            times = -np.log(uniform * 2.0**-53) / distances
        order = np.lexsort((self._keys, times))[:count]
        mine = np.full((count, self._frames.shape[1] + 1), np.inf)
        mine[: len(order), 0] = times[order]
        mine[: len(order), 1:] = self._frames[order]
        rows = distributed.everywhere(mine).reshape(-1, mine.shape[1])
        rows = rows[np.argsort(rows[:, 0], kind="stable")[:count]]
        return rows[np.isfinite(rows[:, 0]), 1:].astype(np.float32)


def unit(frames: np.ndarray) -> np.ndarray:
    """float32 frames of length 1, but for those of length 0."""
    lengths = np.sqrt(np.square(frames.astype(np.float64)).sum(axis=1, keepdims=True))
    return (frames / np.maximum(lengths, 1e-30)).astype(np.float32)


@functools.cache
def _plus_plus(num_clusters: int) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """(frames (N, D), key) -> frames that are centroids, (K, D)."""
    trials = 2 + int(math.log(num_clusters))

    def start(frames: jax.Array, key: jax.Array) -> jax.Array:
        lengths = jnp.square(frames).sum(axis=1)

        def squared(some: jax.Array) -> jax.Array:
            products = jnp.dot(some, frames.T, precision=lax.Precision.HIGHEST)
            squares = jnp.square(some).sum(axis=1)[:, None] + lengths
            return jnp.maximum(squares - 2.0 * products, 0.0)

        def choose(i: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            chosen, closest = state
            cumulative = jnp.cumsum(closest)
            drawn = jax.random.uniform(jax.random.fold_in(key, i), (trials,)) * cumulative[-1]
            candidates = jnp.searchsorted(cumulative, drawn).clip(0, len(frames) - 1)
            distances = jnp.minimum(closest, squared(frames[candidates]))
            best = distances.sum(axis=1).argmin()
            return chosen.at[i].set(candidates[best]), distances[best]

        first = jax.random.randint(key, (1,), 0, len(frames))
        chosen = jnp.zeros(num_clusters, jnp.int32).at[0].set(first[0])
        state = chosen, squared(frames[first])[0]
        return frames[lax.fori_loop(1, num_clusters, choose, state)[0]]

    return jax.jit(start, **distributed.compiled_here())


@functools.cache
def _lloyds() -> Callable[[jax.Array, np.ndarray, int], tuple[jax.Array, jax.Array]]:
    """(frames (N, D), centroids (K, D), passes) -> centroids and their inertia, less a constant."""

    def lloyds(frames, centroids, passes):  # type: ignore[no-untyped-def]
        # Numbers that are 1, or 0 in rows that fill the last tile, count frames and add squares.
        longer = jnp.pad(frames, ((0, 0), (0, 1)), constant_values=1.0)
        tiles = jnp.pad(longer, ((0, -len(frames) % _TILE), (0, 0)))
        tiles = tiles.reshape(-1, _TILE, longer.shape[1])

        def measured(centroids: jax.Array) -> tuple[jax.Array, jax.Array]:
            squares = jnp.square(centroids).sum(axis=1, keepdims=True)
            products = jnp.concatenate([-2.0 * centroids, squares], axis=1)

            def add(sums: jax.Array, tile: jax.Array) -> tuple[jax.Array, jax.Array]:
                distances = lax.dot_general(
                    products, tile, (((1,), (1,)), ((), ())), precision=lax.Precision.HIGHEST
                )
                smallest = distances.min(axis=0)
                # A product, since a scattered sum has no order on GPUs.
                belongs = jnp.equal(distances, smallest).astype(jnp.float32)
                return sums + jnp.dot(belongs, tile, precision=lax.Precision.HIGHEST), smallest

            sums, smallest = lax.scan(add, jnp.zeros_like(products), tiles)
            return sums, smallest.sum()

        def once(_: jax.Array, centroids: jax.Array) -> jax.Array:
            sums, _ = measured(centroids)
            counts = sums[:, -1:]
            return jnp.where(counts > 0, sums[:, :-1] / jnp.maximum(counts, 1.0), centroids)

        centroids = lax.fori_loop(0, passes, once, centroids)
        return centroids, measured(centroids)[1]

    return jax.jit(lloyds, **distributed.compiled_here())


def _write(
    path: pathlib.Path, passes: int, before: float, weights: np.ndarray, centroids: np.ndarray
) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, numbers=[passes, before], weights=weights, centroids=centroids)
    files.write_bytes(path, buffer.getvalue())


def _first_state(
    centroids: np.ndarray, path: pathlib.Path | None
) -> tuple[int, float, np.ndarray, np.ndarray]:
    """What the first process's `_write` wrote, or the beginning with its centroids."""
    state = [np.array([0.0, math.inf]), np.zeros(len(centroids)), centroids]
    if path is not None and distributed.is_first():
        try:
            with np.load(path) as found:
                kept = [found["numbers"], found["weights"], found["centroids"]]
            if [value.shape for value in kept] == [value.shape for value in state]:
                state = kept
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            pass  # none yet, or damaged
    packed = np.concatenate([value.astype(np.float64).ravel() for value in state])
    numbers, weights, rest = np.split(
        distributed.everywhere(packed)[0], np.cumsum([2, len(centroids)])
    )
    return (
        int(numbers[0]),
        float(numbers[1]),
        weights.astype(np.int64),
        rest.reshape(centroids.shape).astype(np.float32),
    )
