"""Small pieces of HTML; every text that comes in is escaped unless it says that it is markup."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hubert_jax.report.contents import is_number


def table(caption: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column names its rows; titled columns of numbers are right-aligned.

    Args:
      caption: its title.
      header: column titles; empty for none.
      rows: cells as text.
    """
    rows = [[str(cell) for cell in row] for row in rows]
    numeric = {
        i
        for i in range(1, max(map(len, rows), default=0))
        if header
        and all(row[i][:1].isdigit() or row[i] in ("", "-") for row in rows if i < len(row))
    }
    parts = [f"<table><caption>{html.escape(caption)}</caption>"]
    if header:
        cells = (
            f"<th scope=col{' class=number' if i in numeric else ''}>{html.escape(title)}</th>"
            for i, title in enumerate(header)
        )
        parts.append(f"<thead><tr>{''.join(cells)}</tr></thead>")
    parts.append("<tbody>")
    for name, *cells in rows:
        parts.append(f"<tr><th scope=row>{html.escape(name)}</th>")
        for i, cell in enumerate(cells, start=1):
            parts.append(f"<td{' class=number' if i in numeric else ''}>{html.escape(cell)}</td>")
        parts.append("</tr>")
    return "".join([*parts, "</tbody></table>"])


def scrolling(markup: str) -> str:
    """`markup` in a box that scrolls sideways where the screen is too narrow."""
    return f'<div class="scroll">{markup}</div>'


def columns(*markup: str) -> str:
    """Blocks of markup side by side where there is room."""
    blocks = "".join(scrolling(block) for block in markup if block)
    return f'<div class="columns">{blocks}</div>' if blocks else ""


def figure(pictures: Sequence[str], caption: str, wide: bool = False) -> str:
    """SVG elements with one caption (text); wide ones scroll sideways on a narrow screen.

    Newlines part the caption into paragraphs.
    """
    content = "".join(pictures)
    kind = "scroll wide" if wide else "panels"
    text = "".join(paragraph(part) for part in caption.split("\n"))
    hint = '<p class="hint">Scroll sideways to see all of it.</p>' if wide else ""
    return (
        f'<figure>{hint}<div class="{kind}">{content}</div><figcaption>{text}</figcaption></figure>'
    )


def absent(reason: str) -> str:
    """A line in place of what this report lacks."""
    return f'<p class="absent">{html.escape(reason)}</p>'


def paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def section(title: str, *markup: str) -> str:
    """A heading (text) and what stands under it (markup)."""
    return f"<section><h2>{html.escape(title)}</h2>{''.join(markup)}</section>"


def flattened(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """(name, value) rows of a mapping that may be nested, as a reader would write them."""
    rows = []
    for key, value in values.items():
        name = f"{prefix}{str(key).replace('_', ' ')}"
        if isinstance(value, Mapping):
            rows.extend(flattened(value, f"{name}, "))
        else:
            rows.append((name, _shown(value)))
    return rows


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(_shown(part) for part in value)
    if is_number(value):
        return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
    return str(value)
