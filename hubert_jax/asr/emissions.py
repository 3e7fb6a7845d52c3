"""Emissions: the character log probabilities of a fine-tuned network."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from hubert_jax.data import manifests
from hubert_jax.frames import num_frames
from hubert_jax.model.hubert import HubertForCTC
from hubert_jax.networks import forward
from hubert_jax.networks.trained import Trained, require_ctc


def emissions(
    trained: Trained,
    split_dir: str | os.PathLike,
    shards: Callable[[int], bool] = lambda number: True,
) -> Iterator[tuple[int, str, str, np.ndarray]]:
    """Yields (audio shard's number, id, transcript or "", log probabilities (T, V) float32).

    T is at 50 Hz; class 0 is the blank. `shards` chooses audio shards. Neither dropout nor masks
    are applied. Raises InputError for a network without a CTC head or a damaged shard.
    """
    vocabulary = require_ctc(trained)
    model = HubertForCTC(trained.architecture, vocabulary.size, trained.kernels)

    def log_probabilities(params: dict, waveform: jax.Array, num_samples: jax.Array) -> jax.Array:
        logits: Any = model.apply({"params": params}, waveform, num_samples)
        return jax.nn.log_softmax(logits)

    split = split_dir, manifests.read_manifest(split_dir)
    for batch in forward.over_split(log_probabilities, trained, *split, shards=shards):
        values = np.asarray(batch.values)
        for row, name in enumerate(batch.ids):
            frames = num_frames(int(batch.num_samples[row]))
            yield batch.shard, name, batch.texts[row], values[row, :frames]
