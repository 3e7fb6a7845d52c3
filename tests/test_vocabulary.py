"""Vocabulary: order, round trips, refusals."""

import json
import string

import numpy as np
import pytest

from hubert_jax.errors import InputError
from hubert_jax.vocabulary import BLANK, LIBRISPEECH, Vocabulary


def test_librispeech_is_letters_apostrophe_boundary_and_blank():
    assert LIBRISPEECH.size == 29
    assert sorted(LIBRISPEECH.characters) == sorted(string.ascii_uppercase + "'|")


def test_order_is_that_of_the_released_32_class_heads():
    theirs = "<s> <pad> </s> <unk> | E T A O N I H S R D L U M W C F G Y P B V K ' X J Q Z".split()
    assert tuple(theirs[i + 3] for i in range(1, LIBRISPEECH.size)) == LIBRISPEECH.characters
    assert LIBRISPEECH.boundary == 1


@pytest.mark.parametrize("text", ["HELLO WORLD", "DON'T", "A", ""])
def test_encode_then_decode_gives_the_text_back(text):
    indices = LIBRISPEECH.encode(text)
    assert indices.dtype == np.int32
    assert indices.shape == (len(text),)
    assert BLANK not in indices
    assert LIBRISPEECH.decode(indices) == text


def test_spaces_of_a_text_are_normalised_and_boundaries_of_a_labelling_kept():
    np.testing.assert_array_equal(LIBRISPEECH.encode(" A  B\n"), LIBRISPEECH.encode("A B"))
    a, b, boundary = *LIBRISPEECH.encode("AB"), LIBRISPEECH.boundary
    assert LIBRISPEECH.decode([boundary, a, boundary, boundary, b, boundary]) == "A  B"
    assert LIBRISPEECH.decode([boundary, boundary]) == ""


def test_collapse_merges_repeats_before_it_drops_blanks():
    np.testing.assert_array_equal(
        LIBRISPEECH.collapse([0, 3, 3, 0, 3, 5, 5, 0, 0, 1]), [3, 3, 5, 1]
    )
    assert LIBRISPEECH.collapse([]).shape == (0,)
    assert LIBRISPEECH.collapse([0, 0]).shape == (0,)


@pytest.mark.parametrize(
    ("text", "found"), [("CAFÉ", "'É' (U+00C9)"), ("A|B", "'|'"), ("A-B", "'-'")]
)
def test_unknown_character_is_named_with_its_utterance(text, found):
    with pytest.raises(InputError) as error:
        LIBRISPEECH.encode(text, utterance="19-198-0001")
    assert "19-198-0001" in str(error.value)
    assert found in str(error.value)
    assert "\n" not in str(error.value)


def test_wrong_case_is_recognised():
    with pytest.raises(InputError, match="'h'.*bring the transcripts to its case"):
        LIBRISPEECH.encode("hello")


@pytest.mark.parametrize("indices", [[0], [29], [-1]])
def test_decode_refuses_what_is_no_labelling(indices):
    with pytest.raises(ValueError):
        LIBRISPEECH.decode(indices)


def test_vocabulary_of_another_language():
    vocabulary = Vocabulary(("|", "a", "d", "ñ", "n", "ú"))
    assert vocabulary.decode(vocabulary.encode("da ñandú")) == "da ñandú"
    assert Vocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict()))) == vocabulary


@pytest.mark.parametrize(
    "values",
    [None, [], {}, {"characters": "|A"}]
    + [{"characters": listed} for listed in (["|", "AB"], ["A"], ["|", "A", "A"], ["|", 3])],
)
def test_broken_vocabularies_are_refused(values):
    with pytest.raises(InputError, match="vocabulary"):
        Vocabulary.from_dict(values)


def test_special_symbols_own_classes_and_never_appear_in_a_text():
    symbols = ("<s>", "</s>", "<unk>", *LIBRISPEECH.characters)
    vocabulary = Vocabulary.from_symbols(symbols)
    assert (vocabulary.size, vocabulary.symbols) == (32, symbols)
    assert vocabulary.characters == LIBRISPEECH.characters
    assert vocabulary.silent == (BLANK, 1, 2, 3)
    assert (vocabulary.encode("A CAT") - 3 == LIBRISPEECH.encode("A CAT")).all()
    assert vocabulary.decode([1, *vocabulary.encode("A CAT"), 3, 2]) == "A CAT"
    assert Vocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict()))) == vocabulary
    # Wherever they stand, for example behind the characters.
    scattered = Vocabulary.from_symbols(("|", "<unk>", "A", "<x>"))
    assert scattered.encode("A A").tolist() == [3, 1, 3]
    assert scattered.silent == (BLANK, 2, 4)
    for specials in (((0, "<s>"),), ((2, "<s>"), (2, "<t>")), ((5, "<s>"),)):
        with pytest.raises(InputError, match="special symbols of the classes"):
            Vocabulary(("|", "A"), specials)
