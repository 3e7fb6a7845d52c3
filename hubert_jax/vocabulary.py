"""Vocabularies of the CTC head: how a transcript is spelt in classes, and classes are read as text.

Class 0 is the blank, then come symbols: characters, digraphs, phones or word pieces; of ours "|",
for the space between words, first, as in fairseq's `dict.ltr.txt`. The heads of fairseq and Hugging
Face have special symbols between them, which keep their classes.
"""

from __future__ import annotations

import base64
import collections
import dataclasses
import functools
import io
import itertools
import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np

from hubert_jax import config as config_lib
from hubert_jax.errors import InputError

BLANK = 0
WORD_BOUNDARY = "|"
_SPECIAL = re.compile(r"<.*>|\[.*\]|madeupword\d+", re.DOTALL)  # the last fills fairseq's heads up
_APOSTROPHES = ("'", "\u2019")
_CHOICES = {
    "case": ("keep", "upper", "lower"),
    "punctuation": ("keep", "drop"),
    "outside": ("fail", "drop"),
}
_LISTED = 60  # symbols of a message
_SENTENCE_BYTES = 2**20  # sentencepiece passes over longer ones


@dataclasses.dataclass(frozen=True)
class TextPolicy:
    """What is done to a transcript before it is spelt, in this order, between Unicode's NFC."""

    replace: tuple[str, ...] = ()  # "FROM=TO", one after the other
    case: str = "keep"  # or upper or lower, of any alphabet
    punctuation: str = "keep"  # drop: becomes a space, but for apostrophes within words
    outside: str = "fail"  # what no symbol spells; drop: is left out

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            if (value := getattr(self, name)) not in known:
                raise InputError(f"vocabulary.{name}={value!r}: expected {' or '.join(known)}")
        for entry in self.replace:
            if "=" not in entry[1:]:
                raise InputError(f"vocabulary.replace={entry!r}: expected FROM=TO")
        # References are replaced in once more, and words of lexicons: that must change nothing.
        parts = [part for entry in self.replace for part in _parts(entry)]
        for text in [*parts, *("".join(pair) for pair in itertools.product(parts, repeat=2))]:
            if (again := self._replaced(once := self._replaced(text))) != once:
                raise InputError(
                    f"vocabulary.replace={self.replace}: makes {once!r} of {text!r}, and {again!r} "
                    "of that; expected replacements that leave alone what they have made"
                )

    def apply(self, text: str) -> str:
        """The text by all of the policy but `outside`, with single spaces."""
        text = self._replaced(unicodedata.normalize("NFC", text))
        if self.case != "keep":
            text = text.upper() if self.case == "upper" else text.lower()
        text = unicodedata.normalize("NFC", text)
        if self.punctuation == "drop":
            text = _without_punctuation(text)
        return " ".join(text.split())

    def _replaced(self, text: str) -> str:
        for entry in self.replace:
            text = text.replace(*_parts(entry))
        return text

    @classmethod
    def of_symbols(cls, symbols: Sequence[str]) -> TextPolicy:
        """That of symbols of one case, or nothing: what released heads ask for without words."""
        text = "".join(symbols)
        upper, lower = text == text.upper(), text == text.lower()
        return cls(case="keep" if upper == lower else "upper" if upper else "lower")


def _parts(entry: str) -> tuple[str, str]:
    """What of a text is replaced, and by what, of "FROM=TO"."""
    end = entry.index("=", 1)
    return unicodedata.normalize("NFC", entry[:end]), unicodedata.normalize("NFC", entry[end + 1 :])


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The symbols a CTC head can emit; class 0 is the blank.

    Special symbols, such as `(3, "<unk>")`, are in no text; `characters` take the classes between.
    A text is spelt by the longest ones first; by sentencepiece where there is a `model`, of which
    word pieces begin with a space; symbol by symbol where its symbols are `separated` by spaces.
    """

    characters: tuple[str, ...]  # in the order of their classes; "|" stands for spaces
    specials: tuple[tuple[int, str], ...] = ()  # (class, name), ascending
    policy: TextPolicy = None  # type: ignore[assignment]  # None: the symbols'
    separated: bool = False
    model: str = dataclasses.field(default="", repr=False)  # the file's bytes, in base64

    def __post_init__(self) -> None:
        for symbol in self.characters:
            spelt = symbol
            if isinstance(symbol, str) and symbol and not self.separated:
                spelt = symbol.removeprefix(" ") or "|"  # of a word piece, or the space itself
            # No spaces within, no half of a character in UTF-16.
            if not isinstance(symbol, str) or not re.fullmatch(r"[^\s\ud800-\udfff]+", spelt):
                raise InputError(
                    f"vocabulary: found the symbol {symbol!r}, expected one or more characters "
                    f"without spaces (the word boundary is {WORD_BOUNDARY!r})"
                )
        repeated = [c for c, n in collections.Counter(self.characters).items() if n > 1]
        if repeated:
            raise InputError(f"vocabulary: the symbol {repeated[0]!r} is listed twice")
        if not self.characters:
            raise InputError("vocabulary: no symbol, expected some")
        taken = [index for index, _ in self.specials]
        if taken != sorted(set(taken)) or any(not BLANK < index < self.size for index in taken):
            raise InputError(
                f"vocabulary: special symbols of the classes {taken}, expected different ones "
                f"from 1 to {self.size - 1} in ascending order"
            )
        if self.policy is None:
            object.__setattr__(self, "policy", TextPolicy.of_symbols(self.characters))

    @property
    def size(self) -> int:
        """Number of classes of the head, the blank included."""
        return len(self.characters) + len(self.specials) + 1

    @functools.cached_property
    def symbols(self) -> tuple[str, ...]:
        """Characters and special symbols: those of the classes 1, 2, ..."""
        symbols = dict(self.specials) | {index: name for name, index in self._indices.items()}
        return tuple(symbols[index] for index in range(1, self.size))

    @property
    def silent(self) -> tuple[int, ...]:
        """Classes that spell nothing: the blank and the special symbols."""
        return (BLANK, *(index for index, _ in self.specials))

    @property
    def boundary(self) -> int:
        """Class of the word boundary, -1 where there is none: of pieces, or scripts without."""
        if self.model:  # a piece that is a space by itself ends no word, it begins one
            return -1
        return self._indices.get(WORD_BOUNDARY, self._indices.get(" ", -1))

    def normalised(self, text: str) -> str:
        """The text as it is learnt and scored: by the policy, without what that leaves out."""
        text = self.policy.apply(text)
        return self._without_outside(self._split(text)) if self.policy.outside == "drop" else text

    def spell(self, text: str) -> tuple[list[int], list[str]]:
        """Classes of a text, by the policy, and in the text's order what no symbol spells."""
        parts = self._split(self.policy.apply(text))
        spelt = list(map(self._spelt, parts))
        outside = [part for part, classes in zip(parts, spelt, strict=True) if classes is None]
        if outside:
            parts = self._split(self._without_outside(parts))
            spelt = list(map(self._spelt, parts))
        if self.model:
            return self._pieces.encode("".join(parts)), outside
        return [index for classes in spelt for index in classes or ()], outside

    def outside(self, text: str) -> list[str]:
        """What of a text, in its order, no symbol spells."""
        return self.spell(text)[1]

    def encode(self, text: str, utterance: str = "") -> np.ndarray:
        """Class indices of a text: int32 (symbols and boundaries,).

        Raises InputError, naming `utterance`, for what no symbol spells, unless the policy is to
        leave that out.
        """
        classes, outside = self.spell(text)
        if outside and self.policy.outside == "fail":
            where = f"utterance {utterance}: " if utterance else ""
            listed = (" " * self.separated).join(self.characters[:_LISTED])
            raise InputError(
                f"{where}the transcript holds {named(outside[0])}, which is not one of the "
                f"vocabulary's {len(self.characters)} symbols {listed}"
            )
        return np.array(classes, np.int32)

    def decode(self, indices: Sequence[int] | np.ndarray) -> str:
        """Text of a labelling: a space for every word boundary (as in fairseq), none at the ends.

        Raises ValueError for the blank or an index outside the vocabulary.
        """
        indices = [int(i) for i in indices]
        if any(not BLANK < i < self.size for i in indices):
            raise ValueError(f"a labelling holds classes 1 to {self.size - 1}, found {indices}")
        silent = self.silent
        spelt = [self.symbols[i - 1] for i in indices if i not in silent]
        if self.separated:
            return " ".join(spelt)
        return "".join(spelt).replace(WORD_BOUNDARY, " ").strip()

    def collapse(self, frame_labels: Sequence[int] | np.ndarray) -> np.ndarray:
        """Labelling (int32) of one class per frame: repeats are merged, then blanks dropped."""
        frames = np.asarray(frame_labels, np.int32)
        starts = np.ones(frames.shape, bool)
        starts[1:] = frames[1:] != frames[:-1]
        return frames[starts & (frames != BLANK)]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, for `from_dict`."""
        specials = [[index, name] for index, name in self.specials]
        return {
            "characters": list(self.characters),
            "policy": config_lib.to_dict(self.policy),
            **({"specials": specials} if specials else {}),
            **({"separated": True} if self.separated else {}),
            **({"model": self.model} if self.model else {}),
        }

    @classmethod
    def from_dict(cls, values: object) -> Vocabulary:
        """Vocabulary of what `to_dict` gave. Raises InputError for anything else.

        Checkpoints of before have no policy: theirs is what their symbols show.
        """
        if not isinstance(values, dict) or not isinstance(values.get("characters"), list):
            raise InputError('vocabulary: expected {"characters": [...]}')
        try:
            specials = tuple((int(index), str(name)) for index, name in values.get("specials", ()))
        except (TypeError, ValueError):
            raise InputError('vocabulary: "specials" holds pairs of class and name') from None
        policy: Any = values.get("policy")
        if policy is not None:
            policy = config_lib.build(TextPolicy, policy, "vocabulary.policy")
        separated, model = values.get("separated") is True, str(values.get("model", ""))
        return cls(tuple(values["characters"]), specials, policy, separated, model)

    @classmethod
    def from_symbols(
        cls, symbols: Sequence[str], separated: bool = False, special: Collection[str] = ()
    ) -> Vocabulary:
        """Vocabulary whose classes 1, 2, ... are `symbols`.

        Special are those in `special`, and longer ones in <> or [] or made up by fairseq.
        """
        numbered = list(enumerate(symbols, start=1))

        def spells(symbol: str) -> bool:
            known = len(symbol) == 1 or (symbol != "" and not _SPECIAL.fullmatch(symbol))
            return known and symbol not in special

        specials = tuple((index, symbol) for index, symbol in numbered if not spells(symbol))
        return cls(tuple(filter(spells, symbols)), specials, separated=separated)

    @classmethod
    def from_pieces(cls, model: bytes, policy: TextPolicy | None = None) -> Vocabulary:
        """Vocabulary of a sentencepiece model, whose piece 0, the unknown one, is the blank here.

        Raises InputError where it is none, its piece 0 is another, or sentencepiece is missing.
        """
        pieces = _sentencepiece(model)
        if pieces.unk_id() != BLANK:
            raise InputError(
                f"vocabulary: the unknown piece of the sentencepiece model is {pieces.unk_id()}, "
                "expected 0; train it with unk_id=0, bos_id=-1, eos_id=-1"
            )
        found = (pieces.id_to_piece(i) for i in range(1, pieces.get_piece_size()))
        symbols = tuple(piece.replace("\u2581", " ") for piece in found)
        text = base64.b64encode(model).decode()
        return cls(symbols, policy=policy, model=text)  # type: ignore[arg-type]

    @classmethod
    def learnt_pieces(cls, texts: Iterable[str], pieces: int, key: str) -> Vocabulary:
        """Word pieces of sentencepiece's unigrams; it takes the texts as they stand.

        Raises InputError, about the configuration's `key`, for what they do not give.
        """
        model = io.BytesIO()
        try:
            _library(f"{key}={pieces}: word pieces are learnt").SentencePieceTrainer.train(
                sentence_iterator=iter(list(texts)),  # what it raises would be lost in there
                model_writer=model,
                model_type="unigram",
                vocab_size=pieces,
                character_coverage=1.0,
                normalization_rule_name="identity",
                unk_id=0,
                bos_id=-1,
                eos_id=-1,
                max_sentence_length=_SENTENCE_BYTES,
                num_threads=1,  # or the pieces would depend on the cores
                minloglevel=2,
            )
        except InputError:
            raise
        except Exception as error:  # of several kinds
            reason = " ".join(str(error).split())
            raise InputError(f"{key}={pieces}: {reason}") from None
        return cls.from_pieces(model.getvalue())

    def completed(self, described: object) -> Vocabulary:
        """What `to_dict` gave, where its classes are these: a list of symbols does not tell all."""
        if described is None:
            return self
        found = Vocabulary.from_dict(described)
        return found if found.same_classes(self) else self

    def same_classes(self, other: Vocabulary) -> bool:
        """Whether both spell the same by every class, whatever is done to a text before."""
        return (self.symbols, self.silent, self.separated) == (
            *(other.symbols, other.silent, other.separated),
        )

    @functools.cached_property
    def _indices(self) -> dict[str, int]:
        taken = dict(self.specials)
        free = (index for index in range(1, self.size) if index not in taken)
        return dict(zip(self.characters, free, strict=True))

    @functools.cached_property
    def _classes(self) -> dict[str, tuple[int, ...]]:
        """Classes by what stands in a text."""
        if self.model:  # which knows them by itself
            return {character: () for character in {" "}.union(*self.characters)}
        found: dict[str, tuple[int, ...]] = {}
        for symbol, index in self._indices.items():
            found.setdefault(unicodedata.normalize("NFC", symbol), (index,))
        if not self.separated and WORD_BOUNDARY in found:
            found[" "] = found.pop(WORD_BOUNDARY)
        return found

    @functools.cached_property
    def _longest_first(self) -> re.Pattern[str]:
        several = sorted((s for s in self._classes if len(s) > 1), key=len, reverse=True)
        return re.compile("|".join([*map(re.escape, several), "."]), re.DOTALL)

    @functools.cached_property
    def _pieces(self) -> Any:
        return _sentencepiece(base64.b64decode(self.model))

    @functools.cached_property
    def _begins_words(self) -> bool:
        """Whether symbols hold the space before a word, as pieces do."""
        return not self.model and any(len(s) > 1 and s[0] == " " for s in self.characters)

    def _split(self, text: str) -> list[str]:
        """A text in parts, each of which a symbol may spell."""
        if self.separated:
            return text.split()
        if self.model:
            return list(text)
        return self._longest_first.findall(" " * (self._begins_words and text != "") + text)

    def _spelt(self, part: str) -> tuple[int, ...] | None:
        """Classes of a part, of its letter and its accents where it has none itself."""
        if (found := self._classes.get(part)) is not None:
            return found
        parts = [self._classes.get(c) for c in unicodedata.normalize("NFD", part)]
        if len(parts) == 1 or any(each is None for each in parts):
            return None
        return tuple(index for each in parts for index in each or ())

    def _without_outside(self, parts: Sequence[str]) -> str:
        kept = (" " * self.separated).join(p for p in parts if self._spelt(p) is not None)
        return " ".join(unicodedata.normalize("NFC", kept).split())


def named(part: str) -> str:
    """A part of a text with its code points: 'É' (U+00C9)."""
    return f"{part!r} ({' '.join(f'U+{ord(character):04X}' for character in part)})"


def _without_punctuation(text: str) -> str:
    def stays(i: int) -> bool:
        within = text[i - 1 : i].isalpha() and text[i + 1 : i + 2].isalpha()
        return not unicodedata.category(text[i]).startswith("P") or (
            text[i] in _APOSTROPHES and within
        )

    return "".join(c if stays(i) else " " for i, c in enumerate(text))


def _library(use: str) -> Any:
    try:
        import sentencepiece
    except ImportError:
        raise InputError(
            f"{use} by sentencepiece, which is not installed; pip install 'hubert_jax[pieces]'"
        ) from None
    return sentencepiece


def _sentencepiece(model: bytes) -> Any:
    library = _library("vocabulary: word pieces are spelt")
    try:
        return library.SentencePieceProcessor(model_proto=model)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"vocabulary: no model of sentencepiece ({error!s:.100})") from None


LIBRISPEECH = Vocabulary(tuple("|ETAONIHSRDLUMWCFGYPBVK'XJQZ"))
"""26 letters, apostrophe and word boundary: 29 classes with the blank (HuBERT, section IV-D).

Its policy is upper case, which its letters show.
"""
