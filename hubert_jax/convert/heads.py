"""The pre-training head: fairseq and torchaudio keep one tensor each for all codebooks.

Those are the projections' rows, and the label embeddings of all codebooks, one after another.
transformers' HubertModel has no home for them; there they lie in a file beside the model, under
fairseq's names.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from hubert_jax.convert.encoders import require_names
from hubert_jax.convert.names import PRETRAINING_HEAD
from hubert_jax.errors import InputError
from hubert_jax.model.architecture import Architecture, Head


def head_to_library(
    params: Mapping[str, Any], architecture: Architecture, head: Head, library: str
) -> dict[str, np.ndarray]:
    """Our `final_proj_i` and `label_embeddings_i` under a library's names.

    A fine-tuned model of fairseq keeps the label embeddings and drops the projections: without
    `final_proj_0` only the embeddings are given back.

    Args:
      params: our parameters; other ones than the head's are not looked at.
      architecture: of the encoder.
      head: what the parameters are.
      library: "fairseq" or "torchaudio".

    Returns:
      The projections' weight (codebooks * projection_dim, dim) and bias (codebooks *
      projection_dim,), the label embeddings (sum of the class counts, projection_dim).

    Raises:
      InputError: the parameters do not fit `head`.
    """
    projected = "final_proj_0" in params
    weights, biases, codes = [], [], []
    for i, classes in enumerate(head.codebook_sizes):
        for name in (f"final_proj_{i}",) * projected + (f"label_embeddings_{i}",):
            if name not in params:
                raise InputError(
                    f"pre-training head: {name} is missing; the head has "
                    f"{len(head.codebook_sizes)} codebooks"
                )
        table = np.asarray(params[f"label_embeddings_{i}"])
        _require_shape(f"label_embeddings_{i}", table, (classes, head.projection_dim))
        codes.append(table)
        if projected:
            kernel = np.asarray(params[f"final_proj_{i}"]["kernel"])
            _require_shape(
                f"final_proj_{i}/kernel", kernel, (architecture.dim, head.projection_dim)
            )
            weights.append(kernel.transpose())
            biases.append(np.asarray(params[f"final_proj_{i}"]["bias"]))
    weight, bias, embeddings = PRETRAINING_HEAD[library]
    tensors = {weight: np.concatenate(weights), bias: np.concatenate(biases)} if projected else {}
    return {**tensors, embeddings: np.concatenate(codes)}


def head_from_library(
    tensors: Mapping[str, np.ndarray],
    architecture: Architecture,
    head: Head,
    library: str,
    what: str = "pre-training head",
) -> dict[str, Any]:
    """The inverse of `head_to_library`: `final_proj_i` and `label_embeddings_i`, float32.

    A projection that all codebooks share (fairseq without `untie_final_proj`) is copied for each.

    Raises:
      InputError: tensors that are missing, left over or do not fit `head`.
    """
    names = PRETRAINING_HEAD[library]
    projected = any(name in tensors for name in names[:2])
    require_names(what, tensors, names if projected else names[2:])
    count, width = len(head.codebook_sizes), head.projection_dim
    codes = np.asarray(tensors[names[2]]).astype(np.float32)
    _require_shape(names[2], codes, (sum(head.codebook_sizes), width))
    if projected:
        weight, bias = (np.asarray(tensors[name]).astype(np.float32) for name in names[:2])
        if weight.shape == (width, architecture.dim) and bias.shape == (width,):
            weight, bias = np.tile(weight, (count, 1)), np.tile(bias, count)
        _require_shape(names[0], weight, (count * width, architecture.dim))
        _require_shape(names[1], bias, (count * width,))
    params: dict[str, Any] = {}
    row = 0
    for i, classes in enumerate(head.codebook_sizes):
        if projected:
            rows = slice(i * width, (i + 1) * width)
            kernel = np.ascontiguousarray(weight[rows].transpose())
            params[f"final_proj_{i}"] = {"kernel": kernel, "bias": bias[rows].copy()}
        params[f"label_embeddings_{i}"] = codes[row : row + classes].copy()
        row += classes
    return params


def _require_shape(name: str, leaf: np.ndarray, shape: tuple[int, ...]) -> None:
    if leaf.shape != shape:
        raise InputError(f"pre-training head: {name} has shape {leaf.shape}, expected {shape}")
