"""Claims that hold, claims that do not, and those that the figures do not allow."""

import pytest

from hubert_jax.report.claims import claims, sentences, verdict


def report(**values):
    nothing = {"mfcc": {"k": None, "pnmi": None}, "iterations": [], "wer": {}, "cer": {}}
    nothing |= {"features": {}, "transcripts": {}, "greedy_wer": {}, "greedy_cer": {}}
    return nothing | {"started_from": {}, "rehearsed": {}} | values


def iteration(name="it1", pnmi=0.34, **values):
    return {
        "name": name,
        "control_of": None,
        "over": {},
        "targets_pnmi": None,
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


def test_an_iteration_is_measured_against_its_control_too():
    found = claims(
        report(
            iterations=[
                iteration("it1", 0.35),
                iteration("it2", 0.36, over={"it1": [0.004, 0.016], "longer": [-0.02, 0.002]}),
                iteration("longer", 0.37, control_of="it2", masked_accuracy=0.1),
            ]
        )
    )
    drawn = "difference {} to {} (95 %, utterances drawn)"
    assert [(claim.holds, claim.text, claim.note) for claim in found] == [
        (True, "it2: best PNMI 0.360 > it1 0.350", drawn.format("+0.004", "+0.016")),
        (
            False,
            "it2: best PNMI 0.360 <= its control longer 0.370",
            drawn.format("-0.020", "+0.002"),
        ),
    ]


def test_a_control_is_no_iteration_that_is_measured_against_mfcc():
    iterations = [iteration("it1", 0.35), iteration("longer", 0.37, control_of="it1")]
    mfcc = {"k": 100, "pnmi": 0.3}
    assert claims(report(mfcc=mfcc, iterations=iterations))[0].text.startswith(
        "best layer 1 of it1"
    )


def test_a_probe_s_accuracy():
    probe = {
        name: {"probe": {"frame_accuracy": accuracy}}
        for name, accuracy in (
            ("MFCC", 0.5),
            ("it1, layer 1", 0.6),
            ("it1, layer 1, untrained", 0.7),
        )
    }
    found = claims(report(iterations=[iteration(pnmi_by_layer={})], features=probe))
    assert [(claim.holds, claim.text) for claim in found] == [
        (True, "it1, layer 1: probe's frame accuracy 0.600 > MFCC 0.500"),
        (False, "it1, layer 1: probe's frame accuracy 0.600 <= untrained 0.700"),
    ]


def test_recognisers_are_compared_where_they_had_the_same_transcripts():
    start = {"a": "weights of it1", "b": "scratch", "a10": "weights of it1", "b10": "scratch"}
    transcripts = {"a": "all", "b": "all", "a10": "ten minutes", "b10": "ten minutes"}
    rates = {"a": 0.5, "b": 0.9, "a10": 0.7, "b10": 0.95}
    found = claims(report(started_from=start, transcripts=transcripts, cer=rates))
    assert [claim.text for claim in found] == [
        "CER 50.0 % a < 90.0 % b",
        "CER 70.0 % a10 < 95.0 % b10",
    ]


def test_a_search_is_measured_against_greedy():
    start = {"a": "weights of it1", "b": "scratch", "c": "weights of it1"}
    wer, greedy = {"a": 0.8, "b": 0.99, "c": 0.7}, {"a": 0.9, "b": 0.98, "c": 0.7}
    found = claims(report(started_from=start, wer=wer, greedy_wer=greedy, transcripts={"b": "x"}))
    assert [claim.text for claim in found] == ["WER 80.0 % a, beam search < 90.0 % greedy"]


def test_what_came_out_is_told_in_three_sentences():
    of_layer = {"untrained_pnmi_by_layer": {"1": 0.056}, "targets_pnmi": 0.406}
    values = dict(
        mfcc={"k": 100, "pnmi": 0.33},
        iterations=[
            iteration("it1", 0.36, **of_layer),
            iteration("it2", 0.35, targets_pnmi=0.37),
            iteration("longer", 0.365, control_of="it2"),
        ],
        started_from={"pretrained": "weights of it2", "scratch": "scratch"},
        transcripts={"pretrained": "all", "scratch": "all"},
        wer={"pretrained": 0.8, "scratch": 1.0},
        greedy_wer={"pretrained": 0.95, "scratch": 1.0},
        greedy_cer={"pretrained": 0.55, "scratch": 0.96},
    )
    units, refinement, recognition = sentences(report(**values))
    assert units == (
        "Clusters of layer 1 of it1 remove 36.0% of the uncertainty about a frame's phone; "
        "clusters of MFCC 33.0%, the same layer before training 5.6%."
    )
    assert refinement == (
        "Targets made from its own layers bring it2 to 35.0%; it1 36.0%, longer (as many steps "
        "more on the targets of before) 36.5%. Its targets tell 37.0%, less than those of it1 "
        "40.6%."
    )
    assert recognition == (
        "Of new speakers' letters 55.0% are wrong with pre-training (pretrained) and 96.0% "
        "without (scratch); beam search brings the word error rate from 95.0% to 80.0%."
    )
    assert sentences(report()) == sentences(report(**values, rehearsed={"a": {}})) == []
