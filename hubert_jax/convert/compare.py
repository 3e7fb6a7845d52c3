"""An exported directory, loaded by transformers, against our own network."""

import contextlib
import functools
import importlib.util
import os
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from hubert_jax import distributed, storage
from hubert_jax.data.waveform import normalize, to_float
from hubert_jax.frames import SAMPLE_RATE
from hubert_jax.model.architecture import Architecture, Execution
from hubert_jax.model.hubert import Hubert
from hubert_jax.model.kernels import choice


def can_compare() -> bool:
    """Whether transformers and torch are installed."""
    return all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def largest_difference(
    directory: str | os.PathLike,
    params: Mapping[str, Any],
    architecture: Architecture,
    audio: Iterable[np.ndarray],
    execution: Execution | None = None,
) -> float:
    """Largest absolute difference between the hidden states of an exported network and ours.

    Of the input of block 1, the output of every block and what the heads read, each utterance
    alone: int16 (n,) at 16 kHz, which transformers prepares itself. Without `execution` ours runs
    in float32, as theirs does.
    """
    transformers = _import_transformers()
    import torch

    with _quiet(transformers):  # about a CTC head, which is not compared
        theirs = transformers.AutoModel.from_pretrained(storage.local(directory)).eval()
        extract = transformers.AutoFeatureExtractor.from_pretrained(storage.local(directory))
    ours = Hubert(architecture, choice.choose(execution or Execution(), architecture))

    @functools.partial(jax.jit, **distributed.compiled_here())
    def hidden_states(params: dict, waveform: jax.Array) -> tuple[jax.Array, jax.Array]:
        hidden: Any = ours.apply({"params": params}, waveform, collect=True)
        return hidden["layers"][:, 0], hidden["output"][0]

    # Hooks, as `hidden_states` ends before or after the final LayerNorm, depending on the version.
    seen: list[torch.Tensor] = []
    blocks = theirs.encoder.layers
    blocks[0].register_forward_pre_hook(lambda block, inputs: seen.append(inputs[0]))
    for block in blocks:
        block.register_forward_hook(
            lambda block, inputs, output: seen.append(
                output[0] if isinstance(output, tuple) else output
            )
        )
    largest = 0.0
    for samples in audio:
        waveform = to_float(samples)
        extracted = extract(waveform, sampling_rate=SAMPLE_RATE, return_tensors="pt")
        seen.clear()
        with torch.no_grad():
            last = theirs(extracted.input_values).last_hidden_state
        their_states = [state[0].numpy() for state in (*seen, last)]
        if architecture.normalize_waveform:
            waveform = normalize(waveform)
        layers, output = hidden_states(params["hubert"], waveform[None])
        for our_state, their_state in zip([*layers, output], their_states, strict=True):
            difference = np.abs(np.asarray(our_state) - their_state).max()
            largest = float(np.maximum(largest, difference))  # NaN is the largest
    return largest


@contextlib.contextmanager
def _quiet(transformers: types.ModuleType) -> Iterator[None]:
    logging = transformers.logging
    verbosity, progress_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if progress_bar:
            logging.enable_progress_bar()


def _import_transformers() -> types.ModuleType:
    """transformers, without two libraries that may break and that nothing here needs.

    torchaudio made for another build of torch does not import. triton, of torch's CUDA builds,
    crashes a process that has TensorFlow in it.
    """
    modules: dict[str, Any] = sys.modules
    modules.setdefault("triton", None)
    try:
        importlib.import_module("torchaudio")
    except (ImportError, OSError, RuntimeError):
        modules["torchaudio"] = None
    return importlib.import_module("transformers")
