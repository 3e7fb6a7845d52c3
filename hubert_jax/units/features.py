"""Hidden states of a checkpoint's layers: what later iterations cluster."""

import dataclasses
import os
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from hubert_jax import config as config_lib
from hubert_jax.data.padded import padded_batches
from hubert_jax.errors import InputError
from hubert_jax.model.architecture import HubertConfig
from hubert_jax.model.hubert import Hubert
from hubert_jax.model.transformer import first_layers
from hubert_jax.training.checkpoint import restore_parameters
from hubert_jax.training.pretraining import init_pretraining

_FRAMES_PER_BATCH = 4096


def layer_features(
    checkpoint: str | os.PathLike,
    split_dir: str | os.PathLike,
    layers: tuple[int, ...],
    untrained: bool = False,
    wanted: Callable[[str], bool] | None = None,
) -> Iterator[tuple[str, dict[int, np.ndarray]]]:
    """Hidden states at 50 Hz of every utterance of a split, whole, without dropout or masks.

    An utterance is never cut into chunks, so its labels cannot drift, and its features are the
    same whatever batch it is in.

    Args:
      checkpoint: checkpoint directory of a pre-training or fine-tuning run.
      split_dir: an audio split.
      layers: which layers: 0 is the input of block 1, l the output of block l after its residual.
      untrained: of the same network as initialised with seed 0, instead of its weights.
      wanted: tells by its id whether an utterance takes part; None: all do.

    Yields:
      (utterance id, {layer: (T, dim) float32}), T = (n - 400) // 320 + 1.

    Raises:
      InputError: no checkpoint, or a layer that it does not have.
    """
    params, metadata = restore_parameters(checkpoint)
    config = config_lib.build(HubertConfig, metadata["model"], "checkpoint.model")
    wrong = [layer for layer in layers if not 0 <= layer <= config.num_layers]
    if wrong or not layers:
        raise InputError(
            f"layer {wrong or layers}: {checkpoint} has layers 0 (input of block 1) to "
            f"{config.num_layers}"
        )
    if untrained:
        params = jax.jit(init_pretraining(config))(jax.random.key(0))
    # Nothing above the topmost wanted layer is computed.
    top = max(max(layers), 1)
    params = first_layers(params, top)["hubert"]
    config = dataclasses.replace(config, num_layers=top)
    model = Hubert(config)

    @jax.jit
    def states(params, waveform, num_samples):
        hidden = model.apply({"params": params}, waveform, num_samples, collect=True)["layers"]
        return hidden[jnp.array(layers)].astype(jnp.float32)

    for batch in padded_batches(split_dir, _FRAMES_PER_BATCH, config.normalize_waveform, wanted):
        hidden = np.asarray(states(params, batch.waveform, batch.num_samples))
        for row, utterance in enumerate(batch.ids):
            frames = config.num_frames(int(batch.num_samples[row]))
            yield (
                utterance,
                {layer: hidden[i, row, :frames] for i, layer in enumerate(layers)},
            )
