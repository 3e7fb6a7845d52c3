"""fairseq checkpoints (`.pt`) of HubertModel and HubertCtc, read and written without fairseq.

Source: fairseq 0.12.2, `checkpoint_utils.py`, `models/hubert`, `tasks/hubert_pretraining`.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from hubert_jax import config as config_lib
from hubert_jax import files
from hubert_jax.convert import encoders, fairseq_config, names, torch_files
from hubert_jax.convert.network import Network
from hubert_jax.convert.state_dicts import from_state_dict, to_state_dict
from hubert_jax.errors import InputError
from hubert_jax.model.architecture import Head
from hubert_jax.unit_classes import Units
from hubert_jax.vocabulary import Vocabulary

_PIECE = "\u2581"  # begins a word, as a space does elsewhere
_BLANK, _PAD = "<s>", "<pad>"  # class 0 of a CTC dictionary is the blank, spelt as its beginning
_OURS = "hubert_jax"  # key of what fairseq's own fields have no home for


def read(path: str | os.PathLike) -> Network:
    """Reads a checkpoint; raises InputError for a damaged or harmful one and for other networks."""
    content = torch_files.load(path)
    if not isinstance(content, Mapping) or not isinstance(content.get("model"), Mapping):
        found: Any = type(content).__name__
        if isinstance(content, Mapping):
            found = sorted(key for key in content if isinstance(key, str))[:6]
        raise InputError(
            f"{path}: no fairseq checkpoint: expected `cfg` and `model`, found {found}; a bare "
            "state dict of torchaudio is read as torchaudio:FILE"
        )
    config = torch_files.plain(content.get("cfg") or content.get("args"), path)
    if not config:
        raise InputError(f"{path}: the checkpoint has neither `cfg` nor `args`")
    tensors, notes = torch_files.read_state(path, content["model"])
    kind = names.kind_of_tensors(tensors, "fairseq")
    model, task = fairseq_config.sections(config, path)
    name = model.get("_name") or model.get("arch")
    if name not in ("hubert", "hubert_ctc", None):
        raise InputError(f"{path}: cfg.model._name is {name!r}, expected hubert or hubert_ctc")
    if kind == "ctc":
        model, task = fairseq_config.sections(model.get("w2v_args") or {}, path)
    ours, state = (_plain_dict(content.get(key), path) for key in (_OURS, "task_state"))
    listed = state.get("dictionaries")
    dictionaries = list(filter(None, map(_symbols, listed if isinstance(listed, list) else ())))
    prefix = names.encoder_prefix("fairseq", kind)
    of_head = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    architecture, head, regularization = fairseq_config.described(
        model, task, of_head, dictionaries, path
    )
    notes += encoders.note_on_biases(tensors, architecture, "fairseq", kind)
    shared = of_head.get("final_proj.weight")
    if head and shared is not None and np.shape(shared)[:1] == (head.projection_dim,):
        codebooks = len(head.codebook_sizes)
        notes += (f"copied: one projection for all {codebooks} codebooks",) * (codebooks > 1)
    params = from_state_dict(tensors, architecture, head, "fairseq", str(path))
    vocabulary = units = None
    if kind == "ctc":
        vocabulary = _vocabulary(state.get("target_dictionary"), tensors, path)
        vocabulary = vocabulary.completed(torch_files.plain(ours.get("vocabulary"), path))
    if head is not None:
        units = _units(dictionaries, task, ours, head, path)
    digest = files.sha256_file(path)
    beside = _plain_dict(ours.get("beside"), path)
    return Network(
        params, architecture, head, regularization, vocabulary, units, digest, notes, beside
    )


def write(path: str | os.PathLike, network: Network) -> tuple[str, ...]:
    """Writes plain data and tensors, dictionaries as lists; returns a note where there is no head.

    Raises InputError for a network that fairseq cannot express.
    """
    units, kind = network.units, network.kind
    model, task = fairseq_config.model_section(network), fairseq_config.task_section(network)
    state: dict[str, Any] = {"dictionaries": units.symbols if units else [None]}
    if network.vocabulary is not None:
        model, task = fairseq_config.ctc_sections(model, task)
        symbols = (symbol.replace(" ", _PIECE) for symbol in network.vocabulary.symbols)
        renamed = (_PAD if symbol == _BLANK else symbol for symbol in symbols)
        state["target_dictionary"] = [_BLANK, *renamed]
    content: dict[str, Any] = {
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
        _OURS: network.described() | {"units": units and config_lib.to_dict(units)},
    }
    # Pickle refers back to objects that happen to be shared; JSON shares the same ones each time.
    content = json.loads(json.dumps(content))
    tensors = to_state_dict(network.params, network.architecture, network.head, "fairseq")
    torch_files.save(path, {**content, "model": tensors})
    note = "no pre-training head to write: fairseq loads it with strict=False"
    return (note,) if kind == "encoder" else ()


def _plain_dict(value: Any, path: str | os.PathLike) -> dict[str, Any]:
    value = torch_files.plain(value, path)
    return value if isinstance(value, dict) else {}


def _symbols(dictionary: Any) -> list[str] | None:
    """Symbols of a dictionary of fairseq, or of the list that stands for one."""
    if isinstance(dictionary, dict):
        dictionary = dictionary.get("symbols")
    found = isinstance(dictionary, list) and [str(symbol) for symbol in dictionary]
    return found or None


def _units(dictionaries: list[list[str]], task: dict, ours: dict, head: Head, where: Any) -> Units:
    rate = task.get("label_rate")
    rate = float(rate) if isinstance(rate, (int, float)) and rate > 0 else 50.0
    digests = tuple(map(str, _plain_dict(ours.get("units"), where).get("codebook_digests") or ()))
    if not dictionaries:
        return Units.numbered(
            head.codebook_sizes, rate_hz=rate, codebook_digests=digests, known=False
        )
    known = _plain_dict(ours.get("units"), where).get("known") is not False
    units = Units(tuple(tuple(symbols) for symbols in dictionaries), rate, digests, known)
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
    renamed = [_BLANK if s == _PAD else s.replace(_PIECE, " ") for s in symbols[1:]]
    found = Vocabulary.from_symbols(renamed)
    words = found.boundary >= 0 or any(symbol[0] == " " for symbol in found.characters)
    phones = not words and max(map(len, found.characters)) > 1
    return Vocabulary.from_symbols(renamed, separated=True) if phones else found
