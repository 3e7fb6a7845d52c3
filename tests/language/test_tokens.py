"""Words, pieces and letters as tokens, and text kept in them."""

import numpy as np
import pytest

from hubert_jax.errors import InputError
from hubert_jax.language.encoded import Encoded
from hubert_jax.language.tokens import END, UNKNOWN, Tokens
from hubert_jax.vocabulary import LIBRISPEECH

SENTENCES = [text.split() for text in ("B A", "A C A", "D", "B C A")]


def test_words_are_the_most_frequent():
    tokens = Tokens.learn("word", 3, SENTENCES, LIBRISPEECH)
    assert tokens.words == ("A", "B", "C")  # B before C by the alphabet
    assert tokens.size == 5
    assert tokens.of_sentence(["C", "D", "A"]) == [4, UNKNOWN, 2, END]
    assert Tokens.from_dict(tokens.to_dict()) == tokens


def test_letters_are_those_of_a_head_with_a_boundary_before_each_word():
    tokens = Tokens.learn("letter", 0, SENTENCES, LIBRISPEECH)
    symbols = ["", "<blank>", *LIBRISPEECH.symbols]
    assert tokens.size == 1 + LIBRISPEECH.size
    assert [symbols[number] for number in tokens.of_sentence(["TO", "É"])[:3]] == ["|", "T", "O"]
    assert tokens.of_word("É") == tokens.of_word("ÉA") == tokens.of_word("") == (UNKNOWN,)
    assert Tokens.from_dict(tokens.to_dict()).of_word("TO") == tokens.of_word("TO")


def test_pieces_spell_each_word_by_itself():
    pytest.importorskip("sentencepiece")
    sentences = [text.split() for text in ("THE CAT SAT", "THE CATS", "A CAT", "SAT THE HAT") * 9]
    tokens = Tokens.learn("piece", 10, sentences, LIBRISPEECH)
    assert tokens.size == 11 and tokens.words == ()
    pieces = ["", "", *tokens.spelling.symbols]
    for word in ("THE", "CATS", "TAT"):
        assert "".join(pieces[number] for number in tokens.of_word(word)) == f" {word}"
    assert tokens.of_word("ÉCAT") == (UNKNOWN,)
    again = Tokens.from_dict(tokens.to_dict())
    assert again.of_sentence(["THE", "CAT"]) == tokens.of_sentence(["THE", "CAT"])


def test_text_of_another_case_does_not_fit():
    with pytest.raises(InputError, match="lm: of its 3 letters the network's vocabulary lacks 3"):
        Tokens("word", ("the",)).require_fits(LIBRISPEECH, (), "lm")
    with pytest.raises(InputError, match="lm: knows none of the 2 words of the lexicon, 'A' for"):
        Tokens("word", ("THE",)).require_fits(LIBRISPEECH, ("A", "the"), "lm")
    Tokens("word", ("THE", "É")).require_fits(LIBRISPEECH, (), "lm")
    Tokens("word", ("the",)).require_fits(LIBRISPEECH, ("a", "the"), "lm")


def test_rows_hold_sentences_and_nothing_in_the_padding(tmp_path, monkeypatch):
    from hubert_jax.language import encoded

    tokens = Tokens("word", ("A", "B", "C"))
    monkeypatch.setattr(encoded, "_AT_ONCE", 3)  # written in two parts
    Encoded.write(tmp_path / "text", SENTENCES, tokens)
    text = Encoded.read(tmp_path / "text")
    assert (text.words, text.unknown) == (9, 1)
    assert text.lengths.tolist() == [3, 4, 2, 4]
    rows = text.rows(np.array([3, 0, -1]), 5)
    assert rows["tokens"].tolist() == [[0, 3, 4, 2, 0, 0], [0, 3, 2, 0, 0, 0], [0] * 6]
    assert rows["lengths"].tolist() == [4, 3, 0]
    for name, value in vars(Encoded.of(iter(SENTENCES), tokens)).items():
        np.testing.assert_array_equal(value, getattr(text, name))


@pytest.mark.parametrize("name", ["numbers.int32", "ends.npy", "text.json"])
def test_text_that_is_not_whole_is_none(tmp_path, name):
    assert Encoded.read(tmp_path / "text") is None
    Encoded.write(tmp_path / "text", SENTENCES, Tokens("word", ("A",)))
    path = tmp_path / "text" / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    assert Encoded.read(tmp_path / "text") is None
    at = whole.index(b'"A"') + 1 if name == "text.json" else len(whole) - 4
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 3]) + whole[at + 1 :])
    assert Encoded.read(tmp_path / "text") is None
    path.write_bytes(whole)
    assert Encoded.read(tmp_path / "text") is not None
