"""The formulas beside XLA's own count of the step, unrolled and without rematerialisation."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from hubert_jax.frames import num_samples
from hubert_jax.model.architecture import NO_REGULARIZATION, Architecture, Execution, Head
from hubert_jax.model.hubert import HubertForPretraining
from hubert_jax.model.kernels import choice
from hubert_jax.planning import flops
from hubert_jax.tasks import pretraining

FRAMES = 256
BASE = dataclasses.replace(Architecture(), num_layers=2)
LARGE = Architecture(
    frontend_norm="layer",
    normalize_waveform=True,
    dim=1024,
    num_layers=2,
    ffn_dim=4096,
    num_heads=16,
    pre_norm=True,
)


@pytest.mark.parametrize(("architecture", "projection"), [(BASE, 256), (LARGE, 768)])
def test_a_step_has_the_operations_that_xla_counts(architecture, projection):
    head = Head(codebook_sizes=(500,), projection_dim=projection)
    # For an accelerator: what is fast on CPU alone counts otherwise.
    execution = Execution(
        dtype="bfloat16", attention="xla", platform="gpu", scan_unroll=architecture.num_layers
    )
    kernels = choice.choose(execution, architecture)
    network = HubertForPretraining(architecture, head, kernels, NO_REGULARIZATION)
    params = jax.eval_shape(pretraining.init(architecture, head), jax.random.key(0))
    loss = pretraining.loss_function(network, pretraining.LossConfig(mask_group_rows=1))
    batch = {
        "waveform": jax.ShapeDtypeStruct((1, num_samples(FRAMES)), jnp.float32),
        "labels_0": jax.ShapeDtypeStruct((1, FRAMES), jnp.int32),
    }

    def gradients(params, batch):
        return jax.grad(loss, has_aux=True)(params, batch, jax.random.key(0), jnp.int32(0))

    counted = jax.jit(gradients).lower(params, batch).cost_analysis()["flops"]
    assert flops.of_crop(architecture, head, FRAMES).step == pytest.approx(counted, rel=0.05)
