"""What the numbers of a report say: did training get anywhere, in plain words."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from hubert_jax.report.contents import best_layer, by_layer, is_number


@dataclasses.dataclass(frozen=True)
class Claim:
    """One comparison: whether it came out as it should, the numbers in words, and a caveat."""

    holds: bool
    text: str
    note: str = ""


def claims(report: Mapping[str, Any]) -> list[Claim]:
    """Every comparison that the numbers of `report` allow; the first is the one on PNMI, if any.

    Units should carry more phonetic information than MFCC clusters and than the same layer of an
    untrained network; masked accuracy should exceed the share of the commonest unit; the second
    iteration should improve on the first; pre-training should lower word and character error rates.
    """
    found = []
    peaks = best_layers(report)
    mfcc = report.get("mfcc") or {}
    units = [mfcc.get("k")] + [iteration.get("k") for iteration in report.get("iterations") or []]
    if peaks and is_number(mfcc.get("pnmi")):
        iteration, layer, pnmi = max(peaks, key=lambda peak: peak[2])
        where = f" of iteration {iteration}" if len(report["iterations"]) > 1 else ""
        subject, note = (f"best layer {layer}{where}: PNMI", _unequal(units[iteration], units[0]))
        found.append(_higher(subject, pnmi, "MFCC", mfcc["pnmi"], note))
    for number, iteration in enumerate(report.get("iterations") or [], start=1):
        for _, layer, pnmi in (peak for peak in peaks if peak[0] == number):
            untrained = by_layer(iteration.get("untrained_pnmi_by_layer")).get(layer)
            if untrained is not None:
                subject = f"iteration {number}, layer {layer}: PNMI"
                found.append(_higher(subject, pnmi, "untrained", untrained))
        accuracy, share = (iteration.get("masked_accuracy"), iteration.get("commonest_unit_share"))
        if is_number(accuracy) and is_number(share):
            subject = f"iteration {number}: masked accuracy"
            found.append(_higher(subject, accuracy, "commonest unit's share", share))
    for (previous, _, before), (number, _, after) in zip(peaks, peaks[1:], strict=False):
        subject, note = (f"iteration {number}: best PNMI", _unequal(units[number], units[previous]))
        found.append(_higher(subject, after, f"iteration {previous}", before, note))
    for name in ("wer", "cer"):
        rates = report.get(name) or {}
        pretrained, scratch = rates.get("pretrained"), rates.get("scratch")
        if is_number(pretrained) and is_number(scratch):
            holds = pretrained < scratch
            sign = "<" if holds else ">="
            a, b = f"{100 * pretrained:.1f} %", f"{100 * scratch:.1f} %"
            text = f"{name.upper()} {a} pre-trained {sign} {b} from scratch"
            found.append(Claim(holds, text))
    return found


def verdict(report: Mapping[str, Any]) -> str:
    """One phrase: whether the units carry more about phones than MFCC clusters do."""
    pnmi = next((claim for claim in claims(report) if "MFCC" in claim.text), None)
    if pnmi is None:
        return "PNMI was not measured against MFCC"
    return pnmi.text if pnmi.holds else f"did not get there: {pnmi.text}"


def best_layers(report: Mapping[str, Any]) -> list[tuple[int, int, float]]:
    """(iteration from 1, its best layer, that layer's PNMI) of each iteration that has them."""
    peaks = []
    for number, iteration in enumerate(report.get("iterations") or [], start=1):
        layer = best_layer(iteration)
        pnmi = by_layer(iteration.get("pnmi_by_layer"))
        if layer in pnmi:
            peaks.append((number, layer, pnmi[layer]))
    return peaks


def apart(a: float, b: float) -> tuple[str, str]:
    """Both numbers with three decimals, or as many up to five as tell them apart."""
    for digits in range(3, 6):
        texts = f"{a:.{digits}f}", f"{b:.{digits}f}"
        if texts[0] != texts[1]:
            return texts
    return f"{a:.3f}", f"{b:.3f}"


def _higher(subject: str, value: float, rival: str, rival_value: float, note: str = "") -> Claim:
    a, b = apart(value, rival_value)
    holds = value > rival_value
    return Claim(holds, f"{subject} {a} {'>' if holds else '<='} {rival} {b}", note)


def _unequal(units: Any, rival_units: Any) -> str:
    """More units raise PNMI by themselves, so a comparison across sizes says so."""
    if None in (units, rival_units) or units == rival_units:
        return ""
    return f"K = {units} against {rival_units}"
