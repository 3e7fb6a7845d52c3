"""The nearest centroid of every frame, exactly, on all devices of this process."""

import collections
import functools
import os
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hubert_jax import distributed

Result = TypeVar("Result")
_MOST, _FEWEST = 2**14, 2**10  # frames that go to a device together
_NUMBERS = 2**21  # that they have, at most
_DISTANCES = 2**17  # that are computed together; about what a core's cache holds
_FRAMES = 256  # of each row of a batch, that are looked at together


class Nearest:
    """Finds the first of the nearest of `centroids`, float32 (K, D).

    By |x - c|^2 - |x|^2 = |c|^2 - 2 x c in float32; where rounding could decide, float64 does:
    labels depend neither on the machine nor on what else is in a batch.
    """

    def __init__(self, centroids: np.ndarray) -> None:
        self._exact = centroids.astype(np.float64)
        self._squares = np.square(self._exact).sum(axis=1)
        centre = self._exact.mean(axis=0).astype(np.float32)  # smaller numbers, smaller rounding
        moved = self._exact - centre
        squares = np.square(moved).sum(axis=1)
        rounding = 2.0 * (centroids.shape[1] + 4) * np.finfo(np.float32).eps
        longest = np.sqrt(squares.max())
        products = np.concatenate([-2.0 * moved, squares[:, None]], axis=1).astype(np.float32)
        bound = np.array([2.0 * rounding * longest, rounding * longest**2], np.float32)
        self._arguments: tuple[Any, ...] = (centre, products, bound)

    def labels(self, frames: np.ndarray) -> np.ndarray:
        """The nearest centroids of finite float32 (T, D): uint16 (T,)."""
        labels = np.empty(len(frames), np.uint16)
        for start, some in self.blocks(frames, lambda start, labels: (start, labels)):
            labels[start : start + len(some)] = some
        return labels

    def blocks(
        self, frames: np.ndarray, function: Callable[[int, np.ndarray], Result]
    ) -> Iterator[Result]:
        """What `function` gives for each block of float32 (T, D), in order.

        It takes the number of the first frame, and the labels, and is called in several threads.
        Devices take blocks in turn.
        """
        devices, size = jax.local_devices(), _MOST
        while size * frames.shape[1] > _NUMBERS and size > _FEWEST:
            size //= 2

        def work(number: int) -> Result:
            start = number * size
            block = frames[start : start + size]
            return function(start, self._of_block(block, devices[number % len(devices)]))

        count = -(-len(frames) // size)
        if count == 1:
            yield work(0)
            return
        # XLA's CPU back-end gives a program of this size one core.
        threads = max(2 * len(devices), min(8, os.cpu_count() or 1))
        under_way: collections.deque[futures.Future[Result]] = collections.deque()
        with futures.ThreadPoolExecutor(threads) as pool:
            for number in range(count):
                under_way.append(pool.submit(work, number))
                if len(under_way) > threads:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()

    def search(self, frames: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The nearest of float32 (B, T, D) by float32, uint16 (B, T), and whether rounding decided.

        For use within a compiled function; where it did, and for NaN, `exactly` tells.
        """
        rows, count, dim = frames.shape
        padded = jnp.pad(frames, [(0, 0), (0, -count % _FRAMES), (0, 0)])
        # Of each row some frames at a time, so that devices keep their rows.
        parts = padded.reshape(rows, -1, _FRAMES, dim).swapaxes(0, 1)
        coded = lax.map(lambda some: _coded(some.reshape(-1, dim), *self._arguments), parts)
        found = coded.reshape(-1, rows, _FRAMES).swapaxes(0, 1).reshape(rows, -1)[:, :count]
        found = found - len(self._exact)
        return found.astype(jnp.uint16), ~((found >= 0) & (found < len(self._exact)))

    def exactly(self, frames: np.ndarray) -> np.ndarray:
        """As `labels`, by float64 alone."""
        exact = frames.astype(np.float64) @ (-2.0 * self._exact.T) + self._squares
        return exact.argmin(axis=1).astype(np.uint16)

    def _of_block(self, block: np.ndarray, device: jax.Device) -> np.ndarray:
        size = _FEWEST
        while size < len(block):
            size *= 2
        filled = block
        if size > len(block):
            filled = np.zeros((size, block.shape[1]), np.float32)
            filled[: len(block)] = block
        found = np.asarray(_search()(jax.device_put(filled, device), *self._arguments))
        k = len(self._exact)
        found = found[: len(block)] - k
        labels = found.astype(np.uint16)
        undecided = np.flatnonzero(~((found >= 0) & (found < k)))
        if len(undecided):
            labels[undecided] = self.exactly(block[undecided])
        return labels


def _coded(some: jax.Array, centre: jax.Array, products: jax.Array, bound: jax.Array) -> jax.Array:
    """K and the number of every frame's nearest centroid; where others may be as near, their sum.

    That is at least 2 K, and one reduction. Numbers below 2 K are exact in float32.
    """
    some = some - centre
    longer = jnp.concatenate([some, jnp.ones((len(some), 1), jnp.float32)], axis=1)
    # Frames last: reductions over centroids are then sums of vectors.
    distances = lax.dot_general(
        products, longer, (((1,), (1,)), ((), ())), precision=lax.Precision.HIGHEST
    )
    closest = bound[0] * jnp.sqrt(jnp.square(some).sum(axis=1)) + bound[1]
    near = distances <= distances.min(axis=0) + closest
    numbers = len(products) + lax.broadcasted_iota(jnp.float32, distances.shape, 0)
    return jnp.where(near, numbers, 0.0).sum(axis=0)


@functools.cache
def _search() -> Callable[..., jax.Array]:
    """`_coded` of (N, D), as many frames at a time as a cache holds the distances of."""

    def search(frames: jax.Array, *arguments: jax.Array) -> jax.Array:
        k, together = len(arguments[1]), 64
        while together < len(frames) and 2 * together * k <= _DISTANCES:
            together *= 2
        parts = frames.reshape(-1, together, frames.shape[1])
        return lax.map(lambda some: _coded(some, *arguments), parts).ravel()

    return jax.jit(search, **distributed.compiled_here())
