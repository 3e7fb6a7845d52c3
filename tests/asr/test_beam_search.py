"""Prefix beam search against the enumeration of every alignment."""

import collections
import itertools
import math

import numpy as np
import pytest

from hubert_jax.asr.beam_search import beam_search
from hubert_jax.vocabulary import LIBRISPEECH, Vocabulary

SMALL = Vocabulary(("|", "A", "B"))
EVERYTHING = {"beam_size": 10_000, "beam_threshold": math.inf}


def _log_probs(seed, frames, classes=SMALL.size, sharpness=1.5):
    logits = sharpness * np.random.default_rng(seed).standard_normal((frames, classes))
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def _all_labellings(log_probs):
    """{labels: log probability}, summed over every alignment."""
    sums = collections.defaultdict(float)
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        labels = tuple(SMALL.collapse(path).tolist())
        sums[labels] += math.exp(sum(log_probs[t, c] for t, c in enumerate(path)))
    return {labels: math.log(p) for labels, p in sums.items()}


class Bigram:
    """Log probability of a word from its length and the one before."""

    def __init__(self):
        self.asked = []

    def start(self):
        return ("<s>",)

    def score(self, state, word):
        self.asked.append((state, word))
        return (*state, word), self.log_prob(state[-1], word)

    def finish(self, state):
        return self.log_prob(state[-1], "</s>")

    @staticmethod
    def log_prob(before, word):
        return -0.3 * len(word) - (1.7 if before == word else 0.4) - 0.9 * (word == "A")

    def sentence(self, text):
        words = ["<s>", *text.split(), "</s>"]
        return sum(self.log_prob(a, b) for a, b in itertools.pairwise(words))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_unpruned_search_gives_every_labelling_its_exact_probability(seed, frames):
    log_probs = _log_probs(seed, frames)
    expected = _all_labellings(log_probs)
    found = beam_search(log_probs, SMALL, **EVERYTHING)
    assert {tuple(h.labels.tolist()) for h in found} == set(expected)
    for h in found:
        assert h.log_ctc == pytest.approx(expected[tuple(h.labels.tolist())], abs=1e-9)
    assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)


@pytest.mark.parametrize("seed", range(6))
def test_language_model_and_word_score_follow_equation_4(seed):
    log_probs = _log_probs(seed, 5)
    language_model = Bigram()
    expected = {
        labels: log_ctc
        + 0.8 * language_model.sentence(SMALL.decode(labels))
        - 0.6 * len(SMALL.decode(labels).split())
        for labels, log_ctc in _all_labellings(log_probs).items()
    }
    found = beam_search(
        log_probs,
        SMALL,
        language_model=language_model,
        lm_weight=0.8,
        word_score=-0.6,
        **EVERYTHING,
    )
    assert len(found) == len(expected)
    for h in found:
        assert h.score == pytest.approx(expected[tuple(h.labels.tolist())], abs=1e-9)
        assert h.log_lm == pytest.approx(language_model.sentence(h.text), abs=1e-9)
    assert tuple(found[0].labels.tolist()) == max(expected, key=expected.get)


@pytest.mark.parametrize("seed", range(6))
def test_narrow_weighted_beam_finds_the_best_labelling(seed):
    log_probs = _log_probs(seed, 6, sharpness=3.0)
    weights = {"lm_weight": 0.5, "word_score": 0.4}
    narrow = beam_search(log_probs, SMALL, beam_size=40, language_model=Bigram(), **weights)
    wide = beam_search(log_probs, SMALL, language_model=Bigram(), **weights, **EVERYTHING)
    assert len(narrow) <= 40 < len(wide)
    np.testing.assert_array_equal(narrow[0].labels, wide[0].labels)


def test_word_score_is_counted_in_words_not_in_boundaries():
    boundary, a = SMALL.boundary, int(SMALL.encode("A")[0])
    path = [boundary, a, 0, boundary, 0, boundary, a, boundary]
    log_probs = np.where(np.eye(SMALL.size)[path] > 0, 0.0, -np.inf)
    (only,) = beam_search(log_probs, SMALL, word_score=3.0)
    assert only.text == "A  A"
    assert only.score == pytest.approx(2 * 3.0)


def test_a_word_is_asked_for_once_for_every_prefix():
    language_model = Bigram()
    beam_search(_log_probs(0, 6), SMALL, language_model=language_model, lm_weight=1.0, **EVERYTHING)
    first_words = [
        word for state, word in language_model.asked if state == ("<s>",) and word == "AB"
    ]
    # The prefixes "AB", "|AB" and "||AB"; with three boundaries it takes more than six frames.
    assert len(first_words) == 3


def test_summing_alignments_beats_the_best_alignment():
    a = int(SMALL.encode("A")[0])
    log_probs = np.full((2, SMALL.size), -np.inf)
    log_probs[:, 0], log_probs[:, a] = math.log(0.6), math.log(0.4)
    best = beam_search(log_probs, SMALL)[0]
    assert SMALL.collapse(log_probs.argmax(axis=1)).size == 0
    assert best.text == "A"
    assert best.log_ctc == pytest.approx(math.log(1 - 0.36))


def test_pruning_drops_what_is_far_below_the_best():
    log_probs = _log_probs(3, 7, sharpness=3.0)
    exact = beam_search(log_probs, SMALL, **EVERYTHING)
    pruned = beam_search(log_probs, SMALL, beam_size=10_000, beam_threshold=6.0)
    assert len(pruned) < len(exact) / 2
    np.testing.assert_array_equal(pruned[0].labels, exact[0].labels)
    assert pruned[0].log_ctc == pytest.approx(exact[0].log_ctc, abs=0.05)
    assert len(beam_search(log_probs, SMALL, beam_size=3)) == 3


def test_a_clear_utterance_is_spelt_back():
    text = "HELLO ALL"
    path = [c for label in LIBRISPEECH.encode(text) for c in (label, label, 0)]
    logits = 12.0 * np.eye(LIBRISPEECH.size)[path]
    log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert beam_search(log_probs.astype(np.float32), LIBRISPEECH)[0].text == text


def test_special_symbols_are_never_chosen():
    random = np.random.default_rng(3)
    frames = random.normal(size=(7, SMALL.size + 1)).astype(np.float32)
    frames[:, 2] += 3  # the likeliest class of most frames
    special = Vocabulary.from_symbols(("|", "<unk>", "A", "B"))
    found = beam_search(frames, special, beam_size=50, beam_threshold=math.inf)
    expected = beam_search(np.delete(frames, 2, 1), SMALL, beam_size=50, beam_threshold=math.inf)
    assert [(h.text, h.score) for h in found] == [(h.text, h.score) for h in expected]


def test_no_frames_is_the_empty_text():
    (only,) = beam_search(np.zeros((0, SMALL.size)), SMALL)
    assert (only.text, only.score, only.labels.shape) == ("", 0.0, (0,))


@pytest.mark.parametrize(
    ("log_probs", "arguments"),
    [
        (np.zeros((3, 5)), {}),
        (np.full((3, SMALL.size), np.nan), {}),
        (np.full((3, SMALL.size), -np.inf), {}),
        (np.zeros((3, SMALL.size)), {"beam_size": 0}),
        (np.zeros((3, SMALL.size)), {"beam_threshold": -1.0}),
    ],
)
def test_nonsense_is_refused(log_probs, arguments):
    with pytest.raises(ValueError):
        beam_search(log_probs, SMALL, **arguments)
