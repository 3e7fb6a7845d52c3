"""Word and character error rates of a whole split, counted by jiwer."""

import dataclasses
import unicodedata
from collections.abc import Callable, Sequence

import jiwer
import numpy as np

from hubert_jax.errors import InputError

_DRAWS = 1000
_OUTSIDE = (2.5, 97.5)  # percentiles
_KINDS = {"substitute": 0, "insert": 1, "delete": 2}


@dataclasses.dataclass(frozen=True)
class ErrorRate:
    """Errors over the references' words, or characters of NFC with single spaces, of a split."""

    rate: float
    substitutions: int
    insertions: int
    deletions: int
    length: int

    @classmethod
    def of(cls, counts: np.ndarray) -> "ErrorRate":
        """The rate of utterances' counts, (n, 4)."""
        substitutions, insertions, deletions, length = counts.sum(axis=0).tolist()
        errors = substitutions + insertions + deletions
        return cls(errors / length, substitutions, insertions, deletions, length)


def word_errors(references: Sequence[str], hypotheses: Sequence[str]) -> np.ndarray:
    """Substitutions, insertions, deletions and words of each utterance: int64 (n, 4).

    Words are split at white space. Raises InputError for no references or an empty one, ValueError
    for unequal numbers of texts.
    """
    return _counts(jiwer.process_words, references, hypotheses)


def character_errors(references: Sequence[str], hypotheses: Sequence[str]) -> np.ndarray:
    """As `word_errors`, of characters; runs of white space count as one space."""
    return _counts(jiwer.process_characters, references, hypotheses)


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorRate:
    """WER of `hypotheses`, one for each of `references`; raises as `word_errors`."""
    return ErrorRate.of(word_errors(references, hypotheses))


def character_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorRate:
    """CER; raises as `word_errors`."""
    return ErrorRate.of(character_errors(references, hypotheses))


def interval(counts: np.ndarray, seed: int) -> tuple[float, float]:
    """Where the error rate of other utterances of this kind lies, in 95 of 100 cases.

    `counts` are utterances' as of `word_errors`. Bootstrap over utterances, 1000 draws (Bisani and
    Ney 2004, "Bootstrap estimates for confidence intervals in ASR performance evaluation").
    """
    random, errors = np.random.default_rng(seed), counts[:, :3].sum(axis=1)
    rates = []
    for _ in range(_DRAWS):
        drawn = random.integers(len(counts), size=len(counts))
        rates.append(errors[drawn].sum() / counts[drawn, 3].sum())
    low, high = np.percentile(rates, _OUTSIDE)
    return float(low), float(high)


def _counts(
    process: Callable[[list[str], list[str]], jiwer.WordOutput | jiwer.CharacterOutput],
    references: Sequence[str],
    hypotheses: Sequence[str],
) -> np.ndarray:
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references but {len(hypotheses)} hypotheses")
    if not references:
        raise InputError("error rate: there are no transcripts to compare with")
    spoken, heard = (
        [" ".join(unicodedata.normalize("NFC", text).split()) for text in t]
        for t in (references, hypotheses)
    )
    if "" in spoken:
        raise InputError(
            f"error rate: transcript {spoken.index('') + 1} of {len(spoken)} is empty; "
            "leave utterances without a transcript out"
        )
    output = process(spoken, heard)
    counts = np.zeros((len(spoken), 4), np.int64)
    for row, reference, alignment in zip(counts, output.references, output.alignments, strict=True):
        row[3] = len(reference)
        for chunk in alignment:
            if chunk.type != "equal":
                said = chunk.ref_end_idx - chunk.ref_start_idx
                heard_there = chunk.hyp_end_idx - chunk.hyp_start_idx
                row[_KINDS[chunk.type]] += max(said, heard_there)
    return counts
