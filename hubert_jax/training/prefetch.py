"""Batches on the devices, one of them read ahead while a step runs."""

import concurrent.futures
import time
from collections.abc import Callable, Generator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from hubert_jax.training import sharding

_POLL_SECONDS = 0.002


class Prefetch:
    """A run's batches as global arrays; one is read and moved while the step before it runs.

    `open_batches` is called by the thread that reads, with the first batch, which `begin` has it
    read while programs are compiled. It is a thread, as only from outside TensorFlow can be seen
    whether a step ended meanwhile. `waited` are the seconds for which the devices were idle.
    """

    def __init__(
        self,
        mesh: Mesh,
        open_batches: Callable[[], Generator[dict[str, np.ndarray]]],
        audio_seconds: Callable[[dict[str, np.ndarray]], float],
    ) -> None:
        self.waited = 0.0
        self._mesh, self._open, self._audio_seconds = mesh, open_batches, audio_seconds
        self._batches: Generator[dict[str, np.ndarray]] | None = None
        self._reader = concurrent.futures.ThreadPoolExecutor(1, "prefetch")
        self._ahead: concurrent.futures.Future | None = None

    def begin(self) -> None:
        """Reads the first batch from now on, which is not waited for here."""
        self._ahead = self._reader.submit(self._read)

    def take(self, running: Any) -> tuple[dict[str, jax.Array], float]:
        """The next batch and its seconds of audio over all processes; raises what reading raises.

        Waiting counts from when `running`, of the step under way, is ready; None: at once.
        """
        ahead = self._ahead or self._reader.submit(self._read)
        idle_since = None
        while not ahead.done():
            if idle_since is None and (running is None or running.is_ready()):
                idle_since = time.monotonic()
            concurrent.futures.wait([ahead], _POLL_SECONDS)
        if idle_since is not None:
            self.waited += time.monotonic() - idle_since
        taken = ahead.result()
        self._ahead = self._reader.submit(self._read)
        return taken

    def close(self) -> None:
        """Closes the batches: a half-consumed tf.data iterator can keep the interpreter alive."""
        self._reader.shutdown(wait=True, cancel_futures=True)
        if self._batches is not None:
            self._batches.close()

    def _read(self) -> tuple[dict[str, jax.Array], float]:
        self._batches = self._batches or self._open()
        batch = next(self._batches)
        seconds = self._audio_seconds(batch) * jax.process_count()
        return jax.block_until_ready(sharding.to_global(self._mesh, batch)), seconds
