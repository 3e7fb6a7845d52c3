"""Gathers what the stages of a run found into `report.json`, `report.html` and the final table."""

import io
import json
import pathlib
from typing import Any

import numpy as np

from hubert_jax import files, job
from hubert_jax.report.contents import Example, JointCounts, ReportData, read_curve
from hubert_jax.report.table import table

_EXAMPLE_SECONDS = (4.0, 8.0)


def assemble(
    workdir: pathlib.Path, config: Any, results: dict[str, dict], skipped: list[str]
) -> dict:
    """Writes WORKDIR/report.json and WORKDIR/report.html and prints the table.

    The page is drawn again only when a stage ran, or when it is missing.

    Args:
      workdir: the run's directory.
      config: a `PipelineConfig`.
      results: the content of every stage's `result.json`, by the stage's name.
      skipped: names of the stages that were skipped this time.

    Returns:
      The content of report.json.
    """
    report = _report(config, results, skipped)
    files.write_json(workdir / "report.json", report)
    page = workdir / "report.html"
    if len(skipped) < len(results) or not page.exists():
        from hubert_jax.report.html import render

        render(_data(workdir, config, report), page)
    print(f"\n{table(report)}\n\nreport: {page}", flush=True)
    return report


def _report(config: Any, results: dict[str, dict], skipped: list[str]) -> dict:
    names = list(config.iterations)
    first = results[f"{names[0]}-evaluate"]
    targets = first["labels"][0]
    prepared = results["prepare"]["splits"]
    iterations = []
    for name in names:
        evaluated, trained = results[f"{name}-evaluate"], results[f"{name}-train"]
        iterations.append(
            {
                "best_layer": evaluated["best_layer"],
                "pnmi_by_layer": evaluated["pnmi_by_layer"],
                # Every iteration has the same network, so one untrained network serves all.
                "untrained_pnmi_by_layer": first["untrained_pnmi_by_layer"],
                "k": evaluated["k"],
                "masked_accuracy": trained["last"]["masked_accuracy"],
                "commonest_unit_share": trained["commonest_unit_share"],
                "targets": evaluated["labels"][0]["feature"],
                "targets_pnmi": evaluated["labels"][0]["pnmi"],
                "steps": trained["steps"],
                "started_from": _started_from(config.iterations[name], name, names),
            }
        )
    decoded = {name: results[f"{name}-decode"] for name in ("pretrained", "scratch")}
    differences = [
        result["max_abs_difference"] for stage, result in results.items() if "export" in stage
    ]
    return {
        # Fitted like the layers' codebooks; the first iteration's targets, fitted with more
        # starts on more frames, are beside it.
        "mfcc": {
            "k": first["mfcc"]["k"],
            "pnmi": max(first["mfcc"]["pnmi"], targets["pnmi"]),
            "phone_purity": targets["phone_purity"],
            "cluster_purity": targets["cluster_purity"],
            "pnmi_as_targets": targets["pnmi"],
            "pnmi_as_layers": first["mfcc"]["pnmi"],
            "frame_rate": first["frame_rate"],
        },
        "iterations": iterations,
        "wer": {name: _beam(result["wer"]) for name, result in decoded.items()},
        "cer": {name: _beam(result["cer"]) for name, result in decoded.items()},
        "export": {"max_abs_difference": None if None in differences else max(differences)},
        "seconds": {stage: result["seconds"] for stage, result in results.items()},
        "skipped": skipped,
        "corpus": {
            split: {key: prepared[split][key] for key in ("utterances", "seconds", "speakers")}
            for split in prepared
        },
        "model": {
            "parameters": results[f"{names[0]}-train"]["parameters"],
            **{f"steps, {name}": results[f"{name}-train"]["steps"] for name in names},
            "steps, fine-tuning": results["pretrained-finetune"]["steps"],
        },
        "versions": job.versions() | results["pretrained-finetune"]["versions"],
    }


def _started_from(iteration: Any, name: str, names: list[str]) -> str:
    position = names.index(name)
    if position and iteration.get("continue_previous", False):
        return f"weights of {names[position - 1]}"
    return "scratch"


def _beam(rates: dict[str, float]) -> float:
    return rates.get("beam", rates["greedy"])


def _data(workdir: pathlib.Path, config: Any, report: dict) -> ReportData:
    names = list(config.iterations)
    return ReportData(
        report=report,
        pretraining=[read_curve(workdir / name / "train/metrics.jsonl") for name in names],
        finetuning={
            name: read_curve(workdir / name / "finetune/metrics.jsonl")
            for name in ("pretrained", "scratch")
        },
        joint=_joint(workdir / names[-1] / "evaluate/joint_counts.npz", names),
        example=_example(workdir, config, names[-1]),
        hypotheses=_hypotheses(workdir),
    )


def _joint(path: pathlib.Path, names: list[str]) -> JointCounts:
    """The units that the last iteration was trained on, as the example shows them."""
    with np.load(io.BytesIO(path.read_bytes())) as counts:
        source = f"targets of iteration {len(names)}, {counts['labels_0'].shape[1]} units"
        return JointCounts([str(phone) for phone in counts["phones"]], counts["labels_0"], source)


def _example(workdir: pathlib.Path, config: Any, iteration: str) -> Example | None:
    """The first development utterance of a length that is good to look at."""
    from hubert_jax.data import manifests, records
    from hubert_jax.units import quality

    alignments = quality.read_alignments(config.alignments)
    labels = workdir / iteration / "label" / config.dev_split
    units = dict(records.read_labels(labels))
    rate = manifests.read_label_manifest(labels).rate_hz
    shortest, longest = _EXAMPLE_SECONDS
    for utterance in records.read_audio(workdir / "prepare" / config.dev_split):
        seconds = len(utterance.audio) / 16_000
        if shortest <= seconds <= longest and utterance.id in alignments:
            found = alignments[utterance.id]
            phones = list(
                zip(found.starts.tolist(), found.ends.tolist(), found.phones.tolist(), strict=True)
            )
            return Example(
                utterance.id,
                utterance.audio,
                units[utterance.id].astype(np.int64),
                phones,
                utterance.text,
                rate,
            )
    return None


def _hypotheses(workdir: pathlib.Path) -> list[dict[str, str]]:
    rows: dict[str, dict[str, str]] = {}
    for name in ("pretrained", "scratch"):
        for line in (workdir / name / "decode/hypotheses.jsonl").read_text().splitlines():
            entry = json.loads(line)
            row = rows.setdefault(entry["id"], {"id": entry["id"], "reference": entry["reference"]})
            row[name] = entry.get("beam", entry["greedy"])
    return list(rows.values())
