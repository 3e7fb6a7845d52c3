"""Directories that transformers loads offline, written and read without it."""

import dataclasses
import json
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hubert_jax import config as config_lib
from hubert_jax import files, storage
from hubert_jax.convert import torch_files
from hubert_jax.convert.encoders import from_library, note_on_biases, require_names, to_library
from hubert_jax.convert.genuine import read_json
from hubert_jax.convert.heads import head_from_library, head_to_library
from hubert_jax.convert.names import kind_of_tensors
from hubert_jax.convert.network import Network, with_mask_embedding
from hubert_jax.convert.safetensors_files import read_tensors, write_tensors
from hubert_jax.convert.tokenizer import TOKENIZER_FILES, read_vocabulary, tokenizer_files
from hubert_jax.errors import InputError
from hubert_jax.frames import SAMPLE_RATE
from hubert_jax.model.architecture import Architecture, Head, Regularization
from hubert_jax.model.kernels.norm import EPSILON
from hubert_jax.unit_classes import Units
from hubert_jax.vocabulary import BLANK

MODEL, HEAD = "model.safetensors", "pretraining_head.safetensors"
LANGUAGE_MODEL = "language_model"  # the folder of an n-gram
_OLD_MODEL = "pytorch_model.bin"  # how transformers saved before safetensors; read, not written
_OF_MODELS = frozenset(  # what is written anew, or removed
    (MODEL, HEAD, "config.json", *TOKENIZER_FILES, "preprocessor_config.json", "README.md")
    + ("processor_config.json", LANGUAGE_MODEL)
)
_INDEX = ".index.json"  # of weights in several files
_EXTRACTOR, _PROCESSOR = "preprocessor_config.json", "processor_config.json"
_PREPARATION = {  # of waveforms: another value would be another network's
    "feature_extractor_type": "Wav2Vec2FeatureExtractor",
    "feature_size": 1,
    "sampling_rate": SAMPLE_RATE,
}
_CTC_HEAD = ("lm_head.weight", "lm_head.bias")


def write_directory(
    out: str | os.PathLike, network: Network, more: Mapping[str, str | pathlib.Path] | None = None
) -> dict[str, str]:
    """Writes a model directory, or replaces one; gives the SHA-256 (hex) of each file by name.

    What is no model's, such as .git of a clone, stays where it is.
    `more` are texts, or files to copy, by their names in it.
    What lay beside a network that came from such a directory is written as it was, and the rows of
    its CTC head in the order that these files tell.

    Raises InputError for parameters of another architecture, or an `out` that is no model.
    """
    head = network.head
    tensors = to_library(network.params, network.architecture, "hugging_face")
    out = storage.path(out)
    if out.exists() and not (out / MODEL).is_file():
        raise InputError(
            f"{out}: exists and holds no {MODEL}; it would be replaced: name another directory"
        )
    beside = _json_files(network)
    if network.vocabulary is not None:
        vocabulary, rows, _ = read_vocabulary(out, beside, network.vocabulary.size)
        if not vocabulary.same_classes(network.vocabulary):
            raise InputError(f"{out}: the tokens that came with the network are not its own")
        for name in _CTC_HEAD:
            tensors[name] = tensors[name][np.argsort(rows)]
    with files.writing_directory(out, "config.json", _OF_MODELS.__contains__) as aside:
        metadata = network.described()  # transformers has no field for all of it
        del metadata["head"]  # which has a file of its own
        metadata.pop("beside", None)
        write_tensors(aside / MODEL, tensors, metadata)
        for name, content in beside.items():
            files.write_json(aside / name, content)
        if head is not None and network.units is not None:
            metadata = {
                "class_counts": head.codebook_sizes,
                "projection_dim": head.projection_dim,
                "temperature": head.temperature,
                "label_offset": network.units.offset,
                "units": config_lib.to_dict(network.units),
            }
            tensors = head_to_library(network.params, network.architecture, head, "fairseq")
            write_tensors(aside / HEAD, tensors, metadata)
        for name, content in (more or {}).items():
            (aside / name).parent.mkdir(exist_ok=True)
            if isinstance(content, str):
                (aside / name).write_text(content, encoding="utf-8")
            else:
                shutil.copyfile(content, aside / name)
        written = (path for path in aside.rglob("*") if path.is_file())
        names = sorted(path.relative_to(aside).as_posix() for path in written)
        return {name: files.sha256_file(aside / name) for name in names}


def read_directory(directory: str | os.PathLike) -> Network:
    """Reads a model directory; the blank of a CTC head is moved to class 0.

    What its files say wins over what is usual; what had to be assumed is in the notes.

    Raises:
      InputError: files missing, broken or against each other, or a network that is not a HuBERT as
        defined here.
    """
    directory = storage.path(directory)
    if not (directory / "config.json").is_file():
        raise InputError(
            f"{directory}: holds no config.json; expected a directory that transformers loads"
        )
    beside, notes = _read_beside(directory)
    model, tensors, of_model, digest, of_weights = _read_weights(directory)
    architecture, regularization, assumed = _described(beside, directory, of_model)
    kind = kind_of_tensors(tensors, "hugging_face")
    notes += of_weights + assumed
    notes += note_on_biases(tensors, architecture, "hugging_face", kind)
    vocabulary = head = units = None
    if kind == "ctc":
        require_names(str(model), set(_CTC_HEAD) & set(tensors), _CTC_HEAD)
        shapes = [np.shape(tensors[name]) for name in _CTC_HEAD]
        if len(shapes[0]) != 2 or shapes[1] != shapes[0][:1]:
            raise InputError(f"{model}: {' and '.join(_CTC_HEAD)} have shapes {shapes}")
        (classes,) = shapes[1]
        values = beside["config.json"]
        if values.get("vocab_size", 32) != classes:
            stated = f"{values['vocab_size']!r:.100}" if "vocab_size" in values else "missing (32)"
            raise InputError(
                f"{directory / 'config.json'}: vocab_size is {stated}, but lm_head of "
                f"{model.name} has {classes} classes"
            )
        vocabulary, rows, of_tokens = read_vocabulary(directory, beside, classes)
        notes += of_tokens
        if "vocabulary" in of_model:
            vocabulary = vocabulary.completed(_parsed(of_model, "vocabulary", MODEL))
        tensors |= {name: tensors[name][rows] for name in _CTC_HEAD}
    params = from_library(tensors, architecture, "hugging_face", str(model))
    params, made = with_mask_embedding(params, architecture)
    if architecture.normalize_waveform != (architecture.frontend_norm == "layer"):
        digest = config_lib.digest([digest, architecture.normalize_waveform])  # other features
    if (directory / HEAD).is_file():
        where = str(directory / HEAD)
        tensors, of_head, widened = read_tensors(where)
        notes += tuple(f"{HEAD}: {note}" for note in widened)
        fields = {"class_counts": "codebook_sizes", "projection_dim": "", "temperature": ""}
        values = {ours or name: _parsed(of_head, name, HEAD) for name, ours in fields.items()}
        head = config_lib.build(Head, values, where)
        params |= head_from_library(tensors, architecture, head, "fairseq", where)
        if "units" in of_head:
            units = Units.from_dict(_parsed(of_head, "units", where), head.codebook_sizes, where)
        digest = config_lib.digest([digest, files.sha256_file(where)])
    notes += made
    network = Network(params, architecture, head, regularization, vocabulary, units, digest, notes)
    kept = beside if beside != _json_files(network) else {}
    return dataclasses.replace(network, beside=kept)


def _json_files(network: Network) -> dict[str, Any]:
    """JSON files of a directory by name: those that the network came with, or our own."""
    beside = dict(network.beside) or {"config.json": model_config(network)}
    if not network.beside and network.vocabulary is not None:
        beside |= tokenizer_files(network.vocabulary)
    if not any(name in beside for name in (_PROCESSOR, _EXTRACTOR)):
        beside[_EXTRACTOR] = _feature_extractor(network)
    return beside


def _read_beside(directory: pathlib.Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """All JSON files of a directory by name, but the indices of weights; notes on left-out ones.

    Another network is refused by its field before its weights are read.
    """
    beside, notes = {}, []
    for path in sorted(directory.glob("*.json")):
        if path.name.endswith(_INDEX):
            continue
        try:
            beside[path.name] = read_json(path, "a file of transformers")
        except InputError as error:
            if path.name in ("config.json", _EXTRACTOR, _PROCESSOR, *TOKENIZER_FILES):
                raise
            notes.append(f"left out: {error}")
    values = beside["config.json"]
    # Without norms first transformers passes over the adapters.
    adapters = {"adapter_attn_dim": None} if values.get("do_stable_layer_norm") else {}
    for key, expected in (_FIXED | adapters).items():
        if values.get(key, expected) != expected:
            raise InputError(
                f"{directory / 'config.json'}: {key} is {values[key]!r:.100}, expected {expected!r}"
            )
    return beside, tuple(notes)


def _read_weights(
    directory: pathlib.Path,
) -> tuple[pathlib.Path, dict[str, np.ndarray], dict[str, str], str, tuple[str, ...]]:
    """File of the weights, or their index; tensors, metadata, digest and notes.

    Of several files the one that transformers takes.
    """
    known = [name + more for name in (MODEL, _OLD_MODEL) for more in ("", _INDEX)]
    there = [name for name in known if (directory / name).is_file()]
    if not there:
        raise InputError(f"{directory}: no weights: expected one of {', '.join(known)}")
    model = directory / there[0]
    parts = _parts(model) if there[0].endswith(_INDEX) else {there[0]: None}
    tensors: dict[str, np.ndarray] = {}
    metadata: dict[str, str] = {}
    notes: list[str] = [f"not read: {name}, beside {model.name}" for name in there[1:]]
    for name, listed in parts.items():
        path = directory / name
        if there[0].startswith(_OLD_MODEL):
            found, said = torch_files.read_state(path)
        else:
            found, metadata, said = read_tensors(path)
        renamed = {
            re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", key)): key for key in found
        }
        if len(renamed) < len(found):
            raise InputError(f"{path}: a norm has gamma or beta beside its weight or bias")
        names = set(renamed.values())
        if listed is not None and listed != names:
            missing, more = listed - names, names - listed
            problem = f"names {min(missing)}" if missing else f"does not name {min(more)}"
            raise InputError(
                f"{model}: {problem}, which is {'not ' * bool(missing)}in {name}; copy the index "
                "and all files of one network"
            )
        tensors |= {key: found[old] for key, old in renamed.items()}
        notes += [note if listed is None else f"{name}: {note}" for note in said]
        count = sum(key != old for key, old in renamed.items())
        notes += [f"renamed: {count} tensors gamma or beta, to weight and bias"] * bool(count)
    unwrapped, said = torch_files.unwrapped(tensors)
    notes += said
    digests = [files.sha256_file(directory / name) for name in parts]
    digest = digests[0] if len(digests) == 1 else config_lib.digest(digests)
    return model, dict(unwrapped), metadata, digest, tuple(notes)


def _parts(index: pathlib.Path) -> dict[str, set[str]]:
    """The tensors of each file that an index of weights names."""
    listed = read_json(index, "index of the weights").get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise InputError(f"{index}: weight_map is missing; copy the index again")
    parts: dict[str, set[str]] = {}
    for tensor, name in listed.items():
        if not isinstance(name, str) or name in ("", "..") or storage.path(name).name != name:
            raise InputError(f"{index}: {tensor} is in {name!r}, expected a file beside the index")
        parts.setdefault(name, set()).add(tensor)
    for name in parts:
        if not index.with_name(name).is_file():
            raise InputError(f"{index}: {name} is missing; copy all files that the index names")
    return dict(sorted(parts.items()))


def model_config(network: Network) -> dict[str, Any]:
    """The fields of transformers' `HubertConfig`, as in `config.json`; masks are its defaults."""
    config, regularization = network.architecture, network.regularization
    vocabulary = network.vocabulary
    classes = {"<s>": 1, "</s>": 2}  # transformers' defaults
    if vocabulary is not None:
        classes = {name: index for index, name in vocabulary.specials}
    return {
        "architectures": ["HubertModel" if vocabulary is None else "HubertForCTC"],
        "model_type": "hubert",
        "dtype": "float32",
        "torch_dtype": "float32",
        "conv_dim": list(config.conv_channels),
        "conv_kernel": list(config.conv_kernels),
        "conv_stride": list(config.conv_strides),
        "num_feat_extract_layers": len(config.conv_channels),
        "conv_bias": False,
        "feat_extract_norm": config.frontend_norm,
        "feat_extract_activation": "gelu",
        "feat_proj_layer_norm": True,
        "hidden_size": config.dim,
        "num_hidden_layers": config.num_layers,
        "intermediate_size": config.ffn_dim,
        "num_attention_heads": config.num_heads,
        "hidden_act": "gelu",
        "do_stable_layer_norm": config.pre_norm,
        "layer_norm_eps": EPSILON,
        "num_conv_pos_embeddings": config.positional_kernel,
        "num_conv_pos_embedding_groups": config.positional_groups,
        "conv_pos_batch_norm": False,
        "hidden_dropout": regularization.dropout,
        "attention_dropout": regularization.attention_dropout,
        "activation_dropout": regularization.activation_dropout,
        "feat_proj_dropout": regularization.input_dropout,
        "final_dropout": 0.0,
        "layerdrop": regularization.layer_drop,
        "initializer_range": 0.02,
        "apply_spec_augment": True,
        "mask_time_prob": 0.05,  # 0: transformers would build no mask embedding
        "mask_time_length": 10,
        "mask_time_min_masks": 2,
        "mask_feature_prob": 0.0,
        "mask_feature_length": 64,
        "mask_feature_min_masks": 0,
        "vocab_size": 32 if vocabulary is None else vocabulary.size,  # 32: transformers' default
        "pad_token_id": BLANK,
        "bos_token_id": classes.get("<s>"),
        "eos_token_id": classes.get("</s>"),
        "ctc_loss_reduction": "sum",
        "ctc_zero_infinity": True,
        "use_weighted_layer_sum": False,
        "classifier_proj_size": 256,
    }


_FIXED = {  # by definition: another value would be another network
    "model_type": "hubert",
    "feat_extract_activation": "gelu",
    "hidden_act": "gelu",
    "feat_proj_layer_norm": True,
    "conv_pos_batch_norm": False,
    "layer_norm_eps": EPSILON,
}
_ARCHITECTURE = {
    "conv_dim": "conv_channels",
    "conv_kernel": "conv_kernels",
    "conv_stride": "conv_strides",
    "feat_extract_norm": "frontend_norm",
    "hidden_size": "dim",
    "num_hidden_layers": "num_layers",
    "intermediate_size": "ffn_dim",
    "num_attention_heads": "num_heads",
    "do_stable_layer_norm": "pre_norm",
    "num_conv_pos_embeddings": "positional_kernel",
    "num_conv_pos_embedding_groups": "positional_groups",
}
_REGULARIZATION = {
    "hidden_dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "feat_proj_dropout": "input_dropout",
    "layerdrop": "layer_drop",
}


def _described(
    beside: Mapping[str, Any], directory: pathlib.Path, model: Mapping[str, str]
) -> tuple[Architecture, Regularization, tuple[str, ...]]:
    """What a network is and was trained with, from the JSON files and the metadata of `MODEL`.

    Without metadata, as the released models: the front-end's gradient is not scaled where the
    front-end has LayerNorms. Notes say how waveforms are prepared where that is not told alike.
    """
    values, path = beside["config.json"], str(directory / "config.json")

    def build(schema: Callable[..., Any], fields: Mapping[str, str], **more: Any) -> Any:
        for key in fields:
            if key not in values:
                raise InputError(f"{path}: {key} is missing; is it a HuBERT configuration?")
        try:
            ours = {name: values[key] for key, name in fields.items()}
            return config_lib.build(schema, ours | more, path)
        except InputError as error:
            theirs = [key for key, name in fields.items() if re.search(rf"\b{name}\b", str(error))]
            where = "" if str(error).startswith(path) else f"{path}: "
            raise InputError(f"{where}{error!s:.500} (there: {', '.join(theirs)})") from None

    layer_norms = values.get("feat_extract_norm") == "layer"
    usual, gradient_scale = layer_norms, 1.0 if layer_norms else 0.1
    if "architecture" in model:
        usual = _of_metadata(model, "architecture", "normalize_waveform") is True
    if "regularization" in model:
        gradient_scale = _of_metadata(model, "regularization", "frontend_gradient_scale")
    normalize, notes = _normalization(beside, directory, usual, "architecture" in model)
    return (
        build(Architecture, _ARCHITECTURE, normalize_waveform=normalize),
        build(Regularization, _REGULARIZATION, frontend_gradient_scale=gradient_scale),
        notes,
    )


def _normalization(
    beside: Mapping[str, Any], directory: pathlib.Path, usual: bool, known: bool
) -> tuple[bool, tuple[str, ...]]:
    """Whether waveforms are normalised, and a note where that is assumed or against what is usual.

    transformers takes the newer of the two files, where it describes the feature extractor.
    """
    name, values = _EXTRACTOR, beside.get(_EXTRACTOR)
    if isinstance(beside.get(_PROCESSOR, {}).get("feature_extractor"), dict):
        name, values = _PROCESSOR, beside[_PROCESSOR]["feature_extractor"]
    said = {True: "normalised", False: "not normalised"}
    if values is None:
        note = f"taken for granted: waveforms are {said[usual]}, as there is no {_EXTRACTOR}"
        return usual, () if known else (f"{note} and published networks of this norm are",)
    for key, expected in _PREPARATION.items():
        if values.get(key, expected) != expected:
            raise InputError(f"{directory / name}: {key} is {values[key]!r}, expected {expected!r}")
    normalize = values.get("do_normalize", True)
    if not isinstance(normalize, bool):
        raise InputError(f"{directory / name}: do_normalize is {normalize!r}, expected a boolean")
    if "do_normalize" not in values:
        note = f"taken for granted: waveforms are normalised, as {name} does not tell do_normalize"
        return normalize, (note,)
    note = (
        f"waveforms are {said[normalize]}, as do_normalize of {name} says, though networks of this "
        f"kind were published for waveforms that are {said[usual]}"
    )
    return normalize, (note,) if normalize != usual else ()


def _parsed(metadata: Mapping[str, str], key: str, where: Any) -> Any:
    try:
        return json.loads(metadata[key])
    except (KeyError, ValueError):
        raise InputError(f"{where}: the metadata's {key!r} is missing or broken") from None


def _of_metadata(metadata: Mapping[str, str], key: str, field: str) -> Any:
    values = _parsed(metadata, key, MODEL)
    if not isinstance(values, dict) or field not in values:
        raise InputError(f"{MODEL}: {field} is missing in the metadata's {key!r}")
    return values[field]


def _feature_extractor(network: Network) -> dict[str, Any]:
    return {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": SAMPLE_RATE,
        "do_normalize": network.architecture.normalize_waveform,
        # transformers' GroupNorm takes padding into its statistics whether it has a mask or not.
        "return_attention_mask": network.architecture.frontend_norm == "layer",
        "padding_side": "right",
        "padding_value": 0.0,
        **({"processor_class": "Wav2Vec2Processor"} if network.kind == "ctc" else {}),
    }
