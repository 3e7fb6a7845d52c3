"""What a Transformer language model foretells: words, word pieces or letters, and sentence ends."""

import collections
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from hubert_jax.errors import InputError
from hubert_jax.vocabulary import Vocabulary

UNITS = ("word", "piece", "letter")
END, UNKNOWN = 0, 1  # a sentence also begins with the end of the one before
_LEARNT_FROM = 2_000_000  # sentences at most, for word pieces
COMPARED = 1_000  # of the most frequent words, or pieces


def require_meant(
    knows: Callable[[str], bool],
    symbols: Iterable[str],
    vocabulary: Vocabulary,
    words: Sequence[str],
    where: str,
) -> None:
    """Raises InputError for a language model of another alphabet or case than a network's.

    It `knows` none of `words`, those of a lexicon; or, where there are none and texts are searched
    letter by letter, most letters of its `symbols` are none of the CTC head's.
    """
    expected = "expected a language model of text in the letters and the case of"
    if words and not any(map(knows, words)):
        raise InputError(
            f"{where}: knows none of the {len(words)} words of the lexicon, {words[0]!r} for "
            f"one; {expected} the lexicon"
        )
    letters = {*"".join(symbols)} - {" ", "|"}
    foreign = sorted(letters - {*"".join(vocabulary.characters)})
    if not words and 2 * len(foreign) > len(letters):
        raise InputError(
            f"{where}: of its {len(letters)} letters the network's vocabulary lacks "
            f"{len(foreign)}, such as {foreign[0]!r}; {expected} that vocabulary "
            "(config.checkpoint of lm and train_lm)"
        )


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Words, the most frequent first, or how a word is spelled; tokens of a word are its own.

    Token 0 is the end of a sentence, 1 what is unknown.
    """

    unit: str
    words: tuple[str, ...] = ()
    spelling: Vocabulary | None = None  # of pieces, or the letters of a CTC head

    @classmethod
    def learn(
        cls, unit: str, size: int, sentences: Iterable[Sequence[str]], letters: Vocabulary
    ) -> "Tokens":
        """From sentences: `size` words or pieces; letters are those of a CTC head.

        Raises InputError where sentencepiece refuses.
        """
        if unit == "letter":
            return cls(unit, spelling=letters)
        if unit == "piece":
            texts = map(" ".join, itertools.islice(sentences, _LEARNT_FROM))
            return cls(
                unit, spelling=Vocabulary.learnt_pieces(texts, size, "config.vocabulary_size")
            )
        counts = collections.Counter(itertools.chain.from_iterable(sentences))
        # Ties by the alphabet, so that the order of the sources does not matter.
        ordered = sorted(counts, key=lambda word: (-counts[word], word))
        return cls(unit, tuple(ordered[:size]))

    @property
    def size(self) -> int:
        """How many tokens there are, 0 and 1 included."""
        return 2 + (self.spelling.size - 1 if self.spelling else len(self.words))

    def of_word(self, word: str) -> tuple[int, ...]:
        """A word's tokens, at least one; those of a sentence are its words', then `END`."""
        if word not in self._known:
            found: tuple[int, ...] = (UNKNOWN,)
            if self.spelling and word:
                classes, outside = self.spelling.spell(word)
                boundary = (self.spelling.boundary,) * (
                    self.unit == "letter" and self.spelling.boundary > 0
                )
                if classes and not outside:
                    found = tuple(1 + index for index in (*boundary, *classes))
            if not self.spelling:
                return found
            self._known[word] = found
        return self._known[word]

    def of_sentence(self, words: Iterable[str]) -> list[int]:
        """The tokens of a sentence, with its end."""
        return [*itertools.chain.from_iterable(map(self.of_word, words)), END]

    def require_fits(self, vocabulary: Vocabulary, words: Sequence[str], where: str) -> None:
        """Raises InputError as `require_meant`, of its words, or its pieces or letters."""
        symbols = self.spelling.characters if self.spelling else self.words
        knows = lambda word: UNKNOWN not in self.of_word(word)  # noqa: E731
        require_meant(knows, symbols[:COMPARED], vocabulary, words, where)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, for `from_dict`."""
        spelling = self.spelling and self.spelling.to_dict()
        return {"unit": self.unit, "words": list(self.words), "spelling": spelling}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Tokens":
        """Of what `to_dict` gave."""
        spelling = values["spelling"] and Vocabulary.from_dict(values["spelling"])
        return cls(values["unit"], tuple(values["words"]), spelling)

    @functools.cached_property
    def _known(self) -> dict[str, tuple[int, ...]]:
        """By the word, those seen so far where words are spelled."""
        return {word: (number,) for number, word in enumerate(self.words, start=2)}
