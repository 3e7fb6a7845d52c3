"""A network with all that belongs to it, whatever file it came from or goes to."""

import collections
import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import traverse_util

from hubert_jax import config as config_lib
from hubert_jax.convert.encoders import kind_of_parameters
from hubert_jax.errors import InputError
from hubert_jax.model.architecture import Architecture, Head, Regularization
from hubert_jax.unit_classes import Units
from hubert_jax.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Description:
    """What a network is, as far as that is known without its parameters."""

    kind: str  # one of "encoder", "pretraining" and "ctc"
    architecture: Architecture
    head: Head | None = None  # of pre-training
    fingerprints: tuple[str, ...] = ()  # one of them is the network's; empty: not known


@dataclasses.dataclass(frozen=True)
class Network:
    """Parameters, what they are, and what converting them changed.

    `params` are float32: `hubert`; `final_proj_i` and `label_embeddings_i`, or `ctc_head`.
    """

    params: Mapping[str, Any]
    architecture: Architecture
    head: Head | None = None  # with `units`, of label embeddings
    regularization: Regularization = Regularization()  # as far as its file says so
    vocabulary: Vocabulary | None = None  # of a CTC head
    units: Units | None = None
    fingerprint: str = ""  # of the weights and where they came from, if known
    notes: tuple[str, ...] = ()  # a sentence for all that was widened, left out or made anew
    # JSON files of the transformers directory that it came from, by name, if not as written here
    beside: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    # Metadata of the run whose checkpoint it was, if it was one
    run: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.vocabulary is not None) != ("ctc_head" in self.params):
            raise InputError(
                "a CTC head needs the vocabulary that it was trained with; found "
                f"{'no' if self.vocabulary is None else 'a'} vocabulary and "
                f"{'a' if self.kind == 'ctc' else 'no'} head in the parameters"
            )
        if self.vocabulary is not None:
            classes = np.shape(self.params["ctc_head"]["bias"])[0]
            if classes != self.vocabulary.size:
                raise InputError(
                    f"the CTC head has {classes} classes, its vocabulary {self.vocabulary.size} "
                    "with the blank"
                )
        if (self.head is not None) != ("label_embeddings_0" in self.params):
            raise InputError(
                "a pre-training head and its parameters belong together; found "
                f"{'no' if self.head is None else 'a'} head and parameters {sorted(self.params)}"
            )
        beside = self.beside if isinstance(self.beside, Mapping) else {"": self.beside}
        for name, content in beside.items():
            if not re.fullmatch(r"[^/\0]+\.json", name) or not isinstance(content, dict):
                raise InputError(f"files beside a network: expected JSON objects, found {name!r}")
        if self.units is None and self.head is not None:
            units = Units.numbered(self.head.codebook_sizes, known=False)
            object.__setattr__(self, "units", units)

    @property
    def kind(self) -> str:
        """One of "encoder", "pretraining" and "ctc"."""
        return kind_of_parameters(self.params)

    @property
    def description(self) -> Description:
        """The same without the parameters."""
        known = (self.fingerprint,) if self.fingerprint else ()
        return Description(self.kind, self.architecture, self.head, known)

    @property
    def num_parameters(self) -> int:
        """How many numbers the parameters hold."""
        return sum(np.size(leaf) for leaf in self.flat.values())

    @property
    def flat(self) -> dict[str, Any]:
        """The parameters by path."""
        return traverse_util.flatten_dict(dict(self.params), sep="/")

    def described(self) -> dict[str, Any]:
        """What a converted file keeps beside the tensors, JSON-able.

        A vocabulary is there where its symbols alone do not tell it.
        """
        vocabulary = self.vocabulary
        if vocabulary == (vocabulary and Vocabulary.from_symbols(vocabulary.symbols)):
            vocabulary = None
        return {
            "architecture": config_lib.to_dict(self.architecture),
            "head": self.head and config_lib.to_dict(self.head),
            "regularization": config_lib.to_dict(self.regularization),
            **({"vocabulary": vocabulary.to_dict()} if vocabulary else {}),
            **({"beside": dict(self.beside)} if self.beside else {}),
        }

    def digest(self) -> str:
        """SHA-256 (hex) of the parameters, by path, shape and bytes."""
        total = hashlib.sha256()
        for path, leaf in sorted(self.flat.items()):
            leaf = np.ascontiguousarray(leaf)
            total.update(f"{path} {leaf.dtype.name} {leaf.shape}\n".encode())
            total.update(leaf.data)
        return total.hexdigest()


def with_mask_embedding(
    params: Mapping[str, Any], architecture: Architecture
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Parameters with a mask embedding, and a note where it had to be made: uniform in [0, 1)."""
    params = dict(params)
    if "mask_embedding" in params["hubert"]:
        return params, ()
    embedding = np.random.default_rng(0).random(architecture.dim, np.float32)
    params["hubert"] = {**params["hubert"], "mask_embedding": embedding}
    return params, ("new: the mask embedding, which the file does not have",)


def widening_note(dtypes: Sequence[str]) -> tuple[str, ...]:
    """A note on tensors that are not float32 in the file, from the dtypes of all its tensors."""
    return tuple(
        f"{'narrowed' if dtype == 'float64' else 'widened'} to float32: {count} tensors in {dtype}"
        for dtype, count in sorted(collections.Counter(dtypes).items())
        if dtype != "float32"
    )
