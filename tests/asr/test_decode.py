"""The decode job, with given log probabilities in the model's place."""

import json
import pathlib
import shutil
import types

import numpy as np
import pytest
import splits

from hubert_jax import config, decode, files, prepare
from hubert_jax.asr import emissions
from hubert_jax.convert import formats
from hubert_jax.convert.network import Network
from hubert_jax.data import manifests
from hubert_jax.errors import InputError
from hubert_jax.model.architecture import Architecture, Regularization
from hubert_jax.networks import trained
from hubert_jax.tasks import transcripts
from hubert_jax.vocabulary import LIBRISPEECH, Vocabulary

SPOKEN = {"HELLO ALL": "HELLO ALL", "THE CAT SAT": "THE CAD SAT"}


def _log_probs(text, vocabulary=LIBRISPEECH):
    path = [c for label in vocabulary.encode(text) for c in (label, 0)]
    logits = 10.0 * np.eye(vocabulary.size)[path]
    return (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32)


@pytest.fixture
def outputs(monkeypatch):
    """What the model is to give for the split, `rows` of (id, text, log_probs), and itself."""
    rows = [
        (0, f"utt-{i}", text, _log_probs(heard)) for i, (text, heard) in enumerate(SPOKEN.items())
    ]
    network = types.SimpleNamespace(where="orbax:run", vocabulary=LIBRISPEECH, fingerprint="f")
    manifest = types.SimpleNamespace(seconds=4.5, digest="abc")
    monkeypatch.setattr(emissions, "emissions", lambda trained, split, shards: iter(rows))
    monkeypatch.setattr(trained, "load", lambda where, execution: network)
    monkeypatch.setattr(manifests, "read_manifest", lambda split: manifest)
    monkeypatch.setattr(transcripts, "tell_outside", lambda *arguments: None)
    return types.SimpleNamespace(rows=rows, network=network)


def _config(tmp_path, **values):
    required = {"workdir": str(tmp_path), "checkpoint": "checkpoint", "audio": "split"}
    return config.build(decode.DecodeConfig, required | values)


def test_writes_hypotheses_and_rates(tmp_path, outputs, capsys):
    result = decode.run(_config(tmp_path))
    assert result["wer"] == {"greedy": 1 / 5, "beam": 1 / 5}
    assert result["cer"] == {"greedy": 1 / 20, "beam": 1 / 20}
    assert result["fingerprint"] == "f"
    assert (result["utterances"], result["words"], result["audio_seconds"]) == (2, 5, 4.5)
    assert result["word_errors"]["beam"]["substitutions"] == 1

    directory = tmp_path / "decode"
    assert files.read_json(directory / "result.json", "result") == result
    assert result["hypotheses_digest"] == files.sha256_file(directory / "hypotheses.jsonl")
    lines = (directory / "hypotheses.jsonl").read_text().splitlines()
    rows = [
        {"id": f"utt-{i}", "reference": text, "greedy": heard, "beam": heard}
        for i, (text, heard) in enumerate(SPOKEN.items())
    ]
    assert [json.loads(line) for line in lines] == result["examples"] == rows
    shown = capsys.readouterr().out
    assert "THE CAD SAT" in shown
    assert "WER 20.00 %" in shown


def test_beam_sums_alignments_where_greedy_takes_the_best(tmp_path, outputs):
    a = int(LIBRISPEECH.encode("A")[0])
    log_probs = np.full((2, LIBRISPEECH.size), np.log(1e-9), np.float32)
    log_probs[:, 0], log_probs[:, a] = np.log(0.6), np.log(0.4)
    outputs.rows[:] = [(0, "utt", "A", log_probs)]
    result = decode.run(_config(tmp_path))
    assert result["wer"] == {"greedy": 1.0, "beam": 0.0}


def test_greedy_only(tmp_path, outputs):
    result = decode.run(_config(tmp_path, greedy=True))
    assert list(result["wer"]) == list(result["decode_seconds"]) == ["greedy"]
    assert "beam" not in (tmp_path / "decode" / "hypotheses.jsonl").read_text()


def test_word_score_reaches_the_search(tmp_path, outputs):
    boundary = LIBRISPEECH.boundary
    log_probs = _log_probs("AB")
    log_probs[1] = np.log(1e-9)
    log_probs[1, [0, boundary]] = np.log([0.7, 0.3])
    outputs.rows[:] = [(0, "utt", "A B", log_probs)]
    assert decode.run(_config(tmp_path))["word_errors"]["beam"]["deletions"] == 1
    assert decode.run(_config(tmp_path, word_score=2.0))["wer"] == {"greedy": 1.0, "beam": 0.0}


def test_vocabulary_of_another_language(tmp_path, outputs):
    vocabulary = Vocabulary(tuple("|ñandú"))
    outputs.network.vocabulary = vocabulary
    outputs.rows[:] = [(0, "utt", "dún", _log_probs("dún", vocabulary))]
    assert decode.run(_config(tmp_path))["wer"] == {"greedy": 0.0, "beam": 0.0}


def test_special_symbols_are_left_out_and_counted(tmp_path, outputs, capsys):
    vocabulary = Vocabulary.from_symbols(("<s>", "|", "A", "B", "<unk>"))
    outputs.network.vocabulary = vocabulary
    frames = [5, 5, 3, 5, 3, 0, 3, 2, 1, 2, 4, 4]  # <unk> A <unk> A _ A | <s> | B
    log_probs = np.log(np.eye(vocabulary.size, dtype=np.float32)[frames] + 1e-9)
    outputs.rows[:] = [(0, "utt", "AAA B", log_probs)]
    assert decode.run(_config(tmp_path, greedy=True))["wer"] == {"greedy": 0.0}
    shown = capsys.readouterr().out
    assert "left out of greedy texts: 3 special symbols (<unk> 2, <s> 1); the" in shown
    (row,) = map(json.loads, (tmp_path / "decode" / "hypotheses.jsonl").read_text().splitlines())
    assert row["greedy"] == "AAA  B"  # as transformers' pipeline without the names
    outputs.rows[:] = [(0, "utt", "AB", _log_probs("AB", vocabulary))]
    decode.run(_config(tmp_path, greedy=True))
    assert "left out" not in capsys.readouterr().out


def test_pretraining_checkpoint_is_refused(tmp_path, outputs):
    outputs.network.vocabulary = None
    with pytest.raises(
        InputError, match="orbax:run: has no CTC head; expected a network of fine-t"
    ):
        decode.run(_config(tmp_path))


def test_speech_without_a_reference_is_transcribed_and_not_scored(tmp_path, outputs, capsys):
    outputs.rows[1:1] = [(0, "new", " ", _log_probs("NEW WORDS"))]
    result = decode.run(_config(tmp_path))
    assert (result["utterances"], result["transcribed"], result["words"]) == (3, 2, 5)
    assert result["wer"] == {"greedy": 1 / 5, "beam": 1 / 5}
    lines = (tmp_path / "decode" / "hypotheses.jsonl").read_text().splitlines()
    new = {"id": "new", "reference": None, "greedy": "NEW WORDS", "beam": "NEW WORDS"}
    assert json.loads(lines[1]) == new

    outputs.rows[:] = outputs.rows[1:2]
    result = decode.run(_config(tmp_path))
    assert (result["utterances"], result["transcribed"], result["words"]) == (1, 0, 0)
    nothing = {"greedy": None, "beam": None}
    assert result["wer"] == result["cer"] == nothing
    assert result["word_errors"] == result["character_errors"] == nothing
    assert files.read_json(tmp_path / "decode" / "result.json", "result") == result
    assert json.loads((tmp_path / "decode" / "hypotheses.jsonl").read_text()) == new
    assert "1 utterances, 0 of them with a transcript" in capsys.readouterr().out


def test_corpora_of_which_one_or_none_is_transcribed(tmp_path):
    """From files to texts."""
    for folder, name in (("new", "0060"), ("dev", "0021")):
        (tmp_path / "in" / folder).mkdir(parents=True)
        audio = splits.CORPUS / f"train-clean-5/460/172359/460-172359-{name}.opus"
        shutil.copy(audio, tmp_path / "in" / folder)
    (tmp_path / "in/dev/transcripts.tsv").write_text("460-172359-0021.opus\tA\n")
    values = dict(workdir=str(tmp_path), corpus=f"{tmp_path}/in", splits=("new", "mix=new+dev"))
    prepare.run(config.build(prepare.PrepareConfig, values | {"convert": True}))

    vocabulary = Vocabulary(("|", "A", "B"))
    architecture = config.build(Architecture, splits.TINY_BASE["architecture"])
    params = splits.random_parameters(architecture, vocabulary_size=vocabulary.size)
    says = np.eye(vocabulary.size, dtype=np.float32)[vocabulary.encode("A")[0]]
    params["ctc_head"] = {"kernel": 0 * params["ctc_head"]["kernel"], "bias": 9 * says}
    network = Network(params, architecture, None, Regularization(), vocabulary)
    formats.write(f"orbax:{tmp_path}/net", network)
    for split, transcribed, rate in (("new", 0, None), ("mix", 1, 0.0)):
        found = decode.run(
            _config(tmp_path, checkpoint=f"{tmp_path}/net", audio=f"{tmp_path}/prepare/{split}")
        )
        assert (found["transcribed"], found["wer"]) == (transcribed, {"greedy": rate, "beam": rate})
        rows = map(json.loads, pathlib.Path(found["hypotheses"]).read_text().splitlines())
        assert {row["id"][-4:]: (row["reference"], row["greedy"], row["beam"]) for row in rows} == {
            "0060": (None, "A", "A"),
            **({"0021": ("A", "A", "A")} if transcribed else {}),
        }


def test_a_network_that_diverged_leaves_nothing_behind(tmp_path, outputs):
    outputs.rows[:] = [(0, "utt-0", "A", np.full((2, 29), np.nan, np.float32))]
    files.write_json(tmp_path / "decode" / "result.json", {})  # of an earlier decoding
    with pytest.raises(InputError, match="NaN.*utt-0"):
        decode.run(_config(tmp_path))
    assert not list(tmp_path.rglob("*.json*"))


@pytest.mark.parametrize("values", [{"beam_size": 0}, {"beam_threshold": 0.0}])
def test_bad_beam_is_named(tmp_path, values):
    with pytest.raises(InputError, match=f"config.{next(iter(values))}"):
        _config(tmp_path, **values)
