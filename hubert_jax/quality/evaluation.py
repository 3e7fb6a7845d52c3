"""Scoring label sets, layers of a checkpoint and MFCC on one split."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hubert_jax.data import manifests, records
from hubert_jax.data.index import read_index
from hubert_jax.data.label_sets import check_labels
from hubert_jax.errors import InputError
from hubert_jax.frames import RATES, SAMPLE_RATE, num_frames
from hubert_jax.networks.trained import Trained
from hubert_jax.quality import abx
from hubert_jax.quality.counts import JointCounts, PairedBootstrap, interval, score
from hubert_jax.quality.probe import Probe, ProbeConfig, scores
from hubert_jax.units import kmeans, steps
from hubert_jax.units.alignments import fitted, phones_at_frames, read_alignments
from hubert_jax.units.features import Feature, extract, hidden_states
from hubert_jax.units.fitting import Fitting

_Features = dict[str, np.ndarray]  # float32 (layers, T, D) by utterance
_MOST_BYTES = 2**32  # of layers that are held together, of which one is held anyway


class AlignedSplit:
    """A prepared split and its phones: of `alignments` by utterance, which `missing` ones lack.

    Raises InputError where these are a larger fraction than `allowed`, and as `fitted`.
    """

    def __init__(self, audio_dir: str, alignments: str, allowed: float = 0.0) -> None:
        self.audio_dir = audio_dir
        self.manifest = manifests.read_manifest(audio_dir)
        index = read_index(audio_dir, self.manifest)
        self.samples = dict(zip(index.ids, index.samples.tolist(), strict=True))
        self.speakers = dict(zip(index.ids, index.speakers, strict=True))
        self.alignments, self.missing = fitted(
            read_alignments(alignments), self.samples, allowed, alignments
        )

    def aligned(self, utterance_id: str) -> bool:
        """Whether the utterance has an alignment, and so takes part."""
        return utterance_id in self.alignments

    def phones(self, utterance_id: str) -> np.ndarray:
        """The phone of every frame of 50 Hz, str (T,)."""
        frames = num_frames(self.samples[utterance_id], 50)
        return phones_at_frames(self.alignments[utterance_id], frames, 50)


class SplitScorer:
    """Scores units on one split.

    Scores are of frames of `frame_rate` Hz; PNMI is given at 50 and 100 Hz. What is scored after
    MFCC gets intervals of its PNMI less theirs, of so many `draws`. MFCC and layers are scored
    again after the steps `after`, of which none is `whiten`. `counts` has the joint counts of every
    set scored, int64 (phones, units), by the name in its scores; `phones` are their rows. `draws`
    has the PNMI of the same utterances drawn for each, float64 (draws,): of any two sets whose
    audio, alignments, rate and seed are the same they are pairs.
    """

    def __init__(
        self,
        split: AlignedSplit,
        frame_rate: int,
        draws: int,
        seed: int,
        abx_config: abx.AbxConfig,
        abx_items: str,
        probing: "Probing | None",
        after: tuple[str, ...] = (),
    ) -> None:
        self._split, self._frame_rate, self._seed = split, frame_rate, seed
        self._abx, self._probing, self._after = abx_config, probing, after
        self._ways = [(), after] if after else [()]  # what a feature is scored after
        self.phones = np.unique(np.concatenate([a.phones for a in split.alignments.values()]))
        self.counts: dict[str, np.ndarray] = {}
        self.draws: dict[str, np.ndarray] = {}
        self._bootstraps = _bootstraps(split, draws, seed) if draws else {}
        self._baselines: dict[tuple[str, ...], _Units] = {}  # MFCC, by the steps after them
        self._items = _items(split, abx_config, abx_items)

    def score_label_sets(self, label_dirs: Iterable[str]) -> list[dict[str, Any]]:
        """Scores of label directories; raises InputError for damaged or another split's labels."""
        split = self._split
        sets = [(path, manifests.read_label_manifest(path)) for path in label_dirs]
        for path, manifest in sets:
            check_labels(split.manifest, manifest, where=path)
        found = []
        for i, (path, manifest) in enumerate(sets):
            units = self._units(manifest.num_classes, manifest.rate_hz)
            for name, labels in records.read_labels(path):
                if name not in split.samples:
                    raise InputError(
                        f"{path}: labels of {name!r}, which {split.audio_dir} does not have; a "
                        "label shard was exchanged: run the label job on this audio again"
                    )
                units.add(name, labels)
            described = {
                "feature": manifest.feature,
                "rate_hz": manifest.rate_hz,
                "k": manifest.num_classes,
                "digest": manifest.digest,
                "codebook_digest": manifest.codebook_digest,
            }
            found.append(described | self._scores(f"labels_{i}", units))
        return found

    def score_layers(
        self, trained: Trained, layers: tuple[int, ...], fitting: Fitting, name: str = "layer"
    ) -> tuple[dict[int, dict[str, Any]], dict[str, Any] | None]:
        """Scores of a network's layers, each with a codebook of its own; counts are NAME_LAYER.

        The second are the probe's of their weighted sum, if it is asked for. Raises InputError for
        a layer that the network does not have.
        """
        keys = [(layer, own) for own in self._ways for layer in layers]
        states = hidden_states(trained, fitting.audio, layers, fitting.wanted(50))
        codebooks = fitting.fit(
            ((number, name, _after(of, keys)) for number, name, of in states),
            {key: {"kind": "layer", "layer": key[0], "steps": list(key[1])} for key in keys},
        )
        probing, together = self._probing, len(layers)
        keeps = probing is not None or self._abx.features
        if keeps and not (probing and probing.weighted_sum):
            seconds = self._split.manifest.seconds + (60 * probing.minutes if probing else 0)
            of_layer = 4 * trained.architecture.dim * 50 * seconds
            together = max(1, int(_MOST_BYTES / of_layer))
        found: dict[int, dict[str, Any]] = {}
        for first in range(0, len(layers), together):
            chosen = layers[first : first + together]
            units = {key: self._units(fitting.num_clusters, 50) for key in keys if key[0] in chosen}
            held: _Features = {}
            states = hidden_states(trained, self._split.audio_dir, chosen, self._split.aligned)
            for _, utterance_id, features in states:
                for key, frames in _after(features, list(units)).items():
                    units[key].add(utterance_id, kmeans.assign(codebooks[key], frames))
                if keeps:
                    held[utterance_id] = np.stack([features[layer] for layer in chosen])
            train: _Features = {}
            if probing:
                states = hidden_states(trained, probing.audio_dir, chosen, probing.takes)
                train = {n: np.stack([of[layer] for layer in chosen]) for _, n, of in states}
            for i, layer in enumerate(chosen):
                one_held, one_train = (
                    {n: of[i : i + 1] for n, of in each.items()} for each in (held, train)
                )
                found[layer] = self._in_each_way(
                    f"{name}_{layer}",
                    {own: (units[layer, own], codebooks[layer, own]) for own in self._ways},
                )
                found[layer] |= self._feature_scores(one_held, one_train, 50)
        weighted = probing.score(train, held) if probing and probing.weighted_sum else None
        return found, weighted

    def score_mfcc(self, fitting: Fitting) -> dict[str, Any]:
        """Scores of Kaldi's MFCC: what units have to beat."""
        of_steps = {own: Feature("mfcc", steps=own) for own in self._ways}
        features = {" ".join(own): feature for own, feature in of_steps.items()}
        clusters = dict.fromkeys(features, fitting.num_clusters)
        fitted = dict(fitting.fit_features(features, clusters))
        codebooks = [fitted[name] for name in features]
        (feature, *_) = of_steps.values()
        units = [self._units(fitting.num_clusters, feature.rate) for _ in codebooks]
        held: _Features = {}
        train: _Features = {}

        def extracted() -> Iterator[tuple[int, str, list[np.ndarray]]]:
            every = list(of_steps.values())
            for number, name, values in extract(every, self._split.audio_dir, self._split.aligned):
                held[name] = np.stack(values[:1])
                yield number, name, values

        for _, utterance_id, labels in kmeans.assign_each(codebooks, extracted()):
            for each, of_each in zip(units, labels, strict=True):
                each.add(utterance_id, of_each)
        if self._probing:
            raw = extract([feature], self._probing.audio_dir, self._probing.takes)
            train = {name: np.stack(values) for _, name, values in raw}
        ways = dict(zip(of_steps, zip(units, codebooks, strict=True), strict=True))
        found = self._in_each_way("mfcc", ways)
        self._baselines = {own: of for own, (of, _) in ways.items()}
        return found | self._feature_scores(held, train, feature.rate)

    def _in_each_way(
        self, name: str, ways: "dict[tuple[str, ...], tuple[_Units, kmeans.Codebook]]"
    ) -> dict[str, Any]:
        """Scores of a feature, and of it `after_steps`."""
        found = self._scores(name, *ways[()])
        if self._after:
            after = self._scores(f"{name}_after_steps", *ways[self._after], self._after)
            found["after_steps"] = {"steps": list(self._after), **after}
        return found

    def _units(self, num_units: int, rate: int) -> "_Units":
        return _Units(self._split, num_units, rate, self._frame_rate, self._abx.units)

    def _scores(
        self,
        name: str,
        units: "_Units",
        codebook: kmeans.Codebook | None = None,
        after: tuple[str, ...] = (),
    ) -> dict[str, Any]:
        found = {rate: score(joint) for rate, joint in units.joint.items()}
        self.counts[name] = units.scored.counts
        scored = dataclasses.asdict(found[self._frame_rate]) | {"joint_counts": name}
        scored["pnmi_by_rate"] = {str(rate): each.pnmi for rate, each in found.items()}
        if codebook is not None:
            of_fit = ("inertia", "dead_codewords", "fitted_frames")
            scored |= {key: getattr(codebook, key) for key in of_fit}
        if bootstrap := self._bootstraps.get("utterances"):
            self.draws[name] = units.draws(bootstrap)
        if baseline := self._baselines.get(after):
            more = scored["pnmi"] - score(baseline.scored).pnmi
            scored["over_mfcc"] = {"pnmi": more}
            for key, bootstrap in self._bootstraps.items():
                draws = units.draws(bootstrap) - baseline.draws(bootstrap)
                scored["over_mfcc"][key] = interval(more, draws)
        if self._abx.units:
            scored["abx_units"] = abx.abx(
                self._items, units.labels, units.rate, self._abx, self._seed
            )
        return scored

    def _feature_scores(self, held: _Features, train: _Features, rate: int) -> dict[str, Any]:
        """ABX and the probe's scores of a feature of `rate` Hz, where they are asked for."""
        found: dict[str, Any] = {}
        if self._abx.features:
            utterances = ((name, features[0]) for name, features in held.items())
            found["abx"] = abx.abx(self._items, utterances, rate, self._abx, self._seed)
        if self._probing:
            found["probe"] = self._probing.score(train, held, rate)
        return found


def _after(
    states: Mapping[int, np.ndarray], keys: Sequence[tuple[int, tuple[str, ...]]]
) -> dict[tuple[int, tuple[str, ...]], np.ndarray]:
    """An utterance's layers after steps, by layer and steps."""
    return {(layer, own): steps.apply(own, states[layer]) for layer, own in keys}


class Probing:
    """A probe's speech: some of `train`, and all of `scored`.

    Raises InputError where they share utterances.
    """

    def __init__(
        self, config: ProbeConfig, train: AlignedSplit, scored: AlignedSplit, seed: int
    ) -> None:
        self._config, self._train, self._scored = config, train, scored
        shared = self._train.alignments.keys() & scored.alignments.keys()
        if shared:
            raise InputError(
                f"config.probe_audio={train.audio_dir}: has {len(shared)} utterances of "
                f"config.audio ({min(shared)}, ...), expected other speech than the probe is "
                "scored on"
            )
        order = sorted(
            self._train.alignments, key=lambda n: hashlib.sha256(f"{seed}:{n}".encode()).digest()
        )
        ends = np.cumsum([self._train.samples[name] for name in order]) / (60 * SAMPLE_RATE)
        enough = int(np.searchsorted(ends, config.minutes)) + 1 if config.minutes else len(order)
        self.takes = frozenset(order[:enough]).__contains__
        self.audio_dir, self.weighted_sum = train.audio_dir, config.weighted_sum
        self.minutes = float(ends[:enough][-1])

    def score(self, train: _Features, scored: _Features, rate: int = 50) -> dict[str, Any]:
        """Scores of features of `rate` Hz, and the `layer_weights` where layers are summed."""
        step = rate // 50
        phones = np.concatenate([self._train.phones(name) for name in train])
        features = np.concatenate([each[:, ::step] for each in train.values()], axis=1)
        probe = Probe.fit(features, phones, self._config)
        found = {name: probe.classify(each[:, ::step]) for name, each in scored.items()}
        spoken = {name: self._scored.phones(name) for name in found}
        weights = {"layer_weights": probe.layer_weights.tolist()}
        return scores(spoken, found) | (weights if len(probe.layer_weights) > 1 else {})


class _Units:
    """One set of units: joint counts at every frame rate, and labels where they are kept."""

    def __init__(
        self, split: AlignedSplit, num_units: int, rate: int, frame_rate: int, keeps: bool
    ) -> None:
        self.joint = {each: JointCounts(split.alignments, num_units, each) for each in RATES}
        self.scored = self.joint[frame_rate]
        self.rate = rate
        self.labels: list[tuple[str, np.ndarray]] = []
        self.draws = functools.cache(lambda bootstrap: bootstrap.pnmi(self.scored))
        self._split, self._keeps = split, keeps

    def add(self, utterance_id: str, labels: np.ndarray) -> None:
        """Counts an utterance, if it is aligned."""
        if not self._split.aligned(utterance_id):
            return
        for counts in self.joint.values():
            counts.add(utterance_id, self._split.samples[utterance_id], labels, self.rate)
        if self._keeps:
            self.labels.append((utterance_id, labels))


def _items(split: AlignedSplit, config: abx.AbxConfig, path: str) -> list[abx.Item]:
    """What ABX compares, where it is asked for: a file's items, or triphones."""
    if not (config.units or config.features):
        return []
    if path:
        found = abx.read_items(path)
        if not any(split.aligned(item.utterance) for item in found):
            raise InputError(
                f"{path}: has no item of an utterance of {split.audio_dir}; expected items "
                "of this split"
            )
        return found
    unknown = [name for name in split.alignments if not split.speakers[name]]
    if unknown:
        raise InputError(
            f"{split.audio_dir}: utterance {unknown[0]} has no speaker, whom ABX needs to know; "
            "prepare the split with speakers, or give config.abx_items"
        )
    return abx.triphones(split.alignments, split.speakers)


def _bootstraps(split: AlignedSplit, draws: int, seed: int) -> dict[str, PairedBootstrap]:
    """Over utterances, and over speakers where they are known."""
    names = [split.speakers[name] for name in split.alignments]
    groups = {"utterances": np.arange(len(names))}
    if "" not in names:
        groups["speakers"] = np.unique(names, return_inverse=True)[1]
    return {
        key: PairedBootstrap(of, draws, seed) for key, of in groups.items() if of.max(initial=0) > 0
    }
