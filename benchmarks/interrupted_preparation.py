"""A preparation killed at random moments and run again gives the shards of one that was not.

    python -m benchmarks.interrupted_preparation [--kills=10] [--workers=2] [--seed=0]

Prepares the embedded corpus (441 files) once undisturbed. Then as often as `--kills` says: starts
afresh, kills the job (SIGKILL) at a moment drawn from the time that the undisturbed one worked (its
imports left out), runs it again to its end and compares the digests. A job that was faster than its
killer is not counted and another moment drawn. The ratio is the share of equal digests.
"""

import argparse
import json
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

from hubert_jax import files

ROOT = pathlib.Path(__file__).parents[1]
SPLITS = ("train-clean-5", "train-clean-100")


def _command(workdir: pathlib.Path, workers: int) -> list[str]:
    return [
        *(sys.executable, "-m", "hubert_jax.prepare", "--config=configs/small.py"),
        *(f"--config.workdir={workdir}", f"--config.splits={','.join(SPLITS)}"),
        f"--config.workers={workers}",
    ]


def _run(workdir: pathlib.Path, workers: int) -> float:
    """Runs the job; the seconds that it worked, from its first line on."""
    command = _command(workdir, workers)
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        started = time.monotonic()
        process.stdout.read()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return time.monotonic() - started


def _digests(workdir: pathlib.Path) -> dict[str, str]:
    splits = files.read_json(workdir / "prepare" / "result.json", "result")["splits"]
    return {split: values["digest"] for split, values in splits.items()}


def _kill(workdir: pathlib.Path, workers: int, after: float) -> str | None:
    """Starts the job and kills it; tells how far it was, None if it was at its end."""
    with subprocess.Popen(
        _command(workdir, workers), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        process.stdout.readline()
        time.sleep(after)
        process.send_signal(signal.SIGKILL)
    output = workdir / "prepare"
    if (output / "result.json").exists():
        return None
    done = sum((output / split).is_dir() for split in SPLITS)
    parts = len(list(output.glob(".*.parts/*.json")))
    return f"{done} splits and {parts} parts of the next were done"


def main() -> None:
    """Prints a line for every kill and the share of equal digests."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draws = random.Random(arguments.seed)
    equal = 0
    with tempfile.TemporaryDirectory() as folder:
        whole = pathlib.Path(folder, "whole")
        seconds = _run(whole, arguments.workers)
        expected = _digests(whole)
        print(f"undisturbed: {seconds:.1f} s, {json.dumps(expected)}")
        number = 0
        while number < arguments.kills:
            after = draws.uniform(0, seconds)
            workdir = pathlib.Path(folder, f"killed-{number}-{after}")
            state = _kill(workdir, arguments.workers, after)
            if state is None:
                continue
            number += 1
            again = _run(workdir, arguments.workers)
            same = _digests(workdir) == expected
            equal += same
            print(
                f"killed after {after:5.2f} s: {state}; again {again:.1f} s, digests "
                f"{'equal' if same else 'DIFFER'}",
                flush=True,
            )
    ratio = equal / arguments.kills
    figures = {"ratio": ratio, "low": ratio, "high": ratio, "goal": 1.0, "met": ratio == 1.0}
    print(json.dumps({"benchmark": "interrupted_preparation", **figures}))


if __name__ == "__main__":
    main()
