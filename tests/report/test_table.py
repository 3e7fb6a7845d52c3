"""The terminal's table against a golden, and the verdict against hand-made numbers."""

import copy

import pytest

from hubert_jax.report.claims import claims, verdict
from hubert_jax.report.table import table

REPORT = {
    "mfcc": {"k": 100, "pnmi": 0.3301},
    "iterations": [
        {
            "best_layer": 2,
            "pnmi_by_layer": {"0": 0.24, "1": 0.31, "2": 0.3412, "10": 0.3},
            "untrained_pnmi_by_layer": {"0": 0.22, "1": 0.23, "2": 0.238},
            "masked_accuracy": 0.2124,
            "commonest_unit_share": 0.0411,
        },
        {
            "best_layer": 1,
            "pnmi_by_layer": {"1": 0.38, "2": None},
            "masked_accuracy": 0.03,
            "commonest_unit_share": 0.04,
        },
    ],
    "wer": {"pretrained": 0.812, "scratch": 0.971},
    "cer": {"pretrained": 0.38, "scratch": None},
    "export": {"max_abs_difference": 2.4e-6},
    "seconds": {"prepare": 20.14, "pretrain": 1400.0},
    "skipped": ["prepare"],
}

GOLDEN = """\
Target quality (phone-normalised mutual information)
                          PNMI  untrained
  MFCC, K = 100          0.330
  iteration 1, layer 0   0.240      0.220
  iteration 1, layer 1   0.310      0.230
  iteration 1, layer 2   0.341      0.238  <- best
  iteration 1, layer 10  0.300          -
  iteration 2, layer 1   0.380          -  <- best

Prediction of masked units
               accuracy  commonest unit
  iteration 1     0.212           0.041
  iteration 2     0.030           0.040

Speech recognition
       pre-trained  from scratch
  WER       81.2 %        97.1 %
  CER       38.0 %             -

Export: largest absolute difference to the original  2.4e-06

Seconds
  prepare     20.1  skipped in this run
  pretrain  1400.0
  total     1420.1

Comparisons
  yes  best layer 1 of iteration 2: PNMI 0.380 > MFCC 0.330
  yes  iteration 1, layer 2: PNMI 0.341 > untrained 0.238
  yes  iteration 1: masked accuracy 0.212 > commonest unit's share 0.041
  NO   iteration 2: masked accuracy 0.030 <= commonest unit's share 0.040
  yes  iteration 2: best PNMI 0.380 > iteration 1 0.341
  yes  WER 81.2 % pre-trained < 97.1 % from scratch

verdict: best layer 1 of iteration 2: PNMI 0.380 > MFCC 0.330; 5 of 6 hold"""


def test_golden():
    assert table(REPORT) == GOLDEN


def test_says_plainly_when_the_units_do_not_beat_mfcc():
    report = copy.deepcopy(REPORT)
    report["mfcc"]["pnmi"] = 0.5
    assert table(report).splitlines()[-1] == (
        "verdict: did not get there: best layer 1 of iteration 2: "
        "PNMI 0.380 <= MFCC 0.500; 4 of 6 hold"
    )


def test_numbers_that_round_alike_are_told_apart():
    report = {"mfcc": {"pnmi": 0.33012}, "iterations": [{"pnmi_by_layer": {"1": 0.33008}}]}
    assert verdict(report) == "did not get there: best layer 1: PNMI 0.33008 <= MFCC 0.33012"


def test_comparisons_across_sizes_of_codebook_say_so():
    report = copy.deepcopy(REPORT)
    report["iterations"][0]["k"] = 100
    report["iterations"][1]["k"] = 500
    notes = {claim.text.split(":")[0]: claim.note for claim in claims(report)}
    assert notes["best layer 1 of iteration 2"] == "K = 500 against 100"
    assert notes["iteration 1, layer 2"] == ""
    assert "(K = 500 against 100)" in table(report)


@pytest.mark.parametrize("missing", list(REPORT))
def test_any_part_may_be_missing_or_null(missing):
    report = {key: value for key, value in REPORT.items() if key != missing}
    for variant in (report, {**report, missing: None}):
        lines = table(variant).splitlines()
        assert lines[-1].startswith("verdict: ")
        assert max(map(len, lines)) <= 100


def test_nothing_measured():
    assert table({}).splitlines()[-1] == "verdict: PNMI was not measured against MFCC"


def test_equal_error_rates_are_no_gain():
    (claim,) = claims({"wer": {"pretrained": 0.5, "scratch": 0.5}})
    assert not claim.holds
    assert claim.text == "WER 50.0 % pre-trained >= 50.0 % from scratch"
