"""Word and character error rates of a whole split."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jiwer

from hubert_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class ErrorRate:
    """Edit distance over a split: `rate` = (substitutions + insertions + deletions) / length.

    `length` counts the references' words, or their characters with single spaces included.
    Errors and lengths are summed over the split before dividing, so long utterances weigh more.
    """

    rate: float
    substitutions: int
    insertions: int
    deletions: int
    length: int


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorRate:
    """WER of `hypotheses`, one for each of `references`; words are split at white space.

    Raises:
      InputError: no references, or an empty one (the rate is undefined).
      ValueError: unequal numbers of references and hypotheses.
    """
    references, hypotheses = _normalised(references, hypotheses)
    return _summary(jiwer.process_words(references, hypotheses))


def character_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorRate:
    """As `word_error_rate`, over characters; runs of white space count as one space."""
    references, hypotheses = _normalised(references, hypotheses)
    return _summary(jiwer.process_characters(references, hypotheses))


def _normalised(
    references: Sequence[str], hypotheses: Sequence[str]
) -> tuple[list[str], list[str]]:
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references but {len(hypotheses)} hypotheses")
    if not references:
        raise InputError("error rate: there are no transcripts to compare with")
    joined = [" ".join(text.split()) for text in references]
    for i, text in enumerate(joined):
        if not text:
            raise InputError(
                f"error rate: transcript {i + 1} of {len(joined)} is empty; "
                "leave utterances without a transcript out"
            )
    return joined, [" ".join(text.split()) for text in hypotheses]


def _summary(output: jiwer.WordOutput | jiwer.CharacterOutput) -> ErrorRate:
    errors = output.substitutions + output.insertions + output.deletions
    length = output.hits + output.substitutions + output.deletions
    return ErrorRate(
        rate=errors / length,
        substitutions=output.substitutions,
        insertions=output.insertions,
        deletions=output.deletions,
        length=length,
    )
