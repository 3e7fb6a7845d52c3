"""The network: published sizes, LayerDrop, truncation, masks, gradients, frame arithmetic."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hubert_jax.config import build
from hubert_jax.errors import InputError
from hubert_jax.model.architecture import HubertConfig
from hubert_jax.model.hubert import Hubert, HubertForCTC, HubertForPretraining
from hubert_jax.model.transformer import first_layers

LAYER_NORMS = dict(
    frontend_norm="layer",
    normalize_waveform=True,
    frontend_gradient_scale=1.0,
    pre_norm=True,
    dropout=0.0,
    attention_dropout=0.0,
    input_dropout=0.0,
    layer_drop=0.0,
)
LARGE = HubertConfig(
    dim=1024, num_layers=24, ffn_dim=4096, num_heads=16, projection_dim=768, **LAYER_NORMS
)
XLARGE = HubertConfig(
    dim=1280, num_layers=48, ffn_dim=5120, num_heads=16, projection_dim=1024, **LAYER_NORMS
)
SMALL = HubertConfig(
    conv_channels=(16,) * 7,
    dim=32,
    num_layers=3,
    ffn_dim=64,
    num_heads=4,
    positional_kernel=16,
    positional_groups=4,
    projection_dim=8,
    codebooks=(10,),
)


@pytest.fixture(scope="module", params=["base", "large"])
def network(request):
    """Configuration and parameters of a small network, and a batch of noise."""
    config = SMALL if request.param == "base" else dataclasses.replace(SMALL, **LAYER_NORMS)
    return config, random_params(HubertForPretraining(config)), noise(2, config.num_samples(25))


def noise(*shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def random_params(model):
    """Parameters of a network, none of them at its neutral value; nothing is compiled."""
    waveform = jax.ShapeDtypeStruct((1, model.config.num_samples(2)), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), waveform)["params"]
    random = np.random.default_rng(0)

    def values(path, leaf):
        name = path[-1].key
        fan_in = math.prod(leaf.shape[:-1]) // (SMALL.num_layers if "layers" in str(path) else 1)
        spread = {"kernel": fan_in**-0.5, "scale": 0.2, "magnitude": 0.2, "bias": 0.2}
        drawn = spread.get(name, 1.0) * random.normal(size=leaf.shape)
        return np.float32(drawn + (name in ("scale", "magnitude")))

    return jax.tree_util.tree_map_with_path(values, shapes)


def hubert(config, params, *args, **kwargs):
    def apply(params, *args):
        return Hubert(config).apply({"params": params["hubert"]}, *args, **kwargs)

    return jax.jit(apply)(params, *args)


@pytest.mark.parametrize(
    ("config", "encoder", "with_head"),
    [
        (HubertConfig(), 94_371_712, 94_697_600),
        (LARGE, 315_435_136, 316_609_408),
        (XLARGE, 962_493_824, 964_321_664),
    ],
    ids=["base", "large", "xlarge"],
)
def test_parameter_counts_are_those_published(config, encoder, with_head):
    waveform = jax.ShapeDtypeStruct((1, 16_000), jnp.float32)
    variables = jax.eval_shape(HubertForPretraining(config).init, jax.random.key(0), waveform)

    def count(tree):
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))

    assert count(variables["params"]["hubert"]) == encoder
    assert count(variables["params"]) == with_head


def test_initial_parameters_have_the_released_spread():
    config = dataclasses.replace(SMALL, dim=256, ffn_dim=512, conv_channels=(64,) * 7)
    waveform = jnp.zeros((1, config.num_samples(2)))
    params = jax.jit(HubertForPretraining(config).init)(jax.random.key(0), waveform)["params"]
    encoder = params["hubert"]
    layer = encoder["transformer"]["layers"]["layer"]
    assert layer["ffn_in"]["kernel"].std() == pytest.approx(0.02, rel=0.02)
    # Every layer of the stack has weights of its own.
    assert not np.array_equal(layer["query"]["kernel"][0], layer["query"]["kernel"][1])
    direction = encoder["positional"]["direction"]
    assert direction.std() == pytest.approx(math.sqrt(4 / (16 * 256)), rel=0.02)
    np.testing.assert_allclose(
        encoder["positional"]["magnitude"],
        np.sqrt(np.square(np.asarray(direction, np.float64)).sum(axis=(1, 2))),
        rtol=1e-5,
    )
    for leaf in (encoder["mask_embedding"], params["codes_0"]):
        assert 0 <= leaf.min() and leaf.max() <= 1 and leaf.mean() == pytest.approx(0.5, abs=0.1)


def test_frame_arithmetic():
    config = HubertConfig()
    assert (config.hop, config.receptive_field) == (320, 400)
    assert config.num_frames(250_000) == 781
    assert config.num_samples(768) == 245_840
    params = random_params(HubertForPretraining(SMALL))
    for samples in (400, 719, 720, 245_839, 245_840):
        shape = jax.eval_shape(
            lambda x: HubertForPretraining(SMALL).apply({"params": params}, x),
            jax.ShapeDtypeStruct((1, samples), jnp.float32),
        )["features"].shape
        assert shape[1] == config.num_frames(samples) == (samples - 400) // 320 + 1


def test_first_layers_give_the_collected_hidden_state(network):
    config, params, waveform = network
    whole = hubert(config, params, waveform, collect=True)
    assert whole["layers"].shape == (config.num_layers + 1, 2, 25, config.dim)
    for layer in (1, 2):
        shorter = dataclasses.replace(config, num_layers=layer)
        part = hubert(shorter, first_layers(params, layer), waveform, collect=True)["layers"]
        np.testing.assert_allclose(part[layer], whole["layers"][layer], rtol=0, atol=1e-5)
    if not config.pre_norm:
        np.testing.assert_array_equal(whole["output"], whole["layers"][-1])


def test_unrolling_and_rematerialising_change_nothing(network):
    config, params, waveform = network
    expected = hubert(config, params, waveform)["output"]
    for change in ({"scan_unroll": config.num_layers}, {"rematerialize": True}):
        found = hubert(dataclasses.replace(config, **change), params, waveform)["output"]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_masked_frames_do_not_see_their_audio(network):
    """With every frame masked the output depends on nothing but the number of frames."""
    config, params, waveform = network
    mask = jnp.ones((2, 25), bool)
    output = hubert(config, params, waveform, None, mask)["output"]
    other = hubert(config, params, 3 + waveform[::-1], None, mask)["output"]
    np.testing.assert_allclose(output, other, rtol=0, atol=1e-6)


def test_masked_channels_are_zero_in_all_frames(network):
    """With all channels masked what enters the transformer is the same for every audio."""
    config, params, waveform = network
    channels = jnp.ones((2, config.dim), bool)
    arguments = (waveform, None, None, channels)
    layers = hubert(config, params, *arguments, collect=True)["layers"]
    np.testing.assert_allclose(layers[0, 0], layers[0, 1], rtol=0, atol=1e-6)


def test_padding_changes_no_valid_frame(network):
    """Whatever stands in the padding, and however much of it there is."""
    config, params, waveform = network
    lengths = np.array([waveform.shape[1], config.num_samples(13) + 100])
    padded = np.full((2, waveform.shape[1] + 997), 7.0, np.float32)
    for row, length in enumerate(lengths):
        padded[row, :length] = waveform[row, :length]
    together = hubert(config, params, padded, lengths, collect=True)["layers"]
    for row, length in enumerate(lengths):
        alone = hubert(config, params, waveform[row : row + 1, :length], collect=True)["layers"]
        frames = alone.shape[2]
        np.testing.assert_allclose(together[:, row, :frames], alone[:, 0], rtol=0, atol=1e-5)


@functools.partial(jax.jit, static_argnums=0)
def loss_and_gradient(config, params, waveform, key, mask=None):
    def loss(params):
        outputs = HubertForPretraining(config).apply(
            {"params": params}, waveform, mask, deterministic=False, rngs={"dropout": key}
        )
        return jnp.mean(outputs["logits"][0][..., 0])

    return jax.value_and_grad(loss)(params)


def layer_gradients(gradient):
    """Largest gradient of each transformer layer."""
    stacked = jax.tree.leaves(gradient["hubert"]["transformer"]["layers"])
    return np.max([np.abs(g).reshape(g.shape[0], -1).max(axis=1) for g in stacked], axis=0)


def with_layers(params, rows):
    """The parameters of a network that has the layers `rows` only."""
    layers = jax.tree.map(lambda leaf: leaf[rows], params["hubert"]["transformer"]["layers"])
    return {**params, "hubert": {**params["hubert"], "transformer": {"layers": layers}}}


def test_layer_drop_skips_whole_layers_and_the_rest_learns():
    config = dataclasses.replace(
        SMALL, dropout=0.0, attention_dropout=0.0, input_dropout=0.0, layer_drop=0.5
    )
    waveform = noise(1, config.num_samples(12))
    params = random_params(HubertForPretraining(config))
    kept_layers = set()
    for seed in range(8):
        loss, gradient = loss_and_gradient(config, params, waveform, jax.random.key(seed))
        kept = layer_gradients(gradient) > 0
        kept_layers.add(tuple(kept))
        assert np.abs(gradient["hubert"]["projection"]["kernel"]).max() > 0
        # A dropped layer is the identity: the same as a network without it.
        if not kept.any():
            continue
        rows = np.flatnonzero(kept)
        without = with_layers(params, rows)
        shorter = dataclasses.replace(config, num_layers=len(rows), layer_drop=0.0)
        expected, _ = loss_and_gradient(shorter, without, waveform, jax.random.key(0))
        np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-6)
    assert len(kept_layers) > 2


def test_training_step_reaches_every_parameter(network):
    config, params, waveform = network
    config = dataclasses.replace(config, layer_drop=0.0)
    mask = jnp.arange(25) % 3 == 0
    mask = jnp.broadcast_to(mask, (2, 25))
    _, gradient = loss_and_gradient(config, params, waveform, jax.random.key(0), mask)
    # Keys shift all attention logits of a query alike: their bias has no effect, so no gradient.
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not name.endswith("key/bias"):
            assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, name


def test_gradient_scale_of_the_front_end():
    waveform = noise(1, SMALL.num_samples(12))
    plain = dataclasses.replace(
        SMALL,
        dropout=0.0,
        attention_dropout=0.0,
        input_dropout=0.0,
        layer_drop=0.0,
        frontend_gradient_scale=1.0,
    )
    params = random_params(HubertForPretraining(plain))
    scaled = dataclasses.replace(plain, frontend_gradient_scale=0.1)
    _, full = loss_and_gradient(plain, params, waveform, jax.random.key(0))
    _, tenth = loss_and_gradient(scaled, params, waveform, jax.random.key(0))
    for name, factor in (("frontend", 0.1), ("projection", 1.0)):
        for ours, expected in zip(
            jax.tree.leaves(tenth["hubert"][name]),
            jax.tree.leaves(full["hubert"][name]),
            strict=True,
        ):
            # Sums that nearly cancel carry the rounding of their summands.
            atol = 1e-6 * factor * np.abs(expected).max()
            np.testing.assert_allclose(ours, factor * expected, rtol=1e-4, atol=atol)


def test_ctc_freezes_the_front_end_and_on_demand_the_rest(network):
    config, params, waveform = network
    model = HubertForCTC(config, 29)
    params = random_params(model)

    def gradient(freeze_hubert):
        def loss(params):
            logits = model.apply({"params": params}, waveform, freeze_hubert=freeze_hubert)
            return jnp.mean(jax.nn.log_softmax(logits)[..., 3])

        return jax.jit(jax.grad(loss))(params)

    def reached(tree):
        return max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(tree)) > 0

    frozen, free = gradient(True), gradient(False)
    assert reached(frozen["characters"]) and not reached(frozen["hubert"])
    assert reached(free["hubert"]["transformer"]) and not reached(free["hubert"]["frontend"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_heads": 7}, r"num_heads=7: must divide config\.model\.dim=768"),
        ({"conv_kernels": [10, 3]}, "must have the same length, found 7, 2, 7"),
        ({"frontend_norm": "batch"}, "expected 'group' or 'layer'"),
        ({"dtype": "float16"}, "expected 'float32' or 'bfloat16'"),
        ({"codebooks": []}, "number of classes"),
        ({"num_layers": 0}, "expected 1 or more"),
    ],
)
def test_impossible_architectures_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        build(HubertConfig, values, "config.model")
