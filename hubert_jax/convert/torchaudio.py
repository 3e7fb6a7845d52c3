"""State dicts of torchaudio's HuBERT models (2.11, `models/wav2vec2`), and files beside them.

`FILE.json` has the configuration, `FILE.rest.safetensors` tensors that have no home there.
"""

import itertools
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from hubert_jax import config as config_lib
from hubert_jax import files, storage
from hubert_jax.convert import encoders, names, torch_files
from hubert_jax.convert.genuine import read_json
from hubert_jax.convert.network import Network, with_mask_embedding
from hubert_jax.convert.safetensors_files import read_tensors, write_tensors
from hubert_jax.convert.state_dicts import from_state_dict, to_state_dict
from hubert_jax.errors import InputError
from hubert_jax.model.architecture import NO_REGULARIZATION, Architecture, Head, Regularization
from hubert_jax.unit_classes import Units
from hubert_jax.vocabulary import LIBRISPEECH, Vocabulary

# (dim, num_layers, ffn_dim) of the published sizes: attention heads, which no shape shows.
_PUBLISHED = {(768, 12, 3072): 12, (1024, 24, 4096): 16, (1280, 48, 5120): 16}
_STRIDES = {(10, 3, 3, 3, 3, 2, 2): (5, 2, 2, 2, 2, 2, 2)}
_TEMPERATURE = 0.1  # of torchaudio's logits, not to be changed there


def read(path: str | os.PathLike) -> Network:
    """Reads a state dict; without `FILE.json` the shapes tell the published architectures.

    Raises InputError for a damaged file, one that names code to be run, or other shapes.
    """
    path = storage.path(path)
    content = torch_files.load(path)
    if isinstance(content, Mapping) and "model" in content and {"cfg", "args"} & content.keys():
        raise InputError(
            f"{path}: a checkpoint with `model` inside, no state dict; fairseq's is read as "
            "fairseq:FILE"
        )
    tensors, notes = torch_files.read_state(path, content)
    kind = names.kind_of_tensors(tensors, "torchaudio")
    beside = _beside(path, ".json")
    described: dict[str, Any] = {}
    if beside.is_file():
        described = read_json(beside, "architecture of a torchaudio model")
        if not isinstance(described.get("architecture"), dict):
            raise InputError(f'{beside}: expected {{"architecture": {{...}}, ...}}')
        architecture, head, regularization = _described(described, beside)
    else:
        try:
            architecture, head, regularization = _published(tensors, kind, path)
        except (IndexError, ValueError, ZeroDivisionError):
            raise InputError(f"{path}: its tensors have shapes of no published size") from None
        notes += (f"read off the shapes: the architecture, since there is no {beside.name}",)
    notes += encoders.note_on_biases(tensors, architecture, "torchaudio", kind)
    params = from_state_dict(tensors, architecture, head, "torchaudio", str(path))
    if described.get("rest"):
        name = described["rest"]
        if not isinstance(name, str) or name == ".." or storage.path(name).name != name:
            raise InputError(f"{beside}: rest is {name!r}, expected a file beside it")
        rest, _, _ = read_tensors(path.with_name(name))
        flat = traverse_util.flatten_dict(params, sep="/")
        params = traverse_util.unflatten_dict({**rest, **flat}, sep="/")
    params, made = with_mask_embedding(params, architecture)
    notes += made
    vocabulary = units = None
    if kind == "ctc":
        if "vocabulary" in described:
            vocabulary = Vocabulary.from_dict(described["vocabulary"])
        else:
            vocabulary = _vocabulary(len(tensors["aux.bias"]), path)
            notes += ("taken for granted: the letters of fairseq's dict.ltr.txt",)
    if head is not None and described.get("units"):
        units = Units.from_dict(described["units"], head.codebook_sizes, str(beside))
    digest = files.sha256_file(path)
    kept = described.get("beside") or {}
    return Network(
        params, architecture, head, regularization, vocabulary, units, digest, notes, kept
    )


def _described(
    values: Mapping[str, Any], path: pathlib.Path
) -> tuple[Architecture, Head | None, Regularization]:
    def build(schema: Callable[..., Any], name: str) -> Any:
        return config_lib.build(schema, values.get(name) or {}, f"{path}: {name}")

    architecture = build(Architecture, "architecture")
    head = None if values.get("head") is None else build(Head, "head")
    return architecture, head, build(Regularization, "regularization")


def write(path: str | os.PathLike, network: Network) -> tuple[str, ...]:
    """Writes a state dict and the files beside it; returns notes on what has no home in it."""
    path, head, kind = storage.path(path), network.head, network.kind
    tensors = to_state_dict(network.params, network.architecture, head, "torchaudio")
    rest = {
        name: np.asarray(leaf)
        for name, leaf in network.flat.items()
        if kind != "pretraining" and name.startswith(("hubert/mask_embedding", "label_embeddings_"))
    }
    notes = []
    beside = _beside(path, ".rest.safetensors")
    if rest:
        with files.writing_file(beside) as aside:
            write_tensors(aside, rest, {})
        notes.append(
            f"left out of the state dict, kept in {beside.name}: {', '.join(sorted(rest))}, which "
            "torchaudio's Wav2Vec2Model has no home for"
        )
    else:
        beside.unlink(missing_ok=True)
    if head and kind == "pretraining":
        if len(head.codebook_sizes) > 1:
            notes.append(
                f"joined: the heads of {len(head.codebook_sizes)} codebooks, where torchaudio has "
                "one; its encoder loads them, its head does not"
            )
        if head.temperature != _TEMPERATURE:
            notes.append(
                f"torchaudio's temperature is {_TEMPERATURE}, here it is {head.temperature}"
            )
    described = {
        "model": "hubert_pretrain_model" if kind == "pretraining" else "wav2vec2_model",
        "arguments": _arguments(network),
        **network.described(),
        **({"rest": beside.name} if rest else {}),
        **({"vocabulary": network.vocabulary.to_dict()} if network.vocabulary else {}),
        **({"units": config_lib.to_dict(network.units)} if network.units else {}),
    }
    files.write_json(_beside(path, ".json"), described)
    torch_files.save(path, tensors)
    return tuple(notes)


def _beside(path: pathlib.Path, suffix: str) -> pathlib.Path:
    return path.with_name(path.name + suffix)


def _arguments(network: Network) -> dict[str, Any]:
    """Of `torchaudio.models.hubert_pretrain_model` or `wav2vec2_model`."""
    config, regularization = network.architecture, network.regularization
    layers = zip(config.conv_channels, config.conv_kernels, config.conv_strides, strict=True)
    arguments = {
        "extractor_mode": f"{config.frontend_norm}_norm",
        "extractor_conv_layer_config": [list(layer) for layer in layers],
        "extractor_conv_bias": False,
        "encoder_embed_dim": config.dim,
        "encoder_projection_dropout": regularization.input_dropout,
        "encoder_pos_conv_kernel": config.positional_kernel,
        "encoder_pos_conv_groups": config.positional_groups,
        "encoder_num_layers": config.num_layers,
        "encoder_num_heads": config.num_heads,
        "encoder_attention_dropout": regularization.attention_dropout,
        "encoder_ff_interm_features": config.ffn_dim,
        "encoder_ff_interm_dropout": regularization.activation_dropout,
        "encoder_dropout": regularization.dropout,
        "encoder_layer_norm_first": config.pre_norm,
        "encoder_layer_drop": regularization.layer_drop,
    }
    head = network.head
    if head is None or network.kind != "pretraining":
        classes = network.vocabulary.size if network.vocabulary else None
        return {**arguments, "aux_num_out": classes}
    scale = regularization.frontend_gradient_scale
    return {
        **arguments,
        "mask_prob": 0.8,
        "mask_selection": "static",
        "mask_other": 0.0,
        "mask_length": 10,
        "no_mask_overlap": False,
        "mask_min_space": 1,
        "mask_channel_prob": 0.0,
        "mask_channel_selection": "static",
        "mask_channel_other": 0.0,
        "mask_channel_length": 10,
        "no_mask_channel_overlap": False,
        "mask_channel_min_space": 1,
        "skip_masked": False,
        "skip_nomask": False,
        "num_classes": sum(head.codebook_sizes),
        "final_dim": head.projection_dim,
        "feature_grad_mult": scale if 0.0 < scale < 1.0 else None,  # torchaudio refuses others
    }


def _published(
    tensors: Mapping[str, np.ndarray], kind: str, path: pathlib.Path
) -> tuple[Architecture, Head | None, Regularization]:
    """Architecture, head and regularization of a published size, from the shapes of its tensors."""

    def shapes(pattern: str) -> list[tuple[int, ...]]:
        """Of the tensors whose names have 0, 1, ... in the pattern, up to the first missing."""
        numbered = map(pattern.format, itertools.count())
        return [tensors[name].shape for name in itertools.takewhile(tensors.__contains__, numbered)]

    def refuse(found: str) -> InputError:
        return InputError(
            f"{path}: a state dict carries no configuration, and its shapes ({found}) are none of "
            f"the published sizes; write {_beside(path, '.json').name} beside it with "
            '{"architecture": {...}}, the keys of config.architecture'
        )

    prefix = "wav2vec2." if kind == "pretraining" else ""
    transformer = f"{prefix}encoder.transformer"
    convolutions = shapes(f"{prefix}feature_extractor.conv_layers.{{}}.conv.weight")
    kernels = tuple(shape[-1] for shape in convolutions)
    wide = shapes(f"{transformer}.layers.{{}}.feed_forward.intermediate_dense.weight")
    direction = f"{transformer}.pos_conv_embed.conv"
    spelled = (f"{direction}.weight_v", f"{direction}.parametrizations.weight.original1")
    position = [tensors[name].shape for name in spelled if name in tensors]
    if not position or len(position[0]) != 3 or not wide or kernels not in _STRIDES:
        raise refuse(f"convolutions of {kernels}, {len(wide)} layers")
    (ffn_dim, dim), layers = wide[0], len(wide)
    if (dim, layers, ffn_dim) not in _PUBLISHED:
        raise refuse(f"width {dim}, {layers} layers, feed-forward {ffn_dim}")
    large = f"{prefix}feature_extractor.conv_layers.1.layer_norm.weight" in tensors
    head = None
    if kind == "pretraining":
        embeddings = tensors.get("logit_generator.label_embeddings")
        if embeddings is None:
            raise InputError(f"{path}: missing: logit_generator.label_embeddings")
        head = Head((len(embeddings),), embeddings.shape[1])
    architecture = Architecture(
        conv_channels=tuple(shape[0] for shape in convolutions),
        conv_kernels=kernels,
        conv_strides=_STRIDES[kernels],
        frontend_norm="layer" if large else "group",
        normalize_waveform=large,
        dim=dim,
        num_layers=layers,
        ffn_dim=ffn_dim,
        num_heads=_PUBLISHED[dim, layers, ffn_dim],
        pre_norm=large,
        positional_kernel=position[0][2],
        positional_groups=dim // position[0][1],
    )
    return architecture, head, NO_REGULARIZATION if large else Regularization()


def _vocabulary(classes: int, path: pathlib.Path) -> Vocabulary:
    """The published classes: blank, three special symbols or none, 28 characters."""
    for specials in ((), ("<s>", "</s>", "<unk>")):
        vocabulary = Vocabulary.from_symbols((*specials, *LIBRISPEECH.characters))
        if vocabulary.size == classes:
            return vocabulary
    raise InputError(
        f"{path}: a CTC head of {classes} classes, and no {_beside(path, '.json').name} beside it "
        'that says what they are ("vocabulary": {"characters": [...]}); published ones have 29 '
        "or 32"
    )
