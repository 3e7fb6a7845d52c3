"""Turns audio into units: fits codebooks by k-means and labels every frame with them.

Reads prepared splits (prepare) and, for units of a layer, a network (train). Fits the codebook on
the first split, or takes an existing one: a label job's directory, or a file of scikit-learn (as
fairseq's .bin), NumPy, safetensors or faiss, without running what it names. Several codebooks are
fitted in one pass over the audio, and label in another. Or labels with what was made elsewhere:
phones of alignments, units of fairseq's .km files. Writes WORKDIR/label/codebook.npz and
codebook.json, one directory of label shards a split, and at the end result.json; what belongs to
one of several codebooks lies in WORKDIR/label/NAME.

Features: mfcc (Kaldi's, 39 numbers), mfcc_librosa, cepstra (the 13 of mfcc), log_mel (Kaldi's 23),
random_projection (of log_mel, as in BEST-RQ), layer; phones and units, made elsewhere. Steps: mean
(taken off, an utterance at a time), variance (likewise, to 1), splice N, smooth N (frames), take
A:B (dimensions), whiten D (by PCA). One of several codebooks:
{'name': 'static', 'num_clusters': 100, 'steps': ('take 0:13', 'splice 3')}.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from hubert_jax import config as config_lib
from hubert_jax import distributed, files, job, storage
from hubert_jax.config import MayChange, Reads
from hubert_jax.distributed import DistributedConfig
from hubert_jax.errors import InputError
from hubert_jax.frames import RATES
from hubert_jax.model.architecture import Execution
from hubert_jax.units import kmeans, mfcc, steps
from hubert_jax.units.clustering import KMeansConfig
from hubert_jax.units.kmeans import Codebook, require_fittable

if TYPE_CHECKING:
    from hubert_jax.units.features import Feature
    from hubert_jax.units.labels import Inventory

VERSION = 5  # raise it when the same configuration and inputs give another output
IMPORTED = ("phones", "units")  # features whose labels are given
_KINDS = (*mfcc.DIMS, "layer", *IMPORTED)


@dataclasses.dataclass(frozen=True)
class CodebookConfig:
    """One of several codebooks over a feature."""

    name: str  # of its directory, WORKDIR/label/NAME
    num_clusters: int = 100
    steps: tuple[str, ...] = ()  # after those of the feature


@dataclasses.dataclass(frozen=True)
class LabelConfig:
    """Configuration of labelling. Splits that are trained on together share one codebook."""

    workdir: MayChange[str]
    audio: Reads[tuple[str, ...]]  # prepared splits; the codebook is fitted on the first
    feature: str = "mfcc"  # or another of those above
    checkpoint: Reads[str] = ""  # of layer: orbax:DIR[@STEP], hf:DIR, fairseq:FILE, torchaudio:FILE
    layer: int = -1  # of layer: 0 is the input of block 1, l what block l gives, residual added
    steps: tuple[str, ...] = ()  # from the feature to what is clustered, in order
    num_clusters: int = 100  # codewords, or of units how many there are; ignored with `codebook`
    codebooks: tuple[CodebookConfig, ...] = ()  # several, instead of one of `num_clusters`
    seed: int = 0  # of the sample and the k-means, or of what is drawn
    fit_fraction: float = 1.0  # of the first split's utterances to fit on, at most
    fit_max_frames: int = 10_000_000  # to fit on, at most
    codebook: Reads[str] = ""  # of an earlier label job, or a file of another library; or fit one
    alignments: Reads[str] = ""  # of phones: lines UTT-ID START END PHONE
    units: Reads[tuple[str, ...]] = ()  # of units: fairseq's .km files
    utterances: Reads[tuple[str, ...]] = ()  # of units: the manifest .tsv of each .km file
    frame_rate: int = 50  # of phones and units; or 100
    kmeans: KMeansConfig = KMeansConfig()
    execution: MayChange[Execution] = Execution()
    distributed: MayChange[DistributedConfig] = DistributedConfig()

    def __post_init__(self) -> None:
        known, of_network = _KINDS, self.feature == "layer"
        if self.feature not in known:
            raise InputError(f"config.feature={self.feature!r}: expected one of {', '.join(known)}")
        if of_network != bool(self.checkpoint):
            raise InputError(
                f"config.feature={self.feature!r} with config.checkpoint={self.checkpoint!r}: "
                "expected a network for 'layer' and none for the others"
            )
        if of_network != (self.layer >= 0) or self.layer < -1:
            raise InputError(
                f"config.layer={self.layer}: expected 0, the input of block 1, or more with "
                "feature='layer', and -1 with the others"
            )
        self._require_imported()
        for number, each in enumerate((CodebookConfig("one"), *self.codebooks)):
            self._require_codebook(f"config.codebooks[{number - 1}]" if number else "config", each)
        if len(self.listed()) < len(self.codebooks):
            names = [each.name for each in self.codebooks]
            raise InputError(f"config.codebooks: found the names {names}, expected different ones")
        clusters = max(each.num_clusters for each in self.listed().values())
        clusters = 1 if self.codebook else clusters
        require_fittable(clusters, self.seed, self.fit_max_frames, self.fit_fraction)

    def _require_imported(self) -> None:
        for key, kind in (("alignments", "phones"), ("units", "units"), ("utterances", "units")):
            if bool(getattr(self, key)) != (self.feature == kind):
                raise InputError(
                    f"config.feature={self.feature!r} with config.{key}={getattr(self, key)!r}: "
                    f"expected files for {kind!r} and none for the others"
                )
        for key in ("steps", "codebooks", "codebook"):
            if self.feature in IMPORTED and getattr(self, key):
                raise InputError(
                    f"config.{key}={getattr(self, key)!r}: expected none with feature="
                    f"{self.feature!r}, whose labels are given"
                )
        if len(self.units) != len(self.utterances):
            raise InputError(
                f"config.utterances={self.utterances}: expected the .tsv of each file of "
                f"config.units={self.units}"
            )
        if self.frame_rate not in RATES:
            raise InputError(f"config.frame_rate={self.frame_rate}: expected 50 or 100")

    def _require_codebook(self, key: str, each: CodebookConfig) -> None:
        every = (*self.steps, *each.steps)
        steps.dimensions(every, mfcc.DIMS.get(self.feature), f"{key}.steps")
        if self.feature == "random_projection" and steps.before_whitening(every) != every:
            raise InputError(
                f"{key}.steps={every}: expected no whiten, which is fitted, for a "
                "random_projection, which is drawn"
            )
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", each.name):
            raise InputError(f"{key}.name={each.name!r}: expected letters, digits, '_' and '-'")
        if not 1 <= each.num_clusters <= 65_536:
            raise InputError(f"{key}.num_clusters={each.num_clusters}: expected 1 to 65,536")

    def listed(self) -> dict[str, CodebookConfig]:
        """The codebooks by their names; "" is the name of one that is alone."""
        one = CodebookConfig("", self.num_clusters)
        return {each.name: each for each in self.codebooks or (one,)}


def run(config: LabelConfig) -> dict:
    """Labels the splits; returns the content of `WORKDIR/label/result.json`.

    Raises InputError for a codebook of another feature, unusable input, or a second job at work.
    """
    started = time.monotonic()
    workdir = files.require_writable(config.workdir)
    distributed.join(config)
    # Two would take each other's shards away.
    with distributed.locked(workdir / ".label.lock", "label job"):
        return _label(config, workdir / "label", started)


def _label(config: LabelConfig, directory: pathlib.Path, started: float) -> dict:
    if not config.audio:
        raise InputError("config.audio: found no split, expected directories written by prepare")
    from hubert_jax.data import manifests
    from hubert_jax.networks import forward
    from hubert_jax.units import imported, labels
    from hubert_jax.units.encoding import Labeller

    features = _features(config)
    audio: dict[str, str] = {}
    digests = []
    for path in config.audio:
        manifest = manifests.read_manifest(path)
        split = manifest.split
        digests.append(manifest.digest)
        if split in audio:
            raise InputError(
                f"config.audio: found two splits named {split!r} ({audio[split]} and {path}), "
                "expected different names; label them in two working directories"
            )
        audio[split] = path
    described = [feature.describe() for feature in features.values()]
    found = {"config.checkpoint": described, "config.audio": digests}
    distributed.require_agreement(config, found, directory)

    def begin() -> None:
        (directory / "result.json").unlink(missing_ok=True)  # only a finished job has a result

    codebooks: dict[str, Codebook] = {}
    rate = config.frame_rate
    if config.feature == "phones":
        given = imported.phones(config.alignments, rate)
    elif config.feature == "units":
        given = imported.units(config.units, config.utterances, config.num_clusters)
    else:
        codebooks = _codebooks(config, features, directory, digests[0], begin)
        rate = next(iter(features.values())).rate
    begin()
    labeller = Labeller(list(features.values()), list(codebooks.values())) if codebooks else None
    inventories = {
        name: labels.Inventory(len(each.centroids), each.feature, each.digest)
        for name, each in codebooks.items()
    } or {"": given.inventory}
    splits: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in inventories}
    for split, path in audio.items():

        def assigned(shards: Callable[[int], bool], path: str = path) -> Iterable:
            if labeller is None:
                return given.labels(path, shards)
            found = labeller(forward.utterances(path, shards=shards))
            return ((number, utterance.id, units) for number, utterance, units in found)

        wanted = {directory / name / split: each for name, each in inventories.items()}
        written = labels.write_labels(path, wanted, assigned, rate, VERSION)
        for name, of_set in zip(inventories, written, strict=True):
            splits[name][split] = {
                "directory": str(directory / name / split),
                "audio": path,
                "audio_digest": of_set.audio_digest,
                "digest": of_set.digest,
                "utterances": of_set.utterances,
                "frames": of_set.frames,
                "used_codewords": sum(count > 0 for count in of_set.class_counts),
                "commonest_unit_share": labels.commonest_share(of_set),
            }
    of_each = {
        name: _result(inventory, codebooks.get(name), splits[name], config)
        for name, inventory in inventories.items()
    }
    result: dict[str, Any] = {"rate_hz": rate}
    if "" in of_each:
        result |= of_each[""] | {"splits": splits[""]}
    else:
        result |= {
            "k": [each.size for each in inventories.values()],
            "codebook_digest": config_lib.digest([each.digest for each in inventories.values()]),
            "frames": next(iter(of_each.values()))["frames"],
            "splits": {f"{name}/{s}": of for name in splits for s, of in splits[name].items()},
        }
    if list(codebooks) != [""]:
        result["codebooks"] = {name: of_each[name] for name in codebooks}
    return distributed.from_first(lambda: job.finish(config.workdir, "label", result, started))


def _result(
    inventory: Inventory,
    codebook: Codebook | None,
    splits: dict[str, dict[str, Any]],
    config: LabelConfig,
) -> dict[str, Any]:
    """What the job's result says of one label set of each split."""
    first = next(iter(splits.values()))
    found: dict[str, Any] = {
        "feature": inventory.feature,
        "k": inventory.size,
        "codebook_digest": inventory.digest,
        "frames": sum(split["frames"] for split in splits.values()),
        "commonest_unit_share": first["commonest_unit_share"],
    }
    if codebook is None:
        return found
    fitted = codebook.fitted_frames if not config.codebook else None
    return found | {
        "codebook_fitted_here": fitted is not None,
        "codebook_origin": codebook.origin,
        "inertia": codebook.inertia,
        "dead_codewords": codebook.dead_codewords,
        "fitted_frames": codebook.fitted_frames,
        "fitted_fraction": None if fitted is None else fitted / first["frames"],
    }


def _codebooks(
    config: LabelConfig,
    features: Mapping[str, Feature],
    directory: pathlib.Path,
    audio_digest: str,
    begin: Callable[[], None],
) -> dict[str, Codebook]:
    """The codebooks, which are in their directories then; `begin` is called before that changes."""
    if not config.codebook and config.feature != "random_projection":
        return _fitted(config, features, directory, audio_digest, begin)
    codebooks = {}
    for name, feature in features.items():
        described = feature.describe()
        if config.codebook:
            path = str(storage.path(config.codebook, name))
            codebooks[name] = kmeans.read(path, described, feature.dim)
        else:
            clusters = config.listed()[name].num_clusters
            codebooks[name] = kmeans.draw(clusters, config.seed, name, described, feature.dim)
    begin()
    for name, codebook in codebooks.items():
        if config.codebook:
            k, dim = codebook.centroids.shape
            distributed.announce(f"codebook of {k} x {dim} from {codebook.origin}")
        distributed.from_first(functools.partial(codebook.save, directory / name))
    return codebooks


def _fitted(
    config: LabelConfig,
    features: Mapping[str, Feature],
    directory: pathlib.Path,
    audio_digest: str,
    begin: Callable[[], None],
) -> dict[str, Codebook]:
    """Those of an earlier call that would be the same, or fitted on what all processes sample.

    A codebook's description names its fit by a digest of all that decides it, and of what it says.
    """
    from hubert_jax.units.fitting import Fitting

    clusters = {name: each.num_clusters for name, each in config.listed().items()}
    decisive = config_lib.decisive(config, complete=True) | {"codebooks": []}

    def fit_digest(name: str, described: dict[str, Any]) -> str:
        decides = decisive | {"num_clusters": clusters[name]}  # of the audio, the first split
        key = [VERSION, decides, features[name].describe(), audio_digest]
        return config_lib.digest([key, described])

    def is_there(name: str) -> bool:
        try:
            Codebook.load(directory / name)
            described = files.read_json(directory / name / "codebook.json", "codebook description")
        except InputError:
            return False
        return described.pop("fit", None) == fit_digest(name, described)

    def save(name: str, codebook: Codebook) -> None:
        begin()
        codebook.save(directory / name)
        path = directory / name / "codebook.json"
        described = files.read_json(path, "codebook description")
        files.write_json(path, described | {"fit": fit_digest(name, described)})
        for kept in path.parent.glob(".kmeans-*"):
            kept.unlink()

    there = distributed.from_first(lambda: [name for name in features if is_there(name)])
    for name in there:
        distributed.announce(
            f"codebook in {directory / name} kept from an earlier call with the same audio, "
            "feature, seed and settings"
        )
    fitting = Fitting(
        config.audio[0],
        config.num_clusters,
        config.seed,
        config.fit_max_frames,
        config.kmeans,
        config.fit_fraction,
    )
    missing = {name: feature for name, feature in features.items() if name not in there}
    directories = {name: directory / name for name in missing}
    if missing:
        fits = fitting.fit_features(missing, clusters, distributed.takes, directories)
        for name, codebook in fits:
            distributed.from_first(functools.partial(save, name, codebook))
    return {name: Codebook.load(directory / name) for name in features}


def _features(config: LabelConfig) -> dict[str, Feature]:
    """What each codebook is of, by its name."""
    from hubert_jax.units.features import Feature

    if config.feature in IMPORTED:
        return {}
    trained = None
    if config.checkpoint:
        from hubert_jax.networks import trained as trained_lib

        trained = trained_lib.load(config.checkpoint, execution=config.execution)
    return {
        name: Feature(config.feature, trained, config.layer, (*config.steps, *each.steps))
        for name, each in config.listed().items()
    }


if __name__ == "__main__":
    job.main("label", LabelConfig, run)
