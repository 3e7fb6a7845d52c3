"""Programs of a network for those who run it without this package: StableHLO, by `jax.export`.

A program takes the parameters as a dict by their paths, as parameters.safetensors has them;
`waveform` (batch, samples) float32 in [-1, 1] at 16 kHz, anything in the padding; and `num_samples`
(batch,) int32. Batch and samples are free. It gives (batch, frames, ...) float32.
"""

import dataclasses
import os
import re
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
from flax import traverse_util

from hubert_jax import files
from hubert_jax.convert.network import Network
from hubert_jax.convert.safetensors_files import write_tensors
from hubert_jax.data.waveform import NORMALISATION_EPSILON
from hubert_jax.errors import InputError
from hubert_jax.frames import HOP, SAMPLE_RATE, WINDOW
from hubert_jax.model.architecture import Execution
from hubert_jax.model.hubert import Hubert, HubertForCTC
from hubert_jax.model.kernels import choice
from hubert_jax.model.transformer import first_layers

_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
_NAMES = re.compile(r"emissions|layer_(0|[1-9][0-9]*)")


def write_programs(
    directory: str | os.PathLike, network: Network, names: tuple[str, ...]
) -> dict[str, str]:
    """Writes NAME.stablehlo of each, the parameters and programs.json; SHA-256 by file.

    "emissions" are log probabilities of the classes, "layer_N" are hidden states. Raises as
    `require_programs`.
    """
    require_programs(network, names)
    with files.writing_directory(directory, marker="programs.json") as aside:
        for name in names:
            (aside / f"{name}.stablehlo").write_bytes(_program(network, name))
        write_tensors(aside / "parameters.safetensors", network.flat, {})
        vocabulary = network.vocabulary
        described = {
            "programs": {name: f"{name}.stablehlo" for name in names},
            "arguments": ["parameters", "waveform", "num_samples"],
            "sample_rate": SAMPLE_RATE,
            "window": WINDOW,  # a row has (num_samples - window) // hop + 1 frames
            "hop": HOP,
            "classes": None if vocabulary is None else ["<blank>", *vocabulary.symbols],
        }
        files.write_json(aside / "programs.json", described)
        return {path.name: files.sha256_file(path) for path in sorted(aside.iterdir())}


def require_programs(network: Network, names: tuple[str, ...]) -> None:
    """Raises InputError for other names of programs, and for what the network does not have."""
    layers = network.architecture.num_layers
    for name in names:
        found = _NAMES.fullmatch(name)
        if not found:
            raise InputError(f"config.programs={name}: expected emissions, or layer_N of layer N")
        if not found[1] and network.vocabulary is None:
            raise InputError("config.programs=emissions: the network has no CTC head")
        if found[1] and int(found[1]) > layers:
            raise InputError(f"config.programs={name}: expected a layer of 0 to {layers}")


def _program(network: Network, name: str) -> bytes:
    # The kernels of no platform in particular: one program is for all of them.
    execution = Execution(platform="gpu", attention="xla")
    architecture = network.architecture
    kernels = choice.choose(execution, architecture)
    layer = None if name == "emissions" else int(name.removeprefix("layer_"))
    if layer is not None:
        architecture = dataclasses.replace(architecture, num_layers=max(1, layer))

    def program(flat: dict, waveform: jax.Array, num_samples: jax.Array) -> jax.Array:
        params = traverse_util.unflatten_dict(flat, sep="/")
        if architecture.normalize_waveform:
            waveform = _normalised(waveform, num_samples)
        if layer is None:
            classes = network.vocabulary.size if network.vocabulary else 0
            ctc = HubertForCTC(architecture, classes, kernels)
            logits: Any = ctc.apply({"params": params}, waveform, num_samples)
            return jax.nn.log_softmax(logits)
        params = first_layers(params, architecture.num_layers)["hubert"]
        hubert = Hubert(architecture, kernels)
        hidden: Any = hubert.apply({"params": params}, waveform, num_samples, collect=True)
        return hidden["layers"][layer].astype(jnp.float32)

    batch, samples = jax.export.symbolic_shape(
        "batch, samples", constraints=("batch >= 1", f"samples >= {WINDOW}")
    )
    arguments = (
        {
            path: jax.ShapeDtypeStruct(leaf.shape, jnp.float32)
            for path, leaf in network.flat.items()
        },
        jax.ShapeDtypeStruct((batch, samples), jnp.float32),
        jax.ShapeDtypeStruct((batch,), jnp.int32),
    )
    exported = jax.export.export(jax.jit(program), platforms=_PLATFORMS)(*arguments)
    return bytes(exported.serialize())


def _normalised(waveform: jax.Array, num_samples: jax.Array) -> jax.Array:
    """Zero mean and unit variance of each row's own samples, zero in the padding."""
    valid = jnp.arange(waveform.shape[1]) < num_samples[:, None]
    count = num_samples[:, None]
    mean = jnp.where(valid, waveform, 0).sum(axis=1, keepdims=True) / count
    deviation = jnp.where(valid, waveform - mean, 0)
    variance = jnp.square(deviation).sum(axis=1, keepdims=True) / count
    return deviation * jax.lax.rsqrt(variance + NORMALISATION_EPSILON)
