"""The page: draws what the results have, and one utterance of a split that they name."""

import base64
import io
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jiwer
import numpy as np
import soundfile
from jinja2 import Environment, PackageLoader, StrictUndefined

from hubert_jax import storage
from hubert_jax.asr.error_rates import character_error_rate
from hubert_jax.data import manifests, records
from hubert_jax.frames import SAMPLE_RATE
from hubert_jax.report import figures
from hubert_jax.report.assemble import Results
from hubert_jax.report.claims import claims, sentences, verdict
from hubert_jax.report.tables import tables
from hubert_jax.units.alignments import read_alignments

_SHORTEST, _LONGEST = 4 * SAMPLE_RATE, 8 * SAMPLE_RATE  # samples of the example
_PARTS = {
    "about": "What this is, and what holds",
    "run": "What was run",
    "numbers": "Numbers",
    "curves": "How training went",
    "units": "Which phones the units stand for",
    "utterance": "One utterance and its units",
    "sentences": "Recognised sentences",
}
_ENVIRONMENT = Environment(
    loader=PackageLoader("hubert_jax.report"), autoescape=True, undefined=StrictUndefined
)


def render(workdir: pathlib.Path, title: str, results: Results, report: Mapping[str, Any]) -> str:
    """The page, one self-contained HTML document. Raises as `assemble`."""
    iterations = [each for each in report["iterations"] if each["pnmi_by_layer"]]
    units, source = [], ""
    scored = {name: found for name, found in results["evaluate"].items() if "phones" in found}
    likeliest: dict[str, dict[int, str]] = {}
    for name, found in scored.items():
        labels = found["labels"][0]
        source = f"targets of {name}, {labels['k']} units"
        figure, likeliest[name] = figures.heat_map(found["phones"], np.array(labels["counts"]))
        units = [figure]
    example = None
    if scored:
        shown = {name: found["labels"][0]["directory"] for name, found in scored.items()}
        *_, found = scored.values()
        example = _example(workdir, found["audio"], shown, found["alignments"], likeliest)
    elif results["label"]:
        name, found = list(results["label"].items())[-1]
        *_, split = found["splits"].values()
        example = _example(workdir, split["audio"], {name: split["directory"]}, "", {})
    curves, recognised = _curves(results, report["iterations"]), _recognised(results["decode"])
    drawn = {"curves": curves, "units": units, "utterance": example, "sentences": recognised}
    return _ENVIRONMENT.get_template("report.html").render(
        title=title,
        parts={name: text for name, text in _PARTS.items() if drawn.get(name, True)},
        told=sentences(report),
        verdict=verdict(report),
        claims=claims(report),
        tables=tables(report),
        curves=curves,
        layers=iterations and [figures.bars(iterations, report["mfcc"]["pnmi"])],
        units=units,
        source=source,
        example=example or {},
        recognised=recognised,
    )


def _here(workdir: pathlib.Path, written: str) -> str:
    """A path of a result; below `workdir` where that has moved since, or is called otherwise."""
    path = storage.path(written)
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
    workdir: pathlib.Path,
    audio: str,
    labels: Mapping[str, str],
    alignments: str,
    likeliest: Mapping[str, dict[int, str]],
) -> dict | None:
    """The first utterance of a length that is good to look at; `labels` are directories by name."""
    audio = _here(workdir, audio)
    there = {name: _here(workdir, directory) for name, directory in labels.items()}
    aligned = read_alignments(alignments) if alignments else {}
    rates = {name: manifests.read_label_manifest(path).rate_hz for name, path in there.items()}
    each_set = (records.read_labels(path) for path in there.values())
    for each, *units in zip(records.read_audio(audio), *each_set, strict=True):
        if _SHORTEST <= len(each.audio) <= _LONGEST:
            bands = {
                f"units, {name}": (of, rates[name], likeliest.get(name, {}))
                for name, (_, of) in zip(there, units, strict=True)
            }
            parts = each.audio, bands, aligned.get(each.id)
            starts = range(0, -(-len(each.audio) // SAMPLE_RATE), 4)
            rows = [figures.speech(*parts, start) for start in starts]
            file = io.BytesIO()  # FLAC even where PCM is shorter: browsers play it
            soundfile.write(file, each.audio, SAMPLE_RATE, format="FLAC")
            played = base64.b64encode(file.getvalue()).decode()
            return {"id": each.id, "text": each.text, "rows": rows, "played": played}
    return None


def _recognised(decoded: dict[str, dict]) -> dict[str, dict]:
    """Reference, and jiwer's alignment of every recogniser's words with its, by utterance."""
    sentences: dict[str, dict] = {}
    for name, found in decoded.items():
        for row in found.get("examples", ()):
            reference, text = (
                " ".join(text.split())
                for text in (row["reference"], row.get("beam", row["greedy"]))
            )
            sentence = sentences.setdefault(row["id"], {"reference": row["reference"], "texts": {}})
            sentence["texts"][name] = {
                "pieces": list(_pieces(words := jiwer.process_words(reference, text))),
                "wer": words.wer,
                "cer": character_error_rate([reference], [text]).rate,
            }
    return sentences


class _Piece(NamedTuple):
    """Some of a recognised text."""

    kind: str  # right, of a whole word; equal, of letters; wrong; missing
    text: str
    missing: str = ""  # what the reference has here


def _pieces(aligned: jiwer.WordOutput) -> Iterator[_Piece]:
    """A text with its right words, and of its wrong words the letters that are wrong."""
    (spoken,), (found,) = aligned.references, aligned.hypotheses
    for chunk in aligned.alignments[0]:
        theirs = spoken[chunk.ref_start_idx : chunk.ref_end_idx]
        ours = found[chunk.hyp_start_idx : chunk.hyp_end_idx]
        if chunk.type == "equal":
            yield _Piece("right", " ".join(ours))
        elif chunk.type == "insert":
            yield _Piece("wrong", " ".join(ours))
        elif chunk.type == "delete":
            yield _Piece("missing", "", " ".join(theirs))
        else:
            for word, wanted in zip(ours, theirs, strict=True):
                yield from _letters(wanted, word)
                yield _Piece("equal", " ")
            continue
        yield _Piece("equal", " ")


def _letters(reference: str, word: str) -> Iterator[_Piece]:
    aligned = jiwer.process_characters(reference, word)
    kinds = {"equal": "equal", "delete": "missing", "insert": "wrong", "substitute": "wrong"}
    for chunk in aligned.alignments[0]:
        text = word[chunk.hyp_start_idx : chunk.hyp_end_idx]
        missing = reference[chunk.ref_start_idx : chunk.ref_end_idx]
        yield _Piece(kinds[chunk.type], text, missing)
