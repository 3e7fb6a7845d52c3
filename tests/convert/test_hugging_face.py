"""Model directories without transformers: what is written comes back, and what is refused."""

import dataclasses
import json
import os

import numpy as np
import pytest
import safetensors.numpy
from oracles import Described

from hubert_jax.convert import hugging_face
from hubert_jax.convert.safetensors_files import read_tensors
from hubert_jax.errors import InputError
from hubert_jax.unit_classes import FAIRSEQ_SPECIALS, Units
from hubert_jax.vocabulary import LIBRISPEECH, Vocabulary


def described(network) -> Described:
    return Described(network.architecture, network.head, network.regularization)


def test_pretrained_directory_round_trip(config, make_params, tmp_path, assert_identical):
    params = make_params(config)
    config = dataclasses.replace(
        config,
        head=dataclasses.replace(config.head, temperature=0.2),
        regularization=dataclasses.replace(config.regularization, frontend_gradient_scale=0.5),
    )
    symbols = (*FAIRSEQ_SPECIALS, *map(str, range(6)))
    units = Units((symbols, tuple(map(str, range(7)))), 100.0, ("one", "two"))
    hugging_face.write_directory(tmp_path / "model", config.network(params, units=units))
    found = hugging_face.read_directory(tmp_path / "model")
    assert_identical(found.params, params)
    assert described(found) == config
    assert (found.vocabulary, found.units, found.notes) == (None, units, ())
    with safetensors.safe_open(tmp_path / "model" / hugging_face.HEAD, "numpy") as file:
        metadata = file.metadata()
    assert json.loads(metadata["class_counts"]) == [10, 7]
    assert (metadata["label_offset"], metadata["temperature"]) == ("4", "0.2")


def test_ctc_directory_round_trip(config, make_params, tmp_path, assert_identical):
    vocabulary = Vocabulary(("|", "ñ", "a", "'"))
    params = make_params(config, vocabulary.size)
    hugging_face.write_directory(tmp_path / "model", config.network(params, vocabulary))
    (tmp_path / "any").touch()
    for path in (tmp_path / "model").iterdir():  # who may read one may read all
        assert path.stat().st_mode == (tmp_path / "any").stat().st_mode, path
    found = hugging_face.read_directory(tmp_path / "model")
    assert_identical(found.params, params)
    assert described(found) == dataclasses.replace(config, head=None)
    assert (found.vocabulary, found.units) == (vocabulary, None)


def test_head_of_32_classes_keeps_them_all(config, make_params, tmp_path, assert_identical):
    """The layout of the models released on Hugging Face: four specials, then the characters."""
    symbols = ("<s>", "</s>", "<unk>", *LIBRISPEECH.characters)
    vocabulary = Vocabulary.from_symbols(symbols)
    params = make_params(config, vocabulary.size)
    directory = tmp_path / "model"
    hugging_face.write_directory(directory, config.network(params, vocabulary))
    tokens = json.loads((directory / "vocab.json").read_text())
    assert tokens == {token: i for i, token in enumerate(("<pad>", *symbols))}
    tokenizer = json.loads((directory / "tokenizer_config.json").read_text())
    assert (tokenizer["unk_token"], tokenizer["bos_token"]) == ("<unk>", "<s>")
    found = hugging_face.read_directory(directory)
    assert_identical(found.params, params)
    assert (found.vocabulary, found.notes) == (vocabulary, ())

    # A head with its blank last: it is moved, nothing else is, and that is said.
    tokens = {token: i for i, token in enumerate((*symbols, "<pad>"))}
    (directory / "vocab.json").write_text(json.dumps(tokens))
    config = json.loads((directory / "config.json").read_text()) | {"pad_token_id": 31}
    (directory / "config.json").write_text(json.dumps(config))
    found = hugging_face.read_directory(directory)
    head = found.params["ctc_head"]
    np.testing.assert_array_equal(head["bias"], np.roll(params["ctc_head"]["bias"], 1))
    assert found.vocabulary == vocabulary
    assert found.notes == ("moved: the blank, from class 31 to class 0",)


def test_other_precision_and_a_missing_mask_embedding_are_said(config, make_params, tmp_path):
    import ml_dtypes

    params = make_params(config)
    directory = tmp_path / "model"
    hugging_face.write_directory(directory, config.network(params))
    tensors = safetensors.numpy.load_file(directory / hugging_face.MODEL)
    del tensors["masked_spec_embed"]  # transformers has none where a configuration masks nothing
    norm = "encoder.layer_norm.weight"
    halves = {name: tensor.astype(np.float16) for name, tensor in tensors.items() if name != norm}
    safetensors.numpy.save_file({**halves, norm: tensors[norm]}, directory / hugging_face.MODEL)
    found = hugging_face.read_directory(directory)
    widened, made = found.notes
    assert widened == f"widened to float32: {len(halves)} tensors in float16"
    assert made == "new: the mask embedding, which the file does not have"
    np.testing.assert_array_equal(
        found.params["hubert"]["feature_projection"]["kernel"],
        params["hubert"]["feature_projection"]["kernel"].astype(np.float16).astype(np.float32),
    )
    assert 0 <= found.params["hubert"]["mask_embedding"].min() < 1

    brain = safetensors_of_bfloat16(tensors[norm].astype(ml_dtypes.bfloat16))
    (tmp_path / "one.safetensors").write_bytes(brain)
    read, _, notes = read_tensors(tmp_path / "one.safetensors")
    assert notes == ("widened to float32: 1 tensors in bfloat16",)
    np.testing.assert_allclose(read["x"], tensors[norm], rtol=2**-8)


def safetensors_of_bfloat16(array) -> bytes:
    """By hand: the NumPy side of safetensors does not write this dtype."""
    data = array.tobytes()
    entry = {"dtype": "BF16", "shape": list(array.shape), "data_offsets": [0, len(data)]}
    header = json.dumps({"x": entry}).encode()
    return len(header).to_bytes(8, "little") + header + data


def test_digests_are_those_of_the_files_and_a_second_export_replaces_the_first(
    config, make_params, tmp_path
):
    directory = tmp_path / "model"
    first = hugging_face.write_directory(directory, config.network(make_params(config, seed=1)))
    second = hugging_face.write_directory(directory, config.network(make_params(config, seed=2)))
    assert set(first) == {path.name for path in directory.iterdir()}
    assert first["config.json"] == second["config.json"]
    assert first[hugging_face.MODEL] != second[hugging_face.MODEL]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("killed", [False, True])
def test_what_is_no_models_stays_in_a_clone(config, make_params, tmp_path, monkeypatch, killed):
    directory = tmp_path / "model"
    network = config.network(make_params(config, seed=1))
    first = hugging_face.write_directory(directory, network, {"README.md": "a card"})
    (directory / ".git").mkdir()
    (directory / ".git" / "HEAD").write_text("main")
    (directory / "notes.md").write_text("mine")
    (directory / "language_model").mkdir()
    (directory / "language_model" / "old.bin").write_text("of the model that was there")
    replace = os.replace

    def kill(source, target):
        if target.name == hugging_face.MODEL:
            raise KeyboardInterrupt
        replace(source, target)

    if killed:
        monkeypatch.setattr(os, "replace", kill)
        with pytest.raises(KeyboardInterrupt):
            hugging_face.write_directory(directory, network)
        monkeypatch.undo()
        with pytest.raises(InputError, match="holds no config.json"):
            hugging_face.read_directory(directory)
    second = hugging_face.write_directory(directory, network)
    assert {*second} == {*first} - {"README.md"}
    assert (directory / ".git" / "HEAD").read_text() == "main"
    there = {path.name for path in directory.iterdir()}
    assert there == {*second, ".git", "notes.md"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_directory_that_is_no_model_is_never_replaced(config, make_params, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=f"holds no {hugging_face.MODEL}"):
        hugging_face.write_directory(tmp_path, config.network(make_params(config)))
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_head_and_vocabulary_must_fit(config, make_params, tmp_path):
    params = make_params(config, 29)
    with pytest.raises(InputError, match="needs the vocabulary"):
        config.network(params)
    with pytest.raises(InputError, match="has 29 classes, its vocabulary 3"):
        config.network(params, Vocabulary(("|", "A")))
    assert not list(tmp_path.iterdir())


def test_other_networks_are_refused_by_field(config, make_params, tmp_path):
    directory = tmp_path / "model"
    hugging_face.write_directory(directory, config.network(make_params(config)))
    values = json.loads((directory / "config.json").read_text())
    weights = (directory / hugging_face.MODEL).read_bytes()
    (directory / hugging_face.MODEL).write_bytes(b"with tensors that are not read")
    names_of_others = {"hidden_act": "relu", "conv_pos_batch_norm": True, "model_type": "wavlm"}
    for key, value in {**names_of_others, "adapter_attn_dim": 16}.items():
        changed = {**values, "do_stable_layer_norm": True, key: value}
        (directory / "config.json").write_text(json.dumps(changed))
        with pytest.raises(InputError, match=f"config.json: {key} is {value!r}"):
            hugging_face.read_directory(directory)
    (directory / hugging_face.MODEL).write_bytes(weights)
    if not values["do_stable_layer_norm"]:  # transformers has no adapters there
        (directory / "config.json").write_text(json.dumps({**values, "adapter_attn_dim": 16}))
        hugging_face.read_directory(directory)
    del values["num_attention_heads"]
    (directory / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match="config.json: num_attention_heads is missing"):
        hugging_face.read_directory(directory)


def test_fields_of_another_type_are_named(config, make_params, tmp_path):
    directory = tmp_path / "model"
    hugging_face.write_directory(directory, config.network(make_params(config)))
    values = json.loads((directory / "config.json").read_text())
    for key, value in (("hidden_size", "wide"), ("conv_dim", [1, "x"])):
        (directory / "config.json").write_text(json.dumps({**values, key: value}))
        with pytest.raises(InputError, match="config.json.(dim|conv_channels.*): expected int"):
            hugging_face.read_directory(directory)
    with pytest.raises(InputError, match=f"{tmp_path}: holds no config.json; expected a direct"):
        hugging_face.read_directory(tmp_path)


def test_truncated_weights_are_reported(config, make_params, tmp_path):
    directory = tmp_path / "model"
    hugging_face.write_directory(directory, config.network(make_params(config)))
    path = directory / hugging_face.MODEL
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=f"{hugging_face.MODEL}: cannot be read"):
        hugging_face.read_directory(directory)


@pytest.mark.parametrize("rate", [0, -3, float("nan"), float("inf"), int("9" * 400), "fast"])
def test_units_come_at_a_rate_that_can_be(rate):
    values = {"symbols": [["0", "1"]], "rate_hz": rate, "codebook_digests": ["one"]}
    with pytest.raises(InputError, match="head.json: expected the units of a head") as told:
        Units.from_dict(values, [2], "head.json")
    assert len(str(told.value)) < 300
