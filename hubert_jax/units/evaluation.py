"""Scoring label sets, layers of a checkpoint and MFCC on one split."""

import dataclasses
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from hubert_jax.data import manifests, records
from hubert_jax.data.index import read_index
from hubert_jax.data.label_sets import check_labels
from hubert_jax.units import kmeans
from hubert_jax.units.extraction import Feature, extract_layers, sample_of
from hubert_jax.units.quality import Alignment, JointCounts, alignment_of


@dataclasses.dataclass(frozen=True)
class Fitting:
    """What codebooks are fitted on, and how.

    Attributes:
      audio: directory of a prepared split.
      num_clusters: codewords.
      seed: of the sample and the k-means.
      max_frames: frames to fit on, at most.
      settings: how k-means runs.
    """

    audio: str
    num_clusters: int
    seed: int
    max_frames: int
    settings: kmeans.KMeansConfig

    def wanted(self, rate: int):
        """Tells which utterances are read, for features of `rate` Hz."""
        manifest = manifests.read_manifest(self.audio)
        return sample_of(manifest, rate, 1.0, self.max_frames, self.seed)

    def sample(self) -> kmeans.FrameSample:
        """An empty sample."""
        return kmeans.FrameSample(self.max_frames, self.seed)

    def fit(self, sample: kmeans.FrameSample, feature: dict[str, Any]) -> kmeans.Codebook:
        """The codebook of a sample."""
        return kmeans.fit(sample.frames(), self.num_clusters, self.seed, feature, self.settings)


class Scorer:
    """Scores units on one split; keeps the joint counts of every set scored.

    Attributes:
      phones: the phones of the rows of all counts.
      counts: int64 arrays of shape (phones, units), by the name that the scores' "joint_counts"
        gives.
    """

    def __init__(
        self, audio_dir: str | os.PathLike, alignments: Mapping[str, Alignment], frame_rate: int
    ):
        """Reads the split's lengths.

        Raises:
          InputError: an utterance has no alignment; no k-means has been run by then.
        """
        self._audio_dir, self._frame_rate = audio_dir, frame_rate
        self._manifest = manifests.read_manifest(audio_dir)
        index = read_index(audio_dir, self._manifest)
        self._samples = dict(zip(index.ids, index.samples.tolist(), strict=True))
        self._alignments = {name: alignment_of(alignments, name) for name in self._samples}
        self.phones = np.unique(np.concatenate([a.phones for a in self._alignments.values()]))
        self.counts: dict[str, np.ndarray] = {}

    def score_label_sets(self, label_dirs: Iterable[str]) -> list[dict[str, Any]]:
        """Scores of label directories of this split.

        Raises:
          InputError: labels of other audio, or damaged ones.
        """
        sets = [(path, manifests.read_label_manifest(path)) for path in label_dirs]
        for path, manifest in sets:
            check_labels(self._manifest, manifest, where=path)
        scores = []
        for i, (path, manifest) in enumerate(sets):
            joint = self._joint(manifest.num_classes)
            for name, labels in records.read_labels(path):
                joint.add(name, self._samples[name], labels, manifest.rate_hz)
            bound = {
                "feature": manifest.feature,
                "rate_hz": manifest.rate_hz,
                "k": manifest.num_classes,
                "digest": manifest.digest,
                "codebook_digest": manifest.codebook_digest,
            }
            scores.append(bound | self._scores(f"labels_{i}", joint))
        return scores

    def score_layers(
        self, checkpoint: str, layers: tuple[int, ...], fitting: Fitting, untrained: bool = False
    ) -> dict[int, dict[str, Any]]:
        """Scores of a checkpoint's layers, each with a codebook of its own.

        Args:
          checkpoint: checkpoint directory of a run.
          layers: which.
          fitting: of the codebooks.
          untrained: of the same network as initialised.

        Raises:
          InputError: no checkpoint, or a layer that it does not have.
        """
        samples = {layer: fitting.sample() for layer in layers}
        wanted = fitting.wanted(50)
        for _, features in extract_layers(checkpoint, fitting.audio, layers, untrained, wanted):
            for layer, sample in samples.items():
                sample.add(features[layer])
        codebooks = {}
        for layer in layers:
            # Popped: a layer's frames are freed as soon as they are clustered.
            codebooks[layer] = fitting.fit(samples.pop(layer), {"kind": "layer", "layer": layer})
        joints = {layer: self._joint(fitting.num_clusters) for layer in layers}
        for name, features in extract_layers(checkpoint, self._audio_dir, layers, untrained):
            for layer, joint in joints.items():
                labels = kmeans.assign(codebooks[layer], features[layer])
                joint.add(name, self._samples[name], labels, 50)
        kind = "untrained" if untrained else "layer"
        return {
            layer: self._scores(f"{kind}_{layer}", joint) | _of_fit(codebooks[layer])
            for layer, joint in joints.items()
        }

    def score_mfcc(self, fitting: Fitting) -> dict[str, Any]:
        """Scores of Kaldi's MFCC: what units have to beat."""
        feature = Feature("mfcc")
        sample = fitting.sample()
        for _, features in feature.extract(fitting.audio, fitting.wanted(feature.rate)):
            sample.add(features)
        codebook = fitting.fit(sample, feature.describe())
        joint = self._joint(fitting.num_clusters)
        for name, features in feature.extract(self._audio_dir):
            labels = kmeans.assign(codebook, features)
            joint.add(name, self._samples[name], labels, feature.rate)
        return self._scores("mfcc", joint) | _of_fit(codebook)

    def _joint(self, num_units: int) -> JointCounts:
        return JointCounts(self._alignments, num_units, self._frame_rate)

    def _scores(self, name: str, joint: JointCounts) -> dict[str, Any]:
        self.counts[name] = joint.counts
        return dataclasses.asdict(joint.quality()) | {"joint_counts": name}


def all_layers(checkpoint: str) -> tuple[int, ...]:
    """The outputs of all blocks of a checkpoint's network: 1 ... num_layers.

    Raises:
      InputError: there is no checkpoint.
    """
    from hubert_jax.training.checkpoint import read_metadata

    return tuple(range(1, read_metadata(checkpoint)["model"]["num_layers"] + 1))


def _of_fit(codebook: kmeans.Codebook) -> dict[str, Any]:
    return {
        "inertia": codebook.inertia,
        "dead_codewords": codebook.dead_codewords,
        "fitted_frames": codebook.fitted_frames,
    }
