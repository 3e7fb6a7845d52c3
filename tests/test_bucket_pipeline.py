"""The whole way with its corpus and its workdir in a bucket."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from test_pipeline import BEGINNING, CLOCKS, KILLED_STAGES, _copy_shortest, _kill_after

from hubert_jax import storage


@pytest.fixture
def corpus(tmp_path, minilibri) -> pathlib.Path:
    _copy_shortest(minilibri / "train-clean-5", tmp_path / "corpus" / "train", 10)
    _copy_shortest(minilibri / "dev-mini", tmp_path / "corpus" / "dev-mini", 3)
    return tmp_path / "corpus"


def _start(repository, folder, corpus, workdir) -> subprocess.Popen:
    """A pipeline that is started in a folder."""
    arguments = [f"--config.workdir={workdir}", f"--config.stages.prepare.corpus={corpus}"]
    command = [sys.executable, "-m", "hubert_jax.pipeline"]
    return subprocess.Popen(
        [*command, f"--config={repository / BEGINNING}", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(repository), "PYTHONUNBUFFERED": "1"},
    )


def _run(*places) -> str:
    process = _start(*places)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


def _results(workdir) -> dict:
    """What the stages found, without what a clock decides and where they lie."""
    found = {}
    for stage in KILLED_STAGES:
        result = json.loads((storage.path(workdir) / stage / "result.json").read_text())
        kept = {key: value for key, value in result.items() if key not in CLOCKS}
        found[stage] = json.dumps(kept).replace(str(workdir), "")
    return found


def test_a_pipeline_in_a_bucket_finds_what_it_finds_in_a_folder(
    tmp_path, repository, corpus, bucket, bucket_server
):
    for path in corpus.rglob("*"):
        if path.is_file():
            (bucket / "corpus" / path.relative_to(corpus).as_posix()).send(path)
    here = tmp_path / "here"
    here.mkdir()
    (here / "examples").symlink_to(repository / "examples")  # which the configuration names
    _run(repository, here, corpus, tmp_path / "run")
    _kill_after(_start(repository, here, bucket / "corpus", bucket / "run"), "step 2/6")
    assert (bucket / "run" / "it1" / ".train.lock").exists()
    bucket_server.failing = 0.04
    output = _run(repository, here, bucket / "corpus", bucket / "run")
    bucket_server.failing = 0.0
    assert "[prepare] skipped" in output
    ours, theirs = _results(bucket / "run"), _results(tmp_path / "run")
    for stage in KILLED_STAGES:
        assert ours[stage].replace(str(bucket / "corpus"), "") == theirs[stage].replace(
            str(corpus), ""
        )
    assert "<svg" in (bucket / "run" / "report.html").read_text()
    assert [path.name for path in here.iterdir()] == ["examples"]  # no folder called s3:

    bucket_server.requests.clear()
    output = _run(repository, here, bucket / "corpus", bucket / "run")
    assert all(f"[{stage}] skipped" in output for stage in KILLED_STAGES)
    assert bucket_server.requests["PUT"] < 10 and bucket_server.requests.total() < 1000
