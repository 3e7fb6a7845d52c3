"""What the figures of a report say, in plain words."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Claim:
    """One comparison: whether it came out as it should, its figures in words, and a caveat."""

    holds: bool
    text: str
    note: str = ""


def claims(report: Mapping[str, Any]) -> list[Claim]:
    """Every comparison that a report's figures allow, the one of PNMI with MFCC first.

    None of a rehearsal, whose figures say nothing.
    """
    if report["rehearsed"]:
        return []
    found = [claim for claim in [_against_mfcc(report)] if claim]
    for each in report["iterations"]:
        name, layer = each["name"], str(each["best_layer"])
        fresh, accuracy = each["untrained_pnmi_by_layer"].get(layer), each["masked_accuracy"]
        if fresh is not None:
            found.append(_higher(f"{name}, layer {layer}: PNMI", _peak(each), "untrained", fresh))
        if accuracy is not None:
            subject, baseline = f"{name}: masked accuracy", each["commonest_unit_share"]
            found.append(_higher(subject, accuracy, "majority baseline", baseline))
    evaluated = [each for each in report["iterations"] if each["pnmi_by_layer"]]
    for before, after in itertools.pairwise(evaluated):
        subject, note = f"{after['name']}: best PNMI", _unequal(after["k"], before["k"])
        found.append(_higher(subject, _peak(after), before["name"], _peak(before), note))
    scratch = {name: start == "scratch" for name, start in report["started_from"].items()}
    for metric, a, b in itertools.product(("wer", "cer"), scratch, scratch):
        rates = {name: rate for name, rate in report[metric].items() if rate is not None}
        if scratch[b] and not scratch[a] and a in rates and b in rates:
            rate, rival = _apart(100 * rates[a], 100 * rates[b], 1)
            holds = rates[a] < rates[b]
            text = f"{metric.upper()} {rate} % {a} {'<' if holds else '>='} {rival} % {b}"
            found.append(Claim(holds, text))
    return found


def verdict(report: Mapping[str, Any]) -> str:
    """One line: whether units tell more about phones than MFCC do, and how many claims hold."""
    if report["rehearsed"]:
        return f"rehearsed, not measured: {len(report['rehearsed'])} stage(s)"
    claim, found = _against_mfcc(report), claims(report)
    text = claim.text if claim else "PNMI was not measured against MFCC"
    tally = f"; {sum(c.holds for c in found)} of {len(found)} hold" if found else ""
    return f"{'did not get there: ' if claim and not claim.holds else ''}{text}{tally}"


def _against_mfcc(report: Mapping[str, Any]) -> Claim | None:
    evaluated, mfcc = [x for x in report["iterations"] if x["pnmi_by_layer"]], report["mfcc"]
    if not evaluated or mfcc["pnmi"] is None:
        return None
    best = max(evaluated, key=_peak)
    subject = f"best layer {best['best_layer']} of {best['name']}: PNMI"
    notes = [_unequal(best["k"], mfcc["k"])]
    if interval := best.get("best_over_mfcc", {}).get("utterances"):
        notes.append("difference {:+.3f} to {:+.3f} (95 %, utterances drawn)".format(*interval))
    return _higher(subject, _peak(best), "MFCC", mfcc["pnmi"], ", ".join(filter(None, notes)))


def _peak(iteration: Mapping[str, Any]) -> float:
    return iteration["pnmi_by_layer"][str(iteration["best_layer"])]


def _higher(subject: str, value: float, rival: str, rival_value: float, note: str = "") -> Claim:
    holds, (a, b) = value > rival_value, _apart(value, rival_value, 3)
    return Claim(holds, f"{subject} {a} {'>' if holds else '<='} {rival} {b}", note)


def _apart(a: float, b: float, digits: int) -> tuple[str, str]:
    """Both with `digits` decimals, or with up to two more where they would look alike."""
    more = next((d for d in range(digits, digits + 3) if f"{a:.{d}f}" != f"{b:.{d}f}"), digits)
    return f"{a:.{more}f}", f"{b:.{more}f}"


def _unequal(units: int, rival_units: int) -> str:
    """More units raise PNMI by themselves."""
    return "" if units == rival_units else f"K = {units} against {rival_units}"
