"""Gathers what a run's jobs found into report.json, report.html and a table on the terminal."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from hubert_jax import files, job

_JOBS = ("label", "train", "evaluate", "finetune", "decode", "export")

Results = Mapping[str, dict[str, Any]]  # result.json by the job's folder, "it1/train"


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """What is reported.

    Attributes:
      title: of the page.
      iterations: folders of the run, in order; each may hold label, train, evaluate and export.
      recognisers: folders of the run; each may hold finetune, decode and export.
    """

    title: str = "HuBERT: what this run learned"
    iterations: tuple[str, ...] = ()
    recognisers: tuple[str, ...] = ()


def assemble(
    workdir: pathlib.Path, config: ReportConfig, seconds: dict[str, float], skipped: list[str]
) -> dict:
    """Writes WORKDIR/report.json and report.html, prints the table and returns the report.

    Page and table leave out what was not run; report.json has null or nothing there.

    Args:
      workdir: the run's directory.
      config: its folders.
      seconds: taken by each stage.
      skipped: stages that were not run again.

    Raises:
      InputError: a file that a result names is missing or damaged.
    """
    from hubert_jax.report import page, tables  # matplotlib is slow to import

    jobs = [f"{x}/{y}" for x in (*config.iterations, *config.recognisers) for y in _JOBS]
    paths = {name: workdir / name / "result.json" for name in ("prepare", *jobs)}
    results = {name: files.read_json(p, "result") for name, p in paths.items() if p.exists()}
    report = _report(config, results) | {"seconds": seconds, "skipped": skipped}
    files.write_json(workdir / "report.json", report)
    files.write_text(workdir / "report.html", page.render(workdir, config, results, report))
    print(f"\n{tables.text(report)}\n\nreport: {workdir / 'report.html'}", flush=True)
    return report


def _report(config: ReportConfig, results: Results) -> dict[str, Any]:
    def of(folders: tuple[str, ...], name: str) -> dict[str, dict]:
        return {x: results[f"{x}/{name}"] for x in folders if f"{x}/{name}" in results}

    trained, decoded = of(config.iterations, "train"), of(config.recognisers, "decode")
    exported = of((*config.iterations, *config.recognisers), "export")
    tuned = of(config.recognisers, "finetune")
    scored = list(of(config.iterations, "evaluate").values())
    mfcc = next((evaluated["mfcc"] for evaluated in scored if "mfcc" in evaluated), {})
    labels = [entry for evaluated in scored for entry in evaluated.get("labels", ())]
    targets = [entry["pnmi"] for entry in labels if entry["feature"]["kind"] == "mfcc"]
    differences = {name: result["max_abs_difference"] for name, result in exported.items()}
    compared = differences and None not in differences.values()
    model = {"parameters": next((train["parameters"] for train in trained.values()), None)}
    model |= {f"steps, {name}": train["steps"] for name, train in trained.items()}
    model |= {"steps, fine-tuning": next((tune["steps"] for tune in tuned.values()), None)}
    return {
        # Fitted as the layers' codebooks are; training targets have more starts and more frames.
        "mfcc": {key: mfcc.get(key) for key in ("k", "pnmi", "phone_purity", "cluster_purity")}
        | {"pnmi_as_layers": mfcc.get("pnmi"), "pnmi_as_targets": next(iter(targets), None)}
        | {"frame_rate": next((evaluated["frame_rate"] for evaluated in scored), None)},
        "iterations": _iterations(config.iterations, results, trained),
        "wer": {name: _best(result["wer"]) for name, result in decoded.items()},
        "cer": {name: _best(result["cer"]) for name, result in decoded.items()},
        "started_from": {name: _start(result, trained) for name, result in tuned.items()},
        "export": {
            "max_abs_difference": max(differences.values()) if compared else None,
            "by_folder": differences,
        },
        "corpus": {
            split: {key: found[key] for key in ("utterances", "seconds", "speakers")}
            for split, found in results.get("prepare", {}).get("splits", {}).items()
        },
        "model": {name: value for name, value in model.items() if value is not None},
        "versions": job.versions()
        | {name: v for result in results.values() for name, v in result["versions"].items()},
    }


def _iterations(names: tuple[str, ...], results: Results, trained: Results) -> list[dict]:
    found, untrained = [], []
    for name in names:
        train, evaluated = trained.get(name, {}), results.get(f"{name}/evaluate", {})
        targets = next(iter(evaluated.get("labels", ())), {})
        # One untrained network serves all iterations of its architecture that are scored alike.
        alike = [train.get("architecture"), evaluated.get("k"), evaluated.get("frame_rate")]
        untrained.insert(0, (alike, evaluated.get("untrained_pnmi_by_layer")))
        found.append(
            {
                "name": name,
                "best_layer": evaluated.get("best_layer"),
                "pnmi_by_layer": evaluated.get("pnmi_by_layer", {}),
                "untrained_pnmi_by_layer": next((p for a, p in untrained if p and a == alike), {}),
                "k": evaluated.get("k"),
                "masked_accuracy": train.get("last", {}).get("masked_accuracy"),
                "commonest_unit_share": train.get("commonest_unit_share"),
                "targets": targets.get("feature"),
                "targets_pnmi": targets.get("pnmi"),
                "steps": train.get("steps"),
                "started_from": _start(train, trained) if train else None,
            }
        )
    return found


def _start(result: dict[str, Any], trained: Results) -> str:
    """Whose weights a run started from, or "scratch"."""
    if not result["init_from"]:
        return "scratch"
    source = result["inputs"]["init_from"]
    names = (name for name, train in trained.items() if train["fingerprint"] == source)
    return f"weights of {next(names, result['init_from'])}"


def _best(rates: dict[str, float]) -> float:
    return rates.get("beam", rates["greedy"])
