"""Two processes, one a host, of which one or both come to harm: all end, and the run goes on."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import splits

from hubert_jax.data import records
from hubert_jax.training import checkpoint
from hubert_jax.units.kmeans import Codebook

STEPS, SAVED_EVERY = 36, 3
LIMIT_SECONDS = 60  # from the fault to the end of all processes

# Trains; FAULT happens where the fifth batch is read, once a checkpoint of this process is there.
PROGRAM = """
import os, pathlib, resource, signal, sys, time
from hubert_jax import job, train
from hubert_jax.data import batches
from hubert_jax.errors import InputError
from hubert_jax.training import fit

fault, checkpoints, happened = sys.argv[1], *map(pathlib.Path, sys.argv[2:4])
del sys.argv[1:4]

def saved():
    return {path.name for path in checkpoints.glob("*") if path.name.isdecimal()}

def happens():
    happened.write_text(str(time.time()))
    if fault.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, fault))
    elif fault == "memory":
        raise MemoryError("no room for a batch")
    elif fault == "disk":  # of this process's files no further byte is written
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))

read, compile_steps, before = batches.pretraining_batches, fit.compile_steps, saved()

def disturbed(*arguments, **named):
    for number, batch in enumerate(read(*arguments, **named)):
        if number == 5:
            deadline = time.monotonic() + 60
            while saved() <= before and time.monotonic() < deadline:
                time.sleep(0.02)
            happens()
        yield batch

def refused(*_):
    happens()
    raise InputError("/data/shard-3: cannot be read")

batches.pretraining_batches = disturbed
if fault == "start":
    fit.compile_steps = refused
job.main("train", train.TrainConfig, train.run)
"""
LOST = (
    "lost: process {} has given no sign of life for {} s: it was killed or stopped, or is cut off; "
    "the same command goes on from what is saved\n"
)
PREEMPTED = (
    r"preempted: (process \d: )?SIGTERM; step \d+ is saved, the same command goes on with it\n"
)
UNWRITTEN = (
    r"error: process 1: /.*/train/checkpoints: a checkpoint cannot be written \(File too large\); "
    "make room .*\n"
)
# What happens to each of both; the status and, as a regular expression, the standard error of each
# that ends by itself.
FAULTS = [
    (
        ("none", "start"),
        (1, "error: process 1: /data/shard-3: cannot be read\n"),
        (1, "error: /data/shard-3: cannot be read\n"),
    ),
    (("none", "SIGKILL"), (70, LOST.format(1, 10)), (-signal.SIGKILL, "")),
    # The first process keeps the store, without which JAX ends the others.
    (
        ("SIGKILL", "none"),
        (-signal.SIGKILL, ""),
        (-signal.SIGABRT, "(?s).*JAX distributed service .* another task died.*"),
    ),
    (("none", "SIGSTOP"), (70, LOST.format(1, 40))),
    (("SIGSTOP", "none"), (70, LOST.format(0, 40))),
    (
        ("none", "memory"),
        (70, r"crashed: process 1: MemoryError\('no room for a batch'\)\n"),
        (70, "(?s)Traceback .*\nMemoryError: no room for a batch\n"),
    ),
    (("none", "disk"), (1, UNWRITTEN), (1, UNWRITTEN)),
    (("none", "SIGTERM"), (75, PREEMPTED), (75, PREEMPTED)),
    (("SIGTERM", "SIGTERM"), (75, PREEMPTED), (75, PREEMPTED)),
]


@pytest.fixture(scope="module")
def values(speech_split, speech_labels, tmp_path_factory) -> dict:
    """A training on shards of about two utterances, so that both processes have some."""
    root = tmp_path_factory.mktemp("processes")
    (root / "audio").mkdir()
    splits.write_split(root / "audio", "speech", list(records.read_audio(speech_split)), [], 0.3)
    codebook = Codebook.load(speech_labels.parent)
    units = records.read_labels(speech_labels)
    splits.write_labels(root / "audio", root / "labels", units, codebook, 100)
    return dict(
        audio=str(root / "audio"),
        labels=(str(root / "labels"),),
        loop=dict(steps=STEPS, log_every=1, save_every=SAVED_EVERY, keep=2),
        **splits.TINY_LARGE,
        frames_per_step=256,
        max_frames=32,
        loss=dict(mask_group_rows=4),
    )


@pytest.fixture(scope="module")
def train_both(repository, values, tmp_path_factory):
    """A function that trains in two processes, with a fault in each or none.

    It returns the status, the standard output and the standard error of each process that ends by
    itself, all of them within LIMIT_SECONDS of the fault, if any.
    """

    def run(directory, faults=("none", "none")):
        scratch = tmp_path_factory.mktemp("started")
        file = scratch / "together.py"
        file.write_text(f"def get_config(part):\n    return {values!r}\n")
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            coordinator = f"127.0.0.1:{found.getsockname()[1]}"
        started = [
            subprocess.Popen(
                [
                    *(sys.executable, "-c", PROGRAM),
                    *(fault, str(directory / "train/checkpoints"), str(scratch / f"at-{index}")),
                    *(f"--config={file}", f"--config.workdir={directory}"),
                    f"--config.distributed.coordinator={coordinator}",
                    *("--config.distributed.count=2", f"--config.distributed.index={index}"),
                ],
                cwd=repository,
                env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for index, fault in enumerate(faults)
        ]
        done = []
        try:
            for process, fault in zip(started, faults, strict=True):
                if fault == "SIGSTOP":
                    continue
                output = process.communicate(timeout=300)
                done.append((process.returncode, *output))
        finally:
            for process in started:
                process.kill()
                process.wait()
        happened = [float(path.read_text()) for path in scratch.glob("at-*")]
        if happened:
            assert time.time() - min(happened) < LIMIT_SECONDS
        return done

    return run


def _losses(directory) -> dict[int, float]:
    lines = map(json.loads, (directory / "train/metrics.jsonl").open())
    return {line["step"]: line["loss"] for line in lines}


def test_all_end_and_the_run_goes_on_to_the_same_last_bit(train_both, tmp_path):
    whole, harmed = tmp_path / "whole", tmp_path / "harmed"
    done = train_both(whole)
    assert [status for status, *_ in done] == [0, 0], done
    resumed_from = set()
    for faults, *expected in FAULTS:
        done = train_both(harmed, faults)
        for (status, printed, error), (wanted, line) in zip(done, expected, strict=True):
            assert status == wanted and re.fullmatch(line, error), (faults, status, printed, error)
            resumed_from |= set(re.findall(r"resumed from the checkpoint of step (\d+)", printed))
    done = train_both(harmed)
    assert [status for status, *_ in done] == [0, 0], done
    assert len(resumed_from) >= 4
    ours, theirs = _losses(harmed), _losses(whole)
    assert len(theirs) == STEPS and ours == theirs
    ours, theirs = (
        checkpoint.restore_parameters(each / "train/checkpoints")[0] for each in (harmed, whole)
    )
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
