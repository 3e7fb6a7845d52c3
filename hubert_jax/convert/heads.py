"""The pre-training head: other libraries keep one tensor each for the rows of all codebooks."""

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
    """Our `final_proj_i` and `label_embeddings_i` as in "fairseq" or "torchaudio".

    The projections' weight (codebooks * projection_dim, dim) and bias (codebooks *
    projection_dim,), unless fine-tuning by fairseq dropped them; the label embeddings (sum of
    codebook_sizes, projection_dim). Raises InputError where they do not fit `head`.
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
        codes.append(np.asarray(params[f"label_embeddings_{i}"]))
        _require_shape(f"label_embeddings_{i}", codes[i], (classes, head.projection_dim))
        if projected:
            kernel = np.asarray(params[f"final_proj_{i}"]["kernel"])
            shape = (architecture.dim, head.projection_dim)
            _require_shape(f"final_proj_{i}/kernel", kernel, shape)
            weights.append(kernel.transpose())
            biases.append(np.asarray(params[f"final_proj_{i}"]["bias"]))
    weight, bias, embeddings = PRETRAINING_HEAD[library]
    tensors = {weight: np.concatenate(weights), bias: np.concatenate(biases)} if projected else {}
    return {**tensors, embeddings: np.concatenate(codes)}


def head_from_library(
    tensors: Mapping[str, np.ndarray],
    architecture: Architecture,
    head: Head | None,
    library: str,
    what: str = "pre-training head",
) -> dict[str, Any]:
    """The inverse of `head_to_library`: `final_proj_i` and `label_embeddings_i`, float32.

    A projection that all codebooks share (fairseq without `untie_final_proj`) is copied for each.
    Raises InputError for tensors that are missing, left over or do not fit `head`.
    """
    names = PRETRAINING_HEAD[library]
    projected = any(name in tensors for name in names[:2])
    require_names(what, tensors, names if projected else names[2:])
    if head is None:
        raise InputError(f"{what}: has a pre-training head, which its configuration lacks")
    count, width = len(head.codebook_sizes), head.projection_dim
    arrays = {name: np.asarray(tensor).astype(np.float32) for name, tensor in tensors.items()}
    codes = arrays[names[2]]
    _require_shape(names[2], codes, (sum(head.codebook_sizes), width))
    if projected:
        weight, bias = arrays[names[0]], arrays[names[1]]
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
