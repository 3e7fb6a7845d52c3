"""What a pipeline tells of the way ahead."""

import types

import pytest

from hubert_jax.errors import InputError
from hubert_jax.stages.outlook import Outlook
from hubert_jax.stages.stage import Stage

LOOP = types.SimpleNamespace(loop=types.SimpleNamespace(steps=100))
STAGES = [
    Stage(name, LOOP if name.endswith("train") else None, {})
    for name in ("prepare", "it1/label", "it1/train", "it1/evaluate")
]


def test_time_ahead_is_that_of_a_machine_as_fast_as_this_one():
    outlook = Outlook(STAGES, {"it1/label": 10, "it1/train": 3, "it1/evaluate": 60})
    assert outlook.begin("prepare").endswith(": stage 1 of 4")
    outlook.end("prepare", 1000.0)  # of which nothing was expected
    purpose = "Turns audio into units: fits codebooks by k-means and labels every frame with them"
    assert outlook.begin("it1/label") == f"{purpose}: stage 2 of 4, about 10 s, then 6 min"
    outlook.end("it1/label", 20.0)
    assert outlook.begin("it1/train").endswith(": stage 3 of 4, about 10 min, then 2 min")
    outlook.end("it1/train")  # skipped: that says nothing of the machine
    assert outlook.begin("it1/evaluate").endswith(": stage 4 of 4, about 2 min")


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({"it2/train": 9}, "no such stage 'it2/train'; there are prepare, it1/label"),
        ({"prepare": 0}, "found 0 for prepare, expected seconds"),
        ({"prepare": float("nan")}, "found nan for prepare, expected seconds"),
        ({"prepare": "soon"}, "found 'soon' for prepare, expected seconds"),
    ],
)
def test_expectations_are_of_stages_and_of_times(expected, message):
    with pytest.raises(InputError, match=f"config.expected_seconds: {message}"):
        Outlook(STAGES, expected)
