"""fairseq checkpoints (`.pt`) of HubertModel and HubertCtc, read and written without fairseq.

A checkpoint holds `cfg` (task and model), `model` (the state dict) and `task_state` (the
dictionaries of the labels). What is written here holds plain data and tensors only; a dictionary
is the list of its symbols, whose length and order are all that fairseq asks of it when it builds
a model. Source: fairseq 0.12.2, `checkpoint_utils.py`, `models/hubert`, `tasks/hubert_pretraining`.
"""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hubert_jax import files
from hubert_jax.convert import encoders, names, torch_files
from hubert_jax.convert import network as network_lib
from hubert_jax.convert.fairseq_config import (
    ctc_sections,
    described,
    model_section,
    sections,
    task_section,
)
from hubert_jax.convert.network import Network, Units
from hubert_jax.convert.state_dicts import from_state_dict, to_state_dict
from hubert_jax.errors import InputError
from hubert_jax.model.architecture import Head
from hubert_jax.vocabulary import Vocabulary

_BLANK, _PAD = "<s>", "<pad>"  # class 0 of a CTC dictionary is the blank, spelt as its beginning
_OURS = "hubert_jax"  # key of what fairseq's own fields have no home for


def read(path: str | os.PathLike) -> Network:
    """Reads a checkpoint of pre-training or of CTC fine-tuning.

    Raises:
      InputError: a file that is damaged, names code to be run, or holds another network.
    """
    content = torch_files.load(path)
    if not isinstance(content, Mapping) or not isinstance(content.get("model"), Mapping):
        found = sorted(map(str, content))[:6] if isinstance(content, Mapping) else type(content)
        raise InputError(
            f"{path}: no fairseq checkpoint: expected `cfg` and `model`, found {found}; a bare "
            "state dict of torchaudio is read as torchaudio:FILE"
        )
    configuration = torch_files.plain(content.get("cfg") or content.get("args"))
    if not configuration:
        raise InputError(f"{path}: the checkpoint has neither `cfg` nor `args`")
    tensors, notes = torch_files.arrays(content["model"], path)
    kind = names.kind_of_tensors(tensors, "fairseq")
    model, task = sections(configuration, path)
    _require_name(model, ("hubert", "hubert_ctc"), path)
    if kind == "ctc":
        model, task = sections(model.get("w2v_args") or {}, path)
    ours, state = (_plain_dict(content.get(key)) for key in (_OURS, "task_state"))
    listed = map(_symbols, state.get("dictionaries") or ())
    dictionaries = [symbols for symbols in listed if symbols]
    of_head = {
        name.removeprefix(names.encoder_prefix("fairseq", kind)): tensor
        for name, tensor in tensors.items()
    }
    architecture, head, regularization = described(model, task, of_head, dictionaries, path)

    biases = encoders.zero_biases(tensors, architecture, "fairseq", kind)
    if biases:
        notes += (f"left out: {len(biases)} biases of the front-end's convolutions, all zero",)
    shared = of_head.get("final_proj.weight")
    if head and shared is not None and len(shared) == head.projection_dim:
        codebooks = len(head.codebook_sizes)
        notes += (f"copied: one projection for all {codebooks} codebooks",) * (codebooks > 1)
    params = from_state_dict(tensors, architecture, head, "fairseq", str(path))
    vocabulary, units = None, None
    if kind == "ctc":
        vocabulary = _vocabulary(state.get("target_dictionary"), tensors, path)
    if head is not None:
        units = _units(dictionaries, task, ours, head, path)
    return Network(
        params,
        architecture,
        head,
        regularization,
        vocabulary,
        units,
        files.sha256_file(path),
        notes,
    )


def write(path: str | os.PathLike, network: Network) -> tuple[str, ...]:
    """Writes a checkpoint; returns a note for everything that fairseq will find unusual.

    Raises:
      InputError: a network that fairseq cannot express.
    """
    units, kind = network.units, network.kind
    model, task = model_section(network), task_section(network)
    dictionaries: list[list[str] | None] = [None]
    if units is not None:
        dictionaries = [list(symbols) for symbols in units.symbols]
    state: dict[str, Any] = {"dictionaries": dictionaries}
    notes: tuple[str, ...] = ()
    if network.vocabulary is not None:
        model, task = ctc_sections(model, task)
        state["target_dictionary"] = _dictionary(network.vocabulary)
    elif kind == "encoder":
        notes = ("no pre-training head to write: fairseq loads it with strict=False",)
    described: dict[str, Any] = {
        "args": None,
        "cfg": {"_name": None, "task": task, "model": model},
        "criterion": None,
        "optimizer_history": [
            {
                "criterion_name": "CtcCriterion" if kind == "ctc" else "HubertCriterion",
                "optimizer_name": "FairseqAdam",
                "lr_scheduler_state": {},
                "num_updates": 0,
            }
        ],
        "task_state": state,
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}},
        "last_optimizer_state": None,
        _OURS: network_lib.described(network) | {"units": units and units.to_dict()},
    }
    # Through JSON: pickle writes one string twice or refers back to it, as objects happen to be
    # shared, and the same network is to give the same file.
    described = json.loads(json.dumps(described))
    tensors = to_state_dict(network.params, network.architecture, network.head, "fairseq")
    torch_files.save(path, {**described, "model": tensors})
    return notes


def _plain_dict(value: Any) -> dict[str, Any]:
    value = torch_files.plain(value)
    return value if isinstance(value, dict) else {}


def _require_name(model: Mapping[str, Any], expected: Sequence[str], where: Any) -> None:
    name = model.get("_name") or model.get("arch")
    if name not in (*expected, None):
        raise InputError(
            f"{where}: cfg.model._name is {name!r}, expected one of {', '.join(expected)}"
        )


def _symbols(dictionary: Any) -> list[str] | None:
    """Symbols of a dictionary of fairseq, or of the list that stands for one."""
    if isinstance(dictionary, dict):
        dictionary = dictionary.get("symbols")
    return [str(symbol) for symbol in dictionary] if dictionary else None


def _units(
    dictionaries: Sequence[Sequence[str]],
    task: Mapping[str, Any],
    ours: Mapping[str, Any],
    head: Head,
    where: Any,
) -> Units:
    rate = task.get("label_rate")
    rate = float(rate) if isinstance(rate, (int, float)) and rate > 0 else 50.0
    digests = tuple(map(str, _plain_dict(ours.get("units")).get("codebook_digests") or ()))
    if not dictionaries:
        return Units.numbered(head.codebook_sizes, rate_hz=rate, codebook_digests=digests)
    units = Units(tuple(tuple(symbols) for symbols in dictionaries), rate, digests)
    return units.fitting(head.codebook_sizes, str(where))


def _vocabulary(dictionary: Any, tensors: Mapping[str, np.ndarray], where: Any) -> Vocabulary:
    classes = len(tensors["w2v_encoder.proj.bias"])
    symbols = _symbols(dictionary)
    if symbols is None:
        raise InputError(
            f"{where}: the checkpoint has no target dictionary (task_state.target_dictionary), so "
            f"nobody can tell what its {classes} classes are"
        )
    if len(symbols) != classes:
        raise InputError(f"{where}: {len(symbols)} symbols for a CTC head of {classes} classes")
    if symbols[0] != _BLANK:
        raise InputError(f"{where}: class 0 is {symbols[0]!r}, expected the blank {_BLANK!r}")
    # We store no blank symbol; fairseq's <pad> becomes our <s>.
    renamed = (_BLANK if symbol == _PAD else symbol for symbol in symbols[1:])
    return Vocabulary.from_symbols(tuple(renamed))


def _dictionary(vocabulary: Vocabulary) -> list[str]:
    renamed = (_PAD if symbol == _BLANK else symbol for symbol in vocabulary.symbols)
    return [_BLANK, *renamed]
