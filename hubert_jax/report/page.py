"""The page: draws what the results have, and one utterance of a split that they name."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jiwer
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from hubert_jax.data import manifests, records
from hubert_jax.frames import SAMPLE_RATE
from hubert_jax.report import figures
from hubert_jax.report.assemble import Results, best
from hubert_jax.report.claims import claims, verdict
from hubert_jax.report.tables import tables
from hubert_jax.units.alignments import read_alignments

_SHORTEST, _LONGEST = 4 * SAMPLE_RATE, 8 * SAMPLE_RATE  # samples of the example
_ENVIRONMENT = Environment(
    loader=PackageLoader("hubert_jax.report"), autoescape=True, undefined=StrictUndefined
)


def render(workdir: pathlib.Path, title: str, results: Results, report: Mapping[str, Any]) -> str:
    """The page, one self-contained HTML document. Raises as `assemble`."""
    iterations = [each for each in report["iterations"] if each["pnmi_by_layer"]]
    units, source, example = [], "", None
    scored = {name: found for name, found in results["evaluate"].items() if "phones" in found}
    if scored:
        name, found = scored.popitem()
        labels = found["labels"][0]
        source = f"targets of {name}, {labels['k']} units"
        table = figures.sort_by_phone(found["phones"], np.array(labels["counts"]))
        phones, columns, conditional = table
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
        curves=_curves(results, report["iterations"]),
        layers=iterations and [figures.bars(iterations, report["mfcc"]["pnmi"])],
        units=units,
        source=source,
        example=example or {},
        sentences=_sentences(results["decode"]),
    )


def _here(workdir: pathlib.Path, written: str) -> str:
    """A path of a result; below `workdir` where that has moved since, or is called otherwise."""
    path = pathlib.Path(written)
    tails = (workdir.joinpath(*path.parts[start:]) for start in range(1, len(path.parts)))
    return str(next((p for p in (path, *tails) if p.exists()), path))


def _curves(results: Results, iterations: list[dict[str, Any]]) -> list[str]:
    drawn = []
    for job, title in (("train", "Pre-training loss"), ("finetune", "Fine-tuning loss (CTC)")):
        curves = {name: found.get("curves", {}) for name, found in results[job].items()}
        losses = {name: found["loss"] for name, found in curves.items() if found}
        drawn += [figures.curves(title, losses)] if losses else []
        for each in iterations:
            found = curves.get(each["name"], {})
            kinds = found.keys() & {"masked_accuracy", "unmasked_accuracy"}
            if kinds:
                lines = {kind.replace("_", " "): found[kind] for kind in sorted(kinds)}
                baseline = each["commonest_unit_share"]
                drawn.append(figures.curves(f"Accuracy, {each['name']}", lines, baseline))
    return drawn


def _example(
    workdir: pathlib.Path, audio: str, labels: str, alignments: str, likeliest: dict
) -> dict | None:
    """The first utterance of a length that is good to look at."""
    audio, labels = _here(workdir, audio), _here(workdir, labels)
    aligned = read_alignments(alignments) if alignments else {}
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


def _sentences(decoded: dict[str, dict]) -> dict[str, dict]:
    """Reference, and jiwer's alignment of every recogniser's text with it, by utterance."""
    sentences: dict[str, dict] = {}
    for name, found in decoded.items():
        for row in found.get("examples", ()):
            reference, text = (" ".join(text.split()) for text in (row["reference"], best(row)))
            sentence = sentences.setdefault(row["id"], {"reference": row["reference"], "texts": {}})
            sentence["texts"][name] = jiwer.process_characters(reference, text)
    return sentences
