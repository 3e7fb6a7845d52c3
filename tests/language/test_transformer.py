"""A trained Transformer's probabilities, word by word and of whole sentences, by its formulas."""

import dataclasses
import itertools
import shutil

import numpy as np
import pytest
from lm_oracle import SMALL, write

from hubert_jax.errors import InputError
from hubert_jax.language import transformer
from hubert_jax.language.tokens import Tokens
from hubert_jax.language.transformer import Scorer
from hubert_jax.vocabulary import LIBRISPEECH

WORDS = tuple("ABCDEFGHIJ")  # of three bands: tokens 2 to 11
SENTENCES = [list(text) for text in ("", "A", "ABC", "JFC?A", "AAAAAAAAAAAAAAAAAAAB", "HGB")]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write(tmp_path_factory.mktemp("lm") / "checkpoints", Tokens("word", WORDS))


@pytest.fixture(scope="module")
def scorer(made):
    return Scorer(made[0])


def test_sentences_have_their_formulas_probabilities(made, scorer):
    expected = [made[1](words) for words in SENTENCES]
    np.testing.assert_allclose(scorer.sentences(SENTENCES), expected, rtol=1e-5)
    found = [scorer.sentence(words) for words in SENTENCES]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert "A" in scorer and "?" not in scorer


def test_states_are_computed_together_whenever_they_are_asked_for(made, scorer):
    """Some hundred states in an order of no sense, of which no batch has them all."""
    random = np.random.default_rng(0)
    for _ in range(2):  # the second after the first one's states are gone
        states, computed = {(): scorer.start()}, scorer.computed
        for _ in range(150):
            before = list(states)[random.integers(len(states))]
            word = WORDS[random.integers(len(WORDS))]
            states[(*before, word)], _ = scorer.score(states[before], word)
        asked = [words for words in states if random.random() < 0.2]
        for words in asked:
            parts = [scorer.score(states[words[:i]], words[i])[1] for i in range(len(words))]
            log10 = sum(parts) + scorer.finish(states[words])
            assert log10 == pytest.approx(made[1](words), rel=1e-5)
        assert scorer.computed - computed <= len(states)


def test_keys_and_values_have_more_room_when_they_need_it(made, monkeypatch):
    monkeypatch.setattr(transformer, "_POOL_BYTES", 0)
    scorer = Scorer(made[0])
    state = scorer.start()
    before = scorer._pool["keys"].shape[1]
    for first, second, third in itertools.product(WORDS[:6], repeat=3):
        reached = state
        for word in (first, second, third):
            reached, _ = scorer.score(reached, word)
        scorer.finish(reached)
    assert scorer._pool["keys"].shape[1] > before
    for words in ("ABC", "FED"):
        assert scorer.sentence(words) == pytest.approx(made[1](words), rel=1e-5)


def test_letters_score_words(tmp_path):
    architecture = dataclasses.replace(SMALL, cutoffs=())
    tokens = Tokens("letter", spelling=LIBRISPEECH)
    where, log10 = write(tmp_path / "checkpoints", tokens, architecture)
    scorer = Scorer(where)
    for words in (["TO", "BE"], ["É", "A"], []):
        assert scorer.sentence(words) == pytest.approx(log10(words), rel=1e-5)
        assert scorer.sentences([words])[0] == pytest.approx(log10(words), rel=1e-5)


def test_what_is_no_language_model_is_named(made, tmp_path):
    with pytest.raises(InputError, match="config.lm=orbax:nowhere: .*no checkpoint found"):
        Scorer("orbax:nowhere")
    where, _ = write(tmp_path / "other", Tokens("word", WORDS), kind="ctc")
    with pytest.raises(InputError, match="config.rescore=.* of kind 'ctc'; expected .*train_lm"):
        Scorer(where, "config.rescore")
    where, _ = write(tmp_path / "diverged", Tokens("word", WORDS), scale=np.nan)
    with pytest.raises(InputError, match="config.lm=.*diverged.*: NaN or infinite in .*DIR@STEP"):
        Scorer(where)
    cut = tmp_path / "cut"
    shutil.copytree(made[0].removeprefix("orbax:"), cut)
    largest = max(
        (p for p in (cut / "0/state").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )
    largest.write_bytes(largest.read_bytes()[:-1])
    with pytest.raises(
        InputError, match="config.lm=.*cut: .*cannot be read .*not what was written"
    ):
        Scorer(f"orbax:{cut}")
