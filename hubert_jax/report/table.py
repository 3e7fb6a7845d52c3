"""The final table that the pipeline prints on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hubert_jax.report.claims import claims, verdict
from hubert_jax.report.contents import best_layer, by_layer, is_number

_WIDTH = 100
_NONE = "-"


def table(report: Mapping[str, Any]) -> str:
    """A run's numbers as aligned plain text of at most 100 columns; the last line is the verdict.

    Args:
      report: the pipeline's `report.json`; missing parts and nulls print as "-".

    Returns:
      Lines joined by newlines, without a trailing one.
    """
    sections = [_target_quality(report), _masked_accuracy(report), _errors(report)]
    difference = (report.get("export") or {}).get("max_abs_difference")
    sections.append(
        ["Export: largest absolute difference to the original  " + scientific(difference)]
    )
    sections.append(_seconds(report))
    sections.append(_comparisons(report))
    lines = [line for section in sections if section for line in [*section, ""]]
    found = claims(report)
    tally = f"; {sum(claim.holds for claim in found)} of {len(found)} hold" if found else ""
    lines.append(f"verdict: {verdict(report)}{tally}")
    return "\n".join(_cut(line.rstrip()) for line in lines)


def decimal(value: Any, digits: int = 3) -> str:
    """A number with `digits` decimals; "-" where there is none."""
    return f"{value:.{digits}f}" if is_number(value) else _NONE


def percent(value: Any) -> str:
    """A fraction as per cent; "-" where there is none."""
    return f"{100 * value:.1f} %" if is_number(value) else _NONE


def scientific(value: Any) -> str:
    """A small number in powers of ten; "-" where there is none."""
    return f"{value:.1e}" if is_number(value) else "- (not compared)"


def seconds_by_stage(report: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of each stage that has them, in the report's order."""
    seconds = report.get("seconds")
    if not isinstance(seconds, Mapping):
        return {}
    return {stage: value for stage, value in seconds.items() if is_number(value)}


def _cut(line: str) -> str:
    return line if len(line) <= _WIDTH else line[: _WIDTH - 3] + "..."


def _target_quality(report: Mapping[str, Any]) -> list[str]:
    mfcc = report.get("mfcc") or {}
    rows = [["", "PNMI", "untrained"]]
    rows.append([f"MFCC, K = {mfcc.get('k', _NONE)}", decimal(mfcc.get("pnmi")), ""])
    for number, iteration in enumerate(report.get("iterations") or [], start=1):
        untrained = by_layer(iteration.get("untrained_pnmi_by_layer"))
        best = best_layer(iteration)
        units = f", K = {iteration['k']}" if iteration.get("k") is not None else ""
        for layer, pnmi in by_layer(iteration.get("pnmi_by_layer")).items():
            name = f"iteration {number}, layer {layer}{units}"
            row = [name, decimal(pnmi), decimal(untrained.get(layer))]
            rows.append(row + ["<- best"] if layer == best else row)
    return ["Target quality (phone-normalised mutual information)", *_aligned(rows)]


def _masked_accuracy(report: Mapping[str, Any]) -> list[str]:
    rows = [["", "accuracy", "commonest unit"]]
    for number, iteration in enumerate(report.get("iterations") or [], start=1):
        accuracy, share = (iteration.get("masked_accuracy"), iteration.get("commonest_unit_share"))
        rows.append([f"iteration {number}", decimal(accuracy), decimal(share)])
    return ["Prediction of masked units", *_aligned(rows)] if len(rows) > 1 else []


def _errors(report: Mapping[str, Any]) -> list[str]:
    rows = [["", "pre-trained", "from scratch"]]
    for name in ("wer", "cer"):
        rates = report.get(name) or {}
        rows.append([name.upper(), percent(rates.get("pretrained")), percent(rates.get("scratch"))])
    return ["Speech recognition", *_aligned(rows)]


def _seconds(report: Mapping[str, Any]) -> list[str]:
    stages = seconds_by_stage(report)
    if not stages:
        return []
    skipped = report.get("skipped") or []
    rows = [
        [stage, f"{value:.1f}", *(["skipped in this run"] if stage in skipped else [])]
        for stage, value in stages.items()
    ]
    rows += [[stage, _NONE, "skipped in this run"] for stage in skipped if stage not in stages]
    rows.append(["total", f"{sum(stages.values()):.1f}"])
    return ["Seconds", *_aligned(rows)]


def _comparisons(report: Mapping[str, Any]) -> list[str]:
    lines = []
    for claim in claims(report):
        note = f" ({claim.note})" if claim.note else ""
        lines.append(f"  {'yes' if claim.holds else 'NO':<4} {claim.text}{note}")
    return ["Comparisons", *lines] if lines else []


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Left-aligned first and fourth columns, right-aligned numbers, two spaces between."""
    numbers = [row[1:] for row in rows]
    note = 2 if rows[0][0] == "" else 1
    first = max(len(row[0]) for row in rows)
    widths = [max(len(row[i]) for row in numbers if len(row) > i) for i in range(note)]
    lines = []
    for name, *cells in rows:
        figures = [cell.rjust(width) for cell, width in zip(cells, widths, strict=False)]
        lines.append("  ".join(["", name.ljust(first), *figures, *cells[note:]]))
    return lines
