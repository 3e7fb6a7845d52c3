"""A training split of what a network heard, and fine-tuning on it beside transcribed speech."""

import json
import shutil

import numpy as np
import pytest
from splits import TINY_BASE

from hubert_jax import check, files, finetune, pseudo_label
from hubert_jax import config as config_lib
from hubert_jax.corpus import assembly, parts
from hubert_jax.data import preflight, records
from hubert_jax.data.manifests import read_manifest
from hubert_jax.errors import InputError
from hubert_jax.training.checkpoint import restore_parameters
from hubert_jax.vocabulary import Vocabulary

pytestmark = pytest.mark.usefixtures("two_devices")


SEARCH = {"beam": 50, "n_best": 10}


class Decoded:
    """A folder as `decode` leaves it: utterance n of the split has the confidence n / 20."""

    def __init__(self, directory, split):
        self.directory, self.rows = directory, []
        directory.mkdir()
        self.result = {
            "job": "decode",
            "audio_digest": read_manifest(split).digest,
            "fingerprint": "f" * 64,
            "inputs": {"checkpoint": "f" * 64, "lm": "a" * 64},
            "config": {"method": "lexicon", "audio": str(split), "search": dict(SEARCH)},
        }
        for number, utterance in enumerate(records.read_audio(split)):
            words = [["HEARD", 0.1, 0.5, number / 20], [f"N{number}É", 0.5, 0.9, number / 20]]
            best = {"text": f" HEARD  N{number}É", "score": -0.1 * len(utterance.audio) / 320}
            best |= {"words": words, "complete": True}
            row = {"id": utterance.id, "reference": utterance.text or None, "n_best": [best]}
            self.rows.append(row)
        self.write()

    def write(self, **changed):
        path = self.directory / "hypotheses.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
        found = {**self.result, "hypotheses_digest": files.sha256_file(path)} | changed
        files.write_json(self.directory / "result.json", found)


@pytest.fixture
def decoded(held_out_split, tmp_path):
    return Decoded(tmp_path / "decode", held_out_split)


@pytest.fixture
def labelled(held_out_split, decoded, tmp_path):
    """values -> the result of pseudo-labelling `held_out_split`."""

    def run(**values):
        given = dict(
            workdir=str(tmp_path),
            audio=str(held_out_split),
            hypotheses=str(decoded.directory),
            threshold=0.1,
        )
        return pseudo_label.run(config_lib.build(pseudo_label.PseudoLabelConfig, given | values))

    return run


def test_what_is_sure_becomes_a_split(labelled, decoded, held_out_split, tmp_path, capsys):
    decoded.rows[3]["n_best"][0]["complete"] = False
    decoded.rows[4]["n_best"][0] |= {"text": "", "words": []}
    decoded.write()
    result = labelled()
    split = tmp_path / "pseudo_label" / "dev"
    before = {utterance.id: utterance for utterance in records.read_audio(held_out_split)}
    after = {utterance.id: utterance for utterance in records.read_audio(split)}
    kept = [2, 5]  # 0 and 1 are not sure, 3 breaks off, 4 is silent
    assert {*after} == {decoded.rows[number]["id"] for number in kept}
    for number in kept:
        name = decoded.rows[number]["id"]
        assert after[name].text == f"HEARD N{number}É"
        assert after[name].speaker == before[name].speaker
        np.testing.assert_array_equal(after[name].audio, before[name].audio)
    manifest = read_manifest(split)
    preflight.inspect(split, manifest)
    assert manifest.transcribed == manifest.utterances == 2
    hours = sum(len(utterance.audio) for utterance in after.values()) / 16_000 / 3600
    assert manifest.provenance == {
        "measure": "confidence",
        "threshold": 0.1,
        "hours": round(hours, 3),
        "of_hours": round(read_manifest(held_out_split).seconds / 3600, 3),
        "hypotheses": files.sha256_file(decoded.directory / "hypotheses.jsonl"),
        "inputs": {"checkpoint": "f" * 64, "lm": "a" * 64},
        "method": "lexicon",
        "search": SEARCH,
    }
    found = result["splits"]["dev"]
    assert found["digest"] == manifest.digest and found["wer"] >= 1
    assert sum(found["left_out"].values()) == 4
    shown = capsys.readouterr().out
    assert "2 of 6 utterances are left out: below the threshold of 0.1" in shown
    assert "1 of 6 utterances are left out: no word was heard" in shown
    assert labelled()["splits"] == result["splits"]  # again, and the same


def test_a_split_is_not_written_over_itself(labelled, decoded, tmp_path):
    labelled()
    source = str(tmp_path / "pseudo_label" / "dev")
    decoded.write(audio_digest=read_manifest(source).digest)
    with pytest.raises(InputError, match="would be replaced; pass --config.split=NAME"):
        labelled(audio=source)


def test_confidences_of_single_texts_are_refused(labelled, decoded):
    decoded.result["config"]["search"]["n_best"] = 1
    decoded.write()
    with pytest.raises(InputError, match="of one text an utterance, .* decode with --config.sea"):
        labelled()
    labelled(measure="score_per_frame", threshold=-0.2)


def test_by_score_and_by_name(labelled, tmp_path):
    result = labelled(measure="score_per_frame", threshold=-0.2, split="sure")
    assert result["splits"]["sure"]["fraction_kept"] == pytest.approx(1, rel=1e-3)
    assert read_manifest(tmp_path / "pseudo_label" / "sure").split == "sure"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(threshold=1.0), "config.threshold=1.0: none of 6 utterances is kept; lower it"),
        (dict(threshold=1.5), "config.threshold=1.5: expected a confidence"),
        (dict(measure="certainty"), "config.measure='certainty': expected one of"),
        (dict(split="a/b"), "config.split=a/b: expected a plain name"),
        (dict(hypotheses="nowhere"), "nowhere/result.json: result of decode not found"),
    ],
)
def test_impossible_values_are_refused(labelled, values, message):
    with pytest.raises(InputError, match=message):
        labelled(**values)


def test_hypotheses_that_do_not_fit_are_refused(labelled, decoded, speech_split, tmp_path):
    with pytest.raises(InputError, match="of another split, .*; decode this one, or name that"):
        labelled(audio=str(speech_split))
    decoded.write(config={**decoded.result["config"], "method": "greedy"})
    with pytest.raises(InputError, match="of greedy decoding, which has no confidences"):
        labelled()
    decoded.write(hypotheses_digest="0" * 64)
    with pytest.raises(InputError, match="not what its result.json names, it was edited"):
        labelled()
    decoded.write(job="lm")
    with pytest.raises(InputError, match="expected WORKDIR/decode, found a result of lm"):
        labelled()
    assert not (tmp_path / "pseudo_label").exists()


def test_a_killed_call_leaves_parts_and_no_split(labelled, tmp_path, monkeypatch):
    def killed(*arguments, **named):
        raise KeyboardInterrupt

    expected = labelled(split="whole")
    with monkeypatch.context() as patch:
        patch.setattr(assembly, "assemble", killed)
        with pytest.raises(KeyboardInterrupt):
            labelled()
    assert not (tmp_path / "pseudo_label" / "dev").exists()
    with monkeypatch.context() as patch:  # nothing is read again
        patch.setattr(parts, "write", killed)
        found = labelled()
    assert found["splits"]["dev"]["digest"] == expected["splits"]["whole"]["digest"]
    there = {path.name for path in (tmp_path / "pseudo_label").iterdir() if path.is_dir()}
    assert there == {"dev", "whole"}


def test_a_damaged_record_is_no_utterance_that_is_left_out(
    labelled, decoded, held_out_split, tmp_path
):
    shutil.copytree(held_out_split, tmp_path / "damaged")
    shard = tmp_path / "damaged" / read_manifest(held_out_split).shards[0].file
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(InputError, match=f"{shard.name}.*, record .: cut off or damaged"):
        labelled(audio=str(tmp_path / "damaged"))


def test_fine_tuning_mixes_it_by_weight(labelled, speech_split, tmp_path):
    labelled()
    values = dict(
        workdir=str(tmp_path),
        audio=str(speech_split),
        more_audio=(str(tmp_path / "pseudo_label" / "dev"),),
        audio_weights=(1.0, 3.0),
        init_from="",
        architecture=TINY_BASE["architecture"],
        loop=dict(steps=2),
        ctc=dict(channel_mask_probability=0.0),
        vocabulary=dict(source="transcripts"),
        frames_per_step=768,
        padded_frames=(384,),
    )
    config = config_lib.build(finetune.FinetuneConfig, values)
    assert check.run(config)["audio"]["utterances"] == 24 + 4
    result = finetune.run(config)
    _, metadata = restore_parameters(result["checkpoint"])
    first, second = metadata["data"]
    assert first["share"] + second["share"] == pytest.approx(1)
    assert second["provenance"]["threshold"] == 0.1 and not first["provenance"]
    assert second["share"] / first["share"] == pytest.approx(
        3 * second["seconds"] / first["seconds"]
    )
    found = Vocabulary.from_dict(metadata["vocabulary"])
    assert "É" in found.symbols  # of the texts that were heard
    again = {**values, "audio_weights": (1.0, 1.0), "loop": dict(steps=3)}
    with pytest.raises(InputError, match=r"config.audio_weights was \[1.0, 3.0\], is \[1.0, 1.0"):
        finetune.run(config_lib.build(finetune.FinetuneConfig, again))
    shutil.copytree(speech_split, tmp_path / "copy")
    with pytest.raises(
        InputError, match="/copy: 24 of its 24 utterances are in .* too, .* for one"
    ):
        finetune.run(
            config_lib.build(
                finetune.FinetuneConfig, {**values, "more_audio": (f"{tmp_path}/copy",)}
            )
        )
    for weights in ((1.0,), (1.0, 0.0)):
        with pytest.raises(InputError, match="config.audio_weights=.*: expected numbers above 0"):
            config_lib.build(finetune.FinetuneConfig, {**values, "audio_weights": weights})
