"""Two processes, one a host, of which one or both come to harm: all end, and the run goes on."""

import json
import re
import signal
import time

import jax
import numpy as np

from hubert_jax.training import checkpoint

STEPS, SAVED_EVERY = 75, 3  # more than all faults leave time for
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
    # At once where the other exchanges something with it, later where it waits for a file of it.
    (("none", "SIGKILL"), (70, LOST.format(1, "(10|40)")), (-signal.SIGKILL, "")),
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
    # Of its other writes tensorstore may say that nobody waits for them any longer.
    (("none", "disk"), (1, UNWRITTEN), (1, f"(?s)(Traceback .*)?{UNWRITTEN}")),
    (("none", "SIGTERM"), (75, PREEMPTED), (75, PREEMPTED)),
    (("SIGTERM", "SIGTERM"), (75, PREEMPTED), (75, PREEMPTED)),
]


def _losses(directory) -> dict[int, float]:
    lines = map(json.loads, (directory / "train/metrics.jsonl").open())
    return {line["step"]: line["loss"] for line in lines}


def test_all_end_and_the_run_goes_on_to_the_same_last_bit(together, values, tmp_path):
    values = dict(values, loop=dict(steps=STEPS, log_every=1, save_every=SAVED_EVERY))
    whole, harmed = tmp_path / "whole", tmp_path / "harmed"

    def train(workdir, faults=("none", "none")):
        checkpoints = str(workdir / "train/checkpoints")
        happened = [tmp_path / f"happened-{index}" for index in range(2)]
        stopped = faults.index("SIGSTOP") if "SIGSTOP" in faults else None
        programs = [
            ("-c", PROGRAM, fault, checkpoints, str(path))
            for fault, path in zip(faults, happened, strict=True)
        ]
        done = together(workdir, values, programs, stopped=stopped)
        if times := [float(path.read_text()) for path in happened if path.exists()]:
            assert time.time() - min(times) < LIMIT_SECONDS
        for path in happened:
            path.unlink(missing_ok=True)
        return done

    assert [process.returncode for process in train(whole)] == [0, 0]
    resumed_from = set()
    for faults, *expected in FAULTS:
        for process, (status, line) in zip(train(harmed, faults), expected, strict=True):
            assert process.returncode == status, (faults, process)
            assert re.fullmatch(line, process.stderr), (faults, process)
            resumed_from |= set(re.findall(r"resumed from .* step (\d+)", process.stdout))
    assert [process.returncode for process in train(harmed)] == [0, 0]
    assert len(resumed_from) >= 4
    ours, theirs = _losses(harmed), _losses(whole)
    assert len(theirs) == STEPS and ours == theirs
    ours, theirs = (
        checkpoint.restore_parameters(each / "train/checkpoints")[0] for each in (harmed, whole)
    )
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
