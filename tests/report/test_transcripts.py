"""Marked differences against edits found by hand and jiwer's character error rate."""

import random

import jiwer
import pytest

from hubert_jax.report.transcripts import Edit, character_error_rate, edits, marked


def test_kinds_of_edit():
    assert edits("THE CAT", "THE  CUTS") == [
        Edit("same", "THE C"),
        Edit("wrong", "U"),
        Edit("same", "T"),
        Edit("extra", "S"),
    ]
    assert edits("AB", "") == [Edit("missing", "AB")]
    assert edits("", "AB") == [Edit("extra", "AB")]
    assert edits("", "") == []


@pytest.mark.parametrize("seed", range(5))
def test_edits_are_the_fewest_and_rebuild_both_texts(seed):
    rng = random.Random(seed)
    reference, hypothesis = (
        " ".join("".join(rng.choices("ABC", k=rng.randint(1, 4))) for _ in range(5))
        for _ in range(2)
    )
    found = edits(reference, hypothesis)
    assert "".join(edit.text for edit in found if edit.kind != "missing") == hypothesis
    kept = sum(len(edit.text) for edit in found if edit.kind != "extra")
    assert kept == len(reference)
    assert character_error_rate(reference, hypothesis) == pytest.approx(
        jiwer.cer(reference, hypothesis)
    )


def test_an_empty_reference_has_no_rate():
    assert character_error_rate(" ", "A") is None


def test_marks():
    assert marked("A <B", "A&<") == "A<mark>&amp;</mark>&lt;" + (
        '<del title="missing: B">&#8248;</del>'
    )
    # A wrong space is a visible mark.
    assert marked("AB", "A B") == "A<mark>&#8199;</mark>B"
