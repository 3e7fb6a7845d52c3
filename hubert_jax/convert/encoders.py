"""The encoder, and its CTC head, under another library's names and back.

Both directions read one table (`names`), so a round trip is the identity, bit for bit, and whatever
is missing, left over or of another shape is refused by name.
"""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from hubert_jax.convert.names import CTC_HEAD, Entry, kind_of_tensors, spellings, table
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
    """Shape of every parameter by its path, read off the network itself.

    Args:
      architecture: of the encoder.
      head: the pre-training head, if there is one.
      vocabulary_size: classes of the CTC head, if there is one; not with `head`.
    """
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
    """Our encoder, and its CTC head where there is one, under another library's names.

    Args:
      params: our parameters: `hubert` and possibly `ctc_head` (the CTC head); a pre-training
        head is not looked at (`heads` converts it), but decides which model they are named for.
      architecture: of the encoder.
      library: one of `LIBRARIES`.

    Returns:
      The tensors by name; views where the layout allows it. torchaudio's `Wav2Vec2Model` has no
      mask embedding: without a pre-training head it is left out there.

    Raises:
      InputError: parameters that are missing, left over or of another shape.
    """
    kind = kind_of_parameters(params)
    flat = traverse_util.flatten_dict(dict(params), sep="/")
    flat = {path: leaf for path, leaf in flat.items() if not path.startswith(_OUR_HEAD)}
    vocabulary_size = None
    if "ctc_head/bias" in flat:
        vocabulary_size = np.shape(flat["ctc_head/bias"])[0]
    entries = _entries(architecture, kind)
    expected = shapes(architecture, vocabulary_size=vocabulary_size)
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
    """The inverse of `to_library`: our parameters, float32.

    Args:
      tensors: the state of a model without its pre-training head; biases of the convolutions,
        which HuBERT does not have, may be there when they are zero (transformers adds them where
        a configuration says `conv_bias`).
      architecture: of the encoder.
      library: one of `LIBRARIES`.
      what: what the tensors are, for messages.
      kind: one of `KINDS`; None: by the tensors' names.

    Returns:
      `hubert`, and `ctc_head` where there is a CTC head. `hubert/mask_embedding` is missing
      where the tensors have none, which transformers and torchaudio allow.

    Raises:
      InputError: tensors that are missing, left over or of another shape.
    """
    kind = kind_of_tensors(tensors, library) if kind is None else kind
    found = dict(tensors)
    for name in zero_biases(found, architecture, library, kind):
        del found[name]
    chosen = {}
    for entry in _entries(architecture, kind):
        names = spellings(entry, library, kind)
        present = [name for name in names if name in found]
        optional = entry.ours == "hubert/mask_embedding" and library != "fairseq"
        if names and (present or not optional):
            chosen[entry] = present[0] if present else names[0]
    require_names(what, found, chosen.values())

    vocabulary_size = None
    for entry, name in chosen.items():
        if entry.ours == "ctc_head/bias":
            vocabulary_size = np.shape(found[name])[0]
    expected = shapes(architecture, vocabulary_size=vocabulary_size)
    stacked: dict[str, Any] = {}
    for entry, name in chosen.items():
        leaf = _from_torch_layout(np.asarray(found[name]), entry.layout)
        shape = expected[entry.ours] if entry.row is None else expected[entry.ours][1:]
        if leaf is None or leaf.shape != shape:
            theirs = _to_torch_layout(np.empty(shape, np.bool_), entry.layout).shape
            raise InputError(
                f"{what}: {name} has shape {found[name].shape}, but the architecture gives {theirs}"
            )
        stacked.setdefault(entry.ours, []).append(leaf.astype(np.float32))
    flat = {}
    for entry in chosen:
        leaves = stacked[entry.ours]
        flat[entry.ours] = leaves[0] if entry.row is None else leaves
    flat = {
        path: np.stack(leaf) if isinstance(leaf, list) else np.ascontiguousarray(leaf)
        for path, leaf in flat.items()
    }
    return traverse_util.unflatten_dict(flat, sep="/")


def zero_biases(
    tensors: Mapping[str, np.ndarray], architecture: Architecture, library: str, kind: str
) -> list[str]:
    """Names of biases of the front-end's convolutions that are zero: they change nothing."""
    names = []
    for i in range(len(architecture.conv_channels)):
        (weight,) = spellings(table(architecture)[0], library, kind)
        name = weight.replace("layers.0.", f"layers.{i}.").removesuffix("weight") + "bias"
        if name in tensors and not np.any(tensors[name]):
            names.append(name)
    return names


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


@functools.cache
def _entries(architecture: Architecture, kind: str) -> tuple[Entry, ...]:
    entries = table(architecture)
    return (*entries, *CTC_HEAD) if kind == "ctc" else entries


def _to_torch_layout(leaf: np.ndarray, layout: str) -> np.ndarray:
    if layout == "magnitude":
        return leaf[None, None, :]
    return leaf if layout == "same" else leaf.transpose()


def _from_torch_layout(leaf: np.ndarray, layout: str) -> np.ndarray | None:
    """None where the array cannot have this layout; the caller checks all other shapes."""
    if layout == "magnitude":
        return leaf[0, 0] if leaf.ndim == 3 and leaf.shape[:2] == (1, 1) else None
    return leaf if layout == "same" else leaf.transpose()
