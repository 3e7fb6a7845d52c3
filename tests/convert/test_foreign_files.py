"""Files that are not what their names say, that are against each other, or made to do harm."""

import dataclasses
import gzip
import io
import json
import pathlib
import pickle
import shutil
import struct
import tarfile
import time
import zipfile

import numpy as np
import pytest
import safetensors.numpy
from oracles import BASE_LIKE

from hubert_jax.convert import centroids, formats, hugging_face
from hubert_jax.errors import InputError
from hubert_jax.networks import warm_start
from hubert_jax.units import kmeans
from hubert_jax.vocabulary import Vocabulary

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 380000000\n"
)
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n"
VOCABULARY = Vocabulary.from_symbols(("|", "A", "B", "<unk>"))


@pytest.fixture
def directory(make_params, tmp_path) -> pathlib.Path:
    """A CTC network with its blank first."""
    network = BASE_LIKE.network(make_params(BASE_LIKE, VOCABULARY.size), VOCABULARY)
    hugging_face.write_directory(tmp_path / "model", network)
    return tmp_path / "model"


def change(directory, name, **values):
    path = directory / name
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({key: v for key, v in (before | values).items() if v != "gone"}))


def refused(directory, message):
    with pytest.raises(InputError, match=message) as error:
        formats.read(f"hf:{directory}")
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000
    assert str(directory) in str(error.value)


@pytest.mark.parametrize(
    ("content", "said"), [(POINTER, "a pointer of Git LFS"), (PAGE, "a web page saved under")]
)
def test_what_lies_in_place_of_a_file_is_named(directory, content, said, tmp_path):
    shutil.copy(directory / "model.safetensors", directory / "part.safetensors")
    for name in (
        *("model.safetensors", "vocab.json", "preprocessor_config.json", "config.json"),
        *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
        *("processor_config.json", "pretraining_head.safetensors"),
    ):
        before = (directory / name).read_bytes() if (directory / name).exists() else None
        (directory / name).write_bytes(content)
        refused(directory, f"{name}: {said}")
        (directory / name).unlink() if before is None else (directory / name).write_bytes(before)
    (directory / "model.safetensors").unlink()
    (directory / "part.safetensors").write_bytes(content)
    index = directory / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"lm_head.bias": "part.safetensors"}}')
    refused(directory, f"part.safetensors: {said}")
    index.write_bytes(content)
    refused(directory, f"model.safetensors.index.json: {said}")
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(InputError, match=f"file: {said}"):
        centroids.read_centroids(tmp_path / "file")
    pytest.importorskip("torch")
    for scheme in ("fairseq", "torchaudio"):
        with pytest.raises(InputError, match=f"file: {said}"):
            formats.read(f"{scheme}:{tmp_path}/file")
    index.unlink()
    (directory / "pytorch_model.bin").write_bytes(content)
    refused(directory, f"pytorch_model.bin: {said}")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"Entry not found", "a text that begins 'Entry not found', expected .* download failed"),
        (b"404", "a text that begins '404'"),
        (b'\xef\xbb\xbf[{"error": "x"}]', "a text that begins '.{.error"),
        ("Доступ запрещён".encode() * 20, "a text that begins 'Доступ"),  # cut within a character
        ("Entry not found".encode("utf-16"), "a text that begins 'Entry not found'"),
        ("<!DOCTYPE html>".encode("utf-16-le"), "a web page"),
        (b"<title>404</title>", "a web page"),
        (bytes(4000), "begins with zeros"),
    ],
)
def test_what_a_server_answers_is_no_network_and_no_codebook(directory, tmp_path, content, said):
    (tmp_path / "file").write_bytes(content)
    shutil.copy(tmp_path / "file", directory / "model.safetensors")
    refused(directory, f"model.safetensors: {said}")
    with pytest.raises(InputError, match=f"file: {said}"):
        centroids.read_centroids(tmp_path / "file")
    codebook = kmeans.Codebook(np.ones((4, 5), np.float32), {"kind": "mfcc"}, 0.5, 0, 0, 60)
    codebook.save(tmp_path / "own")
    shutil.copy(tmp_path / "file", tmp_path / "own" / "codebook.npz")
    with pytest.raises(InputError, match="codebook.npz: not a codebook .no archive of NumPy"):
        kmeans.Codebook.load(tmp_path / "own")
    pytest.importorskip("torch")
    for scheme in ("fairseq", "torchaudio"):
        with pytest.raises(InputError, match=f"file: {said}"):
            formats.read(f"{scheme}:{tmp_path}/file")


def test_archives_of_others_are_named_and_no_advice_of_torch_is_passed_on(tmp_path):
    torch = pytest.importorskip("torch")
    state, program, other, tar = (io.BytesIO() for _ in range(4))
    torch.save({"a": torch.zeros(2)}, state)
    for stream, names in ((program, ("a/data.pkl", "a/constants.pkl")), (other, ("a/b.txt",))):
        with zipfile.ZipFile(stream, "w") as archive:
            for name in names:
                archive.writestr(name, pickle.dumps({}, 2))
    with tarfile.open(fileobj=tar, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.pt"))
    for content, said in (
        (program, "a program .TorchScript., expected weights"),
        (other, "a zip archive without data.pkl"),
        (tar, "a tar archive, expected a file of torch"),
        (io.BytesIO(gzip.compress(tar.getvalue())), r"begins with b'\\x1f\\x8b"),
        (io.BytesIO(state.getvalue()[:-100]), "its end is missing"),
    ):
        (tmp_path / "a.pt").write_bytes(content.getvalue())
        with pytest.raises(InputError, match=f"a.pt: .*{said}") as error:
            formats.read(f"torchaudio:{tmp_path}/a.pt")
        assert "weights_only" not in str(error.value)


def test_heads_and_tokens_that_disagree(directory):
    tokens = {"<pad>": 0, "|": 1, "A": 2, "B": 3, "<unk>": 4}
    for changed, message in (
        ({"B": 2, "<unk>": 3}, "vocab.json: index 2 is there twice: 'A' and 'B'"),
        ({"B": 4, "<unk>": 5}, "vocab.json: index 3 is missing; '<unk>' has the index 5"),
        ({"<unk>": 10**30}, "vocab.json: index 4 is missing"),
        ({"A": -1}, "vocab.json: 'A' has the index -1"),
        ({"A": True}, "vocab.json: 'A' has the index True"),
        ({"A": "2"}, "vocab.json: 'A' has the index '2'"),
        ({"A": [2] * 1000}, r"vocab.json: 'A' has the index \[2, 2"),
        ({"eng": {"a": 1}}, "vocab.json: 'eng' is a vocabulary of its own"),
        ({"C": 5}, "vocab.json: 'C' has the index 5; the CTC head has 5 classes"),
        ({"A": 3, "s h": 2, "B": 4, "<unk>": "gone"}, "vocab.json: .* found the symbol 's h'"),
        ({"A": 3, "": 2, "B": {"a": 1}}, "set target_lang in tokenizer_config.json"),
    ):
        change(directory, "vocab.json", **{**tokens, **changed})
        refused(directory, message)
        (directory / "vocab.json").write_text(json.dumps(tokens))
    for name, values, message in (
        ("added_tokens.json", {"<s>": 3}, "added_tokens.json: index 3 is there twice"),
        ("added_tokens.json", {"</s>": 5}, "added_tokens.json: '</s>' has the index 5; the CTC"),
        ("added_tokens.json", {"A": 4}, "added_tokens.json: index 4 is there twice"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"2": {"content": "<s>"}}}, "index 2"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "<s>"}}}, "'x'"),
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}, "added_tokens_decoder"),
        ("tokenizer_config.json", {"tokenizer_class": "BertTokenizer"}, "_class is"),
        ("tokenizer_config.json", {"replace_word_delimiter_char": "_"}, "replace_word_delimiter"),
        ("tokenizer_config.json", {"target_lang": "eng"}, "target_lang is 'eng'"),
        ("tokenizer_config.json", {"word_delimiter_token": " "}, "no ' ', word_delimiter_token"),
        ("tokenizer_config.json", {"word_delimiter_token": "A"}, "word_delimiter_token 'A'"),
        ("special_tokens_map.json", {"pad_token": "[PAD]"}, None),
    ):
        before = (directory / name).read_bytes() if (directory / name).exists() else b"{}"
        change(directory, name, **values)
        if message:
            refused(directory, message)
        else:  # a padding token that is nowhere: config.json names the blank
            network = formats.read(f"hf:{directory}")
            assert network.vocabulary == VOCABULARY
            assert any("pad_token '[PAD]' is no token" in note for note in network.notes)
        (directory / name).write_bytes(before)
    change(directory, "config.json", vocab_size=32)
    refused(directory, "config.json: vocab_size is 32, but lm_head of model.safetensors has 5 cl")
    change(directory, "config.json", vocab_size="gone")
    refused(directory, "config.json: vocab_size is missing .32., but lm_head of")
    change(directory, "config.json", vocab_size=5)
    (directory / "vocab.json").rename(directory / "tokenizer.json")
    refused(directory, "vocab.json: not there; expected the tokens of the CTC head's 5 classes")


def test_rows_without_a_token_and_the_blank_that_the_tokenizer_names(directory):
    """As transformers' recipe leaves a head, when a file is lost on the way."""
    tokens = {"a": 0, "|": 1, "[PAD]": 2}
    (directory / "vocab.json").write_text(json.dumps(tokens))
    (directory / "special_tokens_map.json").unlink()
    change(directory, "tokenizer_config.json", pad_token={"content": "[PAD]"}, unk_token=None)
    found = formats.read(f"hf:{directory}")
    assert found.vocabulary == Vocabulary.from_symbols(("a", "|", "<unused_3>", "<unused_4>"))
    assert found.notes == (
        "taken for granted: '[PAD]', class 2, is the blank, as the tokenizer says; pad_token_id "
        "of config.json is 0",
        "without a token, spelling nothing: 2 classes (3, 4)",
        "moved: the blank, from class 2 to class 0",
    )
    hugging_face.write_directory(directory.with_name("back"), found)
    assert json.loads((directory.with_name("back") / "vocab.json").read_text()) == tokens
    names = [path.name for path in sorted(directory.iterdir())]
    assert [path.name for path in sorted(directory.with_name("back").iterdir())] == names
    before, after = (
        safetensors.numpy.load_file(each / "model.safetensors")
        for each in (directory, directory.with_name("back"))
    )
    for name, tensor in before.items():
        np.testing.assert_array_equal(after[name], tensor)


def test_tokens_that_texts_leave_out_are_said(directory):
    """Added, but not as special ones: transformers prints them."""
    tokens = {"a": 0, "|": 1, "[PAD]": 2, "<noise>": 3, "<s>": 4}
    (directory / "vocab.json").write_text(json.dumps(tokens))
    (directory / "special_tokens_map.json").unlink()
    change(directory, "tokenizer_config.json", pad_token="[PAD]", unk_token=None, bos_token="<s>")
    notes = formats.read(f"hf:{directory}").notes
    assert "left out of texts, where transformers prints them: '<noise>'" in notes


def test_how_waveforms_are_prepared_is_read_kept_and_said(directory, tmp_path):
    name = "preprocessor_config.json"
    change(directory, name, do_normalize=True, return_attention_mask=True, kept=[1.5e-9, None])
    (directory / "generation config (1).json").write_text('{"max_length": 20}')
    for source, target in (("hf:model", "orbax:run"), ("orbax:run", "hf:back")):
        formats.write(
            target.replace(":", f":{tmp_path}/"), formats.read(source.replace(":", f":{tmp_path}/"))
        )
    assert formats.read(f"orbax:{tmp_path}/run").architecture.normalize_waveform
    for path in directory.glob("*.json"):
        back = json.loads((tmp_path / "back" / path.name).read_text())
        assert back == json.loads(path.read_text()), path.name
    (note,) = formats.read(f"hf:{directory}").notes
    assert note.startswith("waveforms are normalised, as do_normalize of preprocessor_config.json")

    change(directory, name, do_normalize="gone")
    (note,) = formats.read(f"hf:{directory}").notes
    assert note == (
        "taken for granted: waveforms are normalised, as preprocessor_config.json does not tell "
        "do_normalize"
    )
    for key, value in (
        ("sampling_rate", 8000),
        ("feature_size", 80),
        ("feature_extractor_type", "WhisperFeatureExtractor"),
        ("do_normalize", "yes"),
    ):
        before = (directory / name).read_bytes()
        change(directory, name, **{key: value})
        refused(directory, f"{name}: {key} is {value!r}, expected")
        (directory / name).write_bytes(before)

    (directory / name).unlink()
    weights = safetensors.numpy.load_file(directory / "model.safetensors")
    safetensors.numpy.save_file(weights, directory / "model.safetensors")  # without our metadata
    (note,) = formats.read(f"hf:{directory}").notes
    assert note.startswith("taken for granted: waveforms are not normalised, as there is no prep")


def test_another_preparation_is_another_network_of_features(directory, tmp_path):
    """Fine-tuning keeps its own where a released directory asks for another."""
    before = formats.read(f"hf:{directory}")
    change(directory, "preprocessor_config.json", do_normalize=True)
    found = formats.read(f"hf:{directory}")
    assert found.fingerprint != before.fingerprint
    start = warm_start.for_finetuning(f"hf:{directory}", before.architecture, VOCABULARY)
    assert "normalize_waveform is True there and False in this run" in start.description
    formats.write(f"orbax:{tmp_path}/run", found)
    with pytest.raises(InputError, match="normalize_waveform is True, config.arch.* is False"):
        warm_start.for_finetuning(f"orbax:{tmp_path}/run", before.architecture, VOCABULARY)


def test_weights_in_several_files(directory):
    expected = formats.read(f"hf:{directory}")
    tensors = safetensors.numpy.load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    listed = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(sorted(tensors))}
    index = directory / "model.safetensors.index.json"

    def write(also=(), left_out=(), **values):
        for file in set(listed.values()):
            names = [n for n in tensors if (listed[n] == file or n in also) and n not in left_out]
            safetensors.numpy.save_file({n: tensors[n] for n in names}, directory / file)
        index.write_text(json.dumps({"metadata": {}, "weight_map": listed | values}))

    write()
    found = formats.read(f"hf:{directory}")
    for path, leaf in expected.flat.items():
        np.testing.assert_array_equal(found.flat[path], leaf)
    assert not (set(map(str, found.beside)) & {index.name})
    name = "encoder.layer_norm.weight"
    name = next(each for each in listed if each.endswith(name))
    write(left_out=[name])
    refused(directory, rf"index.json: names {name}, which is not in part-\d.safetensors")
    write(also=[name])
    refused(directory, rf"index.json: does not name {name}, which is in part-\d")
    for file in ("../part-0.safetensors", "/etc/passwd", "..", "", 3, None):
        write(**{name: file})
        refused(directory, rf"index.json: {name} is in .*, expected a file beside the index")
    write(**{name: "part-2.safetensors"})
    refused(directory, "index.json: part-2.safetensors is missing; copy all files")
    for content in ("[]", '{"weight_map": []}', "{}"):
        index.write_text(content)
        refused(directory, "index.json: ")
    index.unlink()
    refused(directory, "no weights: expected one of model.safetensors, .*bin.index.json")
    write()
    safetensors.numpy.save_file(tensors, directory / "model.safetensors")
    notes = formats.read(f"hf:{directory}").notes
    assert "not read: model.safetensors.index.json, beside model.safetensors" in notes


def test_configurations_that_claim_anything(directory):
    """Refused before anything grows with them."""
    huge, nested = 10**9, json.loads("[" * 90 + "]" * 90)
    for key, value in (
        *(("num_hidden_layers", each) for each in (huge, 10**30, -1, 0, 2.5, "x", None, nested)),
        *(("hidden_size", each) for each in (huge, -16, 0, 17, True, [])),
        *(("conv_dim", each) for each in (5, [huge] * 7, [], [16] * 100_000, ["x"] * 7, {})),
        *(("conv_stride", each) for each in ([0] * 7, [1] * 7, [5, 2, 2, 2, 2, 2, -2])),
        ("conv_kernel", [huge] * 7),
        ("num_conv_pos_embeddings", -1),
        ("num_conv_pos_embeddings", huge),
        ("num_conv_pos_embedding_groups", 0),
        ("num_attention_heads", 0),
        ("intermediate_size", huge),
        ("hidden_dropout", float("nan")),
        ("hidden_dropout", 1e400),
        ("layerdrop", 10**400),
        ("feat_extract_norm", ["layer"]),
        ("do_stable_layer_norm", 1),
        ("hidden_act", "x" * 100_000),
    ):
        before = (directory / "config.json").read_bytes()
        change(directory, "config.json", **{key: value})
        begun = time.monotonic()
        refused(directory, f"config.json.*{key}")
        assert time.monotonic() - begun < 2, (key, value)
        (directory / "config.json").write_bytes(before)
    change(directory, "config.json", num_hidden_layers=1000, intermediate_size=60_000)
    refused(directory, "model.safetensors: missing: hubert.encoder.layers.10.*in all")


def test_json_within_bounds(directory):
    for content, message in (
        ("[" * 100_000 + "]" * 100_000, "is not valid JSON .maximum recursion"),
        ('{"a": ' * 101 + "{}" + "}" * 101, "is nested more than 100 levels deep"),
        ("[]", "a file of transformers is a list, expected a JSON object"),
        ('{"b": {"a": 1, "a": 2}}', "'a' is there twice, with different values"),
        ("{", "is not valid JSON"),
        ("\udcff", "is not valid JSON"),
        ('{"a": ' + "1" * 5000 + "}", "is not valid JSON"),
        (" " * (2**24 + 1), "of more than 16 MiB"),
    ):
        text = content.encode("utf-8", "surrogateescape")
        for name in ("config.json", "vocab.json", "preprocessor_config.json"):
            before = (directory / name).read_bytes()
            (directory / name).write_bytes(text)
            refused(directory, f"{name}: .*{message}")
            (directory / name).write_bytes(before)
        (directory / "trainer_state.json").write_bytes(text)
        (note,) = formats.read(f"hf:{directory}").notes  # nobody needs this one
        assert note.startswith("left out: ") and "trainer_state.json" in note


def test_tensors_of_other_shapes_and_numbers(directory):
    path = directory / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    name = "hubert.encoder.layer_norm.weight"
    for other, message in (
        (tensors[name][:-1], f"{name} has shape \\(47,\\), but the architecture gives \\(48,\\)"),
        (tensors[name].astype(np.int32), f"{name} is I32, expected floating-point"),
        (tensors[name].astype(bool), f"{name} is BOOL, expected floating-point"),
        (tensors[name].reshape(1, -1), f"{name} has shape \\(1, 48\\)"),
    ):
        safetensors.numpy.save_file({**tensors, name: other}, path)
        refused(directory, message)
    for head in (np.zeros((), np.float32), np.zeros((1, 5), np.float32), np.zeros(6, np.float32)):
        safetensors.numpy.save_file({**tensors, "lm_head.bias": head}, path)
        refused(directory, "lm_head.weight and lm_head.bias have shapes")
    bias = "hubert.feature_extractor.conv_layers.2.conv.bias"
    safetensors.numpy.save_file({**tensors, bias: np.ones(32, np.float32)}, path)
    refused(directory, f"{bias} is not zero; expected .* without biases .conv_bias")
    broken = tensors[name].copy()
    broken[3] = np.nan
    safetensors.numpy.save_file({**tensors, name: broken}, path)
    assert formats.read(f"hf:{directory}").notes[-1] == (
        "NaN or infinite: numbers in 1 parameters, such as hubert/encoder_norm/scale"
    )


def test_safetensors_headers_that_lie(directory):
    def written(header, data=bytes(16)):
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)

    def tensor(begin, end, shape, dtype="F32"):
        return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}

    for header in (
        {"a": tensor(0, 10**12, [250_000_000_000])},
        {"a": tensor(0, 16, [2**62, 2**62])},
        {"a": tensor(0, 16, [4]), "b": tensor(8, 24, [4])},
        {"a": tensor(8, 24, [4])},
        {"a": tensor(16, 0, [4])},
        {"a": tensor(-4, 12, [4])},
        {"a": tensor(0, 16, [5])},
        {"a": tensor(0, 16, [16], "F8_E4M3")},
        {"a": tensor(0, 16, [4], "C64")},
        b"[" * 100_000,
        b"{}",
        b"",
        b"\xff" * 20,
    ):
        written(header)
        refused(directory, "model.safetensors: ")
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", 2**63))
    refused(directory, "model.safetensors: cannot be read as safetensors")


def test_pickled_buffers_and_shapes_that_claim_more_than_is_there(tmp_path):
    path = tmp_path / "file.km"
    for content in (
        pickle.PROTO + b"\x05" + pickle.BYTEARRAY8 + struct.pack("<Q", 2**40) + b"x.",
        pickle.PROTO + b"\x05" + pickle.BINBYTES8 + struct.pack("<Q", 2**62) + b"x.",
        pickle.PROTO + b"\x05" + pickle.BINUNICODE8 + struct.pack("<Q", 2**63) + b"x.",
        pickle.PROTO + b"\x05" + pickle.EMPTY_TUPLE + pickle.TUPLE1 * 100_000 + b".",
        pickle.PROTO + b"\x05" + pickle.EMPTY_LIST + b"\x94" + b"h\x00h\x00\x86" * 60 + b".",
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match="file.km: "):
            centroids.read_centroids(path)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (2**22, 2**22)}
    )
    path.write_bytes(header.getvalue() + bytes(64))
    with pytest.raises(InputError, match="cannot be read as an array of NumPy"):
        centroids.read_centroids(path)


def test_torch_files_that_claim_anything(tmp_path, directory):
    torch = pytest.importorskip("torch")
    path = tmp_path / "file.pt"
    shared: list = []
    for _ in range(12):
        shared = [shared] * 10
    deep: list = []
    for _ in range(200):
        deep = [deep]
    circle: list = []
    circle.append(circle)
    name = "encoder.layer_norm.weight"
    for cfg in ({"model": {"dropout": shared}}, {"model": deep}, circle, "text"):
        torch.save({"cfg": cfg, "model": {name: torch.ones(2)}}, path)
        with pytest.raises(InputError, match="file.pt: "):
            formats.read(f"fairseq:{path}")
    wide = torch.ones(1, dtype=torch.float16).expand(2**20, 2**20)
    for content in (
        {name: wide},
        {name: torch.ones(3).to_sparse()},
        {name: torch.ones(3, dtype=torch.int32)},
        {1: torch.ones(3)},
        {"state_dict": {}},
        [torch.ones(3)],
        torch.ones(3),
        {"wav2vec2.feature_extractor.conv_layers.0.conv.weight": torch.ones(())},
    ):
        torch.save(content, path)
        with pytest.raises(InputError, match="file.pt: "):
            formats.read(f"torchaudio:{path}")
    import zipfile

    torch.save({name: torch.zeros(10**6)}, path)
    with zipfile.ZipFile(path) as plain, zipfile.ZipFile(tmp_path / "z.pt", "w", 8) as packed:
        for each in plain.namelist():
            packed.writestr(each, plain.read(each))
    with pytest.raises(InputError, match="z.pt: .* is compressed there"):
        formats.read(f"torchaudio:{tmp_path}/z.pt")


def test_a_directory_of_numbered_checkpoints_needs_no_scheme(directory, tmp_path):
    network = formats.read(f"hf:{directory}")
    formats.write(f"orbax:{tmp_path}/run", network)
    assert formats.read(f"{tmp_path}/run").digest() == network.digest()
    with pytest.raises(InputError, match="model: expected hf:DIR"):
        formats.read(str(directory))


def test_files_beside_a_network_have_plain_names(directory):
    network = formats.read(f"hf:{directory}")
    odd = (*({name: {}} for name in ("../x.json", "/x.json", "\0.json", "x")), {"x.json": []}, [1])
    for beside in odd:
        with pytest.raises(InputError, match="files beside a network"):
            dataclasses.replace(network, beside=beside)
