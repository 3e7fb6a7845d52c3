"""The tokenizer beside a CTC model of transformers: our vocabulary to its files and back.

Source: transformers 5.23, `tokenization_wav2vec2.py`, `tokenization_utils_base.py`.
"""

import itertools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from hubert_jax.errors import InputError
from hubert_jax.vocabulary import BLANK, WORD_BOUNDARY, Vocabulary

BLANK_TOKEN = "<pad>"  # transformers' CTC models take the padding token for the blank
_TOKENS, _ADDED, _SETTINGS = "vocab.json", "added_tokens.json", "tokenizer_config.json"
TOKENIZER_FILES = (_TOKENS, _ADDED, _SETTINGS, "special_tokens_map.json")
_LETTERS, _PHONES = "Wav2Vec2CTCTokenizer", "Wav2Vec2PhonemeCTCTokenizer"
_FIXED = {  # another value would give other texts
    "tokenizer_class": (_LETTERS, "Wav2Vec2Tokenizer", _PHONES, None),
    "replace_word_delimiter_char": (" ",),
}
_CLEANED = frozenset(".?!,'")
_LISTED = 5  # classes of a note


def tokenizer_files(vocabulary: Vocabulary) -> dict[str, dict[str, Any]]:
    """The files of a `Wav2Vec2CTCTokenizer`, of phones that of their own, by name.

    `<s>`, `</s>` and `<unk>` are there only where the head has rows for them: a decoder must not
    choose rows that were never trained, and a text outside the vocabulary is to be refused.
    """
    tokens = {BLANK_TOKEN: BLANK}
    tokens |= {symbol: i for i, symbol in enumerate(vocabulary.symbols, start=1)}
    special: dict[str, str | None] = {"pad_token": BLANK_TOKEN}
    for key, symbol in (("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")):
        special[key] = symbol if symbol in tokens else None
    letters = {
        "word_delimiter_token": WORD_BOUNDARY,
        "replace_word_delimiter_char": " ",
        "do_lower_case": False,
    }
    # Where it is special, a word's end is in no text of phones.
    ends = WORD_BOUNDARY if WORD_BOUNDARY in dict(vocabulary.specials).values() else None
    phones = {"do_phonemize": False, "word_delimiter_token": ends}
    config = {
        "tokenizer_class": _PHONES if vocabulary.separated else _LETTERS,
        "processor_class": "Wav2Vec2Processor",
        **special,
        **(phones if vocabulary.separated else letters),
        "clean_up_tokenization_spaces": False,
    }
    return {
        "vocab.json": tokens,
        "tokenizer_config.json": config,
        "special_tokens_map.json": {key: token for key, token in special.items() if token},
    }


def read_vocabulary(
    directory: pathlib.Path, beside: Mapping[str, Any], classes: int | None = None
) -> tuple[Vocabulary, list[int], tuple[str, ...]]:
    """The vocabulary of a head there, the row there of each of our classes, and notes.

    `beside` are the directory's JSON files; without `classes` the head has as many as tokens. Rows
    without a token, and special tokens, are classes that spell nothing. Raises InputError, naming
    file and field, for tokens that do not fit the head and settings under which transformers would
    give another text.
    """
    path, settings = directory / _TOKENS, _settings(directory, beside)
    tokens = _tokens(directory, _of_language(directory, beside, settings), classes)
    classes = max(tokens, default=-1) + 1 if classes is None else classes
    rows_of = {token: row for row, token in tokens.items()}
    named = settings.get("pad_token")
    pads = [_content(named)] if named else [BLANK_TOKEN, "[PAD]"]
    found = [rows_of[pad] for pad in pads if pad in rows_of]
    stated = beside["config.json"].get("pad_token_id")
    blank = stated if stated in found or not found else found[0]
    if type(blank) is not int or not 0 <= blank < classes:
        raise InputError(
            f"{path}: {pads[0]!r}, the blank, is missing, and pad_token_id of config.json is "
            f"{stated!r}"
        )
    notes: tuple[str, ...] = ()
    if blank != stated:
        notes += (
            f"taken for granted: {tokens[blank]!r}, class {blank}, is the blank, as the tokenizer "
            f"says; pad_token_id of config.json is {stated!r}",
        )
    if named and not found:
        notes += (
            f"taken for granted: class {blank} is the blank, as config.json says; pad_token "
            f"{pads[0]!r} is no token",
        )
    rows = [blank, *(row for row in range(classes) if row != blank)]
    try:
        vocabulary = _vocabulary(directory, settings, [tokens.get(row, row) for row in rows[1:]])
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    unused = [row for row in range(classes) if row not in tokens and row != blank]
    if unused:
        listed = ", ".join(map(str, unused[:_LISTED])) + ", ..." * (len(unused) > _LISTED)
        notes += (f"without a token, spelling nothing: {len(unused)} classes ({listed})",)
    special = _special(settings) | {WORD_BOUNDARY}  # which phones have, and nobody prints
    silent = [name for _, name in vocabulary.specials if name in rows_of and name not in special]
    if silent:
        listed = ", ".join(map(repr, silent[:_LISTED])) + ", ..." * (len(silent) > _LISTED)
        notes += (f"left out of texts, where transformers prints them: {listed}",)
    if not vocabulary.separated and not {WORD_BOUNDARY, " "} & {
        c[0] for c in vocabulary.characters
    }:
        notes += (f"no {WORD_BOUNDARY!r} among the tokens: texts have no spaces",)
    if _boundary(settings) != WORD_BOUNDARY and not vocabulary.separated:
        notes += (
            f"words end with {settings['word_delimiter_token']!r}, word_delimiter_token of "
            f"{_SETTINGS}; transformers 5.23 passes over it when it loads a tokenizer",
        )
    if settings.get("clean_up_tokenization_spaces") and _CLEANED & set(vocabulary.characters):
        notes += (
            f"left out: clean_up_tokenization_spaces of {_SETTINGS}, by which transformers takes "
            "spaces before punctuation out of its texts",
        )
    if rows != sorted(rows):
        notes += (f"moved: the blank, from class {blank} to class {BLANK}",)
    return vocabulary, rows, notes


def _settings(directory: pathlib.Path, beside: Mapping[str, Any]) -> dict[str, Any]:
    """`tokenizer_config.json`, and what the special tokens of older versions replace in it."""
    settings = dict(beside.get(_SETTINGS, {}))
    if "added_tokens_decoder" not in settings:
        settings |= beside.get("special_tokens_map.json", {})
    for key, expected in _FIXED.items():
        if settings.get(key, expected[0]) not in expected:
            raise InputError(
                f"{directory / _SETTINGS}: {key} is {settings[key]!r}, expected {expected[0]!r}"
            )
    return settings


def _of_language(
    directory: pathlib.Path, beside: Mapping[str, Any], settings: Mapping[str, Any]
) -> Mapping[str, Any]:
    """`beside` with the tokens of the language that is set alone, where there are several's."""
    if (language := settings.get("target_lang")) is None:
        return beside
    tokens = beside.get(_TOKENS, {})
    if not isinstance(language, str) or not isinstance(tokens.get(language), dict):
        known = ", ".join(name for name, of in tokens.items() if isinstance(of, dict)) or "none"
        raise InputError(
            f"{directory / _SETTINGS}: target_lang is {language!r:.100}, expected a language of "
            f"{_TOKENS}, which has {known:.100}"
        )
    return {**beside, _TOKENS: tokens[language]}


def _tokens(
    directory: pathlib.Path, beside: Mapping[str, Any], classes: int | None
) -> dict[int, str]:
    """Tokens by their rows, from all of the files that number some."""
    if _TOKENS not in beside:
        raise InputError(
            f"{directory / _TOKENS}: not there; expected the tokens of the CTC head's "
            f"{classes} classes"
        )
    rows_of: dict[str, int] = {}
    tokens: dict[int, str] = {}
    files_of: dict[int, str] = {}
    for name, token, row in _numbered(directory, beside):
        where = f"{directory / name}: "
        if isinstance(row, dict):
            raise InputError(
                f"{where}{token!r} is a vocabulary of its own; expected one of indices: set "
                f"target_lang in {_SETTINGS} to the head's language"
            )
        if type(row) is not int or row < 0:
            raise InputError(f"{where}{token!r} has the index {row!r:.100}, expected 0 or more")
        files_of.setdefault(row, name)
        if tokens.setdefault(row, token) != token:
            raise InputError(f"{where}index {row} is there twice: {tokens[row]!r} and {token!r}")
        if rows_of.setdefault(token, row) != row:
            raise InputError(f"{where}{token!r} is there twice: {rows_of[token]} and {row}")
    last = max(tokens, default=-1)
    classes = last + 1 if classes is None else classes
    missing = next(row for row in itertools.count() if row not in tokens)
    name = _TOKENS
    problem = f"index {missing} is missing" if missing < last else ""
    if last >= classes:
        name = name if problem else files_of[last]
        problem += "; " * bool(problem) + f"{tokens[last]!r} has the index {last}"
    if problem:
        raise InputError(f"{directory / name}: {problem}; the CTC head has {classes} classes")
    return tokens


def _numbered(directory: pathlib.Path, beside: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """(file, token, index) of all that `beside` has."""
    for name in (_TOKENS, _ADDED):
        for token, row in beside.get(name, {}).items():
            yield name, token, row
    added = beside.get(_SETTINGS, {}).get("added_tokens_decoder") or {}
    if not isinstance(added, dict):
        raise InputError(f"{directory / _SETTINGS}: added_tokens_decoder is no object")
    for row, token in added.items():
        yield _SETTINGS, _content(token), int(row) if row.isdecimal() and len(row) < 10 else row


def _boundary(settings: Mapping[str, Any]) -> Any:
    return settings.get("word_delimiter_token", WORD_BOUNDARY)


def _special(settings: Mapping[str, Any]) -> set[str]:
    """Tokens that the directory calls special."""
    special = {_content(value) for key, value in settings.items() if key.endswith("_token")}
    for key in ("additional_special_tokens", "extra_special_tokens"):
        listed = settings.get(key) or ()
        special |= {_content(value) for value in listed if isinstance(listed, list)}
    added = (settings.get("added_tokens_decoder") or {}).values()
    special |= {_content(each) for each in added if isinstance(each, dict) and each.get("special")}
    return special


def _vocabulary(
    directory: pathlib.Path, settings: Mapping[str, Any], tokens: list[str | int]
) -> Vocabulary:
    """Our vocabulary of tokens, and rows that have none."""
    phones = settings.get("tokenizer_class") == _PHONES
    boundary = settings.get("word_delimiter_token") if phones else _boundary(settings)
    if boundary not in tokens and boundary not in (WORD_BOUNDARY, None) and not phones:
        raise InputError(
            f"{directory / _TOKENS}: no {boundary!r}, word_delimiter_token of {_SETTINGS}"
        )
    # A special character is printed all the same, but what ends a word, of phones, never is.
    special = {name for name in _special(settings) if len(name) > 1 and name != boundary}
    if phones and boundary in tokens:
        special.add(WORD_BOUNDARY)

    def symbol(token: str | int) -> str:
        if isinstance(token, int):
            return f"<unused_{token}>"
        if token == boundary:
            return WORD_BOUNDARY
        if phones or token in special:
            return token
        if token == WORD_BOUNDARY:
            raise InputError(
                f"{directory / _SETTINGS}: with word_delimiter_token {boundary!r}, {token!r} of "
                f"{_TOKENS} cannot be spelt"
            )
        return token.lower() if settings.get("do_lower_case") else token

    return Vocabulary.from_symbols([symbol(t) for t in tokens], phones, special)


def _content(token: Any) -> str:
    """A token's text, which newer versions wrap in an object."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""
