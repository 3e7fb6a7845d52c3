"""Reading ahead: what is waited for, how it ends, and that it changes nothing."""

import time

import jax
import numpy as np
import pytest

from hubert_jax.errors import InputError
from hubert_jax.training import sharding
from hubert_jax.training.prefetch import Prefetch


class Running:
    """A step that is done after some seconds."""

    def __init__(self, seconds: float):
        self._end = time.monotonic() + seconds

    def is_ready(self) -> bool:
        return time.monotonic() >= self._end

    def block_until_ready(self) -> None:
        time.sleep(max(0.0, self._end - time.monotonic()))


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(sharding.MeshConfig())


def _batches(seconds, closed, fail_at=None):
    """Batches of 8 rows that hold their number, each after some seconds."""
    try:
        for number in range(100):
            time.sleep(seconds)
            if number == fail_at:
                raise InputError("shard 7, record 3: damaged")
            yield {"waveform": np.full((8, 2000), number, np.float32)}
    finally:
        closed.append(True)


def _seconds(batch):
    return batch["waveform"].size / 16_000


@pytest.mark.parametrize(
    ("reading", "step", "waiting"), [(0.0, 0.1, 0.0), (0.05, 0.1, 0.0), (0.15, 0.1, 0.05)]
)
def test_only_time_without_a_step_counts_as_waiting(mesh, reading, step, waiting):
    closed, steps = [], 6
    prefetch = Prefetch(mesh, lambda: _batches(reading, closed), _seconds)
    running = None
    for number in range(steps):
        batch, seconds = prefetch.take(running)
        if number == 0:
            prefetch.waited = 0.0  # nothing can run before the first batch
        assert float(batch["waveform"][7, 0]) == number and seconds == 1.0
        assert len(batch["waveform"].sharding.device_set) == jax.device_count()
        running = Running(step)
    prefetch.close()
    assert closed
    assert prefetch.waited / (steps - 1) == pytest.approx(waiting, abs=0.025)


def test_one_batch_is_read_ahead(mesh):
    read = []

    def batches():
        for number in range(100):
            read.append(number)
            yield {"waveform": np.zeros((8, 1), np.float32)}

    prefetch = Prefetch(mesh, batches, _seconds)
    assert not read
    prefetch.take(None)
    time.sleep(0.1)
    assert read == [0, 1]
    prefetch.close()


@pytest.mark.parametrize("reading", [0.0, 0.05])
def test_what_reading_raises_comes_with_its_step(mesh, reading):
    closed = []
    prefetch = Prefetch(mesh, lambda: _batches(reading, closed, fail_at=2), _seconds)
    for _ in range(2):
        prefetch.take(None)
    with pytest.raises(InputError, match="^shard 7, record 3: damaged$"):
        prefetch.take(None)
    prefetch.close()
    assert closed


def test_closing_waits_for_the_batch_that_is_read(mesh):
    """A generator cannot be closed while another thread runs it."""
    closed = []
    prefetch = Prefetch(mesh, lambda: _batches(0.1, closed), _seconds)
    prefetch.take(None)
    prefetch.close()
    assert closed


def test_the_first_batch_is_read_from_when_it_is_begun(mesh):
    closed = []
    prefetch = Prefetch(mesh, lambda: _batches(0.1, closed), _seconds)
    prefetch.begin()
    time.sleep(0.3)  # a program is compiled
    batch, _ = prefetch.take(None)
    assert float(batch["waveform"][0, 0]) == 0
    assert prefetch.waited < 0.05
    prefetch.close()
    assert closed
