"""The hand-over of a recogniser: its directory, the card in it, and Hugging Face's readers."""

import dataclasses
import json
import pathlib

import huggingface_hub
import numpy as np
import pytest
import transformers
from splits import TINY_BASE, random_parameters

from hubert_jax import config as config_lib
from hubert_jax import decode, export, files
from hubert_jax.convert import formats
from hubert_jax.convert.network import Network
from hubert_jax.data import records
from hubert_jax.data.waveform import to_float
from hubert_jax.errors import InputError
from hubert_jax.model.architecture import Architecture
from hubert_jax.report import model_card as model_card_room
from hubert_jax.report.model_card import model_card
from hubert_jax.vocabulary import LIBRISPEECH

pytestmark = pytest.mark.parity


@pytest.fixture
def network():
    architecture = Architecture(**TINY_BASE["architecture"])
    params = random_parameters(architecture, vocabulary_size=LIBRISPEECH.size)
    return Network(params, architecture, vocabulary=LIBRISPEECH)


def _read(card, tmp_path):
    """The card's data and text, as Hugging Face's own reader has them."""
    path = tmp_path / "card.md"
    path.write_text(card, encoding="utf-8")
    found = huggingface_hub.ModelCard.load(path)
    return found.data, found.text


def test_a_directory_is_handed_over_with_all_that_is_known(
    network, held_out_split, tmp_path, capsys
):
    where = f"orbax:{tmp_path}/checkpoints"
    formats.write(where, network)
    values = dict(workdir=str(tmp_path / "run"), checkpoint=where, audio=str(held_out_split))
    decoded = decode.run(config_lib.build(decode.DecodeConfig, values))
    arpa = "\\data\\\nngram 1=3\n\n\\1-grams:\n-1\t<s>\n-1\t</s>\n-1\tA\n\n\\end\\\n"
    (tmp_path / "lm.arpa").write_text(arpa)
    given = dict(
        workdir=str(tmp_path / "run"),
        checkpoint=where,
        decoded=(f"{tmp_path}/run/decode",),
        lm=f"{tmp_path}/lm.arpa",
        license="cc-by-4.0",
        languages=("en",),
    )
    result = export.run(config_lib.build(export.ExportConfig, given))
    model = tmp_path / "run" / "export" / "model"
    for name, digest in result["digests"].items():
        assert files.sha256_file(model / name) == digest
    assert (model / "language_model" / "lm.arpa").read_text() == arpa
    card = (model / "README.md").read_text()
    data, text = _read(card, tmp_path)
    assert (data.license, data.language, data.model_name) == ("cc-by-4.0", ["en"], "run")
    found = {each.metric_type: each for each in data.eval_results}
    assert found["wer"].metric_value == pytest.approx(100 * decoded["wer"]["greedy"], abs=1e-3)
    assert found["cer"].dataset_name == "dev"
    rate = f"{100 * decoded['wer']['greedy']:.2f} %"
    assert f"| dev | greedy | {rate} |" in text and "language_model/lm.arpa" in text
    assert "The speech that it was trained on is unknown." in text  # of a converted network

    recognise = transformers.pipeline(
        "automatic-speech-recognition", model=str(model), device="cpu"
    )
    lines = (tmp_path / "run" / "decode" / "hypotheses.jsonl").read_text().splitlines()
    heard = {row["id"]: row["greedy"] for row in map(json.loads, lines)}
    for utterance in list(records.read_audio(held_out_split))[:2]:
        given_audio = {"raw": to_float(utterance.audio), "sampling_rate": 16_000}
        assert recognise(given_audio)["text"] == heard[utterance.id]
    before = (model / "README.md").read_bytes()
    export.run(config_lib.build(export.ExportConfig, given))
    assert (model / "README.md").read_bytes() == before  # stages compare digests

    changed = random_parameters(network.architecture, vocabulary_size=LIBRISPEECH.size)
    changed["hubert"]["mask_embedding"][0] += 1
    changed = dataclasses.replace(network, params=changed)
    formats.write(f"orbax:{tmp_path}/others", changed)
    with pytest.raises(InputError, match="config.decoded=.*: not of config.checkpoint, whose fing"):
        export.run(
            config_lib.build(
                export.ExportConfig, {**given, "checkpoint": f"orbax:{tmp_path}/others"}
            )
        )


def test_a_card_says_where_speech_and_transcripts_are_from(network, tmp_path):
    part = dict(split="train", utterances=1200, seconds=5400.0, digest="a", share=0.25)
    made = dict(measure="confidence", threshold=0.9)
    run = dict(
        data=[
            {**part, "provenance": {}},
            {**part, "split": "heard", "share": 0.75, "provenance": made},
        ],
        config={"loop": {"steps": 7}, "audio_weights": [1.0, 3.0]},
        init_from="hf:hubert-base",
        step=7,
    )
    data, text = _read(model_card(dataclasses.replace(network, run=run), "mine"), tmp_path)
    assert "| train | 1.50 | 1,200 | 25.0% | as prepared |" in text
    assert "| heard | 1.50 | 1,200 | 75.0% | hypotheses, confidence of 0.9 or more |" in text
    assert "Training began with `hf:hubert-base`, and this is step 7." in text
    assert "What that network was trained on is unknown here." in text
    assert '"audio_weights"' in text
    # What nobody told is said to be unknown.
    assert data.license == "unknown" and data.language is None and data.eval_results is None
    assert "Languages: unknown. Licence: unknown." in text
    assert "## Error rates\n\nThey are unknown.\n" in text


def test_a_card_says_which_language_models_were_used():
    config = dict(method="lexicon", lm="orbax:lm", rescore="", search=dict(beam=5))
    said = "lexicon, beam of 5 with a Transformer"
    assert model_card_room._decoding({"config": config}, "beam") == said
    config |= dict(lm="lm.bin", rescore="orbax:lm")
    said = "lexicon, beam of 5 with an n-gram, its best texts scored again by a Transformer"
    assert model_card_room._decoding({"config": config}, "beam") == said


def test_weights_that_diverged_are_not_exported(network, tmp_path):
    network.params["ctc_head"]["bias"][3] = np.nan
    formats.write(f"orbax:{tmp_path}/checkpoints", network)
    given = dict(workdir=str(tmp_path), checkpoint=f"orbax:{tmp_path}/checkpoints")
    with pytest.raises(InputError, match="NaN or infinite in 1 parameters, such as ctc_head/bias"):
        export.run(config_lib.build(export.ExportConfig, given))
    assert not (tmp_path / "export").exists()


def test_a_network_without_a_head_is_no_recogniser(network, tmp_path):
    encoder = Network({"hubert": network.params["hubert"]}, network.architecture)
    data, text = _read(model_card(encoder, "mine"), tmp_path)
    assert data.pipeline_tag == "feature-extraction"
    assert "without a head for text" in text and "AutoModel.from_pretrained" in text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(license="A licence: mine"), "config.license='A licence: mine': expected a name"),
        (dict(languages=("",)), "config.languages='': expected a name"),
        (dict(lm="nowhere.arpa"), "nowhere.arpa: language model cannot be read"),
        (dict(lm="result.json"), "result.json: does not end with .end., cut off; expected an n-g"),
        (dict(decoded=(".",)), "result.json: expected a result of decode, with fingerprint, con"),
        (dict(out="hf"), "config.out=hf: the same place as config.checkpoint"),
        (dict(decoded=("nowhere",)), "nowhere/result.json: result of decode not found"),
    ],
)
def test_what_a_card_cannot_have_is_refused(values, message, network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    formats.write("hf:hf", network)
    pathlib.Path("result.json").write_text("[]")
    given = dict(workdir=".", checkpoint="hf:hf") | values
    with pytest.raises(InputError, match=message):
        export.run(config_lib.build(export.ExportConfig, given))
