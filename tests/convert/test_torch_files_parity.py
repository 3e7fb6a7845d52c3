"""Files of torch: genuine layouts are read, damaged, foreign and malicious ones are refused."""

import dataclasses
import os
import sys
import types

import numpy as np
import pytest
import torch
from oracles import Described

from hubert_jax import files
from hubert_jax.convert import encoders, fairseq, formats, names, state_dicts, torchaudio
from hubert_jax.convert.fairseq_config import _parse_conv_layers
from hubert_jax.convert.network import Network
from hubert_jax.errors import InputError
from hubert_jax.model.architecture import NO_REGULARIZATION, Architecture, Head
from hubert_jax.unit_classes import FAIRSEQ_SPECIALS
from hubert_jax.vocabulary import LIBRISPEECH, Vocabulary


@pytest.fixture
def written(config, make_params, tmp_path):
    """A pre-training network, its fairseq checkpoint, and how to write a changed one."""
    network = config.network(make_params(config))
    path = tmp_path / "theirs.pt"
    fairseq.write(path, network)

    def change(edit) -> str:
        content = torch.load(path, weights_only=True)
        edit(content)
        torch.save(content, tmp_path / "changed.pt")
        return f"fairseq:{tmp_path}/changed.pt"

    return network, path, change


def assert_same_parameters(found: Network, expected: Network):
    assert set(found.flat) == set(expected.flat)
    for path, leaf in expected.flat.items():
        np.testing.assert_array_equal(found.flat[path], leaf, err_msg=path)


@pytest.fixture
def their_classes(monkeypatch):
    """Classes under the names that fairseq and omegaconf give theirs, to write files with."""
    made = {}

    def make(full_name: str) -> type:
        if full_name in made:
            return made[full_name]
        module_name, _, name = full_name.rpartition(".")
        parts = module_name.split(".")
        for i in range(1, len(parts) + 1):
            package = ".".join(parts[:i])
            if package not in sys.modules:
                monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
        made[full_name] = type(name, (), {"__module__": module_name})
        setattr(sys.modules[module_name], name, made[full_name])
        return made[full_name]

    return make


def test_a_checkpoint_with_the_pickled_objects_of_fairseq(
    config, make_params, tmp_path, their_classes
):
    """Dictionaries are objects, the configuration of the pre-trained model lies in omegaconf's
    containers or an argparse namespace, metrics hold NumPy's scalars."""
    vocabulary = Vocabulary.from_symbols(("<s>", "</s>", "<unk>", *LIBRISPEECH.characters))
    network = config.network(make_params(config, 32), vocabulary)
    fairseq.write(tmp_path / "ours.pt", network)
    content = torch.load(tmp_path / "ours.pt", weights_only=True)

    def made(full_name: str, **attributes):
        instance = their_classes(full_name)()
        instance.__dict__.update(attributes)
        return instance

    def node(value):
        if isinstance(value, dict):
            children = {key: node(item) for key, item in value.items()}
            container = made("omegaconf.dictconfig.DictConfig", _content=children)
            for child in children.values():
                child._parent = container
            return container
        if isinstance(value, list):
            return made("omegaconf.listconfig.ListConfig", _content=[node(item) for item in value])
        return made("omegaconf.nodes.AnyNode", _val=value, _metadata=None)

    symbols = content["task_state"]["target_dictionary"]
    dictionary = made("fairseq.data.dictionary.Dictionary", symbols=symbols, count=[1] * 32)
    content["task_state"] = {"target_dictionary": dictionary}
    content["extra_state"]["best"] = np.float64(3.5)
    content["extra_state"]["meter"] = made("fairseq.meters.AverageMeter", val=1)
    del content["hubert_jax"]
    plain = content["cfg"]["model"]["w2v_args"]
    namespaces = types.SimpleNamespace(
        **plain["model"], **{"normalize": plain["task"]["normalize"]}
    )
    import argparse

    for arguments in (node(plain), argparse.Namespace(**vars(namespaces))):
        content["cfg"]["model"]["w2v_args"] = arguments
        torch.save(content, tmp_path / "theirs.pt")
        found = fairseq.read(tmp_path / "theirs.pt")
        assert_same_parameters(found, network)
        assert found.vocabulary == vocabulary
        assert found.architecture == config.architecture and found.head is None
        assert found.regularization == config.regularization
    torch.save(content, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert_same_parameters(fairseq.read(tmp_path / "old.pt"), network)


class _Harmful:
    """Unpickled in the usual way, it makes a file."""

    def __init__(self, path):
        self._path = path

    def __reduce__(self):
        return os.system, (f"touch {self._path}",)


@pytest.mark.parametrize("scheme", ["fairseq", "torchaudio"])
@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_is_never_run(written, tmp_path, scheme, zipped):
    _, path, _ = written
    marker = tmp_path / "it-ran"
    content = torch.load(path, weights_only=True)
    content["cfg"]["common"] = {"seed": _Harmful(marker)}
    torch.save(content, tmp_path / "bad.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"bad.pt: the file names posix\.system.*refused"):
        formats.read(f"{scheme}:{tmp_path}/bad.pt")
    assert not marker.exists()
    if not zipped:  # what the file asks for is harm indeed
        torch.load(tmp_path / "bad.pt", weights_only=False)
        assert marker.exists()


def test_other_precision_and_spelling_are_stated_conversions(written):
    network, _, change = written
    state = written[1].parent

    def halve(content):
        model = content["model"]
        norm = "encoder.layer_norm.weight"
        for name in model:
            if name != norm:
                model[name] = model[name].half()
        stem = "encoder.pos_conv.0"
        model[f"{stem}.parametrizations.weight.original0"] = model.pop(f"{stem}.weight_g")
        model[f"{stem}.parametrizations.weight.original1"] = model.pop(f"{stem}.weight_v")
        for i in range(7):  # released configurations say conv_bias, the weights have none
            model[f"feature_extractor.conv_layers.{i}.0.bias"] = torch.zeros(32)

    found = formats.read(change(halve))
    count = (
        len(
            state_dicts.to_state_dict(network.params, network.architecture, network.head, "fairseq")
        )
        - 1
    )
    assert found.notes == (
        f"widened to float32: {count} tensors in float16",
        "left out: 7 biases of the front-end's convolutions, all zero",
    )
    for path, leaf in network.flat.items():
        halved = leaf if path == "hubert/encoder_norm/scale" else leaf.astype(np.float16)
        np.testing.assert_array_equal(found.flat[path], halved.astype(np.float32))
    assert not list(state.glob("*.tmp-*"))


def test_one_projection_for_two_codebooks_is_copied_and_said(written):
    network, _, change = written

    def share(content):
        for name in ("final_proj.weight", "final_proj.bias"):
            content["model"][name] = content["model"][name][:16].clone()

    found = formats.read(change(share))
    assert found.notes == ("copied: one projection for all 2 codebooks",)
    for i in (0, 1):
        np.testing.assert_array_equal(
            found.params[f"final_proj_{i}"]["kernel"], network.params["final_proj_0"]["kernel"]
        )


NORM = "encoder.layers.1.final_layer_norm.bias"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c["model"].pop(NORM), f"changed.pt: missing: {NORM}"),
        (lambda c: c["model"].pop("mask_emb"), "missing: mask_emb"),
        (lambda c: c["model"].update(extra=torch.ones(2)), "not part of this architecture: extra"),
        (
            lambda c: c["model"].update({NORM: torch.ones(47)}),
            rf"{NORM} has shape \(47,\).*\(48,\)",
        ),
        (lambda c: c["model"].update({NORM: torch.ones(48).int()}), f"{NORM} is torch.int32"),
        (lambda c: c["model"].pop("final_proj.bias"), "missing: final_proj.bias"),
        (lambda c: c["model"].pop("label_embs_concat"), "missing: label_embs_concat"),
        (
            lambda c: c["model"].update(label_embs_concat=torch.ones(16, 16)),
            r"label_embs_concat has 16 rows, the dictionaries have \[10, 7\] symbols",
        ),
        (lambda c: c["cfg"]["model"].update(encoder_layers=4), r"missing: encoder\.layers\.3\."),
        (lambda c: c["cfg"]["model"].update(encoder_attention_heads=7), "num_heads=7: must divide"),
        (lambda c: c["cfg"]["model"].update(_name="wav2vec2"), "_name is 'wav2vec2', expected"),
        (lambda c: c["cfg"]["model"].update(activation_fn="relu"), "activation_fn is 'relu'"),
        (lambda c: c["cfg"]["model"].update(dropout="much"), "dropout is 'much', expected a num"),
        (
            lambda c: c["cfg"]["model"].update(conv_feature_layers="__import__('os').getpid()"),
            'conv_feature_layers is "__import__',
        ),
        (lambda c: c.pop("cfg"), "neither `cfg` nor `args`"),
        (lambda c: c.pop("model"), "no fairseq checkpoint: expected `cfg` and `model`, found"),
    ],
)
def test_what_does_not_fit_is_named(written, edit, message):
    with pytest.raises(InputError, match=message) as refused:
        formats.read(written[2](edit))
    assert "\n" not in str(refused.value)


def test_damaged_and_missing_files_are_reported(written, tmp_path, monkeypatch):
    _, path, _ = written
    whole = path.read_bytes()
    unreadable = "theirs.pt: (cannot be read as a file of torch|an empty file)"
    for size in (len(whole) // 2, 10, 0):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=unreadable):
            formats.read(f"fairseq:{path}")
    with pytest.raises(InputError, match="none.pt: no such file"):
        formats.read(f"fairseq:{tmp_path}/none.pt")
    path.write_bytes(whole)
    with pytest.raises(InputError, match="fairseq's is read as fairseq:FILE"):
        formats.read(f"torchaudio:{path}")
    torch.save({"encoder.x": torch.ones(1)}, tmp_path / "bare.pt")
    with pytest.raises(InputError, match="is read as torchaudio:FILE"):
        formats.read(f"fairseq:{tmp_path}/bare.pt")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match=r"need torch.*pip install --editable '\.\[torch\]'"):
        formats.read(f"fairseq:{path}")


def test_fine_tuned_heads_and_their_dictionaries_must_fit(config, make_params, tmp_path):
    network = config.network(make_params(config, 29), LIBRISPEECH)
    fairseq.write(tmp_path / "ctc.pt", network)
    content = torch.load(tmp_path / "ctc.pt", weights_only=True)
    symbols = content["task_state"]["target_dictionary"]
    assert symbols == ["<s>", *LIBRISPEECH.characters]
    for dictionary, message in (
        (None, "no target dictionary .* its 29 classes"),
        (symbols[:-1], "28 symbols for a CTC head of 29 classes"),
        (symbols[::-1], "class 0 is 'Z', expected the blank '<s>'"),
    ):
        content["task_state"]["target_dictionary"] = dictionary
        torch.save(content, tmp_path / "ctc.pt")
        with pytest.raises(InputError, match=message):
            fairseq.read(tmp_path / "ctc.pt")
    narrow = dataclasses.replace(config.architecture, conv_channels=(48,) * 7)
    narrow = dataclasses.replace(config, architecture=narrow)
    with pytest.raises(InputError, match="no input projection where .* equal the width"):
        fairseq.write(tmp_path / "x.pt", narrow.network(make_params(narrow)))
    assert not (tmp_path / "x.pt").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[(512,10,5)] + [(512,3,2)] * 2", [(512, 10, 5), (512, 3, 2), (512, 3, 2)]),
        ("2 * [(8, 2, 1)]", [(8, 2, 1)] * 2),
        *(
            (text, None)
            for text in (
                "exit()",
                "[(1,2,3)] * 10**9",
                "[(1,2,3)] * 64 * 64",
                "[(1,2)]",
                "[(1,2,0)]",
                "[(1,2,True)]",
                "[]",
                "(1,2,3)",
                "[(1,2,3)",
                "[x for x in y]",
                "(" * 10_000,
                "",
            )
        ),
    ],
)
def test_the_list_of_convolutions_is_parsed_not_run(text, expected):
    if expected:
        assert _parse_conv_layers(text, "file") == expected
    else:
        with pytest.raises(InputError, match="expected lists of .channels, kernel, stride."):
            _parse_conv_layers(text, "file")


def test_weights_that_transformers_saved_before_safetensors(config, make_params, tmp_path):
    """As most published directories hold them, with the older names of the weight norm."""
    network = config.network({"hubert": make_params(config)["hubert"]})
    directory = tmp_path / "model"
    formats.write(f"hf:{directory}", network)
    (directory / "model.safetensors").unlink()
    tensors = encoders.to_library(network.params, config.architecture, "hugging_face")
    stem = "encoder.pos_conv_embed.conv"
    for old, new in (("g", "0"), ("v", "1")):
        tensors[f"{stem}.weight_{old}"] = tensors.pop(
            f"{stem}.parametrizations.weight.original{new}"
        )
    state = {name: torch.from_numpy(np.ascontiguousarray(t)) for name, t in tensors.items()}
    torch.save(state, directory / "pytorch_model.bin")
    found = formats.read(f"hf:{directory}")
    assert_same_parameters(found, network)
    assert found.notes == ()
    torch.save({**state, "x": _Harmful(tmp_path / "it-ran")}, directory / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model.bin: the file names posix\.system"):
        formats.read(f"hf:{directory}")
    assert not (tmp_path / "it-ran").exists()


def test_torchaudio_without_its_companions(config, make_params, tmp_path):
    network = config.network({"hubert": make_params(config)["hubert"]})
    where = f"torchaudio:{tmp_path}/state.pt"
    written = formats.write(where, network)
    assert set(written.digests) == {"state.pt", "state.pt.json", "state.pt.rest.safetensors"}
    assert "left out of the state dict, kept in state.pt.rest.safetensors" in written.notes[0]
    described = files.read_json(tmp_path / "state.pt.json", "architecture")
    assert described["arguments"]["encoder_num_heads"] == 4
    del described["rest"]
    files.write_json(tmp_path / "state.pt.json", described)
    found = formats.read(where)
    assert found.notes == ("new: the mask embedding, which the file does not have",)
    assert found.params["hubert"]["mask_embedding"].shape == (48,)
    (tmp_path / "state.pt.json").unlink()
    message = r"shapes \(width 48, 3 layers, feed-forward 96\) are none of .* state.pt.json beside"
    with pytest.raises(InputError, match=message):
        formats.read(where)


@pytest.mark.parametrize("released", ["base", "large", "xlarge"])
@pytest.mark.parametrize("kind", ["pretraining", "encoder", "ctc"])
def test_published_sizes_are_known_by_their_shapes(released, kind):
    """By shapes alone: nothing of the size is allocated."""
    large = dict(frontend_norm="layer", normalize_waveform=True, pre_norm=True, num_heads=16)
    config = {
        "base": Described(),
        "large": Described(
            Architecture(dim=1024, num_layers=24, ffn_dim=4096, **large),
            Head((504,), projection_dim=768),
            NO_REGULARIZATION,
        ),
        "xlarge": Described(
            Architecture(dim=1280, num_layers=48, ffn_dim=5120, **large),
            Head((504,), projection_dim=1024),
            NO_REGULARIZATION,
        ),
    }[released]
    shapes = encoders.shapes(config.architecture, config.head)
    tensors = {}
    for entry in names.table(config.architecture):
        shape = shapes[entry.ours][entry.row is not None :]
        shape = {"same": shape, "magnitude": (1, 1, *shape)}.get(entry.layout, shape[::-1])
        for name in names.spellings(entry, "torchaudio", kind)[:1]:
            tensors[name] = np.broadcast_to(np.float32(0), shape)
    if kind == "pretraining":
        embeddings = np.broadcast_to(np.float32(0), (504, config.head.projection_dim))
        tensors["logit_generator.label_embeddings"] = embeddings
    found = Described(*torchaudio._published(tensors, kind, types.SimpleNamespace(name="x")))
    expected = config if kind == "pretraining" else dataclasses.replace(config, head=None)
    assert found == expected
    assert torchaudio._vocabulary(29, None) == LIBRISPEECH
    assert torchaudio._vocabulary(32, None).symbols[:4] == (*FAIRSEQ_SPECIALS[::2], "<unk>", "|")


@pytest.mark.parametrize("scheme", ["hf", "fairseq", "torchaudio"])
def test_label_embeddings_beside_an_encoder_come_back(config, make_params, tmp_path, scheme):
    params = make_params(config)
    kept = ("hubert", "label_embeddings_0", "label_embeddings_1")
    network = config.network({name: params[name] for name in kept})
    where = f"{scheme}:{tmp_path}/encoder.pt"
    formats.write(where, network)
    found = formats.read(where)
    assert_same_parameters(found, network)
    assert found.head == config.head
