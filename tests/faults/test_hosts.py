"""What two processes, one a host, make of a pipeline and of jobs is what one process makes."""

import importlib.util
import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest
from gloo import without_greetings
from splits import TINY_LARGE, copy_shortest, random_parameters

from hubert_jax import config as config_lib
from hubert_jax import decode, label, pipeline
from hubert_jax.convert import formats
from hubert_jax.convert.network import Network
from hubert_jax.model.architecture import Architecture
from hubert_jax.vocabulary import LIBRISPEECH

pytestmark = pytest.mark.usefixtures("two_devices")

# Runs a pipeline twice, then labels a split whose second shard, the second process's, is damaged.
PROGRAM = """
import json, pathlib, shutil, sys
from hubert_jax import config, distributed, job, label, pipeline

def damage():
    shutil.copytree(f"{values['workdir']}/prepare/train", damaged["audio"][0])
    shard = sorted(pathlib.Path(damaged["audio"][0]).glob("*.tfrecord"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])

def work():
    pipeline.run(config.build(pipeline.PipelineConfig, values))
    pipeline.run(config.build(pipeline.PipelineConfig, values))
    distributed.from_first(damage)
    label.run(config.build(label.LabelConfig, damaged))

values, damaged = json.loads(sys.argv[1])
job.guarded(work)
"""
FIT = dict(num_clusters=12, fit_max_frames=1_000, kmeans=dict(n_init=1))
LAYER = dict(feature="layer", layer=1, **FIT)
WHITE = dict(name="white", num_clusters=9, steps=("splice 3", "whiten 20"))
SEVERAL = dict(FIT, feature="cepstra", codebooks=(dict(name="plain", num_clusters=12), WHITE))

TRAINING = dict(
    loop=dict(steps=1),
    head=dict(codebook_sizes=(12,)),
    frames_per_step=512,
    max_frames=32,
    loss=dict(mask_group_rows=1),
)
WORDS = dict(
    loop=dict(steps=2),
    architecture=dict(dim=16, num_layers=1, ffn_dim=32, num_heads=2, cutoffs=(20,)),
    vocabulary_size=50,
    tokens_per_step=512,
    padded_tokens=(32,),
)
SEARCHED = dict(method="letters", processes=1, search=dict(beam=5), weights=dict(trials=2))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, minilibri) -> pathlib.Path:
    """Twenty short utterances: four audio shards."""
    root = tmp_path_factory.mktemp("corpus")
    copy_shortest(minilibri / "train-clean-5", root / "train", 20)
    return root


@pytest.fixture(scope="module")
def stages(corpus, minilibri, programs, tmp_path_factory) -> dict:
    """Stages of every kind but trainings, which other tests and rehearsals run in two processes."""
    architecture = Architecture(**dict(TINY_LARGE["architecture"], num_layers=1))
    params = random_parameters(architecture, vocabulary_size=LIBRISPEECH.size)
    network = f"orbax:{tmp_path_factory.mktemp('network')}/checkpoints"
    formats.write(network, Network(params, architecture, vocabulary=LIBRISPEECH))
    audio, alignments = "prepare:train", str(minilibri / "alignments/train-clean-5.phones.txt")
    inputs = dict(audio=audio, fit_audio=audio)
    decoding = dict(inputs=dict(audio=audio), checkpoint=network)
    searched = {}
    if importlib.util.find_spec("flashlight") and importlib.util.find_spec("optuna"):
        hypotheses = dict(audio=audio, hypotheses="searched/decode")
        searched["searched"] = dict(decode=decoding | SEARCHED)
        searched["pseudo_label"] = dict(inputs=hypotheses, threshold=0.0)
        searched["lm"] = dict(inputs=dict(audio=(audio,), measured_on=audio), order=2)
        searched["lm"]["kenlm"] = programs
    return dict(
        prepare=dict(corpus=str(corpus), splits=("train",), shard_megabytes=1),
        label=dict(inputs=dict(audio=(audio,)), **FIT),
        several=dict(label=dict(SEVERAL, inputs=dict(audio=(audio,)))),
        it2=dict(label=dict(LAYER, inputs=dict(audio=(audio,)), checkpoint=network)),
        decode=decoding,
        **searched,
        check=dict(inputs=dict(audio=audio, labels=("label:train",)), **TRAINING),
        train_lm=dict(inputs=dict(audio=(audio,)), **WORDS),
        evaluate=dict(inputs=inputs | dict(labels=("label:train",)), alignments=alignments, **FIT),
        convert=dict(source=network, target="orbax:"),
        export=dict(inputs=dict(checkpoint="convert")),
    )


@pytest.fixture(scope="module")
def together(repository, stages, tmp_path_factory):
    """The working directory of two processes, their status and what they wrote.

    Each has as many devices as this one: its share of a batch decides the last bits of a feature.
    """
    root = tmp_path_factory.mktemp("together")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{found.getsockname()[1]}"
    damaged = dict(workdir=str(root / "damaged"), audio=(str(root / "audio"),), **FIT)
    started = []
    for index in range(2):
        values = dict(
            workdir=str(root / "run"),
            stages=stages,
            distributed=dict(coordinator=coordinator, count=2, index=index),
        )
        with (root / f"{index}.txt").open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, json.dumps([values, damaged])],
                cwd=repository,
                env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        started.append(process)
    try:
        statuses = [process.wait(timeout=200) for process in started]
    finally:
        for process in started:
            process.kill()
    return root / "run", statuses, [(root / f"{index}.txt").read_text() for index in range(2)]


def _content(directory) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.glob("*") if path.is_file()}


def test_the_first_process_decides_and_a_second_run_skips(together, stages, capsys):
    run, _, (first, second) = together
    names = {"prepare", "label", "several/label", "it2/label", "decode", "evaluate"}
    names |= {"check", "train_lm", "convert", "export"}
    if "searched" in stages:
        names |= {"searched/decode", "pseudo_label", "lm"}
    for stage in names:
        assert f"[{stage}] runs\n" in first and f"[{stage}] skipped" in first, first + second
    # The collectives' library greets; nothing of ours is said twice.
    assert not without_greetings(second.partition("error:")[0]), second
    # Nor has one process anything left to do.
    report = pipeline.run(pipeline.PipelineConfig(str(run), stages))
    assert set(report["skipped"]) == names


@pytest.mark.parametrize(
    ("where", "values"),
    [("label", FIT), ("it2/label", LAYER)],
)
def test_labels_are_those_of_one_process(together, stages, tmp_path, where, values):
    run, _, _ = together
    checkpoint = stages["decode"]["checkpoint"] if "layer" in values else ""
    values = dict(values, audio=(f"{run}/prepare/train",), checkpoint=checkpoint)
    label.run(config_lib.build(label.LabelConfig, dict(values, workdir=str(tmp_path))))
    ours, alone = run / where, tmp_path / "label"
    labels, expected = _content(ours / "train"), _content(alone / "train")
    assert sum(name.endswith(".tfrecord") for name in labels) >= 3
    for name in ("codebook.npz", "codebook.json"):
        assert (ours / name).read_bytes() == (alone / name).read_bytes()
    assert labels == expected
    assert {path.name for path in (run / where).iterdir()} == {
        *("codebook.npz", "codebook.json", "result.json", "stage.json", "train")
    }


def test_several_codebooks_are_those_of_one_process(together, tmp_path):
    run, _, _ = together
    values = dict(SEVERAL, audio=(f"{run}/prepare/train",), workdir=str(tmp_path))
    label.run(config_lib.build(label.LabelConfig, values))
    for each in SEVERAL["codebooks"]:
        ours, alone = (root / "label" / each["name"] for root in (run / "several", tmp_path))
        assert _content(ours) == _content(alone) and len(_content(ours)) == 2
        assert _content(ours / "train") == _content(alone / "train")
        assert {path.name for path in ours.iterdir()} - {"train"} == set(_content(ours))


def test_decoding_is_that_of_one_process(together, stages, tmp_path):
    run, _, _ = together
    values = dict(
        workdir=str(tmp_path),
        audio=f"{run}/prepare/train",
        checkpoint=stages["decode"]["checkpoint"],
    )
    alone = decode.run(config_lib.build(decode.DecodeConfig, values))
    result = json.loads((run / "decode/result.json").read_text())
    hypotheses = (run / "decode/hypotheses.jsonl").read_bytes()
    assert hypotheses == (tmp_path / "decode/hypotheses.jsonl").read_bytes()
    for found in (alone, result):
        for key in ("config", "hypotheses", "emissions", "seconds", "decode_seconds", "versions"):
            del found[key]
    assert result == json.loads(json.dumps(alone))


def test_the_first_process_searches_weights(together, stages):
    if "searched" not in stages:
        pytest.skip("no wheel of flashlight-text for this Python")
    run, _, _ = together
    result = json.loads((run / "searched/decode/result.json").read_text())
    alone = json.loads((run / "decode/result.json").read_text())
    assert len(result["trials"]) == SEARCHED["weights"]["trials"]
    assert result["utterances"] == alone["utterances"] and result["wer"]["greedy"]
    result = json.loads((run / "lm/result.json").read_text())
    assert result["sentences"] == result["measured"]["sentences"] == alone["utterances"]
    result = json.loads((run / "pseudo_label/result.json").read_text())
    assert result["splits"]["train"]["utterances"] == alone["utterances"]


def test_a_damaged_shard_ends_both(together):
    run, statuses, (first, second) = together
    assert statuses == [1, 1], first + second
    assert first.splitlines()[-1] == second.splitlines()[-1].replace("error:", "error: process 1:")
    assert "damaged" in second.splitlines()[-1]
    assert not (run.parent / "damaged/label/result.json").exists()
