"""A network goes through every format and comes back bit for bit, its head included."""

import dataclasses
import tempfile

import jax
import numpy as np
import pytest
import torch
from flax import traverse_util
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracles import Described

from hubert_jax import files
from hubert_jax.convert import encoders, formats
from hubert_jax.convert.__main__ import main
from hubert_jax.convert.network import Network
from hubert_jax.model.architecture import Architecture, Head, Regularization
from hubert_jax.unit_classes import FAIRSEQ_SPECIALS, Units
from hubert_jax.vocabulary import LIBRISPEECH, Vocabulary

RELEASED = Vocabulary.from_symbols(("<s>", "</s>", "<unk>", *LIBRISPEECH.characters))


def assert_same(found: Network, expected: Network):
    assert jax.tree.structure(dict(found.params)) == jax.tree.structure(dict(expected.params))
    for path, leaf in expected.flat.items():
        assert found.flat[path].dtype == leaf.dtype
        np.testing.assert_array_equal(found.flat[path], leaf, err_msg=path)
    for part in ("architecture", "head", "regularization"):
        assert getattr(found, part) == getattr(expected, part)
    assert (found.vocabulary, found.units) == (expected.vocabulary, expected.units)


@pytest.fixture(params=["pretraining", "ctc", "encoder"])
def network(request, config, make_params) -> Network:
    """With heads as released: 504 classes, or 32; a fine-tuned one keeps its label embeddings."""
    config = dataclasses.replace(config, head=Head((504,), projection_dim=16))
    units = Units(((*FAIRSEQ_SPECIALS, *map(str, range(500))),), 50.0, ("a digest",))
    if request.param == "pretraining":
        return config.network(make_params(config), units=units)
    params = make_params(config, RELEASED.size)
    if request.param == "encoder":
        return config.network({"hubert": params["hubert"]})
    params["label_embeddings_0"] = make_params(config)["label_embeddings_0"]
    return config.network(params, RELEASED, units)


def test_every_format_in_turn_is_the_identity(network, tmp_path):
    places = ["fairseq:first.pt", "hf:model", "orbax:run", "torchaudio:state.pt", "fairseq:last.pt"]
    found = network
    for place in places:
        scheme, name = place.split(":")
        formats.write(f"{scheme}:{tmp_path}/{name}", found)
        found = formats.read(f"{scheme}:{tmp_path}/{name}")
        assert_same(found, network)
        assert found.notes == ()
    assert (tmp_path / "first.pt").read_bytes() == (tmp_path / "last.pt").read_bytes()
    # Nothing but tensors and plain data, so that torch's safe loader takes it as it is.
    state = torch.load(tmp_path / "first.pt", weights_only=True)
    assert state["cfg"]["model"]["_name"] == ("hubert_ctc" if network.vocabulary else "hubert")
    dictionary = state["task_state"]["dictionaries"][0]
    if network.units:
        assert dictionary[:5] == [*FAIRSEQ_SPECIALS, "0"] and len(dictionary) == 504
    if network.vocabulary:
        symbols = state["task_state"]["target_dictionary"]
        assert symbols == [*FAIRSEQ_SPECIALS, *LIBRISPEECH.characters]


def architectures():
    """Small networks of every kind that the formats can tell apart."""

    @st.composite
    def draw(draw):
        heads = draw(st.sampled_from([1, 2, 3]))
        groups = draw(st.sampled_from([1, 2]))
        # fairseq has no input projection where the width is that of the front-end.
        dim = 2 * heads * draw(st.integers(1, 3))
        # All see 400 samples, 320 apart.
        kernels, strides = draw(
            st.sampled_from(
                [
                    ((400,), (320,)),
                    ((32, 24), (16, 20)),
                    ((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)),
                ]
            )
        )
        layers = len(kernels)
        sizes = st.lists(st.integers(1, 4), min_size=layers, max_size=layers)
        rate = st.sampled_from([0.0, 0.05, 0.1, 1 / 3])
        architecture = Architecture(
            conv_channels=tuple(draw(sizes)[:-1]) + (5,),
            conv_kernels=kernels,
            conv_strides=strides,
            frontend_norm=draw(st.sampled_from(["group", "layer"])),
            normalize_waveform=draw(st.booleans()),
            dim=dim,
            num_layers=draw(st.integers(1, 3)),
            ffn_dim=draw(st.integers(1, 9)),
            num_heads=heads,
            pre_norm=draw(st.booleans()),
            positional_kernel=draw(st.integers(1, 6)),
            positional_groups=groups,
        )
        head = Head(
            codebook_sizes=tuple(draw(st.lists(st.integers(2, 9), min_size=1, max_size=3))),
            projection_dim=draw(st.integers(1, 5)),
            temperature=draw(st.sampled_from([0.1, 0.07])),
        )
        regularization = Regularization(
            dropout=draw(rate),
            attention_dropout=draw(rate),
            activation_dropout=draw(rate),
            input_dropout=draw(rate),
            layer_drop=draw(rate),
            frontend_gradient_scale=draw(st.sampled_from([0.0, 0.1, 1.0])),
        )
        return Described(architecture, head, regularization)

    return draw()


def vocabularies():
    """None (pre-training), or characters with special symbols anywhere among them."""
    symbols = ["|", *"ABCDEF", "<unk>", "</s>", "<s>"]
    return st.none() | st.permutations(symbols).map(Vocabulary.from_symbols)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    config=architectures(),
    vocabulary=vocabularies(),
    order=st.permutations(["hf:m", "fairseq:f.pt", "torchaudio:t.pt"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_architecture_in_any_order(config, vocabulary, order, seed):
    random = np.random.default_rng(seed)
    head = None if vocabulary else config.head
    shapes = encoders.shapes(config.architecture, head, vocabulary and vocabulary.size)
    params = {path: random.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
    network = config.network(traverse_util.unflatten_dict(params, sep="/"), vocabulary)
    with tempfile.TemporaryDirectory() as directory:
        found = network
        for place in (*order, order[0]):
            place = place.replace(":", f":{directory}/")
            formats.write(place, found)
            found = formats.read(place)
            assert_same(found, network)


@pytest.mark.parametrize("network", ["pretraining"], indirect=True)
def test_the_job_converts_and_says_what_it_did(network, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    formats.write("fairseq:theirs.pt", network)
    main(["--from=fairseq:theirs.pt", "--to=orbax:run/checkpoints", "--workdir=run"])
    count = network.num_parameters
    assert f"{count:,} parameters (pretraining) in orbax:run/" in capsys.readouterr().out
    result = files.read_json("run/convert/result.json", "result")
    assert (result["parameters"], result["kind"], result["notes"]) == (count, "pretraining", [])
    assert result["inputs"]["network"] == files.sha256_file("theirs.pt")
    main(["--from=orbax:run/checkpoints", "--to=fairseq:back.pt"])
    assert (tmp_path / "theirs.pt").read_bytes() == (tmp_path / "back.pt").read_bytes()
    result = files.read_json("back.pt.result.json", "result")
    assert result["digests"] == {"back.pt": files.sha256_file("back.pt")}

    for _ in range(2):  # the second time over what an interrupted call may have left
        main(["--from=fairseq:theirs.pt", "--to=orbax:", "--workdir=stage"])
    formats.write("fairseq:again.pt", formats.read("orbax:stage/convert/model"))
    assert (tmp_path / "theirs.pt").read_bytes() == (tmp_path / "again.pt").read_bytes()

    for arguments, message in (
        (["--from=theirs.pt", "--to=hf:model"], "--from=theirs.pt: expected hf:DIR, fairseq:FILE"),
        (["--from=fairseq:theirs.pt", "--to=fairseq:./theirs.pt"], "the same place"),
        (["--from=fairseq:theirs.pt", "--to=orbax:run/checkpoints"], "exists"),
        (["--from=fairseq:theirs.pt"], "required: --to"),
        (["--from=fairseq:none.pt", "--to=hf:model"], "none.pt: no such file"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        line = capsys.readouterr().err
        assert ended.value.code == 1
        assert line.startswith("error: ") and message in line and line.count("\n") == 1
    assert not (tmp_path / "model").exists()
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0 and "torchaudio:FILE" in capsys.readouterr().out
