"""What the figures of a report say, in plain words."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
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
        if each["control_of"]:
            continue
        name, layer = each["name"], str(each["best_layer"])
        fresh, accuracy = each["untrained_pnmi_by_layer"].get(layer), each["masked_accuracy"]
        if fresh is not None:
            found.append(_higher(f"{name}, layer {layer}: PNMI", _peak(each), "untrained", fresh))
        if accuracy is not None:
            subject, baseline = f"{name}: masked accuracy", each["commonest_unit_share"]
            found.append(_higher(subject, accuracy, "majority baseline", baseline))
    found += _between_iterations(report) + _by_probe(report) + _between_recognisers(report)
    return found


def verdict(report: Mapping[str, Any]) -> str:
    """One line: whether units tell more about phones than MFCC do, and how many claims hold."""
    if report["rehearsed"]:
        return f"rehearsed, not measured: {len(report['rehearsed'])} stage(s)"
    claim, found = _against_mfcc(report), claims(report)
    text = claim.text if claim else "PNMI was not measured against MFCC"
    tally = f"; {sum(c.holds for c in found)} of {len(found)} hold" if found else ""
    return f"{'did not get there: ' if claim and not claim.holds else ''}{text}{tally}"


def sentences(report: Mapping[str, Any]) -> list[str]:
    """What came out of units, of refinement and of recognition, a sentence each, if it was run."""
    if report["rehearsed"]:
        return []
    told = (_of_units(report), _of_refinement(report), _of_recognition(report))
    return [sentence for sentence in told if sentence]


def _of_units(report: Mapping[str, Any]) -> str:
    best, mfcc = _best(report), report["mfcc"]["pnmi"]
    if not best:
        return ""
    layer = str(best["best_layer"])
    text = (
        f"Clusters of layer {layer} of {best['name']} remove {_peak(best):.1%} of the uncertainty "
        "about a frame's phone"
    )
    rivals = {"clusters of MFCC": mfcc}
    rivals["the same layer before training"] = best["untrained_pnmi_by_layer"].get(layer)
    told = [f"{name} {pnmi:.1%}" for name, pnmi in rivals.items() if pnmi is not None]
    return text + (f"; {', '.join(told)}." if told else ".")


def _of_refinement(report: Mapping[str, Any]) -> str:
    """The last iteration against the one before and its control; if it is worse, what taught it."""
    evaluated = [each for each in report["iterations"] if each["pnmi_by_layer"]]
    iterations = [each for each in evaluated if not each["control_of"]]
    if len(iterations) < 2:
        return ""
    before, last = iterations[-2:]
    rivals = [before, *(each for each in evaluated if each["control_of"] == last["name"])]
    more = " (as many steps more on the targets of before)"
    told = [f"{each['name']}{more * bool(each['control_of'])} {_peak(each):.1%}" for each in rivals]
    text = f"Targets made from its own layers bring {last['name']} to {_peak(last):.1%}; "
    text += ", ".join(told)
    taught, teaches = before["targets_pnmi"], last["targets_pnmi"]
    if any(_peak(each) >= _peak(last) for each in rivals) and taught and teaches:
        less = " less than" if teaches < taught else ""
        text += f". Its targets tell {teaches:.1%},{less} those of {before['name']} {taught:.1%}"
    return text + "."


def _of_recognition(report: Mapping[str, Any]) -> str:
    scratch = {name: start == "scratch" for name, start in report["started_from"].items()}
    transcripts, cer, wer = report["transcripts"], report["greedy_cer"], report["wer"]
    for name in scratch:
        rivals = [r for r in scratch if scratch[r] and transcripts.get(r) == transcripts.get(name)]
        if scratch[name] or cer.get(name) is None or not rivals or cer.get(rivals[0]) is None:
            continue
        text = (
            f"Of new speakers' letters {cer[name]:.1%} are wrong with pre-training ({name}) and "
            f"{cer[rivals[0]]:.1%} without ({rivals[0]})"
        )
        if wer[name] != (greedy := report["greedy_wer"][name]):
            text += f"; beam search brings the word error rate from {greedy:.1%} to {wer[name]:.1%}"
        return text + "."
    return ""


def _against_mfcc(report: Mapping[str, Any]) -> Claim | None:
    best, mfcc = _best(report), report["mfcc"]
    if not best or mfcc["pnmi"] is None:
        return None
    subject = f"best layer {best['best_layer']} of {best['name']}: PNMI"
    notes = [_unequal(best["k"], mfcc["k"])]
    if interval := best.get("best_over_mfcc", {}).get("utterances"):
        notes.append(_drawn(interval))
    return _higher(subject, _peak(best), "MFCC", mfcc["pnmi"], ", ".join(filter(None, notes)))


def _between_iterations(report: Mapping[str, Any]) -> list[Claim]:
    """Each iteration against the one before, and against as many steps on the same targets."""
    evaluated = [each for each in report["iterations"] if each["pnmi_by_layer"]]
    rivals = list(itertools.pairwise(each for each in evaluated if not each["control_of"]))
    for control in evaluated:
        rivals += [(control, each) for each in evaluated if each["name"] == control["control_of"]]
    found = []
    for before, after in rivals:
        notes = [_unequal(after["k"], before["k"])]
        if interval := after["over"].get(before["name"]):
            notes.append(_drawn(interval))
        rival = f"its control {before['name']}" if before["control_of"] else before["name"]
        subject, note = f"{after['name']}: best PNMI", ", ".join(filter(None, notes))
        found.append(_higher(subject, _peak(after), rival, _peak(before), note))
    return found


def _by_probe(report: Mapping[str, Any]) -> list[Claim]:
    """The best layer of each iteration, MFCC and the untrained network, by a frozen probe."""

    def accuracy(name: str) -> float | None:
        return report["features"].get(name, {}).get("probe", {}).get("frame_accuracy")

    found = []
    for each in report["iterations"]:
        name, mfcc = f"{each['name']}, layer {each['best_layer']}", accuracy("MFCC")
        trained, untrained = accuracy(name), accuracy(f"{name}, untrained")
        subject = f"{name}: probe's frame accuracy"
        if trained is not None and mfcc is not None:
            found.append(_higher(subject, trained, "MFCC", mfcc))
        if trained is not None and untrained is not None:
            found.append(_higher(subject, trained, "untrained", untrained))
    return found


def _between_recognisers(report: Mapping[str, Any]) -> list[Claim]:
    """Pre-trained against from scratch with the same transcripts; a search against greedy."""
    scratch = {name: start == "scratch" for name, start in report["started_from"].items()}
    transcripts = report["transcripts"]
    found = []
    for metric, a, b in itertools.product(("wer", "cer"), scratch, scratch):
        rates = {name: rate for name, rate in report[metric].items() if rate is not None}
        alike = transcripts.get(a) == transcripts.get(b)
        if scratch[b] and not scratch[a] and alike and a in rates and b in rates:
            found.append(_lower(metric, a, rates[a], b, rates[b]))
    for name, greedy in report["greedy_wer"].items():
        wer = report["wer"][name]
        if not scratch.get(name) and wer is not None and wer != greedy:
            found.append(_lower("wer", f"{name}, beam search", wer, "greedy", greedy))
    return found


def _lower(metric: str, name: str, rate: float, rival: str, rival_rate: float) -> Claim:
    holds, (a, b) = rate < rival_rate, _apart(100 * rate, 100 * rival_rate, 1)
    return Claim(holds, f"{metric.upper()} {a} % {name} {'<' if holds else '>='} {b} % {rival}")


def _drawn(interval: Sequence[float]) -> str:
    return "difference {:+.3f} to {:+.3f} (95 %, utterances drawn)".format(*interval)


def _best(report: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The iteration whose best layer tells most."""
    iterations = report["iterations"]
    evaluated = [each for each in iterations if each["pnmi_by_layer"] and not each["control_of"]]
    return max(evaluated, key=_peak, default=None)


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
