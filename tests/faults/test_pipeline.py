"""The whole way on a few utterances: killed anywhere it continues, done it is skipped."""

import json
import os
import pathlib
import signal
import subprocess
import sys

from hubert_jax import command_line, pipeline

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
        f"--config={config}",
        f"--config.workdir={workdir}",
        f"--config.stages.prepare.corpus={corpus}",
    ]


def _start(repository, corpus, workdir, config="tests/configs/tiny.py") -> subprocess.Popen:
    arguments = _arguments(corpus, workdir, config)
    return subprocess.Popen(
        [sys.executable, "-m", "hubert_jax.pipeline", *arguments],
        cwd=repository,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def _kill_after(process: subprocess.Popen, line: str) -> None:
    for printed in process.stdout:
        if line in printed:
            process.send_signal(signal.SIGKILL)
            break
    assert process.wait() == -signal.SIGKILL


def _results(workdir: pathlib.Path, stages) -> dict:
    """What the stages found, without what a clock decides and where they lie."""
    found = {}
    for stage in stages:
        result = json.loads((workdir / stage / "result.json").read_text())
        kept = {key: value for key, value in result.items() if key not in CLOCKS}
        found[stage] = json.dumps(kept).replace(str(workdir), "")
    return found


def _findings(workdir: pathlib.Path) -> dict:
    """report.json without what a clock decides."""
    report = json.loads((workdir / "report.json").read_text())
    return {key: value for key, value in report.items() if key not in ("seconds", "skipped")}


def test_killed_anywhere_it_ends_the_same_and_then_is_skipped(
    tmp_path, repository, short_corpus, capsys
):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for line in KILLED_AFTER:
        _kill_after(_start(repository, short_corpus, killed, config=BEGINNING), line)
    last = _start(repository, short_corpus, killed, config=BEGINNING)
    output, _ = last.communicate()
    assert last.returncode == 0, output

    uninterrupted = _start(repository, short_corpus, whole)
    output, _ = uninterrupted.communicate()
    assert uninterrupted.returncode == 0, output
    assert _results(killed, KILLED_STAGES) == _results(whole, KILLED_STAGES)
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
