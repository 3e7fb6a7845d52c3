"""Gathers what a run's jobs found into report.json, report.html and a table on the terminal."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from hubert_jax import files, job

_JOBS = ("prepare", "label", "train", "evaluate", "finetune", "decode", "export")

Results = dict[str, dict[str, dict[str, Any]]]  # result.json by job and folder


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """The page's title, and folders of the run in order."""

    title: str = "HuBERT: what this run learned"
    iterations: tuple[str, ...] = ()  # each may hold label, train, evaluate and export
    recognisers: tuple[str, ...] = ()  # each may hold finetune, decode and export


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
    from hubert_jax.report import page, tables  # matplotlib is slow to import

    results: Results = {name: {} for name in _JOBS}
    for name in _JOBS:
        for folder in (*config.iterations, *config.recognisers) if name != "prepare" else ("",):
            stage = f"{folder}/{name}" if folder else name
            if stage in stages:
                results[name][folder] = stages[stage]
    seconds = {name: found["seconds"] for name, found in stages.items()}
    report = _report(results, config.iterations) | {"seconds": seconds, "skipped": skipped}
    report["rehearsed"] = dict(rehearsed or {})
    files.write_json(workdir / "report.json", report)
    files.write_text(workdir / "report.html", page.render(workdir, config.title, results, report))
    print(f"\n{tables.text(report)}\n\nreport: {workdir / 'report.html'}", flush=True)
    return report


def _report(results: Results, names: tuple[str, ...]) -> dict[str, Any]:
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
        | {"frame_rate": next((found["frame_rate"] for found in scored), None)},
        "iterations": _iterations(results, names),
        "features": _features(results["evaluate"], names, mfcc),
        "wer": {name: best(found["wer"]) for name, found in decoded.items()},
        "cer": {name: best(found["cer"]) for name, found in decoded.items()},
        "started_from": {name: _start(found, trained) for name, found in tuned.items()},
        "export": {"max_abs_difference": worst, "by_folder": exports},
        "corpus": {
            split: {key: found[key] for key in ("utterances", "seconds", "speakers")}
            for split, found in results["prepare"].get("", {"splits": {}})["splits"].items()
        },
        "model": dict(model),
        "versions": job.versions() | {k: v for found in jobs for k, v in found["versions"].items()},
    }


def _iterations(results: Results, names: tuple[str, ...]) -> list[dict[str, Any]]:
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
            {"name": name}
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
                "started_from": _start(train, results["train"]) if train else None,
            }
        )
    return iterations


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


def best(ways: dict[str, Any]) -> Any:
    """What the beam search gave, or else greedy decoding."""
    return ways.get("beam", ways["greedy"])
