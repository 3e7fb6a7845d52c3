"""Word and character error rates of a whole split."""

import dataclasses
import unicodedata
from collections.abc import Callable, Sequence

import jiwer

from hubert_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class ErrorRate:
    """Errors over the references' words, or characters of NFC with single spaces, of a split."""

    rate: float
    substitutions: int
    insertions: int
    deletions: int
    length: int


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorRate:
    """WER of `hypotheses`, one for each of `references`; words are split at white space.

    Raises InputError for no references or an empty one, ValueError for unequal numbers of texts.
    """
    return _error_rate(jiwer.process_words, references, hypotheses)


def character_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorRate:
    """As `word_error_rate`, over characters; runs of white space count as one space."""
    return _error_rate(jiwer.process_characters, references, hypotheses)


def _error_rate(
    process: Callable[[list[str], list[str]], jiwer.WordOutput | jiwer.CharacterOutput],
    references: Sequence[str],
    hypotheses: Sequence[str],
) -> ErrorRate:
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
    errors = output.substitutions + output.insertions + output.deletions
    length = output.hits + output.substitutions + output.deletions
    return ErrorRate(
        errors / length, output.substitutions, output.insertions, output.deletions, length
    )
