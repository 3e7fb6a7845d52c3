"""The analyse job on real speech: figures of evaluate, means, and what a restart keeps."""

import csv
import dataclasses
import xml.etree.ElementTree

import numpy as np
import pytest
from splits import TINY_LARGE, random_parameters

from hubert_jax import analyse, files
from hubert_jax.convert import formats
from hubert_jax.convert.network import Network
from hubert_jax.errors import InputError
from hubert_jax.model.architecture import Architecture
from hubert_jax.quality.abx import AbxConfig
from hubert_jax.quality.evaluation import AlignedSplit, SplitScorer
from hubert_jax.units import kmeans
from hubert_jax.units.clustering import KMeansConfig
from hubert_jax.units.fitting import Fitting

METRICS = ("phone_purity", "cluster_purity", "pnmi")


@pytest.fixture(scope="module")
def config(make_split, speech, cut_alignments, tmp_path_factory):
    directory, ids = tmp_path_factory.mktemp("prepare"), tuple(speech)
    return analyse.AnalyseConfig(
        str(directory),
        make_split(directory / "dev", ids[4:], "dev"),
        str(cut_alignments),
        make_split(directory / "train", ids[:4], "train"),
        num_clusters=(5, 12),
        hours=(0.002, 0.0),  # of 0.0043: the first two of four utterances
        trials=2,
        seed=3,
        kmeans=KMeansConfig(n_init=1, max_iter=5),
    )


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    architecture = Architecture(**TINY_LARGE["architecture"])
    where = f"orbax:{tmp_path_factory.mktemp('network')}/checkpoints"
    formats.write(where, Network(random_parameters(architecture), architecture))
    return where


@pytest.fixture(scope="module")
def finished(config):
    """Of a whole run, the result and the rows of its tables."""
    result = analyse.run(config)
    return result, *(table(config.workdir, name) for name in ("trials", "quality"))


def table(workdir, name):
    with open(f"{workdir}/analyse/{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_trials_of_mfcc_on_all_speech_are_the_evaluate_jobs(config, finished):
    split = AlignedSplit(config.audio, config.alignments)
    for seed in (3, 4):
        scorer = SplitScorer(split, 100, 0, seed, AbxConfig(), "", None)
        expected = scorer.score_mfcc(Fitting(config.fit_audio, 12, seed, 10_000, config.kmeans))
        wanted = {"clusters": "12", "seed": str(seed), "frames": str(expected["fitted_frames"])}
        (row,) = (row for row in finished[1] if row.items() >= wanted.items())
        for metric in METRICS:
            assert float(row[metric]) == pytest.approx(expected[metric], rel=1e-5)


def test_means_and_deviations_are_of_the_trials(finished):
    result, trials, quality = finished
    assert len(trials) == 8 and len(quality) == len(result["quality"]) == 4
    for mean in quality:
        rows = [row for row in trials if all(row[k] == mean[k] for k in ("clusters", "hours"))]
        assert len(rows) == 2 == int(mean["trials"])
        assert len({row["pnmi"] for row in rows}) == 2  # trials differ
        for metric in METRICS:
            values = [float(row[metric]) for row in rows]
            assert float(mean[metric]) == pytest.approx(np.mean(values), rel=1e-4)
            assert float(mean[f"{metric}_sd"]) == pytest.approx(np.std(values, ddof=1), rel=0.02)


def test_fewer_hours_are_drawn_anew_in_each_trial(finished):
    frames = {hours: {} for hours in {row["hours"] for row in finished[1]}}
    for row in finished[1]:
        frames[row["hours"]].setdefault(row["seed"], set()).add(row["frames"])
    fewer, every = (frames[hours] for hours in sorted(frames))
    assert all(len(of_seed) == 1 for of_seed in (*fewer.values(), *every.values()))
    assert fewer["3"] != fewer["4"] and every["3"] == every["4"]
    assert max(map(int, {*fewer["3"], *fewer["4"]})) < int(*every["3"])


@pytest.fixture
def fits(monkeypatch):
    """Clusters and seeds of what is fitted; the fourth fit is interrupted."""
    found, fit = [], kmeans.fit

    def counted(sample, num_clusters, seed, *rest):
        found.append((num_clusters, seed))
        if len(found) == 4:
            raise KeyboardInterrupt
        return fit(sample, num_clusters, seed, *rest)

    monkeypatch.setattr(kmeans, "fit", counted)
    return found


def test_finished_trials_are_kept(config, finished, fits, tmp_path):
    config = dataclasses.replace(config, workdir=str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        analyse.run(config)
    assert not (tmp_path / "analyse/result.json").exists()
    result = analyse.run(config)
    assert len(fits) == 4 + 5  # of eight, three were there
    assert result["quality"] == finished[0]["quality"]
    assert table(tmp_path, "trials") == finished[1]
    fits.clear()
    analyse.run(dataclasses.replace(config, num_clusters=(12,), trials=3))
    assert fits == [(12, 5)] * 2  # another trial, of two numbers of hours
    fits.clear()
    settings = dataclasses.replace(config.kmeans, max_iter=2)
    with pytest.raises(KeyboardInterrupt):
        analyse.run(dataclasses.replace(config, kmeans=settings))
    assert len(fits) == 4  # no other fit's trials


def test_layers_of_networks(config, network, tmp_path, monkeypatch):
    monkeypatch.setattr(analyse, "_MOST_BYTES", 1)  # a layer at a time
    config = dataclasses.replace(
        config, workdir=str(tmp_path), num_clusters=(5,), hours=(0.0,),
        checkpoints=(f"first={network}", f"second={network}"), layers=(0, 2),
    )  # fmt: skip
    alone = analyse.run(config)["quality"]
    named = [(row["feature"], row["layer"]) for row in alone]
    assert named == [("mfcc", None), *(("first", 0), ("first", 2), ("second", 0), ("second", 2))]
    for one, other in zip(alone[1:3], alone[3:], strict=True):
        assert one | {"feature": ""} == other | {"feature": ""}
    assert alone[1]["pnmi"] != alone[2]["pnmi"]
    drawing = (tmp_path / "analyse/by_layer.svg").read_text()
    assert xml.etree.ElementTree.fromstring(drawing).tag.endswith("svg")
    assert all(text in drawing for text in ("PNMI", "second, K = 5", "MFCC, K = 5", "--series-1:"))
    (tmp_path / "analyse/trials.json").unlink()
    monkeypatch.setattr(analyse, "_MOST_BYTES", 2**32)
    assert analyse.run(config)["quality"] == alone


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hours": (1.0,)}, r"config.hours=\(1.0,\): .* has 0.00434 hours; ask for fewer"),
        ({"hours": ()}, "config.hours: empty"),
        ({"hours": (-1.0,)}, "config.hours=.*: expected 0, for all, or more"),
        ({"trials": 0}, "config.trials=0"),
        ({"num_clusters": (5, 0)}, "config.num_clusters=0"),
        ({"num_clusters": (5_000,)}, "num_clusters=5000: found .* frames to fit on"),
        ({"seed": 2**32 - 1}, "config.seed=4294967296"),
        ({"frame_rate": 75}, "config.frame_rate=75"),
        ({"missing_alignments": 2.0}, "config.missing_alignments=2.0"),
        ({"layers": (1,)}, "config.layers=.*: found without config.checkpoints"),
        ({"checkpoints": ("hf:model",)}, "expected NAME=CHECKPOINT, such as it1=orbax:DIR"),
        ({"checkpoints": ("mfcc=hf:model",)}, "expected different ones, not mfcc"),
        ({"checkpoints": ("a=hf:x", "a=hf:y")}, "expected different ones"),
    ],
)
def test_what_cannot_be_analysed_is_refused(config, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        analyse.run(dataclasses.replace(config, workdir=str(tmp_path), **change))


def test_a_second_analysis_in_one_directory_is_refused(config):
    with files.locked(f"{config.workdir}/.analyse.lock", "analysis"):
        with pytest.raises(InputError, match="another analysis is running"):
            analyse.run(config)
