"""Against Hugging Face transformers: networks imported from it and exported to it."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers
from oracles import Described, largest_difference
from splits import TINY_BASE, TINY_LARGE

from hubert_jax import config as config_lib
from hubert_jax import decode
from hubert_jax.convert import compare, encoders, formats, hugging_face
from hubert_jax.data import records
from hubert_jax.data.waveform import normalize, to_float
from hubert_jax.frames import num_frames
from hubert_jax.model.architecture import Architecture, Execution
from hubert_jax.model.hubert import Hubert
from hubert_jax.model.kernels import choice
from hubert_jax.vocabulary import LIBRISPEECH

pytestmark = pytest.mark.parity

TOLERANCE = 1e-5


@pytest.fixture
def theirs(config):
    """A network that transformers made at random, without any parameter left at its neutral value
    (or two LayerNorms could be swapped unseen)."""
    torch.manual_seed(1)
    return random_model(transformers.HubertConfig(**hugging_face.model_config(config.network({}))))


def random_model(values):
    model = transformers.HubertModel(values).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def imported(model, config):
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    return encoders.from_library(tensors, config.architecture, "hugging_face", "tensors")


def prepared(samples, config):
    waveform = to_float(samples)
    return normalize(waveform) if config.architecture.normalize_waveform else waveform


def their_states(model, waveform, attention_mask=None):
    """Input of block 1, the output of every block, and the last hidden state."""
    seen = []
    hooks = [model.encoder.layers[0].register_forward_pre_hook(lambda m, x: seen.append(x[0]))]
    for block in model.encoder.layers:
        hooks.append(block.register_forward_hook(lambda m, x, y: seen.append(y)))
    with torch.no_grad():
        outputs = model(
            torch.from_numpy(waveform), attention_mask=attention_mask, output_hidden_states=True
        )
    for hook in hooks:
        hook.remove()
    # What a user reads as hidden_states[l] is our layer l.
    for layer, state in enumerate(outputs.hidden_states[:-1]):
        torch.testing.assert_close(state, seen[layer], rtol=0, atol=0)
    return [state.numpy() for state in (*seen, outputs.last_hidden_state)]


def our_states(params, config, waveform, num_samples=None):
    kernels = choice.choose(Execution(), config.architecture)
    network = Hubert(config.architecture, kernels)
    apply = jax.jit(lambda params, *args: network.apply(params, *args, collect=True))
    hidden = apply({"params": params["hubert"]}, waveform, num_samples)
    return [np.asarray(state) for state in (*hidden["layers"], hidden["output"])]


def difference_alone(model, params, config, speech):
    """Largest difference of any layer, each utterance alone on both sides."""
    differences = []
    for samples in speech:
        waveform = prepared(samples, config)[None]
        ours, expected = our_states(params, config, waveform), their_states(model, waveform)
        assert len(ours) == config.architecture.num_layers + 2
        differences += map(largest_difference, ours, expected)
    return max(differences)


def padded(speech, config):
    """A batch with something else than zeros in its padding, and the lengths."""
    lengths = np.array([len(samples) for samples in speech])
    batch = np.full((len(speech), lengths.max() + 700), 0.5, np.float32)
    for row, samples in enumerate(speech):
        batch[row, : len(samples)] = prepared(samples, config)
    return batch, lengths


def difference_padded(model, params, config, speech):
    """Largest difference of any layer, ours in a padded batch, theirs each utterance alone."""
    ours = our_states(params, config, *padded(speech, config))
    differences = []
    for row, samples in enumerate(speech):
        frames = num_frames(len(samples))
        expected = their_states(model, prepared(samples, config)[None])
        differences += [
            largest_difference(our_state[row, :frames], their_state[0])
            for our_state, their_state in zip(ours, expected, strict=True)
        ]
    return max(differences)


def test_every_layer_of_an_imported_network(config, theirs, speech, figure):
    difference = difference_alone(theirs, imported(theirs, config), config, speech)
    figure("transformers", config, "hidden states, alone", difference)
    assert difference < TOLERANCE


def test_import_and_export_give_back_the_same_tensors(config, theirs):
    exported = encoders.to_library(imported(theirs, config), config.architecture, "hugging_face")
    state = theirs.state_dict()
    assert set(exported) == set(state)
    for name, tensor in state.items():
        np.testing.assert_array_equal(exported[name], tensor.numpy())


def test_padded_batch_equals_each_utterance_alone(config, theirs, speech, figure):
    """GroupNorm over padded time is where transformers itself gives other features (its issue
    21534), so the reference is the utterance alone; with LayerNorms its padded batch is compared
    as well."""
    params = imported(theirs, config)
    difference = difference_padded(theirs, params, config, speech)
    figure("transformers", config, "hidden states, ours padded, theirs alone", difference)
    assert difference < TOLERANCE

    batch, lengths = padded(speech, config)
    mask = np.arange(batch.shape[1]) < lengths[:, None]
    together = their_states(theirs, batch * mask, torch.from_numpy(mask.astype(np.int64)))
    ours = our_states(params, config, batch, lengths)
    differences = []
    for row, frames in enumerate(num_frames(lengths)):
        for our_state, their_state in zip(ours, together, strict=True):
            differences.append(
                largest_difference(our_state[row, :frames], their_state[row, :frames])
            )
    if config.architecture.frontend_norm == "group":
        assert max(differences) > 0.01
    else:
        figure("transformers", config, "hidden states, both padded", max(differences))
        assert max(differences) < TOLERANCE


def test_exported_network_loads_and_agrees(config, make_params, speech, tmp_path):
    params = make_params(config)
    hugging_face.write_directory(tmp_path / "model", config.network(params))
    model, report = transformers.AutoModel.from_pretrained(
        tmp_path / "model", output_loading_info=True
    )
    assert isinstance(model, transformers.HubertModel)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert model.config.conv_bias is False
    assert (
        compare.largest_difference(tmp_path / "model", params, config.architecture, speech) < 1e-4
    )
    # The comparison sees a difference where there is one.
    params["hubert"]["encoder_norm"]["bias"] += 0.01
    assert (
        compare.largest_difference(tmp_path / "model", params, config.architecture, speech[:1])
        > 5e-3
    )


def test_exported_configuration_is_complete(config):
    """Every field of the network is written, so no default of another version can creep in."""
    values = hugging_face.model_config(config.network({}))
    architecture = transformers.HubertConfig(**values)
    for key, value in values.items():
        if key not in ("architectures", "dtype", "torch_dtype"):
            found = getattr(architecture, key)
            assert (list(found) if isinstance(found, tuple) else found) == value, key
    bare = transformers.PreTrainedConfig().to_dict()
    fields = set(transformers.HubertConfig().to_dict()) - set(bare)
    assert fields - set(values) == set()


def test_waveform_preparation_is_that_of_the_exported_files(config, make_params, speech, tmp_path):
    hugging_face.write_directory(tmp_path / "model", config.network(make_params(config)))
    extract = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "model")
    for samples in speech:
        found = extract(to_float(samples), sampling_rate=16_000, return_tensors="np")
        np.testing.assert_allclose(
            found.input_values[0], prepared(samples, config), rtol=0, atol=1e-5
        )
    together = extract([to_float(s) for s in speech], padding=True, sampling_rate=16_000)
    assert ("attention_mask" in together) == (config.architecture.frontend_norm == "layer")


def with_lively_head(params, config, samples):
    """Parameters whose CTC head chooses all characters about equally often, word boundaries and
    blanks more often, and changes often: blanks, repeats and doubled boundaries all occur."""
    kernel, boundary = params["ctc_head"]["kernel"], LIBRISPEECH.boundary
    output = our_states({"hubert": params["hubert"]}, config, prepared(samples, config)[None])[-1]
    logits = output[0] @ kernel
    bias = -logits.mean(0) / logits.std(0)
    bias[[0, boundary]] += 1.5
    return {**params, "ctc_head": {"kernel": kernel / logits.std(0), "bias": bias}}


@pytest.mark.parametrize("tiny", [TINY_BASE, TINY_LARGE], ids=["base", "large"])
def test_pipeline_gives_the_text_of_the_decode_job(tiny, make_params, speech, dev_mini, tmp_path):
    """Every utterance of dev-mini, in padded batches here and alone in transformers."""
    config = Described(Architecture(**tiny["architecture"]))
    params = with_lively_head(make_params(config, LIBRISPEECH.size), config, speech[0])
    checkpoint = f"orbax:{tmp_path}/checkpoints"
    formats.write(checkpoint, config.network(params, LIBRISPEECH))
    values = dict(workdir=str(tmp_path), checkpoint=checkpoint)
    values |= dict(audio=str(dev_mini))
    decode.run(config_lib.build(decode.DecodeConfig, values))
    lines = (tmp_path / "decode" / "hypotheses.jsonl").read_text().splitlines()
    expected = {row["id"]: row["greedy"] for row in map(json.loads, lines)}

    hugging_face.write_directory(tmp_path / "model", config.network(params, LIBRISPEECH))
    recognise = transformers.pipeline(
        "automatic-speech-recognition", model=str(tmp_path / "model"), device="cpu"
    )
    assert recognise.type == "ctc"
    waveforms = {u.id: to_float(u.audio) for u in records.read_audio(dev_mini)}

    heard = {
        name: recognise({"raw": waveform, "sampling_rate": 16_000})["text"]
        for name, waveform in waveforms.items()
    }
    assert heard == expected
    assert len(expected) == 46
    assert len(set(expected.values())) == len(expected)
    # A blank between two word boundaries makes two spaces, on both sides.
    assert any("  " in text for text in expected.values())


def test_exported_tokenizer_spells_as_our_vocabulary(make_params, config, tmp_path):
    params = make_params(config, LIBRISPEECH.size)
    hugging_face.write_directory(tmp_path / "model", config.network(params, LIBRISPEECH))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    text = "IT'S A HELLO FROM QUIZ JAZZ"
    assert tokenizer(text).input_ids == LIBRISPEECH.encode(text).tolist()
    frames = [0, 8, 8, 0, 2, 12, 12, 0, 12, 5, 1, 1, 15, 0]
    assert tokenizer.decode(frames) == LIBRISPEECH.decode(LIBRISPEECH.collapse(frames)) == "HELLO W"
    assert len(tokenizer) == LIBRISPEECH.size  # no token without a row in the head
    assert tokenizer.pad_token_id == 0
    with pytest.raises(ValueError):
        tokenizer("ÉTÉ")
    assert transformers.AutoModelForCTC.from_pretrained(tmp_path / "model").config.vocab_size == 29


def test_base_at_full_size(speech, figure):
    config = Described()
    torch.manual_seed(2)
    model = random_model(transformers.HubertConfig(**hugging_face.model_config(config.network({}))))
    params = imported(model, config)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 94_371_712
    difference = difference_alone(model, params, config, speech[:1])
    figure("transformers", config, "hidden states, alone", difference)
    assert difference < 1e-4
    difference = difference_padded(model, params, config, speech)
    figure("transformers", config, "hidden states, ours padded, theirs alone", difference)
    assert difference < 1e-4
