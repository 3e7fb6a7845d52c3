"""Character log probabilities of a fine-tuned checkpoint."""

import os
from collections.abc import Iterator

import jax
import numpy as np

from hubert_jax import config as config_lib
from hubert_jax.data.padded import padded_batches
from hubert_jax.errors import InputError
from hubert_jax.model.architecture import HubertConfig
from hubert_jax.model.hubert import HubertForCTC
from hubert_jax.training.checkpoint import read_metadata, restore_parameters
from hubert_jax.vocabulary import Vocabulary

_FRAMES_PER_BATCH = 4096


def checkpoint_vocabulary(checkpoint: str | os.PathLike) -> Vocabulary:
    """The vocabulary that a checkpoint was fine-tuned with.

    Raises:
      InputError: no checkpoint, or one of pre-training.
    """
    return Vocabulary.from_dict(_ctc_metadata(checkpoint, read_metadata(checkpoint))["vocabulary"])


def ctc_log_probabilities(
    checkpoint: str | os.PathLike, split_dir: str | os.PathLike
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Log probabilities of every utterance of a split, without dropout or masks.

    Args:
      checkpoint: checkpoint directory of a fine-tuning run.
      split_dir: an audio split.

    Yields:
      (utterance id, its transcript or "", (T, V) float32), T at 50 Hz.

    Raises:
      InputError: no checkpoint, or one of pre-training.
    """
    params, metadata = restore_parameters(checkpoint)
    vocabulary = Vocabulary.from_dict(_ctc_metadata(checkpoint, metadata)["vocabulary"])
    config = config_lib.build(HubertConfig, metadata["model"], "checkpoint.model")
    model = HubertForCTC(config, vocabulary.size)

    @jax.jit
    def log_probabilities(params, waveform, num_samples):
        return jax.nn.log_softmax(model.apply({"params": params}, waveform, num_samples))

    for batch in padded_batches(split_dir, _FRAMES_PER_BATCH, config.normalize_waveform):
        values = np.asarray(log_probabilities(params, batch.waveform, batch.num_samples))
        for row, utterance in enumerate(batch.ids):
            frames = config.num_frames(int(batch.num_samples[row]))
            yield utterance, batch.texts[row], values[row, :frames]


def _ctc_metadata(checkpoint, metadata: dict) -> dict:
    if metadata["kind"] != "ctc":
        raise InputError(
            f"{checkpoint}: a checkpoint of {metadata['kind']}, expected one of fine-tuning "
            "(WORKDIR/finetune/checkpoints)"
        )
    return metadata
