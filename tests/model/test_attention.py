"""Attention: every back-end that a CPU can run against the definition, and who is chosen when."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from hubert_jax.errors import InputError
from hubert_jax.model.architecture import Architecture, Execution, Regularization
from hubert_jax.model.kernels import attention, choice
from hubert_jax.model.kernels.attention import splash, xla
from hubert_jax.model.kernels.choice import choose


def _inputs(frames, batch=2, heads=4, head_dim=8):
    random = np.random.default_rng(frames)
    return [
        random.normal(size=(batch, frames, heads, head_dim)).astype(np.float32) for _ in range(3)
    ]


def _definition(query, key, value, lengths, causal=False):
    """softmax(q k / sqrt(d)) v in float64, row by row."""
    out = np.zeros(query.shape)
    for row, length in enumerate(lengths):
        q, k, v = (x[row].astype(np.float64).swapaxes(0, 1) for x in (query, key, value))
        logits = q @ k[:, :length].swapaxes(1, 2) / np.sqrt(query.shape[-1])
        if causal:
            logits[:, ~np.tri(*logits.shape[1:], dtype=bool)] = -np.inf
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        out[row] = (weights @ v[:, :length]).swapaxes(0, 1)
    return out


_splash = functools.partial(splash, interpret=True)  # the TPU's kernel


@pytest.mark.parametrize("backend", [xla, _splash], ids=["xla", "splash"])
@pytest.mark.parametrize(
    ("frames", "lengths", "causal"),
    [(96, (96, 50), False), (300, (299, 300), False), (96, (96, 50), True)],
)
def test_valid_frames_agree_with_the_definition(backend, frames, lengths, causal):
    inputs = _inputs(frames)
    found = backend(*inputs, jnp.array(lengths, jnp.int32), causal=causal)
    expected = _definition(*inputs, lengths, causal)
    assert np.isfinite(found).all()
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(found[row, :length], expected[row, :length], rtol=0, atol=1e-5)


def test_attention_of_many_frames_is_computed_in_parts(monkeypatch):
    monkeypatch.setattr(attention, "_QUERIES", 16)
    test_valid_frames_agree_with_the_definition(xla, 96, (96, 50), False)
    test_valid_frames_agree_with_the_definition(xla, 65, (65, 64), False)
    largest = max(
        variable.aval.size
        for equation in jax.make_jaxpr(xla)(*_inputs(160)).eqns
        for variable in equation.outvars
    )
    assert largest < 2 * 4 * 160 * 160 / 4


def test_splash_gradients_agree_with_those_of_xla():
    inputs = _inputs(200, batch=1, heads=2)
    weights = jnp.asarray(_inputs(200, batch=1, heads=2)[1][:, ::-1])

    def gradients(backend):
        return jax.grad(lambda *x: jnp.sum(backend(*x) * weights), argnums=(0, 1, 2))(*inputs)

    for ours, theirs in zip(gradients(_splash), gradients(xla), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_splash_runs_on_each_device_s_rows_and_heads():
    inputs, lengths = _inputs(128, batch=4, heads=2), jnp.array([128, 7, 64, 100], jnp.int32)
    alone = _splash(*inputs, lengths)
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3)
    sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, "tensor", None))
    sharded = jax.jit(functools.partial(_splash, sharding=sharding))(*inputs, lengths)
    np.testing.assert_allclose(sharded, alone, rtol=0, atol=1e-6)
    assert sharded.sharding.shard_shape(sharded.shape) == (1, 128, 1, 8)


def test_rows_without_a_valid_frame_are_finite():
    inputs = _inputs(96)
    lengths = jnp.array([0, -1], jnp.int32)
    for backend in (xla, _splash):
        assert np.isfinite(backend(*inputs, lengths)).all()


@pytest.mark.parametrize(
    ("platform", "dtype", "rate", "head_dim", "backend", "reason"),
    [
        ("cpu", "bfloat16", 0.0, 64, "xla", "accelerator"),
        ("tpu", "bfloat16", 0.1, 64, "whole_rows", "with attention dropout 0.1"),
        ("gpu", "bfloat16", 0.1, 64, "blocks", "with attention dropout 0.1"),
        ("gpu", "float32", 0.1, 80, "xla", "channels, here 80"),
        ("tpu", "bfloat16", 0.0, 64, "splash", "Pallas"),
        ("tpu", "float32", 0.0, 80, "splash", "Pallas"),
        ("gpu", "bfloat16", 0.0, 64, "cudnn", "flash"),
        ("gpu", "bfloat16", 0.0, 80, "cudnn", "flash"),
        ("gpu", "float32", 0.0, 64, "xla", "half precision alone, here float32"),
        ("gpu", "bfloat16", 0.0, 12, "xla", "channels, here 12"),
    ],
)
def test_choice(platform, dtype, rate, head_dim, backend, reason):
    kernels = choose(
        Execution(dtype=dtype, platform=platform),
        Architecture(dim=4 * head_dim, num_heads=4),
        Regularization(attention_dropout=rate),
    )
    assert kernels.attention_backend == backend and reason in kernels.attention_reason


@pytest.mark.parametrize(
    ("capability", "backend"),
    [("7.5", "xla"), ("8.0", "blocks"), ("9.0", "blocks"), ("12.0", "blocks"), ("gfx90a", "xla")],
)
def test_older_and_other_gpus_keep_xlas_attention(capability, backend, monkeypatch):
    monkeypatch.setattr(choice, "_capability", lambda: capability)
    kernels = choose(Execution(platform="gpu"), Architecture(), Regularization())
    assert kernels.attention_backend == backend
    assert backend == "blocks" or f"here {capability}" in kernels.attention_reason


def test_languages_keep_xlas_attention_where_weights_are_dropped():
    for platform in ("tpu", "gpu"):
        execution, dropped = Execution(platform=platform), Regularization(attention_dropout=0.1)
        kernels = choose(execution, Architecture(), dropped, causal=True)
        assert kernels.attention_backend == "xla" and "too short" in kernels.attention_reason


def test_a_named_kernel_is_taken():
    named = Execution(dtype="bfloat16", platform="tpu", attention="xla")
    assert choose(named, Architecture()).attention_backend == "xla"
    # Without dropout, as networks are used after training.
    named = Execution(attention="splash", platform="tpu")
    assert choose(named, Architecture()).attention_backend == "splash"


def test_impossible_choices_are_refused():
    with pytest.raises(InputError, match="config.execution.attention='flash': expected one of 'au"):
        Execution(attention="flash")
    for name in ("splash", "cudnn"):
        with pytest.raises(InputError, match=f"'{name}' has no dropout of attention weights"):
            choose(Execution(attention=name), Architecture(), Regularization())
