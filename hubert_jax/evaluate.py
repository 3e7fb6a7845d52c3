"""Scores units against phone alignments: PNMI, purities, entropy, bitrate; ABX and a frozen probe.

Scores label sets (label), or layers of a network (train), clustered on one split and scored on
another, beside MFCC with as many clusters. Alignments are lines `UTT-ID START END PHONE`, a .ctm,
or a folder of TextGrids with a tier "phones". Writes WORKDIR/evaluate/joint_counts.npz (how often
each phone meets each unit), draws.npz (PNMI of utterances drawn with replacement, the same ones in
every evaluation of a split with a seed) and result.json, which has the counts of label sets, too.
"""

import dataclasses
import io
import pathlib
import time
from typing import Any

from hubert_jax import files, job, storage
from hubert_jax.config import MayChange, Reads
from hubert_jax.errors import InputError
from hubert_jax.model.architecture import Execution
from hubert_jax.quality.abx import AbxConfig
from hubert_jax.quality.probe import ProbeConfig
from hubert_jax.units import mfcc, steps
from hubert_jax.units.clustering import KMeansConfig
from hubert_jax.units.kmeans import require_fittable

VERSION = 6  # raise it when the same configuration and inputs give another output


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Configuration of evaluation."""

    workdir: MayChange[str]
    audio: Reads[str]  # the prepared split that is scored
    alignments: Reads[str]  # its phones, lines UTT-ID START END PHONE, .ctm or folder of TextGrids
    labels: Reads[tuple[str, ...]] = ()  # label directories of `audio`
    checkpoint: Reads[str] = ""  # orbax:DIR[@STEP], hf:DIR, fairseq:FILE or torchaudio:FILE
    layers: tuple[int, ...] = ()  # of it; 0 is the input of block 1; empty: every block's output
    untrained: bool = False  # also scores the layers of the network as initialised
    after_steps: tuple[str, ...] = ()  # of label: MFCC and layers are scored again after these
    fit_audio: Reads[str] = ""  # prepared split for k-means of layers and of the MFCC reference
    num_clusters: int = 100
    seed: int = 0  # of the sample and the k-means
    fit_max_frames: int = 100_000  # at most; those of all layers are in memory at once
    frame_rate: int = 50  # or 100, as published, of scores and counts; PNMI is given at both
    missing_alignments: float = 0.0  # fraction of utterances that may have none and are left out
    draws: int = 1_000  # of utterances and of speakers, for intervals of PNMI over MFCC; 0: none
    abx: AbxConfig = AbxConfig()
    abx_items: Reads[str] = ""  # ZeroSpeech's .item file, or triphones without silence
    probe: ProbeConfig = ProbeConfig()
    probe_audio: Reads[str] = ""  # prepared split to train a probe on; empty: no probe
    probe_alignments: Reads[str] = ""  # its phones
    kmeans: KMeansConfig = KMeansConfig(n_init=3)  # a dozen are fitted
    execution: MayChange[Execution] = Execution()

    def __post_init__(self) -> None:
        if self.frame_rate not in (50, 100):
            raise InputError(f"config.frame_rate={self.frame_rate}: expected 50 or 100")
        if not self.labels and not self.checkpoint:
            raise InputError(
                "config.labels, config.checkpoint: both empty, expected label directories, a "
                "checkpoint directory, or both"
            )
        if self.checkpoint and not self.fit_audio:
            raise InputError(
                "config.fit_audio: empty, expected the prepared split to fit the k-means of the "
                "layers on; pass the training split"
            )
        steps.dimensions(self.after_steps, mfcc.DIMS["mfcc"], "config.after_steps")
        if steps.before_whitening(self.after_steps) != self.after_steps:
            raise InputError(
                f"config.after_steps={self.after_steps}: expected no whiten, which is fitted"
            )
        if self.after_steps and not self.fit_audio:
            raise InputError(
                f"config.after_steps={self.after_steps}: found without config.fit_audio; it is "
                "about MFCC and layers, not about label sets"
            )
        for key in ("layers", "untrained"):
            if getattr(self, key) and not self.checkpoint:
                raise InputError(
                    f"config.{key}={getattr(self, key)}: found without config.checkpoint, whose "
                    "layers it is about; give one or leave it out"
                )
        if not 0 <= self.missing_alignments <= 1:
            raise InputError(
                f"config.missing_alignments={self.missing_alignments}: expected a fraction, 0 to 1"
            )
        if self.draws < 0:
            raise InputError(f"config.draws={self.draws}: expected 0 or more")
        if bool(self.probe_audio) != bool(self.probe_alignments):
            raise InputError(
                f"config.probe_audio={self.probe_audio!r} with config.probe_alignments="
                f"{self.probe_alignments!r}: expected both, or neither and no probe"
            )
        if self.probe.weighted_sum and not (self.checkpoint and self.probe_audio):
            raise InputError(
                "config.probe.weighted_sum=True: expected config.checkpoint and config.probe_audio"
            )
        if self.abx_items and not (self.abx.units or self.abx.features):
            raise InputError(
                f"config.abx_items={self.abx_items}: expected config.abx.units or "
                "config.abx.features, too"
            )
        if min(self.layers, default=0) < 0:
            raise InputError(f"config.layers={self.layers}: expected 0 or more")
        require_fittable(self.num_clusters, self.seed, self.fit_max_frames)


def run(config: EvaluateConfig) -> dict:
    """Scores; returns the content of `WORKDIR/evaluate/result.json`.

    Raises InputError for unusable input.
    """
    started = time.monotonic()
    directory = storage.path(files.require_writable(config.workdir), "evaluate")
    from hubert_jax.networks import trained as trained_lib
    from hubert_jax.quality import evaluation
    from hubert_jax.units import alignments
    from hubert_jax.units.features import require_layers
    from hubert_jax.units.fitting import Fitting

    # Before any audio is read: it refuses most of what can be wrong.
    trained, layers = None, config.layers
    if config.checkpoint:
        trained = trained_lib.load(config.checkpoint, execution=config.execution)
        layers = layers or tuple(range(1, trained.architecture.num_layers + 1))
        require_layers(trained, layers)
        dim = trained.architecture.dim
        steps.dimensions(config.after_steps, dim, "config.after_steps")
    allowed = config.missing_alignments
    split = evaluation.AlignedSplit(config.audio, config.alignments, allowed)
    probing = None
    if config.probe_audio:
        train = evaluation.AlignedSplit(config.probe_audio, config.probe_alignments, allowed)
        probing = evaluation.Probing(config.probe, train, split, config.seed)
    rate, draws, seed = config.frame_rate, config.draws, config.seed
    compared = config.abx, config.abx_items
    after = config.after_steps
    scorer = evaluation.SplitScorer(split, rate, draws, seed, *compared, probing, after)
    fitting = Fitting(
        config.fit_audio, config.num_clusters, config.seed, config.fit_max_frames, config.kmeans
    )
    result: dict[str, Any] = {
        "split": split.manifest.split,
        "audio": config.audio,
        "alignments": config.alignments,
        "audio_digest": split.manifest.digest,
        "alignments_digest": alignments.digest(config.alignments),
        "missing_alignments": split.missing,
        "frame_rate": config.frame_rate,
        "draws": draws,
        "seed": seed,
    }
    if probing:
        result["probe_minutes"] = probing.minutes
    if config.fit_audio:  # first: the others are compared with it
        result["mfcc"] = {"k": config.num_clusters, **scorer.score_mfcc(fitting)}
    if config.labels:
        scored = scorer.score_label_sets(config.labels)
        result["phones"] = scorer.phones.tolist()
        result["labels"] = [
            {"directory": path, **entry, "counts": scorer.counts[entry["joint_counts"]].tolist()}
            for path, entry in zip(config.labels, scored, strict=True)
        ]
    if trained is not None:
        by_layer, weighted = scorer.score_layers(trained, layers, fitting)
        pnmi = _pnmi(by_layer)
        best = max(layers, key=lambda layer: pnmi[str(layer)])
        result |= {
            "k": config.num_clusters,
            "checkpoint": trained.fingerprint,
            "layers": _listed(by_layer),
            "best_layer": best,
            "pnmi_by_layer": pnmi,
        }
        if weighted:
            result["weighted_sum"] = weighted
        if config.untrained:
            fresh = trained_lib.as_initialised(trained)
            by_layer, fresh_weighted = scorer.score_layers(fresh, layers, fitting, "untrained")
            result |= {
                "untrained": _listed(by_layer),
                "untrained_pnmi_by_layer": _pnmi(by_layer),
            }
            if fresh_weighted:
                result["untrained_weighted_sum"] = fresh_weighted
    (directory / "result.json").unlink(missing_ok=True)  # which names the counts of before
    _write_arrays(directory / "joint_counts.npz", {"phones": scorer.phones, **scorer.counts})
    _write_arrays(directory / "draws.npz", scorer.draws)
    return job.finish(config.workdir, "evaluate", result, started)


def _listed(by_layer: dict[int, dict]) -> list[dict]:
    return [{"layer": layer, **entry} for layer, entry in by_layer.items()]


def _pnmi(by_layer: dict[int, dict]) -> dict[str, float]:
    return {str(layer): entry["pnmi"] for layer, entry in by_layer.items()}


def _write_arrays(path: pathlib.Path, arrays: dict[str, Any]) -> None:
    """Of every scored set by its name in the result: counts (P, K), or PNMI (draws,)."""
    import numpy as np

    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    files.write_bytes(path, buffer.getvalue())


if __name__ == "__main__":
    job.main("evaluate", EvaluateConfig, run)
