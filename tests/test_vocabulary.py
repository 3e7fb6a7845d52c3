"""Vocabulary: order, round trips, refusals."""

import json
import string
import unicodedata

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from hubert_jax.errors import InputError
from hubert_jax.vocabulary import BLANK, LIBRISPEECH, TextPolicy, Vocabulary


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


def test_transcripts_are_brought_to_the_case_of_the_letters():
    np.testing.assert_array_equal(LIBRISPEECH.encode("don't  go"), LIBRISPEECH.encode("DON'T GO"))
    assert LIBRISPEECH.policy == TextPolicy(case="upper")
    assert Vocabulary(("|", "a", "ß")).normalised("Aß") == "aß"
    assert Vocabulary(("|", "A", "b")).normalised("aB") == "aB"  # of both
    assert Vocabulary(("語", "り")).policy == TextPolicy()


@pytest.mark.parametrize(
    ("policy", "text", "expected"),
    [
        ({}, " E\u0301te\t\u00c9te\n", "\u00c9te \u00c9te"),
        (dict(case="upper"), "straße ΐ ο\u0301δος", "STRASSE \u03aa\u0301 \u038cΔΟΣ"),
        (dict(case="lower"), "ΟΔΟΣ Ёж ÄU\u0308", "οδος ёж äü"),
        (dict(case="lower", replace=("İ=i", "I=ı")), "IĞDIR İL", "ığdır il"),
        (dict(replace=("’='", "==ist", "ae=ä", "a\u0308=ä")), "’ = ae ä", "' ist ä ä"),
        (dict(replace=("x=",)), "axa", "aa"),
        (
            dict(punctuation="drop"),
            "«I’m»—‘well-read’, dogs' 3.5 ¿no?",
            "I’m well read dogs 3 5 no",
        ),
        (dict(punctuation="drop"), "...!", ""),
    ],
)
def test_what_a_policy_makes_of_a_text(policy, text, expected):
    assert TextPolicy(**policy).apply(text) == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(case="Upper"), "case='Upper': expected keep or upper or lower"),
        (dict(punctuation="fail"), "punctuation='fail'"),
        (dict(outside="keep"), "outside='keep': expected fail or drop"),
        *(
            (dict(replace=(entry,)), f"replace='{entry}': expected FROM=TO")
            for entry in ("ß", "=x")
        ),
        (dict(replace=("A=AH",)), "replace=.*: makes 'AH' of 'A', and 'AHH' of that; expected"),
        (dict(replace=("SS=S",)), "replace=.*: makes 'SS' of 'SSS?S', and 'S' of that"),
        (dict(replace=("a=b", "c=a")), "replace=.*: makes 'a' of 'c', and 'b' of that"),
    ],
)
def test_policies_that_nobody_knows_are_refused(values, message):
    with pytest.raises(InputError, match=f"vocabulary.{message}"):
        TextPolicy(**values)


def test_the_longest_symbols_come_first():
    vocabulary = Vocabulary(("|", "s", "c", "h", "sch", "ch", "i"))
    assert vocabulary.encode("Schi chsch").tolist() == [5, 7, 1, 6, 5]
    assert vocabulary.decode([5, 7, 1, 6, 5]) == "schi chsch"
    phones = Vocabulary(("AH0", "B", "|"), separated=True)
    assert phones.spell("b ah0 | BAH0") == ([2, 1, 3], ["BAH0"])
    assert phones.decode([2, 1, 3]) == "B AH0 |"


def test_accents_are_spelt_however_the_symbols_have_them():
    whole, apart = Vocabulary(("e\u0301", "e")), Vocabulary(("e", "\u0302", "\u0301"))
    assert whole.encode("\u00e9e").tolist() == [1, 2]
    assert apart.encode("\u1ebf").tolist() == [1, 2, 3]
    assert whole.decode([1]) == "e\u0301"  # as its tokenizer prints it
    assert apart.spell("\u00e8")[1] == ["\u00e8"]


def test_without_a_word_boundary_a_space_is_foreign():
    vocabulary = Vocabulary(("語", "り"))
    assert vocabulary.boundary == -1
    assert vocabulary.spell("語 り") == ([1, 2], [" "])
    with pytest.raises(InputError, match=r"holds ' ' \(U\+0020\)"):
        vocabulary.encode("語 り")


_FOREIGN = strategies.text(strategies.sampled_from("abÉe\u0301s!|- \t\u00e9ß"), max_size=12)


@pytest.mark.parametrize(
    "symbols", ["|abe\u0301s", "abs", ("|", "a", "ab", "s", "\u00e9"), "pieces"]
)
@hypothesis.given(text=_FOREIGN)
def test_what_is_dropped_is_dropped_from_references_too(symbols, text):
    symbols = (" a", "b", " ", "ab", "a") if symbols == "pieces" else symbols
    vocabulary = Vocabulary(tuple(symbols), policy=TextPolicy(outside="drop"))
    reference = vocabulary.normalised(text)
    spelt = vocabulary.decode(vocabulary.encode(text))
    assert unicodedata.normalize("NFC", spelt) == reference
    assert vocabulary.normalised(reference) == reference
    assert not vocabulary.outside(reference)


def test_what_is_dropped_between_spaces_leaves_one():
    vocabulary = Vocabulary(tuple("|AB"), policy=TextPolicy(outside="drop"))
    assert vocabulary.encode("A - B").tolist() == [2, 1, 3]
    assert vocabulary.spell("-")[0] == []
    phones = Vocabulary(("AH", "B"), separated=True, policy=TextPolicy(outside="drop"))
    assert phones.normalised("AH x  B") == "AH B"


@pytest.mark.parametrize("indices", [[0], [29], [-1]])
def test_decode_refuses_what_is_no_labelling(indices):
    with pytest.raises(ValueError):
        LIBRISPEECH.decode(indices)


def test_vocabulary_of_another_language():
    vocabulary = Vocabulary(("|", "a", "d", "ñ", "n", "ú"))
    assert vocabulary.decode(vocabulary.encode("da ñandú")) == "da ñandú"
    for kept in (
        vocabulary,
        Vocabulary(("AH0", "B"), separated=True),
        Vocabulary(("|", "a"), ((2, "<x>"),), TextPolicy(("a=b",), "upper", "drop", "drop")),
        Vocabulary((" a", "b"), model="AAAA"),
    ):
        assert Vocabulary.from_dict(json.loads(json.dumps(kept.to_dict()))) == kept


def test_a_checkpoint_of_before_has_the_policy_of_its_letters():
    assert Vocabulary.from_dict({"characters": list(LIBRISPEECH.characters)}) == LIBRISPEECH


@pytest.mark.parametrize(
    "values",
    [None, [], {}, {"characters": "|A"}, {"characters": ["A"], "policy": {"case": "odd"}}]
    + [{"characters": ["A"], "policy": policy} for policy in ([], {"odd": 1}, {"replace": [1]})]
    + [{"characters": [], "separated": True}, {"characters": ["a b"], "separated": True}]
    + [{"characters": c} for c in (["|", "A B"], ["|", "A", "A"], ["|", 3], [""], ["\ud800"])],
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
