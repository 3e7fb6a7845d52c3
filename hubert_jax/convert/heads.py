"""The pre-training head under fairseq's names: transformers' HubertModel has no home for it.

fairseq keeps one tensor each, whatever the number of codebooks: the projections' rows, and the
code embeddings of all codebooks, one after another.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from hubert_jax.convert.names import require_names
from hubert_jax.errors import InputError
from hubert_jax.model.architecture import HubertConfig


def head_to_fairseq(params: Mapping[str, Any], config: HubertConfig) -> dict[str, np.ndarray]:
    """Our `projection_i` and `codes_i` as fairseq's tensors.

    Returns:
      `final_proj.weight` (codebooks * projection_dim, dim), `final_proj.bias` (codebooks *
      projection_dim,), `label_embs_concat` (sum of the class counts, projection_dim).

    Raises:
      InputError: the parameters do not fit `config.codebooks`.
    """
    weights, biases, codes = [], [], []
    for i, classes in enumerate(config.codebooks):
        for name in (f"projection_{i}", f"codes_{i}"):
            if name not in params:
                raise InputError(
                    f"pre-training head: {name} is missing; config.model.codebooks lists "
                    f"{len(config.codebooks)} codebooks"
                )
        projection, table = params[f"projection_{i}"], np.asarray(params[f"codes_{i}"])
        _require_shape(f"codes_{i}", table, (classes, config.projection_dim))
        kernel = np.asarray(projection["kernel"])
        _require_shape(f"projection_{i}/kernel", kernel, (config.dim, config.projection_dim))
        weights.append(kernel.transpose())
        biases.append(np.asarray(projection["bias"]))
        codes.append(table)
    return {
        "final_proj.weight": np.concatenate(weights),
        "final_proj.bias": np.concatenate(biases),
        "label_embs_concat": np.concatenate(codes),
    }


def head_from_fairseq(tensors: Mapping[str, np.ndarray], config: HubertConfig) -> dict[str, Any]:
    """The inverse of `head_to_fairseq`: `projection_i` and `codes_i`, float32.

    Raises:
      InputError: tensors that are missing, left over or do not fit `config.codebooks`.
    """
    names = ("final_proj.weight", "final_proj.bias", "label_embs_concat")
    require_names("pre-training head", tensors, names)
    weight, bias, codes = (np.asarray(tensors[name]).astype(np.float32) for name in names)
    count, width = len(config.codebooks), config.projection_dim
    _require_shape("final_proj.weight", weight, (count * width, config.dim))
    _require_shape("final_proj.bias", bias, (count * width,))
    _require_shape("label_embs_concat", codes, (sum(config.codebooks), width))
    params, row = {}, 0
    for i, classes in enumerate(config.codebooks):
        rows = slice(i * width, (i + 1) * width)
        kernel = np.ascontiguousarray(weight[rows].transpose())
        params[f"projection_{i}"] = {"kernel": kernel, "bias": bias[rows].copy()}
        params[f"codes_{i}"] = codes[row : row + classes].copy()
        row += classes
    return params


def _require_shape(name: str, leaf: np.ndarray, shape: tuple[int, ...]) -> None:
    if leaf.shape != shape:
        raise InputError(
            f"pre-training head: {name} has shape {leaf.shape}, but config.model (codebooks, "
            f"projection_dim, dim) gives {shape}"
        )
