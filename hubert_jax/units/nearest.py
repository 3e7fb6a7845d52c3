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
_BLOCK = 8192  # frames that go to a device together
_ROWS = 1024  # of them whose distances to all centroids are in memory at once
_FRAMES = 256  # of each row of a batch likewise


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
        doubled = np.ascontiguousarray(-2.0 * moved.T, np.float32)
        bound = np.array([2.0 * rounding * longest, rounding * longest**2], np.float32)
        self._arguments: tuple[Any, ...] = (centre, doubled, squares.astype(np.float32), bound)

    def labels(self, frames: np.ndarray) -> np.ndarray:
        """The nearest centroids of finite float32 (T, D): uint16 (T,)."""
        labels, start = np.empty(len(frames), np.uint16), 0
        for some in self.blocks(frames, lambda labels, here: labels):
            labels[start : start + len(some)] = some
            start += len(some)
        return labels

    def blocks(
        self, frames: np.ndarray, function: Callable[[np.ndarray, jax.Array], Result]
    ) -> Iterator[Result]:
        """What `function` gives for blocks of float32 (T, D), in order.

        It takes a block's labels, and its frames on a device, where zeros may follow them. Devices
        take blocks in turn.
        """
        devices = jax.local_devices()

        def work(number: int) -> Result:
            block = frames[number * _BLOCK : (number + 1) * _BLOCK]
            size = _ROWS
            while size < len(block):
                size *= 2
            filled = np.zeros((size, block.shape[1]), np.float32)
            filled[: len(block)] = block
            here = jax.device_put(filled, devices[number % len(devices)])
            return function(self._of_block(block, here), here)

        count = -(-len(frames) // _BLOCK)
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
        found = lax.map(lambda some: _found(some, *self._arguments), parts)
        best, close = (each.swapaxes(0, 1).reshape(rows, -1)[:, :count] for each in found)
        return best, close

    def exactly(self, frames: np.ndarray) -> np.ndarray:
        """As `labels`, by float64 alone."""
        exact = frames.astype(np.float64) @ (-2.0 * self._exact.T) + self._squares
        return exact.argmin(axis=1).astype(np.uint16)

    def _of_block(self, block: np.ndarray, here: jax.Array) -> np.ndarray:
        best, close = map(np.asarray, _search()(here, *self._arguments))
        labels = best[: len(block)].copy()
        undecided = np.flatnonzero(close[: len(block)])
        if len(undecided):
            labels[undecided] = self.exactly(block[undecided])
        return labels


def _found(
    some: jax.Array, centre: jax.Array, doubled: jax.Array, squares: jax.Array, bound: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The nearest centroid of every frame, and whether it is too close to another to be sure."""
    some = some - centre
    distances = jnp.dot(some, doubled, precision=lax.Precision.HIGHEST) + squares
    distances = lax.optimization_barrier(distances)  # or the product is made twice
    numbers = lax.broadcasted_iota(jnp.int32, distances.shape, distances.ndim - 1)
    smallest = distances.min(axis=-1)
    best = jnp.where(distances == smallest[..., None], numbers, len(squares)).min(axis=-1)
    second = jnp.where(numbers == best[..., None], jnp.inf, distances).min(axis=-1)
    closest = bound[0] * jnp.sqrt(jnp.square(some).sum(axis=-1)) + bound[1]
    return best.astype(jnp.uint16), ~(second - smallest > closest)


@functools.cache
def _search() -> Callable[..., tuple[jax.Array, jax.Array]]:
    """`_found` of (N, D), some rows at a time."""

    def search(frames: jax.Array, *arguments: jax.Array) -> tuple[jax.Array, jax.Array]:
        rows = frames.reshape(-1, _ROWS, frames.shape[1])
        best, close = lax.map(lambda some: _found(some, *arguments), rows)
        return best.ravel(), close.ravel()

    return jax.jit(search, **distributed.compiled_here())
