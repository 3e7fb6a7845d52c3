"""Texts of transformers' tokenizers of CTC models, and of those that are written for them."""

import json

import numpy as np
import pytest
import transformers
from oracles import BASE_LIKE

from hubert_jax.convert import fairseq, formats
from hubert_jax.convert.tokenizer import read_vocabulary, tokenizer_files
from hubert_jax.vocabulary import LIBRISPEECH, TextPolicy, Vocabulary

CONFIG = {"model_type": "hubert", "pad_token_id": 0}


def _numbered(*tokens):
    return {token: row for row, token in enumerate(tokens)}


# Tokens, the blank last or first, and settings; no special token but the blank may win a frame.
TOKENIZERS = {
    "letters": (_numbered("|", *"abcd", "<pad>"), {}),
    "capitals": (_numbered("<pad>", "|", *"ABÖẞİ"), {"do_lower_case": True}),
    "digraphs": (_numbered("[PAD]", "|", "s", "c", "h", "sch", "ch", "dz\u030c"), {}),
    "accents": (_numbered("[PAD]", "|", "e", "e\u0301", "\u0301", "\u00e9"), {}),
    "no delimiter": (_numbered("<pad>", *"你好吗"), {}),
    "word pieces": (_numbered("<pad>", " the", " c", "at", " ", "s"), {}),
    "languages": (
        {"deu": _numbered("<pad>", "|", "ä", "ß"), "eng": _numbered("<pad>", "|", *"abcdef")},
        {"target_lang": "deu"},
    ),
    "phones": (
        _numbered("<pad>", "AH0", "B", "tʃ", "d", "aɪ", "ː"),
        {"tokenizer_class": "Wav2Vec2PhonemeCTCTokenizer", "do_phonemize": False},
    ),
    "phones and words": (
        _numbered("<pad>", "|", "AH0", "B", "tʃ"),
        {
            "tokenizer_class": "Wav2Vec2PhonemeCTCTokenizer",
            "do_phonemize": False,
            "word_delimiter_token": "|",
        },
    ),
}


def _write(directory, files):
    directory.mkdir()
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content), encoding="utf-8")
    return transformers.AutoTokenizer.from_pretrained(directory)


def _files(tokens, settings):
    special = {"pad_token": "[PAD]" if "[PAD]" in tokens else "<pad>"}
    special |= dict.fromkeys(("unk_token", "bos_token", "eos_token"))
    settings = {"tokenizer_class": "Wav2Vec2CTCTokenizer", **special, **settings}
    return {"vocab.json": tokens, "tokenizer_config.json": settings, "config.json": CONFIG}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_texts_are_transformers_of_what_is_read_and_of_what_is_written(name, tmp_path):
    files = _files(*TOKENIZERS[name])
    theirs = _write(tmp_path / "theirs", files)
    vocabulary, rows, _ = read_vocabulary(tmp_path / "theirs", files)
    assert len(rows) == vocabulary.size
    # What a run of the vocabulary exports, whose blank is class 0.
    exported = _write(tmp_path / "ours", tokenizer_files(vocabulary) | {"config.json": CONFIG})
    again, same, _ = read_vocabulary(
        tmp_path / "ours", tokenizer_files(vocabulary) | {"config.json": CONFIG}
    )
    assert same == list(range(vocabulary.size)) and again.same_classes(vocabulary)
    frames = np.random.default_rng(0).integers(vocabulary.size, size=(30, 40))
    frames = np.repeat(frames, 2, axis=1)
    for classes in frames:
        text = vocabulary.decode(vocabulary.collapse(classes))
        assert text == theirs.decode([rows[i] for i in classes])
        assert text == exported.decode(classes)
        assert text


@pytest.mark.parametrize("name", ["letters", "digraphs"])
def test_texts_are_spelt_as_transformers_spells_them(name, tmp_path):
    files = _files(*TOKENIZERS[name])
    theirs = _write(tmp_path / "theirs", files)
    vocabulary, rows, _ = read_vocabulary(tmp_path / "theirs", files)
    for text in ("abba cd" if name == "letters" else "schcschsh", "c"):
        spelt = vocabulary.encode(text)
        assert [rows[i] for i in spelt] == theirs(text).input_ids


@pytest.mark.parametrize(
    "vocabulary",
    [
        Vocabulary.from_symbols(("AH0", "<unk>", "B"), separated=True),
        Vocabulary(tuple("|äß"), policy=TextPolicy(("é=e",), "upper", "drop", "drop")),
        Vocabulary((" the", " c", "at"), model="AAAA"),
        Vocabulary.from_symbols(("|", "s", "sch", "<unk>")),
    ],
)
def test_vocabularies_go_through_every_format(vocabulary, make_params, tmp_path):
    found = BASE_LIKE.network(make_params(BASE_LIKE, vocabulary.size), vocabulary)
    for number, scheme in enumerate(("hf", "fairseq", "torchaudio", "orbax", "hf")):
        formats.write(f"{scheme}:{tmp_path}/{number}", found)
        found = formats.read(f"{scheme}:{tmp_path}/{number}")
        assert found.vocabulary == vocabulary
    assert not found.notes


def test_phones_and_word_pieces_of_fairseq_are_known_by_their_dictionary():
    def read(*symbols):
        bias = {"w2v_encoder.proj.bias": np.zeros(len(symbols) + 1)}
        return fairseq._vocabulary(["<s>", *symbols], bias, "file")

    assert read("\u2581the", "\u2581c", "at").decode([1, 2, 3]) == "the cat"
    assert read("<pad>", "AH0", "B").decode([2, 3]) == "AH0 B"
    assert read("|", "a", "madeupword0000").decode([2, 1, 2, 3]) == "a a"


def test_a_vocabulary_of_ours_keeps_what_its_tokens_do_not_tell():
    phones = Vocabulary(("AH0", "B"), separated=True)
    assert tokenizer_files(phones)["tokenizer_config.json"]["tokenizer_class"].count("Phoneme")
    assert LIBRISPEECH.completed(None) is LIBRISPEECH
    kept = Vocabulary.from_dict(LIBRISPEECH.to_dict() | {"policy": {"outside": "drop"}})
    assert LIBRISPEECH.completed(kept.to_dict()) == kept
    assert LIBRISPEECH.completed(phones.to_dict()) is LIBRISPEECH
