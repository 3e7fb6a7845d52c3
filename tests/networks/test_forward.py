"""A network over a split: the same numbers from any batch, mesh and source; weights sent once."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from splits import TINY_BASE, TINY_LARGE, random_parameters

from hubert_jax.convert import formats
from hubert_jax.convert.network import Network
from hubert_jax.data import inference_batches, manifests, records
from hubert_jax.data.records import Utterance
from hubert_jax.data.waveform import normalize, to_float
from hubert_jax.errors import InputError
from hubert_jax.frames import num_frames
from hubert_jax.model.architecture import Architecture, Execution
from hubert_jax.model.hubert import Hubert
from hubert_jax.model.kernels import choice
from hubert_jax.networks import forward, trained
from hubert_jax.training import checkpoint, sharding
from hubert_jax.training.sharding import MeshConfig
from hubert_jax.units.features import Feature, hidden_states, of_utterances


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


def test_nothing_but_batches_goes_to_the_devices(network, speech_split, monkeypatch):
    """Weights are on the mesh from loading on; the computation itself transfers nothing."""
    loaded = trained.load(network[2])
    assert {leaf.sharding.mesh for leaf in jax.tree.leaves(loaded.params)} == {loaded.mesh}
    seen, sent, came, heard = [], [], [], []

    def means(params, waveform, num_samples):
        seen.append(jax.tree.leaves(params)[0])
        frames = jnp.mean(waveform[:, 80:].reshape(len(waveform), -1, 320), axis=2)
        return frames + jnp.sum(params["hubert"]["mask_embedding"])

    def fetch(values):
        came.append(values)
        return np.asarray(values)

    device_put = jax.device_put

    def put(batch, rows):
        waveform, num_samples = batch
        assert isinstance(waveform, np.ndarray) and waveform.shape[:1] == num_samples.shape
        sent.append(waveform.shape)
        with jax.transfer_guard_host_to_device("allow"):
            return device_put(batch, rows)

    monkeypatch.setattr(jax, "device_put", put)
    with jax.transfer_guard_host_to_device("disallow_explicit"):
        applied, split = forward.Applied(means, loaded, fetch), forward.utterances(speech_split)
        outputs = list(applied(split, heard.append))
    frames = sum(len(found.values) for found in outputs)
    assert len(sent) == len(heard) == len(came) and sum(heard) == pytest.approx(frames / 50)
    assert all(isinstance(leaf, jax.core.Tracer) for leaf in seen)
    assert all(isinstance(values, jax.Array) for values in came)
    names = [found.utterance.id for found in outputs]
    assert sorted(names) == sorted(utterance.id for utterance in records.read_audio(speech_split))
    for found in outputs:
        assert found.values.shape == (num_frames(len(found.utterance.audio)),)
    shards = [found.group for found in outputs]
    assert shards == sorted(shards)
    assert set(shards) == set(range(len(manifests.read_manifest(speech_split).shards)))


def test_an_utterance_that_no_device_holds_is_named(network, speech_split):
    loaded, utterances = trained.load(network[2]), list(records.read_audio(speech_split))
    longest = max(utterances, key=lambda utterance: len(utterance.audio))

    def exhausted(*arguments):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    seconds = len(longest.audio) / 16_000
    named = f"utterance {longest.id}: the device's memory does not suffice .* on {seconds:.1f} s;"
    with pytest.raises(InputError, match=f"{named}.*config.cut_seconds") as found:
        chosen = forward.utterances(speech_split, longest.id.__eq__)
        list(forward.Applied(exhausted, loaded)(chosen))
    assert "\n" not in str(found.value)


def test_a_long_recording_in_windows_is_nearly_one_long_pass(network, speech_split, monkeypatch):
    """As many frames as there are, and those of one pass but for what windows do not hear."""
    speech = np.concatenate([each.audio for each in records.read_audio(speech_split)])[
        : 40 * 16_000
    ]
    loaded, long = trained.load(network[2]), Utterance("long", speech)

    def states():
        [(_, _, [frames])] = of_utterances([Feature("layer", loaded, 1)], [(0, [long])])
        return frames

    whole = states()
    monkeypatch.setattr(inference_batches, "LONGEST", 512)
    monkeypatch.setattr(inference_batches, "_AROUND", 128)
    assert len(whole) > 1024
    found = states()
    assert found.shape == whole.shape == (num_frames(len(speech)), whole.shape[1])
    differences = np.abs(found - whole).mean(axis=1) / whole.std()
    assert np.median(differences) < 0.1
    # And not beside its place.
    beside = np.abs(found[1:] - whole[:-1]).mean(axis=1) / whole.std()
    assert differences.mean() < beside.mean() / 2


def test_execution_and_mesh_may_differ_from_those_of_training(network, speech_split):
    where, (_, expected) = network[2], _first_states(network[2], speech_split)
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    for execution, atol in (
        (Execution(scan_unroll=2, rematerialize="everything", attention="xla"), 1e-5),
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
