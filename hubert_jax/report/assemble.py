"""Gathers what a run's jobs found into report.json, report.html and a table on the terminal."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from hubert_jax import files, job
from hubert_jax.errors import InputError
from hubert_jax.quality.counts import interval

_JOBS = ("prepare", "label", "train", "evaluate", "finetune", "decode", "export")

Results = dict[str, dict[str, dict[str, Any]]]  # result.json by job and folder


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """The page's title, and folders of the run in order."""

    title: str = "HuBERT: what this run learned"
    iterations: tuple[str, ...] = ()  # each may hold label, train, evaluate and export
    recognisers: tuple[str, ...] = ()  # each may hold finetune, decode and export
    # ITERATION=FOLDER: as many steps more on the targets of before, whose train and evaluate it has
    controls: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for each in self.controls:
            iteration, _, folder = each.partition("=")
            if iteration not in self.iterations or not folder or folder in self.iterations:
                raise InputError(
                    f"config.report.controls: found {each!r}, expected ITERATION=FOLDER with one "
                    f"of {', '.join(self.iterations) or 'config.report.iterations'}"
                )

    @property
    def control_of(self) -> dict[str, str]:
        """The iteration that each control's folder is for."""
        return {each.partition("=")[2]: each.partition("=")[0] for each in self.controls}


def assemble(
    workdir: pathlib.Path,
    config: ReportConfig,
    stages: Mapping[str, dict[str, Any]],
    skipped: list[str],
    rehearsed: Mapping[str, Any] | None = None,
) -> dict:
    """Writes WORKDIR/report.json and report.html, prints the table and returns the report.

    `stages` are the contents of their `result.json` by name. What was not run is left out, or null
    or empty in report.json; `rehearsed` has, by stage of a rehearsal, what is `proven` and
    `shrunk`. Raises InputError where the split of the utterance that is drawn is damaged.
    """
    from hubert_jax.report import claims, page, tables  # matplotlib is slow to import

    results: Results = {name: {} for name in _JOBS}
    folders = (*config.iterations, *config.control_of, *config.recognisers)
    for name in _JOBS:
        for folder in folders if name != "prepare" else ("",):
            stage = f"{folder}/{name}" if folder else name
            if stage in stages:
                results[name][folder] = stages[stage]
    seconds = {name: found["seconds"] for name, found in stages.items()}
    report = _report(workdir, results, config) | {"seconds": seconds, "skipped": skipped}
    report["rehearsed"] = dict(rehearsed or {})
    files.write_json(workdir / "report.json", report)
    files.write_text(workdir / "report.html", page.render(workdir, config.title, results, report))
    print("", tables.text(report), "", sep="\n")
    for sentence in claims.sentences(report):
        print(f"{sentence}\n")
    print(f"report: {workdir / 'report.html'}", flush=True)
    return report


def _report(workdir: pathlib.Path, results: Results, config: ReportConfig) -> dict[str, Any]:
    trained, tuned, decoded = results["train"], results["finetune"], results["decode"]
    scored = list(results["evaluate"].values())
    mfcc: dict[str, Any] = next((found["mfcc"] for found in scored if "mfcc" in found), {})
    labels = [entry for found in scored for entry in found.get("labels", ())]
    targets = (entry["pnmi"] for entry in labels if entry["feature"] == {"kind": "mfcc"})
    exports = {name: found["max_abs_difference"] for name, found in results["export"].items()}
    worst = max(exports.values()) if exports and None not in exports.values() else None
    model = [("parameters", found["parameters"]) for found in trained.values()][:1]
    model += [(f"steps, {name}", found["steps"]) for name, found in trained.items()]
    model += [("steps, fine-tuning", found["steps"]) for found in tuned.values()][:1]
    jobs = [found for folders in results.values() for found in folders.values()]
    return {
        # Fitted as the layers' codebooks are; training targets have more starts and more frames.
        "mfcc": {key: mfcc.get(key) for key in ("k", "pnmi", "phone_purity", "cluster_purity")}
        | {"pnmi_as_layers": mfcc.get("pnmi"), "pnmi_as_targets": next(targets, None)}
        | {"frame_rate": next((found["frame_rate"] for found in scored), None)}
        | {"after_steps": mfcc.get("after_steps", {})},
        "iterations": _iterations(workdir, results, config),
        "features": _features(results["evaluate"], config.iterations, mfcc),
        "wer": {name: _searched(found["wer"]) for name, found in decoded.items()},
        "cer": {name: _searched(found["cer"]) for name, found in decoded.items()},
        "greedy_wer": {name: found["wer"]["greedy"] for name, found in decoded.items()},
        "greedy_cer": {name: found["cer"]["greedy"] for name, found in decoded.items()},
        "transcripts": {name: found["inputs"].get("audio") for name, found in tuned.items()},
        "started_from": {name: _start(found, trained) for name, found in tuned.items()},
        "export": {"max_abs_difference": worst, "by_folder": exports},
        "corpus": {
            split: {key: found[key] for key in ("utterances", "seconds", "speakers")}
            for split, found in results["prepare"].get("", {"splits": {}})["splits"].items()
        },
        "model": dict(model),
        "versions": job.versions() | {k: v for found in jobs for k, v in found["versions"].items()},
    }


def _iterations(
    workdir: pathlib.Path, results: Results, config: ReportConfig
) -> list[dict[str, Any]]:
    """The iterations and, behind them, their controls."""
    names = (*config.iterations, *config.control_of)
    iterations: list[dict[str, Any]] = []
    untrained: list[tuple[list, Any]] = []
    for name in names:
        train, scored = results["train"].get(name, {}), results["evaluate"].get(name, {})
        targets: dict[str, Any] = next(iter(scored.get("labels", ())), {})
        layers = {found["layer"]: found for found in scored.get("layers", ())}
        best_layer = layers.get(scored.get("best_layer"), {})
        # One untrained network serves all iterations of its architecture that are scored alike.
        alike = [train.get("architecture"), scored.get("k"), scored.get("frame_rate")]
        untrained.insert(0, (alike, scored.get("untrained_pnmi_by_layer")))
        iterations.append(
            {"name": name, "control_of": config.control_of.get(name)}
            | {key: scored.get(key) for key in ("best_layer", "k")}
            | {key: train.get(key) for key in ("commonest_unit_share", "steps")}
            | {
                "pnmi_by_layer": scored.get("pnmi_by_layer", {}),
                "untrained_pnmi_by_layer": next((p for a, p in untrained if p and a == alike), {}),
                "masked_accuracy": train.get("last", {}).get("masked_accuracy"),
                "targets": targets.get("feature"),
                "targets_pnmi": targets.get("pnmi"),
                "targets_pnmi_by_rate": targets.get("pnmi_by_rate", {}),
                "best_pnmi_by_rate": best_layer.get("pnmi_by_rate", {}),
                "best_over_mfcc": best_layer.get("over_mfcc", {}),
                "over": {
                    rival: _interval(workdir, results["evaluate"], name, rival)
                    for rival in names
                    if rival != name and _alike(scored, results["evaluate"].get(rival, {}))
                },
                "after_steps": best_layer.get("after_steps", {}),
                "started_from": _start(train, results["train"]) if train else None,
            }
        )
    return iterations


def _alike(scored: dict[str, Any], rival: dict[str, Any]) -> bool:
    """Whether the same utterances were drawn for both, and scored in the same way."""
    keys = (
        "audio_digest",
        "alignments_digest",
        "missing_alignments",
        "frame_rate",
        "draws",
        "seed",
    )
    return bool(scored.get("draws")) and all(scored[key] == rival.get(key) for key in keys)


def _interval(
    workdir: pathlib.Path, scored: dict[str, dict[str, Any]], name: str, rival: str
) -> list[float]:
    """The 95 % interval of the best layer's PNMI less that of a rival's."""
    draws, peaks = [], []
    for folder in (name, rival):
        best = str(scored[folder]["best_layer"])
        with np.load(workdir / folder / "evaluate" / "draws.npz") as stored:
            draws.append(stored[f"layer_{best}"])
        peaks.append(scored[folder]["pnmi_by_layer"][best])
    return interval(peaks[0] - peaks[1], draws[0] - draws[1])


def _features(
    evaluated: dict[str, dict[str, Any]], names: tuple[str, ...], mfcc: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """What a probe and ABX found of features, where they were asked for: MFCC's, best layers'."""
    entries: dict[str, dict[str, Any]] = {"MFCC": mfcc}
    for name in names:
        scored = evaluated.get(name, {})
        best_layer = scored.get("best_layer")
        for key, of in (("untrained", ", untrained"), ("layers", "")):
            found = (each for each in scored.get(key, ()) if each["layer"] == best_layer)
            entries[f"{name}, layer {best_layer}{of}"] = next(found, {})
            weighted = scored.get(f"{key}_weighted_sum".removeprefix("layers_"))
            entries[f"{name}, weighted sum{of}"] = {"probe": weighted} if weighted else {}
    kinds = ("probe", "abx", "abx_units")
    told = {name: {k: each[k] for k in kinds if k in each} for name, each in entries.items()}
    return {name: each for name, each in told.items() if each}


def _start(found: dict[str, Any], trained: dict[str, dict[str, Any]]) -> str:
    if not found["init_from"]:
        return "scratch"
    weights = found["inputs"]["init_from"]
    names = (name for name, train in trained.items() if train["fingerprint"] == weights)
    return f"weights of {next(names, found['init_from'])}"


def _searched(ways: dict[str, Any]) -> Any:
    """What the beam search gave, or else greedy decoding."""
    return ways.get("beam", ways["greedy"])
