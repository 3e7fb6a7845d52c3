"""Small networks of both kinds, random parameters and real speech."""

import pathlib

import jax
import numpy as np
import pytest
import splits
from flax import traverse_util
from oracles import BASE_LIKE, LARGE_LIKE, Described, read_speech

from hubert_jax.convert import encoders


@pytest.fixture
def figure(request):
    """Notes a difference from an oracle, for the lines that are printed after the tests."""

    def note(oracle: str, config: Described, what: str, value: float) -> None:
        kind = "LARGE" if config.architecture.pre_norm else "BASE"
        network = kind if config.architecture.dim >= 768 else f"{kind}-like"
        # Workers send it to the main process, which takes plain numbers.
        noted = ("difference", (oracle, network, what, float(value)))
        request.node.user_properties.append(noted)

    return note


@pytest.fixture(params=[BASE_LIKE, LARGE_LIKE], ids=["base", "large"])
def config(request) -> Described:
    """A small network, as BASE and as LARGE."""
    return request.param


@pytest.fixture(scope="session")
def make_params():
    """Random parameters, every one of them different from its neutral value."""

    def make(config: Described, vocabulary_size: int | None = None, seed: int = 0) -> dict:
        random = np.random.default_rng(seed)
        head = config.head if vocabulary_size is None else None
        shapes = encoders.shapes(config.architecture, head, vocabulary_size)
        flat = {}
        for path, shape in shapes.items():
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
    return read_speech()


@pytest.fixture(scope="session")
def dev_mini(minilibri, tmp_path_factory) -> pathlib.Path:
    """The whole of dev-mini as an audio split: 46 transcribed utterances."""
    from hubert_jax.corpus import audio_files, sources
    from hubert_jax.data.records import Utterance

    directory = tmp_path_factory.mktemp("dev-mini") / "dev-mini"
    directory.mkdir()
    utterances = [
        Utterance(source.id, audio_files.read_waveform(source.path), source.speaker, source.text)
        for source in sources.discover(minilibri / "dev-mini")
    ]
    splits.write_split(directory, "dev-mini", utterances, [], shard_megabytes=1)
    return directory
