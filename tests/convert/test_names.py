"""The name table: complete, one to one, and strict."""

import jax
import numpy as np
import pytest

from hubert_jax.convert import encoders, heads, names, state_dicts
from hubert_jax.errors import InputError


def encoder(params):
    return {"hubert": params["hubert"]}


def to_hugging_face(params, config):
    return encoders.to_library(params, config.architecture, "hugging_face")


def from_hugging_face(tensors, config):
    return encoders.from_library(tensors, config.architecture, "hugging_face", "tensors")


def to_state_dict(params, config, library):
    return state_dicts.to_state_dict(params, config.architecture, config.head, library)


def from_state_dict(tensors, config, library):
    return state_dicts.from_state_dict(tensors, config.architecture, config.head, library, "file")


def test_table_names_every_parameter_of_the_network_once(config):
    table = names.table(config.architecture)
    entries = [(entry.ours, entry.row) for entry in table]
    assert len(set(entries)) == len(entries)
    for library in names.LIBRARIES:
        for kind in names.KINDS:
            spellings = [
                name
                for entry in (*table, *names.CTC_HEAD)
                for name in names.spellings(entry, library, kind)
            ]
            assert len(set(spellings)) == len(spellings)
    expected = {
        (path, row)
        for path, shape in encoders.shapes(config.architecture, config.head).items()
        if path.startswith("hubert/")
        for row in (range(config.architecture.num_layers) if "/layers/" in path else [None])
    }
    assert set(entries) == expected


@pytest.mark.parametrize("vocabulary_size", [None, 29])
def test_round_trip_is_the_identity_bit_for_bit(
    config, make_params, vocabulary_size, assert_identical
):
    params = make_params(config, vocabulary_size)
    tensors = to_hugging_face(params, config)
    expected = params if vocabulary_size else encoder(params)
    assert_identical(from_hugging_face(tensors, config), expected)


@pytest.mark.parametrize("library", ["fairseq", "torchaudio"])
def test_whole_models_come_back_from_their_state_dicts(
    config, make_params, library, assert_identical
):
    params = make_params(config)
    tensors = to_state_dict(params, config, library)
    assert_identical(from_state_dict(tensors, config, library), params)
    if library == "torchaudio":  # without a pre-training head a Wav2Vec2Model, which has no mask
        params = {"hubert": dict(params["hubert"])}
        tensors = to_state_dict(params, config, library)
        del params["hubert"]["mask_embedding"]
        assert_identical(from_state_dict(tensors, config, library), params)
    # fairseq drops the projections when it fine-tunes, and keeps the code embeddings.
    params = make_params(config, 32) | {"label_embeddings_0": np.ones((10, 16), np.float32)}
    params["label_embeddings_1"] = np.full((7, 16), 2, np.float32)
    tensors = to_state_dict(params, config, library)
    found = from_state_dict(tensors, config, library)
    if library == "torchaudio":
        found |= {name: params[name] for name in ("label_embeddings_0", "label_embeddings_1")}
        found["hubert"]["mask_embedding"] = params["hubert"]["mask_embedding"]
    assert_identical(found, params)


def test_layouts_are_those_of_torch(config, make_params):
    params = make_params(config)
    hubert, tensors = params["hubert"], to_hugging_face(params, config)
    layer = hubert["transformer"]["layers"]["layer"]
    for name, expected in {
        "feature_extractor.conv_layers.0.conv.weight": "frontend/conv_0/kernel",
        "feature_projection.projection.weight": "feature_projection/kernel",
    }.items():
        leaf = hubert
        for key in expected.split("/"):
            leaf = leaf[key]
        np.testing.assert_array_equal(tensors[name], leaf.T)
    np.testing.assert_array_equal(
        tensors["encoder.layers.2.feed_forward.intermediate_dense.weight"],
        layer["ffn_in"]["kernel"][2].T,
    )
    magnitude = tensors["encoder.pos_conv_embed.conv.parametrizations.weight.original0"]
    assert magnitude.shape == (1, 1, config.architecture.positional_kernel)


def test_older_names_of_the_weight_norm_are_read(config, make_params, assert_identical):
    params = make_params(config)
    tensors = to_hugging_face(params, config)
    stem = "encoder.pos_conv_embed.conv"
    tensors[f"{stem}.weight_g"] = tensors.pop(f"{stem}.parametrizations.weight.original0")
    tensors[f"{stem}.weight_v"] = tensors.pop(f"{stem}.parametrizations.weight.original1")
    assert_identical(from_hugging_face(tensors, config), encoder(params))


def test_half_precision_tensors_become_float32(config, make_params):
    tensors = to_hugging_face(make_params(config), config)
    halves = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    read = from_hugging_face(halves, config)
    assert {leaf.dtype for leaf in jax.tree.leaves(read)} == {np.dtype(np.float32)}


def test_only_zero_biases_of_the_front_end_are_left_out(config, make_params, assert_identical):
    params = make_params(config)
    tensors = to_hugging_face(params, config)
    bias = "feature_extractor.conv_layers.3.conv.bias"
    tensors[bias] = np.zeros(32, np.float32)
    assert_identical(from_hugging_face(tensors, config), encoder(params))
    tensors[bias][5] = 1e-3
    with pytest.raises(InputError, match=f"{bias} is not zero; expected convolutions"):
        from_hugging_face(tensors, config)


def test_missing_surplus_and_misshapen_tensors_are_named(config, make_params):
    tensors = to_hugging_face(make_params(config), config)
    name = "encoder.layers.1.final_layer_norm.bias"
    without = {key: value for key, value in tensors.items() if key != name}
    with pytest.raises(InputError, match=f"missing: {name}"):
        from_hugging_face(without, config)
    with pytest.raises(InputError, match=r"not part of this architecture: classifier\.weight"):
        from_hugging_face({**tensors, "classifier.weight": np.ones(2)}, config)
    with pytest.raises(InputError, match=rf"{name} has shape \(47,\), .* gives \(48,\)"):
        from_hugging_face({**tensors, name: np.ones(47)}, config)
    name = "encoder.pos_conv_embed.conv.parametrizations.weight.original0"
    with pytest.raises(InputError, match=r"shape \(128,\), .* gives \(1, 1, 128\)"):
        from_hugging_face({**tensors, name: np.ones(128)}, config)


def test_parameters_of_another_architecture_are_refused(config, make_params):
    params = make_params(config)
    params["hubert"]["feature_projection"]["kernel"] = np.ones((48, 32), np.float32)
    with pytest.raises(
        InputError, match=r"hubert/feature_projection/kernel: found shape \(48, 32\)"
    ):
        to_hugging_face(params, config)
    del params["hubert"]["mask_embedding"]
    with pytest.raises(InputError, match="missing: hubert/mask_embedding"):
        to_hugging_face(params, config)


def test_pretraining_head_keeps_all_codebooks_apart(config, make_params, assert_identical):
    params = make_params(config)
    tensors = heads.head_to_library(params, config.architecture, config.head, "fairseq")
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        "final_proj.weight": (2 * 16, 48),
        "final_proj.bias": (2 * 16,),
        "label_embs_concat": (10 + 7, 16),
    }
    np.testing.assert_array_equal(tensors["label_embs_concat"][10:], params["label_embeddings_1"])
    np.testing.assert_array_equal(
        tensors["final_proj.weight"][:16], params["final_proj_0"]["kernel"].T
    )
    head = {name: leaf for name, leaf in params.items() if name != "hubert"}
    assert_identical(
        heads.head_from_library(tensors, config.architecture, config.head, "fairseq"), head
    )
    tensors["label_embs_concat"] = tensors["label_embs_concat"][:-1]
    with pytest.raises(InputError, match=r"label_embs_concat has shape \(16, 16\)"):
        heads.head_from_library(tensors, config.architecture, config.head, "fairseq")


@pytest.mark.parametrize("library", ["fairseq", "torchaudio"])
def test_a_head_is_never_dropped_without_a_word(config, make_params, library):
    params = make_params(config)
    tensors = to_state_dict(params, config, library)
    with pytest.raises(AssertionError, match="come with the head"):
        state_dicts.to_state_dict(params, config.architecture, None, library)
    with pytest.raises(InputError, match="has a pre-training head, which its configuration lacks"):
        state_dicts.from_state_dict(tensors, config.architecture, None, library, "file")
    embeddings = names.PRETRAINING_HEAD[library][2]
    del tensors[embeddings]
    with pytest.raises(InputError, match=f"file: missing: {embeddings}"):
        state_dicts.from_state_dict(tensors, config.architecture, None, library, "file")
    del params["label_embeddings_0"]
    with pytest.raises(InputError, match="label_embeddings_0 is missing"):
        to_state_dict(params, config, library)
