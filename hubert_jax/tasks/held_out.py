"""The split that a run is validated on: when, on how much of it, and that it is held out."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from hubert_jax import distributed, storage
from hubert_jax.config import MayChange
from hubert_jax.data import manifests
from hubert_jax.data.batches import Host
from hubert_jax.data.index import Index, read_index
from hubert_jax.data.schedule import Bucket, OnePass
from hubert_jax.errors import InputError
from hubert_jax.training import sharding

_FRAMES_PER_DEVICE = 4096  # padded, of a batch: no more than a training step has


@dataclasses.dataclass(frozen=True)
class ValidationConfig:
    """Validation on config.validation_audio; none of it changes the weights of a step."""

    every: MayChange[int] = 0  # steps; 0: as often as checkpoints are saved
    metric: MayChange[str] = ""  # of the best checkpoint; empty: masked_loss, or wer
    patience: MayChange[int] = 0  # validations without a better value that end the run; 0: never
    utterances: MayChange[int] = 0  # at most, spread over the split; 0: all of them

    def __post_init__(self) -> None:
        for name in ("every", "patience", "utterances"):
            if getattr(self, name) < 0:
                raise InputError(
                    f"config.validation.{name}={getattr(self, name)}: expected 0 or more"
                )

    def require_meant(self, audio: str, metrics: Mapping[str, bool]) -> None:
        """Raises InputError for a metric not among `metrics`, or patience without a split."""
        if self.metric and self.metric not in metrics:
            raise InputError(
                f"config.validation.metric={self.metric}: expected one of {', '.join(metrics)}"
            )
        if self.patience and not audio:
            raise InputError(
                f"config.validation.patience={self.patience}: found without "
                "config.validation_audio, so that nothing would end the run; give both or neither"
            )

    def chosen(self, save_every: int, metrics: Mapping[str, bool]) -> dict[str, Any]:
        """Fields of `training.task.Validation`; `metrics` say whether larger is better.

        The first of them is the default.
        """
        metric = self.metric or next(iter(metrics))
        return {
            "every": self.every or save_every,
            "metric": metric,
            "larger_is_better": metrics[metric],
            "patience": self.patience,
        }


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """A prepared split none of whose utterances is trained on."""

    directory: pathlib.Path
    audio: manifests.AudioManifest
    index: Index

    @classmethod
    def read(
        cls, directory: str, training_dir: str, training: manifests.AudioManifest
    ) -> "HeldOut":
        """From its manifest and both indices; InputError where the splits share utterances."""
        audio = manifests.read_manifest(directory)
        index = read_index(directory, audio)
        shared = read_index(training_dir, training).shared(index)
        if shared:
            raise InputError(
                f"config.validation_audio={directory}: {len(shared)} of its {audio.utterances} "
                f"utterances are in config.audio={training_dir} too, {shared[0]} for one; expected "
                "a split that is held out of training"
            )
        return cls(storage.path(directory), audio, index)

    def one_pass(
        self,
        mesh: Mesh,
        longest: int,
        at_most: int,
        buckets: Callable[[int, int], list[Bucket]],
        wanted: np.ndarray | None = None,
    ) -> OnePass:
        """Its batches, of all utterances or of those `wanted`, (n,) bool.

        `buckets` are by frames of a batch and the number that divides its rows.
        """
        shards = sharding.batch_shards(mesh)
        found = buckets(max(_FRAMES_PER_DEVICE, longest) * shards, shards)
        plan = OnePass(found, self.audio, self.index, shards, at_most, wanted)
        if not plan.buckets:
            raise InputError(
                f"config.validation.utterances={at_most}: none of these of {self.directory} has a "
                "length that can be used; raise it, or use another split"
            )
        taken = sum(bucket.utterances for bucket in plan.buckets)
        distributed.announce(
            f"validation on {taken} of {self.audio.utterances} utterances of {self.directory}"
        )
        return plan

    def reading(self, plan: OnePass, seed: int, normalize_waveform: bool) -> dict[str, Any]:
        """Named arguments with which `data.batches` reads all of `plan`, this process's rows."""
        return {
            "seed": seed,
            "first_step": 0,
            "last_step": plan.steps,
            "normalize_waveform": normalize_waveform,
            "host": Host(jax.process_index(), jax.process_count()),
        }
