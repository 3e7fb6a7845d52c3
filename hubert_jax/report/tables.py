"""The tables of a report, which page and terminal share."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from hubert_jax.report.claims import claims, verdict
from hubert_jax.report.rehearsal import shrunk

_EMPTY = {"", "-"}


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of text under a header; the first column names the rows."""

    title: str
    header: list[str]
    rows: list[list[str]]

    def is_numeric(self, column: int) -> bool:
        """Whether a column holds figures only, which stand to the right."""
        cells = [row[column] for row in self.rows]
        return column > 0 and all(cell[:1].isdigit() or cell in _EMPTY for cell in cells)


def tables(report: Mapping[str, Any]) -> dict[str, Table]:
    """Tables by name, only those that the report has figures for."""
    corpus, seconds = report["corpus"].items(), report["seconds"]
    found = {
        "quality": _quality(report),
        "features": _features(report["features"]),
        "prediction": Table("Prediction of masked units", ["", "accuracy", "majority baseline"], [
            [i["name"], _figure(i["masked_accuracy"]), _figure(i["commonest_unit_share"])]
            for i in report["iterations"] if i["masked_accuracy"] is not None]),
        "recognition": _recognition(report),
        "export": Table("Largest absolute difference of exported networks", ["", ""], [
            [name, "not compared" if difference is None else f"{difference:.1e}"]
            for name, difference in report["export"]["by_folder"].items()]),
        "corpus": Table("Corpus", ["", "utterances", "hours", "speakers"], [
            [split, f"{of['utterances']:,}", f"{of['seconds'] / 3600:.2f}", f"{of['speakers']:,}"]
            for split, of in corpus]),
        "model": Table("Model", ["", ""], [[k, f"{v:,}"] for k, v in report["model"].items()]),
        "versions": Table("Versions", ["", ""], [[k, v] for k, v in report["versions"].items()]),
        "seconds": Table("Seconds", ["", "", ""], [
            [stage, f"{taken:.1f}", "skipped in this run" if stage in report["skipped"] else ""]
            for stage, taken in (seconds and seconds | {"total": sum(seconds.values())}).items()]),
        "rehearsed": Table("Rehearsal", ["", "proven", "the recipe's value -> here"], [
            [stage, found["proven"], shrunk(found["shrunk"])]
            for stage, found in report["rehearsed"].items()]),
        "claims": Table("Claims", ["holds", ""], [
            ["yes" if claim.holds else "NO", claim.text + f" ({claim.note})" * bool(claim.note)]
            for claim in claims(report)]),
    }  # fmt: skip
    return {name: table for name, table in found.items() if table.rows}


def text(report: Mapping[str, Any]) -> str:
    """The report as aligned plain text, whose last line is the verdict."""
    lines = []
    for name, table in tables(report).items():
        if name not in ("corpus", "model", "versions"):
            lines += [table.title, *_aligned(table), ""]
    return "\n".join([*lines, f"verdict: {verdict(report)}"])


def _figure(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _percent(rate: float | None) -> str:
    """A rate, or "-" where there is none, as of a split without transcripts."""
    return "-" if rate is None else f"{100 * rate:.1f} %"


def _recognition(report: Mapping[str, Any]) -> Table:
    """One row a recogniser; columns of a search where any recogniser has one."""
    ways = {"WER": "greedy_wer", "CER": "greedy_cer"}
    searched = [name for name in report["wer"] if report["wer"][name] != report["greedy_wer"][name]]
    if searched:
        ways = {f"{what}, greedy": key for what, key in ways.items()}
        ways |= {"WER, search": "wer", "CER, search": "cer"}
    start = report["started_from"]
    return Table("Speech recognition", ["", *ways, "started from"], [
        [name, *(_percent(report[key][name]) for key in ways.values()), start.get(name, "-")]
        for name in report["wer"]])  # fmt: skip


def _quality(report: Mapping[str, Any]) -> Table:
    """One row a feature, two columns an iteration; what is given at two frame rates comes last."""
    iterations, mfcc = report["iterations"], report["mfcc"]
    header, columns = [""], []
    rows = [[f"MFCC, K = {mfcc['k']}"], ["targets of training"], ["best layer"]]
    for each in iterations:
        header += [f"{each['name']}, K = {each['k']}" if each["k"] else each["name"], "untrained"]
        columns += [each["pnmi_by_layer"], each["untrained_pnmi_by_layer"]]
        rows[0] += [_figure(mfcc["pnmi"]), ""]
        rows[1] += [_figure(each["targets_pnmi"]), ""]
        rows[2] += [_figure(each["best_layer"], digits=0), ""]
    for layer in sorted(set().union(*columns), key=int):
        rows.insert(-1, [f"layer {layer}", *(_figure(column.get(layer)) for column in columns)])
    after = [each["after_steps"] for each in iterations]
    if shared := next((found["steps"] for found in (mfcc["after_steps"], *after) if found), None):
        steps = f"after {', '.join(shared)}"
        of_mfcc = [f"MFCC {steps}"], [mfcc["after_steps"].get("pnmi")] * len(iterations)
        of_best = [f"best layer {steps}"], [found.get("pnmi") for found in after]
        for row, pnmi in (of_mfcc, of_best):
            rows.append(row + [cell for each in pnmi for cell in (_figure(each), "")])
    for what, key in (("targets", "targets_pnmi_by_rate"), ("best layer", "best_pnmi_by_rate")):
        for rate in ("50", "100"):
            figures = (cell for each in iterations for cell in (_figure(each[key].get(rate)), ""))
            rows.append([f"{what} at {rate} Hz", *figures])
    return Table("Target quality (phone-normalised mutual information, PNMI)", header,
                 [row for row in rows if not set(row[1:]) <= _EMPTY])  # fmt: skip


def _features(found: Mapping[str, Any]) -> Table:
    """One row a feature; a column for each figure that any has."""
    figures = {
        "frame accuracy": ("probe", "frame_accuracy"),
        "phone error rate": ("probe", "phone_error_rate"),
        "ABX within speakers": ("abx", "within"),
        "across": ("abx", "across"),
        "of units, within": ("abx_units", "within"),
        "of units, across": ("abx_units", "across"),
    }
    shown = {
        what: at for what, at in figures.items() if any(at[0] in each for each in found.values())
    }
    return Table("Phones by a linear probe, and ABX error", ["", *shown], [
        [name, *(_percent(each.get(kind, {}).get(key)) for kind, key in shown.values())]
        for name, each in found.items()])  # fmt: skip


def _aligned(table: Table) -> list[str]:
    columns = []
    for number, cells in enumerate(zip(table.header, *table.rows, strict=True)):
        width, numeric = max(map(len, cells)), table.is_numeric(number)
        columns.append([cell.rjust(width) if numeric else cell.ljust(width) for cell in cells])
    lines = (f"  {'  '.join(cells)}".rstrip() for cells in zip(*columns, strict=True))
    return [line for line in lines if line]
