"""Fitting codebooks on a sample of a split's frames."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from hubert_jax import distributed
from hubert_jax.data import manifests
from hubert_jax.data.index import read_index
from hubert_jax.frames import num_frames
from hubert_jax.units import kmeans
from hubert_jax.units.features import Feature


@dataclasses.dataclass(frozen=True)
class Fitting:
    """How codebooks are fitted: on `max_frames` frames at most, of a `fraction` of a split at most.

    `audio` is the split's directory, `seed` that of the sample and of the k-means.
    """

    audio: str
    num_clusters: int
    seed: int
    max_frames: int
    settings: kmeans.KMeansConfig
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
            name: self.fit_sample(samples.pop(name), feature) for name, feature in described.items()
        }

    def sample(
        self, feature: Feature, shards: Callable[[int], bool] = lambda number: True
    ) -> kmeans.FrameSample:
        """Frames of one feature, from some audio shards; says first how many they will be."""
        frames, of_split = self._frames(feature.rate)
        distributed.announce(
            f"k-means on {frames:,} frames, {frames / max(of_split, 1):.2%} of {self.audio}: "
            f"{4 * feature.dim * frames / 1e9:.2f} GB of memory"
        )
        sample = kmeans.FrameSample(frames, self.seed)
        for _, name, values in feature.extract(self.audio, self.wanted(feature.rate), shards):
            sample.add(name, values)
        return sample

    def _frames(self, rate: int) -> tuple[int, int]:
        """How many frames of `rate` Hz a sample will hold, and of how many in the split."""
        index = read_index(self.audio, manifests.read_manifest(self.audio))
        wanted = np.fromiter(map(self.wanted(rate), index.ids), bool, len(index.ids))
        frames = num_frames(index.samples.astype(int), rate)
        return min(self.max_frames, int(frames[wanted].sum())), int(frames.sum())

    def fit_sample(self, sample: kmeans.FrameSample, feature: dict[str, Any]) -> kmeans.Codebook:
        """The codebook of a sample of the `feature` described."""
        return kmeans.fit(sample.frames(), self.num_clusters, self.seed, feature, self.settings)
