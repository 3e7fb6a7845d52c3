"""A run killed on eight devices goes on with four, on the same batches."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
from splits import TINY_BASE

from hubert_jax import command_line, train

REPOSITORY = pathlib.Path(__file__).parents[2]
STEPS, SAVED = 30, 13


def _arguments(workdir, audio, labels) -> list[str]:
    values = {
        "workdir": workdir,
        "audio": audio,
        "labels": labels,
        **{f"architecture.{name}": value for name, value in TINY_BASE["architecture"].items()},
        "head.codebook_sizes": 12,
        "head.projection_dim": 8,
        "loss.mask_group_rows": 4,
        "optimizer.name": "adam",
        "loop.steps": STEPS,
        "loop.log_every": 1,
        "loop.save_every": SAVED,
        "frames_per_step": 1024,
        "max_frames": 64,
    }
    given = [f"--config.{name}={value}" for name, value in values.items()]
    return ["--config=configs/small.py", *given]


def _start(arguments, devices: int) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "hubert_jax.train", *arguments],
        cwd=REPOSITORY,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _losses(workdir) -> dict[int, float]:
    lines = (workdir / "train/metrics.jsonl").read_text().splitlines()
    return {entry["step"]: entry["loss"] for entry in map(json.loads, lines)}


def test_killed_on_eight_devices_and_continued_on_four(speech_split, speech_labels, tmp_path):
    assert jax.device_count() == 8
    arguments = _arguments(tmp_path / "whole", speech_split, speech_labels)
    train.run(command_line.read(arguments, "train", train.TrainConfig))
    arguments = _arguments(tmp_path / "cut", speech_split, speech_labels)
    cut = _start(arguments, devices=8)
    log = tmp_path / "cut/train/metrics.jsonl"
    saved = tmp_path / "cut/train/checkpoints" / str(SAVED)
    deadline = time.monotonic() + 300
    while not (saved.exists() and log.exists() and len(log.read_text().splitlines()) > SAVED + 1):
        assert cut.poll() is None and time.monotonic() < deadline, cut.communicate()[0]
        time.sleep(0.05)
    cut.send_signal(signal.SIGKILL)
    cut.communicate()
    assert len(_losses(tmp_path / "cut")) < STEPS
    continued = _start(arguments, devices=4)
    output = continued.communicate()[0]
    assert continued.returncode == 0, output
    assert f"resumed from the checkpoint of step {SAVED}" in output and "4 cpu device(s)" in output
    ours, theirs = _losses(tmp_path / "cut"), _losses(tmp_path / "whole")
    assert list(ours) == list(theirs) == list(range(1, STEPS + 1))
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-5)
    fingerprints = {
        json.loads((tmp_path / name / "train/result.json").read_text())["fingerprint"]
        for name in ("whole", "cut")
    }
    assert len(fingerprints) == 1
