"""Scoring label sets, layers of a checkpoint and MFCC on one split."""

import dataclasses
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from hubert_jax.data import manifests, records
from hubert_jax.data.index import read_index
from hubert_jax.data.label_sets import check_labels
from hubert_jax.errors import InputError
from hubert_jax.frames import RATES
from hubert_jax.networks.trained import Trained
from hubert_jax.units import kmeans
from hubert_jax.units.features import Feature, extract, hidden_states
from hubert_jax.units.fitting import Fitting
from hubert_jax.units.quality import Alignment, JointCounts, alignment_of, score


class SplitScorer:
    """Scores units on one split.

    Scores are of frames of `frame_rate` Hz; PNMI is given at 50 and 100 Hz. `counts` has the joint
    counts of every set scored, int64 (phones, units), by the name in its scores; `phones` are their
    rows. Raises InputError for an utterance without an alignment.
    """

    def __init__(
        self, audio_dir: str | os.PathLike, alignments: Mapping[str, Alignment], frame_rate: int
    ):
        self._audio_dir, self._frame_rate = audio_dir, frame_rate
        self._manifest = manifests.read_manifest(audio_dir)
        index = read_index(audio_dir, self._manifest)
        self._samples = dict(zip(index.ids, index.samples.tolist(), strict=True))
        self._alignments = {name: alignment_of(alignments, name) for name in self._samples}
        self.phones = np.unique(np.concatenate([a.phones for a in self._alignments.values()]))
        self.counts: dict[str, np.ndarray] = {}

    def score_label_sets(self, label_dirs: Iterable[str]) -> list[dict[str, Any]]:
        """Scores of label directories; raises InputError for damaged or another split's labels."""
        sets = [(path, manifests.read_label_manifest(path)) for path in label_dirs]
        for path, manifest in sets:
            check_labels(self._manifest, manifest, where=path)
        scores = []
        for i, (path, manifest) in enumerate(sets):
            joint = self._joint(manifest.num_classes)
            for name, labels in records.read_labels(path):
                if name not in self._samples:
                    raise InputError(
                        f"{path}: labels of {name!r}, which {self._audio_dir} does not have; a "
                        "label shard was exchanged: run the label job on this audio again"
                    )
                joint.add(name, self._samples[name], labels, manifest.rate_hz)
            described = {
                "feature": manifest.feature,
                "rate_hz": manifest.rate_hz,
                "k": manifest.num_classes,
                "digest": manifest.digest,
                "codebook_digest": manifest.codebook_digest,
            }
            scores.append(described | self._scores(f"labels_{i}", joint))
        return scores

    def score_layers(
        self, trained: Trained, layers: tuple[int, ...], fitting: Fitting, name: str = "layer"
    ) -> dict[int, dict[str, Any]]:
        """Scores of a network's layers, each with a codebook of its own; counts are NAME_LAYER.

        Raises InputError for a layer that the network does not have.
        """
        codebooks = fitting.fit(
            hidden_states(trained, fitting.audio, layers, fitting.wanted(50)),
            {layer: {"kind": "layer", "layer": layer} for layer in layers},
        )
        joints = {layer: self._joint(fitting.num_clusters) for layer in layers}
        for _, utterance_id, features in hidden_states(trained, self._audio_dir, layers):
            for layer, joint in joints.items():
                labels = kmeans.assign(codebooks[layer], features[layer])
                joint.add(utterance_id, self._samples[utterance_id], labels, 50)
        return {
            layer: self._scores(f"{name}_{layer}", joint, codebooks[layer])
            for layer, joint in joints.items()
        }

    def score_mfcc(self, fitting: Fitting) -> dict[str, Any]:
        """Scores of Kaldi's MFCC: what units have to beat."""
        feature = Feature("mfcc")
        ((_, codebook),) = fitting.fit_features({"": feature}, {"": fitting.num_clusters})
        joint = self._joint(fitting.num_clusters)
        features = extract([feature], self._audio_dir)
        for _, utterance_id, (labels,) in kmeans.assign_each([codebook], features):
            joint.add(utterance_id, self._samples[utterance_id], labels, feature.rate)
        return self._scores("mfcc", joint, codebook)

    def _joint(self, num_units: int) -> "_AtBothRates":
        return _AtBothRates(
            {rate: JointCounts(self._alignments, num_units, rate) for rate in RATES}
        )

    def _scores(
        self, name: str, joint: "_AtBothRates", codebook: kmeans.Codebook | None = None
    ) -> dict[str, Any]:
        qualities = {rate: score(counts.counts) for rate, counts in joint.by_rate.items()}
        self.counts[name] = joint.by_rate[self._frame_rate].counts
        scores = dataclasses.asdict(qualities[self._frame_rate]) | {"joint_counts": name}
        scores["pnmi_by_rate"] = {str(rate): each.pnmi for rate, each in qualities.items()}
        if codebook is not None:
            of_fit = ("inertia", "dead_codewords", "fitted_frames")
            scores |= {key: getattr(codebook, key) for key in of_fit}
        return scores


@dataclasses.dataclass(frozen=True)
class _AtBothRates:
    """The joint counts of one set of units at every frame rate."""

    by_rate: dict[int, JointCounts]

    def add(self, *utterance: Any) -> None:
        for counts in self.by_rate.values():
            counts.add(*utterance)
