"""Letter vocabularies of the CTC head: text to class indices and back.

Class 0 is the blank, then come characters in the order of fairseq's `dict.ltr.txt`, "|" first. The
heads of fairseq and Hugging Face have three special symbols between them, which keep their classes.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

from hubert_jax.errors import InputError

BLANK = 0
WORD_BOUNDARY = "|"


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The characters a CTC head can emit; class 0 is the blank.

    Special symbols, such as `(3, "<unk>")`, are in no text; characters take the classes between.
    """

    characters: tuple[str, ...]  # in the order of their classes; "|" stands for spaces
    specials: tuple[tuple[int, str], ...] = ()  # (class, name), ascending
    _indices: dict[str, int] = dataclasses.field(init=False, repr=False, compare=False)
    _symbols: tuple[str, ...] = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for character in self.characters:
            known = isinstance(character, str) and len(character) == 1 and not character.isspace()
            if not known or "\ud800" <= character <= "\udfff":  # half of a character in UTF-16
                raise InputError(
                    f"vocabulary: found the entry {character!r}, expected single characters "
                    f"other than spaces (the word boundary is {WORD_BOUNDARY!r})"
                )
        repeated = [c for c, n in collections.Counter(self.characters).items() if n > 1]
        if repeated:
            raise InputError(f"vocabulary: the character {repeated[0]!r} is listed twice")
        if WORD_BOUNDARY not in self.characters:
            raise InputError(f"vocabulary: the word boundary {WORD_BOUNDARY!r} is missing")
        taken = [index for index, _ in self.specials]
        if taken != sorted(set(taken)) or any(not BLANK < index < self.size for index in taken):
            raise InputError(
                f"vocabulary: special symbols of the classes {taken}, expected different ones "
                f"from 1 to {self.size - 1} in ascending order"
            )
        free = [index for index in range(1, self.size) if index not in taken]
        indices = dict(zip(self.characters, free, strict=True))
        symbols = dict(self.specials) | {index: name for name, index in indices.items()}
        object.__setattr__(self, "_indices", indices)
        object.__setattr__(self, "_symbols", tuple(symbols[i] for i in range(1, self.size)))

    @property
    def size(self) -> int:
        """Number of classes of the head, the blank included."""
        return len(self.characters) + len(self.specials) + 1

    @property
    def symbols(self) -> tuple[str, ...]:
        """Characters and special symbols: those of the classes 1, 2, ..."""
        return self._symbols

    @property
    def silent(self) -> tuple[int, ...]:
        """Classes that spell nothing: the blank and the special symbols."""
        return (BLANK, *(index for index, _ in self.specials))

    @property
    def boundary(self) -> int:
        """Class of the word boundary."""
        return self._indices[WORD_BOUNDARY]

    def outside(self, text: str) -> list[str]:
        """The characters of a text, in its order, that `encode` refuses."""
        known = self._indices
        spelled = "".join(text.split())
        return [c for c in spelled if c not in known or c == WORD_BOUNDARY]

    def encode(self, text: str, utterance: str = "") -> np.ndarray:
        """Class indices of a text: int32 (characters and boundaries,).

        Raises InputError, naming `utterance`, for a character outside the vocabulary.
        """
        for character in self.outside(text):
            raise InputError(self._refusal(character, utterance))
        spelled = " ".join(text.split()).replace(" ", WORD_BOUNDARY)
        return np.array([self._indices[character] for character in spelled], np.int32)

    def decode(self, indices: Sequence[int] | np.ndarray) -> str:
        """Text of a labelling: a space for every word boundary (as in fairseq), none at the ends.

        Raises ValueError for the blank or an index outside the vocabulary.
        """
        indices = [int(i) for i in indices]
        if any(not BLANK < i < self.size for i in indices):
            raise ValueError(f"a labelling holds classes 1 to {self.size - 1}, found {indices}")
        silent = self.silent
        spelled = "".join(self.symbols[i - 1] for i in indices if i not in silent)
        return spelled.replace(WORD_BOUNDARY, " ").strip()

    def collapse(self, frame_labels: Sequence[int] | np.ndarray) -> np.ndarray:
        """Labelling (int32) of one class per frame: repeats are merged, then blanks dropped."""
        frames = np.asarray(frame_labels, np.int32)
        starts = np.ones(frames.shape, bool)
        starts[1:] = frames[1:] != frames[:-1]
        return frames[starts & (frames != BLANK)]

    def to_dict(self) -> dict[str, list]:
        """JSON-able, for `from_dict`."""
        specials = [[index, name] for index, name in self.specials]
        return {"characters": list(self.characters), **({"specials": specials} if specials else {})}

    @classmethod
    def from_dict(cls, values: object) -> Vocabulary:
        """Vocabulary of what `to_dict` gave. Raises InputError for anything else."""
        if not isinstance(values, dict) or not isinstance(values.get("characters"), list):
            raise InputError('vocabulary: expected {"characters": [...]}')
        try:
            specials = tuple((int(index), str(name)) for index, name in values.get("specials", ()))
        except (TypeError, ValueError):
            raise InputError('vocabulary: "specials" holds pairs of class and name') from None
        return cls(tuple(values["characters"]), specials)

    @classmethod
    def from_symbols(cls, symbols: Sequence[str]) -> Vocabulary:
        """Vocabulary whose classes 1, 2, ... are `symbols`; longer ones are special."""
        numbered = list(enumerate(symbols, start=1))
        return cls(
            tuple(symbol for _, symbol in numbered if len(symbol) == 1),
            tuple((index, symbol) for index, symbol in numbered if len(symbol) != 1),
        )

    def _refusal(self, character: str, utterance: str) -> str:
        where = f"utterance {utterance}: " if utterance else ""
        advice = "normalise the transcripts or build a vocabulary from them"
        for other in (character.upper(), character.lower()):
            if other != character and other in self._indices:
                advice = f"the vocabulary has {other!r}: bring the transcripts to its case"
        return (
            f"{where}the transcript holds {character!r} (U+{ord(character):04X}), which is not "
            f"one of the vocabulary's characters {''.join(self.characters)}; {advice}"
        )


LIBRISPEECH = Vocabulary(tuple("|ETAONIHSRDLUMWCFGYPBVK'XJQZ"))
"""26 letters, apostrophe and word boundary: 29 classes with the blank (HuBERT, section IV-D)."""
