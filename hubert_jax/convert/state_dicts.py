"""Whole models as other libraries' state dicts: encoder and head together."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from hubert_jax.convert import encoders, heads, names
from hubert_jax.errors import InputError
from hubert_jax.model.architecture import HubertConfig


def to_state_dict(
    params: Mapping[str, Any], config: HubertConfig, library: str
) -> dict[str, np.ndarray]:
    """Our parameters as the state of a model of `library`, head included.

    Args:
      params: `hubert`; `projection_i` and `codes_i`, or `characters`, or neither.
      config: the architecture.
      library: "fairseq" (`HubertModel`, `HubertCtc`) or "torchaudio" (`HuBERTPretrainModel`,
        `Wav2Vec2Model`).

    Returns:
      The tensors by name, contiguous. What torchaudio's `Wav2Vec2Model` has no home for (the mask
      embedding; code embeddings beside a CTC head) is left out.

    Raises:
      InputError: parameters that do not fit `config`, or a network that fairseq cannot express.
    """
    if library == "fairseq" and config.conv_channels[-1] == config.dim:
        raise InputError(
            f"fairseq has no input projection where the front-end's channels equal the width "
            f"({config.dim}), this network has one: it cannot be written for fairseq"
        )
    kind = encoders.kind_of_parameters(params)
    tensors = encoders.to_library(params, config, library)
    if "codes_0" in params and not (library == "torchaudio" and kind == "ctc"):
        prefix = names.encoder_prefix(library, kind)
        head = heads.head_to_library(params, config, library)
        tensors |= {prefix + name: tensor for name, tensor in head.items()}
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def from_state_dict(
    tensors: Mapping[str, np.ndarray], config: HubertConfig, library: str, what: str
) -> dict[str, Any]:
    """The inverse of `to_state_dict`: our parameters, float32.

    Raises:
      InputError: tensors that are missing, left over or of another shape.
    """
    kind = names.kind_of_tensors(tensors, library)
    prefix = names.encoder_prefix(library, kind)
    head, encoder = {}, {}
    for name, tensor in tensors.items():
        own = name.removeprefix(prefix)
        if name.startswith(prefix) and own in names.PRETRAINING_HEAD[library]:
            head[own] = tensor
        else:
            encoder[name] = tensor
    params = encoders.from_library(encoder, config, library, what, kind)
    if head:
        params |= heads.head_from_library(head, config, library, what)
    return params
