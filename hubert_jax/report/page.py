"""The page: reads what the results name, draws it, and fills in the templates."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jiwer
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from hubert_jax.data import manifests, records
from hubert_jax.errors import InputError
from hubert_jax.frames import SAMPLE_RATE
from hubert_jax.report import figures
from hubert_jax.report.assemble import Results, best
from hubert_jax.report.claims import claims, verdict
from hubert_jax.report.tables import tables
from hubert_jax.units import quality

_POINTS = 120  # of a curve, at most
_SHORTEST, _LONGEST = 4 * SAMPLE_RATE, 8 * SAMPLE_RATE  # samples of the example
_ENVIRONMENT = Environment(
    loader=PackageLoader("hubert_jax.report"), autoescape=True, undefined=StrictUndefined
)


def render(workdir: pathlib.Path, title: str, results: Results, report: Mapping[str, Any]) -> str:
    """The page, one self-contained HTML document. Raises as `assemble`."""
    iterations = [each for each in report["iterations"] if each["pnmi_by_layer"]]
    units, source, example = [], "", None
    scored = {name: found for name, found in results["evaluate"].items() if found.get("labels")}
    if scored:
        name, found = scored.popitem()
        labels = found["labels"][0]
        source = f"targets of {name}, {labels['k']} units"
        with np.load(workdir / name / "evaluate/joint_counts.npz") as arrays:
            counts = arrays["phones"].tolist(), arrays[labels["joint_counts"]]
        phones, columns, conditional = figures.sort_by_phone(*counts)
        units = [figures.heat_map(phones, conditional)]
        likeliest = {u: phones[p] for u, p in zip(columns, conditional.argmax(0), strict=True)}
        paths = found["audio"], labels["directory"], found["alignments"]
        example = _example(workdir, *paths, likeliest)
    elif results["label"]:
        *_, split = list(results["label"].values())[-1]["splits"].values()
        example = _example(workdir, split["audio"], split["directory"], "", {})
    return _ENVIRONMENT.get_template("report.html").render(
        title=title,
        verdict=verdict(report),
        claims=claims(report),
        tables=tables(report),
        curves=_curves(workdir, results, report["iterations"]),
        layers=iterations and [figures.bars(iterations, report["mfcc"]["pnmi"])],
        units=units,
        source=source,
        example=example or {},
        sentences=_sentences(workdir, results["decode"]),
    )


def _here(workdir: pathlib.Path, written: str) -> str:
    """A path of a result; below `workdir` where that has moved since, or is called otherwise."""
    path = pathlib.Path(written)
    tails = (workdir.joinpath(*path.parts[start:]) for start in range(1, len(path.parts)))
    return str(next((p for p in (path, *tails) if p.exists()), path))


def _read_lines(path: str | pathlib.Path) -> list[dict[str, Any]]:
    """The JSON objects of a file, one a line. Raises InputError if it is missing or damaged."""
    try:
        return [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}; expected JSON lines, run its job again") from None


def curve(rows: list[dict[str, Any]], scalar: str) -> np.ndarray:
    """Float64 (2, n): steps and values of a scalar, means of neighbours where there are many."""
    points = np.array([(row["step"], row[scalar]) for row in rows if scalar in row])
    return np.array([p.mean(0) for p in np.array_split(points, min(len(points), _POINTS))]).T


def _curves(workdir: pathlib.Path, results: Results, iterations: list[dict]) -> list[str]:
    drawn = []
    for job, title in (("train", "Pre-training loss"), ("finetune", "Fine-tuning loss (CTC)")):
        logs = {name: _read_lines(workdir / name / job / "metrics.jsonl") for name in results[job]}
        losses = {name: curve(log, "loss") for name, log in logs.items() if log}
        drawn += [figures.curves(title, losses)] if losses else []
        for each in iterations:
            log = logs.get(each["name"]) or [{}]
            kinds = [kind for kind in ("masked_accuracy", "unmasked_accuracy") if kind in log[-1]]
            if kinds:
                lines = {kind.replace("_", " "): curve(log, kind) for kind in kinds}
                baseline = each["commonest_unit_share"]
                drawn.append(figures.curves(f"Accuracy, {each['name']}", lines, baseline))
    return drawn


def _example(
    workdir: pathlib.Path, audio: str, labels: str, alignments: str, likeliest: dict
) -> dict | None:
    """The first utterance of a length that is good to look at."""
    audio, labels = _here(workdir, audio), _here(workdir, labels)
    aligned = quality.read_alignments(alignments) if alignments else {}
    rate = manifests.read_label_manifest(labels).rate_hz
    pairs = zip(records.read_audio(audio), records.read_labels(labels), strict=True)
    for each, (_, units) in pairs:
        if _SHORTEST <= len(each.audio) <= _LONGEST:
            parts = each.audio, units, rate, aligned.get(each.id), likeliest
            rows = [
                figures.speech(*parts, at) for at in range(0, -(-len(each.audio) // SAMPLE_RATE), 4)
            ]
            return {"id": each.id, "text": each.text, "rows": rows}
    return None


def _sentences(workdir: pathlib.Path, decoded: dict[str, dict]) -> dict[str, dict]:
    """Reference, and jiwer's alignment of every recogniser's text with it, by utterance.

    Utterances without one are left out: there is nothing to align with.
    """
    sentences: dict[str, dict] = {}
    for name, found in decoded.items():
        for row in _read_lines(_here(workdir, found["hypotheses"])):
            if row["reference"] is None:
                continue
            reference, text = (" ".join(text.split()) for text in (row["reference"], best(row)))
            sentence = sentences.setdefault(row["id"], {"reference": row["reference"], "texts": {}})
            sentence["texts"][name] = jiwer.process_characters(reference, text)
    return sentences
