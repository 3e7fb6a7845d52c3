"""The report's tables: what was run, and the numbers that came out."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from hubert_jax.report import markup
from hubert_jax.report.claims import claims, verdict
from hubert_jax.report.contents import best_layer, by_layer
from hubert_jax.report.table import decimal, percent, scientific, seconds_by_stage


def outcome(report: Mapping[str, Any]) -> str:
    """The verdict in a box, and under it every comparison with yes or no."""
    found = claims(report)
    held = sum(claim.holds for claim in found)
    text = verdict(report)
    text = f"{text[0].upper()}{text[1:]}."
    if found:
        text += f" {held} of {len(found)} comparisons came out as they should."
    kind = "verdict" if found and held == len(found) else "verdict short"
    box = f'<p class="{kind}">{html.escape(text)}</p>'
    rows = []
    for claim in found:
        answer = "<td class=yes>yes</td>" if claim.holds else "<td class=no>no</td>"
        note = f' <span class="note">({html.escape(claim.note)})</span>' if claim.note else ""
        rows.append(f"<tr>{answer}<td>{html.escape(claim.text)}{note}</td></tr>")
    if not rows:
        return box + markup.absent("This run has too few numbers to compare.")
    head = "<thead><tr><th scope=col>holds</th><th scope=col>comparison</th></tr></thead>"
    return box + markup.scrolling(f"<table>{head}<tbody>{''.join(rows)}</tbody></table>")


def what_was_run(report: Mapping[str, Any]) -> str:
    """Corpus, model and versions as the report names them, and seconds by stage."""
    tables = []
    for key, caption in (("corpus", "Corpus"), ("model", "Model"), ("versions", "Versions")):
        values = report.get(key)
        if isinstance(values, Mapping) and values:
            tables.append(markup.table(caption, (), markup.flattened(values)))
    return markup.section(
        "What was run",
        markup.columns(*tables) or markup.absent("The report names neither corpus nor model."),
        markup.scrolling(_seconds(report)),
    )


def numbers(report: Mapping[str, Any]) -> str:
    """The headline tables, each with what is known from training at scale."""
    return markup.section(
        "Numbers",
        markup.scrolling(_target_quality(report)),
        markup.paragraph(
            "PNMI is the share of what there is to know about the phone of a frame that its unit "
            "tells: 0 is nothing, 1 everything. At scale (960 hours, 250,000 and 400,000 steps, "
            "as published): MFCC clusters 0.255 with 100 units; the sixth layer after iteration 1 "
            "0.56 to 0.58 with 100 units and 0.68 with 500; the ninth layer after iteration 2 0.70 "
            "with 500. Absolute values depend on the development set and its alignments, so "
            "compare within a table; differences under about 0.005 are noise. The untrained "
            "network shows what the architecture gives away for free."
        ),
        markup.columns(_prediction(report), _recognition(report), _export(report)),
        markup.paragraph(
            "Masked accuracy is how often the network names the unit of a frame that it could not "
            "hear; always naming the commonest unit would score that unit's share. At scale it "
            "ends near 0.39 in iteration 1 and 0.42 in iteration 2. WER and CER are word and "
            "character errors over the length of the references; they can exceed 100 %. From "
            "scratch is the same network fine-tuned in the same way, but not pre-trained. At "
            "scale, BASE with ten hours of transcripts and a language model reaches a WER of 4.3 % "
            "on LibriSpeech test-clean and 9.4 % on test-other."
        ),
    )


def _target_quality(report: Mapping[str, Any]) -> str:
    mfcc = report.get("mfcc") or {}
    iterations = report.get("iterations") or []
    trained = [by_layer(iteration.get("pnmi_by_layer")) for iteration in iterations]
    untrained = [by_layer(iteration.get("untrained_pnmi_by_layer")) for iteration in iterations]
    layers = sorted(set().union(*trained, *untrained))
    if not layers and mfcc.get("pnmi") is None:
        return markup.absent("PNMI was not measured: it needs phone alignments.")
    header = ["features"]
    for number, iteration in enumerate(iterations, start=1):
        units = f", K = {iteration['k']}" if iteration.get("k") is not None else ""
        header += [f"iteration {number}{units}", "untrained"]
    label = f"MFCC, K = {mfcc['k']}" if mfcc.get("k") is not None else "MFCC"
    rows = [[label, *[decimal(mfcc.get("pnmi")), ""] * max(len(iterations), 1)]]
    for layer in layers:
        row = [f"layer {layer}"]
        for i, iteration in enumerate(iterations):
            best = " (best)" if layer == best_layer(iteration) and layer in trained[i] else ""
            row += [decimal(trained[i].get(layer)) + best, decimal(untrained[i].get(layer))]
        rows.append(row)
    if not iterations:
        header += ["PNMI", ""]
    caption = "PNMI of the units, by the feature clustered"
    found = markup.table(caption, header, rows)
    if not layers:
        found += markup.absent("PNMI by layer was not measured: it needs phone alignments.")
    purity = [
        f"{name.replace('_', ' ')} {decimal(mfcc[name])}"
        for name in ("phone_purity", "cluster_purity")
        if mfcc.get(name) is not None
    ]
    return found + (markup.paragraph(f"MFCC clusters: {', '.join(purity)}.") if purity else "")


def _prediction(report: Mapping[str, Any]) -> str:
    rows = [
        [
            str(number),
            decimal(iteration.get("masked_accuracy")),
            decimal(iteration.get("commonest_unit_share")),
        ]
        for number, iteration in enumerate(report.get("iterations") or [], start=1)
    ]
    if not rows:
        return markup.absent("No iteration of pre-training is in this report.")
    header = ["iteration", "masked accuracy", "commonest unit"]
    return markup.table("Prediction of masked units", header, rows)


def _recognition(report: Mapping[str, Any]) -> str:
    rows = []
    for name in ("wer", "cer"):
        rates = report.get(name) or {}
        rows.append([name.upper(), percent(rates.get("pretrained")), percent(rates.get("scratch"))])
    if all(cell == "-" for row in rows for cell in row[1:]):
        return markup.absent("Speech recognition was not measured: nothing was decoded.")
    return markup.table("Speech recognition", ["", "pre-trained", "from scratch"], rows)


def _export(report: Mapping[str, Any]) -> str:
    difference = (report.get("export") or {}).get("max_abs_difference")
    if difference is None:
        return markup.absent("No export difference: transformers, the peer, is not installed.")
    rows = [["largest absolute difference", scientific(difference)]]
    return markup.table("Exported model against this one, same audio", (), rows)


def _seconds(report: Mapping[str, Any]) -> str:
    stages = seconds_by_stage(report)
    skipped = [str(stage) for stage in report.get("skipped") or []]
    if not stages:
        return ""
    longest, total = max(stages.values()), sum(stages.values())
    rows = []
    for stage, value in stages.items():
        name = f"{stage} (skipped in this run)" if stage in skipped else stage
        bar = f'<div style="width: {100 * value / longest if longest else 0:.1f}%"></div>'
        rows.append(
            f"<tr><th scope=row>{html.escape(name)}</th><td class=number>{value:,.1f}</td>"
            f"<td class=share>{bar}</td></tr>"
        )
    rows += [
        f"<tr><th scope=row>{html.escape(stage)} (skipped in this run)</th>"
        "<td class=number>-</td><td></td></tr>"
        for stage in skipped
        if stage not in stages
    ]
    rows.append(
        f"<tr class=total><th scope=row>total</th><td class=number>{total:,.1f}</td><td></td></tr>"
    )
    caption = "<caption>Seconds by stage</caption>"
    return f"<table class=seconds>{caption}<tbody>{''.join(rows)}</tbody></table>"
