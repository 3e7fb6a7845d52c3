"""Small networks of both kinds, random parameters and real speech."""

import pathlib

import jax
import numpy as np
import pytest
import soundfile
from flax import traverse_util

from hubert_jax.convert import names
from hubert_jax.model.architecture import HubertConfig

_SMALL = dict(
    conv_channels=(32,) * 7,
    dim=48,
    num_layers=3,
    ffn_dim=96,
    num_heads=4,
    projection_dim=16,
    codebooks=(10, 7),
)
BASE_LIKE = HubertConfig(**_SMALL)
LARGE_LIKE = HubertConfig(
    **_SMALL,
    frontend_norm="layer",
    normalize_waveform=True,
    frontend_gradient_scale=1.0,
    pre_norm=True,
)


@pytest.fixture(params=[BASE_LIKE, LARGE_LIKE], ids=["base", "large"])
def config(request) -> HubertConfig:
    """A small network, as BASE and as LARGE."""
    return request.param


@pytest.fixture
def make_params():
    """Random parameters, every one of them different from its neutral value."""

    def make(config: HubertConfig, vocabulary_size: int | None = None, seed: int = 0) -> dict:
        random = np.random.default_rng(seed)
        flat = {}
        for path, shape in names.shapes(config, vocabulary_size).items():
            values = random.normal(size=shape)
            if path.endswith("kernel"):
                values *= np.prod(shape[:-1] if "layers" not in path else shape[1:-1]) ** -0.5
            elif path.endswith(("scale", "magnitude")):
                values = 1 + 0.2 * values
            else:
                values *= 0.2
            flat[path] = values.astype(np.float32)
        return traverse_util.unflatten_dict(flat, sep="/")

    return make


@pytest.fixture
def assert_identical():
    """Two trees of arrays have the same structure, dtypes and bits."""

    def check(found, expected):
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)

    return check


@pytest.fixture(scope="session")
def speech() -> list[np.ndarray]:
    """The beginnings of three real utterances, 1.1 to 2.6 s: int16 at 16 kHz."""
    corpus = pathlib.Path(__file__).parents[2] / "examples" / "minilibri" / "dev-mini"
    paths = sorted(corpus.glob("*/*/*.opus"))[::20][:3]
    lengths = (41_345, 17_680, 29_999)
    return [
        soundfile.read(path, dtype="int16")[0][8_000 : 8_000 + length]
        for path, length in zip(paths, lengths, strict=True)
    ]
