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
from hubert_jax.frames import num_frames, num_samples
from hubert_jax.model.architecture import (
    NO_REGULARIZATION,
    REMATERIALIZE,
    Architecture,
    Execution,
    Head,
    Regularization,
)
from hubert_jax.model.hubert import Hubert, HubertForCTC, HubertForPretraining
from hubert_jax.model.kernels.choice import choose
from hubert_jax.model.transformer import first_layers
from hubert_jax.tasks import ctc

LAYER_NORMS = dict(frontend_norm="layer", normalize_waveform=True, pre_norm=True)
LARGE = Architecture(dim=1024, num_layers=24, ffn_dim=4096, num_heads=16, **LAYER_NORMS)
XLARGE = Architecture(dim=1280, num_layers=48, ffn_dim=5120, num_heads=16, **LAYER_NORMS)
SMALL = Architecture(
    conv_channels=(16,) * 7,
    dim=32,
    num_layers=3,
    ffn_dim=64,
    num_heads=4,
    positional_kernel=16,
    positional_groups=4,
)
HEAD = Head((10,), projection_dim=8)


def pretraining(architecture, head=HEAD, regularization=NO_REGULARIZATION, **execution):
    """The network with its pre-training head."""
    kernels = choose(Execution(**execution), architecture, regularization)
    return HubertForPretraining(architecture, head, kernels, regularization)


@pytest.fixture(scope="module", params=["base", "large"])
def network(request):
    """Architecture and parameters of a small network, and a batch of noise."""
    architecture = SMALL
    if request.param == "large":
        architecture = dataclasses.replace(SMALL, **LAYER_NORMS)
    return architecture, random_params(pretraining(architecture)), noise(2, num_samples(25))


def noise(*shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def random_params(model):
    """Parameters of a network, none of them at its neutral value; nothing is compiled."""
    waveform = jax.ShapeDtypeStruct((1, num_samples(2)), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), waveform)["params"]
    random = np.random.default_rng(0)

    def values(path, leaf):
        name = path[-1].key
        fan_in = math.prod(leaf.shape[:-1]) // (SMALL.num_layers if "layers" in str(path) else 1)
        spread = {"kernel": fan_in**-0.5, "scale": 0.2, "magnitude": 0.2, "bias": 0.2}
        drawn = spread.get(name, 1.0) * random.normal(size=leaf.shape)
        return np.float32(drawn + (name in ("scale", "magnitude")))

    return jax.tree_util.tree_map_with_path(values, shapes)


def hubert(architecture, params, *args, execution=None, **kwargs):
    kernels = choose(execution or Execution(), architecture)

    def apply(params, *args):
        network = Hubert(architecture, kernels)
        return network.apply({"params": params["hubert"]}, *args, **kwargs)

    return jax.jit(apply)(params, *args)


@pytest.mark.parametrize(
    ("architecture", "width", "encoder", "with_head"),
    [
        (Architecture(), 256, 94_371_712, 94_697_600),
        (LARGE, 768, 315_435_136, 316_609_408),
        (XLARGE, 1024, 962_493_824, 964_321_664),
    ],
    ids=["base", "large", "xlarge"],
)
def test_parameter_counts_are_those_published(architecture, width, encoder, with_head):
    waveform = jax.ShapeDtypeStruct((1, 16_000), jnp.float32)
    variables = jax.eval_shape(
        pretraining(architecture, Head((504,), width)).init, jax.random.key(0), waveform
    )

    def count(tree):
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))

    assert count(variables["params"]["hubert"]) == encoder
    assert count(variables["params"]) == with_head


def test_initial_parameters_have_the_released_spread():
    architecture = dataclasses.replace(SMALL, dim=256, ffn_dim=512, conv_channels=(64,) * 7)
    waveform = jnp.zeros((1, num_samples(2)))
    params = jax.jit(pretraining(architecture).init)(jax.random.key(0), waveform)["params"]
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
    for leaf in (encoder["mask_embedding"], params["label_embeddings_0"]):
        assert 0 <= leaf.min() and leaf.max() <= 1 and leaf.mean() == pytest.approx(0.5, abs=0.1)
    # As torch's layers: its Linear, and a Conv1d after kaiming_normal_, which is not truncated.
    for dense, inputs in ((encoder["feature_projection"], 64), (params["final_proj_0"], 256)):
        for leaf in dense.values():
            assert 0.9 < np.abs(leaf).max() * inputs**0.5 <= 1
        assert dense["kernel"].std() == pytest.approx((3 * inputs) ** -0.5, rel=0.02)
    kernel, spread = encoder["frontend"]["conv_1"]["kernel"], (2 / (3 * 64)) ** 0.5
    assert kernel.std() == pytest.approx(spread, rel=0.02) and np.abs(kernel).max() > 3 * spread
    tuned = ctc.init(architecture, 29)(jax.random.key(0))["ctc_head"]
    bound = (6 / (256 + 29)) ** 0.5
    assert 0.98 * bound < np.abs(tuned["kernel"]).max() <= bound and not tuned["bias"].any()


def test_frame_arithmetic():
    assert num_frames(250_000) == 781
    assert num_samples(768) == 245_840
    params = random_params(pretraining(SMALL))
    for samples in (400, 719, 720, 245_839, 245_840):
        shape = jax.eval_shape(
            lambda x: pretraining(SMALL).apply({"params": params}, x),
            jax.ShapeDtypeStruct((1, samples), jnp.float32),
        )["features"].shape
        assert shape[1] == num_frames(samples) == (samples - 400) // 320 + 1
    assert num_frames(399) == num_frames(0) == 0
    np.testing.assert_array_equal(num_frames(np.array([0, 399, 400, 1000])), [0, 0, 1, 2])


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
    changes = ({"rematerialize": what} for what in REMATERIALIZE[1:])
    for change in ({"scan_unroll": config.num_layers}, *changes):
        found = hubert(config, params, waveform, execution=Execution(**change))["output"]
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
    lengths = np.array([waveform.shape[1], num_samples(13) + 100])
    padded = np.full((2, waveform.shape[1] + 997), 7.0, np.float32)
    for row, length in enumerate(lengths):
        padded[row, :length] = waveform[row, :length]
    together = hubert(config, params, padded, lengths, collect=True)["layers"]
    for row, length in enumerate(lengths):
        alone = hubert(config, params, waveform[row : row + 1, :length], collect=True)["layers"]
        frames = alone.shape[2]
        np.testing.assert_allclose(together[:, row, :frames], alone[:, 0], rtol=0, atol=1e-5)


@functools.partial(jax.jit, static_argnums=(0, 5))
def loss_and_gradient(config, params, waveform, key, mask=None, regularization=NO_REGULARIZATION):
    network = pretraining(config, regularization=regularization)

    def loss(params):
        outputs = network.apply(
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
    dropping = dataclasses.replace(NO_REGULARIZATION, layer_drop=0.5)
    waveform = noise(1, num_samples(12))
    params = random_params(pretraining(SMALL))
    kept_layers = set()
    for seed in range(8):
        key = jax.random.key(seed)
        loss, gradient = loss_and_gradient(SMALL, params, waveform, key, None, dropping)
        kept = layer_gradients(gradient) > 0
        kept_layers.add(tuple(kept))
        assert np.abs(gradient["hubert"]["feature_projection"]["kernel"]).max() > 0
        # A dropped layer is the identity: the same as a network without it.
        if not kept.any():
            continue
        rows = np.flatnonzero(kept)
        without = with_layers(params, rows)
        shorter = dataclasses.replace(SMALL, num_layers=len(rows))
        expected, _ = loss_and_gradient(shorter, without, waveform, jax.random.key(0))
        np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-6)
    assert len(kept_layers) > 2


def test_training_step_reaches_every_parameter(network):
    config, params, waveform = network
    mask = jnp.arange(25) % 3 == 0
    mask = jnp.broadcast_to(mask, (2, 25))
    dropout = Regularization(layer_drop=0.0)
    _, gradient = loss_and_gradient(config, params, waveform, jax.random.key(0), mask, dropout)
    # Keys shift all attention logits of a query alike: their bias has no effect, so no gradient.
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not name.endswith("key/bias"):
            assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, name


def test_gradient_scale_of_the_front_end():
    waveform = noise(1, num_samples(12))
    params = random_params(pretraining(SMALL))
    scaled = dataclasses.replace(NO_REGULARIZATION, frontend_gradient_scale=0.1)
    _, full = loss_and_gradient(SMALL, params, waveform, jax.random.key(0))
    _, tenth = loss_and_gradient(SMALL, params, waveform, jax.random.key(0), None, scaled)
    for name, factor in (("frontend", 0.1), ("feature_projection", 1.0)):
        for ours, expected in zip(
            jax.tree.leaves(tenth["hubert"][name]),
            jax.tree.leaves(full["hubert"][name]),
            strict=True,
        ):
            # Sums that nearly cancel carry the rounding of their summands.
            atol = 1e-6 * factor * np.abs(expected).max()
            np.testing.assert_allclose(ours, factor * expected, rtol=1e-4, atol=atol)


def test_ctc_freezes_the_front_end(network):
    config, _, waveform = network
    model = HubertForCTC(config, 29, choose(Execution(), config))
    params = random_params(model)

    def gradient(freeze_frontend):
        def loss(params):
            encoded = model.apply(
                {"params": params},
                waveform,
                freeze_frontend=freeze_frontend,
                method="encode",
            )
            logits = model.apply({"params": params}, encoded, method="classify")
            return jnp.mean(jax.nn.log_softmax(logits)[..., 3])

        return jax.jit(jax.grad(loss))(params)

    def reached(tree):
        return max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(tree)) > 0

    frozen, free = gradient(True), gradient(False)
    for found in (frozen, free):
        assert reached(found["ctc_head"]) and reached(found["hubert"]["transformer"])
    assert not reached(frozen["hubert"]["frontend"]) and reached(free["hubert"]["frontend"])


def test_plain_and_fast_kernels_compute_the_same(network):
    """The network as an accelerator gets it, on CPU: values and every gradient."""
    config, params, waveform = network
    results = []
    for platform in ("cpu", "gpu"):
        model = pretraining(config, platform=platform, attention="xla")

        def loss(params, model=model):
            return jnp.mean(jnp.square(model.apply({"params": params}, waveform)["logits"][0]))

        results.append(jax.jit(jax.value_and_grad(loss))(params))
    (fast, fast_gradients), (plain, plain_gradients) = results
    assert float(fast) == pytest.approx(float(plain), rel=1e-5)
    for (path, ours), theirs in zip(
        jax.tree_util.tree_leaves_with_path(fast_gradients),
        jax.tree.leaves(plain_gradients),
        strict=True,
    ):
        # The bias of keys has no gradient but rounding.
        if "'key'" not in jax.tree_util.keystr(path):
            largest = float(np.abs(theirs).max())
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * largest)


@pytest.mark.parametrize(
    ("schema", "values", "message"),
    [
        (Architecture, {"num_heads": 7}, r"num_heads=7: must divide config\.architecture\.dim=768"),
        (Architecture, {"conv_kernels": [10, 3]}, "must have the same length, found 7, 2, 7"),
        (
            Architecture,
            {"conv_strides": [4, 2, 2, 2, 2, 2, 2]},
            "frames of [0-9]+ samples, one every 256; expected 400 and 320",
        ),
        (Architecture, {"frontend_norm": "batch"}, "expected 'group' or 'layer'"),
        (Architecture, {"num_layers": 0}, "expected 1 or more"),
        (Architecture, {"conv_channels": [0] * 7}, "conv_channels.*: expected 1 or more"),
        (Architecture, {"dim": 0}, "dim=0: expected 1 or more"),
        (Architecture, {"ffn_dim": -1}, "ffn_dim=-1: expected 1 or more"),
        (Architecture, {"positional_kernel": 0}, "positional_kernel=0: expected 1 or more"),
        (Head, {"projection_dim": 0}, "projection_dim=0: expected 1 or more"),
        (Head, {"temperature": 0.0}, "temperature=0.0: expected more than 0"),
        (Regularization, {"frontend_gradient_scale": -1.0}, "scale=-1.0: expected at least 0"),
        (Execution, {"dtype": "float16"}, "expected one of 'float32', 'bfloat16'"),
        (Execution, {"platform": "npu"}, "expected one of '', 'cpu', 'gpu', 'tpu'"),
        (Head, {"codebook_sizes": []}, "number of classes"),
        (
            Regularization,
            {"layer_drop": 1.0},
            "layer_drop=1.0: expected at least 0 and less than 1",
        ),
    ],
)
def test_impossible_values_are_refused(schema, values, message):
    with pytest.raises(InputError, match=message):
        build(schema, values, "config")
