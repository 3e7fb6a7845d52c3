"""Turns audio into units: fits a codebook by k-means and labels every frame with it.

Reads prepared splits (prepare) and, for units of a layer, a network (train). Fits the codebook on
the first split, or takes an existing one: a label job's directory, or a file of scikit-learn (as
fairseq's .bin), NumPy, safetensors or faiss, without running what it names. Writes
WORKDIR/label/codebook.npz and codebook.json, one directory of label shards a split, and at the end
result.json.
"""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from hubert_jax import config as config_lib
from hubert_jax import distributed, files, job
from hubert_jax.config import MayChange, Reads
from hubert_jax.distributed import DistributedConfig
from hubert_jax.errors import InputError
from hubert_jax.model.architecture import Execution
from hubert_jax.units import mfcc
from hubert_jax.units.kmeans import Codebook, KMeansConfig, require_fittable

if TYPE_CHECKING:
    from hubert_jax.units.features import Feature
    from hubert_jax.units.fitting import Fitting

VERSION = 2  # raise it when the same configuration and inputs give another output


@dataclasses.dataclass(frozen=True)
class LabelConfig:
    """Configuration of labelling. Splits that are trained on together share one codebook."""

    workdir: MayChange[str]
    audio: Reads[tuple[str, ...]]  # prepared splits; the codebook is fitted on the first
    feature: str = "mfcc"  # Kaldi's; or mfcc_librosa, or layer
    checkpoint: Reads[str] = ""  # of layer: orbax:DIR[@STEP], hf:DIR, fairseq:FILE, torchaudio:FILE
    layer: int = -1  # of layer: 0 is the input of block 1, l what block l gives, residual added
    num_clusters: int = 100  # codewords; ignored with `codebook`
    seed: int = 0  # of the sample and the k-means
    fit_fraction: float = 1.0  # of the first split's utterances to fit on, at most
    fit_max_frames: int = 10_000_000  # to fit on, at most
    codebook: Reads[str] = ""  # of an earlier label job, or a file of another library; or fit one
    kmeans: KMeansConfig = KMeansConfig()
    execution: MayChange[Execution] = Execution()
    distributed: MayChange[DistributedConfig] = DistributedConfig()

    def __post_init__(self) -> None:
        known, of_network = (*mfcc.KINDS, "layer"), self.feature == "layer"
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
        clusters = 1 if self.codebook else self.num_clusters
        require_fittable(clusters, self.seed, self.fit_max_frames, self.fit_fraction)


def run(config: LabelConfig) -> dict:
    """Labels the splits; returns the content of `WORKDIR/label/result.json`.

    Raises InputError for a codebook of another feature, unusable input, or a second job at work.
    """
    started = time.monotonic()
    workdir = files.require_writable(config.workdir)
    distributed.join(config.distributed)
    # Two would take each other's shards away.
    with distributed.locked(workdir / ".label.lock", "label job"):
        return _label(config, workdir / "label", started)


def _label(config: LabelConfig, directory: pathlib.Path, started: float) -> dict:
    if not config.audio:
        raise InputError("config.audio: found no split, expected directories written by prepare")
    from hubert_jax.data import manifests
    from hubert_jax.units import kmeans, labels
    from hubert_jax.units.fitting import Fitting

    feature = _feature(config)
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
    found = {"config.checkpoint": feature.describe(), "config.audio": digests}
    distributed.require_agreement(config, found, directory)
    if config.codebook:
        codebook = read_codebook(config.codebook, feature.describe(), feature.dim)

    def begin() -> None:
        (directory / "result.json").unlink(missing_ok=True)  # only a finished job has a result

    if config.codebook:
        if codebook.origin:
            k, dim = codebook.centroids.shape
            distributed.announce(f"codebook of {k} x {dim} from {codebook.origin}")
        begin()
        distributed.from_first(lambda: codebook.save(directory))
    else:
        fitting = Fitting(
            config.audio[0],
            config.num_clusters,
            config.seed,
            config.fit_max_frames,
            config.kmeans,
            config.fit_fraction,
        )
        # All that decides what is fitted; of the audio, the first split.
        decisive = config_lib.decisive(config, complete=True)
        key = [VERSION, decisive, feature.describe(), digests[0]]
        codebook = _fitted(fitting, feature, directory, key, begin)
        begin()
    splits: dict[str, dict[str, Any]] = {}
    for split, path in audio.items():

        def assigned(shards: Callable[[int], bool], path: str = path) -> Iterator:
            for number, utterance_id, features in feature.extract(path, shards=shards):
                yield number, utterance_id, kmeans.assign(codebook, features)

        written = labels.write_labels(
            path, directory / split, assigned, codebook, feature.rate, VERSION
        )
        splits[split] = {
            "directory": str(directory / split),
            "audio": path,
            "audio_digest": written.audio_digest,
            "digest": written.digest,
            "utterances": written.utterances,
            "frames": written.frames,
            "used_codewords": sum(count > 0 for count in written.class_counts),
            "commonest_unit_share": labels.commonest_share(written),
        }
    first = next(iter(splits.values()))
    result = {
        "feature": codebook.feature,
        "rate_hz": feature.rate,
        "k": len(codebook.centroids),
        "codebook_digest": codebook.digest,
        "codebook_fitted_here": not config.codebook,
        "codebook_origin": codebook.origin,
        "inertia": codebook.inertia,
        "dead_codewords": codebook.dead_codewords,
        "fitted_frames": codebook.fitted_frames,
        "fitted_fraction": None if config.codebook else codebook.fitted_frames / first["frames"],
        "frames": sum(split["frames"] for split in splits.values()),
        "commonest_unit_share": first["commonest_unit_share"],
        "splits": splits,
    }
    return distributed.from_first(lambda: job.finish(config.workdir, "label", result, started))


def _fitted(
    fitting: Fitting,
    feature: Feature,
    directory: pathlib.Path,
    key: list[Any],
    begin: Callable[[], None],
) -> Codebook:
    """An earlier call's of the same key, or fitted by the first process on what all have sampled.

    The codebook's description names its fit by a digest of the key and all else that it says.
    """
    path = directory / "codebook.json"

    def is_there() -> bool:
        try:
            Codebook.load(directory)
            described = files.read_json(path, "codebook description")
        except InputError:
            return False
        return described.pop("fit", None) == config_lib.digest([key, described])

    def fit() -> None:
        codebook = fitting.fit_sample(sample, feature.describe())
        begin()
        codebook.save(directory)
        described = files.read_json(path, "codebook description")
        files.write_json(path, described | {"fit": config_lib.digest([key, described])})

    if distributed.from_first(is_there):
        distributed.announce(
            f"codebook in {directory} kept from an earlier call with the same audio, feature, "
            "seed and settings"
        )
    else:
        sample = fitting.sample(feature, distributed.takes)
        sample.gather(directory)
        distributed.from_first(fit)
    return Codebook.load(directory)


def _feature(config: LabelConfig) -> Feature:
    from hubert_jax.units.features import Feature

    trained = None
    if config.checkpoint:
        from hubert_jax.networks import trained as trained_lib

        trained = trained_lib.load(config.checkpoint, execution=config.execution)
    return Feature(config.feature, trained, config.layer)


def read_codebook(path: str, expected: dict[str, Any], dim: int | None) -> Codebook:
    """An earlier codebook, or that of a file, which does not say of which feature it is.

    `expected` describes the feature, or as much of it as is known, `dim` is how many numbers it
    has, if that is known. Raises InputError for a codebook of another one.
    """
    if pathlib.Path(path).is_file():
        from hubert_jax.convert.centroids import read_centroids

        centroids, kind = read_centroids(path)
        origin = (
            f"{pathlib.Path(path).name} ({kind}; SHA-256 {files.sha256_file(path)}); the file does "
            "not name the feature, the label job was told"
        )
        codebook = Codebook(centroids, expected, None, None, None, None, origin)
    elif not pathlib.Path(path).exists():
        raise InputError(f"config.codebook={path}: no such file or directory")
    else:
        codebook = Codebook.load(path)
    if dim is not None and codebook.centroids.shape[1] != dim:
        raise InputError(
            f"config.codebook={path}: centroids of {codebook.centroids.shape[1]} dimensions, "
            f"{expected['kind']} has {dim}; label with the feature, layer and checkpoint "
            "that it was fitted on"
        )
    unknown = {"checkpoint"} - set(expected) if codebook.feature.get("kind") == "layer" else set()
    for key in sorted((expected | codebook.feature).keys() - unknown):
        found, wanted = codebook.feature.get(key), expected.get(key)
        if found != wanted:
            raise InputError(
                f"config.codebook={path}: fitted on features with {key} {found}, expected {key} "
                f"{wanted}; label with the feature, layer and checkpoint that it was fitted on, "
                "or fit another codebook"
            )
    return codebook


if __name__ == "__main__":
    job.main("label", LabelConfig, run)
