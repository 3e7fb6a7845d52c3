"""Shares of corpora in what training draws."""

import pytest

from hubert_jax.corpus.mixing import Mixture

SECONDS = {"en/ls": 960.0, "en/ll": 60_000.0, "de/mls": 2_000.0, "bg/cv": 10.0}
EVEN = dict.fromkeys(SECONDS, 1.0)


def test_exponents_of_one_are_the_natural_shares():
    found = Mixture(EVEN, 1.0, 1.0).shares(SECONDS)
    total = sum(SECONDS.values())
    assert found == pytest.approx({name: value / total for name, value in SECONDS.items()})


def test_two_levels_by_hand():
    found = Mixture(EVEN, 0.7, 0.5).shares(SECONDS)
    languages = {"en": 60_960**0.7, "de": 2_000**0.7, "bg": 10**0.7}
    english = languages["en"] / sum(languages.values())
    small, large = 960**0.5, 60_000**0.5
    assert found["en/ls"] == pytest.approx(english * small / (small + large))
    assert found["bg/cv"] == pytest.approx(languages["bg"] / sum(languages.values()))
    assert sum(found.values()) == pytest.approx(1)


def test_exponents_of_zero_make_equal_and_weights_come_on_top():
    found = Mixture(EVEN | {"bg/cv": 2.0}, 0.0, 0.0).shares(SECONDS)
    raw = {"en/ls": 1 / 6, "en/ll": 1 / 6, "de/mls": 1 / 3, "bg/cv": 2 / 3}
    assert found == pytest.approx({name: value * 3 / 4 for name, value in raw.items()})
