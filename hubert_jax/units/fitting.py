"""Fitting codebooks on a sample of a split's frames."""

import copy
import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from hubert_jax import distributed
from hubert_jax.data import manifests
from hubert_jax.data.index import read_index
from hubert_jax.frames import num_frames
from hubert_jax.units import kmeans
from hubert_jax.units.clustering import KMeansConfig
from hubert_jax.units.features import Feature, extract


@dataclasses.dataclass(frozen=True)
class Fitting:
    """How codebooks are fitted: on `max_frames` frames at most, of a `fraction` of a split at most.

    `audio` is the split's directory, `seed` that of the sample and of the k-means.
    """

    audio: str
    num_clusters: int
    seed: int
    max_frames: int
    settings: KMeansConfig
    fraction: float = 1.0

    def wanted(self, rate: int) -> Callable[[str], bool]:
        """Tells by its id whether an utterance is read for features of `rate` Hz."""
        manifest = manifests.read_manifest(self.audio)
        enough = 1.25 * self.max_frames / max(int(manifest.seconds * rate), 1)
        # A quarter and 20 utterances more, so that chance does not leave too few frames.
        fraction = min(self.fraction, enough + 20 / max(manifest.utterances, 1))
        return lambda utterance_id: kmeans.is_sampled(utterance_id, fraction, self.seed)

    def fit(
        self,
        features: Iterable[tuple[int, str, Mapping[Any, np.ndarray]]],
        described: Mapping[Any, dict[str, Any]],
    ) -> dict[Any, kmeans.Codebook]:
        """Codebooks of (shard, utterance id, {name: float32 (T, D)}), by the `described` names.

        The features are of 50 Hz and of the utterances that are wanted for it.
        """
        frames, _ = self._frames(50)
        samples = {name: kmeans.FrameSample(frames, self.seed) for name in described}
        for _, utterance_id, values in features:
            for name, sample in samples.items():
                sample.add(utterance_id, values[name])
        # Popped: a feature's frames are freed as soon as they are clustered.
        return {
            name: kmeans.fit(
                samples.pop(name), self.num_clusters, self.seed, feature, self.settings
            )
            for name, feature in described.items()
        }

    def fit_features(
        self,
        features: Mapping[str, Feature],
        num_clusters: Mapping[str, int],
        shards: Callable[[int], bool] = lambda number: True,
        directories: Mapping[str, pathlib.Path] | None = None,
    ) -> Iterator[tuple[str, kmeans.Codebook]]:
        """Yields the name and codebook of each feature, sampled in one pass over some audio shards.

        They differ in their steps alone; those that differ in `whiten` or in nothing have a sample
        together. Says first how many frames it will be; `directories` as `kmeans.fit`.
        """
        samples = self._samples(list(features.values()), shards)
        last = {feature.own_steps: name for name, feature in features.items()}
        for name, feature in features.items():
            own = feature.own_steps
            sample = samples.pop(own) if last[own] == name else samples[own]
            after = feature.steps[len(own) :]
            if own in samples and (after or self.settings.metric == "cosine"):
                sample = copy.deepcopy(sample)  # as fitting changes its frames
            yield (
                name,
                kmeans.fit(
                    sample,
                    num_clusters[name],
                    self.seed,
                    feature.describe(),
                    self.settings,
                    directories[name] if directories else None,
                    after,
                ),
            )

    def _samples(
        self, features: list[Feature], shards: Callable[[int], bool]
    ) -> dict[tuple[str, ...], kmeans.FrameSample]:
        """Frames of the features, from some audio shards, by the steps that made them."""
        different = {feature.own_steps: feature for feature in features}
        rate = features[0].rate
        frames, of_split = self._frames(rate)
        dim = sum(feature.dim for feature in different.values())
        distributed.announce(
            f"k-means on {frames:,} frames, {frames / max(of_split, 1):.2%} of {self.audio}: "
            f"{4 * dim * frames / 1e9:.2f} GB of memory"
        )
        samples = {own: kmeans.FrameSample(frames, self.seed) for own in different}
        taken = extract(list(different.values()), self.audio, self.wanted(rate), shards)
        for _, name, values in taken:
            for sample, frames_of in zip(samples.values(), values, strict=True):
                sample.add(name, frames_of)
        return samples

    def _frames(self, rate: int) -> tuple[int, int]:
        """How many frames of `rate` Hz a sample will hold, and of how many in the split."""
        index = read_index(self.audio, manifests.read_manifest(self.audio))
        wanted = np.fromiter(map(self.wanted(rate), index.ids), bool, len(index.ids))
        frames = num_frames(index.samples.astype(int), rate)
        return min(self.max_frames, int(frames[wanted].sum())), int(frames.sum())
