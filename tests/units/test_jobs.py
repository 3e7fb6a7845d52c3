"""The label and evaluate jobs on real speech, through the files that they write."""

import dataclasses
import json
import pathlib
import shutil
import types
import unittest.mock

import joblib
import numpy as np
import pytest
from sklearn.cluster import MiniBatchKMeans
from splits import TINY_LARGE, random_parameters

from hubert_jax import decode, evaluate, export, files, label
from hubert_jax.convert import __main__ as convert
from hubert_jax.convert import formats
from hubert_jax.convert.network import Network
from hubert_jax.data import manifests, records
from hubert_jax.data.label_sets import check_labels
from hubert_jax.data.waveform import to_float
from hubert_jax.errors import InputError
from hubert_jax.frames import num_frames
from hubert_jax.model.architecture import Architecture
from hubert_jax.quality.abx import AbxConfig
from hubert_jax.quality.counts import interval
from hubert_jax.quality.probe import ProbeConfig
from hubert_jax.units import fitting, kmeans
from hubert_jax.units.alignments import read_alignments
from hubert_jax.units.clustering import KMeansConfig
from hubert_jax.units.features import Feature
from hubert_jax.units.fitting import Fitting
from hubert_jax.units.mfcc import mfcc as mfcc_of

QUICK = KMeansConfig(n_init=1, max_iter=5)


def mfcc(waveform):
    return next(mfcc_of([("", waveform)]))[1]


@pytest.fixture(scope="module")
def splits(make_split, speech, tmp_path_factory):
    directory = tmp_path_factory.mktemp("prepare")
    ids = tuple(speech)
    return make_split(directory / "train", ids[:4], "train"), make_split(
        directory / "dev", ids[4:], "dev"
    )


@pytest.fixture(scope="module")
def labelled(splits, tmp_path_factory):
    config = label.LabelConfig(
        str(tmp_path_factory.mktemp("run")),
        splits,
        num_clusters=12,
        fit_max_frames=900,
        kmeans=QUICK,
    )
    return config, label.run(config)


def test_label_job(labelled, splits):
    config, result = labelled
    assert json.load(open(f"{config.workdir}/label/result.json")) == json.loads(json.dumps(result))
    codebook = kmeans.Codebook.load(f"{config.workdir}/label")
    assert (result["k"], result["rate_hz"], result["fitted_frames"]) == (12, 100, 900)
    assert result["codebook_digest"] == codebook.digest
    assert result["fitted_fraction"] == 900 / result["splits"]["train"]["frames"]
    for path in splits:
        audio = manifests.read_manifest(path)
        directory = result["splits"][audio.split]["directory"]
        manifest = manifests.read_label_manifest(directory)
        check_labels(audio, manifest, num_classes=12)
        assert manifest.codebook_digest == codebook.digest
        for utterance, (_, labels) in zip(
            records.read_audio(path), records.read_labels(directory), strict=True
        ):
            expected = kmeans.assign(codebook, mfcc(to_float(utterance.audio)))
            np.testing.assert_array_equal(labels, expected)


def test_all_frames_may_be_asked_for(labelled, tmp_path):
    result = label.run(
        dataclasses.replace(labelled[0], workdir=str(tmp_path), fit_max_frames=10**12)
    )
    assert result["fitted_frames"] == result["splits"]["train"]["frames"]


@pytest.mark.parametrize("rate", [50, 100])
@pytest.mark.parametrize(("fraction", "most"), [(0.5, 10**12), (1.0, 10**12), (1.0, 70)])
def test_a_sample_takes_the_room_of_what_comes(splits, capsys, monkeypatch, rate, fraction, most):
    """Of a fraction, at the feature's rate: where memory is not overcommitted, more is refused."""

    def extract(features, path, wanted, shards):
        for utterance in filter(lambda each: wanted(each.id), records.read_audio(path)):
            frames = num_frames(len(utterance.audio), rate)
            yield 0, utterance.id, [np.ones((frames, 2), np.float32)]

    monkeypatch.setattr(fitting, "extract", extract)
    monkeypatch.setattr(kmeans, "fit", lambda sample, *arguments: sample.frames())
    of_split = Fitting(splits[0], 4, 1, most, QUICK, fraction)
    feature = types.SimpleNamespace(rate=rate, dim=2, own_steps=(), steps=(), describe=lambda: {})
    [(_, (found, keys))] = of_split.fit_features({"": feature}, {"": 4})
    taken = extract([], splits[0], of_split.wanted(rate), None)
    wanted = sum(len(frames) for _, _, [frames] in taken)
    assert len(keys) == len(found) == found.base.size // 2 == min(wanted, most)
    assert f"k-means on {len(found):,} frames" in capsys.readouterr().out


def test_label_job_reuses_a_codebook(labelled, splits, tmp_path):
    config, result = labelled
    reusing = dataclasses.replace(
        config, workdir=str(tmp_path), audio=splits[1:], codebook=f"{config.workdir}/label"
    )
    again = label.run(reusing)
    assert again["codebook_digest"] == result["codebook_digest"]
    assert again["splits"]["dev"]["digest"] == result["splits"]["dev"]["digest"]
    with pytest.raises(InputError, match="kind mfcc, expected kind mfcc_librosa; label with"):
        label.run(dataclasses.replace(reusing, feature="mfcc_librosa"))


@pytest.fixture
def of_scikit_learn(splits, tmp_path):
    """A k-means that scikit-learn fitted on MFCC, and its file in joblib's format."""
    frames = [mfcc(to_float(utterance.audio)) for utterance in records.read_audio(splits[0])]
    model = MiniBatchKMeans(20, n_init=1, random_state=0).fit(np.concatenate(frames))
    joblib.dump(model, tmp_path / "km.bin")
    return model, str(tmp_path / "km.bin")


def test_label_job_takes_a_codebook_of_scikit_learn(labelled, splits, tmp_path, of_scikit_learn):
    """As fairseq's are: what the file does not tell is null, the rest is as of our own."""
    model, path = of_scikit_learn
    config = dataclasses.replace(labelled[0], workdir=str(tmp_path / "1"), codebook=path)
    result = label.run(config)
    audio = {utterance.id: utterance.audio for utterance in records.read_audio(splits[1])}
    for name, units in records.read_labels(result["splits"]["dev"]["directory"]):
        np.testing.assert_array_equal(units, model.predict(mfcc(to_float(audio[name]))))
    unknown = ("inertia", "dead_codewords", "fitted_frames")
    assert [result[key] for key in unknown] == [None] * 3 and not result["codebook_fitted_here"]
    found = kmeans.Codebook.load(tmp_path / "1" / "label")
    assert found.seed is None and found.origin == result["codebook_origin"]
    assert found.origin.startswith("km.bin (MiniBatchKMeans of scikit-learn 1.")
    assert found.origin.endswith("does not name the feature, the label job was told")
    # From here on it is a codebook of the feature that was said, like any other.
    again = dataclasses.replace(config, workdir=str(tmp_path / "2"), codebook=f"{tmp_path}/1/label")
    assert label.run(again)["codebook_digest"] == result["codebook_digest"] == found.digest
    with pytest.raises(InputError, match="kind mfcc, expected kind mfcc_librosa"):
        label.run(dataclasses.replace(again, feature="mfcc_librosa"))


def test_a_codebook_of_other_dimensions_is_refused_before_audio_is_read(
    labelled, tmp_path, monkeypatch
):
    monkeypatch.setattr(records, "read_shard", None)
    np.save(tmp_path / "km.npy", np.eye(5, 768, dtype=np.float32))
    config = dataclasses.replace(
        labelled[0], workdir=str(tmp_path / "run"), codebook=f"{tmp_path}/km.npy"
    )
    with pytest.raises(InputError, match="centroids of 768 dimensions, mfcc has 39; label with"):
        label.run(config)
    assert not (tmp_path / "run" / "label").exists()


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A network of random weights as a checkpoint: architecture, parameters, `orbax:DIR`."""
    architecture = Architecture(**TINY_LARGE["architecture"])
    params = random_parameters(architecture)
    where = f"orbax:{tmp_path_factory.mktemp('network')}/checkpoints"
    formats.write(where, Network(params, architecture))
    return architecture, params, where


def test_label_job_refuses_a_codebook_of_another_layer(tmp_path, splits, network):
    where = network[2]
    found = formats.read(where).fingerprint
    right = {"kind": "layer", "layer": 1, "residual": "added", "checkpoint": found}
    for key, value in (("layer", 2), ("checkpoint", "c" * 64), ("residual", "left out")):
        described = right | {key: value}
        kmeans.Codebook(np.eye(3, 16, dtype=np.float32), described, 0.0, 0, 0, 9).save(tmp_path)
        config = label.LabelConfig(
            str(tmp_path / "run"),
            splits[:1],
            feature="layer",
            checkpoint=where,
            layer=1,
            codebook=str(tmp_path),
        )
        message = f"config.codebook=.*: fitted on features with {key} .*, expected {key}"
        with pytest.raises(InputError, match=message):
            label.run(config)


def test_labels_of_a_layer_are_the_same_from_another_librarys_weights(
    tmp_path, splits, network, evaluation
):
    """From transformers' files and from a checkpoint: units and PNMI, apart from the name."""
    architecture, params, where = network
    formats.write(f"hf:{tmp_path}/model", Network(params, architecture))
    results, labels = [], []
    for number, source in enumerate((where, f"hf:{tmp_path}/model")):
        config = label.LabelConfig(
            str(tmp_path / str(number)),
            splits,
            feature="layer",
            checkpoint=source,
            layer=1,
            num_clusters=6,
            fit_max_frames=300,
            kmeans=QUICK,
        )
        label.run(config)
        labels.append(dict(records.read_labels(f"{config.workdir}/label/dev")))
        scored = dataclasses.replace(
            evaluation,
            workdir=config.workdir,
            labels=(f"{config.workdir}/label/dev",),
            checkpoint=source,
            layers=(1, 2),
            num_clusters=6,
            fit_max_frames=300,
        )
        results.append(evaluate.run(scored))
    assert list(labels[0]) == list(labels[1])
    for name, units in labels[0].items():
        np.testing.assert_array_equal(units, labels[1][name])
    assert results[0]["pnmi_by_layer"] == results[1]["pnmi_by_layer"]
    assert results[0]["labels"][0]["pnmi"] == results[1]["labels"][0]["pnmi"]


def test_an_interrupted_labelling_keeps_its_shards(tmp_path, splits, monkeypatch):
    config = label.LabelConfig(str(tmp_path), splits, num_clusters=12, kmeans=QUICK)
    computed, assign_each = [], kmeans.assign_each

    def counted(codebooks, features):
        for utterance in assign_each(codebooks, features):
            if len(computed) == 5:
                raise KeyboardInterrupt
            computed.append(utterance)
            yield utterance

    with monkeypatch.context() as patch:
        patch.setattr(kmeans, "assign_each", counted)
        with pytest.raises(KeyboardInterrupt):
            label.run(config)
    assert not (tmp_path / "label" / "result.json").exists()
    finished = (tmp_path / "label" / "train").is_dir()
    computed.clear()
    reusing = dataclasses.replace(config, codebook=f"{tmp_path}/label")
    result = label.run(reusing)
    whole = label.run(dataclasses.replace(config, workdir=str(tmp_path / "whole")))
    assert result["splits"]["dev"]["digest"] == whole["splits"]["dev"]["digest"]
    assert result["splits"]["train"]["digest"] == whole["splits"]["train"]["digest"]
    assert finished
    assert not list((tmp_path / "label").glob(".*parts*"))


@pytest.fixture
def interrupted(labelled, splits, tmp_path, monkeypatch):
    """A call that was interrupted when it had fitted, and the numbers of frames fitted on since."""
    config = dataclasses.replace(labelled[0], workdir=str(tmp_path), audio=splits[:1])
    fitted, fit = [], kmeans.fit

    def recorded(*arguments):
        codebook = fit(*arguments)
        fitted.append(codebook.fitted_frames)
        return codebook

    with monkeypatch.context() as patch:
        patch.setattr(kmeans, "assign_each", unittest.mock.Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            label.run(config)
    monkeypatch.setattr(kmeans, "fit", recorded)
    return config, fitted


def test_the_codebook_of_an_interrupted_call_is_used(
    interrupted, labelled, splits, monkeypatch, capsys
):
    config, fitted = interrupted
    fits = Fitting.fit_features
    monkeypatch.setattr(Fitting, "fit_features", None)
    again = label.run(dataclasses.replace(config, audio=splits))
    monkeypatch.setattr(Fitting, "fit_features", fits)
    assert not fitted and capsys.readouterr().out.count("kept from an earlier call with the") == 1
    for key in ("codebook_digest", "inertia", "dead_codewords", "fitted_frames", "fitted_fraction"):
        assert again[key] == labelled[1][key]
    for split, found in again["splits"].items():
        assert found["digest"] == labelled[1]["splits"][split]["digest"]


def _edited(directory, change) -> None:
    path = directory / "codebook.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"num_clusters": 11},
        {"fit_max_frames": 899},
        {"fit_fraction": 0.9},
        {"kmeans": dataclasses.replace(QUICK, max_iter=6)},
        "audio",
        "version",
        "network",
        lambda directory: (directory / "codebook.npz").unlink(),
        lambda directory: (directory / "codebook.npz").write_bytes(b"PK"),
        lambda directory: (directory / "codebook.json").write_text("[]"),
        lambda directory: _edited(directory, lambda said: said | {"inertia": 0.0}),
        lambda directory: _edited(directory, lambda said: said | {"fit": ""}),
    ],
)
def test_another_or_a_damaged_codebook_is_fitted_anew(interrupted, splits, monkeypatch, change):
    config, fitted = interrupted
    if callable(change):
        change(pathlib.Path(config.workdir, "label"))
    elif change == "version":
        monkeypatch.setattr(label, "VERSION", label.VERSION + 1)
    elif change == "network":
        other = {"kind": "mfcc", "checkpoint": "c" * 64}
        monkeypatch.setattr(Feature, "describe", lambda self: other)
    else:
        changes = {"audio": splits[1:]} if change == "audio" else change
        config = dataclasses.replace(config, **changes)
    result = label.run(config)
    assert fitted == [result["fitted_frames"]]
    described = json.loads(pathlib.Path(config.workdir, "label", "codebook.json").read_text())
    assert described["digest"] == result["codebook_digest"]
    assert described["inertia"] == result["inertia"] > 0
    # A finished label set stays, and so does its codebook.
    assert label.run(config)["splits"] == result["splits"] and len(fitted) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"audio": ()}, "config.audio: found no split"),
        ({"feature": "mel"}, "feature='mel': expected one of"),
        ({"feature": "layer", "layer": 1}, "expected a network for"),
        ({"feature": "layer", "layer": 1, "checkpoint": "none/here"}, "none/here: expected hf:DIR"),
        (
            {"feature": "layer", "layer": 1, "checkpoint": "orbax:none/here"},
            "none/here: no checkpoint found",
        ),
        ({"fit_fraction": 0.0}, "fit_fraction=0.0"),
        ({"fit_max_frames": 0}, "fit_max_frames=0"),
        ({"num_clusters": 1_000}, "fit_max_frames=900: expected at least num_clusters=1000"),
        ({"num_clusters": 0}, "num_clusters=0: expected 1"),
        ({"seed": -1}, "config.seed=-1: expected 0"),
        ({"seed": 2**32}, "config.seed=4294967296: expected 0"),
    ],
)
def test_label_job_refuses(labelled, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        label.run(dataclasses.replace(labelled[0], workdir=str(tmp_path), **change))
    assert not (tmp_path / "label" / "result.json").exists()


def test_a_second_label_job_in_one_directory_is_refused(labelled, tmp_path):
    with files.locked(tmp_path / ".label.lock", "label job"):
        with pytest.raises(InputError, match="another label job is running there"):
            label.run(dataclasses.replace(labelled[0], workdir=str(tmp_path)))
    assert not (tmp_path / "label").exists()


@pytest.mark.parametrize("job", [decode, evaluate, export, label], ids=lambda job: job.__name__)
def test_a_misspelt_path_leaves_the_result_of_an_earlier_job(tmp_path, splits, evaluation, job):
    none = f"orbax:{tmp_path}/none"
    config = {
        decode: decode.DecodeConfig(str(tmp_path), none, splits[1]),
        evaluate: dataclasses.replace(evaluation, workdir=str(tmp_path), checkpoint=none),
        export: export.ExportConfig(str(tmp_path), none),
        label: label.LabelConfig(str(tmp_path), splits, codebook=f"{tmp_path}/none"),
    }[job]
    result = tmp_path / job.__name__.rpartition(".")[2] / "result.json"
    files.write_json(result, {})
    with pytest.raises(InputError, match="none"):
        job.run(config)
    assert result.exists()


def test_an_export_that_is_refused_keeps_the_result_of_an_earlier_one(tmp_path, network):
    result = tmp_path / "export" / "result.json"
    files.write_json(result, {})
    with pytest.raises(InputError, match="exists and holds no"):
        export.run(export.ExportConfig(str(tmp_path), network[2], out=str(tmp_path)))
    assert result.exists()  # with its model


def test_a_conversion_that_is_refused_keeps_the_model_of_an_earlier_one(tmp_path, network):
    convert.run(convert.ConvertConfig(str(tmp_path), network[2], "orbax:"))
    with pytest.raises(InputError, match="nowhere"):
        convert.run(convert.ConvertConfig(str(tmp_path), "orbax:/nowhere", "orbax:"))
    assert (tmp_path / "convert/model").is_dir() and (tmp_path / "convert/result.json").exists()


@pytest.mark.parametrize("change", [{"labels": ("none/here",)}, {"fit_audio": "none/here"}])
def test_an_evaluation_that_is_refused_keeps_the_result_of_an_earlier_one(
    evaluation, tmp_path, change
):
    result = tmp_path / "evaluate" / "result.json"
    files.write_json(result, {})
    with pytest.raises(InputError, match="none/here"):
        evaluate.run(dataclasses.replace(evaluation, workdir=str(tmp_path), **change))
    assert result.exists()


def test_two_splits_of_one_name_are_refused(labelled, splits, tmp_path):
    config = dataclasses.replace(labelled[0], workdir=str(tmp_path), audio=(splits[0], splits[0]))
    with pytest.raises(InputError, match="two splits named 'train'"):
        label.run(config)


@pytest.fixture(scope="module")
def items(cut_alignments, tmp_path_factory):
    """Every phone but silence as an item, all of one context: there is little speech."""
    path = tmp_path_factory.mktemp("abx") / "dev.item"
    lines = ["#file onset offset #phone prev-phone next-phone speaker"]
    for name, start, end, phone in map(str.split, cut_alignments.read_text().splitlines()):
        if phone != "SIL":
            lines.append(f"{name} {start} {end} {phone} x x {name.split('-')[0]}")
    path.write_text("\n".join(lines))
    return str(path)


@pytest.fixture(scope="module")
def evaluation(labelled, splits, cut_alignments):
    return evaluate.EvaluateConfig(
        labelled[0].workdir,
        splits[1],
        str(cut_alignments),
        labels=(f"{labelled[0].workdir}/label/dev",),
        fit_audio=splits[0],
        num_clusters=12,
        fit_max_frames=900,
        frame_rate=100,
        kmeans=QUICK,
    )


def test_evaluate_job_scores_labels_beside_mfcc(evaluation):
    result = evaluate.run(evaluation)
    scored, reference = result["labels"][0], result["mfcc"]
    # The same features, frames, seed and settings: the reference is the label set itself.
    for figure in ("pnmi", "phone_purity", "cluster_purity", "frames"):
        assert scored[figure] == reference[figure]
    assert 0.1 < scored["pnmi"] < 0.6
    counts = np.load(f"{evaluation.workdir}/evaluate/joint_counts.npz")
    manifest = manifests.read_label_manifest(evaluation.labels[0])
    table = counts[scored["joint_counts"]]
    np.testing.assert_array_equal(table.sum(axis=0), manifest.class_counts)
    assert scored["counts"] == table.tolist() and result["phones"] == counts["phones"].tolist()
    assert len(result["phones"]) == len(table)
    halved = evaluate.run(dataclasses.replace(evaluation, frame_rate=50))
    half = halved["labels"][0]
    # Either run gives PNMI at both rates, beside the scores at its own.
    rates = {"50": half["pnmi"], "100": scored["pnmi"]}
    assert half["pnmi_by_rate"] == scored["pnmi_by_rate"] == rates and len({*rates.values()}) == 2
    assert halved["mfcc"]["pnmi_by_rate"] == reference["pnmi_by_rate"] == rates
    assert half["frames"] == scored["frames"] // 2 or half["frames"] == scored["frames"] // 2 + 1
    assert half["pnmi"] == pytest.approx(scored["pnmi"], abs=0.05)


def test_evaluate_job_scores_layers(evaluation, items, monkeypatch):
    """Layer 1 tells phones apart as MFCC do, layer 2 is noise."""
    from hubert_jax.networks import trained as trained_lib
    from hubert_jax.quality import evaluation as evaluation_lib

    def layers_of(trained, split_dir, layers, wanted=lambda name: True):
        rng = np.random.default_rng(0)
        for utterance in records.read_audio(split_dir):
            if wanted(utterance.id):
                speech = mfcc(to_float(utterance.audio))[::2]
                noise = rng.normal(size=speech.shape).astype(np.float32)
                of = {1: noise if trained == "untrained" else speech, 2: noise}
                yield 0, utterance.id, {layer: of[layer] for layer in layers}

    architecture = types.SimpleNamespace(num_layers=2, dim=39)
    network = types.SimpleNamespace(architecture=architecture, fingerprint="c", where="c")
    monkeypatch.setattr(evaluation_lib, "hidden_states", layers_of)
    monkeypatch.setattr(trained_lib, "load", lambda where, execution: network)
    monkeypatch.setattr(trained_lib, "as_initialised", lambda trained: "untrained")
    config = dataclasses.replace(
        *(evaluation,),
        checkpoint="c",
        untrained=True,
        frame_rate=50,
        after_steps=("mean", "smooth 3"),
        abx=AbxConfig(features=True),
        abx_items=items,
        probe=ProbeConfig(weighted_sum=True, iterations=15),
        probe_audio=evaluation.fit_audio,
        probe_alignments=evaluation.alignments,
    )
    result = evaluate.run(config)
    assert result["best_layer"] == 1
    of_layers = result["layers"]
    for scores in (
        [entry["probe"]["frame_accuracy"] for entry in of_layers],
        [1 - entry["probe"]["phone_error_rate"] for entry in of_layers],
        [entry["over_mfcc"]["utterances"][0] for entry in of_layers],
        [0.5 - entry["abx"]["within"] for entry in of_layers],
        result["weighted_sum"]["layer_weights"],
    ):
        assert scores[0] > scores[1] + 0.02
    assert result["weighted_sum"]["frame_accuracy"] > of_layers[1]["probe"]["frame_accuracy"] + 0.1
    assert of_layers[0]["probe"] == result["mfcc"]["probe"]  # every second frame of MFCC
    weights = result["untrained_weighted_sum"]["layer_weights"]
    assert weights == pytest.approx([0.5, 0.5], abs=0.1)
    trained, untrained = result["pnmi_by_layer"], result["untrained_pnmi_by_layer"]
    assert trained["1"] > max(trained["2"], untrained["1"]) + 0.05
    assert trained["2"] == untrained["2"]
    names = {entry["joint_counts"] for entry in result["layers"] + result["untrained"]}
    counts = np.load(f"{evaluation.workdir}/evaluate/joint_counts.npz")
    scored = names | {"labels_0", "mfcc"}
    again = {f"{name}_after_steps" for name in scored - {"labels_0"}}
    assert set(counts) == {"phones"} | scored | again
    after = of_layers[0]["after_steps"]
    assert after["steps"] == ["mean", "smooth 3"] and after["pnmi"] != trained["1"]
    # Of MFCC after these steps: layer 1 is every second frame of them.
    rival = result["mfcc"]["after_steps"]["pnmi"]
    assert after["over_mfcc"]["pnmi"] == pytest.approx(after["pnmi"] - rival, abs=1e-12)
    draws = np.load(f"{evaluation.workdir}/evaluate/draws.npz")
    assert set(draws) == scored | again
    apart = draws[after["joint_counts"]] - draws["mfcc_after_steps"]
    between = interval(after["over_mfcc"]["pnmi"], apart)
    assert after["over_mfcc"]["utterances"] == between
    only = evaluate.run(dataclasses.replace(config, layers=(2,), labels=(), untrained=False))
    assert list(only["pnmi_by_layer"]) == ["2"] and "labels" not in only


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ()}, "config.labels, config.checkpoint: both empty"),
        ({"frame_rate": 25}, "config.frame_rate=25"),
        ({"checkpoint": "c", "fit_audio": ""}, "config.fit_audio: empty"),
        ({"layers": (1,)}, "config.layers.*without config.checkpoint"),
        ({"untrained": True}, "config.untrained.*without config.checkpoint"),
        ({"after_steps": ("smoothe 3",)}, "config.after_steps: found the step 'smoothe 3'"),
        ({"after_steps": ("take 30:40",)}, "config.after_steps: found the step 'take 30:40'"),
        ({"after_steps": ("whiten 9",)}, "config.after_steps=.*: expected no whiten"),
        (
            {"after_steps": ("mean",), "fit_audio": ""},
            "config.after_steps=.*without config.fit_aud",
        ),
        ({"alignments": "none.txt"}, "none.txt: alignments cannot be read"),
        ({"missing_alignments": 1.5}, "config.missing_alignments=1.5: expected a fraction"),
        ({"draws": -1}, "config.draws=-1: expected 0 or more"),
        ({"probe_audio": "a"}, "config.probe_audio='a' with config.probe_alignments='': expected"),
        (
            {"probe": ProbeConfig(weighted_sum=True)},
            "weighted_sum=True: expected config.checkpoint",
        ),
        ({"abx_items": "a"}, "config.abx_items=a: expected config.abx.units or"),
    ],
)
def test_evaluate_job_refuses(evaluation, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        evaluate.run(dataclasses.replace(evaluation, workdir=str(tmp_path), **change))
    assert not (tmp_path / "evaluate" / "result.json").exists()


def test_evaluate_job_names_the_utterance_without_alignment(evaluation, tmp_path, speech):
    first = list(speech)[4]
    path = tmp_path / "phones.txt"
    lines = open(evaluation.alignments).read().splitlines()
    path.write_text("\n".join(line for line in lines if not line.startswith(first)))
    config = dataclasses.replace(evaluation, alignments=str(path), draws=0)
    with pytest.raises(InputError, match=rf"1 of \d+ utterances have no alignment \({first}\)"):
        evaluate.run(config)
    result = evaluate.run(dataclasses.replace(config, missing_alignments=0.5))
    assert result["missing_alignments"] == [first]
    frames = {scored["frames"] for scored in (result["mfcc"], *result["labels"])}
    assert (
        len(frames) == 1 and frames.pop() < manifests.read_label_manifest(config.labels[0]).frames
    )


def test_textgrids_and_ctm_give_the_figures_of_lines(evaluation, tmp_path):
    """But for silence, which they leave out."""
    ctm = []
    for name, alignment in read_alignments(evaluation.alignments).items():
        columns = (alignment.starts, alignment.ends, alignment.phones)
        rows = list(zip(*(column.tolist() for column in columns), strict=True))
        ctm += [f"{name} A {s} {e - s:.3f} {p}\n" for s, e, p in rows if p != "SIL"]
        intervals = "".join(f'{s}\n{e}\n"{"" if p == "SIL" else p}"\n' for s, e, p in rows)
        head = f'"ooTextFile"\n"TextGrid"\n0\n{rows[-1][1]}\n<exists>\n1\n"IntervalTier"\n"phones"'
        path = tmp_path / "aligned" / name.split("-")[0] / f"{name}.TextGrid"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{head}\n0\n{rows[-1][1]}\n{len(rows)}\n{intervals}")
    (tmp_path / "phones.ctm").write_text("".join(ctm))
    configs = [
        dataclasses.replace(evaluation, alignments=str(alignments), fit_audio="")
        for alignments in (evaluation.alignments, tmp_path / "aligned", tmp_path / "phones.ctm")
    ]
    results = [evaluate.run(config) for config in configs]
    assert results[0]["labels"] == results[1]["labels"]
    assert results[2]["labels"][0]["pnmi"] == pytest.approx(
        results[0]["labels"][0]["pnmi"], abs=0.01
    )
    assert len({result["alignments_digest"] for result in results}) == 3


def test_labels_beside_themselves_have_no_difference(evaluation, items):
    """The reference is the label set itself, and so are its units."""
    config = dataclasses.replace(evaluation, abx=AbxConfig(units=True), abx_items=items, draws=20)
    result = evaluate.run(config)
    (labels,) = result["labels"]
    assert labels["over_mfcc"] == {"pnmi": 0, "utterances": [0, 0]}
    assert labels["abx_units"] == result["mfcc"]["abx_units"] and "abx" not in result["mfcc"]
    assert 0 < labels["abx_units"]["within"] < 0.5
    for figure in ("entropy", "bitrate", "mean_run"):
        assert labels[figure] == result["mfcc"][figure] > 1


def test_items_of_other_utterances_are_refused(evaluation, tmp_path):
    path = tmp_path / "other.item"
    path.write_text("#file\nother 0 1 A B C D\n")
    config = dataclasses.replace(evaluation, abx=AbxConfig(units=True), abx_items=str(path))
    with pytest.raises(InputError, match="other.item: has no item of an utterance of"):
        evaluate.run(config)


def test_a_probe_that_was_trained_on_what_it_is_scored_on_is_refused(evaluation):
    changes = dict(probe_audio=evaluation.audio, probe_alignments=evaluation.alignments)
    with pytest.raises(InputError, match="config.probe_audio=.*: has . utterances of config.audio"):
        evaluate.run(dataclasses.replace(evaluation, **changes))


def test_evaluate_job_refuses_labels_of_other_audio(evaluation, labelled):
    wrong = dataclasses.replace(evaluation, labels=(f"{labelled[0].workdir}/label/train",))
    with pytest.raises(InputError, match="label/train: audio_digest: found"):
        evaluate.run(wrong)


def test_evaluate_job_refuses_a_label_shard_of_another_split(evaluation, splits, tmp_path):
    labels = tmp_path / "dev"
    shutil.copytree(evaluation.labels[0], labels)
    (shard,) = manifests.read_label_manifest(labels).shards
    other = [
        (f"other {name}", values) for name, values in records.read_label_shard(labels / shard.file)
    ]
    records.write_label_shard(labels / shard.file, other)
    with pytest.raises(InputError, match="labels of 'other .*', which .* does not have"):
        evaluate.run(dataclasses.replace(evaluation, labels=(str(labels),)))


def test_a_layer_that_is_not_there_is_refused_before_audio_is_read(
    labelled, evaluation, network, tmp_path, monkeypatch
):
    def read(*arguments):
        raise AssertionError("audio was read")

    for name in ("read_shard", "read_audio", "read_labels"):
        monkeypatch.setattr(records, name, read)
    changes = dict(workdir=str(tmp_path), checkpoint=network[2])
    layered = dataclasses.replace(labelled[0], feature="layer", layer=3, **changes)
    with pytest.raises(InputError, match=r"layer \[3\]: .* has layers 0 .* to 2"):
        label.run(layered)
    with pytest.raises(InputError, match=r"layer \[3\]: .* has layers 0 .* to 2"):
        evaluate.run(dataclasses.replace(evaluation, layers=(1, 3), **changes))
    assert not list(tmp_path.rglob("*.json"))
