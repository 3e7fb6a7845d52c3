"""Claims that hold, claims that do not, and those that the figures do not allow."""

import pytest

from hubert_jax.report.claims import claims, verdict


def report(**values):
    nothing = {"mfcc": {"k": None, "pnmi": None}, "iterations": [], "wer": {}, "cer": {}}
    return nothing | {"started_from": {}, "rehearsed": {}} | values


def iteration(name="it1", pnmi=0.34, **values):
    return {
        "name": name,
        "k": 100,
        "best_layer": 1,
        "pnmi_by_layer": {"1": pnmi},
        "untrained_pnmi_by_layer": {},
        "masked_accuracy": None,
        "commonest_unit_share": None,
    } | values


@pytest.mark.parametrize(
    ("mfcc", "said"),
    [
        (0.3, "best layer 1 of it1: PNMI 0.340 > MFCC 0.300; 1 of 1 hold"),
        (0.5, "did not get there: best layer 1 of it1: PNMI 0.340 <= MFCC 0.500; 0 of 1 hold"),
        (0.34, "did not get there: best layer 1 of it1: PNMI 0.340 <= MFCC 0.340; 0 of 1 hold"),
        # Figures that round alike are told apart.
        (0.33996, "best layer 1 of it1: PNMI 0.34000 > MFCC 0.33996; 1 of 1 hold"),
    ],
)
def test_verdict(mfcc, said):
    assert verdict(report(mfcc={"k": 100, "pnmi": mfcc}, iterations=[iteration()])) == said


def test_the_best_iteration_is_measured_against_mfcc():
    found = claims(
        report(
            mfcc={"k": 100, "pnmi": 0.3},
            iterations=[iteration("a", 0.4), iteration("b", 0.35), iteration("c", 0.36)],
        )
    )
    assert [(claim.holds, claim.text) for claim in found] == [
        (True, "best layer 1 of a: PNMI 0.400 > MFCC 0.300"),
        (False, "b: best PNMI 0.350 <= a 0.400"),
        (True, "c: best PNMI 0.360 > b 0.350"),
    ]


def test_comparisons_across_sizes_of_codebook_say_so():
    found = claims(
        report(
            mfcc={"k": 100, "pnmi": 0.3}, iterations=[iteration("a"), iteration("b", 0.4, k=500)]
        )
    )
    assert [claim.note for claim in found] == ["K = 500 against 100"] * 2


@pytest.mark.parametrize(("accuracy", "holds"), [(0.05, True), (0.04, False)])
def test_majority_baseline(accuracy, holds):
    values = iteration(pnmi_by_layer={}, masked_accuracy=accuracy, commonest_unit_share=0.04)
    (claim,) = claims(report(iterations=[values]))
    assert claim.holds is holds
    assert "majority baseline 0.040" in claim.text


@pytest.mark.parametrize(("untrained", "holds"), [(0.2, True), (0.4, False)])
def test_untrained_network(untrained, holds):
    values = iteration(untrained_pnmi_by_layer={"1": untrained})
    (claim,) = claims(report(iterations=[values]))
    assert claim.holds is holds


def test_error_rates_of_what_was_pretrained_and_what_was_not():
    start = {"a": "weights of it1", "b": "scratch", "c": "weights of hf:x", "d": "scratch"}
    start["e"] = "weights of hf:y"  # which transcribed what has no references
    rates = {"a": 0.5, "b": 0.5, "c": 0.4, "e": None}
    assert [claim.text for claim in claims(report(started_from=start, wer=rates))] == [
        "WER 50.0 % a >= 50.0 % b",
        "WER 40.0 % c < 50.0 % b",
    ]


def test_one_recogniser_claims_nothing():
    assert claims(report(started_from={"a": "scratch"}, wer={"a": 0.5})) == []


def test_a_rehearsal_claims_nothing():
    values = report(mfcc={"k": 100, "pnmi": 0.3}, iterations=[iteration()], rehearsed={"a": {}})
    assert claims(values) == [] and verdict(values).startswith("rehearsed")
