"""Emissions: a fine-tuned network's log probabilities of the characters, computed once and kept.

A file for each audio shard, in a folder named by a digest of network, audio and execution. They
are float32: in float16, ties and near ties of greedy decoding would fall otherwise.
"""

import dataclasses
import json
import os
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from hubert_jax import config as config_lib
from hubert_jax import files, storage
from hubert_jax.data.manifests import AudioManifest
from hubert_jax.errors import InputError
from hubert_jax.model.architecture import Execution
from hubert_jax.model.hubert import HubertForCTC
from hubert_jax.networks import forward
from hubert_jax.networks.trained import Trained, require_ctc

_FORMAT = 1
_DAMAGE = (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclasses.dataclass(frozen=True)
class Emitted:
    """One utterance: its transcript or "", and log probabilities (T, V) float32, at 50 Hz.

    Class 0 is the blank.
    """

    id: str
    speaker: str
    text: str
    log_probs: np.ndarray


def emissions(
    trained: Trained,
    groups: forward.Groups,
    heard: Callable[[float], Any] = lambda seconds: None,
) -> Iterator[tuple[int, Emitted]]:
    """Yields (number of the group, what the network gives for an utterance), group after group.

    `heard` is told the seconds of audio that have gone through the network, as they do.
    Neither dropout nor masks are applied. Raises InputError for a network without a CTC head.
    """
    vocabulary = require_ctc(trained)
    model = HubertForCTC(trained.architecture, vocabulary.size, trained.kernels)

    def log_probabilities(params: dict, waveform: jax.Array, num_samples: jax.Array) -> jax.Array:
        logits: Any = model.apply({"params": params}, waveform, num_samples)
        return jax.nn.log_softmax(logits)

    for outputs in forward.Applied(log_probabilities, trained)(groups, heard):
        said = outputs.utterance
        yield outputs.group, Emitted(said.id, said.speaker, said.text, outputs.values)


class KeptEmissions:
    """The emissions of a split, computed where `directory` does not have them yet."""

    def __init__(
        self,
        trained: Trained,
        split_dir: str | os.PathLike,
        manifest: AudioManifest,
        directory: str | os.PathLike,
        execution: Execution,
    ) -> None:
        self._trained, self._split_dir, self._manifest = trained, split_dir, manifest
        vocabulary = require_ctc(trained).to_dict()
        network = [trained.fingerprint, dataclasses.asdict(trained.architecture), vocabulary]
        made_of = [_FORMAT, network, manifest.digest, dataclasses.asdict(execution)]
        self.digest = config_lib.digest(made_of)
        self.directory = storage.path(directory, self.digest[:16])

    def compute(self, shards: Callable[[int], bool], progress: Callable[[float], Any]) -> int:
        """Writes what is missing or damaged of the chosen audio shards; how many that were.

        `progress` is told what fraction of that is done with each shard. Raises as `emissions`,
        and InputError where the network gives NaN.
        """
        missing = set()
        for number in range(len(self._manifest.shards)):
            if shards(number):
                try:
                    self.of_shard(number)
                except InputError as error:
                    missing.add(number)
                    if self._path(number).exists():
                        print(error, flush=True)
        waiting: dict[int, list[Emitted]] = {number: [] for number in missing}
        total = sum(self._manifest.shards[number].samples for number in missing)
        groups = forward.utterances(self._split_dir, shards=missing.__contains__)
        for number, emitted in emissions(self._trained, groups):
            if not np.isfinite(emitted.log_probs).all():
                raise InputError(
                    f"{self._trained.where}: gives NaN or infinite log probabilities for "
                    f"{emitted.id}; fine-tuning diverged: decode an earlier step "
                    "(orbax:DIR@STEP), or lower its learning rate"
                )
            waiting[number].append(emitted)
            shard = self._manifest.shards[number]
            if len(waiting[number]) == shard.utterances:
                self._write(number, waiting.pop(number))
                progress(shard.samples / total)
        return len(missing)

    def of_shard(self, number: int) -> list[Emitted]:
        """An audio shard's utterances; InputError where they are not there or not these."""
        path = self._path(number)
        try:
            with np.load(path) as stored:
                described = json.loads(stored["described"].tobytes())
                lengths, values = stored["lengths"], stored["values"]
            if described["digest"] != self.digest or len(values) != lengths.sum():
                raise ValueError("of another network, audio or execution")
            if len(lengths) != self._manifest.shards[number].utterances:
                raise ValueError("of another number of utterances")
            split = np.split(values, np.cumsum(lengths)[:-1])
            named = zip(described["utterances"], split, strict=True)
            return [Emitted(name, speaker, text, found) for (name, speaker, text), found in named]
        except _DAMAGE as error:
            raise InputError(
                f"{path}: kept emissions are damaged ({error}); they are computed again"
            ) from None

    def _path(self, number: int) -> pathlib.Path:
        return self.directory / f"{number:05d}.npz"

    def _write(self, number: int, emitted: list[Emitted]) -> None:
        utterances = [[each.id, each.speaker, each.text] for each in emitted]
        described = json.dumps({"digest": self.digest, "utterances": utterances}).encode()
        with files.writing_file(self._path(number)) as aside, open(aside, "wb") as file:
            np.savez(
                file,
                described=np.frombuffer(described, np.uint8),
                lengths=np.array([len(each.log_probs) for each in emitted], np.int64),
                values=np.concatenate([each.log_probs for each in emitted]),
            )
