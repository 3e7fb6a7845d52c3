"""Several codebooks in one pass, codebooks that are drawn, and labels that are made elsewhere."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
from splits import TINY_LARGE, random_parameters

from hubert_jax import command_line, evaluate, label
from hubert_jax.convert import formats
from hubert_jax.convert.network import Network
from hubert_jax.data import manifests, records
from hubert_jax.data.label_sets import check_labels
from hubert_jax.data.waveform import to_float
from hubert_jax.errors import InputError
from hubert_jax.frames import num_frames
from hubert_jax.label import CodebookConfig
from hubert_jax.model.architecture import Architecture
from hubert_jax.units import kmeans
from hubert_jax.units.alignments import read_alignments
from hubert_jax.units.clustering import KMeansConfig
from hubert_jax.units.mfcc import mfcc as mfcc_of

QUICK = KMeansConfig(n_init=1, max_iter=3)


@pytest.fixture(scope="module")
def splits(make_split, speech, tmp_path_factory):
    directory, ids = tmp_path_factory.mktemp("prepare"), tuple(speech)
    return tuple(
        make_split(directory / name, some, name)
        for name, some in (("train", ids[:4]), ("dev", ids[4:]))
    )


def config_of(workdir, splits, **changes):
    values = dict(num_clusters=6, fit_max_frames=900, kmeans=QUICK) | changes
    return label.LabelConfig(str(workdir), splits, **values)


def features(split, kind="mfcc"):
    """Frames of each utterance by its id."""
    audio = ((each.id, to_float(each.audio)) for each in records.read_audio(split))
    return dict(mfcc_of(audio, kind))


# The paper's product quantisation (Table VI), small, and an ensemble.
PRODUCT = tuple(
    CodebookConfig(name, 5, (f"take {first}:{first + 13}", "splice 3"))
    for name, first in (("static", 0), ("first", 13), ("second", 26))
)
ENSEMBLE = tuple(CodebookConfig(f"km{k}", k) for k in (4, 6, 9))


def test_product_quantisation_is_of_subspaces_of_the_spliced_feature(splits, tmp_path):
    result = label.run(config_of(tmp_path, splits, codebooks=PRODUCT))
    for subspace, each in enumerate(PRODUCT):
        codebook = kmeans.Codebook.load(tmp_path / "label" / each.name)
        assert codebook.centroids.shape == (5, 39)
        assert codebook.feature == {"kind": "mfcc", "steps": list(each.steps)}
        found = dict(records.read_labels(tmp_path / "label" / each.name / "dev"))
        for name, frames in features(splits[1]).items():
            # Of the 117 numbers of three frames these belong to the subspace.
            padded = np.concatenate([frames[:1], frames, frames[-1:]])
            spliced = np.concatenate([padded[:-2], padded[1:-1], padded[2:]], axis=1)
            inside = np.arange(117) % 39 // 13 == subspace
            distances = np.square(spliced[:, None, inside] - codebook.centroids).sum(axis=2)
            np.testing.assert_array_equal(found[name], distances.argmin(axis=1))
    assert list(result["splits"]) == [
        f"{each.name}/{split}" for each in PRODUCT for split in ("train", "dev")
    ]


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_several_codebooks_are_each_what_it_is_alone(splits, tmp_path, monkeypatch, metric):
    """From one pass to fit and one a split to label; frames of the ensemble are sampled once."""
    settings = dict(steps=("mean",), kmeans=dataclasses.replace(QUICK, metric=metric))
    codebooks = (*ENSEMBLE, CodebookConfig("white", 6, ("whiten 10", "take 1:9")))
    read, read_shard = [], records.read_shard

    def counted(path, utterances=None):
        read.append(str(path))
        return read_shard(path, utterances)

    monkeypatch.setattr(records, "read_shard", counted)
    result = label.run(config_of(tmp_path / "all", splits, codebooks=codebooks, **settings))
    of_train = [path for path in read if path.startswith(splits[0])]
    shards = len(manifests.read_manifest(splits[0]).shards)
    assert len(of_train) == 2 * shards and len(read) - len(of_train) == len(
        manifests.read_manifest(splits[1]).shards
    )
    for each in (codebooks[0], codebooks[2], codebooks[3]):
        steps = ("mean", *each.steps)
        changes = settings | dict(steps=steps, num_clusters=each.num_clusters)
        alone = label.run(config_of(tmp_path / each.name, splits, **changes))
        found = result["codebooks"][each.name]
        for key in ("codebook_digest", "inertia", "fitted_frames", "frames", "feature", "k"):
            assert found[key] == alone[key], key
        for split in ("train", "dev"):
            ours = result["splits"][f"{each.name}/{split}"]
            assert ours["digest"] == alone["splits"][split]["digest"]
            assert ours["directory"] == str(tmp_path / "all" / "label" / each.name / split)
            audio = manifests.read_manifest(ours["audio"])
            check_labels(audio, manifests.read_label_manifest(ours["directory"]), each.num_clusters)
    assert result["k"] == [4, 6, 9, 6] and "inertia" not in result
    written = json.loads((tmp_path / "all/label/result.json").read_text())
    assert written == json.loads(json.dumps(result))


def test_a_codebook_more_leaves_the_others(splits, tmp_path, monkeypatch, capsys):
    first = label.run(config_of(tmp_path, splits, codebooks=ENSEMBLE[:2]))
    fitted, fit = [], kmeans.fit

    def recorded(sample, num_clusters, *rest):
        fitted.append(num_clusters)
        return fit(sample, num_clusters, *rest)

    monkeypatch.setattr(kmeans, "fit", recorded)
    again = label.run(config_of(tmp_path, splits, codebooks=ENSEMBLE))
    assert fitted == [9] and capsys.readouterr().out.count("kept from an earlier call") == 2
    for name in ("km4/train", "km6/dev"):
        assert again["splits"][name]["digest"] == first["splits"][name]["digest"]
    # And others take them all, or some.
    config = config_of(tmp_path / "2", splits, codebooks=ENSEMBLE[1:], codebook=f"{tmp_path}/label")
    other = label.run(config)
    assert other["splits"]["km9/dev"]["digest"] == again["splits"]["km9/dev"]["digest"]
    assert list(other["codebooks"]) == ["km6", "km9"] and fitted == [9]
    assert not other["codebooks"]["km9"]["codebook_fitted_here"]
    wrong = dataclasses.replace(config, steps=("mean",))
    with pytest.raises(InputError, match=r"with steps None, expected steps \['mean'\]"):
        label.run(wrong)
    one = dataclasses.replace(config, codebooks=(), codebook=f"{tmp_path}/label/km6")
    assert label.run(one)["codebook_digest"] == again["codebooks"]["km6"]["codebook_digest"]


@pytest.mark.parametrize("where", ["fit", "label"])
def test_an_interruption_between_codebooks_costs_no_finished_one(
    splits, tmp_path, monkeypatch, where
):
    config = config_of(tmp_path, splits, codebooks=ENSEMBLE)
    calls = []

    def interrupted(function):
        def call(*arguments):
            calls.append(arguments[0])
            if len(calls) == 3:
                raise KeyboardInterrupt
            return function(*arguments)

        return call

    with monkeypatch.context() as patch:
        if where == "fit":
            patch.setattr(kmeans, "fit", interrupted(kmeans.fit))
        else:
            patch.setattr(records, "write_label_shard", interrupted(records.write_label_shard))
        with pytest.raises(KeyboardInterrupt):
            label.run(config)
    assert not (tmp_path / "label/result.json").exists()
    calls.clear()
    monkeypatch.setattr(kmeans, "fit", interrupted(kmeans.fit))
    found = label.run(config)
    assert len(calls) == (1 if where == "fit" else 0)
    monkeypatch.undo()
    whole = label.run(config_of(tmp_path / "whole", splits, codebooks=ENSEMBLE))
    assert {name: each["digest"] for name, each in found["splits"].items()} == {
        name: each["digest"] for name, each in whole["splits"].items()
    }
    assert not list((tmp_path / "label").rglob(".*"))


def test_steps_of_a_layer(splits, tmp_path):
    architecture = Architecture(**TINY_LARGE["architecture"])
    where = f"orbax:{tmp_path}/checkpoints"
    formats.write(where, Network(random_parameters(architecture), architecture))
    changes = dict(feature="layer", checkpoint=where, layer=1, steps=("mean", "whiten 5"))
    result = label.run(config_of(tmp_path, splits, **changes))
    assert result["rate_hz"] == 50 and result["feature"]["steps"] == ["mean", "whiten 5"]
    assert kmeans.Codebook.load(tmp_path / "label").centroids.shape == (6, 5)
    changes |= dict(steps=("take 0:17",))
    with pytest.raises(InputError, match="'take 0:17', expected A < B, and B at most the 16 dim"):
        label.run(config_of(tmp_path, splits, **changes))


def test_random_projections_are_drawn(splits, tmp_path, monkeypatch):
    monkeypatch.setattr(kmeans, "fit", None)
    codebooks = (CodebookConfig("a", 50), CodebookConfig("b", 50))
    changes = dict(feature="random_projection", steps=("mean", "variance", "splice 3"))
    result = label.run(config_of(tmp_path / "1", splits, codebooks=codebooks, **changes))
    for each in codebooks:
        codebook = kmeans.Codebook.load(tmp_path / "1/label" / each.name)
        assert codebook.projection.shape == (23 * 3 + 1, 16) and codebook.fitted_frames is None
        assert np.abs(codebook.projection).max() <= np.sqrt(6 / (69 + 16))
        np.testing.assert_allclose(np.linalg.norm(codebook.centroids, axis=1), 1, atol=1e-6)
        labels = dict(records.read_labels(tmp_path / "1/label" / each.name / "dev"))
        for name, frames in features(splits[1], "log_mel").items():
            exact = frames.astype(np.float64)
            exact = (exact - exact.mean(axis=0)) / exact.std(axis=0)
            padded = np.concatenate([exact[:1], exact, exact[-1:]])
            spliced = np.concatenate([padded[:-2], padded[1:-1], padded[2:]], axis=1)
            projected = spliced @ codebook.projection[:-1]
            projected /= np.linalg.norm(projected, axis=1, keepdims=True)
            cosines = projected @ codebook.centroids.T
            chosen = cosines[np.arange(len(cosines)), labels[name]]
            np.testing.assert_allclose(chosen, cosines.max(axis=1), atol=1e-6)
            assert len(np.unique(labels[name])) > 10
    digests = {each["codebook_digest"] for each in result["codebooks"].values()}
    assert len(digests) == 2
    again = label.run(config_of(tmp_path / "2", splits, codebooks=codebooks, **changes))
    assert again["codebook_digest"] == result["codebook_digest"]
    other = config_of(tmp_path / "3", splits, codebooks=codebooks, seed=1, **changes)
    assert not digests & {e["codebook_digest"] for e in label.run(other)["codebooks"].values()}


def test_a_file_of_another_library_has_no_matrix(splits, tmp_path):
    np.save(tmp_path / "km.npy", np.eye(5, 39, dtype=np.float32))
    for changes in (dict(steps=("whiten 39",)), dict(feature="random_projection")):
        config = config_of(tmp_path, splits, codebook=f"{tmp_path}/km.npy", **changes)
        with pytest.raises(InputError, match="has no matrix for whiten or random_projection"):
            label.run(config)


@pytest.fixture
def aligned(splits, tmp_path, alignments_path):
    """Alignments as long as the audio, which is the beginnings of the corpus's."""
    audio = {each.id: len(each.audio) for split in splits for each in records.read_audio(split)}
    with (tmp_path / "phones.txt").open("w") as file:
        for line in alignments_path.read_text().splitlines():
            name, start, end, phone = line.split()
            if name in audio and float(start) < audio[name] / 16_000:
                file.write(f"{name} {start} {min(float(end), audio[name] / 16_000)} {phone}\n")
    return str(tmp_path / "phones.txt")


@pytest.mark.parametrize("rate", [50, 100])
def test_phones_as_labels(splits, tmp_path, aligned, rate):
    changes = dict(feature="phones", alignments=aligned, frame_rate=rate)
    result = label.run(config_of(tmp_path, splits, **changes))
    phones = result["feature"]["phones"]
    assert phones == sorted(phones) and (result["k"], result["rate_hz"]) == (len(phones), rate)
    alignments = read_alignments(aligned)
    audio = {each.id: each.audio for each in records.read_audio(splits[1])}
    manifest = manifests.read_label_manifest(tmp_path / "label/dev")
    check_labels(manifests.read_manifest(splits[1]), manifest, len(phones))
    for name, labels in records.read_labels(tmp_path / "label/dev"):
        assert len(labels) == num_frames(len(audio[name]), rate)
        for frame, unit in enumerate(labels):
            time = (frame * 16_000 // rate + 200) / 16_000
            of = alignments[name]
            (inside,) = np.flatnonzero((of.starts <= time) & (time < of.ends))
            assert phones[unit] == of.phones[inside]
    assert not list((tmp_path / "label").glob("codebook*")) and result["codebooks"] == {}
    # Phones say all of phones.
    scored = evaluate.EvaluateConfig(
        str(tmp_path), splits[1], aligned, (str(tmp_path / "label/dev"),)
    )
    assert evaluate.run(scored)["labels"][0]["pnmi_by_rate"][str(rate)] == pytest.approx(1)
    # Others of the same phones are other labels.
    lines = [f"{name} 0 30 {phone}\n" for name in audio for phone in phones[:1]]
    rest = [f"{phone} 0 1 {phone}\n" for phone in phones]
    (tmp_path / "other.txt").write_text("".join(lines + rest))
    changes["alignments"] = str(tmp_path / "other.txt")
    with pytest.raises(
        InputError, match="an alignment that ends at 30.000 s, expected .* the audio's end"
    ):
        label.run(config_of(tmp_path, splits[1:], **changes))
    seconds = {name: len(samples) / 16_000 for name, samples in audio.items()}
    lines = [f"{name} 0 {seconds[name]} {phones[3]}\n" for name in audio]
    (tmp_path / "other.txt").write_text("".join(lines + rest))
    other = label.run(config_of(tmp_path, splits[1:], **changes))
    assert other["codebook_digest"] == result["codebook_digest"]
    assert other["splits"]["dev"]["digest"] != result["splits"]["dev"]["digest"]
    (tmp_path / "other.txt").write_text("".join(lines[:-1]))
    with pytest.raises(InputError, match=f"{list(audio)[-1]}: no alignment"):
        label.run(config_of(tmp_path, splits[1:], **changes))


@pytest.fixture
def km(splits, tmp_path):
    """Units of both splits as fairseq has them, and by id; in another order than the splits'."""
    random, units = np.random.default_rng(0), {}
    for split in splits:
        name = pathlib.Path(split).name
        rows, lines = ["/audio/LibriSpeech"], []
        for utterance in reversed(list(records.read_audio(split))):
            units[utterance.id] = random.integers(0, 50, num_frames(len(utterance.audio), 100))
            speaker, chapter, _ = utterance.id.split("-")
            rows.append(f"{speaker}/{chapter}/{utterance.id}.flac\t{len(utterance.audio)}")
            lines.append(" ".join(map(str, units[utterance.id])))
        rows.insert(1, "1/2/1-2-3.flac\t99")  # which prepare left out
        lines.insert(0, "")
        (tmp_path / f"{name}.tsv").write_text("".join(f"{row}\n" for row in rows))
        (tmp_path / f"{name}.km").write_text("".join(f"{line}\n" for line in lines))
        (tmp_path / "one.km").write_text("1\n")
    return units


def imported(tmp_path, splits, **changes):
    names = [pathlib.Path(split).name for split in splits]
    values = dict(
        feature="units",
        units=tuple(f"{tmp_path}/{name}.km" for name in names),
        utterances=tuple(f"{tmp_path}/{name}.tsv" for name in names),
        num_clusters=50,
        frame_rate=100,
    )
    return config_of(tmp_path, splits, **values | changes)


def test_units_of_fairseqs_files(splits, tmp_path, km):
    with pytest.raises(InputError, match="1-2-3 is also in .*train.km, line 1; expected every"):
        label.run(imported(tmp_path, splits))
    path = tmp_path / "dev.tsv"
    path.write_text(path.read_text().replace("1-2-3", "1-2-4"))
    result = label.run(imported(tmp_path, splits))
    assert (result["k"], result["rate_hz"]) == (50, 100)
    for split in splits:
        directory = result["splits"][pathlib.Path(split).name]["directory"]
        check_labels(manifests.read_manifest(split), manifests.read_label_manifest(directory), 50)
        for name, labels in records.read_labels(directory):
            np.testing.assert_array_equal(labels, km[name])
    for changes, message in (
        (
            dict(num_clusters=49),
            "km, line .*: found '.*', expected units below config.num_clusters",
        ),
        (dict(frame_rate=50), "found .* labels, expected .* at 50 Hz for"),
        (dict(units=(f"{tmp_path}/one.km",) * 2), "found 1 lines, but .*train.tsv lists"),
        (dict(units=(f"{tmp_path}/no.km",) * 2), "no.km: units cannot be read"),
        (dict(utterances=(f"{tmp_path}/no.tsv",) * 2), "no.tsv: cannot be read"),
        (dict(units=(f"{tmp_path}/dev.km",), utterances=(f"{tmp_path}/dev.tsv",)), "not listed in"),
    ):
        with pytest.raises(InputError, match=message) as refusal:
            label.run(imported(tmp_path, splits, **changes))
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("line", ["1 x 2", "1 -2", "\N{SUPERSCRIPT TWO}", "9" * 5_000, "1.0"])
def test_what_is_no_unit_is_refused(splits, tmp_path, km, line):
    path = tmp_path / "dev.km"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:-1], line]) + "\n")
    with pytest.raises(InputError, match=f"dev.km, line {len(lines)}: found .*, expected units"):
        label.run(imported(tmp_path, splits[1:]))


def test_steps_and_codebooks_on_the_command_line(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config(part):\n"
        "    return ConfigDict(dict(workdir='x', audio=('a',), steps=('mean',),\n"
        "                           codebooks=(dict(name='a', steps=('take 0:3',)),)))\n"
    )
    read = command_line.read([f"--config={path}"], "label", label.LabelConfig)
    assert read.steps == ("mean",) and read.codebooks == (CodebookConfig("a", 100, ("take 0:3",)),)
    arguments = [
        "--config.steps=mean,splice 9",
        "--config.codebooks={'name': 'b', 'num_clusters': 7}, {'name': 'c'}",
    ]
    read = command_line.read([f"--config={path}", *arguments], "label", label.LabelConfig)
    assert read.steps == ("mean", "splice 9")
    assert read.codebooks == (CodebookConfig("b", 7), CodebookConfig("c"))
    with pytest.raises(InputError, match=r"config.codebooks\[0\].clusters: no such key"):
        wrong = "--config.codebooks={'name': 'b', 'clusters': 7}"
        command_line.read([f"--config={path}", wrong], "label", label.LabelConfig)
