"""Lexicon-free CTC prefix beam search, with a seam for a language model over words.

A hypothesis is a labelling (a prefix, while the search runs): all alignments that collapse to it
are summed, so with a beam wide enough the result is the most probable labelling, exactly. What is
maximised is equation 4 of the HuBERT paper, `log p_CTC + w1 log p_LM + w2 |Y|`, |Y| in words; the
last two terms are added whenever a word is completed.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, Protocol

import numpy as np

from hubert_jax.vocabulary import BLANK, Vocabulary

_ROOT = 0


class LanguageModel(Protocol):
    """Scores words in their place.

    Log probabilities are natural and finite; states are opaque and never changed in place, since
    hypotheses share them.
    """

    def start(self) -> Any:
        """State before the first word."""

    def score(self, state: Any, word: str) -> tuple[Any, float]:
        """State after `word`, and its log probability in that place."""

    def finish(self, state: Any) -> float:
        """Log probability that the sentence ends here."""


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """One labelling the search ended with.

    `score` = `log_ctc` + lm_weight * `log_lm` + word_score * words in `text`; `log_ctc` sums the
    alignments that stayed in the beam, so pruning can only make it smaller than the true one.
    """

    labels: np.ndarray
    text: str
    score: float
    log_ctc: float
    log_lm: float


class _History(NamedTuple):
    """What the completed words of a prefix are worth."""

    state: Any
    log_lm: float
    words: int
    bonus: float


class _Prefixes:
    """Tree of all prefixes seen so far: node 0 is empty, a node is its parent plus one label.

    A prefix that leaves the beam and is found again is the same node, so it merges with the
    descendants that stayed.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        language_model: LanguageModel | None,
        lm_weight: float,
        word_score: float,
    ):
        self._vocabulary = vocabulary
        self._language_model = language_model
        self._lm_weight = lm_weight
        self._word_score = word_score
        self._children: dict[tuple[int, int], int] = {}
        self._closed: dict[int, _History] = {}
        start = language_model.start() if language_model else None
        self.parent = [-1]
        self.label = [BLANK]
        self.history = [_History(start, 0.0, 0, 0.0)]

    def child(self, node: int, label: int) -> int:
        """Node of the prefix `node` + `label`."""
        key = (node, label)
        found = self._children.get(key)
        if found is None:
            found = self._children[key] = len(self.parent)
            self.parent.append(node)
            self.label.append(label)
            is_boundary = label == self._vocabulary.boundary
            self.history.append(self.closed(node) if is_boundary else self.history[node])
        return found

    def closed(self, node: int) -> _History:
        """The prefix's history once the word it ends in, if any, is completed."""
        found = self._closed.get(node)
        if found is None:
            found = self.history[node]
            letters = []
            walk = node
            while walk != _ROOT and self.label[walk] != self._vocabulary.boundary:
                letters.append(self.label[walk])
                walk = self.parent[walk]
            if letters:
                found = self._extended(found, self._vocabulary.decode(letters[::-1]))
            self._closed[node] = found
        return found

    def finished(self, node: int) -> _History:
        """As `closed`, with the end of the sentence scored too."""
        history = self.closed(node)
        if self._language_model is None:
            return history
        return self._weighted(
            history.state,
            history.log_lm + self._language_model.finish(history.state),
            history.words,
        )

    def labels(self, node: int) -> np.ndarray:
        """int32 (L,)."""
        reversed_labels = []
        while node != _ROOT:
            reversed_labels.append(self.label[node])
            node = self.parent[node]
        return np.array(reversed_labels[::-1], np.int32)

    def _extended(self, history: _History, word: str) -> _History:
        state, log_lm = history.state, history.log_lm
        if self._language_model is not None:
            state, log_prob = self._language_model.score(state, word)
            log_lm += log_prob
        return self._weighted(state, log_lm, history.words + 1)

    def _weighted(self, state: Any, log_lm: float, words: int) -> _History:
        bonus = self._lm_weight * log_lm + self._word_score * words
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
    """Most probable labellings of one utterance.

    Args:
      log_probs: float (T, V), natural log probabilities of each frame, V = `vocabulary.size`.
      vocabulary: names the classes; class 0 is the blank.
      beam_size: prefixes kept after each frame, at least 1.
      beam_threshold: nats, not negative. Prefixes further than this below the frame's best are
        dropped, and labels further than this below the frame's most probable class are not tried.
      language_model: language model over words, asked once for every word of every prefix.
      lm_weight: w1 of equation 4.
      word_score: w2 of equation 4, for each word.

    Returns:
      At most `beam_size` hypotheses, best first. Labellings that differ only in leading or
      trailing word boundaries are hypotheses of their own with the same text.

    Raises:
      ValueError: wrong shape, NaN, a frame in which nothing is possible, or a bad beam.
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
    # Log probability of each prefix over the alignments that end in a blank, and in its label.
    in_blank, in_label = np.zeros(1), np.full(1, -np.inf)
    column = np.empty(vocabulary.size, np.int64)
    spells = np.ones(vocabulary.size, bool)
    spells[list(vocabulary.silent)] = False

    for frame in frames:
        last = np.array([prefixes.label[n] for n in nodes])
        parents = np.array([prefixes.parent[n] for n in nodes])
        total = np.logaddexp(in_blank, in_label)

        # Stay: the frame is a blank or repeats the label.
        stay_blank = total + frame[BLANK]
        stay_label = in_label + frame[last]

        # Extend by a label; the label the prefix ends in only after a blank.
        labels = np.flatnonzero(frame >= frame.max() - beam_threshold)
        labels = labels[spells[labels]]
        repeats = last[:, None] == labels
        extended = np.where(repeats, in_blank[:, None], total[:, None]) + frame[labels]

        # An extension that is in the beam already, as entry `there`, is merged into it.
        here, there = np.nonzero(nodes[:, None] == parents)
        if here.size:
            label = last[there]
            before = np.where(label == last[here], in_blank[here], total[here])
            stay_label[there] = np.logaddexp(stay_label[there], before + frame[label])
            column[:] = -1
            column[labels] = np.arange(labels.size)
            tried = column[label] >= 0
            extended[here[tried], column[label[tried]]] = -np.inf

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
        grown = [
            prefixes.child(node, label)
            for node, label in zip(nodes[row].tolist(), labels[place].tolist(), strict=True)
        ]
        nodes = np.concatenate([nodes[staying], np.array(grown, nodes.dtype)])
        in_blank = np.concatenate([stay_blank[staying], np.full(row.size, -np.inf)])
        in_label = np.concatenate([stay_label[staying], extended[row, place]])

    found = []
    for node, log_ctc in zip(nodes.tolist(), np.logaddexp(in_blank, in_label), strict=True):
        history = prefixes.finished(node)
        labels = prefixes.labels(node)
        found.append(
            Hypothesis(
                labels=labels,
                text=vocabulary.decode(labels),
                score=float(log_ctc) + history.bonus,
                log_ctc=float(log_ctc),
                log_lm=history.log_lm,
            )
        )
    return sorted(found, key=lambda hypothesis: -hypothesis.score)
