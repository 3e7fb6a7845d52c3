"""The report's figures with their captions, and the decoded sentences."""

from __future__ import annotations

import html
from typing import Any

from hubert_jax.report import markup, pictures, plots, transcripts
from hubert_jax.report.contents import ReportData, by_layer
from hubert_jax.report.table import percent

_SENTENCES = 12
_PRETRAINING = (
    "How to read pre-training: the loss should fall and the accuracies rise, steeply first and "
    "slowly later; a point is the mean of the steps logged around it. The iterations have "
    "different targets, so the heights of their losses do not compare. Masked frames are guessed "
    "from context, unmasked ones are heard; only the masked ones are trained on unless the "
    "configuration says otherwise. A masked accuracy that stays at the dotted line has learned no "
    "more than which unit is commonest. At scale, expect a masked loss near 3.1 and a masked "
    "accuracy near 0.39 after iteration 1 (100 units), 3.4 and 0.42 after iteration 2 (500 units)."
)
_FINETUNING = (
    "How to read fine-tuning: the lower and the sooner, the better. The pre-trained network should "
    "leave the plateau, where only blanks are emitted, before the one from scratch. At scale this "
    "gap is the point of pre-training: minutes to hours of transcripts are then enough."
)


def training_curves(data: ReportData) -> str:
    """Loss and accuracy of pre-training, loss of fine-tuning."""
    iterations = data.report.get("iterations") or []
    panels, captions = [], []
    if any(plots.logged(curve, "loss") for curve in data.pretraining):
        panels.append(plots.pretraining_loss(data.pretraining))
    for number, curve in enumerate(data.pretraining, start=1):
        if plots.logged(curve, "masked_accuracy"):
            iteration = iterations[number - 1] if number <= len(iterations) else {}
            panels.append(plots.accuracy(curve, number, iteration.get("commonest_unit_share")))
    captions.append(_PRETRAINING if panels else "No curves of pre-training were given.")
    if any(plots.logged(curve, "loss") for curve in data.finetuning.values()):
        panels.append(plots.finetuning_loss(data.finetuning))
        captions.append(_FINETUNING)
    else:
        captions.append("No curves of fine-tuning were given.")
    title = "How training went"
    if not panels:
        return markup.section(title, markup.absent(" ".join(captions)))
    return markup.section(title, markup.figure(panels, "\n".join(captions)))


def layers(data: ReportData) -> str:
    """PNMI by layer, one panel an iteration."""
    found = [
        plots.pnmi_by_layer(data.report, number)
        for number, iteration in enumerate(data.report.get("iterations") or [], start=1)
        if by_layer(iteration.get("pnmi_by_layer"))
    ]
    caption = (
        "How to read it: each bar is the PNMI of clusters fitted on one layer's features; higher "
        "is more phonetic. Bars over the dashed line carry more than clusters of MFCC, the first "
        "iteration's targets: the network has learned more than it was taught. The distance to "
        "the untrained network is what training added. At scale the middle layers lead (the sixth "
        "of twelve after iteration 1) and the last ones fall off; after iteration 2 the peak is "
        "higher and lies later."
    )
    if not found:
        return markup.section(
            "What the layers know",
            markup.absent("PNMI by layer was not measured: it needs phone alignments."),
        )
    if len(found) == 1:
        caption += " This run has one iteration."
    return markup.section("What the layers know", markup.figure(found, caption))


def phones_and_units(data: ReportData) -> str:
    """Heat map of p(phone | unit)."""
    title = "Which phones the units stand for"
    if data.joint is None or not data.joint.counts.any():
        return markup.section(title, markup.absent("No alignments, so no phones beside the units."))
    source = f"Units: {data.joint.source}. " if data.joint.source else ""
    total = data.joint.counts.shape[1]
    used = int(data.joint.counts.any(axis=0).sum())
    unused = f" {total - used} of {total} units never occurred and are left out." * (used < total)
    caption = (
        f"{source}How to read it: each column is a unit and says which phones were spoken while "
        "it was on; a column adds up to 1. A strong cell on the staircase is a unit that means one "
        "phone; a column smeared over a group (between the lines) confuses neighbours, such as S "
        f"with Z; a column smeared everywhere means little.{unused} At scale with 500 units the "
        "staircase is sharp, frequent phones own many units each, and rare ones such as ZH may own "
        "none."
    )
    picture = pictures.phone_unit_heat_map(data.joint)
    return markup.section(title, markup.figure([picture], caption, wide=True))


def one_utterance(data: ReportData) -> str:
    """Spectrogram of one utterance over its units and phones."""
    title = "One utterance and its units"
    example = data.example
    if example is None:
        return markup.section(title, markup.absent("No utterance was given."))
    seconds = len(example.waveform) / example.sample_rate
    shown = min(seconds, 2 * pictures.SECONDS_PER_ROW)
    part = f"the first {shown:g} s of {seconds:.1f} s" if shown < seconds else f"{seconds:.1f} s"
    colour = (
        "A unit has the colour of the phone that it most often stands for, so where the two "
        "strips agree in colour the unit names the phone. "
        if data.joint is not None
        else "Each colour is a unit. "
    )
    aligned = (
        "White lines and the lowest strip are the phones of the alignment. "
        if example.phones
        else "There is no alignment of this utterance, so no phones are drawn. "
    )
    caption = (
        f"{example.id}, {part}. How to read it: brighter is louder, time runs to the right. The "
        "strip under it shows the unit of every frame; a thin line marks each change of unit. "
        f"{colour}{aligned}Units should change where the sound changes, and stay where it stays. "
        "At scale the changes gather at the phones' boundaries; units learned from few hours "
        "flicker more."
    )
    quoted = f"<p><q>{html.escape(example.text)}</q></p>" if example.text else ""
    rows = pictures.utterance_rows(example, data.joint)
    return markup.section(title, quoted, markup.figure(rows, caption, wide=True))


def sentences(data: ReportData) -> str:
    """References over both hypotheses, with character error rates and marked differences."""
    title = "Decoded sentences"
    given = list(data.hypotheses)
    if not given:
        return markup.section(title, markup.absent("Nothing was decoded."))
    lead = (
        f"<p>{_count(min(len(given), _SENTENCES), len(given))} <mark>Marked</mark> characters are "
        "wrong or should not be there; <del>&#8248;</del> is where characters are missing.</p>"
    )
    bodies = "".join(_sentence(utterance) for utterance in given[:_SENTENCES])
    head = (
        "<thead><tr><th></th><th scope=col>text</th>"
        "<th scope=col class=number>CER</th></tr></thead>"
    )
    table = f'<table class="sentences">{head}{bodies}</table>'
    caption = (
        "How to read it: CER is this utterance's character errors over the reference's length. "
        "Good acoustics without a language model write what they hear: homophones and misspelt "
        "names. With little training expect common short words first, then phonetic spelling; at "
        "scale most sentences have no mark at all."
    )
    return markup.section(
        title,
        lead,
        f"<figure>{markup.scrolling(table)}<figcaption>{html.escape(caption)}</figcaption></figure>",
    )


def _count(shown: int, total: int) -> str:
    return f"The first {shown} of {total}." if shown < total else f"All {total}."


def _sentence(utterance: Any) -> str:
    reference = str(utterance.get("reference") or "")
    rows = [
        f'<tr><td colspan="3" class="id">{html.escape(str(utterance.get("id", "")))}</td></tr>',
        '<tr><th scope="row" class="who">reference</th>'
        f'<td class="text">{html.escape(reference)}</td><td></td></tr>',
    ]
    for key, name in (("pretrained", "pre-trained"), ("scratch", "from scratch")):
        hypothesis = utterance.get(key)
        if hypothesis is None:
            text, rate = '<span class="absent">not decoded</span>', "-"
        else:
            text = transcripts.marked(reference, hypothesis)
            rate = percent(transcripts.character_error_rate(reference, hypothesis))
            text = text if hypothesis.strip() else f'{text} <span class="absent">(empty)</span>'
        rows.append(
            f'<tr><th scope="row" class="who">{name}</th>'
            f'<td class="text">{text}</td><td class="number">{rate}</td></tr>'
        )
    return f"<tbody>{''.join(rows)}</tbody>"
