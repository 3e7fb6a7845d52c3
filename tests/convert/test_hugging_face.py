"""Model directories without transformers: what is written comes back, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors.numpy

from hubert_jax.asr.vocabulary import LIBRISPEECH, Vocabulary
from hubert_jax.convert import hugging_face
from hubert_jax.errors import InputError


def test_pretrained_directory_round_trip(config, make_params, tmp_path, assert_identical):
    params = make_params(config)
    config = dataclasses.replace(config, temperature=0.2)
    hugging_face.write_directory(tmp_path / "model", params, config, label_offset=4)
    found, found_config, vocabulary = hugging_face.read_directory(tmp_path / "model")
    assert_identical(found, params)
    assert (found_config, vocabulary) == (config, None)
    with safetensors.safe_open(tmp_path / "model" / hugging_face.HEAD, "numpy") as file:
        metadata = file.metadata()
    assert json.loads(metadata["class_counts"]) == [10, 7]
    assert (metadata["label_offset"], metadata["temperature"]) == ("4", "0.2")


def test_ctc_directory_round_trip(config, make_params, tmp_path, assert_identical):
    vocabulary = Vocabulary(("|", "ñ", "a", "'"))
    params = make_params(config, vocabulary.size)
    hugging_face.write_directory(tmp_path / "model", params, config, vocabulary)
    found, _, found_vocabulary = hugging_face.read_directory(tmp_path / "model")
    assert_identical(found, params)
    assert found_vocabulary == vocabulary


def test_head_of_32_classes_is_brought_into_our_order(
    config, make_params, tmp_path, assert_identical
):
    """The layout of the models released on Hugging Face: four specials, then the characters."""
    params = make_params(config, LIBRISPEECH.size)
    directory = tmp_path / "model"
    hugging_face.write_directory(directory, params, config, LIBRISPEECH)
    tensors = safetensors.numpy.load_file(directory / hugging_face.MODEL)
    rows = [0, None, None, None, *range(1, 29)]
    for name in ("lm_head.weight", "lm_head.bias"):
        never = np.full_like(tensors[name][:1], 99)
        tensors[name] = np.concatenate(
            [never if row is None else tensors[name][row : row + 1] for row in rows]
        )
    safetensors.numpy.save_file(tensors, directory / hugging_face.MODEL)
    tokens = ["<pad>", "<s>", "</s>", "<unk>", *LIBRISPEECH.characters]
    (directory / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    found, _, vocabulary = hugging_face.read_directory(directory)
    assert_identical(found, params)
    assert vocabulary == LIBRISPEECH


def test_digests_are_those_of_the_files_and_a_second_export_replaces_the_first(
    config, make_params, tmp_path
):
    directory = tmp_path / "model"
    first = hugging_face.write_directory(directory, make_params(config, seed=1), config)
    second = hugging_face.write_directory(directory, make_params(config, seed=2), config)
    assert set(first) == {path.name for path in directory.iterdir()}
    assert first["config.json"] == second["config.json"]
    assert first[hugging_face.MODEL] != second[hugging_face.MODEL]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_directory_that_is_no_model_is_never_replaced(config, make_params, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=f"holds no {hugging_face.MODEL}"):
        hugging_face.write_directory(tmp_path, make_params(config), config)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_head_and_vocabulary_must_fit(config, make_params, tmp_path):
    params = make_params(config, 29)
    with pytest.raises(InputError, match="needs the vocabulary"):
        hugging_face.write_directory(tmp_path / "model", params, config)
    with pytest.raises(InputError, match="has 29 classes, its vocabulary 3"):
        hugging_face.write_directory(tmp_path / "model", params, config, Vocabulary(("|", "A")))
    assert not list(tmp_path.iterdir())


def test_other_networks_are_refused_by_field(config):
    values = hugging_face.model_config(config)
    names_of_others = {"hidden_act": "relu", "conv_pos_batch_norm": True, "model_type": "wavlm"}
    for key, value in names_of_others.items():
        with pytest.raises(InputError, match=f"config.json: {key} is {value!r}"):
            hugging_face.architecture({**values, key: value}, "config.json")
    del values["num_attention_heads"]
    with pytest.raises(InputError, match="num_attention_heads is missing"):
        hugging_face.architecture(values, "config.json")


def test_truncated_weights_are_reported(config, make_params, tmp_path):
    directory = tmp_path / "model"
    hugging_face.write_directory(directory, make_params(config), config)
    path = directory / hugging_face.MODEL
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=f"{hugging_face.MODEL}: cannot be read"):
        hugging_face.read_directory(directory)
