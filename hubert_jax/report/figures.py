"""Figures as inline SVG, whose colours follow the page's light or dark scheme."""

import html
import io
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import LinearSegmentedColormap, PowerNorm, hsv_to_rgb
from matplotlib.figure import Figure

from hubert_jax.frames import SAMPLE_RATE
from hubert_jax.units.alignments import Alignment

# Stand-ins, for which `_svg` puts the style sheet's variables.
_INK, _MUTED, _RULE, *_SERIES = (f"#01020{i}" for i in range(3, 10))
_VARIABLES = ("ink", "muted", "rule", "series-1", "series-2", "series-3", "series-4")
_STYLE: Any = {
    **{f"{text}color": _INK for text in ("text.", "axes.label", "xtick.label", "ytick.label")},
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), _MUTED),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    **{"axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True, "grid.color": _RULE},
    **{"axes.titlelocation": "left", "axes.titleweight": "bold", "font.size": 11},
    "svg.fonttype": "none",  # text can be searched
}
_BLUE = LinearSegmentedColormap.from_list("blue", [(0.2, 0.54, 0.93, 0.0), (0.2, 0.54, 0.93, 1.0)])
# CMUdict's phones by manner of articulation, then by place from the lips backwards.
_GROUPS = {
    "silence": "SIL SP SPN NSN",
    "stops": "P B T D K G",
    "affricates": "CH JH",
    "fricatives": "F V TH DH S Z SH ZH HH",
    "nasals": "M N NG",
    "approximants": "L R W Y",
    "vowels": "IY IH EY EH AE AA AO OW UH UW AH ER",
    "diphthongs": "AY AW OY",
}
_Units = tuple[np.ndarray, int, Mapping[int, str]]
_GROUP = {phone: group for group, phones in _GROUPS.items() for phone in phones.split()}
_PLACE = {phone: place for place, phone in enumerate(_GROUP)}


@mpl.rc_context(_STYLE)
def curves(title: str, lines: Mapping[str, Any], baseline: float | None = None) -> str:
    """Lines by name, each (2, n) of steps and values; a dotted one for the majority baseline."""
    figure = Figure(figsize=(6.7, 4.2), layout="constrained")
    axes = figure.subplots(subplot_kw={"title": title, "xlabel": "step"})
    for colour, (name, points) in zip(_SERIES * len(lines), lines.items(), strict=False):
        axes.plot(*points, color=colour, label=name)
    if baseline is not None:
        axes.axhline(baseline, color=_MUTED, linestyle=":", label="majority baseline")
    axes.legend()
    return _svg(figure, title)


@mpl.rc_context(_STYLE)
def bars(iterations: Sequence[Mapping[str, Any]], mfcc: float | None) -> str:
    """PNMI by layer of a report's `iterations`, trained and untrained; MFCC's as a line."""
    figure = Figure(figsize=(6.7 * len(iterations), 4.2), layout="constrained")
    panels = figure.subplots(1, len(iterations), sharey=True, squeeze=False)[0]
    for axes, each in zip(panels, iterations, strict=True):
        for i, kind in enumerate(("", "untrained_")):
            pnmi = each[f"{kind}pnmi_by_layer"]
            drawn = axes.bar([int(layer) + 0.4 * i for layer in pnmi], list(pnmi.values()), 0.4,
                             color=_SERIES[3 * i], label=("trained", "untrained")[i])  # fmt: skip
            axes.bar_label(drawn, fmt="%.3f", fontsize=8)
        if mfcc is not None:
            axes.axhline(mfcc, color=_SERIES[1], linestyle="--", label="MFCC clusters")
        axes.set(title=each["name"], xlabel="layer (0 is the input to the first block)")
        axes.xaxis.get_major_locator().set_params(integer=True)
    panels[0].set_ylabel("PNMI")
    panels[0].legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=3)
    return _svg(figure, "PNMI by layer")


@mpl.rc_context(_STYLE)
def quality_by_layer(quality: Sequence[Mapping[str, Any]]) -> str:
    """Phone purity, cluster purity and PNMI of networks' layers: an SVG file's content.

    Rows of `analyse`: means and standard deviations by `feature`, `layer` and `clusters`; lines for
    networks, dotted where the layer is None.
    """
    figure = Figure(figsize=(14.4, 4.6), layout="constrained")
    names = list(dict.fromkeys(row["feature"] for row in quality if row["layer"] is not None))
    clusters = list(dict.fromkeys(row["clusters"] for row in quality))
    metrics = {"phone_purity": "phone purity", "cluster_purity": "cluster purity", "pnmi": "PNMI"}
    panels = figure.subplots(1, 3)
    for axes, (metric, title) in zip(panels, metrics.items(), strict=True):
        for k, colour in zip(clusters, _SERIES * len(clusters), strict=False):
            rows = [row for row in quality if row["clusters"] == k]
            for row in rows:
                if row["layer"] is None:
                    axes.axhline(row[metric], color=colour, linestyle=":", label=f"MFCC, K = {k}")
            for name, style in zip(names, ("-", "--", "-.") * len(names), strict=False):
                found = sorted(
                    (row["layer"], row[metric], row[f"{metric}_sd"] or 0.0)
                    for row in rows
                    if row["feature"] == name
                )
                axes.errorbar(*zip(*found, strict=True), color=colour, linestyle=style, marker="o",
                              markersize=3, label=f"{name}, K = {k}")  # fmt: skip
        axes.set(title=title, xlabel="layer (0 is the input to the first block)")
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return _file(_svg(figure, "Quality of units by layer"))


@mpl.rc_context(_STYLE)
def search_of_weights(trials: Sequence[Mapping[str, float]]) -> str:
    """Error rates of a search's trials, in order and by each weight: an SVG file's content."""
    rates = 100 * np.array([trial["error_rate"] for trial in trials])
    numbers, best = np.arange(1, len(rates) + 1), int(rates.argmin())
    weights = [name for name in trials[0] if name not in ("error_rate", "beam")]
    figure = Figure(figsize=(4.2 * (1 + len(weights)), 4.0), layout="constrained")
    panels = figure.subplots(1, 1 + len(weights), sharey=True)
    panels[0].step(numbers, np.minimum.accumulate(rates), where="post", color=_MUTED, label="least")
    panels[0].xaxis.get_major_locator().set_params(integer=True)
    columns = {"trial": numbers}
    columns |= {name: np.array([trial[name] for trial in trials]) for name in weights}
    for axes, (name, values) in zip(panels, columns.items(), strict=True):
        axes.plot(values, rates, "o", color=_SERIES[0], markersize=4)
        axes.plot(values[best], rates[best], "o", color=_SERIES[1], label="best")
        axes.set_xlabel(name)
    panels[0].set_ylabel("WER, %")
    panels[0].legend()
    return _file(_svg(figure, "Weights that were tried"))


def _file(drawn: str) -> str:
    """An `<svg>` as a file of its own, with the page's colours."""
    colours = pathlib.Path(__file__).with_name("templates").joinpath("style.css").read_text()
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return drawn.replace("<svg", f"<svg {spaces}", 1).replace(">", f"><style>{colours}</style>", 1)


def _sort_by_phone(phones: Sequence[str], counts: np.ndarray) -> tuple[list[str], Any, Any]:
    """Phones in articulatory order, units by likeliest phone, and p(phone | unit) (P', K').

    Of (P, K) counts of frames; what never occurred is left out.
    """
    seen = np.flatnonzero(counts.any(axis=1)).tolist()
    seen.sort(key=lambda i: (_PLACE.get(phones[i], len(_PLACE)), phones[i]))
    units = np.flatnonzero(counts.any(axis=0))
    conditional = counts[seen][:, units] / counts.sum(axis=0)[units]
    order = np.lexsort((-conditional.max(axis=0), conditional.argmax(axis=0)))
    return [phones[i] for i in seen], units[order], conditional[:, order]


@mpl.rc_context(_STYLE)
def heat_map(phones: Sequence[str], counts: np.ndarray) -> tuple[str, dict[int, str]]:
    """p(phone | unit), of (P, K) counts of frames, and each unit's likeliest phone."""
    phones, numbers, conditional = _sort_by_phone(phones, counts)
    likeliest = {u: phones[p] for u, p in zip(numbers, conditional.argmax(0), strict=True)}
    figure = Figure(figsize=(14.4, 1.1 + len(phones) / 5.5), layout="constrained")
    axes = figure.subplots()
    axes.grid(False)
    # A root spreads out the small probabilities, which are most of them.
    image = axes.imshow(conditional, cmap=_BLUE, norm=PowerNorm(0.5, 0, 1), aspect="auto",
                        interpolation="nearest")  # fmt: skip
    axes.set_yticks(range(len(phones)), phones, fontsize=8)
    units = f"{conditional.shape[1]} units"
    axes.set(xticks=[], xlabel=f"{units}, sorted by their likeliest phone")
    groups = [_GROUP.get(phone, "others") for phone in phones]
    for group in dict.fromkeys(groups):
        first, size = groups.index(group), groups.count(group)
        axes.axhline(first - 0.5, color=_MUTED, linewidth=0.6)
        axes.annotate(group, (1.01, first + (size - 1) / 2), va="center", fontsize=9,
                      xycoords=("axes fraction", "data"))  # fmt: skip
    figure.colorbar(image, shrink=0.5, ticks=[0, 0.05, 0.25, 0.5, 1], label="p(phone | unit)")
    return _svg(figure, f"Probability of {len(phones)} phones given each of {units}"), likeliest


@mpl.rc_context(_STYLE)
def speech(
    waveform: np.ndarray, bands: Mapping[str, _Units], phones: Alignment | None, start: float
) -> str:
    """Four seconds of int16 audio from `start`, over its phones and, by name, bands of units.

    Of each: units (T,), their rate in Hz, and the phone that is likeliest with each.
    """
    figure = Figure(figsize=(14.4, 4.5 + 0.7 * len(bands)), layout="constrained")
    heights = [1.2, 5, *[0.7] * len(bands), 1.3]
    wave, top, *strips, names = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    wave.plot(
        np.arange(0, len(waveform), 16) / SAMPLE_RATE, waveform[::16], color=_SERIES[0], lw=0.4
    )
    with np.errstate(divide="ignore"):  # digital silence
        power, *_, image = top.specgram(waveform, NFFT=256, Fs=SAMPLE_RATE, noverlap=192,
                                        interpolation="none", cmap="magma")  # fmt: skip
    loudest = 10 * np.log10(max(power.max(), 1e-9))
    image.set_clim(loudest - 70, loudest)
    top.set(yticks=[0, 4000, 8000], yticklabels=["0", "4", "8"], ylabel="kHz")
    edge = 0.0025  # a frame sees 25 ms; its middle 20 ms are drawn
    for strip, (units, rate_hz, likeliest) in zip(strips, bands.values(), strict=True):
        colours = [
            _colour(likeliest[u]) if u in likeliest else _wheel(0.618034 * u % 1) for u in units
        ]
        strip.imshow([colours], aspect="auto", interpolation="nearest",
                     extent=(edge, edge + len(units) / rate_hz, 0, 1))  # fmt: skip
    spans = zip(phones.starts, phones.ends, phones.phones, strict=True) if phones else ()
    for i, (begin, end, phone) in enumerate(spans):
        top.axvline(begin, color="white", linewidth=0.6, alpha=0.55)
        names.axvspan(begin, end, 0.72, 1.0, facecolor=_colour(phone), linewidth=0)
        # On two lines in turn: many phones are narrower than their name.
        names.text((begin + end) / 2, 0.5 - 0.3 * (i % 2), phone, ha="center", va="center",
                   fontsize=8.5, clip_on=True)  # fmt: skip
    labels = {"wave": wave, **dict(zip(bands, strips, strict=True)), "phones" * bool(phones): names}
    for label, axes in labels.items():
        axes.set_yticks([np.mean(axes.get_ylim())], [label])
    for axes in figure.axes:
        axes.grid(False)
    names.set(xlim=(start, start + 4), xlabel="seconds")
    return _svg(figure, f"Waveform, spectrogram, units and phones from {start:g} s")


def _colour(phone: str) -> Any:
    """Hue follows the articulatory order; silence and what is unknown are grey."""
    if _GROUP.get(phone, "silence") == "silence":
        return (0.55, 0.55, 0.55)
    return _wheel(_PLACE[phone] / len(_PLACE), _PLACE[phone] % 2)


def _wheel(position: float, light: int = 0) -> np.ndarray:
    return hsv_to_rgb((0.9 * position, 0.75 - 0.25 * light, 0.7 + 0.2 * light))


def _svg(figure: Figure, label: str) -> str:
    """The figure as `<svg>`; ids are made from `label`, which is unique on its page."""
    file, unsaid = io.StringIO(), dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context({"svg.hashsalt": label}):
        figure.savefig(file, format="svg", transparent=True, dpi=144, metadata=unsaid)
    found = file.getvalue()
    # Groups are numbered in each figure anew, and nothing refers to them.
    found = re.sub(r'<g id="[^"]*">', "<g>", found[found.index("<defs>") :])
    for colour, name in zip((_INK, _MUTED, _RULE, *_SERIES), _VARIABLES, strict=True):
        found = found.replace(colour, f"var(--{name})")
    width, height = 72 * figure.get_size_inches()  # matplotlib's SVG has 72 units to the inch
    size = f'viewBox="0 0 {width:g} {height:g}" style="max-width: {width:g}px"'
    return f'<svg {size} role="img" aria-label="{html.escape(label)}">{found}'
