"""The decode job, with given log probabilities in the model's place."""

import importlib.util
import itertools
import json
import pathlib
import shutil
import sys
import types
import xml.etree.ElementTree

import numpy as np
import pytest
import splits
from asr import kneser_ney
from lm_oracle import write

from hubert_jax import command_line, config, decode, files, prepare
from hubert_jax.asr import decoding, emissions, recognition
from hubert_jax.convert import formats
from hubert_jax.convert.network import Network
from hubert_jax.data import manifests
from hubert_jax.errors import InputError
from hubert_jax.language.tokens import Tokens
from hubert_jax.model.architecture import Architecture, Regularization
from hubert_jax.networks import trained
from hubert_jax.tasks import transcripts
from hubert_jax.vocabulary import LIBRISPEECH, Vocabulary

needs_flashlight = pytest.mark.skipif(
    importlib.util.find_spec("flashlight") is None, reason="no wheel for this Python"
)
SPOKEN = {"HELLO ALL": "HELLO ALL", "THE CAT SAT": "THE CAD SAT"}


def _log_probs(text, vocabulary=LIBRISPEECH):
    path = [c for label in vocabulary.encode(text) for c in (label, 0)]
    logits = 10.0 * np.eye(vocabulary.size)[path]
    return (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32)


class Outputs:
    """What the network is to give, `rows` of (id, speaker, text, log_probs), and both fakes."""

    def __init__(self):
        self.rows = [
            (f"utt-{i}", f"speaker-{i}", text, _log_probs(heard))
            for i, (text, heard) in enumerate(SPOKEN.items())
        ]
        self.network = types.SimpleNamespace(
            where="orbax:run",
            vocabulary=LIBRISPEECH,
            fingerprint="f",
            architecture=Architecture(),
        )
        self.computed = []

    def utterances(self, split, shards):
        groups = itertools.groupby(enumerate(self.rows), lambda numbered: numbered[0] // 2)
        return ((n, [row for _, row in group]) for n, group in groups if shards(n))

    def emissions(self, trained, groups):
        for number, rows in groups:
            for row in rows:
                self.computed.append(row[0])
                yield number, emissions.Emitted(*row)

    def manifest(self, split):
        sizes = [len(self.rows[first : first + 2]) for first in range(0, len(self.rows), 2)]
        shards = [types.SimpleNamespace(utterances=n, samples=16_000 * n) for n in sizes]
        digest = config.digest([repr(row) for row in self.rows])
        transcribed = sum(row[2].strip() != "" for row in self.rows)
        return types.SimpleNamespace(
            seconds=4.5, digest=digest, shards=shards, transcribed=transcribed
        )


@pytest.fixture
def outputs(monkeypatch):
    fakes = Outputs()
    monkeypatch.setattr(emissions, "emissions", fakes.emissions)
    monkeypatch.setattr(emissions.forward, "utterances", fakes.utterances)
    monkeypatch.setattr(trained, "load", lambda where, execution: fakes.network)
    monkeypatch.setattr(manifests, "read_manifest", fakes.manifest)
    monkeypatch.setattr(transcripts, "tell_outside", lambda *arguments: None)
    return fakes


def _config(tmp_path, **values):
    required = {"workdir": str(tmp_path), "checkpoint": "checkpoint", "audio": "split"}
    return config.build(decode.DecodeConfig, required | values)


def test_writes_hypotheses_and_rates(tmp_path, outputs, capsys):
    result = decode.run(_config(tmp_path))
    assert (result["wer"], result["cer"]) == ({"greedy": 1 / 5}, {"greedy": 1 / 20})
    assert result["fingerprint"] == "f"
    assert (result["utterances"], result["words"], result["audio_seconds"]) == (2, 5, 4.5)
    assert result["word_errors"]["greedy"]["substitutions"] == 1
    assert result["word_errors"]["greedy"]["interval"] == [0, 1 / 3]
    assert result["speakers"]["speaker-0"] == dict(
        utterances=1, wer={"greedy": 0}, cer={"greedy": 0}
    )
    assert result["speakers"]["speaker-1"]["wer"] == {"greedy": 1 / 3}

    directory = tmp_path / "decode"
    assert files.read_json(directory / "result.json", "result") == result
    assert result["hypotheses_digest"] == files.sha256_file(directory / "hypotheses.jsonl")
    lines = (directory / "hypotheses.jsonl").read_text().splitlines()
    rows = [
        {"id": f"utt-{i}", "reference": text, "greedy": heard}
        for i, (text, heard) in enumerate(SPOKEN.items())
    ]
    assert [json.loads(line) for line in lines] == result["examples"] == rows
    shown = capsys.readouterr().out
    assert "THE CAD SAT" in shown
    assert "WER 20.00 % (95 %: 0.00 to 33.33)" in shown


def test_intervals_follow_the_seed(tmp_path, outputs):
    intervals = [
        decode.run(_config(tmp_path, seed=seed))["character_errors"]["greedy"]["interval"]
        for seed in (0, 0, 1)
    ]
    assert intervals[0] == intervals[1]


@needs_flashlight
def test_beam_sums_alignments_where_greedy_takes_the_best(tmp_path, outputs):
    a = int(LIBRISPEECH.encode("A")[0])
    log_probs = np.full((2, LIBRISPEECH.size), np.log(1e-9), np.float32)
    log_probs[:, 0], log_probs[:, a] = np.log(0.6), np.log(0.4)
    outputs.rows[:] = [("utt", "", "A", log_probs)]
    result = decode.run(_config(tmp_path, method="letters"))
    assert result["wer"] == {"greedy": 1.0, "beam": 0.0}
    assert result["speakers"] == {}


def test_what_a_terminal_would_obey_is_shown_as_escapes(capsys):
    row = {"id": "u\x1b[2J", "reference": "A\x1b]0;x\x07", "greedy": "B\u202e"}
    row |= {"left_out": {}}
    found = {"wer": {"greedy": None}, "transcribed": 0, "utterances": 1, "hypotheses": "h.jsonl"}
    found |= {"outside_lexicon": None}
    decode._show([row], found)
    shown = capsys.readouterr().out
    assert r"u\x1b[2J" in shown and r"A\x1b]0;x\x07" in shown and r"B\u202e" in shown
    assert shown.replace("\n", "").isprintable()


@needs_flashlight
def test_words_that_a_lexicon_lacks_are_counted(tmp_path, outputs, capsys):
    lm = tmp_path / "lm.arpa"
    lm.write_text(kneser_ney.arpa([["THE", "CAT"], ["HELLO", "ALL"]], 2))
    result = decode.run(_config(tmp_path, method="lexicon", lm=str(lm)))
    assert (result["lexicon_words"], result["outside_lexicon"]) == (4, 1 / 5)  # SAT
    told = "20.0% of the references' words are outside the lexicon of 4 words"
    assert told in capsys.readouterr().out


@needs_flashlight
def test_a_lexicon_and_an_ngram_correct_the_text(tmp_path, outputs, capsys):
    lm = tmp_path / "lm.arpa"
    texts = ["THE CAT SAT", "HELLO ALL", "CÁT", "CAD"]
    lm.write_text(kneser_ney.arpa([text.split() for text in texts], 2))
    outputs.rows[0][3][:] = _log_probs("HELLO ALL")
    asked = _config(tmp_path, method="lexicon", lm=str(lm), search=dict(lm_weight=20.0, n_best=2))
    result = decode.run(asked)
    assert result["wer"] == {"greedy": 1 / 5, "beam": 0.0}
    assert (result["lexicon_words"], result["outside_lexicon"]) == (6, 0)
    assert result["less_than_greedy"]["wer"] == [0, 1 / 3]  # one error less, in one of two
    shown = capsys.readouterr().out
    assert f"{lm}: 1 of 7 words left out" in shown and "CÁT" in shown
    rows = (tmp_path / "decode" / "hypotheses.jsonl").read_text().splitlines()
    best, second = json.loads(rows[1])["n_best"]
    assert (best["text"], second["text"]) == ("THE CAT SAT", "THE CAT")
    assert best["score"] == pytest.approx(best["acoustic"] + 20 * best["lm"] - 3, abs=1e-3)
    assert [word[0] for word in best["words"]] == ["THE", "CAT", "SAT"]
    assert not (tmp_path / "decode" / "parts").exists()


def test_emissions_are_computed_once(tmp_path, outputs, capsys):
    decode.run(_config(tmp_path))
    result = decode.run(_config(tmp_path, seed=3))
    assert outputs.computed == ["utt-0", "utt-1"]
    assert result["emissions_computed"] == 0
    assert "emissions kept from an earlier call" in capsys.readouterr().out
    outputs.network.fingerprint = "of another training"
    decode.run(_config(tmp_path))
    decode.run(_config(tmp_path, execution=dict(dtype="bfloat16")))
    assert len(outputs.computed) == 6


def _damage(path, how):
    if how == "cut off":
        path.write_bytes(path.read_bytes()[:-40])
    elif how == "another's":
        with np.load(path) as stored:
            values = dict(stored)
        described = json.loads(values["described"].tobytes()) | {"digest": "f" * 64}
        values["described"] = np.frombuffer(json.dumps(described).encode(), np.uint8)
        np.savez(path, **values)
    else:
        path.write_bytes(how)


@pytest.mark.parametrize("how", ["cut off", "another's", b"", b"PK"])
def test_damaged_emissions_are_named_and_computed_again(tmp_path, outputs, capsys, how):
    outputs.rows *= 2
    outputs.rows[2:] = [(f"more-{name}", *row) for name, *row in outputs.rows[2:]]
    before = decode.run(_config(tmp_path))
    (second,) = tmp_path.glob("decode/emissions/*/00001.npz")
    _damage(second, how)
    again = decode.run(_config(tmp_path))
    assert outputs.computed[4:] == ["more-utt-0", "more-utt-1"]
    assert f"{second}: kept emissions are damaged" in capsys.readouterr().out
    assert again["hypotheses_digest"] == before["hypotheses_digest"]


@needs_flashlight
def test_rows_of_a_call_that_was_killed_are_kept(tmp_path, outputs, monkeypatch, capsys):
    outputs.rows *= 2
    outputs.rows[2:] = [(f"more-{name}", *row) for name, *row in outputs.rows[2:]]
    asked = _config(tmp_path, method="letters", processes=1)
    expected = decode.run(asked)

    class Killed(Exception):
        pass

    written = []
    add = files.KeptLines.add

    def adds(lines, name, row):
        written.append(name)
        add(lines, name, row)

    def dies(lines, name, row):
        if len(written) == 3:
            lines._file.write(b'["more-utt-1", {"gre')  # half a line
            lines._file.flush()
            raise Killed
        adds(lines, name, row)

    monkeypatch.setattr(files.KeptLines, "add", dies)
    with pytest.raises(Killed):
        decode.run(asked)
    assert not (tmp_path / "decode" / "result.json").exists()
    monkeypatch.setattr(files.KeptLines, "add", adds)
    found = decode.run(asked)
    assert sorted(written) == sorted(row[0] for row in outputs.rows)  # each once
    assert "3 utterances were decoded by an earlier call" in capsys.readouterr().out
    assert found["wer"] == expected["wer"] and found["utterances"] == 4


@needs_flashlight
@pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="no Optuna")
def test_weights_are_searched_and_a_search_goes_on(tmp_path, outputs, monkeypatch, capsys):
    lm = tmp_path / "lm.arpa"
    texts = ["THE CAT SAT", "HELLO ALL", "CAD", "THE CAD", "CAD SAT"]
    lm.write_text(kneser_ney.arpa([text.split() for text in texts], 2))
    values = dict(method="lexicon", lm=str(lm), processes=1, search=dict(lm_weight=0.1, beam=50))
    before = decode.run(_config(tmp_path, **values))

    class Killed(Exception):
        pass

    asked, real = [], decoding.Searchers.search

    def dies(searchers, emitted, search):
        asked.append(search)
        if len(asked) == 4:
            raise Killed
        return real(searchers, emitted, search)

    monkeypatch.setattr(decoding.Searchers, "search", dies)
    searched = _config(tmp_path, **values, weights=dict(trials=8, lm_weight=(0.0, 30.0)))
    with pytest.raises(Killed):
        decode.run(searched)
    (journal,) = tmp_path.rglob("trials.log")
    with journal.open("ab") as file:
        file.write(b'{"op_code": 4, "wor')  # as a full disk cuts it
    # As a call leaves it that is killed while Optuna writes.
    journal.with_name("trials.log.lock").symlink_to(journal)
    capsys.readouterr()
    found = decode.run(searched)
    shown = capsys.readouterr().out
    assert "trial 3 of 8" not in shown and "trial 4 of 8" in shown and "trial 8 of 8" in shown
    assert len(asked) == 4 + 5 + 1  # the rest of the trials, then the split
    assert asked[0].lm_weight == 0.1
    rates = [trial["error_rate"] for trial in found["trials"]]
    assert rates[0] == before["wer"]["beam"] >= min(rates) == found["wer"]["beam"]
    assert all(0 <= trial["lm_weight"] <= 30 for trial in found["trials"])

    drawn = xml.etree.ElementTree.parse(tmp_path / "decode" / "searched.svg").getroot()
    texts = {each.text for each in drawn.iter() if each.text}
    assert {"trial", "lm_weight", "word_score", "silence_score", "WER, %"} <= texts
    arguments = [f"--config={tmp_path}/decode/searched.py", "--config.audio=split"]
    arguments.append(f"--config.workdir={tmp_path}/again")
    read = command_line.read(arguments, "decode", decode.DecodeConfig)
    assert read.search == config.build(decode.BeamSearch, found["config"]["search"])
    assert (read.method, read.lm) == ("lexicon", str(lm))
    assert decode.run(read)["wer"] == found["wer"]

    journal.write_bytes(journal.read_bytes().replace(b"{", b"<", 1))
    with pytest.raises(InputError, match="trials.log: line 1 is damaged, expected what Optuna"):
        decode.run(searched)

    outputs.rows = [("utt", "", " ", outputs.rows[0][3])]
    with pytest.raises(InputError, match="has no transcripts, by which weights are searched"):
        decode.run(searched)


@needs_flashlight
@pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="no Optuna")
@pytest.mark.parametrize("model", ["", "letters", "words"])
def test_the_first_trial_is_what_is_given_without_a_score_of_words(
    tmp_path, outputs, monkeypatch, model
):
    texts = [list("THE|CAT|SAT"), list("CAD")] if model == "letters" else [["THE", "CAT"], ["SAT"]]
    (tmp_path / "lm.arpa").write_text(kneser_ney.arpa(texts, 2))
    monkeypatch.chdir(tmp_path)  # Optuna's lock is a link to the path that it is given
    values = dict(method="letters", lm=model and "lm.arpa", processes=1, workdir="run")
    given = decode.run(_config(tmp_path, **values))
    (trial,) = decode.run(_config(tmp_path, **values, weights=dict(trials=1)))["trials"]
    assert trial["word_score"] == (-1.0 if model == "words" else 0.0)
    assert trial["error_rate"] == given["wer"]["beam"]


@needs_flashlight
def test_an_ngram_of_letters_knows_no_longer_symbols(tmp_path):
    (tmp_path / "lm.arpa").write_text(kneser_ney.arpa([list("a|sch"), list("cha")], 2))
    asked = _config(tmp_path, method="letters", lm=str(tmp_path / "lm.arpa"))
    parts = recognition.SearchParts(asked)
    with pytest.raises(InputError, match="lm.arpa: an n-gram of letters.* symbol 'sch' of"):
        parts.fit(Vocabulary(("|", "a", "c", "h", "s", "sch")))


@needs_flashlight
@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(lexicon="lexicon.txt"), "knows none of the 1 words of the lexicon, 'THE' for one"),
        (dict(method="letters"), "of its 6 letters the network's vocabulary lacks 6, such as 'a'"),
    ],
)
def test_an_ngram_of_another_case_is_refused(tmp_path, outputs, monkeypatch, values, message):
    (tmp_path / "lm.arpa").write_text(kneser_ney.arpa([["the", "cat"], ["sat"]], 2))
    (tmp_path / "lexicon.txt").write_text("THE T H E |\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"config.lm=lm.arpa: {message}"):
        decode.run(_config(tmp_path, **dict(method="lexicon", lm="lm.arpa") | values))
    assert not outputs.computed


@needs_flashlight
def test_a_word_called_as_the_boundary_makes_no_ngram_of_letters(tmp_path, outputs, capsys):
    (tmp_path / "lm.arpa").write_text(kneser_ney.arpa([["THE", "|", "CAT"], ["SAT"]], 2))
    (tmp_path / "lexicon.txt").write_text("THE T H E |\nHAT H A T |\n")
    values = dict(lm=str(tmp_path / "lm.arpa"), lexicon=str(tmp_path / "lexicon.txt"), processes=1)
    decode.run(_config(tmp_path, method="lexicon", **values))
    assert "lacks 1 of 2 words of the lexicon, 'HAT' for one" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(method="beam"), "config.method='beam': expected one of"),
        (dict(method="lexicon"), "config.method=lexicon: needs config.lm or config.lexicon"),
        (dict(lm="lm.arpa"), "config.lm=lm.arpa: has no effect with config.method=greedy"),
        (dict(rescore="orbax:x"), "config.rescore=orbax:x: has no effect with config.method=g"),
        (dict(method="letters", lexicon="x"), "config.lexicon=x: has no effect"),
        (dict(search=dict(beam=3)), "config.search=...: has no effect with config.method=greedy"),
        (dict(method="letters", search=dict(beam=0)), "config.search.beam=0: expected at least 1"),
        (dict(method="letters", search=dict(beam_threshold=0.0)), "config.search.beam_threshold=0"),
        (
            dict(weights=dict(trials=9)),
            "config.weights.trials=9: has no effect with config.method=g",
        ),
        (dict(weights=dict(trials=-1)), "config.weights.trials=-1: expected 0 or more"),
        (
            dict(method="letters", weights=dict(trials=2, lm_weight=(3.0, 4.0))),
            "config.search.lm_weight=2.0: the search begins with it; expected one in .*weights",
        ),
        (
            dict(method="letters", weights=dict(trials=2, beam=(50, 100))),
            "config.search.beam=500: the search begins with it; expected one of config.weights.b",
        ),
        (dict(weights=dict(lm_weight=(2.0, 1.0))), "config.weights.lm_weight=.2.0, 1.0.: expected"),
        (dict(processes=-1), "config.processes=-1: expected 0 or more"),
    ],
)
def test_bad_configurations_are_named(tmp_path, values, message):
    with pytest.raises(InputError, match=message):
        _config(tmp_path, **values)


@needs_flashlight
def test_a_bad_ngram_ends_the_job_before_the_network_runs(tmp_path, outputs):
    lm = tmp_path / "lm.arpa"
    content = kneser_ney.arpa([["A"], ["A", "B"]], 2)
    for text, message in (
        (content[:90], "cut off"),
        (content.replace("A B", "A"), "KenLM: "),  # found when it is loaded
        (content.replace("A", "É").replace("B", "Ü"), "no word can be spelled with"),
        (content.replace("B", "|"), "an n-gram of letters; expected one of words"),
    ):
        lm.write_text(text)
        with pytest.raises(InputError, match=message):
            decode.run(_config(tmp_path, method="lexicon", lm=str(lm), processes=1))
        assert not outputs.computed


@needs_flashlight
@pytest.mark.parametrize("key", ["lm", "rescore"])
def test_a_transformer_in_the_beam_or_after_it(tmp_path, outputs, key):
    tokens = Tokens("word", ("THE", "CAT", "SAT", "HELLO", "ALL", "CAD"))
    where, log10 = write(tmp_path / "checkpoints", tokens)
    lexicon = tmp_path / "lexicon.txt"
    lexicon.write_text("".join(f"{word} {' '.join(word)} |\n" for word in tokens.words))
    asked = dict(method="lexicon", lexicon=str(lexicon), processes=1, **{key: where})
    asked["search"] = dict(lm_weight=0.7, n_best=3, word_score=-0.5)
    result = decode.run(_config(tmp_path, **asked))
    rows = (tmp_path / "decode" / "hypotheses.jsonl").read_text().splitlines()
    for row in map(json.loads, rows):
        for each in row["n_best"]:
            words = each["text"].split()
            assert each["lm"] == pytest.approx(log10(words), abs=1e-3)
            score = each["acoustic"] + 0.7 * each["lm"] - 0.5 * len(words)
            assert each["score"] == pytest.approx(score, abs=1e-3)
    assert result["config"][key] == where
    again = decode.run(_config(tmp_path, **asked))
    assert again["hypotheses_digest"] == result["hypotheses_digest"]
    # Of another model nothing is kept.
    other, _ = write(tmp_path / "other", tokens, seed=1)
    found = decode.run(_config(tmp_path, **asked | {key: other}))
    assert found["hypotheses_digest"] != result["hypotheses_digest"]
    assert outputs.computed == ["utt-0", "utt-1"]


@needs_flashlight
@pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="no Optuna")
@pytest.mark.parametrize("key", ["lm", "rescore"])
def test_weights_are_searched_with_a_transformer(tmp_path, outputs, key):
    tokens = Tokens("word", ("THE", "CAT", "SAT", "HELLO", "ALL", "CAD"))
    where, _ = write(tmp_path / "checkpoints", tokens)
    lexicon = tmp_path / "lexicon.txt"
    lexicon.write_text("".join(f"{word} {' '.join(word)} |\n" for word in tokens.words))
    asked = dict(method="lexicon", lexicon=str(lexicon), processes=1, **{key: where})
    found = decode.run(_config(tmp_path, **asked, weights=dict(trials=3, lm_weight=(0.0, 4.0))))
    assert len(found["trials"]) == 3
    # As the split is decoded with them: by the n-best texts' new order.
    assert found["wer"]["beam"] == min(trial["error_rate"] for trial in found["trials"])
    arguments = [f"--config={tmp_path}/decode/searched.py", "--config.audio=split"]
    arguments.append(f"--config.workdir={tmp_path}/again")
    assert getattr(command_line.read(arguments, "decode", decode.DecodeConfig), key) == where


@needs_flashlight
@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(lm="orbax:nowhere"), "config.lm=orbax:nowhere: .*no checkpoint found"),
        (
            dict(method="letters", rescore="WRITTEN", lower=True),
            "config.rescore=.*of its 7 letters",
        ),
        (dict(lm="WRITTEN", foreign=True), "no word can be spelled with"),
        (dict(lm="WRITTEN", lower=True, lexicon="UPPER"), "config.lm=.*knows none of the 1 words"),
        (dict(lm="WRITTEN", of="letter"), "config.lm=.*: a language model of letters, which tells"),
        (dict(lm="WRITTEN", kind="ctc"), "config.lm=.*of kind 'ctc'; expected one of train_lm"),
    ],
)
def test_a_bad_transformer_ends_the_job_before_the_network_runs(tmp_path, outputs, values, message):
    values = dict(method="lexicon") | values
    words = ("the", "cat", "hello") if values.pop("lower", False) else ("THE", "CAT")
    words = ("ÉÜ",) if values.pop("foreign", False) else words
    (tmp_path / "UPPER").write_text("THE T H E |\n")
    tokens = Tokens("word", words)
    if values.pop("of", "word") == "letter":
        tokens = Tokens("letter", spelling=LIBRISPEECH)
    where, _ = write(tmp_path / "checkpoints", tokens, kind=values.pop("kind", "language_model"))
    named = {"WRITTEN": where, "UPPER": str(tmp_path / "UPPER")}
    values = {key: named.get(value, value) for key, value in values.items()}
    with pytest.raises(InputError, match=message) as refused:
        decode.run(_config(tmp_path, **values))
    assert "\n" not in str(refused.value) and not outputs.computed


def test_a_search_without_flashlight_says_what_to_install(tmp_path, outputs, monkeypatch):
    monkeypatch.setitem(sys.modules, "flashlight", None)
    with pytest.raises(
        InputError, match="config.method=letters: needs flashlight-text, which is n"
    ):
        decode.run(_config(tmp_path, method="letters"))
    assert decode.run(_config(tmp_path))["wer"] == {"greedy": 1 / 5}


def test_vocabulary_of_another_language(tmp_path, outputs):
    vocabulary = Vocabulary(tuple("|ñandú"))
    outputs.network.vocabulary = vocabulary
    outputs.rows[:] = [("utt", "", "dún", _log_probs("dún", vocabulary))]
    assert decode.run(_config(tmp_path))["wer"] == {"greedy": 0.0}


def test_special_symbols_are_left_out_and_counted(tmp_path, outputs, capsys):
    vocabulary = Vocabulary.from_symbols(("<s>", "|", "A", "B", "<unk>"))
    outputs.network.vocabulary = vocabulary
    frames = [5, 5, 3, 5, 3, 0, 3, 2, 1, 2, 4, 4]  # <unk> A <unk> A _ A | <s> | B
    log_probs = np.log(np.eye(vocabulary.size, dtype=np.float32)[frames] + 1e-9)
    outputs.rows[:] = [("utt", "", "AAA B", log_probs)]
    assert decode.run(_config(tmp_path))["wer"] == {"greedy": 0.0}
    shown = capsys.readouterr().out
    assert "left out of greedy texts: 3 special symbols (<unk> 2, <s> 1); the" in shown
    (row,) = map(json.loads, (tmp_path / "decode" / "hypotheses.jsonl").read_text().splitlines())
    assert row["greedy"] == "AAA  B"  # as transformers' pipeline without the names
    outputs.rows[:] = [("utt", "", "AB", _log_probs("AB", vocabulary))]
    decode.run(_config(tmp_path))
    assert "left out" not in capsys.readouterr().out


def test_pretraining_checkpoint_is_refused(tmp_path, outputs):
    outputs.network.vocabulary = None
    with pytest.raises(
        InputError, match="orbax:run: has no CTC head; expected a network of fine-t"
    ):
        decode.run(_config(tmp_path))


def test_speech_without_a_reference_is_transcribed_and_not_scored(tmp_path, outputs, capsys):
    outputs.rows[1:1] = [("new", "", " ", _log_probs("NEW WORDS"))]
    result = decode.run(_config(tmp_path))
    assert (result["utterances"], result["transcribed"], result["words"]) == (3, 2, 5)
    assert result["wer"] == {"greedy": 1 / 5}
    lines = (tmp_path / "decode" / "hypotheses.jsonl").read_text().splitlines()
    new = {"id": "new", "reference": None, "greedy": "NEW WORDS"}
    assert json.loads(lines[0]) == new  # in the order of ids

    outputs.rows[:] = outputs.rows[1:2]
    result = decode.run(_config(tmp_path))
    assert (result["utterances"], result["transcribed"], result["words"]) == (1, 0, 0)
    nothing = {"greedy": None}
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
        assert (found["transcribed"], found["wer"]) == (transcribed, {"greedy": rate})
        rows = map(json.loads, pathlib.Path(found["hypotheses"]).read_text().splitlines())
        assert {row["id"][-4:]: (row["reference"], row["greedy"]) for row in rows} == {
            "0060": (None, "A"),
            **({"0021": ("A", "A")} if transcribed else {}),
        }


def test_a_network_that_diverged_leaves_nothing_behind(tmp_path, outputs):
    outputs.rows[:] = [("utt-0", "", "A", np.full((2, 29), np.nan, np.float32))]
    files.write_json(tmp_path / "decode" / "result.json", {})  # of an earlier decoding
    with pytest.raises(InputError, match="NaN.*utt-0"):
        decode.run(_config(tmp_path))
    assert not list(tmp_path.rglob("*.json*"))
