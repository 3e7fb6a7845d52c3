"""A network over a split: the same numbers from any batch, mesh and source; weights sent once."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from splits import TINY_BASE, TINY_LARGE, random_parameters

from hubert_jax.convert import formats
from hubert_jax.convert.network import Network
from hubert_jax.data import manifests, records
from hubert_jax.data.waveform import normalize, to_float
from hubert_jax.errors import InputError
from hubert_jax.frames import num_frames
from hubert_jax.model.architecture import Architecture, Execution
from hubert_jax.model.hubert import Hubert
from hubert_jax.model.kernels import choice
from hubert_jax.networks import forward, trained
from hubert_jax.training import checkpoint, sharding
from hubert_jax.training.sharding import MeshConfig
from hubert_jax.units.features import hidden_states


@pytest.fixture(scope="module", params=["base", "large"])
def network(request, tmp_path_factory):
    """Architecture, parameters and `orbax:DIR` of a network of random weights."""
    model = {"base": TINY_BASE, "large": TINY_LARGE}[request.param]
    architecture = Architecture(**model["architecture"])
    params = random_parameters(architecture)
    where = f"orbax:{tmp_path_factory.mktemp('network')}/checkpoints"
    formats.write(where, Network(params, architecture))
    return architecture, params, where


def test_hidden_states_are_those_of_each_utterance_alone(network, speech_split):
    architecture, params, where = network
    model = Hubert(architecture, choice.choose(Execution(), architecture))
    apply = jax.jit(lambda x: model.apply({"params": params["hubert"]}, x, collect=True)["layers"])
    found = {
        name: features
        for _, name, features in hidden_states(trained.load(where), speech_split, (0, 2))
    }
    utterances = list(records.read_audio(speech_split))
    assert set(found) == {utterance.id for utterance in utterances}
    for utterance in utterances[::7]:
        waveform = to_float(utterance.audio)
        if architecture.normalize_waveform:
            waveform = normalize(waveform)
        layers = apply(waveform[None])[:, 0]
        for layer in (0, 2):
            assert found[utterance.id][layer].shape == layers[layer].shape
            np.testing.assert_allclose(found[utterance.id][layer], layers[layer], atol=1e-5)


def test_nothing_but_batches_goes_to_the_devices(network, speech_split):
    """Weights are on the mesh from loading on; the computation itself transfers nothing."""
    loaded = trained.load(network[2])
    assert {leaf.sharding.mesh for leaf in jax.tree.leaves(loaded.params)} == {loaded.mesh}
    manifest = manifests.read_manifest(speech_split)
    seen = []

    def means(params, waveform, num_samples):
        seen.append(jax.tree.leaves(params)[0])
        return jnp.mean(waveform, axis=1) + jnp.sum(params["hubert"]["mask_embedding"])

    with jax.transfer_guard_host_to_device("disallow"):  # but for device_put
        outputs = list(forward.over_split(means, loaded, speech_split, manifest))
    assert all(isinstance(leaf, jax.core.Tracer) for leaf in seen)
    assert all(isinstance(batch.values, jax.Array) for batch in outputs)
    names = [name for batch in outputs for name in batch.ids]
    assert sorted(names) == sorted(utterance.id for utterance in records.read_audio(speech_split))
    shards = [batch.shard for batch in outputs]
    assert shards == sorted(shards) and set(shards) == set(range(len(manifest.shards)))


def test_an_utterance_that_no_device_holds_is_named(network, speech_split, monkeypatch):
    loaded, manifest = trained.load(network[2]), manifests.read_manifest(speech_split)
    utterances = list(records.read_audio(speech_split))
    longest = max(utterances, key=lambda utterance: len(utterance.audio))
    seconds = len(longest.audio) / 16_000

    def exhausted(*arguments):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    def run(memory, **chosen):
        monkeypatch.setattr(forward, "_memory", lambda device: memory)
        return list(forward.over_split(exhausted, loaded, speech_split, manifest, **chosen))

    named = "utterance {} of .* s: the device's memory does not suffice .*config.cut_seconds"
    with pytest.raises(InputError, match=named.format(longest.id)) as late:
        run(2**40, wanted=lambda name: name == longest.id)
    assert f" of {seconds:.1f} s:" in str(late.value) and "\n" not in str(late.value)
    # As many bytes as the attention weights of the longest one have.
    weights = 4 * loaded.architecture.num_heads * num_frames(len(longest.audio)) ** 2
    with monkeypatch.context() as patch:
        patch.setattr(records, "read_shard", lambda *arguments: pytest.fail("audio was read"))
        with pytest.raises(InputError, match=named.format(longest.id)):
            run(weights - 1)
    others = {utterance.id for utterance in utterances} - {longest.id}
    with pytest.raises(InputError, match=named.format(f"({'|'.join(others)})")):
        run(weights - 1, wanted=lambda name: name in others)
    run(weights - 1, shards=lambda number: False)


def test_execution_and_mesh_may_differ_from_those_of_training(network, speech_split):
    where, (_, expected) = network[2], _first_states(network[2], speech_split)
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    for execution, atol in (
        (Execution(scan_unroll=2, rematerialize=True, attention="xla"), 1e-5),
        (Execution(dtype="bfloat16"), 0.2),
    ):
        _, found = _first_states(where, speech_split, execution, mesh)
        np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


def _first_states(where, split, execution=None, mesh=None):
    loaded = trained.load(where, mesh, execution)
    states = hidden_states(loaded, split, (2,), shards=lambda number: number == 0)
    found = {name: features[2] for _, name, features in states}
    name = min(found)
    return name, found[name]


def test_fresh_weights_in_place_of_its_own(network, speech_split):
    loaded = trained.load(network[2])
    fresh = trained.as_initialised(loaded)
    ours, theirs = (
        {name: states[1] for _, name, states in hidden_states(net, speech_split, (1,))}
        for net in (loaded, fresh)
    )
    assert ours.keys() == theirs.keys()
    assert all(np.abs(ours[name] - theirs[name]).max() > 0.01 for name in ours)


def test_a_step_may_be_named_and_damage_is_passed_over(network, tmp_path, capsys):
    _, params, _ = network
    described = checkpoint.restore_parameters(network[2].removeprefix("orbax:"))[1]
    checkpoints = checkpoint.Checkpoints(tmp_path / "run", keep=3)
    for step in (2, 4, 6):
        state = {"params": jax.tree.map(lambda leaf, step=step: jnp.asarray(leaf) + step, params)}
        checkpoints.save(step, state, described)
    checkpoints.close()
    where = f"orbax:{tmp_path}/run"

    def embedding(loaded):
        return float(np.asarray(loaded.params["hubert"]["mask_embedding"])[0])

    first = params["hubert"]["mask_embedding"][0]
    assert embedding(trained.load(where)) == pytest.approx(first + 6)
    assert embedding(trained.load(f"{where}@2")) == pytest.approx(first + 2)
    with pytest.raises(InputError, match="@3: no such checkpoint; there are steps 2, 4, 6"):
        trained.load(f"{where}@3")
    capsys.readouterr()
    for path in (tmp_path / "run" / "6" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    assert embedding(trained.load(where)) == pytest.approx(first + 4)
    assert "checkpoint 6 cannot be read" in capsys.readouterr().out
    with pytest.raises(InputError, match="checkpoint 6 cannot be read.*there are steps 2, 4 too"):
        trained.load(f"{where}@6")
    shutil.rmtree(tmp_path / "run" / "4" / "metadata")
    assert embedding(trained.load(where)) == pytest.approx(first + 2)
    assert "checkpoint 4 cannot be read (its part metadata is missing)" in capsys.readouterr().out
