"""Modules against torch: position convolution, cosine logits, norms, attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from hubert_jax.model.architecture import Architecture, Execution
from hubert_jax.model.hubert import cosine_logits
from hubert_jax.model.kernels import grouped_convolution, norm
from hubert_jax.model.kernels.attention import xla as attention
from hubert_jax.model.kernels.choice import choose
from hubert_jax.model.layers import gelu
from hubert_jax.model.positional import PositionalConvolution

pytestmark = pytest.mark.parity

ATOL = 1e-5


@pytest.fixture
def random():
    return np.random.default_rng(0)


def normal(random, *shape):
    return random.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(("frames", "kernel"), [(50, 128), (300, 128), (20, 15), (1, 16), (97, 16)])
def test_grouped_convolution_in_both_ways(random, frames, kernel):
    channels, groups = 48, 4
    x = normal(random, 2, frames, channels)
    weight = normal(random, channels, channels // groups, kernel) / np.float32(np.sqrt(kernel * 12))
    convolution = torch.nn.functional.conv1d(
        torch.from_numpy(x).mT, torch.from_numpy(weight), padding=kernel // 2, groups=groups
    )
    expected = convolution.mT.numpy()[:, :frames]
    ours = weight.transpose(2, 1, 0)
    for convolve in (grouped_convolution.plain, grouped_convolution.on_cpu):
        found = convolve(jnp.asarray(x), jnp.asarray(ours), groups)
        np.testing.assert_allclose(found, expected, rtol=0, atol=ATOL)


def test_gradients_of_both_convolutions_agree(random):
    x, kernel = normal(random, 2, 40, 16), normal(random, 32, 4, 16) / 11
    cotangent = normal(random, 2, 40, 16)

    def gradients(convolve):
        return jax.vjp(lambda x, kernel: convolve(x, kernel, 4), x, kernel)[1](cotangent)

    pairs = zip(
        gradients(grouped_convolution.plain), gradients(grouped_convolution.on_cpu), strict=True
    )
    for expected, found in pairs:
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-5)


def test_positional_convolution_with_weight_norm(random):
    architecture = Architecture(dim=48, positional_groups=4, num_heads=4, positional_kernel=32)
    theirs = torch.nn.Conv1d(48, 48, 32, padding=16, groups=4)
    theirs = torch.nn.utils.parametrizations.weight_norm(theirs, dim=2)
    magnitude = 1 + 0.3 * normal(random, 32)
    with torch.no_grad():
        theirs.parametrizations.weight.original0[0, 0] = torch.from_numpy(magnitude)
        direction = theirs.parametrizations.weight.original1.numpy()
        x = normal(random, 2, 70, 48)
        expected = torch.nn.functional.gelu(theirs(torch.from_numpy(x).mT)[..., :-1]).mT.numpy()
        bias = theirs.bias.numpy()
    params = {"direction": direction.transpose(2, 1, 0), "magnitude": magnitude, "bias": bias}
    for platform in ("cpu", "tpu"):
        kernels = choose(Execution(platform=platform), architecture)
        found = PositionalConvolution(architecture, kernels).apply({"params": params}, x)
        np.testing.assert_allclose(found, expected, rtol=0, atol=ATOL)


def test_cosine_logits(random):
    projected, codes = normal(random, 2, 30, 16), random.random((11, 16)).astype(np.float32)
    projected[0, 3] *= 1e-3
    projected[1, 7] = 0
    expected = torch.cosine_similarity(
        torch.from_numpy(projected)[:, :, None], torch.from_numpy(codes), dim=-1
    )
    found = cosine_logits(projected, codes, 0.1)
    np.testing.assert_allclose(found, expected.numpy() / 0.1, rtol=0, atol=ATOL)
    gradient = jax.grad(lambda x: cosine_logits(x, codes, 0.1).sum())(projected)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("layer_norm", [norm.plain, norm.on_cpu], ids=["plain", "on_cpu"])
def test_layer_norm_and_its_derivative(random, layer_norm):
    x, scale, bias = 3 + normal(random, 2, 30, 48), normal(random, 48), normal(random, 48)
    cotangent = normal(random, 2, 30, 48)
    tensors = [torch.from_numpy(array).requires_grad_() for array in (x, scale, bias)]
    expected = torch.nn.functional.layer_norm(tensors[0], (48,), tensors[1], tensors[2])
    found, pull = jax.vjp(layer_norm, x, scale, bias)
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=0, atol=ATOL)
    expected.backward(torch.from_numpy(cotangent))
    for gradient, tensor in zip(pull(cotangent), tensors, strict=True):
        np.testing.assert_allclose(gradient, tensor.grad.numpy(), rtol=1e-5, atol=ATOL)


@pytest.mark.parametrize(
    "time_norm", [norm.over_time, norm.over_time_on_cpu], ids=["plain", "on_cpu"]
)
@pytest.mark.parametrize("lengths", [None, np.array([40, 23])], ids=["whole", "padded"])
def test_group_norm_over_time_and_its_derivative(random, time_norm, lengths):
    x, cotangent = 2 + normal(random, 2, 40, 16), normal(random, 2, 40, 16)
    scale, bias = 1 + 0.2 * normal(random, 16), normal(random, 16)
    found, pull = jax.vjp(lambda *of: time_norm(*of, lengths), x, scale, bias)
    tensors = [torch.from_numpy(array).requires_grad_() for array in (x, scale, bias)]
    rows = []
    for row, frames in enumerate([40, 40] if lengths is None else lengths):
        alone = tensors[0][row : row + 1, :frames].mT
        rows.append(torch.nn.functional.group_norm(alone, 16, *tensors[1:]).mT[0])
        np.testing.assert_allclose(
            found[row, :frames], rows[-1].detach().numpy(), rtol=0, atol=ATOL
        )
        cotangent[row, frames:] = 0  # nothing is made of what is beyond
    sum(
        (out * torch.from_numpy(cotangent[i, : len(out)])).sum() for i, out in enumerate(rows)
    ).backward()
    for gradient, tensor in zip(pull(cotangent), tensors, strict=True):
        np.testing.assert_allclose(gradient, tensor.grad.numpy(), rtol=1e-5, atol=ATOL)


def test_frames_beyond_a_rows_length_have_their_part_in_its_gradient(random):
    """As automatic differentiation has it, also where something is made of them."""
    x, lengths = 2 + normal(random, 2, 40, 16), np.array([40, 23])
    scale, bias = 1 + 0.2 * normal(random, 16), normal(random, 16)
    forms = (norm.over_time, norm.over_time_on_cpu)
    pulled = [jax.vjp(lambda *of: form(*of, lengths), x, scale, bias)[1] for form in forms]  # noqa: B023
    cotangent = normal(random, 2, 40, 16)
    for ours, theirs in zip(*(pull(cotangent) for pull in pulled), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=ATOL)


def test_gelu_and_its_derivative(random):
    x, cotangent = 3 * normal(random, 5, 40), normal(random, 5, 40)
    tensor = torch.from_numpy(x).requires_grad_()
    expected = torch.nn.functional.gelu(tensor)
    expected.backward(torch.from_numpy(cotangent))
    found, pull = jax.vjp(gelu, x)
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=0, atol=ATOL)
    np.testing.assert_allclose(pull(cotangent)[0], tensor.grad.numpy(), rtol=1e-5, atol=ATOL)
    kept = jax.tree.leaves(jax.vjp(gelu, x.astype(jnp.bfloat16))[1])
    assert [(each.dtype, each.shape) for each in kept] == [(jnp.bfloat16, x.shape)]


def test_attention_with_padding(random):
    query, key, value = (normal(random, 2, 20, 4, 8) for _ in range(3))
    valid = np.arange(20) < np.array([[20], [13]])
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(torch.from_numpy(x).transpose(1, 2) for x in (query, key, value)),
        attn_mask=torch.from_numpy(valid)[:, None, None, :],
    )
    found = attention(query, key, value, jnp.array([20, 13]))
    np.testing.assert_allclose(found, expected.transpose(1, 2).numpy(), rtol=0, atol=ATOL)
