"""The tokenizer beside a CTC model of transformers: our vocabulary to its files and back."""

import pathlib
from collections.abc import Mapping
from typing import Any

from hubert_jax import files
from hubert_jax.errors import InputError
from hubert_jax.vocabulary import BLANK, WORD_BOUNDARY, Vocabulary

_BLANK_TOKEN = "<pad>"  # transformers' CTC models take the padding token for the blank


def tokenizer_files(vocabulary: Vocabulary) -> dict[str, dict[str, Any]]:
    """The files of a `Wav2Vec2CTCTokenizer` by name.

    `<s>`, `</s>` and `<unk>` are there only where the head has rows for them: a decoder must not
    choose rows that were never trained, and a text outside the vocabulary is to be refused.
    """
    tokens = {_BLANK_TOKEN: BLANK}
    tokens |= {symbol: i for i, symbol in enumerate(vocabulary.symbols, start=1)}
    special: dict[str, str | None] = {"pad_token": _BLANK_TOKEN}
    for key, symbol in (("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")):
        special[key] = symbol if symbol in tokens else None
    config = {
        "tokenizer_class": "Wav2Vec2CTCTokenizer",
        "processor_class": "Wav2Vec2Processor",
        **special,
        "word_delimiter_token": WORD_BOUNDARY,
        "replace_word_delimiter_char": " ",
        "do_lower_case": False,
        "clean_up_tokenization_spaces": False,
    }
    return {
        "vocab.json": tokens,
        "tokenizer_config.json": config,
        "special_tokens_map.json": {key: token for key, token in special.items() if token},
    }


def read_vocabulary(
    directory: pathlib.Path, classes: int, values: Mapping[str, Any]
) -> tuple[Vocabulary, list[int]]:
    """The vocabulary in `vocab.json`, and the row in the head there of each of our classes."""
    path = directory / "vocab.json"
    tokens = files.read_json(path, "vocabulary of the CTC head")
    if sorted(tokens.values()) != list(range(classes)):
        raise InputError(f"{path}: {len(tokens)} tokens, but the CTC head has {classes} classes")
    blank = tokens.get(_BLANK_TOKEN, values.get("pad_token_id"))
    if blank not in range(classes):
        raise InputError(f"{path}: {_BLANK_TOKEN!r}, the blank, is missing")
    symbols = {i: token for token, i in tokens.items()}
    rows = [blank, *(i for i in range(classes) if i != blank)]
    return Vocabulary.from_symbols(tuple(symbols[i] for i in rows[1:])), rows
