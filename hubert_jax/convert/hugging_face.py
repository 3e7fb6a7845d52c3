"""Directories that transformers loads offline, written and read without it."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from hubert_jax import config as config_lib
from hubert_jax import files
from hubert_jax.convert import torch_files
from hubert_jax.convert.encoders import from_library, note_on_biases, require_names, to_library
from hubert_jax.convert.heads import head_from_library, head_to_library
from hubert_jax.convert.names import kind_of_tensors
from hubert_jax.convert.network import Network, Units, with_mask_embedding
from hubert_jax.convert.safetensors_files import read_tensors, write_tensors
from hubert_jax.convert.tokenizer import read_vocabulary, tokenizer_files
from hubert_jax.errors import InputError
from hubert_jax.frames import SAMPLE_RATE
from hubert_jax.model.architecture import Architecture, Head, Regularization
from hubert_jax.model.kernels.norm import EPSILON
from hubert_jax.vocabulary import BLANK

MODEL, HEAD = "model.safetensors", "pretraining_head.safetensors"
_OLD_MODEL = "pytorch_model.bin"  # how transformers saved before safetensors; read, not written


def write_directory(out: str | os.PathLike, network: Network) -> dict[str, str]:
    """Writes a model directory, or replaces one; gives the SHA-256 (hex) of each file by name.

    Raises InputError for parameters of another architecture, or an `out` that is no model.
    """
    head = network.head
    tensors = to_library(network.params, network.architecture, "hugging_face")
    out = pathlib.Path(out)
    if out.exists() and not (out / MODEL).is_file():
        raise InputError(
            f"{out}: exists and holds no {MODEL}; it would be replaced: name another directory"
        )
    with files.writing_directory(out) as aside:
        metadata = network.described()  # transformers has no field for all of it
        del metadata["head"]  # which has a file of its own
        write_tensors(aside / MODEL, tensors, metadata)
        files.write_json(aside / "config.json", model_config(network))
        files.write_json(aside / "preprocessor_config.json", _feature_extractor(network))
        if network.vocabulary is not None:
            for name, content in tokenizer_files(network.vocabulary).items():
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
        names = sorted(path.name for path in aside.iterdir())
        return {name: files.sha256_file(aside / name) for name in names}


def read_directory(directory: str | os.PathLike) -> Network:
    """Reads a model directory; the blank of a CTC head is moved to class 0.

    Raises:
      InputError: files missing or broken, or a network that is not a HuBERT as defined here.
    """
    directory = pathlib.Path(directory)
    if not (directory / "config.json").is_file():
        raise InputError(
            f"{directory}: holds no config.json; expected a directory that transformers loads"
        )
    values = files.read_json(directory / "config.json", "transformers configuration")
    model = directory / MODEL
    if not model.is_file() and (directory / _OLD_MODEL).is_file():
        model = directory / _OLD_MODEL
        tensors, notes = torch_files.arrays(torch_files.load(model), model)
        of_model: dict[str, str] = {}
    else:
        tensors, of_model, notes = read_tensors(model)
    architecture, regularization = _described(values, str(directory / "config.json"), of_model)
    kind = kind_of_tensors(tensors, "hugging_face")
    notes += note_on_biases(tensors, architecture, "hugging_face", kind)
    vocabulary = head = units = None
    if kind == "ctc":
        names = {"lm_head.weight", "lm_head.bias"}
        require_names(str(model), names & set(tensors), names)
        vocabulary, rows = read_vocabulary(directory, len(tensors["lm_head.bias"]), values)
        if rows != sorted(rows):
            notes += (f"moved: the blank, from class {rows[0]} to class 0",)
        tensors |= {name: tensors[name][rows] for name in names}
    params = from_library(tensors, architecture, "hugging_face", str(model))
    params, made = with_mask_embedding(params, architecture)
    digest = files.sha256_file(model)
    if (directory / HEAD).is_file():
        where = str(directory / HEAD)
        tensors, of_head, widened = read_tensors(where)
        notes += tuple(f"{HEAD}: {note}" for note in widened)
        fields = ("class_counts", "projection_dim", "temperature")
        sizes, width, temperature = (_parsed(of_head, field, HEAD) for field in fields)
        head = Head(tuple(sizes), width, temperature)
        params |= head_from_library(tensors, architecture, head, "fairseq", where)
        if "units" in of_head:
            units = Units.from_dict(_parsed(of_head, "units", where), head.codebook_sizes, where)
        digest = config_lib.digest([digest, files.sha256_file(where)])
    notes += made
    return Network(params, architecture, head, regularization, vocabulary, units, digest, notes)


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


def _described(
    values: Mapping[str, Any], path: str, model: Mapping[str, str]
) -> tuple[Architecture, Regularization]:
    """What a network is and was trained with, from `config.json` and the metadata of `MODEL`.

    Without metadata, as the released models: the waveform is normalised and the front-end's
    gradient is not scaled where the front-end has LayerNorms.
    """
    for key, expected in _FIXED.items():
        if values.get(key, expected) != expected:
            raise InputError(f"{path}: {key} is {values[key]!r}, expected {expected!r}")

    def field(key: str) -> Any:
        if key not in values:
            raise InputError(f"{path}: {key} is missing; is it a HuBERT configuration?")
        return values[key]

    layer_norms = field("feat_extract_norm") == "layer"
    normalize, gradient_scale = layer_norms, 1.0 if layer_norms else 0.1
    if "architecture" in model:
        normalize = _parsed(model, "architecture", MODEL)["normalize_waveform"]
    if "regularization" in model:
        gradient_scale = _parsed(model, "regularization", MODEL)["frontend_gradient_scale"]
    architecture = dict(
        conv_channels=tuple(field("conv_dim")),
        conv_kernels=tuple(field("conv_kernel")),
        conv_strides=tuple(field("conv_stride")),
        frontend_norm=field("feat_extract_norm"),
        dim=field("hidden_size"),
        num_layers=field("num_hidden_layers"),
        ffn_dim=field("intermediate_size"),
        num_heads=field("num_attention_heads"),
        pre_norm=field("do_stable_layer_norm"),
        positional_kernel=field("num_conv_pos_embeddings"),
        positional_groups=field("num_conv_pos_embedding_groups"),
        normalize_waveform=normalize,
    )
    regularization = dict(
        dropout=field("hidden_dropout"),
        attention_dropout=field("attention_dropout"),
        activation_dropout=field("activation_dropout"),
        input_dropout=field("feat_proj_dropout"),
        layer_drop=field("layerdrop"),
        frontend_gradient_scale=gradient_scale,
    )
    return (
        config_lib.build(Architecture, architecture, path),
        config_lib.build(Regularization, regularization, path),
    )


def _parsed(metadata: Mapping[str, str], key: str, where: Any) -> Any:
    try:
        return json.loads(metadata[key])
    except (KeyError, ValueError):
        raise InputError(f"{where}: the metadata's {key!r} is missing or broken") from None


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
