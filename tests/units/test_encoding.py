"""Units of waveforms: as the label job has them, of any recording, in the formats of others."""

import json

import numpy as np
import pytest
import soundfile
from splits import TINY_BASE, TINY_LARGE, random_parameters

import hubert_jax
from hubert_jax import label
from hubert_jax.convert import formats
from hubert_jax.convert.network import Network
from hubert_jax.corpus.recordings import Recordings
from hubert_jax.data import inference_batches, records
from hubert_jax.data.waveform import to_float
from hubert_jax.errors import InputError
from hubert_jax.frames import num_frames
from hubert_jax.model.architecture import Architecture
from hubert_jax.networks import forward, trained
from hubert_jax.units import __main__ as units_job
from hubert_jax.units import encoding, kmeans
from hubert_jax.units.clustering import KMeansConfig
from hubert_jax.units.features import Feature, of_utterances

LAYER = 1


@pytest.fixture(scope="module", params=["base", "large"])
def network(request, tmp_path_factory):
    model = {"base": TINY_BASE, "large": TINY_LARGE}[request.param]
    architecture = Architecture(**model["architecture"])
    where = f"orbax:{tmp_path_factory.mktemp('network')}/checkpoints"
    formats.write(where, Network(random_parameters(architecture), architecture))
    return where


@pytest.fixture(scope="module")
def of_layer(network, speech_split, tmp_path_factory):
    """A label job's directory and its result."""
    config = label.LabelConfig(
        str(tmp_path_factory.mktemp("labelled")),
        (str(speech_split),),
        feature="layer",
        layer=LAYER,
        checkpoint=network,
        num_clusters=40,
        kmeans=KMeansConfig(n_init=1, max_iter=2),
    )
    return f"{config.workdir}/label", label.run(config)


def test_units_found_where_the_network_runs_are_the_nearest(network, speech_split):
    """Also of codewords so close to each other that float32 cannot tell them apart."""
    feature = Feature("layer", trained.load(network), LAYER)
    states = {u.id: of for _, u, [of] in of_utterances([feature], forward.utterances(speech_split))}
    random = np.random.default_rng(0)
    chosen = np.concatenate(list(states.values()))[:: len(states)][:30]
    twins = chosen * (1 + random.choice([-1, 1], chosen.shape).astype(np.float32) * 1e-7)
    described = feature.describe()
    codebooks = [
        kmeans.Codebook(centroids.astype(np.float32), described, None, None, None, None)
        for centroids in (np.concatenate([chosen, twins]), chosen[:7])
    ]
    label_with = encoding.Labeller([feature, feature], codebooks)
    assert label_with._applied is not None
    found = {
        utterance.id: units for _, utterance, units in label_with(forward.utterances(speech_split))
    }
    assert found.keys() == states.keys()
    second = set()
    for name, frames in states.items():
        for codebook, units in zip(codebooks, found[name], strict=True):
            exact = codebook.centroids.astype(np.float64)
            distances = np.square(frames[:, None].astype(np.float64) - exact).sum(axis=2)
            assert units.dtype == np.uint16 and units.shape == (len(frames),)
            best = distances.min(axis=1)
            # The states are of another program, equal but for rounding.
            assert np.all(distances[np.arange(len(units)), units] <= best * (1 + 1e-5) + 1e-9)
        second.update(found[name][0][found[name][0] >= 30].tolist())
    assert second  # rounding did decide


def test_encode_gives_the_label_jobs_units(network, of_layer, speech_split):
    directory, result = of_layer
    labels = dict(records.read_labels(result["splits"]["speech"]["directory"]))
    encoder = encoding.Encoder(network, directory)
    assert (encoder.rate, encoder.num_units) == (50, 40)
    hubert_jax._encoder.cache_clear()
    same = total = 0
    for utterance in list(records.read_audio(speech_split))[::5]:
        units, durations = hubert_jax.encode(utterance.audio, network, directory)
        assert (units[1:] != units[:-1]).all() and (durations > 0).all()
        frames = np.repeat(units, durations)
        assert len(frames) == num_frames(len(utterance.audio))
        same += (frames == labels[utterance.id]).sum()
        total += len(frames)
        of_floats = hubert_jax.encode(to_float(utterance.audio), network, directory)
        np.testing.assert_array_equal(of_floats.units, units)
    assert same >= total - 1  # rounding differs between programs of one row and of several
    assert hubert_jax._encoder.cache_info().misses == 1


def test_encode_by_a_codebook_of_mfcc(speech_split, tmp_path):
    config = label.LabelConfig(
        *(str(tmp_path), (str(speech_split),)),
        steps=("mean", "splice 3"),
        num_clusters=12,
        kmeans=KMeansConfig(n_init=1, max_iter=2),
    )
    labels = dict(records.read_labels(label.run(config)["splits"]["speech"]["directory"]))
    encoder = encoding.Encoder("", f"{tmp_path}/label")
    for utterance in list(records.read_audio(speech_split))[:2]:
        found = encoder(utterance.audio)
        np.testing.assert_array_equal(np.repeat(*found), labels[utterance.id])


def test_what_does_not_fit_together_is_refused(network, of_layer, tmp_path):
    directory, _ = of_layer
    refused = (
        (("", directory), f"codebook={directory} is of layer; expected the network whose layer 1"),
        ((network, directory, 2), "layer 1, expected layer 2"),
        ((network, f"{tmp_path}/none"), "codebook description not found"),
    )
    for arguments, message in refused:
        with pytest.raises(InputError, match=message):
            encoding.Encoder(*arguments)
    np.save(tmp_path / "km.npy", np.eye(5, 16, dtype=np.float32))
    with pytest.raises(InputError, match="layer=-1: codebook=.*does not say of which layer"):
        encoding.Encoder(network, f"{tmp_path}/km.npy")
    encoder = encoding.Encoder(network, f"{tmp_path}/km.npy", LAYER)
    for waveform, message in (
        (np.zeros((2, 999)), r"of shape \(2, 999\), float64: expected one channel"),
        (np.zeros(399, np.int16), r"of shape \(399,\), int16: .*at least 400 samples"),
        (np.zeros(999, np.int32), "int32: expected one channel"),
        (np.full(999, np.nan), "has NaN or infinite samples"),
    ):
        with pytest.raises(InputError, match=message):
            encoder(waveform)


def test_a_long_recording_has_all_its_frames(network, of_layer, speech, monkeypatch):
    spoken = np.concatenate(list(speech.values()))
    recording = np.resize(spoken, 60 * 16_000 + 123)
    units = np.repeat(*encoding.Encoder(network, of_layer[0])(recording))
    assert len(units) == (len(recording) - 400) // 320 + 1
    monkeypatch.setattr(inference_batches, "LONGEST", 2_048)  # as one of half an hour has it
    monkeypatch.setattr(inference_batches, "_AROUND", 512)
    in_windows = np.repeat(*encoding.Encoder(network, of_layer[0])(recording))
    assert len(in_windows) == len(units)
    assert np.mean(in_windows == units) > 0.9


@pytest.fixture
def folder(speech, tmp_path):
    """Recordings of several formats, one of them twice, and one that is none."""
    one, two = list(speech.values())[:2]
    below = tmp_path / "speech" / "below"
    below.mkdir(parents=True)
    soundfile.write(below / "one.flac", one, 16_000)
    soundfile.write(tmp_path / "speech" / "same.wav", one, 16_000)
    stereo = np.stack([two, two], axis=1).repeat(2, axis=0)
    soundfile.write(tmp_path / "speech" / "wide.wav", stereo, 32_000)
    (tmp_path / "speech" / "broken.wav").write_bytes(b"RIFF")
    return str(tmp_path / "speech")


def test_units_job_writes_what_others_read(network, of_layer, folder, speech, tmp_path, capsys):
    directory, _ = of_layer
    config = units_job.UnitsConfig((folder,), "", directory, network, workdir=str(tmp_path))
    result = units_job.run(config)
    assert list(result["refused"]) == ["broken.wav"] and result["recordings"] == 3
    assert "refused:" in capsys.readouterr().out
    made = tmp_path / "units"
    lines = [json.loads(line) for line in (made / "units.jsonl").read_text().splitlines()]
    names = ["below/one.flac", "same.wav", "wide.wav"]
    assert [line["audio"] for line in lines] == names
    expected = np.repeat(*hubert_jax.encode(next(iter(speech.values())), network, directory))
    for line in lines[:2]:
        frames = np.array(line["hubert"].split(), int)
        np.testing.assert_array_equal(frames, np.repeat(line["units"], line["durations"]))
        assert np.mean(frames == expected) > 0.99
        assert line["duration"] == pytest.approx(
            len(next(iter(speech.values()))) / 16_000, abs=1e-4
        )
    root, *listed = (made / "units.tsv").read_text().splitlines()
    assert root == folder
    assert [line.split("\t")[0] for line in listed] == names
    for line, spelled in zip(lines, (made / "units.km").read_text().splitlines(), strict=True):
        assert spelled == line["hubert"]
        samples = int(listed[lines.index(line)].split("\t")[1])
        assert len(spelled.split()) == num_frames(samples)
    dictionary = (made / "dict.km.txt").read_text().splitlines()
    assert dictionary == [f"{unit} 1" for unit in range(40)]


def test_units_job_keeps_what_a_killed_one_did(network, of_layer, folder, tmp_path, monkeypatch):
    config = units_job.UnitsConfig((folder,), "", of_layer[0], network, workdir=str(tmp_path))
    whole = encoding.Labeller.__call__

    def killed(self, groups):
        yield next(whole(self, groups))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(encoding.Labeller, "__call__", killed)
        with pytest.raises(KeyboardInterrupt):
            units_job.run(config)
    assert not (tmp_path / "units" / "result.json").exists()
    read = []
    groups = Recordings.groups

    def watched(self, wanted):
        read.extend(name for name in self.paths if wanted(name))
        return groups(self, wanted)

    monkeypatch.setattr(Recordings, "groups", watched)
    units_job.run(config)
    once = (tmp_path / "units" / "units.jsonl").read_bytes()
    assert len(read) in (2, 3)  # the two of the same content count as one
    units_job.run(units_job.UnitsConfig(**{**vars(config), "deduplicate": True}))
    assert read[-1:] == ["broken.wav"] and (tmp_path / "units" / "units.jsonl").read_bytes() == once
    lines = [json.loads(line) for line in once.splitlines()]
    spelled = (tmp_path / "units" / "units.km").read_text().splitlines()
    assert spelled == [" ".join(map(str, line["units"])) for line in lines]


def test_units_job_writes_a_label_sets_units(of_layer, tmp_path):
    labels = of_layer[1]["splits"]["speech"]["directory"]
    result = units_job.run(units_job.UnitsConfig(labels=labels, workdir=str(tmp_path)))
    lines = (tmp_path / "units" / "units.jsonl").read_text().splitlines()
    found = {line["audio"]: line["hubert"].split() for line in map(json.loads, lines)}
    for name, units in records.read_labels(labels):
        np.testing.assert_array_equal(np.array(found.pop(name), int), units)
    assert not found and result["num_units"] == 40
    assert result["frames"] == of_layer[1]["splits"]["speech"]["frames"]


def test_units_job_refuses_what_does_not_fit_together(folder, tmp_path):
    for values, message in (
        ({}, "expected audio files or folders, or else a label set"),
        (dict(files=("a",), labels="b"), "expected audio files or folders, or else a label set"),
        (dict(files=("a",)), "config.codebook: missing"),
        (dict(labels="b", codebook="c"), "has its units; expected no config.codebook"),
    ):
        with pytest.raises(InputError, match=message):
            units_job.UnitsConfig(**values)
    (tmp_path / "empty").mkdir()
    for paths, message in (
        ((f"{tmp_path}/none",), "no such file or folder"),
        ((f"{tmp_path}/empty",), "no audio in it"),
        ((folder, folder), "below/one.flac: is given twice"),
    ):
        with pytest.raises(InputError, match=message):
            Recordings(paths)


def test_runs_of_units():
    found = encoding.Encoded.of_frames(np.array([3, 3, 0, 7, 7, 7, 3], np.uint16))
    assert found.units.tolist() == [3, 0, 7, 3] and found.durations.tolist() == [2, 1, 3, 1]
    assert found.units.dtype == np.uint16
