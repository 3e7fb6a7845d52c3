"""The whole way on a few utterances: killed anywhere it continues, done it is skipped."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from hubert_jax import command_line, pipeline

REPOSITORY = pathlib.Path(__file__).parents[2]
# Lines after which fine-tuning and pre-training have begun to work, in the order of the stages.
KILLED_AFTER = ("step 2/4", "step 2/6")
BEGINNING = "tests/configs/tiny_beginning.py"  # of the whole way, what is killed
KILLED_STAGES = ("prepare", "it1/label", "it1/train", "scratch/finetune", "scratch/decode")
CLOCKS = ("seconds", "decode_seconds", "data_wait_fraction")
STAGES = {
    "prepare",
    *(f"{name}/{job}" for name in ("it1", "it2") for job in ("label", "train", "evaluate")),
    *(f"longer/{job}" for job in ("train", "evaluate")),
    *(f"{name}/{job}" for name in ("pretrained", "scratch") for job in ("finetune", "decode")),
    "it2/export",
    "pretrained/export",
}


def _arguments(corpus, workdir, config="tests/configs/tiny.py") -> list[str]:
    return [
        f"--config={REPOSITORY / config}",
        f"--config.workdir={workdir}",
        f"--config.stages.prepare.corpus={corpus}",
    ]


def _start(corpus, workdir, config="tests/configs/tiny.py", here=REPOSITORY) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "hubert_jax.pipeline", *_arguments(corpus, workdir, config)],
        cwd=here,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"},
    )


def _finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


def _kill_after(process: subprocess.Popen, line: str) -> None:
    for printed in process.stdout:
        if line in printed:
            process.send_signal(signal.SIGKILL)
            break
    assert process.wait() == -signal.SIGKILL


def _results(workdir: pathlib.Path, corpus: pathlib.Path, stages) -> dict:
    """What the stages found, without what a clock decides and where they and the corpus lie."""
    found = {}
    for stage in stages:
        result = json.loads((workdir / stage / "result.json").read_text())
        kept = {key: value for key, value in result.items() if key not in CLOCKS}
        found[stage] = json.dumps(kept).replace(str(corpus), "CORPUS").replace(str(workdir), "")
    return found


def _findings(workdir: pathlib.Path) -> dict:
    """report.json without what a clock decides."""
    report = json.loads((workdir / "report.json").read_text())
    return {key: value for key, value in report.items() if key not in ("seconds", "skipped")}


@pytest.fixture(scope="module")
def whole(short_corpus, tmp_path_factory) -> pathlib.Path:
    """The workdir of a pipeline that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("pipeline") / "whole"
    _finish(_start(short_corpus, workdir))
    return workdir


def test_in_a_bucket_killed_and_with_failing_requests_it_ends_the_same(
    tmp_path, short_corpus, whole, bucket, bucket_server
):
    (tmp_path / "examples").symlink_to(REPOSITORY / "examples")  # which the configuration names
    for path in short_corpus.rglob("*"):
        if path.is_file():
            (bucket / "corpus" / path.relative_to(short_corpus).as_posix()).send(path)
    places = bucket / "corpus", bucket / "run", BEGINNING, tmp_path

    _kill_after(_start(*places), "step 2/6")
    assert (bucket / "run" / "it1" / ".train.lock").exists()
    bucket_server.failing = 0.04
    output = _finish(_start(*places))
    bucket_server.failing = 0.0
    assert "[prepare] skipped" in output
    ours = _results(bucket / "run", bucket / "corpus", KILLED_STAGES)
    assert ours == _results(whole, short_corpus, KILLED_STAGES)
    assert "<svg" in (bucket / "run" / "report.html").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["examples"]  # no folder called s3:

    bucket_server.requests.clear()
    output = _finish(_start(*places))
    assert all(f"[{stage}] skipped" in output for stage in KILLED_STAGES)
    assert bucket_server.requests["PUT"] < 10 and bucket_server.requests.total() < 1000


def test_killed_anywhere_it_ends_the_same_and_then_is_skipped(
    tmp_path, short_corpus, whole, capsys
):
    killed = tmp_path / "killed"
    for line in KILLED_AFTER:
        _kill_after(_start(short_corpus, killed, config=BEGINNING), line)
    _finish(_start(short_corpus, killed, config=BEGINNING))
    ours = _results(killed, short_corpus, KILLED_STAGES)
    assert ours == _results(whole, short_corpus, KILLED_STAGES)
    seconds = json.loads((whole / "report.json").read_text())["seconds"]
    assert set(seconds) == STAGES and next(iter(seconds)) == "prepare"
    assert "<svg" in (whole / "report.html").read_text()

    # Elsewhere, too.
    findings = _findings(whole)
    moved = whole.rename(tmp_path / "moved")
    capsys.readouterr()
    arguments = _arguments(short_corpus, moved)
    report = pipeline.run(command_line.read(arguments, "pipeline", pipeline.PipelineConfig))
    assert report["skipped"] == list(seconds)
    output = capsys.readouterr().out
    assert all(f"[{stage}] skipped" in output for stage in STAGES)
    assert _findings(moved) == findings
