"""What a report is made of."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hubert_jax.errors import InputError

# A curve has one array per scalar that was logged, "step" among them; all have one length, and a
# scalar that was not logged at a step is NaN there.
Curve = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class JointCounts:
    """How often each phone met each unit.

    Attributes:
      phones: the P phones' names, one for each row.
      counts: (P, K) non-negative counts of frames; one column for each unit.
      source: where the units come from, for captions ("layer 3, iteration 2, 100 units").
    """

    phones: Sequence[str]
    counts: np.ndarray
    source: str = ""

    def __post_init__(self):
        shape = np.shape(self.counts)
        if len(shape) != 2 or shape[0] != len(self.phones):
            raise ValueError(f"counts of shape {shape} for {len(self.phones)} phones")


@dataclasses.dataclass(frozen=True)
class Example:
    """One utterance to look at.

    Attributes:
      id: the utterance's name.
      waveform: (n,) mono samples at `sample_rate`, int16 or float in [-1, 1).
      units: (T,) unit of each frame; frame t starts at sample `t * sample_rate / rate_hz`.
      phones: (start, end, phone) in seconds, in time order; empty without alignments.
      text: the transcript, "" without one.
      rate_hz: frames per second of `units`.
      sample_rate: samples per second of `waveform`.
    """

    id: str
    waveform: np.ndarray
    units: np.ndarray
    phones: Sequence[tuple[float, float, str]] = ()
    text: str = ""
    rate_hz: int = 50
    sample_rate: int = 16_000


@dataclasses.dataclass(frozen=True)
class ReportData:
    """Everything that `render` shows; each part but `report` may be missing.

    Attributes:
      report: the pipeline's `report.json`. Numbers may be null and keys may be missing. Beside the
        keys that `table` prints, "corpus", "model" and "versions" are mappings (they may be nested)
        of whatever should be listed under "What was run", and "skipped" names stages.
      pretraining: one curve for each iteration: "loss", "masked_accuracy", "unmasked_accuracy".
      finetuning: curves with "loss", by name: "pretrained", "scratch".
      joint: counts of phones and units on the development set.
      example: one development utterance.
      hypotheses: mappings with "id", "reference", "pretrained" and "scratch"; a hypothesis that was
        not made is missing or None.
    """

    report: Mapping[str, Any]
    pretraining: Sequence[Curve] = ()
    finetuning: Mapping[str, Curve] = dataclasses.field(default_factory=dict)
    joint: JointCounts | None = None
    example: Example | None = None
    hypotheses: Sequence[Mapping[str, Any]] = ()


def read_curve(path: str | os.PathLike) -> Curve:
    """Reads a `metrics.jsonl`: one JSON object a line, with "step" and scalars.

    A run that was resumed logs some steps twice: the later line holds. A last line without its
    newline is what an interrupted run leaves, and is not read.

    Raises:
      InputError: the file is missing, or a line is not a JSON object with "step".
    """
    try:
        text = pathlib.Path(path).read_text()
    except FileNotFoundError:
        raise InputError(f"{path}: metrics not found; was the job that writes them run?") from None
    steps: dict[int, dict[str, float]] = {}
    complete, _, _ = text.rpartition("\n")
    for number, line in enumerate(complete.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            step = int(entry["step"])
        except (ValueError, TypeError, KeyError):
            raise InputError(
                f"{path}: line {number} is {line[:60]!r}, expected a JSON object with a step; "
                "delete the line or run the job again"
            ) from None
        scalars = {k: v for k, v in entry.items() if is_number(v)}
        steps.setdefault(step, {}).update(scalars)
    names = {"step"}.union(*steps.values())
    ordered = [steps[step] for step in sorted(steps)]
    return {name: np.array([entry.get(name, math.nan) for entry in ordered]) for name in names}


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number (not null, not a flag, not NaN)."""
    return (
        isinstance(value, int | float | np.number)
        and not isinstance(value, bool)
        and math.isfinite(value)
    )


def by_layer(values: Mapping[Any, Any] | None) -> dict[int, float]:
    """Per-layer numbers in order of their layer; JSON writes the layers as strings."""
    numbers = {int(layer): value for layer, value in (values or {}).items() if is_number(value)}
    return dict(sorted(numbers.items()))


def best_layer(iteration: Mapping[str, Any]) -> int | None:
    """An iteration's `best_layer`, or else the layer with the highest PNMI, if any."""
    if iteration.get("best_layer") is not None:
        return int(iteration["best_layer"])
    pnmi = by_layer(iteration.get("pnmi_by_layer"))
    return max(pnmi, key=pnmi.__getitem__) if pnmi else None
