"""What beam search is asked for, and what it finds; the search itself is `beam`.

A text Y scores log p_CTC(Y) + w1 log10 p_LM(Y) + w2 |Y|, equation 4 of the HuBERT paper, |Y| in
words. The logarithm of p_LM is to base 10 and counts the end of the sentence: KenLM, fairseq and
torchaudio have it so, and published w1 of n-grams are meant so; of a Transformer it is the same.
"""

import dataclasses
import importlib.util
from collections.abc import Iterable

import numpy as np

from hubert_jax.errors import InputError

_LIBRARIES = {"flashlight": "flashlight-text", "optuna": "Optuna"}


@dataclasses.dataclass(frozen=True)
class BeamSearch:
    """How wide to search, and the weights of equation 4: those the paper's search began with."""

    beam: int = 500  # hypotheses kept after each frame
    beam_tokens: int = 100  # likeliest classes of a frame that hypotheses go on with, at most
    beam_threshold: float = 100.0  # nats below the frame's best hypothesis
    lm_weight: float = 2.0  # w1, for log10 of the language model's probability
    word_score: float | None = None  # w2, for every word; unset: -1 with a model of words, else 0
    silence_score: float = 0.0  # for every frame that is a word boundary
    unknown_score: float | None = None  # for a word outside the lexicon; unset: there is none
    log_add: bool = True  # p_CTC sums all alignments, as equation 4; False: takes the best
    n_best: int = 10  # texts that are given, at most

    def __post_init__(self) -> None:
        for name in ("beam", "beam_tokens", "n_best"):
            found = getattr(self, name)
            if not 1 <= found < 2**31:
                raise InputError(f"config.search.{name}={found}: expected at least 1, below 2^31")
        if not self.beam_threshold > 0:
            raise InputError(
                f"config.search.beam_threshold={self.beam_threshold}: expected more than 0"
            )

    def weight_of_words(self, model_of_words: bool) -> float:
        """w2 of equation 4; where it is unset, -1 with a language model of words and 0 without."""
        if self.word_score is None:
            return -1.0 if model_of_words else 0.0
        return self.word_score


@dataclasses.dataclass(frozen=True)
class Word:
    """A word, with the seconds that the frames of its letters saw.

    `confidence` is the n-best texts' share of posterior, their scores' softmax, that have the same
    word at an overlapping time.
    """

    text: str
    start: float
    end: float
    confidence: float = 1.0


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """A text and its `score`, acoustic + w1 lm + w2 |Y|.

    `acoustic`, in nats, is log p_CTC with what silence and unknown words add; `lm` is to base 10.
    """

    text: str
    score: float
    acoustic: float
    lm: float
    words: tuple[Word, ...]
    complete: bool = True  # False: the beam had no text that ends with a word of the lexicon

    @staticmethod
    def ranked(found: "Iterable[Hypothesis]") -> "list[Hypothesis]":
        """Best first, with their words' confidences."""
        found = sorted(found, key=lambda hypothesis: -hypothesis.score)
        scores = np.array([hypothesis.score for hypothesis in found])
        posterior = np.exp(scores - scores.max())
        posterior /= posterior.sum()
        spoken: dict[str, list[tuple[int, Word]]] = {}
        for number, hypothesis in enumerate(found):
            for word in hypothesis.words:
                spoken.setdefault(word.text, []).append((number, word))

        def confidence(word: Word) -> float:
            having = {
                number
                for number, other in spoken[word.text]
                if other.start < word.end and word.start < other.end
            }
            return float(sum(posterior[number] for number in having))

        return [
            dataclasses.replace(
                hypothesis,
                words=tuple(
                    dataclasses.replace(w, confidence=confidence(w)) for w in hypothesis.words
                ),
            )
            for hypothesis in found
        ]


def require_library(name: str, key: str) -> None:
    """Raises InputError, about a configuration's key, where a library is not installed."""
    if importlib.util.find_spec(name) is None:
        raise InputError(
            f"{key}: needs {_LIBRARIES[name]}, which is not installed; pip install "
            "'hubert_jax[decode]' with Python 3.11 or 3.12; greedy decoding does without"
        )
