"""One table of names: our parameters and where other libraries keep the same numbers.

Each `Entry` binds one tensor of ours (for the transformer: one row of a stacked one) to its name
in another library, a column a library, and to the layout it has there. Both directions
(`encoders`, `heads`) read the same table.
"""

import dataclasses
import functools
from collections.abc import Iterable

from hubert_jax.model.architecture import Architecture

LIBRARIES = ("hugging_face", "fairseq", "torchaudio")
KINDS = ("encoder", "pretraining", "ctc")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor.

    A name in another library comes with its spellings: the one that is written first, then those
    that are read as well (torch renamed the parts of a weight norm).

    Attributes:
      ours: path of the parameter, `hubert/feature_projection/kernel`.
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
def table(architecture: Architecture) -> tuple[Entry, ...]:
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

    for i in range(len(architecture.conv_channels)):
        theirs = f"feature_extractor.conv_layers.{i}"
        convolution = (f"{theirs}.conv.weight",), (f"{theirs}.0.weight",)
        in_torchaudio = (f"wav2vec2.{theirs}.conv.weight",)
        add(f"frontend/conv_{i}/kernel", "convolution", None, *convolution, in_torchaudio)
        if i == 0 or architecture.frontend_norm == "layer":
            # A LayerNorm stands between two transpositions: number 1 of its sequence.
            in_fairseq = f"{theirs}.2.1" if architecture.frontend_norm == "layer" else f"{theirs}.2"
            norm = f"{theirs}.layer_norm"
            add_module(f"frontend/norm_{i}", "norm", norm, in_fairseq, f"wav2vec2.{norm}")
    for ours, kind, in_hugging_face, in_fairseq in (
        ("frontend_norm", "norm", "layer_norm", "layer_norm"),
        ("feature_projection", "linear", "projection", "post_extract_proj"),
    ):
        name = f"feature_projection.{in_hugging_face}"
        add_module(ours, kind, name, in_fairseq, f"wav2vec2.encoder.{name}")
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
        "ctc_head/kernel",
        None,
        "linear",
        ("lm_head.weight",),
        ("w2v_encoder.proj.weight",),
        ("aux.weight",),
    ),
    Entry(
        "ctc_head/bias",
        None,
        "same",
        ("lm_head.bias",),
        ("w2v_encoder.proj.bias",),
        ("aux.bias",),
    ),
)

# The pre-training head, one tensor each whatever the number of codebooks (`heads` cuts them):
# projection, its bias, label embeddings. transformers has none; there it lies in a file beside the
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
