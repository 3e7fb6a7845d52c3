"""Our attention with dropout, interpreted, against the definition with the same dropout."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from splits import TINY_BASE, random_parameters

from hubert_jax.frames import num_samples
from hubert_jax.model.architecture import Architecture, Execution, Head, Regularization
from hubert_jax.model.hubert import HubertForPretraining
from hubert_jax.model.kernels import blocks, choice, dropout, whole_rows

RATE = 0.1
of_each_kernel = pytest.mark.parametrize("kernel", [whole_rows, blocks])


def _inputs(frames, batch=2, heads=2, head_dim=8):
    random = np.random.default_rng(frames)
    shape = (batch, frames, heads, head_dim)
    return [random.normal(size=shape).astype(np.float32) for _ in range(3)]


def _kept(key, rows, heads, frames, rate=RATE) -> np.ndarray:
    """What stays, bool (rows, heads, frames, frames), by a hash in whole numbers."""
    counts = np.meshgrid(np.arange(rows), np.arange(heads), indexing="ij")
    counts = tuple(jnp.asarray(count, jnp.uint32) for count in counts)
    first, second = (
        np.asarray(w, object) for w in dropout.threefry(jax.random.key_data(key), counts)
    )
    places = np.arange(frames)[:, None] * 2**16 + np.arange(frames)
    x = places ^ first[..., None, None]
    x ^= x >> 16
    x = x * 0x7FEB352D % 2**32
    x ^= x >> 15
    x = (x + second[..., None, None]) % 2**32
    x = x * 0x846CA68B % 2**32
    x ^= x >> 16
    return (x >> 8) < 2**24 - round(rate * 2**24)


def _definition(query, key, value, lengths, kept, rate=RATE, causal=False):
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, precision="highest")
    scores = scores * query.shape[-1] ** -0.5
    frames = query.shape[1]
    valid = jnp.broadcast_to(jnp.arange(frames) < lengths[:, None, None, None], scores.shape)
    if causal:
        valid &= jnp.tri(frames, dtype=bool)
    weights = jax.nn.softmax(jnp.where(valid, scores, -jnp.inf), axis=-1)
    weights = jnp.where(kept, weights / (1 - rate), 0)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value, precision="highest")


@of_each_kernel
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("frames", "lengths"), [(96, (96, 50)), (300, (299, 300))])
def test_attention_and_gradients_are_those_of_the_definition(
    frames, lengths, causal, kernel, monkeypatch
):
    monkeypatch.setattr("hubert_jax.model.kernels.whole_rows._SCORES", 2**16)  # several blocks
    inputs, lengths = _inputs(frames), jnp.array(lengths, jnp.int32)
    random = jax.random.key(5)
    kept = jnp.asarray(_kept(random, 2, 2, frames).astype(bool))
    outer = jnp.asarray(_inputs(frames + 1)[0][:, :frames])

    def ours(*x):
        return kernel.attend(*x, lengths, RATE, random, causal=causal, interpret=True)

    def theirs(*x):
        return _definition(*x, lengths, kept, causal=causal)

    np.testing.assert_allclose(ours(*inputs), theirs(*inputs), rtol=0, atol=1e-5)
    for found, expected in zip(
        jax.grad(lambda *x: jnp.sum(ours(*x) * outer), argnums=(0, 1, 2))(*inputs),
        jax.grad(lambda *x: jnp.sum(theirs(*x) * outer), argnums=(0, 1, 2))(*inputs),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@of_each_kernel
def test_without_dropout_nothing_is_dropped(kernel):
    attend = functools.partial(kernel.attend, interpret=True)
    inputs, lengths = _inputs(130), jnp.array([130, 20], jnp.int32)
    expected = _definition(*inputs, lengths, True, rate=0.0)
    np.testing.assert_allclose(attend(*inputs, lengths), expected, rtol=0, atol=1e-5)
    assert np.isfinite(attend(*inputs, jnp.array([0, -1], jnp.int32))).all()


def test_what_is_dropped_is_a_share_and_independent_by_row_head_frame_and_key():
    """In 2.4 million draws a share of 0.1 has a standard deviation of 0.0002."""
    kept = _kept(jax.random.key(1), 3, 4, 448).astype(bool)
    dropped = ~kept
    assert dropped.mean() == pytest.approx(RATE, abs=0.0008)
    other = ~_kept(jax.random.key(2), 3, 4, 448).astype(bool)
    pairs = [
        (dropped[0], dropped[1]),
        (dropped[:, 0], dropped[:, 1]),
        (dropped[..., 1:, :], dropped[..., :-1, :]),
        (dropped[..., 1:], dropped[..., :-1]),
        (dropped, dropped.swapaxes(2, 3)),
        (dropped, other),
    ]
    for one, another in pairs:
        # Of the diagonal, which is its own transpose, there is one in 448.
        assert (one & another).mean() == pytest.approx(RATE**2, abs=0.0008)
    # Rows and columns have about as many each.
    for axis in (2, 3):
        spread = dropped.mean(axis=axis).std()
        assert spread == pytest.approx((RATE * (1 - RATE) / 448) ** 0.5, rel=0.05)


@of_each_kernel
def test_each_device_drops_what_one_would(kernel):
    attend = functools.partial(kernel.attend, interpret=True)
    inputs, lengths = _inputs(128, batch=4), jnp.array([128, 7, 64, 100], jnp.int32)
    random = jax.random.key(9)
    alone = attend(*inputs, lengths, RATE, random)
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3)
    sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, "tensor", None))

    @jax.jit
    def sharded(*x):
        return attend(*x, lengths, RATE, random, sharding=sharding)

    found = sharded(*inputs)
    np.testing.assert_allclose(found, alone, rtol=0, atol=1e-6)
    assert found.sharding.shard_shape(found.shape) == (1, 128, 1, 8)


@of_each_kernel
def test_a_network_trains_with_it(kernel):
    """In a scan with LayerDrop's conditional, rematerialised: as XLA's without dropout."""
    regularization = Regularization(**TINY_BASE["regularization"], attention_dropout=RATE)
    architecture, head = Architecture(**TINY_BASE["architecture"]), Head(**TINY_BASE["head"])
    params = random_parameters(architecture, head)
    plain = choice.choose(Execution(rematerialize="everything"), architecture, regularization)
    ours = dataclasses.replace(plain, attention=functools.partial(kernel.attend, interpret=True))
    waveform = np.random.default_rng(0).normal(size=(2, num_samples(48))).astype(np.float32)
    mask = np.arange(48) % 16 < np.full((2, 1), 10)

    def gradients(kernels, regularization, seed):
        network = HubertForPretraining(architecture, head, kernels, regularization)

        def loss(params):
            rngs = {"dropout": jax.random.key(seed)}
            found = network.apply({"params": params}, waveform, mask, False, rngs=rngs)
            return sum(jnp.square(logits).mean() for logits in found["logits"])

        return jax.jit(jax.value_and_grad(loss))(params)

    first, again, other = (gradients(ours, regularization, seed) for seed in (1, 1, 2))
    assert jax.tree.all(jax.tree.map(lambda *pair: (pair[0] == pair[1]).all(), first, again))
    assert first[0] != other[0]
    without = dataclasses.replace(regularization, attention_dropout=0.0)
    for found, expected in zip(
        jax.tree.leaves(gradients(ours, without, 1)),
        jax.tree.leaves(gradients(plain, without, 1)),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_very_long_and_very_many_rows_are_not_for_it():
    """Scalars of each row and head, and all keys of a row, lie in memory on the chip."""
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3)
    sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, "tensor", None))

    def room(rows, frames, where=None):
        return whole_rows.has_room(
            jax.ShapeDtypeStruct((rows, frames, 16, 64), jnp.bfloat16), where
        )

    assert room(8, 2048) and not room(8, 2176)
    assert room(4096, 96) and not room(4097, 96) and room(4 * 4096, 96, sharding)
