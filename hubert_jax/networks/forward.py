"""Running a function of a trained network over utterances: one way for all jobs."""

import collections
import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from hubert_jax import distributed, storage
from hubert_jax.data import inference_batches, manifests, records
from hubert_jax.data.inference_batches import Window
from hubert_jax.data.records import Utterance
from hubert_jax.errors import InputError
from hubert_jax.frames import HOP, SAMPLE_RATE
from hubert_jax.networks.trained import Trained
from hubert_jax.training import sharding

_FRAMES_PER_BATCH = 4096
_UNDER_WAY = 2  # batches: one runs, one waits

Groups = Iterable[tuple[int, Iterable[Utterance]]]  # with each group's number


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What came out for an utterance."""

    group: int
    utterance: Utterance
    values: Any  # what the function returned for its T frames of 50 Hz: NumPy (T, ...)


def utterances(
    split_dir: str | os.PathLike,
    wanted: Callable[[str], bool] = lambda utterance_id: True,
    shards: Callable[[int], bool] = lambda number: True,
) -> Groups:
    """A split's utterances, in groups by audio shard, each with its number in the manifest.

    `wanted` tells by its id whether an utterance takes part, `shards` by its number whether a shard
    does. Raises InputError for a missing split, and when it comes to it for a damaged shard.
    """
    manifest = manifests.read_manifest(split_dir)

    def of(shard: manifests.ShardInfo) -> Iterator[Utterance]:
        read = records.read_shard(storage.path(split_dir, shard.file), shard.utterances)
        return (utterance for utterance in read if wanted(utterance.id))

    return ((n, of(shard)) for n, shard in enumerate(manifest.shards) if shards(n))


class Applied:
    """A function of a trained network, compiled once for each padded length.

    It is (params, waveform (B, N) float32, num_samples (B,) int32) -> arrays (B, T, ...).
    """

    def __init__(
        self,
        function: Callable[[dict, jax.Array, jax.Array], Any],
        trained: Trained,
        fetch: Callable[[Any], Any] = jax.device_get,
        frames_per_batch: int = _FRAMES_PER_BATCH,
    ) -> None:
        """`fetch` makes NumPy arrays of what the function gives, all that leaves the devices."""
        self._trained, self._fetch, self._frames_per_batch = trained, fetch, frames_per_batch
        self._rows = NamedSharding(trained.mesh, sharding.BATCH)
        parameters = jax.tree.map(lambda leaf: leaf.sharding, trained.params)
        in_shardings = (parameters, self._rows, self._rows)
        self._compiled = jax.jit(function, in_shardings=in_shardings, **distributed.compiled_here())

    def __call__(
        self, groups: Groups, heard: Callable[[float], Any] = lambda seconds: None
    ) -> Iterator[Outputs]:
        """What the function gives for utterances, group after group.

        `heard` is told the seconds of audio that a batch has done.

        Values do not depend on an utterance's batch. Up to 5.5 minutes are taken whole; longer ones
        in windows of that length, of which 20 s on either side are heard and not given out, so that
        no frame is lost or doubled. Batches are divided over the mesh, and nothing else goes to the
        devices. Utterances of about one length are taken together: within a group their order is
        another. Raises InputError for an utterance that is too long for the devices' memory.
        """
        under_way: collections.deque[tuple[int, tuple[Window, ...], Any]] = collections.deque()
        parts: dict[str, list[Any]] = {}  # of utterances whose windows have not all come

        def finished() -> Iterator[Outputs]:
            number, windows, values = under_way.popleft()
            with _naming_longest(windows):
                values = self._fetch(values)
            own = sum(window.own.stop - window.own.start for window in windows)
            heard(own * HOP / SAMPLE_RATE)
            for row, window in enumerate(windows):
                utterance, own = window.utterance, (row, window.own)
                found = parts.setdefault(utterance.id, [])
                found.append(jax.tree.map(lambda leaf, own=own: leaf[own], values))
                if window.last:
                    del parts[utterance.id]
                    whole = jax.tree.map(lambda *leaves: np.concatenate(leaves), *found)
                    yield Outputs(number, utterance, whole)

        for number, group in groups:
            batches = inference_batches.padded_batches(
                group,
                self._frames_per_batch,
                self._trained.architecture.normalize_waveform,
                sharding.batch_shards(self._trained.mesh),
            )
            for batch in batches:
                with _naming_longest(batch.windows):
                    arrays = jax.device_put((batch.waveform, batch.num_samples), self._rows)
                    with jax.transfer_guard("disallow"):
                        values = self._compiled(self._trained.params, *arrays)
                under_way.append((number, batch.windows, values))
                if len(under_way) == _UNDER_WAY:
                    yield from finished()
        while under_way:
            yield from finished()


@contextlib.contextmanager
def _naming_longest(windows: tuple[Window, ...]) -> Iterator[None]:
    """Memory that does not suffice for a batch is an InputError about its longest utterance."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        longest = max(windows, key=lambda window: len(window.waveform))
        raise InputError(
            f"utterance {longest.utterance.id}: the device's memory does not suffice for the "
            f"network on {len(longest.waveform) / SAMPLE_RATE:.1f} s; cut the recording, as "
            "config.cut_seconds of prepare does where there is no transcript, and prepare the "
            "split again, or take another device"
        ) from None
