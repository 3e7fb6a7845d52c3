"""Hypotheses beside their references, with what differs marked."""

from __future__ import annotations

import dataclasses
import html
import itertools
from typing import Literal

import numpy as np

Kind = Literal["same", "wrong", "extra", "missing"]


@dataclasses.dataclass(frozen=True)
class Edit:
    """A run of characters of one kind.

    `text` is the hypothesis's; for "missing" it is the reference's, as the hypothesis has none.
    """

    kind: Kind
    text: str


def edits(reference: str, hypothesis: str) -> list[Edit]:
    """Runs of equal, substituted, inserted and deleted characters of a shortest edit.

    Runs of white space count as one space.
    """
    a, b = " ".join(reference.split()), " ".join(hypothesis.split())
    distance = np.zeros((len(a) + 1, len(b) + 1), int)
    distance[:, 0], distance[0] = range(len(a) + 1), range(len(b) + 1)
    rows = distance.tolist()
    for i, j in itertools.product(range(1, len(a) + 1), range(1, len(b) + 1)):
        change = rows[i - 1][j - 1] + (a[i - 1] != b[j - 1])
        rows[i][j] = min(change, rows[i - 1][j] + 1, rows[i][j - 1] + 1)
    i, j, found = len(a), len(b), []
    while i or j:
        if i and j and rows[i][j] == rows[i - 1][j - 1] + (a[i - 1] != b[j - 1]):
            i, j = i - 1, j - 1
            found.append(("same" if a[i] == b[j] else "wrong", b[j]))
        elif i and rows[i][j] == rows[i - 1][j] + 1:
            i -= 1
            found.append(("missing", a[i]))
        else:
            j -= 1
            found.append(("extra", b[j]))
    groups = itertools.groupby(reversed(found), key=lambda edit: edit[0])
    return [Edit(kind, "".join(text for _, text in run)) for kind, run in groups]


def character_error_rate(reference: str, hypothesis: str) -> float | None:
    """Edited characters over the reference's length; None where the reference is empty."""
    length = len(" ".join(reference.split()))
    if not length:
        return None
    wrong = sum(len(edit.text) for edit in edits(reference, hypothesis) if edit.kind != "same")
    return wrong / length


def marked(reference: str, hypothesis: str) -> str:
    """`hypothesis` as HTML: wrong and extra characters in `<mark>`, `<del>` where some are missing.

    Missing characters are not spelled out, only their place is shown; the element's title has them.
    """
    parts = []
    for edit in edits(reference, hypothesis):
        text = html.escape(edit.text)
        if edit.kind == "same":
            parts.append(text)
        elif edit.kind == "missing":
            parts.append(f'<del title="missing: {text}">&#8248;</del>')
        else:
            # A wrong space would be invisible.
            parts.append(f"<mark>{text.replace(' ', '&#8199;')}</mark>")
    return "".join(parts)
