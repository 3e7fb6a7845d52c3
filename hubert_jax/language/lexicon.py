"""Words and how a CTC head spells them, one way or several each."""

import collections
import dataclasses
import os
from collections.abc import Iterable

from hubert_jax import storage
from hubert_jax.errors import InputError
from hubert_jax.vocabulary import WORD_BOUNDARY, Vocabulary

_MOST_ALIKE = 6  # words of one spelling that flashlight can tell apart
_NAMED = 3


@dataclasses.dataclass(frozen=True)
class Lexicon:
    """Words, and (number of a word, its classes with the boundary last) for every spelling."""

    words: tuple[str, ...]
    spellings: tuple[tuple[int, tuple[int, ...]], ...]
    dropped: str = ""  # one line on the words that are left out; "" if none is


def of_words(words: Iterable[str], vocabulary: Vocabulary, where: str) -> Lexicon:
    """Spells words letter by letter; those with a character that the head lacks are dropped.

    Raises InputError, which begins with `where`, if none is left.
    """

    def spelled(word: str) -> tuple[int, ...] | None:
        if vocabulary.outside(word):
            return None
        return (*vocabulary.encode(word).tolist(), vocabulary.boundary)

    return _built(((word, spelled(word)) for word in words), vocabulary, where)


def read(path: str | os.PathLike, vocabulary: Vocabulary) -> Lexicon:
    """Reads flashlight's format: in each line a word and its symbols, "|" last or left out.

    Raises InputError for a missing file, a line without symbols, or where no word can be spelled.
    """
    classes = {
        symbol: index
        for index, symbol in enumerate(vocabulary.symbols, start=1)
        if index not in vocabulary.silent
    } | {WORD_BOUNDARY: vocabulary.boundary}

    def entries() -> Iterable[tuple[str, tuple[int, ...] | None]]:
        try:
            with open(storage.path(path), encoding="utf-8") as lines:
                for number, line in enumerate(lines, start=1):
                    word, *symbols = line.split() or [""]
                    if word and not symbols:
                        raise InputError(
                            f"{path}: line {number}: {word!r} has no spelling; expected a word and "
                            "its letters, as in 'cat c a t |'"
                        )
                    if symbols and symbols[-1] != WORD_BOUNDARY:
                        symbols.append(WORD_BOUNDARY)
                    if word:
                        known = all(symbol in classes for symbol in symbols)
                        yield word, tuple(classes[s] for s in symbols) if known else None
        except OSError as error:
            raise InputError(f"{path}: lexicon cannot be read ({error.strerror})") from None
        except UnicodeDecodeError:
            raise InputError(f"{path}: is not UTF-8; expected a lexicon of lines") from None

    return _built(entries(), vocabulary, f"{storage.path(path)}")


def _built(
    entries: Iterable[tuple[str, tuple[int, ...] | None]], vocabulary: Vocabulary, where: str
) -> Lexicon:
    numbers: dict[str, int] = {}
    spellings: dict[tuple[int, tuple[int, ...]], None] = {}
    alike: collections.Counter[tuple[int, ...]] = collections.Counter()
    dropped = []
    for word, spelling in entries:
        if spelling is None or alike[spelling] == _MOST_ALIKE or len(spelling) < 2:
            dropped.append(word)
            continue
        entry = (numbers.setdefault(word, len(numbers)), spelling)
        alike[spelling] += entry not in spellings
        spellings[entry] = None
    if not spellings:
        found = f"such as {dropped[0]!r}" if dropped else "as there is none"
        raise InputError(
            f"{where}: no word can be spelled with {''.join(vocabulary.characters)}, {found}; "
            "expected words in the letters and the case of the network's vocabulary"
        )
    line = ""
    if dropped:
        line = (
            f"{where}: {len(dropped)} of {len(dropped) + len(spellings)} words left out, which the "
            f"head cannot spell or tell apart, such as {', '.join(dropped[:_NAMED])}"
        )
    return Lexicon(tuple(numbers), tuple(spellings), line)
