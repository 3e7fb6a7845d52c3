"""fairseq's configuration of HuBERT (0.12.2: `models/hubert`, `tasks/hubert_pretraining`)."""

import ast
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hubert_jax import config as config_lib
from hubert_jax.convert.network import Network
from hubert_jax.errors import InputError
from hubert_jax.frames import SAMPLE_RATE
from hubert_jax.model.architecture import Architecture, Head, Regularization

# fairseq's field: ours. Its defaults hold where a checkpoint leaves a field out.
_ARCHITECTURE = {
    "encoder_layers": ("num_layers", 12),
    "encoder_embed_dim": ("dim", 768),
    "encoder_ffn_embed_dim": ("ffn_dim", 3072),
    "encoder_attention_heads": ("num_heads", 12),
    "layer_norm_first": ("pre_norm", False),
    "conv_pos": ("positional_kernel", 128),
    "conv_pos_groups": ("positional_groups", 16),
}
_REGULARIZATION = {
    "feature_grad_mult": ("frontend_gradient_scale", 1.0),
    "dropout": ("dropout", 0.1),
    "attention_dropout": ("attention_dropout", 0.1),
    "activation_dropout": ("activation_dropout", 0.0),
    "dropout_input": ("input_dropout", 0.0),
    "encoder_layerdrop": ("layer_drop", 0.0),
}
_CONV_LAYERS = "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2"
_NORMS = {"default": "group", "layer_norm": "layer"}
_FIXED = {  # by definition: another value would be another network
    "activation_fn": "gelu",
    "layer_type": "transformer",
    "target_glu": False,
    "conv_pos_batch_norm": False,
    "pos_conv_depth": 1,
}
_MOST_LAYERS, _MOST_CHARACTERS = 64, 4096  # of an expression


def described(
    model: Mapping[str, Any],
    task: Mapping[str, Any],
    head: Mapping[str, Any],
    dictionaries: Sequence[Sequence[str]],
    where: str | os.PathLike,
) -> tuple[Architecture, Head | None, Regularization]:
    """What a network is and was trained with, from the sections of pre-training.

    `head` has its tensors under the names of `HubertModel`; without dictionaries it has one
    codebook. Raises InputError for a network that is not HuBERT as defined here.
    """
    for field, expected in _FIXED.items():
        if model.get(field, expected) != expected:
            raise InputError(
                f"{where}: cfg.model.{field} is {model[field]!r}, expected {expected!r}"
            )
    layers = _parse_conv_layers(model.get("conv_feature_layers", _CONV_LAYERS), where)
    channels, kernels, strides = zip(*layers, strict=True)
    mode = model.get("extractor_mode", "default")
    if not isinstance(mode, str) or mode not in _NORMS:
        raise InputError(f"{where}: cfg.model.extractor_mode is {mode!r}, expected {list(_NORMS)}")
    architecture = dict(
        **_numbers(model, _ARCHITECTURE, where),
        conv_channels=channels,
        conv_kernels=kernels,
        conv_strides=strides,
        frontend_norm=_NORMS[mode],
        normalize_waveform=bool(task.get("normalize", False)),
    )
    regularization = _numbers(model, _REGULARIZATION, where)
    return (
        config_lib.build(Architecture, architecture, f"{where}: architecture"),
        _head(model, head, dictionaries, where),
        config_lib.build(Regularization, regularization, f"{where}: cfg.model"),
    )


def _numbers(model: Mapping[str, Any], fields: Mapping[str, tuple], where: Any) -> dict[str, Any]:
    """The values of the table `fields`, by our names."""
    found = {}
    for field, (name, default) in fields.items():
        value = model.get(field, default)
        same = isinstance(value, bool) == isinstance(default, bool)
        if not same or not isinstance(value, (int, float)):
            raise InputError(f"{where}: cfg.model.{field} is {value!r}, expected a number")
        try:
            found[name] = type(default)(value)
        except (OverflowError, ValueError):
            raise InputError(f"{where}: cfg.model.{field} is no finite number") from None
    return found


def _head(
    model: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    dictionaries: Sequence[Sequence[str]],
    where: Any,
) -> Head | None:
    if "label_embs_concat" not in tensors:
        return None
    shape = tensors["label_embs_concat"].shape
    if len(shape) != 2:
        raise InputError(f"{where}: label_embs_concat has shape {shape}")
    classes, width = shape
    sizes = tuple(len(symbols) for symbols in dictionaries) or (classes,)
    if sum(sizes) != classes:
        raise InputError(
            f"{where}: label_embs_concat has {classes} rows, the dictionaries have "
            f"{list(sizes)} symbols"
        )
    temperature = _numbers(model, {"logit_temp": ("temperature", 0.1)}, where)["temperature"]
    return Head(sizes, width, temperature)


def _parse_conv_layers(text: Any, where: Any) -> list[tuple[int, int, int]]:
    """(channels, kernel, stride) of every layer, from a Python expression that is not run."""

    def value(node: ast.expr) -> Any:
        match node:
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return [*value(left), *value(right)]
            case (
                ast.BinOp(left=layers, op=ast.Mult(), right=ast.Constant(value=int() as times))
                | ast.BinOp(left=ast.Constant(value=int() as times), op=ast.Mult(), right=layers)
            ):
                found = value(layers)
                if len(found) * times > _MOST_LAYERS:
                    raise ValueError
                return found * times
        return ast.literal_eval(node)

    try:
        if len(str(text)) > _MOST_CHARACTERS:
            raise ValueError
        layers = value(ast.parse(str(text).strip(), mode="eval").body)
        if not isinstance(layers, list) or not 0 < len(layers) <= _MOST_LAYERS:
            raise ValueError
        for layer in layers:
            sizes = isinstance(layer, tuple) and [type(size) for size in layer] == [int] * 3
            if not sizes or min(layer) < 1:
                raise ValueError
    except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError):
        raise InputError(
            f"{where}: cfg.model.conv_feature_layers is {str(text)[:200]!r}, expected lists of "
            "(channels, kernel, stride), added and repeated, such as '[(512,10,5)] + "
            "[(512,3,2)] * 4'"
        ) from None
    return layers


def sections(configuration: Any, where: str | os.PathLike) -> tuple[dict, dict]:
    """Model and task of a configuration: nested since fairseq 0.10.2, flat before."""
    if not isinstance(configuration, dict) or not configuration:
        raise InputError(f"{where}: the configuration of the model is missing (cfg.model)")
    if isinstance(configuration.get("model"), dict):
        task = configuration.get("task")
        return configuration["model"], task if isinstance(task, dict) else {}
    return configuration, configuration


def model_section(network: Network) -> dict[str, Any]:
    """`cfg.model` of a HubertModel."""
    config, regularization = network.architecture, network.regularization
    layers = zip(config.conv_channels, config.conv_kernels, config.conv_strides, strict=True)
    return {
        "_name": "hubert",
        "label_rate": network.units.rate_hz if network.units else 50.0,
        "extractor_mode": {norm: mode for mode, norm in _NORMS.items()}[config.frontend_norm],
        "conv_feature_layers": str(list(layers)),
        "conv_bias": False,
        **{field: getattr(config, name) for field, (name, _) in _ARCHITECTURE.items()},
        **{field: getattr(regularization, name) for field, (name, _) in _REGULARIZATION.items()},
        "activation_fn": "gelu",
        "layer_type": "transformer",
        "target_glu": False,
        "dropout_features": regularization.input_dropout,  # unused; as in released checkpoints
        "logit_temp": network.head.temperature if network.head else 0.1,
        "final_dim": network.head.projection_dim if network.head else 0,
        "untie_final_proj": True,
        "mask_prob": 0.8,
        "mask_length": 10,
        "skip_masked": False,
        "skip_nomask": False,
    }


def task_section(network: Network) -> dict[str, Any]:
    """`cfg.task` of pre-training."""
    return {
        "_name": "hubert_pretraining",
        "data": "",
        "labels": ["km"] * (len(network.units.symbols) if network.units else 1),
        "label_rate": network.units.rate_hz if network.units else 50.0,
        "sample_rate": SAMPLE_RATE,
        "normalize": network.architecture.normalize_waveform,
    }


def ctc_sections(model: dict[str, Any], task: dict[str, Any]) -> tuple[dict, dict]:
    """Sections of a fine-tuned model, which keeps those of pre-training in `w2v_args`."""
    ctc = {
        "_name": "hubert_ctc",
        "w2v_path": "",
        "data": "",
        "normalize": task["normalize"],
        "apply_mask": True,
        "final_dropout": 0.0,
        "layerdrop": model["encoder_layerdrop"],
        "dropout": model["dropout"],
        "attention_dropout": model["attention_dropout"],
        "activation_dropout": model["activation_dropout"],
        "dropout_input": model["dropout_input"],
        "feature_grad_mult": model["feature_grad_mult"],
        "w2v_args": {"_name": None, "task": task, "model": model},
    }
    finetuning = {
        **task,
        "fine_tuning": True,
        "labels": ["ltr"],
        "label_rate": -1.0,
        "single_target": True,
    }
    return ctc, finetuning
