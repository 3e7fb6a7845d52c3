"""Pictures of the units themselves: which phones they stand for, and where they fall in speech."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
from matplotlib import colors as mpl_colors
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure

from hubert_jax.report import phones as phones_lib
from hubert_jax.report.contents import Example, JointCounts
from hubert_jax.report.drawing import INK, MUTED, RULE, svg

SECONDS_PER_ROW = 4.0
_ROWS = 2
_WIDTH = 1040
_WINDOW, _HOP = 0.016, 0.004  # seconds
# From nothing to a blue that stands out on white and on black alike.
_BLUE = LinearSegmentedColormap.from_list("blue", [(0.2, 0.54, 0.93, 0.0), (0.2, 0.54, 0.93, 1.0)])


def sorted_conditional(joint: JointCounts) -> tuple[list[str], np.ndarray, np.ndarray]:
    """p(phone | unit), with phones in articulatory order and units by their likeliest phone.

    Units of one phone are in falling order of their probability. Phones and units that never
    occurred are left out.

    Returns:
      phones: their names, in the order of the rows.
      units: (K',) the unit of each column.
      conditional: (P', K') float64, columns sum to 1.
    """
    counts = np.asarray(joint.counts, np.float64)
    seen = {phone: counts[i] for i, phone in enumerate(joint.phones) if counts[i].any()}
    names = phones_lib.articulatory_order(seen)
    if not names:
        return [], np.zeros(0, int), np.zeros((0, 0))
    counts = np.stack([seen[name] for name in names])
    units = np.flatnonzero(counts.sum(axis=0))
    conditional = counts[:, units] / counts[:, units].sum(axis=0)
    order = np.lexsort((-conditional.max(axis=0), conditional.argmax(axis=0)))
    return names, units[order], conditional[:, order]


def phone_unit_heat_map(joint: JointCounts) -> str:
    """Heat map of `sorted_conditional`."""
    names, units, conditional = sorted_conditional(joint)
    groups = [phones_lib.group(name) for name in names]
    starts = [i for i, group in enumerate(groups) if i == 0 or group != groups[i - 1]]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.grid(False)
        # A root spreads out the small probabilities, which are most of them.
        axes.imshow(np.sqrt(conditional), cmap=_BLUE, vmin=0, vmax=1, aspect="auto",
                    interpolation="nearest")  # fmt: skip
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.set_xticks([])
        axes.set_xlabel(f"{len(units)} units, sorted by their likeliest phone")
        axes.tick_params(length=0)
        for start, end in zip(starts, [*starts[1:], len(names)], strict=True):
            if start:
                axes.axhline(start - 0.5, color=MUTED, linewidth=0.6)
            axes.annotate(groups[start], (1, (start + end - 1) / 2), (6, 0), fontsize=9,
                          xycoords=("axes fraction", "data"), textcoords="offset points",
                          va="center", color=INK)  # fmt: skip
        scale = figure.colorbar(
            ScalarMappable(Normalize(0, 1), _BLUE), ax=axes, shrink=0.5, pad=0.02
        )
        scale.set_label("p(phone | unit)", fontsize=10)
        # The colours are those of the root, so the ticks are where the root puts them.
        shown = [0, 0.05, 0.25, 0.5, 1]
        scale.set_ticks(np.sqrt(shown), labels=[f"{value:g}" for value in shown])
        scale.outline.set_edgecolor(MUTED)

    label = f"Heat map of the probability of {len(names)} phones given each of {len(units)} units"
    return svg("heatmap", label, (_WIDTH, 80 + 13 * len(names)), paint)


def spectrogram(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """Power spectrogram in decibels below its own maximum, with a Hann window.

    Args:
      waveform: (n,) samples, int16 or float.
      sample_rate: samples per second.

    Returns:
      (frequencies, windows) float64, at most 0 and cut off at -70 dB; row 0 is 0 Hz, the last row
      is half the sample rate. Windows are 16 ms long; window i is centred on second 0.004 i.
    """
    size, step = round(_WINDOW * sample_rate), round(_HOP * sample_rate)
    samples = np.pad(np.asarray(waveform, np.float64), size // 2)
    frames = np.lib.stride_tricks.sliding_window_view(samples, size)[::step]
    power = np.abs(np.fft.rfft(frames * np.hanning(size), axis=1)).T ** 2
    power = power / max(power.max(), np.finfo(float).tiny)
    return 10 * np.log10(np.maximum(power, 1e-7))


def utterance_rows(example: Example, joint: JointCounts | None = None) -> list[str]:
    """Spectrograms of consecutive stretches of `example`, its units and phones under each.

    Args:
      example: the utterance; at most its first two rows of four seconds are drawn.
      joint: gives each unit the colour of its likeliest phone; without it each unit has a colour
        of its own.

    Returns:
      SVG elements in order of time.
    """
    seconds = len(example.waveform) / example.sample_rate
    decibels = spectrogram(example.waveform, example.sample_rate)
    strip = _unit_colours(example, joint)
    names = {phone for _, _, phone in example.phones} | set(joint.phones if joint else ())
    phone_colours = phones_lib.colours(names)
    rows = max(1, min(_ROWS, int(np.ceil(seconds / SECONDS_PER_ROW))))

    def paint_row(figure: Figure, start: float) -> None:
        heights = [5.5, 0.7, 1.5] if example.phones else [5.5, 0.7]
        tracks = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
        figure.get_layout_engine().set(hspace=0.0, h_pad=0.02)
        top, band = tracks[0], tracks[1]
        shown = decibels[:, round(start / _HOP) : round((start + SECONDS_PER_ROW) / _HOP) + 1]
        # Few colours make a small file.
        top.imshow(shown, origin="lower", aspect="auto", cmap=mpl.colormaps["magma"].resampled(24),
                   vmin=-70, vmax=0, interpolation="none",
                   extent=(start - _HOP / 2, start + (shown.shape[1] - 0.5) * _HOP,
                           0, example.sample_rate / 2000))  # fmt: skip
        top.set_ylabel("kHz")
        top.grid(False)
        band.imshow(strip[None], aspect="auto", interpolation="nearest",
                    extent=(*_frame_span(example, seconds), 0, 1))  # fmt: skip
        band.vlines(_change_points(example), 0, 1, color=RULE, linewidth=1)
        _bare(band, "units")
        end = start + SECONDS_PER_ROW
        for i, (begin, stop, phone) in enumerate(_phones_within(example, start, end)):
            top.axvline(begin, color="white", linewidth=0.6, alpha=0.55)
            tracks[2].axvspan(begin, stop, 0.72, 1.0, facecolor=phone_colours[phone], linewidth=0)
            tracks[2].axvline(begin, color=RULE, linewidth=1)
            # Neighbours are named on two lines in turn: many phones are narrower than their name.
            tracks[2].text((begin + stop) / 2, 0.5 - 0.3 * (i % 2), phone, ha="center", va="center",
                           fontsize=8.5)  # fmt: skip
        if example.phones:
            tracks[2].set_ylim(0, 1)
            _bare(tracks[2], "phones")
        tracks[-1].set_xlim(start, end)
        tracks[-1].set_xlabel("seconds")
        tracks[-1].xaxis.set_visible(True)

    found = []
    for row in range(rows):
        start = row * SECONDS_PER_ROW
        label = f"Spectrogram, units and phones of {example.id} from {start:g} s"
        found.append(
            svg(f"speech{row}", label, (_WIDTH, 330), lambda fig, at=start: paint_row(fig, at))
        )
    return found


def _phones_within(example: Example, start: float, end: float) -> list[tuple[float, float, str]]:
    """Segments that reach into the stretch, cut to it."""
    return [
        (max(begin, start), min(stop, end), phone)
        for begin, stop, phone in example.phones
        if begin < end and stop > start
    ]


def _frame_span(example: Example, seconds: float) -> tuple[float, float]:
    """Where the strip of units begins and ends, in seconds.

    Frame t sees 400 samples from sample 320 t (25 ms every 20 ms): its middle 20 ms are drawn.
    """
    margin = 0.5 * (0.025 - 1 / example.rate_hz)
    return margin, margin + len(example.units) / example.rate_hz


def _change_points(example: Example) -> np.ndarray:
    changes = np.flatnonzero(np.diff(example.units)) + 1
    return _frame_span(example, 0.0)[0] + changes / example.rate_hz


def _unit_colours(example: Example, joint: JointCounts | None) -> np.ndarray:
    """(T, 4) RGBA of each frame's unit."""
    units = np.asarray(example.units)
    if joint is None:
        # Multiples of the golden ratio spread consecutive units over the wheel.
        table = {
            unit: phones_lib.spectrum(unit * 0.618034 % 1, light=bool(unit % 2))
            for unit in np.unique(units).tolist()
        }
    else:
        names, seen, conditional = sorted_conditional(joint)
        by_phone = phones_lib.colours(joint.phones)
        likeliest = conditional.argmax(axis=0) if len(seen) else []
        table = {unit: by_phone[names[i]] for unit, i in zip(seen.tolist(), likeliest, strict=True)}
    return np.array([mpl_colors.to_rgba(table.get(unit, "#00000000")) for unit in units.tolist()])


def _bare(axes, name: str) -> None:
    axes.grid(False)
    axes.set_yticks([0.5], [name])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
