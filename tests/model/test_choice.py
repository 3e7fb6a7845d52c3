"""Which forms each platform gets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from hubert_jax.model.architecture import Architecture, Execution
from hubert_jax.model.kernels import attention, dense, dropout, grouped_convolution, norm
from hubert_jax.model.kernels.choice import choose
from hubert_jax.planning import program

FAST = {
    "dropout": dropout.on_cpu,
    "layer_norm": norm.on_cpu,
    "time_norm": norm.over_time_on_cpu,
    "dot_general": dense.on_cpu,
    "grouped_convolution": grouped_convolution.on_cpu,
}
PLAIN = {
    "dropout": dropout.plain,
    "layer_norm": norm.plain,
    "time_norm": norm.over_time,
    "dot_general": dense.plain,
    "grouped_convolution": grouped_convolution.plain,
}


@pytest.mark.parametrize(("platform", "forms"), [("cpu", FAST), ("gpu", PLAIN), ("tpu", PLAIN)])
def test_forms_made_for_the_cpu_run_nowhere_else(platform, forms):
    kernels = choose(Execution(platform=platform), Architecture())
    assert {name: getattr(kernels, name) for name in forms} == forms


def test_the_platform_is_that_of_the_process_unless_named():
    assert jax.default_backend() == "cpu"
    kernels = choose(Execution(), Architecture())
    assert kernels.dropout is dropout.on_cpu and kernels.attention_backend == "xla"


def test_the_chosen_splash_runs_where_activations_lie():
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3)
    activations = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, "tensor", None))
    kernels = choose(Execution(platform="tpu"), Architecture(), activations=activations)
    assert kernels.attention_backend == "splash"
    random = np.random.default_rng(0)
    query, key, value = (random.normal(size=(4, 128, 2, 8)).astype(np.float32) for _ in range(3))
    lengths = np.array([128, 7, 64, 100], np.int32)
    run = jax.jit(lambda *inputs: kernels.attention(*inputs, interpret=True))
    found = run(query, key, value, lengths)
    alone = attention.splash(query, key, value, lengths, interpret=True)
    np.testing.assert_allclose(found, alone, rtol=0, atol=1e-5)
    assert found.sharding.shard_shape(found.shape) == (1, 128, 1, 8)


def test_the_position_embeddings_gradient_leaves_rows_where_they_are():
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3)
    activations = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, "tensor", None))
    kernels = choose(Execution(platform="gpu"), Architecture(), activations=activations)
    random = np.random.default_rng(0)
    x, kernel = random.normal(size=(8, 30, 16)), random.normal(size=(6, 4, 16))
    x, kernel = x.astype(np.float32), kernel.astype(np.float32)

    def gradients(convolve):
        def loss(x, kernel):
            return jnp.sum(jnp.sin(convolve(x, kernel, 4)))

        return jax.grad(loss, argnums=(0, 1))

    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    whole = NamedSharding(mesh, PartitionSpec())
    divided = jax.jit(
        gradients(kernels.grouped_convolution),
        in_shardings=(rows, whole),
        out_shardings=(rows, whole),
    )
    compiled = divided.lower(x, kernel).compile()
    exchanges = program.traffic(compiled.as_text(), mesh.shape).collectives
    assert {each.kind for each in exchanges} == {"all-reduce"}
    found, expected = compiled(x, kernel), gradients(grouped_convolution.plain)(x, kernel)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
