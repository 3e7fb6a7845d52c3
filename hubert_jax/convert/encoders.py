"""The encoder, and its CTC head, under another library's names and back, bit for bit."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from hubert_jax.convert.names import CTC_HEAD, kind_of_tensors, spellings, table
from hubert_jax.errors import InputError
from hubert_jax.frames import num_samples
from hubert_jax.model.architecture import Architecture, Execution, Head
from hubert_jax.model.hubert import Hubert, HubertForCTC, HubertForPretraining
from hubert_jax.model.kernels import choice

_OUR_HEAD = ("final_proj_", "label_embeddings_")
_NAMED_IN_MESSAGES = 4  # of a long list of names, an error prints the first few and the count


def kind_of_parameters(params: Mapping[str, Any]) -> str:
    """What our parameters are: one of `KINDS`."""
    if "ctc_head" in params:
        return "ctc"
    return "pretraining" if "final_proj_0" in params else "encoder"


@functools.cache
def shapes(
    architecture: Architecture, head: Head | None = None, vocabulary_size: int | None = None
) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter by its path; `vocabulary_size` is of a CTC head, not with `head`."""
    kernels = choice.choose(Execution(), architecture)
    network: nn.Module = Hubert(architecture, kernels)
    if head is not None:
        network = HubertForPretraining(architecture, head, kernels)
    elif vocabulary_size is not None:
        network = HubertForCTC(architecture, vocabulary_size, kernels)
    waveform = jax.ShapeDtypeStruct((1, num_samples(2)), jnp.float32)
    params = jax.eval_shape(network.init, jax.random.key(0), waveform)["params"]
    params = {"hubert": params} if isinstance(network, Hubert) else params
    flat = traverse_util.flatten_dict(params, sep="/")
    return {path: leaf.shape for path, leaf in flat.items()}


def to_library(
    params: Mapping[str, Any], architecture: Architecture, library: str
) -> dict[str, np.ndarray]:
    """`hubert` and, where there is one, `ctc_head` under the names of one of `LIBRARIES`.

    A pre-training head is left to `heads`; without one torchaudio has no mask embedding.

    Raises InputError for parameters that are missing, left over or of another shape.
    """
    kind = kind_of_parameters(params)
    flat = traverse_util.flatten_dict(dict(params), sep="/")
    flat = {path: leaf for path, leaf in flat.items() if not path.startswith(_OUR_HEAD)}
    classes = np.shape(flat["ctc_head/bias"])[0] if "ctc_head/bias" in flat else None
    entries = table(architecture) + (CTC_HEAD if kind == "ctc" else ())
    expected = shapes(architecture, vocabulary_size=classes)
    expected = {entry.ours: expected[entry.ours] for entry in entries}
    require_names("our parameters", flat, expected)
    for path, shape in expected.items():
        if np.shape(flat[path]) != shape:
            raise InputError(
                f"our parameter {path}: found shape {np.shape(flat[path])}, but the architecture "
                f"gives {shape}; use the one that the parameters were trained with"
            )
    tensors = {}
    for entry in entries:
        names = spellings(entry, library, kind)
        if names:
            leaf = np.asarray(flat[entry.ours])
            leaf = leaf if entry.row is None else leaf[entry.row]
            tensors[names[0]] = _to_torch_layout(leaf, entry.layout)
    return tensors


def from_library(
    tensors: Mapping[str, np.ndarray],
    architecture: Architecture,
    library: str,
    what: str,
    kind: str | None = None,
) -> dict[str, Any]:
    """The inverse of `to_library`, float32; `kind` is read off the names where it is None.

    Zero biases of convolutions (transformers' `conv_bias`) are left out; the mask embedding may be
    missing, except in fairseq. `what` stands for the tensors in messages.

    Raises InputError for tensors that are missing, left over or of another shape.
    """
    kind = kind_of_tensors(tensors, library) if kind is None else kind
    biases = _front_end_biases(tensors, architecture, library, kind)
    zero = {name for name in biases if not np.any(tensors[name])}
    if biases - zero:
        raise InputError(
            f"{what}: {min(biases - zero)} is not zero; expected convolutions of the front-end "
            "without biases (conv_bias in the network's configuration)"
        )
    found = {name: np.asarray(tensors[name]) for name in tensors.keys() - zero}
    chosen = {}
    for entry in table(architecture) + (CTC_HEAD if kind == "ctc" else ()):
        names = spellings(entry, library, kind)
        present = [name for name in names if name in found]
        optional = entry.ours == "hubert/mask_embedding" and library != "fairseq"
        if names and (present or not optional):
            chosen[entry] = (present or names)[0]
    require_names(what, found, chosen.values())

    classes = found[chosen[CTC_HEAD[1]]].size if kind == "ctc" else None
    expected = shapes(architecture, vocabulary_size=classes)
    for entry, name in chosen.items():  # before there is memory for any
        shape = expected[entry.ours][entry.row is not None :]
        shape = (1, 1, *shape) if entry.layout == "magnitude" else shape
        shape = shape if entry.layout in ("same", "magnitude") else shape[::-1]
        if found[name].shape != shape:
            raise InputError(
                f"{what}: {name} has shape {found[name].shape}, but the architecture gives {shape}"
            )
    flat: dict[str, np.ndarray] = {}
    for entry, name in chosen.items():
        if entry.ours not in flat:
            flat[entry.ours] = np.empty(expected[entry.ours], np.float32)
        leaf = flat[entry.ours] if entry.row is None else flat[entry.ours][entry.row]
        _to_torch_layout(leaf, entry.layout)[...] = found[name]  # a view, which fills `leaf`
    return traverse_util.unflatten_dict(flat, sep="/")


def note_on_biases(
    tensors: Mapping[str, np.ndarray], architecture: Architecture, library: str, kind: str
) -> tuple[str, ...]:
    """A note where `from_library` leaves biases of the front-end's convolutions out."""
    zero = _front_end_biases(tensors, architecture, library, kind)
    note = f"left out: {len(zero)} biases of the front-end's convolutions, all zero"
    return (note,) if zero else ()


def _front_end_biases(
    tensors: Mapping[str, np.ndarray], architecture: Architecture, library: str, kind: str
) -> set[str]:
    """Names of biases of the front-end's convolutions; zero ones change nothing."""
    (weight,) = spellings(table(architecture)[0], library, kind)
    names = {
        weight.replace("layers.0.", f"layers.{i}.").removesuffix("weight") + "bias"
        for i in range(len(architecture.conv_channels))
    }
    return names & tensors.keys()


def require_names(what: str, found: Iterable[str], expected: Iterable[str]) -> None:
    """Raises InputError, naming them, where `found` lacks names or has others than `expected`."""
    found, expected = set(found), set(expected)
    for problem, names in (
        ("missing", expected - found),
        ("not part of this architecture", found - expected),
    ):
        if names:
            listed = ", ".join(sorted(names)[:_NAMED_IN_MESSAGES])
            more = f", ... ({len(names)} in all)" if len(names) > _NAMED_IN_MESSAGES else ""
            raise InputError(f"{what}: {problem}: {listed}{more}; does the architecture fit them?")


def _to_torch_layout(leaf: np.ndarray, layout: str) -> np.ndarray:
    if layout == "magnitude":
        return leaf[None, None, :]
    return leaf if layout == "same" else leaf.transpose()
