"""Where the vocabulary of a fine-tuning comes from."""

import base64
import json

import numpy as np
import pytest
import splits

from hubert_jax.asr.vocabularies import VocabularyConfig, choose
from hubert_jax.convert import formats
from hubert_jax.convert.network import Network
from hubert_jax.data import manifests
from hubert_jax.data.records import Utterance
from hubert_jax.errors import InputError
from hubert_jax.model.architecture import Architecture
from hubert_jax.vocabulary import LIBRISPEECH, TextPolicy, Vocabulary


@pytest.fixture
def split(tmp_path):
    """texts -> directory of a split that has them."""

    def write(*texts):
        audio = np.zeros(20_000, np.int16)
        directory = tmp_path / f"split-{len(list(tmp_path.iterdir()))}"
        directory.mkdir()
        said = (Utterance(f"id-{n}", audio, "", text) for n, text in enumerate(texts))
        splits.write_split(directory, "some", said, [], 1)
        return directory

    return write


def _chosen(directory, file="", init_from="", **values):
    config = VocabularyConfig(**values)
    config.require_meant(str(file), init_from)
    audio = manifests.read_manifest(directory)
    return choose(config, str(file), init_from, str(directory), audio)


def test_without_a_word_it_is_that_of_librispeech(split):
    assert _chosen(split("a")) == LIBRISPEECH
    policy = TextPolicy(case="upper", punctuation="drop", replace=("ß=ss",))
    assert _chosen(split("a"), punctuation="drop", replace=("ß=ss",)).policy == policy


def test_letters_are_learnt_as_the_policy_leaves_them(split, capsys):
    directory = split("Съешь ещё", "e\u0301té, ещё!", "\u00e9")
    found = _chosen(directory, source="transcripts")
    assert found.characters == ("|", *sorted({*"Съешьещёt,!\u00e9"}))
    assert found.policy == TextPolicy()
    assert "vocabulary of 12 symbols: |!,t\u00e9Сешщъьё; case keep" in (capsys.readouterr().out)
    upper = _chosen(directory, source="transcripts", case="upper", punctuation="drop")
    assert upper.characters == ("|", *sorted("ЪЬЕЁСШЩ\u00c9T"))
    assert upper.normalised("ещё… e\u0301") == "ЕЩЁ \u00c9"
    assert _chosen(split("语言"), source="transcripts").characters == tuple(sorted("语言"))
    with pytest.raises(InputError, match="no symbols in its transcripts"):
        _chosen(split("...", "!"), source="transcripts", punctuation="drop")


def test_phones_are_learnt_between_spaces(split):
    found = _chosen(split("B AH0 <noise>", "tʃ B"), source="transcripts", separated=True)
    assert found.characters == ("AH0", "B", "tʃ") and found.separated
    assert found.outside("B <noise>") == ["<noise>"]


def test_files(split, tmp_path):
    directory, path = split("a"), tmp_path / "symbols.txt"
    path.write_text("\ufeff|\na\r\nsch\n\ne\u0301\n", encoding="utf-8")
    found = _chosen(directory, path)
    assert found.characters == ("|", "a", "sch", "\u00e9")
    assert found.policy == TextPolicy(case="lower")
    assert _chosen(directory, path, separated=True).separated

    path = tmp_path / "vocab.json"
    path.write_text(json.dumps({"a": 0, "|": 1, "[UNK]": 2, "[PAD]": 3, "ü": 4}))
    assert _chosen(directory, path) == Vocabulary.from_symbols(("a", "|", "[UNK]", "ü"))
    (tmp_path / "tokenizer_config.json").write_text('{"word_delimiter_token": "ü"}')
    with pytest.raises(InputError, match="'|' of vocab.json cannot be spelt"):
        _chosen(directory, path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "no such file"),
        ("a.txt", b"\xff", "expected UTF-8 text, a symbol a line"),
        ("a.txt", b"\n", "no symbol, expected some"),
        ("a.txt", b"a\nb c\n", "found the symbol 'b c'"),
        ("a.txt", b"a\na\n", "the symbol 'a' is listed twice"),
        ("a.txt", b"<pad>\na\n", "found <pad>, by which transformers means the blank"),
        ("missing.json", None, "no such file"),
        ("a.json", b"[1]", "expected ..SYMBOL.: CLASS"),
        ("a.json", b'{"a": 0}', "'<pad>', the blank, is missing"),
        ("a.json", b'{"<pad>": 0, "a": 7}', "index 1 is missing"),
        ("missing.model", None, "no such file"),
    ],
)
def test_files_that_are_no_vocabulary(split, tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=f"config.vocabulary_file={path}: .*{message}") as error:
        _chosen(split("a"), path)
    assert "\n" not in str(error.value)


def test_that_of_the_network_which_is_started_from(split, tmp_path):
    architecture = Architecture(**splits.TINY_BASE["architecture"])
    kept = Vocabulary(tuple("|abé"), policy=TextPolicy(case="lower", outside="drop"))
    params = splits.random_parameters(architecture, vocabulary_size=kept.size)
    where = f"orbax:{tmp_path}/net"
    formats.write(where, Network(params, architecture, vocabulary=kept))
    assert _chosen(split("a"), init_from=where, source="init_from") == kept
    changed = _chosen(split("a"), init_from=where, source="init_from", outside="fail")
    assert changed.policy == TextPolicy(case="lower")
    # Through every format that has no field for a policy.
    formats.write(f"hf:{tmp_path}/hf", Network(params, architecture, vocabulary=kept))
    assert formats.read(f"hf:{tmp_path}/hf").vocabulary == kept
    del params["ctc_head"]
    formats.write(f"orbax:{tmp_path}/encoder", Network(params, architecture))
    with pytest.raises(InputError, match="encoder: has no CTC head.*learn it from transcripts"):
        _chosen(split("a"), init_from=f"orbax:{tmp_path}/encoder", source="init_from")


@pytest.mark.parametrize(
    ("values", "file", "message"),
    [
        (dict(source="letters"), "", "source='letters': expected transcripts or pieces or init"),
        (dict(source="transcripts"), "a.txt", "_file=a.txt: found with .*source=transcripts"),
        (dict(source="init_from"), "", "source=init_from: found without config.init_from"),
        (dict(separated=True), "", "separated=True: expected with"),
        (dict(source="pieces", separated=True), "", "separated=True: expected with"),
        (dict(source="pieces", pieces=1), "", "pieces=1: expected at least 2"),
        (dict(case="title"), "", "case='title': expected keep or upper or lower"),
        (dict(replace=("a",)), "", "replace='a': expected FROM=TO"),
    ],
)
def test_what_is_asked_for_fits_together(values, file, message):
    with pytest.raises(InputError, match=f"^config.vocabulary.?{message}"):
        VocabularyConfig(**values).require_meant(file, "")


def test_word_pieces(split, tmp_path):
    """Learnt, given as a file, kept without it, and spelt back."""
    sentencepiece = pytest.importorskip("sentencepiece")
    verbs = [stem + end for stem in "walk talk jump look turn call".split() for end in ("s", "ed")]
    texts = [f"{who} {verb} {at}" for who in ("the cat", "he") for verb in verbs for at in "xyz"]
    directory = split(*texts)
    found = _chosen(directory, source="pieces", pieces=26)
    assert found.size == 26 and any(len(symbol) > 2 for symbol in found.characters)
    assert " " in found.characters and found.boundary < 0  # a piece by itself, which ends no word
    assert _chosen(directory, source="pieces", pieces=26) == found
    for text in texts:
        assert found.decode(found.encode(text)) == text
    assert found.outside("the éf") == ["é", "f"]
    kept = Vocabulary.from_dict(json.loads(json.dumps(found.to_dict())))
    assert kept == found and (kept.encode("the cat") == found.encode("the cat")).all()
    with pytest.raises(InputError, match="config.vocabulary.pieces=5000: "):
        _chosen(directory, source="pieces", pieces=5000)
    model = sentencepiece.SentencePieceProcessor(model_proto=base64.b64decode(found.model))
    assert model.encode(texts[0]) == found.encode(texts[0]).tolist()
    path = tmp_path / "own.model"
    path.write_bytes(model.serialized_model_proto())
    assert _chosen(directory, path).characters == found.characters
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match="own.model: vocabulary: no model of sentencepiece"):
        _chosen(directory, path)
