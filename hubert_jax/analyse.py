"""Quality of units by layer, clusters and hours of speech: the paper's Figure 2 and Table IV.

Fits codebooks of MFCC and of layers of networks, for every number of clusters, amount of speech and
trial, and scores them on another split. Trials differ in the start of k-means and in the speech:
the most hours are drawn once, and fewer of these anew in each trial. Features are extracted once
for all trials, as many layers together as 4 GB hold; finished trials are kept on restart. Writes
WORKDIR/analyse/trials.csv, quality.csv (means and standard deviations of the trials), by_layer.svg
where a network has several layers, and result.json.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import pathlib
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from hubert_jax import config as config_lib
from hubert_jax import files, job
from hubert_jax.config import MayChange, Reads
from hubert_jax.errors import InputError
from hubert_jax.frames import RATES, SAMPLE_RATE
from hubert_jax.model.architecture import Execution
from hubert_jax.units.clustering import KMeansConfig
from hubert_jax.units.kmeans import require_fittable

if TYPE_CHECKING:
    from hubert_jax.quality.evaluation import AlignedSplit
    from hubert_jax.units.features import Feature

VERSION = 1  # raise it when the same configuration and inputs give another output
_METRICS = ("phone_purity", "cluster_purity", "pnmi")
_MOST_BYTES = 2**32  # of layers that are held together, of which one is held anyway


@dataclasses.dataclass(frozen=True)
class AnalyseConfig:
    """Configuration of the analysis."""

    workdir: MayChange[str]
    audio: Reads[str]  # the prepared split that is scored
    alignments: Reads[str]  # its phones, lines UTT-ID START END PHONE, .ctm or folder of TextGrids
    fit_audio: Reads[str]  # prepared split for k-means
    checkpoints: tuple[str, ...] = ()  # NAME=CHECKPOINT, such as it1=orbax:DIR; none: MFCC alone
    layers: tuple[int, ...] = ()  # of each; 0 is the input of block 1; empty: every block's output
    num_clusters: tuple[int, ...] = (100, 500)
    hours: tuple[float, ...] = (0.0,)  # of `fit_audio`, all frames of which are held; 0: all of it
    trials: int = 1  # of each; the paper has 10
    seed: int = 0  # of the first trial; others have the next ones
    frame_rate: int = 100  # of scores, as published; or 50
    missing_alignments: float = 0.0  # fraction of utterances that may have none and are left out
    kmeans: KMeansConfig = KMeansConfig()
    execution: MayChange[Execution] = Execution()

    def __post_init__(self) -> None:
        if self.frame_rate not in RATES:
            raise InputError(f"config.frame_rate={self.frame_rate}: expected 50 or 100")
        for key in ("num_clusters", "hours"):
            if not getattr(self, key):
                raise InputError(f"config.{key}: empty, expected one number or more")
        if min(self.hours) < 0:
            raise InputError(f"config.hours={self.hours}: expected 0, for all, or more")
        if self.trials < 1:
            raise InputError(f"config.trials={self.trials}: expected 1 or more")
        if self.layers and not self.checkpoints:
            raise InputError(
                f"config.layers={self.layers}: found without config.checkpoints, whose layers they "
                "are; give some or leave it out"
            )
        if not 0 <= self.missing_alignments <= 1:
            raise InputError(
                f"config.missing_alignments={self.missing_alignments}: expected a fraction, 0 to 1"
            )
        names = [name for name, _ in map(_named, self.checkpoints)]
        if len({"mfcc", *names}) <= len(names):
            raise InputError(
                f"config.checkpoints: found the names {names}, expected different ones, not mfcc"
            )
        for clusters in self.num_clusters:
            require_fittable(clusters, self.seed)
        require_fittable(1, self.seed + self.trials - 1)


def _named(text: str) -> tuple[str, str]:
    name, _, where = text.partition("=")
    if not name or not where:
        raise InputError(
            f"config.checkpoints={text}: expected NAME=CHECKPOINT, such as it1=orbax:DIR"
        )
    return name, where


class _Trial(NamedTuple):
    feature: str  # mfcc, or the name of a network
    layer: int | None
    clusters: int
    hours: float
    seed: int


_Named = tuple[str, int | None]  # a feature and a layer
_Frames = dict[str, Mapping[Any, Any]]  # of layers, float32 (T, D), by utterance


def run(config: AnalyseConfig) -> dict:
    """Fits and scores; returns the content of `WORKDIR/analyse/result.json`.

    Raises InputError for unusable input, or a second job at work.
    """
    started = time.monotonic()
    workdir = files.require_writable(config.workdir)
    with files.locked(workdir / ".analyse.lock", "analysis"):
        return _analyse(config, workdir / "analyse", started)


def _analyse(config: AnalyseConfig, directory: pathlib.Path, started: float) -> dict:
    from hubert_jax.data import manifests
    from hubert_jax.data.index import read_index
    from hubert_jax.networks import trained as trained_lib
    from hubert_jax.quality.evaluation import AlignedSplit
    from hubert_jax.report import figures
    from hubert_jax.units import alignments
    from hubert_jax.units.features import Feature

    features: dict[_Named, Feature] = {("mfcc", None): Feature("mfcc")}
    fingerprints = {}
    for name, where in map(_named, config.checkpoints):
        network = trained_lib.load(where, execution=config.execution)
        layers = config.layers or range(1, network.architecture.num_layers + 1)
        features |= {(name, layer): Feature("layer", network, layer) for layer in layers}
        fingerprints[name] = network.fingerprint
    split = AlignedSplit(config.audio, config.alignments, config.missing_alignments)
    fitted_on = manifests.read_manifest(config.fit_audio)
    index = read_index(config.fit_audio, fitted_on)
    samples = dict(zip(index.ids, index.samples.tolist(), strict=True))
    there = sum(samples.values()) / (3600 * SAMPLE_RATE)
    if max(config.hours) > there:
        raise InputError(
            f"config.hours={config.hours}: {config.fit_audio} has {there:.4g} hours; ask for "
            "fewer, or for 0, which is all of them"
        )
    hours = [each or there for each in config.hours]
    samples = {name: samples[name] for name in _drawn(samples, max(hours), config.seed)}
    in_common = [VERSION, split.manifest.digest, alignments.digest(config.alignments)]
    in_common += [split.missing, config.frame_rate, config_lib.to_dict(config.kmeans)]
    in_common += [fitted_on.digest, sorted(samples)]
    seeds = range(config.seed, config.seed + config.trials)
    grid = itertools.product(features, config.num_clusters, hours, seeds)
    keys = {
        trial: config_lib.digest([in_common, features[trial[:2]].describe(), trial[2:]])
        for trial in (_Trial(*named, *rest) for named, *rest in grid)
    }
    kept_in = directory / "trials.json"
    kept = files.read_json(kept_in, "finished trials") if kept_in.exists() else {}
    left = [trial for trial, key in keys.items() if key not in kept]
    print(f"analyse: {len(left)} of {len(keys)} trials to do", flush=True)
    (directory / "result.json").unlink(missing_ok=True)
    for named in _together(features, left, sum(samples.values()) / SAMPLE_RATE):
        fitted = _extracted(features, named, config.fit_audio, samples.__contains__)
        scored = _extracted(features, named, config.audio, split.aligned)
        for trial in (trial for trial in left if trial[:2] in named):
            chosen = _drawn(samples, trial.hours, trial.seed)
            of_fit = {name: fitted[name][trial.layer] for name in chosen}
            of_score = {name: layers[trial.layer] for name, layers in scored.items()}
            found = _scores(trial, features[trial[:2]], of_fit, of_score, split, config)
            kept[keys[trial]] = found
            files.write_json(kept_in, kept)
            where = (
                trial.feature if trial.layer is None else f"{trial.feature}, layer {trial.layer}"
            )
            print(
                f"analyse: {where}, K = {trial.clusters}, {trial.hours:.3g} hours, "
                f"seed {trial.seed}: PNMI {found['pnmi']:.4f}",
                flush=True,
            )
    rows = [trial._asdict() | kept[key] for trial, key in keys.items()]
    quality = _means(rows)
    files.write_table(directory / "trials.csv", rows)
    files.write_table(directory / "quality.csv", quality)
    most = [row for row in quality if row["hours"] == max(hours)]
    drawn = directory / "by_layer.svg"
    drawn.unlink(missing_ok=True)
    if len({row["layer"] for row in most}) > 2:
        files.write_text(drawn, figures.quality_by_layer(most))
    result = {
        "split": split.manifest.split,
        "audio_digest": split.manifest.digest,
        "alignments_digest": alignments.digest(config.alignments),
        "missing_alignments": split.missing,
        "fit_audio_digest": fitted_on.digest,
        "checkpoints": fingerprints,
        "frame_rate": config.frame_rate,
        "quality": quality,
    }
    return job.finish(config.workdir, "analyse", result, started)


def _drawn(samples: Mapping[str, int], hours: float, seed: int) -> list[str]:
    """Utterances of so many hours, in an order that the seed shuffles."""
    order = sorted(samples, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    ends = itertools.accumulate(samples[name] for name in order)
    fewer = sum(end < round(hours * 3600 * SAMPLE_RATE) for end in ends)
    return order[: fewer + 1]


def _together(
    features: Mapping[_Named, Feature], left: Iterable[_Trial], seconds: float
) -> Iterator[list[_Named]]:
    """Lists of features to extract in one pass: layers of one network that memory holds."""
    wanted = dict.fromkeys(trial[:2] for trial in left)
    for _, group in itertools.groupby(wanted, key=lambda named: named[0]):
        of_network = list(group)
        feature = features[of_network[0]]
        most = max(1, int(_MOST_BYTES / (4 * feature.dim * feature.rate * seconds)))
        for first in range(0, len(of_network), most):
            yield of_network[first : first + most]


def _extracted(
    features: Mapping[_Named, Feature],
    chosen: list[_Named],
    audio: str,
    wanted: Callable[[str], bool],
) -> _Frames:
    from hubert_jax.units.features import extract, hidden_states

    feature = features[chosen[0]]
    if feature.trained is None:
        return {name: {None: frames} for _, name, (frames,) in extract([feature], audio, wanted)}
    layers = tuple(layer for _, layer in chosen if layer is not None)
    return {name: of for _, name, of in hidden_states(feature.trained, audio, layers, wanted)}


def _scores(
    trial: _Trial,
    feature: Feature,
    fitted: Mapping[str, Any],
    scored: Mapping[str, Any],
    split: AlignedSplit,
    config: AnalyseConfig,
) -> dict[str, Any]:
    """Frames and inertia of a fit on frames by utterance, and the metrics on others."""
    from hubert_jax.quality.counts import JointCounts, score
    from hubert_jax.units import kmeans

    sample = kmeans.FrameSample(sum(map(len, fitted.values())), trial.seed)
    for name, frames in fitted.items():
        sample.add(name, frames)
    settings = config.kmeans
    codebook = kmeans.fit(sample, trial.clusters, trial.seed, feature.describe(), settings)
    joint = JointCounts(split.alignments, trial.clusters, config.frame_rate)
    each = ((0, name, [frames]) for name, frames in scored.items())
    for _, name, (labels,) in kmeans.assign_each([codebook], each):
        joint.add(name, split.samples[name], labels, feature.rate)
    found = dataclasses.asdict(score(joint))
    of_fit = {"frames": codebook.fitted_frames, "inertia": codebook.inertia}
    return of_fit | {metric: found[metric] for metric in _METRICS}


def _means(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means of the metrics over trials, and standard deviations where there are several."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in _Trial._fields[:-1]), []).append(row)
    found = []
    for key, group in groups.items():
        means: dict[str, Any] = dict(zip(_Trial._fields, key, strict=False), trials=len(group))
        for metric in _METRICS:
            values = [row[metric] for row in group]
            deviation = statistics.stdev(values) if len(values) > 1 else None
            means |= {metric: statistics.fmean(values), f"{metric}_sd": deviation}
        found.append(means)
    return found


if __name__ == "__main__":
    job.main("analyse", AnalyseConfig, run)
