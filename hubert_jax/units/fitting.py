"""Fitting codebooks on a sample of a split's frames."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from hubert_jax.data import manifests
from hubert_jax.errors import InputError
from hubert_jax.units import kmeans
from hubert_jax.units.features import Feature


@dataclasses.dataclass(frozen=True)
class Fitting:
    """What codebooks are fitted on, and how.

    Attributes:
      audio: directory of a prepared split.
      num_clusters: codewords.
      seed: of the sample and the k-means.
      max_frames: frames to fit on, at most.
      settings: how k-means runs.
      fraction: of the split's utterances to sample from, at most; in (0, 1].

    Raises InputError for a seed or a number of codewords out of range.
    """

    audio: str
    num_clusters: int
    seed: int
    max_frames: int
    settings: kmeans.KMeansConfig
    fraction: float = 1.0

    def __post_init__(self) -> None:
        # Before hours of audio are read for it.
        kmeans.require_fittable(self.num_clusters, self.seed)

    def wanted(self, rate: int) -> Callable[[str], bool]:
        """Tells which utterances are read, for features of `rate` Hz.

        Raises:
          InputError: `fraction` is out of range.
        """
        if not 0.0 < self.fraction <= 1.0:
            raise InputError(
                f"fit_share={self.fraction}: expected a fraction of the utterances, in (0, 1]"
            )
        manifest = manifests.read_manifest(self.audio)
        frames = int(manifest.seconds * rate)
        read = kmeans.sufficient_share(self.fraction, self.max_frames, frames, manifest.utterances)
        return lambda utterance_id: kmeans.is_sampled(utterance_id, read, self.seed)

    def fit(
        self,
        features: Iterable[tuple[str, Mapping[Any, np.ndarray]]],
        described: Mapping[Any, dict[str, Any]],
    ) -> dict[Any, kmeans.Codebook]:
        """One codebook for each feature.

        Args:
          features: (utterance id, {name: float32 (T, D)}) of the utterances that are `wanted`.
          described: what each feature is, by its name; kept in its codebook.
        """
        samples = {name: kmeans.FrameSample(self.max_frames, self.seed) for name in described}
        for utterance_id, values in features:
            for name, sample in samples.items():
                sample.add(utterance_id, values[name])
        # Popped: a feature's frames are freed as soon as they are clustered.
        return {
            name: kmeans.fit(
                samples.pop(name).frames(), self.num_clusters, self.seed, feature, self.settings
            )
            for name, feature in described.items()
        }

    def fit_feature(self, feature: Feature) -> kmeans.Codebook:
        """The codebook of one feature."""
        extracted = feature.extract(self.audio, self.wanted(feature.rate))
        named = ((name, {"": values}) for _, name, values in extracted)
        return self.fit(named, {"": feature.describe()})[""]
