"""Text, captions and word times of a user's own recordings."""

import dataclasses
import json
import os
import pathlib
import re
import shutil

import numpy as np
import pytest
import soundfile
from splits import TINY_BASE, random_parameters

from hubert_jax import decode, transcribe
from hubert_jax.asr import spoken
from hubert_jax.asr.search import BeamSearch, Word
from hubert_jax.convert import formats
from hubert_jax.convert.network import Network
from hubert_jax.corpus.recordings import Recordings
from hubert_jax.data import records
from hubert_jax.errors import InputError
from hubert_jax.model.architecture import Architecture
from hubert_jax.vocabulary import LIBRISPEECH, Vocabulary

ABC = Vocabulary(("|", "A", "B", "C"))


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """`orbax:DIR` of a network of random weights that spells."""
    architecture = Architecture(**TINY_BASE["architecture"])
    params = random_parameters(architecture, vocabulary_size=LIBRISPEECH.size)
    # Of several classes, not always of one.
    params["ctc_head"]["kernel"] = params["ctc_head"]["kernel"] * 30
    where = f"orbax:{tmp_path_factory.mktemp('network')}/checkpoints"
    formats.write(where, Network(params, architecture, vocabulary=LIBRISPEECH))
    return where


@pytest.fixture(scope="module")
def recordings(speech_split, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    for utterance in list(records.read_audio(speech_split))[:3]:
        soundfile.write(folder / f"{utterance.id}.wav", utterance.audio, 16_000)
    return str(folder)


def test_texts_are_those_of_decode(network, recordings, speech_split, tmp_path):
    decoded = decode.run(decode.DecodeConfig(f"{tmp_path}/split", network, str(speech_split)))
    lines = open(decoded["hypotheses"]).read().splitlines()
    expected = {row["id"]: row["greedy"] for row in map(json.loads, lines)}
    config = transcribe.TranscribeConfig(network, (recordings,), str(tmp_path))
    result = transcribe.run(config)
    assert len(result["recordings"]) == 3
    for name, target in result["recordings"].items():
        assert name.endswith(".wav") and target == f"{tmp_path}/transcribe/{name[:-4]}"
        text = open(f"{target}.txt").read().removesuffix("\n")
        assert text == expected[name[:-4]] != ""
        found = json.load(open(f"{target}.json"))
        assert (found["audio"], found["text"]) == (name, text)
        words = found["words"]
        assert [word for word, *_ in words] == text.split()
        times = np.array([time for _, start, end, _ in words for time in (start, end)])
        assert np.diff(times).min() > -0.026  # a frame sees 25 ms, and the next begins after 20
        assert 0 <= times[0] and times[-1] <= found["duration"] + 0.026
        assert all(0 < confidence <= 1 for *_, confidence in words)
        captions = open(f"{target}.srt").read()
        assert " ".join(re.sub(r"\d+\n[\d:,]+ --> [\d:,]+\n", "", captions).split()) == " ".join(
            text.split()
        )
        assert open(f"{target}.vtt").read().startswith("WEBVTT\n\n00:00:")


def test_what_a_killed_call_did_is_kept(network, recordings, tmp_path, monkeypatch):
    config = transcribe.TranscribeConfig(network, (recordings,), str(tmp_path))
    write = transcribe._write

    def killed(*arguments):
        write(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(transcribe, "_write", killed)
        with pytest.raises(KeyboardInterrupt):
            transcribe.run(config)
    assert not (tmp_path / "transcribe/result.json").exists()
    read, groups = [], Recordings.groups

    def watched(self, wanted):
        read.extend(filter(wanted, self.paths))
        return groups(self, wanted)

    monkeypatch.setattr(Recordings, "groups", watched)
    transcribe.run(config)
    assert len(read) == 2
    transcribe.run(dataclasses.replace(config, formats=("srt",)))
    assert len(read) == 2
    with pytest.raises(InputError, match=r"config.formats=\('doc',\): expected some of"):
        dataclasses.replace(config, formats=("doc",))


def test_a_search_has_words_and_their_times(network, recordings, tmp_path):
    pytest.importorskip("flashlight.lib.text")
    (tmp_path / "lexicon").write_text("ONE O N E |\nTWO T W O |\nA A |\nI I |\n")
    config = transcribe.TranscribeConfig(
        *(network, (recordings,), str(tmp_path)),
        method="lexicon",
        lexicon=str(tmp_path / "lexicon"),
        search=BeamSearch(beam=20),
        processes=1,
    )
    result = transcribe.run(config)
    for target in result["recordings"].values():
        found = json.load(open(f"{target}.json"))
        assert {word for word, *_ in found["words"]} <= {"ONE", "TWO", "A", "I"}
        assert found["text"].split() == [word for word, *_ in found["words"]]


def test_recordings_of_one_name_do_not_overwrite_each_other():
    several = [
        "foo.wav",
        "foo.flac",
        "foo.wav.opus",
        "result.opus",
        "result",
        "x/a.wav",
        "../x/a.wav",
    ]
    found = {name: str(path) for name, path in transcribe._targets(several).items()}
    assert found == {
        "foo.wav": "foo.wav",
        "foo.flac": "foo.flac",
        "foo.wav.opus": "foo.wav.opus",
        "result.opus": "result.opus",
        "result": "result-2",
        "x/a.wav": "x/a.wav",
        "../x/a.wav": "x/a.wav-2",
    }
    found = transcribe._targets(["a/x.wav", "a/x.mp3", "/b/y.wav", "../z.flac"])
    assert [*map(str, found.values())] == ["a/x.wav", "a/x.mp3", "b/y", "z"]
    assert str(transcribe._targets(["s3://bucket/a/x.wav"])["s3://bucket/a/x.wav"]) == "bucket/a/x"


def test_recordings_of_two_folders_and_what_cannot_be_read(network, recordings, tmp_path, capsys):
    names = sorted(path.name for path in pathlib.Path(recordings).iterdir())
    for folder, name in zip("ab", names, strict=False):  # other recordings of one name
        (tmp_path / folder).mkdir()
        shutil.copy(pathlib.Path(recordings) / name, tmp_path / folder / "good.wav")
    (tmp_path / "b" / "link.wav").symlink_to("nowhere.wav")
    os.mkfifo(tmp_path / "b" / "pipe.wav")
    given = str(tmp_path / "a"), str(tmp_path / "b")
    config = transcribe.TranscribeConfig(network, given, str(tmp_path / "run"))
    result = transcribe.run(config)
    both = [f"{folder}/good.wav" for folder in given]
    assert [*result["recordings"]] == both
    found = [json.load(open(f"{target}.json")) for target in result["recordings"].values()]
    assert [each["audio"] for each in found] == both
    assert found[0]["duration"] != found[1]["duration"]
    assert {*result["refused"]} == {"link.wav", "pipe.wav"}
    said = capsys.readouterr().out
    assert f"refused: {given[1]}/pipe.wav: not a regular file; expected audio" in said
    assert transcribe.run(config)["refused"] == result["refused"]  # what is kept is no other
    assert "2 of 2 recordings kept" in capsys.readouterr().out
    with pytest.raises(InputError, match="a/good.wav: is given twice"):
        Recordings([*given, both[0], both[0]])
    target = pathlib.Path(f"{result['recordings'][both[0]]}.txt")
    target.unlink()
    target.mkdir()
    with pytest.raises(InputError, match="good.txt: is a folder; expected a file, or a free name"):
        transcribe.run(config)


def _emissions(text, classes=5, sure=0.9):
    """Log probabilities whose likeliest classes are the digits of a text."""
    found = np.full((len(text), classes), (1 - sure) / (classes - 1))
    found[np.arange(len(text)), [int(c) for c in text]] = sure
    return np.log(found).astype(np.float32)


def test_greedy_words_have_the_times_of_their_letters():
    words = spoken.greedy_words(_emissions("0022030110014"), ABC)
    assert [word.text for word in words] == ["AB", "C"]
    assert [(word.start, word.end) for word in words] == [
        (pytest.approx(2 * 0.02), pytest.approx(5 * 0.02 + 0.025)),
        (pytest.approx(12 * 0.02), pytest.approx(12 * 0.02 + 0.025)),
    ]
    assert words[0].confidence == pytest.approx(0.9)
    phones = Vocabulary(("AA", "B"), separated=True)
    apart = spoken.greedy_words(_emissions("0110022", 3), phones)
    assert [word.text for word in apart] == ["AA", "B"]
    pieces = spoken.greedy_words(_emissions("01023", 4), Vocabulary((" th", "e", " cat")))
    assert [word.text for word in pieces] == ["the", "cat"]


def test_stretches_end_in_the_longest_pause():
    text = list("2" * 4_000)
    text[900:930] = "0" * 30
    text[700:705] = "0" * 5
    found = spoken.stretches(_emissions("".join(text)), ABC)
    assert found[0] == slice(0, 915)
    assert all(1 <= each.stop - each.start <= 1_500 for each in found)
    assert [each.start for each in found[1:]] == [each.stop for each in found[:-1]]
    assert found[-1].stop == 4_000
    assert spoken.stretches(_emissions("2" * 1_500), ABC) == [slice(0, 1_500)]


def test_captions_end_at_pauses_and_after_two_lines():
    def words(*texts, start=0.0, each=0.3):
        return [Word(t, start + i * each, start + (i + 1) * each) for i, t in enumerate(texts)]

    said = [*words("A", "<B>"), *words("C", start=3661.2)]
    found = spoken.Captions.of_words(said)
    assert [text for _, _, text in found.shown] == ["A <B>", "C"]
    assert found.subrip() == (
        "1\n00:00:00,000 --> 00:00:00,600\nA <B>\n\n2\n01:01:01,200 --> 01:01:01,500\nC\n\n"
    )
    assert found.webvtt() == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:00.600\nA &lt;B&gt;\n\n"
        "01:01:01.200 --> 01:01:01.500\nC\n\n"
    )
    long = spoken.Captions.of_words(words(*["WORDS"] * 40, each=0.1))
    assert all(len(line) <= 42 for _, _, text in long.shown for line in text.split("\n"))
    assert all(text.count("\n") <= 1 for _, _, text in long.shown)
    slow = spoken.Captions.of_words(words(*"ABCDEFGHIJ", each=1.5))
    assert all(end - start <= 7 for start, end, _ in slow.shown)
    assert not spoken.Captions.of_words([]).shown
