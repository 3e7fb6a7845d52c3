"""Running a function of a trained network over a split: one way for all jobs."""

import collections
import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.sharding import NamedSharding

from hubert_jax import distributed
from hubert_jax.data import inference_batches, records
from hubert_jax.data.manifests import AudioManifest
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
    shard.
    """
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
            waveform, num_samples = jax.device_put((batch.waveform, batch.num_samples), rows)
            with jax.transfer_guard("disallow"):
                values = compiled(trained.params, waveform, num_samples)
            under_way.append(Outputs(number, batch.ids, batch.texts, batch.num_samples, values))
            if len(under_way) == _UNDER_WAY:
                yield under_way.popleft()
    yield from under_way
