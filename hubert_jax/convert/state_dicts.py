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
    """Our parameters as the state of a model of `library`, head included.

    Args:
      params: `hubert`; `final_proj_i` and `label_embeddings_i`, or `ctc_head`, or neither.
      architecture: of the encoder.
      head: the pre-training head, where there are label embeddings.
      library: "fairseq" (`HubertModel`, `HubertCtc`) or "torchaudio" (`HuBERTPretrainModel`,
        `Wav2Vec2Model`).

    Returns:
      The tensors by name, contiguous. What torchaudio's `Wav2Vec2Model` has no home for (the mask
      embedding; label embeddings beside a CTC head) is left out.

    Raises:
      InputError: parameters that do not fit the architecture, or a network that fairseq
        cannot express.
    """
    if library == "fairseq" and architecture.conv_channels[-1] == architecture.dim:
        raise InputError(
            f"fairseq has no input projection where the front-end's channels equal the width "
            f"({architecture.dim}), this network has one: it cannot be written for fairseq"
        )
    kind = encoders.kind_of_parameters(params)
    tensors = encoders.to_library(params, architecture, library)
    homeless = library == "torchaudio" and kind == "ctc"
    if head is not None and "label_embeddings_0" in params and not homeless:
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
    """The inverse of `to_state_dict`: our parameters, float32; `head` is the pre-training head.

    Raises:
      InputError: tensors that are missing, left over or of another shape.
    """
    kind = names.kind_of_tensors(tensors, library)
    prefix = names.encoder_prefix(library, kind)
    of_head, encoder = {}, {}
    for name, tensor in tensors.items():
        own = name.removeprefix(prefix)
        if name.startswith(prefix) and own in names.PRETRAINING_HEAD[library]:
            of_head[own] = tensor
        else:
            encoder[name] = tensor
    params = encoders.from_library(encoder, architecture, library, what, kind)
    if of_head:
        if head is None:
            raise InputError(f"{what}: has a pre-training head, which its configuration lacks")
        params |= heads.head_from_library(of_head, architecture, head, library, what)
    return params
