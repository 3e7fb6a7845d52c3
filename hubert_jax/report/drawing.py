"""Matplotlib figures as inline SVG whose colours follow the page's light or dark scheme."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Matplotlib draws in these stand-in colours; `svg` puts the page's CSS variables in their place.
INK, MUTED, RULE = "#010203", "#010204", "#010205"
SERIES = ("#010211", "#010212", "#010213", "#010214")
_VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule"} | {
    colour: f"--series-{i}" for i, colour in enumerate(SERIES, start=1)
}
_STYLE = {
    "font.size": 11,
    "font.family": "sans-serif",
    "svg.fonttype": "none",  # text stays text: it can be searched, and takes the page's font
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}


def svg(
    name: str,
    label: str,
    size: tuple[float, float],
    paint: Callable[[Figure], None],
    dpi: int = 144,
) -> str:
    """Draws a figure and returns it as an `<svg>` element to be put into an HTML page.

    Args:
      name: prefix of the ids inside, unique on its page (a word).
      label: what the figure shows, for those who cannot see it.
      size: width and height in CSS pixels when it is not scaled.
      paint: draws on the figure that it is given.
      dpi: resolution of images within the figure (72 is one dot per CSS pixel).
    """
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        # One point is one CSS pixel, since an SVG of matplotlib has 72 units to the inch.
        figure = Figure(figsize=(size[0] / 72, size[1] / 72), layout="constrained")
        FigureCanvasSVG(figure)
        paint(figure)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, dpi=dpi, metadata={"Date": None})
    return _inline(file.getvalue(), name, label)


def _inline(text: str, name: str, label: str) -> str:
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>\s*|<style.*?</style>\s*", "", text, flags=re.DOTALL)
    view = re.search(r'viewBox="([^"]+)"', text).group(1)
    width = round(float(view.split()[2]))
    opening = (
        f'<svg viewBox="{view}" role="img" aria-label="{html.escape(label)}" '
        f'style="--natural-width: {width}px">'
    )
    text = re.sub(r"^<svg[^>]*>", lambda _: opening, text)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(url\(|href=")#(?!0102)', rf"\g<1>#{name}-", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text
