"""The job of language models, with KenLM's programs or, where there are none, stand-ins."""

import pytest

from hubert_jax import config, files, lm
from hubert_jax.errors import InputError
from hubert_jax.language import ngram

pytest.importorskip("flashlight.lib.text")


def _run(tmp_path, programs, **values):
    values = dict(workdir=str(tmp_path / "run"), kenlm=programs, order=2) | values
    return lm.run(config.build(lm.LmConfig, values))


def test_estimates_and_measures(tmp_path, programs, held_out_split, capsys):
    texts = tmp_path / "more.txt"
    texts.write_text("some more words\n\n  SIX   words\n")
    found = _run(
        tmp_path,
        programs,
        audio=(str(held_out_split),),
        texts=(str(texts),),
        measured_on=str(held_out_split),
    )
    assert (found["sentences"], found["tokens"]) == (8, 27)
    assert set(ngram.words(found["arpa"])) == {"SIX", "WORDS", "AND", "SOME", "MORE"}
    measured = found["measured"]
    assert (measured["sentences"], measured["unknown"]) == (6, 0)
    assert 1 < measured["perplexity"] < 6
    assert files.sha256_file(found["binary"]) == found["digest"]
    assert files.read_json(tmp_path / "run/lm/result.json", "result") == found
    assert f"perplexity {measured['perplexity']:.2f}" in capsys.readouterr().out


def test_letters_with_boundaries(tmp_path, programs):
    texts = tmp_path / "texts.txt"
    texts.write_text("six words\nAND É\n")
    found = _run(tmp_path, programs, texts=(str(texts),), unit="letter", order=3)
    assert ngram.is_of_characters(found["arpa"])
    assert {"S", "|", "É"} <= set(ngram.words(found["arpa"]))
    assert found["tokens"] == len("six|words") + len("and|e")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(), "config.audio, config.texts: both empty"),
        (dict(texts=("none.txt",)), "config.texts=none.txt: not found"),
        (dict(texts=("EMPTY",)), "no sentence in them"),
        (dict(texts=("BINARY",)), "is not UTF-8; expected a sentence a line"),
        (dict(texts=("FAIL",)), "lmplz: ended with status 1: .*for anything"),
        (dict(texts=("x",), order=0), "config.order=0: expected at least 1"),
        (dict(texts=("x",), unit="phone"), "config.unit='phone': expected one of"),
        (dict(texts=("x",), prune=(1, 0)), "config.prune=.1, 0.: expected counts"),
        (
            dict(texts=("x",), kenlm="nowhere"),
            "config.kenlm=nowhere: found no lmplz .* launch/kenlm",
        ),
    ],
)
def test_what_is_wrong_is_named_and_leaves_nothing(tmp_path, programs, values, message):
    contents = {"EMPTY": b"\n \n", "BINARY": b"\xff\xfe\n", "FAIL": b"FAIL\n"}
    if programs == "" and "FAIL" in message:
        pytest.skip("lmplz estimates this")
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    texts = tuple(
        str(tmp_path / name) if name in contents else name for name in values.get("texts", ())
    )
    with pytest.raises(InputError, match=message):
        _run(tmp_path, programs, **values | dict(texts=texts))
    assert not [path for path in tmp_path.glob("run/lm/*")]


def test_a_program_of_elsewhere_is_named(tmp_path, programs):
    texts = tmp_path / "texts.txt"
    texts.write_text("six words\n")
    for name in ("lmplz", "build_binary"):
        program = tmp_path / "kenlm" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text("#!/no/interpreter\n")
        program.chmod(0o755)
    with pytest.raises(InputError, match="kenlm/lmplz: cannot be started: No such file"):
        _run(tmp_path, programs, texts=(str(texts),), kenlm=str(tmp_path / "kenlm"))
