"""One table of names: our parameters and where other libraries keep the same numbers.

Each `Entry` binds one tensor of ours (for the transformer: one row of a stacked one) to its name
in another library, a column a library, and to the layout it has there. Both directions read the
same table, so a round trip is the identity, bit for bit, and whatever is missing, left over or
of another shape is refused by name.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from hubert_jax.errors import InputError
from hubert_jax.model.architecture import HubertConfig
from hubert_jax.model.hubert import HubertForCTC, HubertForPretraining

_NAMED_IN_MESSAGES = 4  # of a long list of names, an error prints the first few and the count


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor.

    Attributes:
      ours: path of the parameter, `hubert/projection/kernel`.
      row: index into the leading layer axis of a stacked parameter; None: not stacked.
      layout: "same"; "linear": (in, out) here, (out, in) in torch; "convolution": (kernel, in,
        out) here, (out, in, kernel) in torch; "magnitude": (kernel,) here, (1, 1, kernel) there.
      hugging_face: its name in transformers' `HubertModel`: the spelling that is written first,
        then older ones that are read as well.
    """

    ours: str
    row: int | None
    layout: str
    hugging_face: tuple[str, ...]


def table(config: HubertConfig) -> tuple[Entry, ...]:
    """The entries of the encoder, in the order of the network.

    Source: the parameters of transformers' `modeling_hubert` (post- and pre-LN have the same
    names; only the code around them differs).
    """
    entries = []

    def add(ours: str, layout: str, *hugging_face: str, row: int | None = None) -> None:
        entries.append(Entry(f"hubert/{ours}", row, layout, hugging_face))

    def add_norm(ours: str, theirs: str, row: int | None = None) -> None:
        add(f"{ours}/scale", "same", f"{theirs}.weight", row=row)
        add(f"{ours}/bias", "same", f"{theirs}.bias", row=row)

    def add_linear(ours: str, theirs: str, row: int | None = None) -> None:
        add(f"{ours}/kernel", "linear", f"{theirs}.weight", row=row)
        add(f"{ours}/bias", "same", f"{theirs}.bias", row=row)

    for i in range(len(config.conv_channels)):
        theirs = f"feature_extractor.conv_layers.{i}"
        add(f"frontend/conv_{i}/kernel", "convolution", f"{theirs}.conv.weight")
        if i == 0 or config.frontend_norm == "layer":
            add_norm(f"frontend/norm_{i}", f"{theirs}.layer_norm")
    add_norm("frontend_norm", "feature_projection.layer_norm")
    add_linear("projection", "feature_projection.projection")
    add("mask_embedding", "same", "masked_spec_embed")
    theirs = "encoder.pos_conv_embed.conv"
    original = f"{theirs}.parametrizations.weight.original"
    add("positional/magnitude", "magnitude", f"{original}0", f"{theirs}.weight_g")
    add("positional/direction", "convolution", f"{original}1", f"{theirs}.weight_v")
    add("positional/bias", "same", f"{theirs}.bias")
    add_norm("encoder_norm", "encoder.layer_norm")
    for i in range(config.num_layers):
        ours, theirs = "transformer/layers/layer", f"encoder.layers.{i}"
        for name, their_name in (
            ("query", "attention.q_proj"),
            ("key", "attention.k_proj"),
            ("value", "attention.v_proj"),
            ("output", "attention.out_proj"),
            ("ffn_in", "feed_forward.intermediate_dense"),
            ("ffn_out", "feed_forward.output_dense"),
        ):
            add_linear(f"{ours}/{name}", f"{theirs}.{their_name}", row=i)
        add_norm(f"{ours}/attention_norm", f"{theirs}.layer_norm", row=i)
        add_norm(f"{ours}/ffn_norm", f"{theirs}.final_layer_norm", row=i)
    return tuple(entries)


CTC_HEAD = (
    Entry("characters/kernel", None, "linear", ("lm_head.weight",)),
    Entry("characters/bias", None, "same", ("lm_head.bias",)),
)


def shapes(config: HubertConfig, vocabulary_size: int | None = None) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter by its path, read off the network itself.

    Args:
      config: the architecture.
      vocabulary_size: classes of the CTC head; None: the pre-training head.
    """
    network: nn.Module = HubertForPretraining(config)
    if vocabulary_size is not None:
        network = HubertForCTC(config, vocabulary_size)
    waveform = jax.ShapeDtypeStruct((1, config.num_samples(2)), jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), waveform)
    flat = traverse_util.flatten_dict(variables["params"], sep="/")
    return {path: leaf.shape for path, leaf in flat.items()}


def to_hugging_face(params: Mapping[str, Any], config: HubertConfig) -> dict[str, np.ndarray]:
    """Our encoder, and its CTC head where there is one, under transformers' names.

    Args:
      params: our parameters: `hubert` and possibly `characters` (the CTC head); a pre-training
        head is not looked at (`heads.head_to_fairseq` converts it).
      config: the architecture.

    Returns:
      The names of `HubertModel`, or with `characters` those of `HubertForCTC`; views where the
      layout allows it.

    Raises:
      InputError: parameters that are missing, left over or of another shape than `config` gives.
    """
    flat = traverse_util.flatten_dict(dict(params), sep="/")
    flat = {path: leaf for path, leaf in flat.items() if not path.startswith(_PRETRAINING_HEAD)}
    vocabulary_size = None
    if "characters/bias" in flat:
        vocabulary_size = np.shape(flat["characters/bias"])[0]
    prefix, entries = _hugging_face_entries(config, vocabulary_size is not None)
    expected = shapes(config, vocabulary_size)
    expected = {entry.ours: expected[entry.ours] for entry in entries}
    require_names("our parameters", flat, expected)
    for path, shape in expected.items():
        if np.shape(flat[path]) != shape:
            raise InputError(
                f"our parameter {path}: found shape {np.shape(flat[path])}, but config.model "
                f"gives {shape}; use the configuration that the parameters were trained with"
            )
    tensors = {}
    for entry in entries:
        leaf = np.asarray(flat[entry.ours])
        leaf = leaf if entry.row is None else leaf[entry.row]
        name = _spellings(entry, prefix)[0]
        tensors[name] = _to_torch_layout(leaf, entry.layout)
    return tensors


def from_hugging_face(
    tensors: Mapping[str, np.ndarray], config: HubertConfig, what: str = "Hugging Face tensors"
) -> dict[str, Any]:
    """The inverse of `to_hugging_face`: our parameters, float32.

    Args:
      tensors: the state of a `HubertModel`, or of a `HubertForCTC` (with `lm_head`); biases of
        the convolutions, which HuBERT does not have, may be there when they are zero (transformers
        adds them where a configuration says `conv_bias`).
      config: the architecture.
      what: what the tensors are, for messages.

    Raises:
      InputError: tensors that are missing, left over or of another shape.
    """
    ctc = "lm_head.weight" in tensors
    vocabulary_size = tensors["lm_head.weight"].shape[0] if ctc else None
    prefix, entries = _hugging_face_entries(config, ctc)
    found = dict(tensors)
    for i in range(len(config.conv_channels)):
        name = f"{prefix}feature_extractor.conv_layers.{i}.conv.bias"
        if name in found and not np.any(found[name]):
            del found[name]
    chosen = {}
    for entry in entries:
        spellings = _spellings(entry, prefix)
        present = [name for name in spellings if name in found]
        chosen[entry] = present[0] if present else spellings[0]
    require_names(what, found, chosen.values())

    expected, stacked = shapes(config, vocabulary_size), {}
    for entry, name in chosen.items():
        leaf = _from_torch_layout(np.asarray(found[name]), entry.layout)
        shape = expected[entry.ours] if entry.row is None else expected[entry.ours][1:]
        if leaf is None or leaf.shape != shape:
            theirs = _to_torch_layout(np.empty(shape, np.bool_), entry.layout).shape
            raise InputError(
                f"{what}: {name} has shape {found[name].shape}, but config.model gives {theirs}"
            )
        stacked.setdefault(entry.ours, []).append(leaf.astype(np.float32))
    flat = {}
    for entry in entries:
        leaves = stacked[entry.ours]
        flat[entry.ours] = leaves[0] if entry.row is None else leaves
    flat = {
        path: np.stack(leaf) if isinstance(leaf, list) else np.ascontiguousarray(leaf)
        for path, leaf in flat.items()
    }
    return traverse_util.unflatten_dict(flat, sep="/")


_PRETRAINING_HEAD = ("projection_", "codes_")


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
            raise InputError(f"{what}: {problem}: {listed}{more}; does config.model fit them?")


@functools.cache
def _hugging_face_entries(config: HubertConfig, ctc: bool) -> tuple[str, tuple[Entry, ...]]:
    """The prefix of the encoder's names and the entries: `HubertForCTC` nests the encoder."""
    return ("hubert.", (*table(config), *CTC_HEAD)) if ctc else ("", table(config))


def _spellings(entry: Entry, prefix: str) -> tuple[str, ...]:
    nested = entry.ours.startswith("hubert/")
    return tuple(prefix + name if nested else name for name in entry.hugging_face)


def _to_torch_layout(leaf: np.ndarray, layout: str) -> np.ndarray:
    if layout == "magnitude":
        return leaf[None, None, :]
    return leaf if layout == "same" else leaf.transpose()


def _from_torch_layout(leaf: np.ndarray, layout: str) -> np.ndarray | None:
    """None where the array cannot have this layout; the caller checks all other shapes."""
    if layout == "magnitude":
        return leaf[0, 0] if leaf.ndim == 3 and leaf.shape[:2] == (1, 1) else None
    return leaf if layout == "same" else leaf.transpose()
