"""Text as numbers of tokens, kept in files that are read where they are needed."""

import dataclasses
import pathlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from hubert_jax import config as config_lib
from hubert_jax import files
from hubert_jax.errors import InputError
from hubert_jax.language.tokens import END, UNKNOWN, Tokens

_AT_ONCE = 100_000  # sentences between writes


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Sentences in tokens, each with its end, one after the other."""

    tokens: Tokens
    numbers: np.ndarray  # (n,) int32
    ends: np.ndarray  # (sentences,) int64, where each sentence ends in `numbers`
    words: int
    unknown: int  # words

    @classmethod
    def of(cls, sentences: Iterable[Sequence[str]], tokens: Tokens) -> "Encoded":
        """In memory."""
        found = list(sentences)
        return cls(tokens, *next(_encoded(found, tokens, max(1, len(found)))))

    @classmethod
    def write(
        cls, directory: pathlib.Path, sentences: Iterable[Sequence[str]], tokens: Tokens
    ) -> None:
        """Writes a directory for `read`, complete or not at all."""
        with files.writing_directory(directory, marker="text.json") as aside:
            counts, ends = np.zeros(3, np.int64), []
            with open(aside / "numbers.int32", "wb") as out:
                for numbers, part_ends, words, unknown in _encoded(sentences, tokens):
                    numbers.tofile(out)
                    ends.append(part_ends + counts[0])
                    counts += len(numbers), words, unknown
            np.save(aside / "ends.npy", np.concatenate(ends))
            described = {"tokens": tokens.to_dict(), "counts": counts.tolist()}
            described["digest"] = config_lib.digest([described, _digests(aside)])
            files.write_json(aside / "text.json", described)

    @classmethod
    def read(cls, directory: pathlib.Path) -> "Encoded | None":
        """What `write` wrote, its numbers a mapped file; None where it is not whole, or damaged."""
        try:
            described = files.read_json(directory / "text.json", "encoded text")
            if described.pop("digest") != config_lib.digest([described, _digests(directory)]):
                return None
            count, words, unknown = described["counts"]
            numbers = np.memmap(directory / "numbers.int32", np.int32, "r")
            ends = np.load(directory / "ends.npy")
            if len(numbers) != count or ends[-1] != count:
                return None
            return cls(Tokens.from_dict(described["tokens"]), numbers, ends, words, unknown)
        except (InputError, OSError, ValueError, KeyError, TypeError):
            return None

    @property
    def lengths(self) -> np.ndarray:
        """(sentences,) int64, the tokens of each sentence with its end."""
        return np.diff(self.ends, prepend=0)

    def rows(self, sentences: np.ndarray, length: int) -> dict[str, np.ndarray]:
        """Sentences (B,), -1 for an empty row: `tokens` (B, length + 1), `lengths` (B,), int32.

        A row has the end of the sentence before, its tokens, of which `lengths` are foretold, and
        ends behind them.
        """
        present = sentences >= 0
        ends = self.ends[sentences]
        lengths = np.where(present, ends - np.where(sentences > 0, self.ends[sentences - 1], 0), 0)
        places = np.arange(length)
        inside = places < lengths[:, None]
        numbers = self.numbers[np.where(inside, (ends - lengths)[:, None] + places, 0)]
        tokens = np.full((len(sentences), length + 1), END, np.int32)
        tokens[:, 1:] = np.where(inside, numbers, END)
        return {"tokens": tokens, "lengths": lengths.astype(np.int32)}


def _digests(directory: pathlib.Path) -> list[str]:
    return [files.sha256_file(directory / name) for name in ("numbers.int32", "ends.npy")]


_Part = tuple[np.ndarray, np.ndarray, int, int]


def _encoded(
    sentences: Iterable[Sequence[str]], tokens: Tokens, at_once: int = _AT_ONCE
) -> Iterator[_Part]:
    """Numbers, ends, words and unknown words of some sentences after the other."""
    numbers: list[int] = []
    ends: list[int] = []
    words = 0

    def part() -> _Part:
        found = np.array(numbers, np.int32)
        return found, np.array(ends, np.int64), words, int((found == UNKNOWN).sum())

    for sentence in sentences:
        numbers += tokens.of_sentence(sentence)
        ends.append(len(numbers))
        words += len(sentence)
        if len(ends) == at_once:
            yield part()
            numbers, ends, words = [], [], 0
    yield part()
