"""Assembles `report.html`: one file, readable without a network and without JavaScript."""

from __future__ import annotations

import html
import os

from hubert_jax import files
from hubert_jax.report import gallery, markup, summary
from hubert_jax.report.contents import ReportData
from hubert_jax.report.style import CSS

_TITLE = "HuBERT: what this run learned"
_LEAD = (
    "HuBERT learns about speech without transcripts. Audio is cut into frames of 20 ms; clustering "
    "gives each frame a unit, one of K numbers; a network then hears audio with spans blanked out "
    "and predicts the units of the blanked frames. Clustering that network's own features gives "
    "better units, and the next iteration trains on those. Whether units are good is asked in two "
    "ways: how much they tell about the phones that were spoken (PNMI, from phone alignments that "
    "training never sees), and how much better the network learns to write down speech than one "
    "that was not pre-trained (WER, CER)."
)


def page(data: ReportData) -> str:
    """The report as one HTML document. Parts that `data` lacks are said to be missing."""
    body = [
        f"<header><h1>{html.escape(_TITLE)}</h1>{markup.paragraph(_LEAD)}</header><main>",
        summary.outcome(data.report),
        summary.what_was_run(data.report),
        summary.numbers(data.report),
        gallery.training_curves(data),
        gallery.layers(data),
        gallery.phones_and_units(data),
        gallery.one_utterance(data),
        gallery.sentences(data),
        "</main><footer>Made by hubert_jax. The numbers are in report.json.</footer>",
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(_TITLE)}</title><style>\n{CSS}</style></head>\n<body>"
        + "\n".join(body)
        + "</body></html>\n"
    )


def render(data: ReportData, out: str | os.PathLike) -> None:
    """Writes `page(data)` to the file `out`, whole or not at all."""
    files.write_text(out, page(data))
