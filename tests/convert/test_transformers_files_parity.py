"""Directories of CTC models as transformers and its users leave them, against transformers."""

import dataclasses
import enum
import functools
import json
import pathlib
import re
import sys
import types

import jax
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from oracles import read_speech

from hubert_jax.convert import formats
from hubert_jax.data.waveform import normalize
from hubert_jax.errors import InputError
from hubert_jax.model.architecture import Execution
from hubert_jax.model.hubert import HubertForCTC
from hubert_jax.model.kernels import choice

ROWS = 8
NORMS = {
    "group": {},
    "group, norms first": {"do_stable_layer_norm": True},
    "layer": {"feat_extract_norm": "layer", "do_stable_layer_norm": True},
    "layer, biases, norms last": {"feat_extract_norm": "layer", "conv_bias": True},
}
TOKENIZER = {
    "tokenizer_class": "Wav2Vec2CTCTokenizer",
    "word_delimiter_token": "|",
    "unk_token": None,
    "bos_token": None,
    "eos_token": None,
    "do_lower_case": False,
    "processor": {"kept": [1, 2.5e-8, None, "ñ"]},
}


def _special(content):
    return dict(content=content, lstrip=False, normalized=False, rstrip=False, single_word=False)


RECIPE = {"a": 0, "b": 1, "c": 5, "|": 2, "[UNK]": 3, "[PAD]": 4}
# Row of the blank, files and settings of the tokenizer; every row wins frames.
TOKENS = {
    "blank first": (
        0,
        {"vocab.json": {"<pad>": 0, "|": 1, **{t: i for i, t in enumerate("ABCDE'", start=2)}}},
        {"pad_token": "<pad>"},
    ),
    "added tokens": (
        4,
        {"vocab.json": RECIPE, "added_tokens.json": {"<s>": 6, "</s>": 7}},
        {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "<s>", "eos_token": "</s>"},
    ),
    "added tokens in the configuration": (
        4,
        {"vocab.json": RECIPE},
        {
            "pad_token": "[PAD]",
            "unk_token": "[UNK]",
            "bos_token": "<s>",
            "additional_special_tokens": ["<lang:de>"],
            "added_tokens_decoder": {
                "4": _special("[PAD]") | {"special": True},
                "6": _special("<s>") | {"special": True},
                "7": _special("<lang:de>") | {"special": True},
            },
        },
    ),
    "special tokens in a map, rows without a token": (
        5,
        {
            "vocab.json": {"|": 0, "[UNK]": 1, "x": 2, "y": 3, "z": 4, "[PAD]": 5},
            "special_tokens_map.json": {"pad_token": "[PAD]", "unk_token": _special("[UNK]")},
        },
        {},
    ),
    "another delimiter, texts in lower case": (
        7,
        {"vocab.json": {**{t: i for i, t in enumerate("ÀBCDE'▁")}, "<pad>": 7}},
        {"pad_token": "<pad>", "word_delimiter_token": "▁", "do_lower_case": True},
    ),
}


@functools.cache
def network(norm: str) -> transformers.HubertForCTC:
    """A small one at random, every frame of which may say something else."""
    torch.manual_seed(0)
    config = transformers.HubertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        vocab_size=ROWS,
        mask_time_prob=0.065,
        ctc_loss_reduction="mean",
        **NORMS[norm],
    )
    model = transformers.HubertForCTC(config).eval()
    with torch.no_grad():
        model.lm_head.weight.normal_(0, 3)
        for name, parameter in model.named_parameters():
            if name.endswith("conv.bias"):
                parameter.zero_()
            elif parameter.ndim == 1 and "lm_head" not in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


QUIET = read_speech()[1].astype(np.float32) / 32768 / 100  # at -40 dB


@functools.cache
def usual(norm: str, do_normalize: bool) -> torch.Tensor:
    """Mean logits of that speech: taken away, frames say different things."""
    model, waveform = network(norm), normalize(QUIET) if do_normalize else QUIET
    with torch.no_grad():
        hidden = model.hubert(torch.from_numpy(waveform)[None]).last_hidden_state
        return (hidden[0] @ model.lm_head.weight.T).mean(dim=0)


def write(directory: pathlib.Path, norm, tokens, do_normalize, several=False, safe=True):
    """A directory; the way in which weights are saved is torch's or transformers' own."""
    blank, beside, settings = TOKENS[tokens]
    model = network(norm)
    model.config.pad_token_id = blank
    with torch.no_grad():
        model.lm_head.bias.copy_(-usual(norm, do_normalize))
    model.save_pretrained(directory, max_shard_size="40KB" if several else "1GB")
    if not safe:
        parts = [path.name for path in directory.glob("*.safetensors")]
        state, index = model.state_dict(), directory / "model.safetensors.index.json"
        listed = {name: f"pytorch_model-{i % 3}.bin" for i, name in enumerate(sorted(state))}
        for name in parts:
            (directory / name).unlink()
        if several:
            index.unlink()
            values = {"metadata": {}, "weight_map": listed}
            (directory / "pytorch_model.bin.index.json").write_text(json.dumps(values))
            for file in set(listed.values()):
                part = {name: state[name] for name in state if listed[name] == file}
                torch.save(part, directory / file)
        else:
            torch.save(state, directory / "pytorch_model.bin")
    extractor = {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": 16_000,
        "do_normalize": do_normalize,
        "return_attention_mask": norm == "group",
        "padding_value": 0.5,
    }
    files = beside | {"tokenizer_config.json": TOKENIZER | settings}
    files |= {"preprocessor_config.json": extractor}
    for name, value in files.items():
        (directory / name).write_text(json.dumps(value), encoding="utf-8")


def values_of(directory):
    """Every JSON file of a directory, but the indices of weights."""
    paths = [p for p in directory.glob("*.json") if not p.name.endswith(".index.json")]
    return {path.name: json.loads(path.read_text(encoding="utf-8")) for path in paths}


@functools.cache
def _applied(architecture):
    """Compiled once for both preparations of waveforms."""
    model = HubertForCTC(architecture, ROWS, choice.choose(Execution(), architecture))

    def outputs(params, waveform):
        hidden = model.apply(
            {"params": params}, waveform, method=lambda self, x: self.hubert(x, collect=True)
        )
        return hidden["layers"], hidden["output"], model.apply({"params": params}, waveform)

    return jax.jit(outputs)


def ours(network, waveform):
    """Hidden states as transformers counts them, and the text of greedy decoding."""
    waveform = normalize(waveform) if network.architecture.normalize_waveform else waveform
    architecture = dataclasses.replace(network.architecture, normalize_waveform=False)
    params = {name: network.params[name] for name in ("hubert", "ctc_head")}
    layers, output, logits = _applied(architecture)(params, waveform[None])
    spelled = network.vocabulary.collapse(np.asarray(logits[0]).argmax(axis=1))
    return [*np.asarray(layers)[:-1], np.asarray(output)], network.vocabulary.decode(spelled)


def theirs(directory, waveform):
    """The same of what transformers reads there, and the special tokens that it writes."""
    extract = transformers.AutoFeatureExtractor.from_pretrained(directory)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    if settings["word_delimiter_token"] != "|":  # which from_pretrained passes over in 5.23
        del settings["tokenizer_class"]
        tokenizer = transformers.Wav2Vec2CTCTokenizer(directory / "vocab.json", **settings)
    model = transformers.AutoModelForCTC.from_pretrained(directory, dtype="float32").eval()
    inputs = extract(waveform, sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        found = model.hubert(inputs.input_values, output_hidden_states=True)
        spoken = model.lm_head(found.last_hidden_state)[0].argmax(dim=-1)
    states = (*found.hidden_states[:-1], found.last_hidden_state)
    text, names = tokenizer.decode(spoken), "|".join(map(re.escape, tokenizer.all_special_tokens))
    written = re.findall(names, text)
    return [state.numpy() for state in states], re.sub(names, "", text).strip(), set(written)


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("norm", NORMS)
def test_every_way_in_which_a_directory_is_written(norm, tokens, tmp_path):
    texts = set()
    for do_normalize in (False, True):
        for several in (False, True):
            for safe in (False, True):
                name = f"{do_normalize}-{several}-{safe}"
                write(tmp_path / name, norm, tokens, do_normalize, several, safe)
                network = formats.read(f"hf:{tmp_path}/{name}")
                states, text = ours(network, QUIET)
                expected, their_text, written = theirs(tmp_path / name, QUIET)
                for layer, (found, state) in enumerate(zip(states, expected, strict=True)):
                    np.testing.assert_allclose(found, state, atol=1e-4, err_msg=f"{layer}")
                assert text == their_text
                texts.add(text)
                formats.write(f"hf:{tmp_path}/back", network)
                assert values_of(tmp_path / "back") == values_of(tmp_path / name)
    expected, their_text, written = theirs(tmp_path / "back", QUIET)
    np.testing.assert_allclose(states[-1], expected[-1], atol=1e-4)
    assert text == their_text
    assert bool(written) == ("unk_token" in json.dumps(TOKENS[tokens]))
    assert len(texts) == 2 and min(map(len, texts)) > 5, texts


@pytest.mark.parametrize("norm", NORMS)
def test_files_come_back_through_every_format(norm, tmp_path):
    write(tmp_path / "first", norm, "added tokens", do_normalize=norm == "group")
    found = formats.read(f"hf:{tmp_path}/first")
    for place in ("orbax:run", "fairseq:model.pt", "torchaudio:state.pt", "hf:last"):
        scheme, name = place.split(":")
        formats.write(f"{scheme}:{tmp_path}/{name}", found)
        found = formats.read(f"{scheme}:{tmp_path}/{name}")
    assert values_of(tmp_path / "last") == values_of(tmp_path / "first")
    before, after = (network_of(tmp_path / name) for name in ("first", "last"))
    for name, tensor in before.items():
        np.testing.assert_array_equal(after[name].numpy(), tensor.numpy(), err_msg=name)


def network_of(directory):
    return transformers.AutoModelForCTC.from_pretrained(directory).state_dict()


def test_a_processor_as_newer_versions_save_it(tmp_path):
    """One file with the feature extractor inside, which wins over the older one."""
    write(tmp_path / "model", "group", "added tokens", do_normalize=False)
    processor = transformers.Wav2Vec2Processor(
        transformers.Wav2Vec2FeatureExtractor(do_normalize=True),
        transformers.AutoTokenizer.from_pretrained(tmp_path / "model"),
    )
    processor.save_pretrained(tmp_path / "model")
    network = formats.read(f"hf:{tmp_path}/model")
    assert network.architecture.normalize_waveform
    assert any("do_normalize of processor_config.json" in note for note in network.notes)
    states, text = ours(network, QUIET)
    expected, their_text, _ = theirs(tmp_path / "model", QUIET)
    np.testing.assert_allclose(states[-1], expected[-1], atol=1e-4)
    assert text == their_text


def test_a_lightning_checkpoint_of_torchaudio(tmp_path, monkeypatch):
    """Its classes need not be installed; nothing of them is run."""
    kinds = (type("AttributeDict", (dict,), {}), enum.Enum("State", ["FITTING"]))
    names = ("lightning_fabric", "lightning_fabric.data", "pytorch_lightning")
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    for name, kind in zip(names[1:], kinds, strict=True):
        kind.__module__ = name
        setattr(sys.modules[name], kind.__name__, kind)
    write(tmp_path / "model", "group", "added tokens", do_normalize=True)
    expected = formats.read(f"hf:{tmp_path}/model")
    formats.write(f"torchaudio:{tmp_path}/state.pt", expected)
    state = torch.load(tmp_path / "state.pt")
    content = {
        "epoch": 3,
        "state_dict": {f"model.{name}": tensor for name, tensor in state.items()},
        "hyper_parameters": kinds[0](exp_dir=pathlib.PosixPath("exp"), lr=0.1),
        "loops": {"state": kinds[1].FITTING},
    }
    torch.save(content, tmp_path / "state.pt")
    for name in names:
        monkeypatch.delitem(sys.modules, name)
    found = formats.read(f"torchaudio:{tmp_path}/state.pt")
    for path, leaf in expected.flat.items():
        np.testing.assert_array_equal(found.flat[path], leaf)
    assert found.vocabulary == expected.vocabulary
    assert found.notes[:3] == (
        "read: state_dict of a training's checkpoint",
        "left out: epoch, hyper_parameters, loops",
        f"dropped: the prefix model. of {len(state)} names",
    )


def test_a_training_checkpoint_is_read_or_refused_with_advice(tmp_path):
    write(tmp_path / "model", "group", "blank first", do_normalize=False, safe=False)
    file = tmp_path / "model" / "pytorch_model.bin"
    expected = formats.read(f"hf:{tmp_path}/model")
    state = torch.load(file)
    around = {"epoch": 3, "hyper_parameters": {"exp_dir": pathlib.PosixPath("exp")}}
    wrapped = {f"module.model.{name}": tensor for name, tensor in state.items()}
    extra = {"loss.weight": torch.ones(2)}
    for content, said in (
        ({"state_dict": state, **around}, ["read: state_dict", "left out: epoch, hyper_param"]),
        ({"model": wrapped | extra}, ["read: model", "prefix module.", "loss.weight", "model."]),
        (wrapped, ["prefix module. of 53 names", "prefix model. of 53 names"]),
    ):
        torch.save(content, file)
        found = formats.read(f"hf:{tmp_path}/model")
        for path, leaf in expected.flat.items():
            np.testing.assert_array_equal(found.flat[path], leaf)
        for words in said:
            assert any(words in note for note in found.notes), (words, found.notes)
    file.unlink()
    safetensors.torch.save_file(wrapped, file.with_name("model.safetensors"))
    found = formats.read(f"hf:{tmp_path}/model")
    assert "dropped: the prefix model. of 53 names" in found.notes
    np.testing.assert_array_equal(found.flat["ctc_head/kernel"], expected.flat["ctc_head/kernel"])
    file.with_name("model.safetensors").unlink()
    torch.save({"state_dict": state, "sampler": np.random.RandomState(0)}, file)
    with pytest.raises(InputError, match=r"pytorch_model.bin: the file names numpy.*state_dict"):
        formats.read(f"hf:{tmp_path}/model")
    # Names of TensorFlow's norms, which old versions of transformers wrote.
    old = {
        name.replace("layer_norm.weight", "layer_norm.gamma").replace(
            "layer_norm.bias", "layer_norm.beta"
        ): tensor
        for name, tensor in state.items()
    }
    old = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for name, tensor in old.items()
    }
    torch.save(old, file)
    found = formats.read(f"hf:{tmp_path}/model")
    np.testing.assert_array_equal(
        found.params["hubert"]["encoder_norm"]["scale"],
        expected.params["hubert"]["encoder_norm"]["scale"],
    )
    assert any("renamed: 14 tensors gamma or beta" in note for note in found.notes), found.notes
