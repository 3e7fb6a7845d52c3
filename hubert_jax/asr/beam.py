"""Beam search by flashlight-text, the decoder of wav2letter++; `search` defines the scores."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from flashlight.lib.text import decoder as flashlight

from hubert_jax.asr.search import BeamSearch, Hypothesis, Word
from hubert_jax.frames import HOP, SAMPLE_RATE, WINDOW
from hubert_jax.language import ngram
from hubert_jax.language.lexicon import Lexicon
from hubert_jax.vocabulary import BLANK, WORD_BOUNDARY, Vocabulary

if TYPE_CHECKING:
    from hubert_jax.language.transformer import Scorer as Transformer

_IMPOSSIBLE = -1e30  # of infinities, log-add would make NaN


class Decoder:
    """Searches emissions, within a lexicon or else letter by letter.

    Letter by letter, an n-gram over characters, with "|" for spaces, scores every letter. One over
    words scores where a word ends, by calls of Python that take their time, as does a Transformer.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        lm: "str | Transformer" = "",
        lexicon: Lexicon | None = None,
    ) -> None:
        """`lm` is an n-gram's file, "", or a model. Raises InputError where KenLM refuses it."""
        specials = [index for index, _ in vocabulary.specials]
        self._classes = np.setdiff1d(np.arange(vocabulary.size), specials)
        made = (vocabulary, self._classes, lm)
        self._texts = _InLexicon(*made, lexicon) if lexicon else _ByLetter(*made)
        self._weighed: BeamSearch | None = None

    def __call__(self, log_probs: np.ndarray, search: BeamSearch) -> list[Hypothesis]:
        """At most `n_best` texts, each once, best first, of emissions (T, V) in nats."""
        if search != self._weighed:
            self._texts.weigh(search)
            self._weighed = search
        found: dict[str, Hypothesis] = {}
        frames = np.asarray(log_probs, np.float32)[:, self._classes]
        for hypothesis in self._texts(frames):
            found.setdefault(hypothesis.text, hypothesis)
            if len(found) == search.n_best:
                break
        return Hypothesis.ranked(found.values())


class _InLexicon:
    """Labellings that are words of a lexicon, with one boundary or more between them."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        classes: np.ndarray,
        lm: "str | Transformer",
        lexicon: Lexicon,
    ) -> None:
        column = {index: place for place, index in enumerate(classes.tolist())}
        self._words, self._boundary = lexicon.words, column[vocabulary.boundary]
        self._symbols = ["", *(vocabulary.symbols[index - 1] for index in classes[1:])]
        self._has_lm = bool(lm)
        if isinstance(lm, str):
            self._lm = ngram.load(lm, (*lexicon.words, "<unk>")) if lm else flashlight.ZeroLM()
            start = self._lm.start(False)
            ahead = [self._lm.score(start, number)[1] for number in range(len(lexicon.words))]
        else:
            self._lm = _ByWord(lm, lexicon.words)
            ahead = lm.first_tokens(lexicon.words)
        self._trie = flashlight.Trie(len(column), self._boundary)
        for number, spelling in lexicon.spellings:  # looked ahead for, within words
            self._trie.insert([column[index] for index in spelling], number, ahead[number])
        self._trie.smear(flashlight.SmearingMode.MAX)

    def weigh(self, search: BeamSearch) -> None:
        """Decides the search of later calls."""
        self._options, self._w2 = search, search.weight_of_words(self._has_lm)
        unknown = -np.inf if search.unknown_score is None else search.unknown_score
        options = flashlight.LexiconDecoderOptions(
            search.beam,
            search.beam_tokens,
            search.beam_threshold,
            search.lm_weight,
            self._w2,
            unknown,
            search.silence_score,
            search.log_add,
            flashlight.CriterionType.CTC,
        )
        places = (self._boundary, BLANK, len(self._words))
        self._decoder = flashlight.LexiconDecoder(options, self._trie, self._lm, *places, [], False)

    def __call__(self, frames: np.ndarray) -> Iterator[Hypothesis]:
        # flashlight's words end with a boundary, ours may end with the utterance: one frame more.
        ended = np.concatenate([frames, _only(self._boundary, frames.shape[1])])
        results = _run(self._decoder, ended)
        complete = results[0].score > _IMPOSSIBLE / 2
        if not complete:
            results = _run(self._decoder, frames)
        options = self._options
        for result in results:
            path, ends = result.tokens[1:-1], result.words[1:-1]
            words = self._spoken(path[: len(frames)], ends)
            unknown = ends.count(len(self._words))
            known = sum(number >= 0 for number in ends) - unknown
            score = result.score - complete * options.silence_score
            bonus = options.lm_weight * result.lmScore + self._w2 * known
            lm, text = result.lmScore, " ".join(word.text for word in words)
            yield Hypothesis(text, score, score - bonus, lm, words, complete)

    def _spoken(self, path: Sequence[int], ends: Sequence[int]) -> tuple[Word, ...]:
        """Words by the frames in which they are completed; the unknown are spelled.

        What follows an unknown one without a boundary belongs to it.
        """
        words: list[Word] = []
        letters: list[str] = []  # of the word under way
        first, last, before, open_ended = 0, 0, BLANK, False
        for frame, number in enumerate(ends):
            token = path[frame] if frame < len(path) else self._boundary
            if token not in (BLANK, self._boundary):
                if token != before:
                    first = first if letters else frame
                    letters.append(self._symbols[token])
                last = frame
            if number >= 0:
                known = number < len(self._words) and not open_ended
                text = self._words[number] if known else "".join(letters)
                if open_ended:
                    joined = words.pop()
                    words.append(
                        dataclasses.replace(joined, text=joined.text + text, end=_end(last))
                    )
                else:
                    words.append(Word(text, _start(first), _end(last)))
                letters, open_ended = [], number == len(self._words) or open_ended
            if token == self._boundary:
                open_ended = False
            before = token
        return tuple(words)


class _ByLetter:
    """All labellings; those that differ in outer boundaries alone are searched apart."""

    def __init__(
        self, vocabulary: Vocabulary, classes: np.ndarray, lm: "str | Transformer"
    ) -> None:
        self._vocabulary, self._classes = vocabulary, classes
        self._boundary = int(np.flatnonzero(classes == vocabulary.boundary)[0])
        self._symbols = ["<blank>", *(vocabulary.symbols[index - 1] for index in classes[1:])]
        self._symbols[self._boundary] = WORD_BOUNDARY
        self._letters: Any = None
        self._scorer: ngram.Scorer | Transformer | None = None if isinstance(lm, str) else lm
        if isinstance(lm, str) and lm:
            if ngram.is_of_characters(lm):
                self._letters = ngram.load(lm, self._symbols)
            else:
                self._scorer = ngram.Scorer(lm)

    def weigh(self, search: BeamSearch) -> None:
        """Decides the search of later calls."""
        self._w1, self._w2 = search.lm_weight, search.weight_of_words(self._scorer is not None)
        self._lm: Any = self._letters or flashlight.ZeroLM()
        self._ends_words = self._scorer is not None or self._w2 != 0
        if self._ends_words:  # flashlight itself has no words here
            weights = (self._w1, self._w2)
            self._lm = _Spelled(self._lm, self._scorer, self._symbols, self._boundary, weights)
        options = flashlight.LexiconFreeDecoderOptions(
            search.beam,
            search.beam_tokens,
            search.beam_threshold,
            1.0 if self._ends_words else self._w1,
            search.silence_score,
            search.log_add,
            flashlight.CriterionType.CTC,
        )
        self._decoder = flashlight.LexiconFreeDecoder(options, self._lm, self._boundary, BLANK, [])

    def __call__(self, frames: np.ndarray) -> Iterator[Hypothesis]:
        # flashlight begins as if after a boundary: without a blank, one in front were no label.
        begun = np.concatenate([_only(BLANK, frames.shape[1]), frames])
        for result in _run(self._decoder, begun):
            path = np.array(result.tokens[2:-1], np.int64)
            labels = self._vocabulary.collapse(path)
            text = self._vocabulary.decode(self._classes[labels])
            words = tuple(map(Word, text.split(), *_spans(path, self._boundary)))
            lm = self._lm.log10(labels) if self._ends_words else result.lmScore
            acoustic = result.score - self._w1 * lm - self._w2 * len(words)
            yield Hypothesis(text, result.score, acoustic, lm, words)


class _ByWord(flashlight.LM):
    """A model of words, by their numbers in a lexicon; beyond it is the unknown one."""

    def __init__(self, model: "Transformer", words: Sequence[str]) -> None:
        super().__init__()
        self._model, self._words = model, (*words, "")

    def start(self, start_with_nothing: bool) -> Any:
        state = flashlight.LMState()
        self._known = {state: (self._model.start(), 0.0)}
        return state

    def score(self, state: Any, number: int) -> tuple[Any, float]:
        reached = state.child(number)
        if reached not in self._known:
            before, _ = self._known[state]
            self._known[reached] = self._model.score(before, self._words[number])
        return reached, self._known[reached][1]

    def finish(self, state: Any) -> tuple[Any, float]:
        return state.child(-1), self._model.finish(self._known[state][0])


class _Spelled(flashlight.LM):
    """w1 log10 p + w2 |Y|, of an n-gram over letters and a model of words, where there is one."""

    def __init__(
        self,
        letters: Any,
        words: "ngram.Scorer | Transformer | None",
        symbols: list[str],
        boundary: int,
        weights: tuple[float, float],
    ) -> None:
        super().__init__()
        self._letters, self._words = letters, words
        self._symbols, self._boundary, self._weights = symbols, boundary, weights

    def start(self, start_with_nothing: bool) -> Any:
        state = flashlight.LMState()
        words = self._words.start() if self._words else None
        # By state: those of both n-grams, the word under way, and what led there.
        self._known = {state: (self._letters.start(False), words, "", 0.0)}
        return state

    def score(self, state: Any, token: int) -> tuple[Any, float]:
        reached = state.child(token)
        if reached not in self._known:
            letters, words, word, _ = self._known[state]
            letters, lm = self._letters.score(letters, token)
            count = 0
            if token == self._boundary:
                words, log10, count = self._ended(words, word)
                lm, word = lm + log10, ""
            else:
                word += self._symbols[token]
            w1, w2 = self._weights
            self._known[reached] = (letters, words, word, w1 * lm + w2 * count)
        return reached, self._known[reached][-1]

    def finish(self, state: Any) -> tuple[Any, float]:
        letters, words, word, _ = self._known[state]
        words, lm, count = self._ended(words, word)
        lm += self._letters.finish(letters)[1]
        if self._words:
            lm += self._words.finish(words)
        w1, w2 = self._weights
        return state.child(-1), w1 * lm + w2 * count

    def log10(self, labels: np.ndarray) -> float:
        """The n-grams' log10 probability of a labelling."""
        total, state = 0.0, self._letters.start(False)
        for token in labels.tolist():
            state, log10 = self._letters.score(state, token)
            total += log10
        total += self._letters.finish(state)[1]
        if self._words:
            spelled = "".join(" " if t == self._boundary else self._symbols[t] for t in labels)
            total += self._words.sentence(spelled.split())
        return total

    def _ended(self, state: Any, word: str) -> tuple[Any, float, int]:
        if not word:
            return state, 0.0, 0
        return (*(self._words.score(state, word) if self._words else (state, 0.0)), 1)


def _only(column: int, columns: int) -> np.ndarray:
    """One frame that has nothing but a class, (1, V)."""
    frame = np.full((1, columns), _IMPOSSIBLE, np.float32)
    frame[0, column] = 0.0
    return frame


def _run(decoder: Any, frames: np.ndarray) -> list[Any]:
    frames = np.ascontiguousarray(frames, np.float32)
    return decoder.decode(frames.ctypes.data, *frames.shape)


def _start(frame: int) -> float:
    return frame * HOP / SAMPLE_RATE


def _end(frame: int) -> float:
    return (frame * HOP + WINDOW) / SAMPLE_RATE


def _spans(path: np.ndarray, boundary: int) -> tuple[list[float], list[float]]:
    """Seconds at which the words of a path over frames begin, and end."""
    starts, ends, within = [], [], False
    for frame in np.flatnonzero(path != BLANK).tolist():
        if path[frame] == boundary:
            within = False
            continue
        if not within:
            starts.append(_start(frame))
            ends.append(0.0)
            within = True
        ends[-1] = _end(frame)
    return starts, ends
