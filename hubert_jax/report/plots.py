"""Curves and bars: how training went and what the layers know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from hubert_jax.report.claims import best_layers
from hubert_jax.report.contents import Curve, by_layer, is_number
from hubert_jax.report.drawing import INK, MUTED, SERIES, svg

_SIZE = (480, 300)
_POINTS = 120


def thinned(curve: Curve, scalar: str, points: int = _POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one scalar, in at most `points` means of consecutive logged values.

    Steps at which the scalar was not logged, or was not finite, are left out.

    Returns:
      Steps and values, float64, one length; both empty where the scalar was never logged.
    """
    values = np.asarray(curve.get(scalar, ()), np.float64)
    steps = np.asarray(curve["step"], np.float64)[: len(values)]
    logged = np.isfinite(values)
    steps, values = steps[logged], values[logged]
    if len(values) <= points:
        return steps, values
    parts = np.array_split(np.arange(len(values)), points)
    return tuple(np.array([series[part].mean() for part in parts]) for series in (steps, values))


def logged(curve: Curve, scalar: str) -> bool:
    """Whether a curve has at least one finite value of `scalar`."""
    return len(thinned(curve, scalar)[0]) > 0


def pretraining_loss(curves: Sequence[Curve]) -> str:
    """The loss of every iteration against the step."""

    def paint(figure: Figure) -> None:
        axes = _curve_axes(figure, "Pre-training loss", "loss (nats per masked frame)")
        for i, curve in enumerate(curves):
            axes.plot(*thinned(curve, "loss"), color=SERIES[i % 2], label=f"iteration {i + 1}")
        axes.legend()

    return svg("loss", "Pre-training loss against the step, by iteration", _SIZE, paint)


def accuracy(curve: Curve, number: int, commonest: float | None) -> str:
    """Masked and unmasked accuracy of iteration `number`, beside the commonest unit's share."""

    def paint(figure: Figure) -> None:
        axes = _curve_axes(figure, f"Accuracy, iteration {number}", "share of frames right")
        axes.plot(*thinned(curve, "masked_accuracy"), color=SERIES[0], label="masked frames")
        steps, values = thinned(curve, "unmasked_accuracy")
        if len(steps):
            axes.plot(steps, values, color=SERIES[1], linestyle="--", label="unmasked frames")
        if is_number(commonest):
            axes.axhline(commonest, color=MUTED, linestyle=":", label="commonest unit's share")
        axes.set_ylim(bottom=0)
        axes.legend()

    label = f"Masked and unmasked accuracy against the step, iteration {number}"
    return svg(f"accuracy{number}", label, _SIZE, paint)


def finetuning_loss(curves: Mapping[str, Curve]) -> str:
    """The CTC loss of the pre-trained network and of the one from scratch."""
    names = {"pretrained": "pre-trained", "scratch": "from scratch"}

    def paint(figure: Figure) -> None:
        axes = _curve_axes(figure, "Fine-tuning loss", "CTC loss")
        for i, (name, curve) in enumerate(curves.items()):
            line = "-" if name != "scratch" else "--"
            colour = SERIES[i % len(SERIES)]
            axes.plot(*thinned(curve, "loss"), line, color=colour, label=names.get(name, name))
        axes.set_ylim(bottom=0)
        axes.legend()

    return svg("finetuning", "Fine-tuning loss against the step", _SIZE, paint)


def pnmi_by_layer(report: Mapping[str, Any], number: int) -> str:
    """Bars of PNMI for each layer of iteration `number`, beside the untrained network's.

    All iterations of a report share one scale, so that their panels can be compared.
    """
    iterations = report["iterations"]
    mfcc = (report.get("mfcc") or {}).get("pnmi")
    trained = by_layer(iterations[number - 1].get("pnmi_by_layer"))
    untrained = by_layer(iterations[number - 1].get("untrained_pnmi_by_layer"))
    layers = sorted(trained.keys() | untrained.keys())
    best = next((layer for found, layer, _ in best_layers(report) if found == number), None)
    highest = max(
        [mfcc] * is_number(mfcc)
        + [
            value
            for iteration in iterations
            for key in ("pnmi_by_layer", "untrained_pnmi_by_layer")
            for value in by_layer(iteration.get(key)).values()
        ],
        default=1.0,
    )

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.set_title(f"PNMI by layer, iteration {number}")
        width = 0.4 if untrained else 0.7
        offset = width / 2 if untrained else 0.0
        place = np.arange(len(layers), dtype=float)
        axes.bar(place - offset, [trained.get(i, 0.0) for i in layers], width,
                 color=SERIES[0], label="trained")  # fmt: skip
        if untrained:
            axes.bar(place + offset, [untrained.get(i, 0.0) for i in layers], width,
                     color=SERIES[3], label="untrained")  # fmt: skip
        if is_number(mfcc):
            axes.axhline(mfcc, color=SERIES[1], linestyle="--", label="MFCC clusters")
        if best is not None:
            # A label that the line of MFCC would strike through stands on the line instead.
            top = trained[best]
            if is_number(mfcc) and 0 < mfcc - top < 0.08 * highest:
                top = mfcc
            axes.annotate(f"{trained[best]:.3f}", (layers.index(best) - offset, top),
                          (0, 3), textcoords="offset points", ha="center", color=INK,
                          fontweight="bold", fontsize=10)  # fmt: skip
        axes.set_xticks(place, [str(layer) for layer in layers])
        axes.set_xlabel("layer (0 is the input to the first block)")
        axes.set_ylabel("PNMI")
        axes.set_ylim(0, 1.12 * highest or 1.0)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3)

    return svg(f"pnmi{number}", f"PNMI by layer after iteration {number}", _SIZE, paint)


def _curve_axes(figure: Figure, title: str, ylabel: str) -> Axes:
    axes = figure.subplots()
    axes.set_title(title)
    axes.set_xlabel("step")
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    return axes
