"""Lexicon-free CTC prefix beam search, with or without a language model over words."""

import dataclasses
from typing import Any, NamedTuple, Protocol

import numpy as np

from hubert_jax.vocabulary import BLANK, Vocabulary

_ROOT = 0


class LanguageModel(Protocol):
    """Scores words in their place, in nats; states are shared, so they never change in place."""

    def start(self) -> Any:
        """State before the first word."""

    def score(self, state: Any, word: str) -> tuple[Any, float]:
        """State after `word`, and the word's log probability."""

    def finish(self, state: Any) -> float:
        """Log probability that the sentence ends here."""


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """A labelling, int32 (L,), and its `score`; pruning can only make `log_ctc` smaller."""

    labels: np.ndarray
    text: str
    score: float
    log_ctc: float
    log_lm: float


class _History(NamedTuple):
    """Completed words of a prefix; `bonus` is what they add to the score."""

    state: Any
    log_lm: float = 0.0
    words: int = 0
    bonus: float = 0.0


@dataclasses.dataclass(eq=False)
class _Prefixes:
    """Tree of all prefixes, node 0 the empty one; one found again keeps its node and children."""

    vocabulary: Vocabulary
    language_model: LanguageModel | None
    lm_weight: float
    word_score: float

    def __post_init__(self) -> None:
        self._children: dict[tuple[int, int], int] = {}
        self._closed: dict[int, _History] = {}
        self.parent, self.label = [-1], [BLANK]
        self.history = [_History(self.language_model.start() if self.language_model else None)]

    def child(self, node: int, label: int) -> int:
        found = self._children.get((node, label))
        if found is None:
            found = self._children[node, label] = len(self.parent)
            self.parent.append(node)
            self.label.append(label)
            is_boundary = label == self.vocabulary.boundary
            self.history.append(self.closed(node) if is_boundary else self.history[node])
        return found

    def labels(self, node: int, after: int | None = None) -> list[int]:
        """Labels of a prefix, or only those behind its last `after`."""
        backwards = []
        while node != _ROOT and self.label[node] != after:
            backwards.append(self.label[node])
            node = self.parent[node]
        return backwards[::-1]

    def closed(self, node: int) -> _History:
        """The history once the word that the prefix ends in, if any, is completed."""
        if node not in self._closed:
            history = self.history[node]
            letters = self.labels(node, after=self.vocabulary.boundary)
            if letters:
                state, log_lm = history.state, history.log_lm
                if self.language_model is not None:
                    word = self.vocabulary.decode(letters)
                    state, log_prob = self.language_model.score(state, word)
                    log_lm += log_prob
                history = self._weighted(state, log_lm, history.words + 1)
            self._closed[node] = history
        return self._closed[node]

    def finished(self, node: int) -> _History:
        """As `closed`, with the end of the sentence scored too."""
        history = self.closed(node)
        if self.language_model is None:
            return history
        log_lm = history.log_lm + self.language_model.finish(history.state)
        return self._weighted(history.state, log_lm, history.words)

    def _weighted(self, state: Any, log_lm: float, words: int) -> _History:
        bonus = self.lm_weight * log_lm + self.word_score * words
        return _History(state, log_lm, words, bonus)


def beam_search(
    log_probs: np.ndarray,
    vocabulary: Vocabulary,
    *,
    beam_size: int = 20,
    beam_threshold: float = 20.0,
    language_model: LanguageModel | None = None,
    lm_weight: float = 0.0,
    word_score: float = 0.0,
) -> list[Hypothesis]:
    """At most `beam_size` labellings by equation 4 of the HuBERT paper, best first.

    log p_CTC + w1 log p_LM + w2 |Y|, |Y| in words; p_CTC sums all alignments, so a beam wide
    enough is exact. Labellings that differ in outer word boundaries alone are hypotheses apart.

    `log_probs` are float (T, V), in nats, V = `vocabulary.size`. After each frame `beam_size`
    prefixes are kept; `beam_threshold` (nats) drops those this far below the frame's best, and
    labels this far below its likeliest class. The language model is asked once for every word of
    every prefix. `lm_weight` and `word_score` are w1 and w2.

    Raises ValueError for a wrong shape, NaN, a frame in which nothing is possible, or a bad beam.
    """
    frames = np.asarray(log_probs, np.float64)
    if frames.ndim != 2 or frames.shape[1] != vocabulary.size:
        raise ValueError(f"log_probs has shape {frames.shape}, expected (T, {vocabulary.size})")
    if np.isnan(frames).any() or not np.isfinite(frames.max(axis=1, initial=-np.inf)).all():
        raise ValueError("log_probs holds NaN, infinity or a frame without a possible class")
    if beam_size < 1 or not beam_threshold >= 0:
        raise ValueError(f"beam_size={beam_size}, beam_threshold={beam_threshold} keep nothing")
    prefixes = _Prefixes(vocabulary, language_model, lm_weight, word_score)
    bonuses_count = language_model is not None or word_score != 0
    nodes = np.array([_ROOT])
    in_blank, in_label = np.zeros(1), np.full(1, -np.inf)  # log p of the alignments that end so
    letters = np.setdiff1d(np.arange(vocabulary.size), vocabulary.silent)
    for frame in frames:
        last = np.array([prefixes.label[n] for n in nodes])
        parents = np.array([prefixes.parent[n] for n in nodes])
        total = np.logaddexp(in_blank, in_label)

        # Stay: the frame is a blank or repeats the label.
        stay_blank = total + frame[BLANK]
        stay_label = in_label + frame[last]

        # Extend by a label; the label the prefix ends in only after a blank.
        labels = letters[frame[letters] >= frame.max() - beam_threshold]
        repeats = last[:, None] == labels
        extended = np.where(repeats, in_blank[:, None], total[:, None]) + frame[labels]

        # An extension that is in the beam already, as entry `there`, is merged into it.
        here, there = np.nonzero(nodes[:, None] == parents)
        if here.size:
            label = last[there]
            before = np.where(label == last[here], in_blank[here], total[here])
            stay_label[there] = np.logaddexp(stay_label[there], before + frame[label])
            merged, column = np.nonzero(label[:, None] == labels)
            extended[here[merged], column] = -np.inf

        stay_score = np.logaddexp(stay_blank, stay_label)
        extended_score = extended
        if bonuses_count:
            bonus = np.array([prefixes.history[n].bonus for n in nodes])
            stay_score = stay_score + bonus
            extended_score = extended + bonus[:, None]
            at_boundary = np.flatnonzero(labels == vocabulary.boundary)
            if at_boundary.size:
                closed = np.array([prefixes.closed(n).bonus for n in nodes])
                extended_score[:, at_boundary[0]] = extended[:, at_boundary[0]] + closed

        scores = np.concatenate([stay_score, extended_score.ravel()])
        kept = np.flatnonzero((scores >= scores.max() - beam_threshold) & (scores > -np.inf))
        if kept.size > beam_size:
            kept = np.sort(kept[np.argpartition(-scores[kept], beam_size - 1)[:beam_size]])

        staying = kept[kept < nodes.size]
        row, place = np.divmod(kept[staying.size :] - nodes.size, max(labels.size, 1))
        grown = list(map(prefixes.child, nodes[row].tolist(), labels[place].tolist()))
        nodes = np.concatenate([nodes[staying], np.array(grown, nodes.dtype)])
        in_blank = np.concatenate([stay_blank[staying], np.full(row.size, -np.inf)])
        in_label = np.concatenate([stay_label[staying], extended[row, place]])

    found = []
    for node, log_ctc in zip(nodes.tolist(), np.logaddexp(in_blank, in_label), strict=True):
        history, labels = prefixes.finished(node), np.array(prefixes.labels(node), np.int32)
        text, score = vocabulary.decode(labels), float(log_ctc) + history.bonus
        found.append(Hypothesis(labels, text, score, float(log_ctc), history.log_lm))
    return sorted(found, key=lambda hypothesis: -hypothesis.score)
