"""Attention: every back-end that a CPU can run against the definition, and who is chosen when."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from hubert_jax.errors import InputError
from hubert_jax.model import attention as attention_lib
from hubert_jax.model.architecture import HubertConfig
from hubert_jax.model.attention import attention, choose
from hubert_jax.model.platform import compiling_for
from hubert_jax.model.transformer import attention_backend


def _inputs(frames, batch=2, heads=4, head_dim=8):
    random = np.random.default_rng(frames)
    return [
        random.normal(size=(batch, frames, heads, head_dim)).astype(np.float32) for _ in range(3)
    ]


def _definition(query, key, value, lengths):
    """softmax(q k / sqrt(d)) v in float64, row by row."""
    out = np.zeros(query.shape)
    for row, length in enumerate(lengths):
        q, k, v = (x[row].astype(np.float64).swapaxes(0, 1) for x in (query, key, value))
        logits = q @ k[:, :length].swapaxes(1, 2) / np.sqrt(query.shape[-1])
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        out[row] = (weights @ v[:, :length]).swapaxes(0, 1)
    return out


def _splash(query, key, value, lengths=None):
    """The TPU's kernel, interpreted."""
    return attention_lib._splash(query, key, value, lengths, interpret=True)


@pytest.mark.parametrize("backend", [attention, _splash], ids=["xla", "splash"])
@pytest.mark.parametrize(("frames", "lengths"), [(96, (96, 50)), (300, (299, 300))])
def test_valid_frames_agree_with_the_definition(backend, frames, lengths):
    inputs = _inputs(frames)
    found = backend(*inputs, jnp.array(lengths, jnp.int32))
    expected = _definition(*inputs, lengths)
    assert np.isfinite(found).all()
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(found[row, :length], expected[row, :length], rtol=0, atol=1e-5)


def test_splash_gradients_agree_with_those_of_xla():
    inputs = _inputs(200, batch=1, heads=2)
    weights = jnp.asarray(_inputs(200, batch=1, heads=2)[1][:, ::-1])

    def gradients(backend):
        return jax.grad(lambda *x: jnp.sum(backend(*x) * weights), argnums=(0, 1, 2))(*inputs)

    for ours, theirs in zip(gradients(_splash), gradients(attention), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_splash_runs_on_each_device_s_rows_and_heads():
    inputs, lengths = _inputs(128, batch=4, heads=2), jnp.array([128, 7, 64, 100], jnp.int32)
    alone = _splash(*inputs, lengths)
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3)
    with jax.set_mesh(mesh):
        sharded = jax.jit(_splash)(*inputs, lengths)
    np.testing.assert_allclose(sharded, alone, rtol=0, atol=1e-6)
    assert sharded.sharding.shard_shape(sharded.shape) == (1, 128, 1, 8)


def test_rows_without_a_valid_frame_are_finite():
    inputs = _inputs(96)
    lengths = jnp.array([0, -1], jnp.int32)
    for backend in (attention, _splash):
        assert np.isfinite(backend(*inputs, lengths)).all()


@pytest.mark.parametrize(
    ("platform", "dtype", "rate", "head_dim", "backend", "reason"),
    [
        ("cpu", "bfloat16", 0.0, 64, "xla", "accelerator"),
        ("tpu", "bfloat16", 0.1, 64, "xla", "no attention dropout, here 0.1"),
        ("gpu", "bfloat16", 0.1, 64, "xla", "no attention dropout, here 0.1"),
        ("tpu", "bfloat16", 0.0, 64, "splash", "Pallas"),
        ("tpu", "float32", 0.0, 80, "splash", "Pallas"),
        ("gpu", "bfloat16", 0.0, 64, "cudnn", "flash"),
        ("gpu", "bfloat16", 0.0, 80, "cudnn", "flash"),
        ("gpu", "float32", 0.0, 64, "xla", "half precision alone, here float32"),
        ("gpu", "bfloat16", 0.0, 12, "xla", "channels, here 12"),
    ],
)
def test_choice(platform, dtype, rate, head_dim, backend, reason):
    choice = choose(platform, dtype, rate, head_dim)
    assert choice.backend == backend and reason in choice.reason
    assert str(choice) == f"{choice.backend} ({choice.reason})"


def test_the_network_s_choice_follows_the_platform_it_is_compiled_for():
    base = HubertConfig(dtype="bfloat16")
    with compiling_for("tpu"):
        assert attention_backend(base, deterministic=True).backend == "splash"
        assert attention_backend(base, deterministic=False).backend == "xla"
        chosen = dataclasses.replace(base, attention="xla")
        assert attention_backend(chosen, deterministic=True).backend == "xla"
    assert attention_backend(base, deterministic=True).backend == "xla"


def test_impossible_choices_are_refused():
    with pytest.raises(InputError, match="config.model.attention='flash': expected one of auto"):
        HubertConfig(attention="flash")
    with pytest.raises(InputError, match="'splash' has no dropout of attention weights"):
        HubertConfig(attention="splash")
    with pytest.raises(InputError, match="'cudnn' has no dropout"):
        attention(*_inputs(8), dropout=0.1, dropout_key=jax.random.key(0), backend="cudnn")
