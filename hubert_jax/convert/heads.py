"""The pre-training head: fairseq and torchaudio keep one tensor each for all codebooks.

Those are the projections' rows, and the code embeddings of all codebooks, one after another.
transformers' HubertModel has no home for them; there they lie in a file beside the model, under
fairseq's names.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from hubert_jax.convert.encoders import require_names
from hubert_jax.convert.names import PRETRAINING_HEAD
from hubert_jax.errors import InputError
from hubert_jax.model.architecture import HubertConfig


def head_to_library(
    params: Mapping[str, Any], config: HubertConfig, library: str
) -> dict[str, np.ndarray]:
    """Our `projection_i` and `codes_i` under a library's names.

    A fine-tuned model of fairseq keeps the code embeddings and drops the projections: without
    `projection_0` only the embeddings are given back.

    Args:
      params: our parameters; other ones than the head's are not looked at.
      config: the architecture.
      library: "fairseq" or "torchaudio".

    Returns:
      The projections' weight (codebooks * projection_dim, dim) and bias (codebooks *
      projection_dim,), the code embeddings (sum of the class counts, projection_dim).

    Raises:
      InputError: the parameters do not fit `config.codebooks`.
    """
    projected = "projection_0" in params
    weights, biases, codes = [], [], []
    for i, classes in enumerate(config.codebooks):
        for name in (f"projection_{i}",) * projected + (f"codes_{i}",):
            if name not in params:
                raise InputError(
                    f"pre-training head: {name} is missing; config.model.codebooks lists "
                    f"{len(config.codebooks)} codebooks"
                )
        table = np.asarray(params[f"codes_{i}"])
        _require_shape(f"codes_{i}", table, (classes, config.projection_dim))
        codes.append(table)
        if projected:
            kernel = np.asarray(params[f"projection_{i}"]["kernel"])
            _require_shape(f"projection_{i}/kernel", kernel, (config.dim, config.projection_dim))
            weights.append(kernel.transpose())
            biases.append(np.asarray(params[f"projection_{i}"]["bias"]))
    weight, bias, embeddings = PRETRAINING_HEAD[library]
    tensors = {weight: np.concatenate(weights), bias: np.concatenate(biases)} if projected else {}
    return {**tensors, embeddings: np.concatenate(codes)}


def head_from_library(
    tensors: Mapping[str, np.ndarray],
    config: HubertConfig,
    library: str,
    what: str = "pre-training head",
) -> dict[str, Any]:
    """The inverse of `head_to_library`: `projection_i` and `codes_i`, float32.

    A projection that all codebooks share (fairseq without `untie_final_proj`) is copied for each.

    Raises:
      InputError: tensors that are missing, left over or do not fit `config.codebooks`.
    """
    names = PRETRAINING_HEAD[library]
    projected = any(name in tensors for name in names[:2])
    require_names(what, tensors, names if projected else names[2:])
    count, width = len(config.codebooks), config.projection_dim
    codes = np.asarray(tensors[names[2]]).astype(np.float32)
    _require_shape(names[2], codes, (sum(config.codebooks), width))
    if projected:
        weight, bias = (np.asarray(tensors[name]).astype(np.float32) for name in names[:2])
        if weight.shape == (width, config.dim) and bias.shape == (width,):
            weight, bias = np.tile(weight, (count, 1)), np.tile(bias, count)
        _require_shape(names[0], weight, (count * width, config.dim))
        _require_shape(names[1], bias, (count * width,))
    params, row = {}, 0
    for i, classes in enumerate(config.codebooks):
        if projected:
            rows = slice(i * width, (i + 1) * width)
            kernel = np.ascontiguousarray(weight[rows].transpose())
            params[f"projection_{i}"] = {"kernel": kernel, "bias": bias[rows].copy()}
        params[f"codes_{i}"] = codes[row : row + classes].copy()
        row += classes
    return params


def head_to_fairseq(params: Mapping[str, Any], config: HubertConfig) -> dict[str, np.ndarray]:
    """`head_to_library` for fairseq, whose names the file beside a transformers model uses."""
    return head_to_library(params, config, "fairseq")


def head_from_fairseq(tensors: Mapping[str, np.ndarray], config: HubertConfig) -> dict[str, Any]:
    """`head_from_library` for fairseq."""
    return head_from_library(tensors, config, "fairseq")


def _require_shape(name: str, leaf: np.ndarray, shape: tuple[int, ...]) -> None:
    if leaf.shape != shape:
        raise InputError(
            f"pre-training head: {name} has shape {leaf.shape}, but config.model (codebooks, "
            f"projection_dim, dim) gives {shape}"
        )
