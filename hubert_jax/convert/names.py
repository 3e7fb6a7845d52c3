"""One table of names: our parameters and where other libraries keep the same numbers."""

import dataclasses
import functools
from collections.abc import Iterable

from hubert_jax.model.architecture import Architecture

LIBRARIES = ("hugging_face", "fairseq", "torchaudio")
KINDS = ("encoder", "pretraining", "ctc")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor: where it is here and in other libraries.

    The layout is, here and in torch, "linear": (in, out), (out, in); "convolution": (kernel, in,
    out), (out, in, kernel); "magnitude": (kernel,), (1, 1, kernel); or "same". Of a library's names
    the first is written; torch renamed the parts of a weight norm, so that others are read.
    """

    ours: str  # path, hubert/feature_projection/kernel
    row: int | None  # of the layer axis of a stacked parameter
    layout: str
    hugging_face: tuple[str, ...]
    fairseq: tuple[str, ...]
    torchaudio: tuple[str, ...]


def _module(ours: str, kind: str, *theirs: str, row: int | None = None) -> tuple[Entry, Entry]:
    """Weight and bias of a norm or a linear layer, from its names in the three libraries."""
    weight, layout = ("scale", "same") if kind == "norm" else ("kernel", "linear")
    return (
        Entry(f"{ours}/{weight}", row, layout, *((f"{name}.weight",) for name in theirs)),
        Entry(f"{ours}/bias", row, "same", *((f"{name}.bias",) for name in theirs)),
    )


_TORCHAUDIO_MASK = "mask_generator.mask_embedding"
CTC_HEAD = _module("ctc_head", "linear", "lm_head", "w2v_encoder.proj", "aux")
PRETRAINING_HEAD = {  # projection, bias, label embeddings: one tensor each for all codebooks
    "fairseq": ("final_proj.weight", "final_proj.bias", "label_embs_concat"),
    "torchaudio": (
        "logit_generator.final_proj.weight",
        "logit_generator.final_proj.bias",
        "logit_generator.label_embeddings",
    ),
}


@functools.cache
def table(architecture: Architecture) -> tuple[Entry, ...]:
    """The encoder's entries, in the order of the network; the same for post- and pre-LN.

    From transformers' `modeling_hubert`, fairseq's `models/hubert/hubert.py` and
    `models/wav2vec/wav2vec2.py`, and torchaudio's `models/wav2vec2`.
    """
    entries: list[Entry] = []

    def add(ours: str, layout: str, *names: tuple[str, ...]) -> None:
        entries.append(Entry(f"hubert/{ours}", None, layout, *names))

    def add_module(ours: str, kind: str, *theirs: str, row: int | None = None) -> None:
        entries.extend(_module(f"hubert/{ours}", kind, *theirs, row=row))

    layer_norms = architecture.frontend_norm == "layer"
    for i in range(len(architecture.conv_channels)):
        name = f"feature_extractor.conv_layers.{i}"
        kernel = (f"{name}.conv.weight",), (f"{name}.0.weight",), (f"wav2vec2.{name}.conv.weight",)
        add(f"frontend/conv_{i}/kernel", "convolution", *kernel)
        if i == 0 or layer_norms:
            # A LayerNorm stands between two transpositions: number 1 of its sequence.
            in_fairseq = f"{name}.2.1" if layer_norms else f"{name}.2"
            norm = f"{name}.layer_norm"
            add_module(f"frontend/norm_{i}", "norm", norm, in_fairseq, f"wav2vec2.{norm}")
    for ours, kind, name, in_fairseq in (
        ("frontend_norm", "norm", "feature_projection.layer_norm", "layer_norm"),
        ("feature_projection", "linear", "feature_projection.projection", "post_extract_proj"),
    ):
        add_module(ours, kind, name, in_fairseq, f"wav2vec2.encoder.{name}")
    add("mask_embedding", "same", ("masked_spec_embed",), ("mask_emb",), (_TORCHAUDIO_MASK,))
    transformer = "wav2vec2.encoder.transformer"
    name = "pos_conv_embed.conv"
    position = f"encoder.{name}", "encoder.pos_conv.0", f"{transformer}.{name}"
    for ours, layout, old, new in (
        ("magnitude", "magnitude", "weight_g", "parametrizations.weight.original0"),
        ("direction", "convolution", "weight_v", "parametrizations.weight.original1"),
    ):
        # fairseq writes the old spelling only; all versions of torchaudio read it.
        parts = zip(position, ((new, old), (old, new), (old, new)), strict=True)
        names = [(f"{name}.{written}", f"{name}.{read}") for name, (written, read) in parts]
        add(f"positional/{ours}", layout, *names)
    add("positional/bias", "same", *((f"{name}.bias",) for name in position))
    norm = "encoder.layer_norm"
    add_module("encoder_norm", "norm", norm, norm, f"{transformer}.layer_norm")
    for i in range(architecture.num_layers):
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
            layer = f"layers.{i}"
            theirs = f"encoder.{layer}.{name}", f"encoder.{layer}.{in_fairseq}"
            in_torchaudio = f"{transformer}.{layer}.{name}"
            add_module(f"transformer/layers/layer/{ours}", kind, *theirs, in_torchaudio, row=i)
    return tuple(entries)


def spellings(entry: Entry, library: str, kind: str) -> tuple[str, ...]:
    """A tensor's names in the model that `library` has for `kind`; none: it has no home there.

    "encoder" is transformers' `HubertModel` and torchaudio's `Wav2Vec2Model`; "pretraining" is
    fairseq's `HubertModel` and torchaudio's `HuBERTPretrainModel`; "ctc" is `HubertForCTC`,
    `HubertCtc` and `Wav2Vec2Model` with `aux`.
    """
    names = getattr(entry, library)
    if not entry.ours.startswith("hubert/"):
        return names
    if library == "torchaudio" and kind != "pretraining":
        return tuple(name.removeprefix("wav2vec2.") for name in names if name != _TORCHAUDIO_MASK)
    return tuple(encoder_prefix(library, kind) + name for name in names)


def encoder_prefix(library: str, kind: str) -> str:
    """What stands before the encoder's names where a model with a CTC head nests the encoder."""
    prefixes = {"hugging_face": "hubert.", "fairseq": "w2v_encoder.w2v_model."}
    return prefixes.get(library, "") if kind == "ctc" else ""


def kind_of_tensors(tensors: Iterable[str], library: str) -> str:
    """What a model of `library` is, by its tensors' names: one of `KINDS`."""
    tensors = set(tensors)
    if any(name in tensors for entry in CTC_HEAD for name in getattr(entry, library)):
        return "ctc"
    if library != "hugging_face" and tensors.intersection(PRETRAINING_HEAD[library]):
        return "pretraining"
    return "encoder"
