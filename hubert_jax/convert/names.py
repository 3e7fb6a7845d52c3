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

LIBRARIES = ("hugging_face", "fairseq", "torchaudio")
KINDS = ("encoder", "pretraining", "ctc")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor.

    A name in another library comes with its spellings: the one that is written first, then those
    that are read as well (torch renamed the parts of a weight norm).

    Attributes:
      ours: path of the parameter, `hubert/projection/kernel`.
      row: index into the leading layer axis of a stacked parameter; None: not stacked.
      layout: "same"; "linear": (in, out) here, (out, in) in torch; "convolution": (kernel, in,
        out) here, (out, in, kernel) in torch; "magnitude": (kernel,) here, (1, 1, kernel) there.
      hugging_face: its name in transformers' `HubertModel`.
      fairseq: its name in fairseq's `HubertModel`.
      torchaudio: its name in torchaudio's `HuBERTPretrainModel`.
    """

    ours: str
    row: int | None
    layout: str
    hugging_face: tuple[str, ...]
    fairseq: tuple[str, ...]
    torchaudio: tuple[str, ...]


@functools.cache
def table(config: HubertConfig) -> tuple[Entry, ...]:
    """The entries of the encoder, in the order of the network.

    Sources: transformers' `modeling_hubert`; fairseq's `models/hubert/hubert.py` and
    `models/wav2vec/wav2vec2.py`; torchaudio's `models/wav2vec2`. Post- and pre-LN have the same
    names everywhere; only the code around them differs.
    """
    entries = []

    def add(ours: str, layout: str, row: int | None, *names: tuple[str, ...]) -> None:
        entries.append(Entry(f"hubert/{ours}", row, layout, *names))

    def add_module(ours: str, kind: str, *theirs: str, row: int | None = None) -> None:
        """A LayerNorm or a linear layer: `theirs` are its names in the three libraries."""
        weight, layout = ("scale", "same") if kind == "norm" else ("kernel", "linear")
        add(f"{ours}/{weight}", layout, row, *((f"{name}.weight",) for name in theirs))
        add(f"{ours}/bias", "same", row, *((f"{name}.bias",) for name in theirs))

    for i in range(len(config.conv_channels)):
        theirs = f"feature_extractor.conv_layers.{i}"
        convolution = (f"{theirs}.conv.weight",), (f"{theirs}.0.weight",)
        in_torchaudio = (f"wav2vec2.{theirs}.conv.weight",)
        add(f"frontend/conv_{i}/kernel", "convolution", None, *convolution, in_torchaudio)
        if i == 0 or config.frontend_norm == "layer":
            # A LayerNorm stands between two transpositions: number 1 of its sequence.
            in_fairseq = f"{theirs}.2.1" if config.frontend_norm == "layer" else f"{theirs}.2"
            norm = f"{theirs}.layer_norm"
            add_module(f"frontend/norm_{i}", "norm", norm, in_fairseq, f"wav2vec2.{norm}")
    for ours, kind, in_hugging_face, in_fairseq in (
        ("frontend_norm", "norm", "layer_norm", "layer_norm"),
        ("projection", "linear", "projection", "post_extract_proj"),
    ):
        in_hugging_face = f"feature_projection.{in_hugging_face}"
        in_torchaudio = f"wav2vec2.encoder.{in_hugging_face}"
        add_module(ours, kind, in_hugging_face, in_fairseq, in_torchaudio)
    masked = ("masked_spec_embed",), ("mask_emb",), (_TORCHAUDIO_MASK,)
    add("mask_embedding", "same", None, *masked)
    position = {
        "hugging_face": "encoder.pos_conv_embed.conv",
        "fairseq": "encoder.pos_conv.0",
        "torchaudio": "wav2vec2.encoder.transformer.pos_conv_embed.conv",
    }
    for ours, layout, old, new in (
        ("magnitude", "magnitude", "weight_g", "parametrizations.weight.original0"),
        ("direction", "convolution", "weight_v", "parametrizations.weight.original1"),
    ):
        # fairseq writes the old spelling only; all versions of torchaudio read it.
        names = [
            tuple(f"{name}.{spelling}" for spelling in spellings)
            for name, spellings in zip(
                position.values(), ((new, old), (old, new), (old, new)), strict=True
            )
        ]
        add(f"positional/{ours}", layout, None, *names)
    add("positional/bias", "same", None, *((f"{name}.bias",) for name in position.values()))
    norm = "encoder.layer_norm"
    add_module("encoder_norm", "norm", norm, norm, "wav2vec2.encoder.transformer.layer_norm")
    for i in range(config.num_layers):
        for ours, kind, name, in_fairseq in (
            ("query", "linear", "attention.q_proj", "self_attn.q_proj"),
            ("key", "linear", "attention.k_proj", "self_attn.k_proj"),
            ("value", "linear", "attention.v_proj", "self_attn.v_proj"),
            ("output", "linear", "attention.out_proj", "self_attn.out_proj"),
            ("ffn_in", "linear", "feed_forward.intermediate_dense", "fc1"),
            ("ffn_out", "linear", "feed_forward.output_dense", "fc2"),
            ("attention_norm", "norm", "layer_norm", "self_attn_layer_norm"),
            ("ffn_norm", "norm", "final_layer_norm", "final_layer_norm"),
        ):
            add_module(
                f"transformer/layers/layer/{ours}",
                kind,
                f"encoder.layers.{i}.{name}",
                f"encoder.layers.{i}.{in_fairseq}",
                f"wav2vec2.encoder.transformer.layers.{i}.{name}",
                row=i,
            )
    return tuple(entries)


_TORCHAUDIO_MASK = "mask_generator.mask_embedding"

CTC_HEAD = (
    Entry(
        "characters/kernel",
        None,
        "linear",
        ("lm_head.weight",),
        ("w2v_encoder.proj.weight",),
        ("aux.weight",),
    ),
    Entry(
        "characters/bias",
        None,
        "same",
        ("lm_head.bias",),
        ("w2v_encoder.proj.bias",),
        ("aux.bias",),
    ),
)

# The pre-training head, one tensor each whatever the number of codebooks (`heads` cuts them):
# projection, its bias, code embeddings. transformers has none; there it lies in a file beside the
# model under fairseq's names.
PRETRAINING_HEAD = {
    "fairseq": ("final_proj.weight", "final_proj.bias", "label_embs_concat"),
    "torchaudio": (
        "logit_generator.final_proj.weight",
        "logit_generator.final_proj.bias",
        "logit_generator.label_embeddings",
    ),
}


def spellings(entry: Entry, library: str, kind: str) -> tuple[str, ...]:
    """Names of a tensor in the model that `library` has for `kind`; none: it has no home there.

    Args:
      entry: of `table` or `CTC_HEAD`.
      library: one of `LIBRARIES`.
      kind: "encoder" (transformers' `HubertModel`, torchaudio's `Wav2Vec2Model`), "pretraining"
        (fairseq's `HubertModel`, torchaudio's `HuBERTPretrainModel`) or "ctc" (transformers'
        `HubertForCTC`, fairseq's `HubertCtc`, torchaudio's `Wav2Vec2Model` with `aux`).
    """
    names = getattr(entry, library)
    if not entry.ours.startswith("hubert/"):
        return names
    if library == "torchaudio" and kind != "pretraining":
        return tuple(name.removeprefix("wav2vec2.") for name in names if name != _TORCHAUDIO_MASK)
    return tuple(encoder_prefix(library, kind) + name for name in names)


def encoder_prefix(library: str, kind: str) -> str:
    """What stands before the encoder's names, where a model with a CTC head nests the encoder."""
    if kind == "ctc":
        return {"hugging_face": "hubert.", "fairseq": "w2v_encoder.w2v_model."}.get(library, "")
    return ""


def kind_of_tensors(tensors: Iterable[str], library: str) -> str:
    """What a model of `library` is, by its tensors' names: one of `KINDS`."""
    tensors = set(tensors)
    if any(name in tensors for entry in CTC_HEAD for name in getattr(entry, library)):
        return "ctc"
    if library != "hugging_face" and tensors.intersection(PRETRAINING_HEAD[library]):
        return "pretraining"
    return "encoder"


def kind_of_parameters(params: Mapping[str, Any]) -> str:
    """What our parameters are: one of `KINDS`."""
    if "characters" in params:
        return "ctc"
    return "pretraining" if "projection_0" in params else "encoder"


@functools.cache
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


def to_library(
    params: Mapping[str, Any], config: HubertConfig, library: str
) -> dict[str, np.ndarray]:
    """Our encoder, and its CTC head where there is one, under another library's names.

    Args:
      params: our parameters: `hubert` and possibly `characters` (the CTC head); a pre-training
        head is not looked at (`heads` converts it), but decides which model they are named for.
      config: the architecture.
      library: one of `LIBRARIES`.

    Returns:
      The tensors by name; views where the layout allows it. torchaudio's `Wav2Vec2Model` has no
      mask embedding: without a pre-training head it is left out there.

    Raises:
      InputError: parameters that are missing, left over or of another shape than `config` gives.
    """
    kind = kind_of_parameters(params)
    flat = traverse_util.flatten_dict(dict(params), sep="/")
    flat = {path: leaf for path, leaf in flat.items() if not path.startswith(_OUR_HEAD)}
    vocabulary_size = None
    if "characters/bias" in flat:
        vocabulary_size = np.shape(flat["characters/bias"])[0]
    entries = _entries(config, kind)
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
        names = spellings(entry, library, kind)
        if names:
            leaf = np.asarray(flat[entry.ours])
            leaf = leaf if entry.row is None else leaf[entry.row]
            tensors[names[0]] = _to_torch_layout(leaf, entry.layout)
    return tensors


def from_library(
    tensors: Mapping[str, np.ndarray],
    config: HubertConfig,
    library: str,
    what: str,
    kind: str | None = None,
) -> dict[str, Any]:
    """The inverse of `to_library`: our parameters, float32.

    Args:
      tensors: the state of a model without its pre-training head; biases of the convolutions,
        which HuBERT does not have, may be there when they are zero (transformers adds them where
        a configuration says `conv_bias`).
      config: the architecture.
      library: one of `LIBRARIES`.
      what: what the tensors are, for messages.
      kind: one of `KINDS`; None: by the tensors' names.

    Returns:
      `hubert`, and `characters` where there is a CTC head. `hubert/mask_embedding` is missing
      where the tensors have none, which transformers and torchaudio allow.

    Raises:
      InputError: tensors that are missing, left over or of another shape.
    """
    kind = kind_of_tensors(tensors, library) if kind is None else kind
    found = dict(tensors)
    for name in zero_biases(found, config, library, kind):
        del found[name]
    chosen = {}
    for entry in _entries(config, kind):
        names = spellings(entry, library, kind)
        present = [name for name in names if name in found]
        optional = entry.ours == "hubert/mask_embedding" and library != "fairseq"
        if names and (present or not optional):
            chosen[entry] = present[0] if present else names[0]
    require_names(what, found, chosen.values())

    vocabulary_size = None
    for entry, name in chosen.items():
        if entry.ours == "characters/bias":
            vocabulary_size = np.shape(found[name])[0]
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
    for entry in chosen:
        leaves = stacked[entry.ours]
        flat[entry.ours] = leaves[0] if entry.row is None else leaves
    flat = {
        path: np.stack(leaf) if isinstance(leaf, list) else np.ascontiguousarray(leaf)
        for path, leaf in flat.items()
    }
    return traverse_util.unflatten_dict(flat, sep="/")


def to_hugging_face(params: Mapping[str, Any], config: HubertConfig) -> dict[str, np.ndarray]:
    """`to_library` for transformers."""
    return to_library(params, config, "hugging_face")


def from_hugging_face(
    tensors: Mapping[str, np.ndarray], config: HubertConfig, what: str = "Hugging Face tensors"
) -> dict[str, Any]:
    """`from_library` for transformers."""
    return from_library(tensors, config, "hugging_face", what)


def zero_biases(
    tensors: Mapping[str, np.ndarray], config: HubertConfig, library: str, kind: str
) -> list[str]:
    """Names of biases of the front-end's convolutions that are zero: they change nothing."""
    names = []
    for i in range(len(config.conv_channels)):
        (weight,) = spellings(table(config)[0], library, kind)
        name = weight.replace("layers.0.", f"layers.{i}.").removesuffix("weight") + "bias"
        if name in tensors and not np.any(tensors[name]):
            names.append(name)
    return names


_OUR_HEAD = ("projection_", "codes_")


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
def _entries(config: HubertConfig, kind: str) -> tuple[Entry, ...]:
    return (*table(config), *CTC_HEAD) if kind == "ctc" else table(config)


def _to_torch_layout(leaf: np.ndarray, layout: str) -> np.ndarray:
    if layout == "magnitude":
        return leaf[None, None, :]
    return leaf if layout == "same" else leaf.transpose()


def _from_torch_layout(leaf: np.ndarray, layout: str) -> np.ndarray | None:
    """None where the array cannot have this layout; the caller checks all other shapes."""
    if layout == "magnitude":
        return leaf[0, 0] if leaf.ndim == 3 and leaf.shape[:2] == (1, 1) else None
    return leaf if layout == "same" else leaf.transpose()
