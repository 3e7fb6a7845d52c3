"""Against Hugging Face transformers: networks imported from it and exported to it."""

import jax
import numpy as np
import pytest
import torch
import transformers

from hubert_jax.asr.vocabulary import LIBRISPEECH
from hubert_jax.convert import hugging_face, names
from hubert_jax.convert.compare import largest_difference
from hubert_jax.data.waveform import normalize, to_float
from hubert_jax.model.hubert import Hubert, HubertForCTC

pytestmark = pytest.mark.parity

TOLERANCE = 1e-5


@pytest.fixture
def theirs(config):
    """A network that transformers made at random, without any parameter left at its neutral value
    (or two LayerNorms could be swapped unseen)."""
    torch.manual_seed(1)
    values = {**hugging_face.model_config(config), "hidden_dropout": 0.0}
    model = transformers.HubertModel(transformers.HubertConfig(**values)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def imported(model, config):
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    return names.from_hugging_face(tensors, config)


def prepared(samples, config):
    waveform = to_float(samples)
    return normalize(waveform) if config.normalize_waveform else waveform


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
    apply = jax.jit(lambda params, *args: Hubert(config).apply(params, *args, collect=True))
    hidden = apply({"params": params["hubert"]}, waveform, num_samples)
    return [np.asarray(state) for state in (*hidden["layers"], hidden["output"])]


def test_every_layer_of_an_imported_network(config, theirs, speech):
    params = imported(theirs, config)
    for samples in speech:
        waveform = prepared(samples, config)[None]
        ours, expected = our_states(params, config, waveform), their_states(theirs, waveform)
        assert len(ours) == config.num_layers + 2
        for our_state, their_state in zip(ours, expected, strict=True):
            np.testing.assert_allclose(our_state, their_state, rtol=0, atol=TOLERANCE)


def test_import_and_export_give_back_the_same_tensors(config, theirs):
    exported = names.to_hugging_face(imported(theirs, config), config)
    state = theirs.state_dict()
    assert set(exported) == set(state)
    for name, tensor in state.items():
        np.testing.assert_array_equal(exported[name], tensor.numpy())


def test_padded_batch_equals_each_utterance_alone(config, theirs, speech):
    """GroupNorm over padded time is where transformers itself gives other features (its issue
    21534), so the reference is the utterance alone; with LayerNorms its padded batch is compared
    as well."""
    params = imported(theirs, config)
    lengths = np.array([len(samples) for samples in speech])
    batch = np.full((len(speech), lengths.max() + 700), 0.5, np.float32)
    for row, samples in enumerate(speech):
        batch[row, : len(samples)] = prepared(samples, config)
    ours = our_states(params, config, batch, lengths)
    for row, samples in enumerate(speech):
        alone = their_states(theirs, prepared(samples, config)[None])
        frames = config.num_frames(len(samples))
        for our_state, their_state in zip(ours, alone, strict=True):
            np.testing.assert_allclose(
                our_state[row, :frames], their_state[0], rtol=0, atol=TOLERANCE
            )
    if config.frontend_norm == "layer":
        mask = np.arange(batch.shape[1]) < lengths[:, None]
        together = their_states(theirs, batch * mask, torch.from_numpy(mask.astype(np.int64)))
        for row, length in enumerate(lengths):
            frames = config.num_frames(length)
            for our_state, their_state in zip(ours, together, strict=True):
                np.testing.assert_allclose(
                    our_state[row, :frames], their_state[row, :frames], rtol=0, atol=TOLERANCE
                )


def test_exported_network_loads_and_agrees(config, make_params, speech, tmp_path):
    params = make_params(config)
    hugging_face.write_directory(tmp_path / "model", params, config)
    model, report = transformers.AutoModel.from_pretrained(
        tmp_path / "model", output_loading_info=True
    )
    assert isinstance(model, transformers.HubertModel)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert model.config.conv_bias is False
    assert largest_difference(tmp_path / "model", params, config, speech) < 1e-4
    # The comparison sees a difference where there is one.
    params["hubert"]["encoder_norm"]["bias"] += 0.01
    assert largest_difference(tmp_path / "model", params, config, speech[:1]) > 5e-3


def test_exported_configuration_is_complete(config):
    """Every field of the network is written, so no default of another version can creep in."""
    values = hugging_face.model_config(config)
    architecture = transformers.HubertConfig(**values)
    for key, value in values.items():
        if key not in ("architectures", "dtype", "torch_dtype"):
            found = getattr(architecture, key)
            assert (list(found) if isinstance(found, tuple) else found) == value, key
    bare = transformers.PreTrainedConfig().to_dict()
    fields = set(transformers.HubertConfig().to_dict()) - set(bare)
    assert fields - set(values) == set()


def test_waveform_preparation_is_that_of_the_exported_files(config, make_params, speech, tmp_path):
    hugging_face.write_directory(tmp_path / "model", make_params(config), config)
    extract = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "model")
    for samples in speech:
        found = extract(to_float(samples), sampling_rate=16_000, return_tensors="np")
        factor = 1.0
        if config.normalize_waveform:
            # transformers adds 1e-7 to the variance, the released models and we 1e-5.
            variance = to_float(samples).var(dtype=np.float64)
            factor = np.sqrt((variance + 1e-5) / (variance + 1e-7))
        np.testing.assert_allclose(
            found.input_values[0], factor * prepared(samples, config), rtol=1e-4, atol=1e-5
        )
    together = extract([to_float(s) for s in speech], padding=True, sampling_rate=16_000)
    assert ("attention_mask" in together) == (config.frontend_norm == "layer")


def sharpened(params):
    """Characters change often, as those of a trained head do, and blanks and repeats occur."""
    head = params["characters"]
    return {**params, "characters": {"kernel": 3 * head["kernel"], "bias": head["bias"]}}


def test_pipeline_gives_the_text_of_our_greedy_decoding(config, make_params, speech, tmp_path):
    params = sharpened(make_params(config, LIBRISPEECH.size))
    hugging_face.write_directory(tmp_path / "model", params, config, LIBRISPEECH)
    recognise = transformers.pipeline(
        "automatic-speech-recognition", model=str(tmp_path / "model"), device="cpu"
    )
    assert recognise.type == "ctc"
    apply = jax.jit(HubertForCTC(config, LIBRISPEECH.size).apply)
    texts = []
    for samples in speech:
        logits = apply({"params": params}, prepared(samples, config)[None])
        with torch.no_grad():
            their_logits = recognise.model(torch.from_numpy(prepared(samples, config)[None])).logits
        np.testing.assert_allclose(logits, their_logits.numpy(), rtol=0, atol=1e-4)
        expected = LIBRISPEECH.decode(LIBRISPEECH.collapse(np.asarray(logits[0]).argmax(-1)))
        heard = recognise({"raw": to_float(samples), "sampling_rate": 16_000})["text"]
        # transformers keeps a second space where a blank stands between two word boundaries.
        assert " ".join(heard.split()) == expected
        texts.append(expected)
    assert len(set(texts)) == len(texts)
    assert len("".join(texts)) > 20


def test_exported_tokenizer_spells_as_our_vocabulary(make_params, config, tmp_path):
    params = make_params(config, LIBRISPEECH.size)
    hugging_face.write_directory(tmp_path / "model", params, config, LIBRISPEECH)
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


def test_full_size_position_convolution_and_heads(speech):
    """BASE's width with two layers: the shapes that small networks do not reach."""
    config = hugging_face.architecture(_base_values(), "config.json")
    assert (config.dim, config.positional_groups, config.num_heads) == (768, 16, 12)
    torch.manual_seed(2)
    model = transformers.HubertModel(transformers.HubertConfig(**_base_values())).eval()
    waveform = to_float(speech[1])[None]
    ours = our_states(imported(model, config), config, waveform)
    for our_state, their_state in zip(ours, their_states(model, waveform), strict=True):
        np.testing.assert_allclose(our_state, their_state, rtol=0, atol=1e-4)


def _base_values():
    return {**transformers.HubertConfig().to_dict(), "num_hidden_layers": 2}
