"""Running a function of a trained network over a split: one way for all jobs."""

import collections
import contextlib
import dataclasses
import math
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from hubert_jax import distributed
from hubert_jax.data import inference_batches, records
from hubert_jax.data.index import read_index
from hubert_jax.data.manifests import AudioManifest
from hubert_jax.errors import InputError
from hubert_jax.frames import SAMPLE_RATE, num_samples
from hubert_jax.networks.trained import Trained
from hubert_jax.training import sharding

_FRAMES_PER_BATCH = 4096
_UNDER_WAY = 2  # batches: one runs, one waits


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What came out for some utterances of one audio shard."""

    shard: int  # its number in the split's manifest
    ids: tuple[str, ...]  # of the utterances, which may be fewer than rows
    texts: tuple[str, ...]
    speakers: tuple[str, ...]
    num_samples: Any  # (B,), of the rows
    values: Any  # what the function returned, on the device


def over_split(
    function: Callable[[dict, jax.Array, jax.Array], Any],
    trained: Trained,
    split_dir: str | os.PathLike,
    manifest: AudioManifest,
    *,
    wanted: Callable[[str], bool] | None = None,
    shards: Callable[[int], bool] = lambda number: True,
) -> Iterator[Outputs]:
    """What `function` gives for the utterances of a split, audio shard by audio shard.

    `function` is (params, waveform (B, N) float32, num_samples (B,) int32) -> arrays; it is
    compiled here, once for each padded length. `wanted` tells by its id whether an utterance takes
    part, `shards` by its number whether an audio shard does. An utterance is never cut, and its
    values do not depend on its batch. Batches are divided over the mesh; nothing else goes to the
    devices, and nothing comes back until the caller asks for it. Raises InputError for a damaged
    shard, and for an utterance that is too long for the devices' memory, before any is computed
    where its length alone tells it.
    """
    _require_room(trained, split_dir, manifest, wanted, shards)
    rows = NamedSharding(trained.mesh, sharding.BATCH)
    parameters = jax.tree.map(lambda leaf: leaf.sharding, trained.params)
    compiled = jax.jit(
        function, in_shardings=(parameters, rows, rows), **distributed.compiled_here()
    )
    under_way: collections.deque[Outputs] = collections.deque()
    for number, shard in enumerate(manifest.shards):
        if not shards(number):
            continue
        batches = inference_batches.padded_batches(
            records.read_shard(pathlib.Path(split_dir, shard.file), shard.utterances),
            _FRAMES_PER_BATCH,
            trained.architecture.normalize_waveform,
            sharding.batch_shards(trained.mesh),
            wanted,
        )
        for batch in batches:
            named = (number, batch.ids, batch.texts, batch.speakers, batch.num_samples)
            outputs = Outputs(*named, None)
            with _naming_longest(split_dir, outputs):
                arrays = jax.device_put((batch.waveform, batch.num_samples), rows)
                with jax.transfer_guard("disallow"):
                    values = compiled(trained.params, *arrays)
            under_way.append(dataclasses.replace(outputs, values=values))
            if len(under_way) == _UNDER_WAY:
                yield _computed(split_dir, under_way.popleft())
    for outputs in under_way:
        yield _computed(split_dir, outputs)


def _computed(split_dir: str | os.PathLike, outputs: Outputs) -> Outputs:
    with _naming_longest(split_dir, outputs):
        jax.block_until_ready(outputs.values)
    return outputs


@contextlib.contextmanager
def _naming_longest(split_dir: str | os.PathLike, outputs: Outputs) -> Iterator[None]:
    """Memory that does not suffice for a batch is an InputError about its longest utterance."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        row = int(np.argmax(outputs.num_samples[: len(outputs.ids)]))
        raise _too_long(split_dir, outputs.ids[row], outputs.num_samples[row]) from None


def _too_long(split_dir: str | os.PathLike, name: str, samples: int) -> InputError:
    return InputError(
        f"{split_dir}: utterance {name} of {samples / SAMPLE_RATE:.1f} s: the device's memory does "
        "not suffice for the network on it; cut the recording, as config.cut_seconds of prepare "
        "does where there is no transcript, and prepare the split again, or take another device"
    )


def _require_room(
    trained: Trained,
    split_dir: str | os.PathLike,
    manifest: AudioManifest,
    wanted: Callable[[str], bool] | None,
    shards: Callable[[int], bool],
) -> None:
    """Raises InputError for an utterance whose attention weights alone fill a device's memory."""
    if trained.kernels.attention_backend != "xla":
        return  # the others never hold them
    heads = trained.architecture.num_heads / trained.mesh.shape["tensor"]
    most = num_samples(math.isqrt(int(_memory(trained.mesh.local_devices[0]) / (4 * heads))) + 1)
    index = read_index(split_dir, manifest)
    for number in filter(shards, range(len(manifest.shards))):
        for place in np.flatnonzero(index.samples_of(number) >= most):
            record = index.shard(number)[place]
            if wanted is None or wanted(index.ids[record]):
                raise _too_long(split_dir, index.ids[record], int(index.samples[record]))


def _memory(device: jax.Device) -> int:
    """Bytes that the device says to have, or the host, as CPUs do not say."""
    said = (device.memory_stats() or {}).get("bytes_limit", 0)
    return said or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
