"""Whole models as other libraries' state dicts: encoder and head together."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from hubert_jax.convert import encoders, heads, names
from hubert_jax.errors import InputError
from hubert_jax.model.architecture import Architecture, Head


def to_state_dict(
    params: Mapping[str, Any], architecture: Architecture, head: Head | None, library: str
) -> dict[str, np.ndarray]:
    """Our parameters, head included, as the state of a "fairseq" or "torchaudio" model, contiguous.

    What torchaudio's `Wav2Vec2Model` has no home for (the mask embedding; label embeddings without
    projections) is left out. Raises InputError for parameters that do not fit the architecture and
    for a network that fairseq cannot express.
    """
    if library == "fairseq" and architecture.conv_channels[-1] == architecture.dim:
        raise InputError(
            f"fairseq has no input projection where the front-end's channels equal the width "
            f"({architecture.dim}), this network has one: it cannot be written for fairseq"
        )
    kind = encoders.kind_of_parameters(params)
    tensors = encoders.to_library(params, architecture, library)
    homeless = library == "torchaudio" and kind != "pretraining"
    if not homeless and (kind == "pretraining" or "label_embeddings_0" in params):
        assert head is not None, "parameters of a pre-training head come with the head"
        prefix = names.encoder_prefix(library, kind)
        of_head = heads.head_to_library(params, architecture, head, library)
        tensors |= {prefix + name: tensor for name, tensor in of_head.items()}
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def from_state_dict(
    tensors: Mapping[str, np.ndarray],
    architecture: Architecture,
    head: Head | None,
    library: str,
    what: str,
) -> dict[str, Any]:
    """The inverse of `to_state_dict`, float32; raises InputError for tensors that do not fit."""
    kind = names.kind_of_tensors(tensors, library)
    prefix = names.encoder_prefix(library, kind)
    in_head = {prefix + name: name for name in names.PRETRAINING_HEAD[library]}
    encoder = {name: tensor for name, tensor in tensors.items() if name not in in_head}
    params = encoders.from_library(encoder, architecture, library, what, kind)
    of_head = {own: tensors[name] for name, own in in_head.items() if name in tensors}
    if of_head:
        params |= heads.head_from_library(of_head, architecture, head, library, what)
    return params
