"""Ten minutes of training with a hundred saves: what grows?

    python -m benchmarks.long_run [--minutes=10] [--saves=100] [--table=FILE.csv]

`train` runs as a process of its own: the demonstration's network on the embedded development
speech, in crops of two lengths. A short run before it tells how long a step takes, so that as many
saves as asked for fit into the minutes. At every progress line, a few in each interval of saves
and not in step with them, /proc tells what the process has: resident memory, threads, open files,
seconds of CPU. Beside them are counted seconds a step and bytes of checkpoints and of logs.

A line is fitted to the second half of each by least squares. Its change over the whole run, beside
the mean of that half, is the ratio of the JSON line, give or take two standard errors; a tenth
counts as flat. Logs are meant to grow; what a step adds to them is printed.
"""

import argparse
import csv
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import numpy as np

GOAL = 0.1
SEED = 1337
CALIBRATION_STEPS = 60
LINES_PER_SAVE = 2.5  # not a whole number: samples lie at all distances from saves
CORPUS = pathlib.Path(__file__).parents[1] / "examples" / "minilibri"
# Names and units of what is sampled, and which of these have to be flat.
COLUMNS = {
    "resident memory": "MiB",
    "threads": "",
    "open files": "",
    "seconds a step": "s",
    "CPU seconds a step": "s",
    "checkpoints on disk": "MB",
    "logs on disk": "kB",
}
FLAT = [name for name in COLUMNS if name != "logs on disk"]


def job(name: str, workdir: str, *overrides: str) -> list[str]:
    """The command of a job with the demonstration's configuration."""
    command = [sys.executable, "-u", "-m", f"hubert_jax.{name}", "--config=configs/small.py"]
    return [*command, f"--config.workdir={workdir}", *(f"--config.{each}" for each in overrides)]


def training(workdir: str, data: str, steps: int, log_every: int, save_every: int) -> list[str]:
    """The command of the training that is watched."""
    return job(
        "train",
        workdir,
        f"audio={data}/prepare/speech",
        f"labels={data}/label/speech",
        f"seed={SEED}",
        "max_frames=384",
        "loss.mask_group_rows=1",
        f"loop.steps={steps}",
        f"loop.log_every={log_every}",
        f"loop.save_every={save_every}",
    )


def progress(command: list[str], compiled: str) -> Iterator[tuple[int, int, float]]:
    """(process, step, time) at every progress line of a training; raises where it fails."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": compiled}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, env=environment, cwd=CORPUS.parents[1], **pipes) as process:
        for line in process.stdout:
            if line.startswith("step "):
                yield process.pid, int(line.split()[1].partition("/")[0]), time.monotonic()
            elif "to go, by" not in line:
                print(f"  {line}", end="", flush=True)
    if process.returncode:
        raise SystemExit(f"the training ended with status {process.returncode}")


def sample(pid: int, directory: pathlib.Path) -> dict[str, float]:
    """What a process has now, and what its training has on disk."""
    status = dict(
        line.split(":", 1) for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    # Fields 14 and 15 of proc(5); the second, in parentheses, may have spaces.
    user, system = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return {
        "resident memory": int(status["VmRSS"].split()[0]) / 1024,
        "threads": int(status["Threads"]),
        "open files": len(os.listdir(f"/proc/{pid}/fd")),
        "cpu": (int(user) + int(system)) / os.sysconf("SC_CLK_TCK"),
        "checkpoints on disk": _size(directory / "checkpoints") / 1e6,
        "logs on disk": (_size(directory / "tensorboard") + _size(directory / "metrics.jsonl"))
        / 1e3,
    }


def _size(path: pathlib.Path) -> int:
    """Bytes of a file or of all below a folder, some of which may vanish meanwhile."""
    total = 0
    for each in [path, *path.rglob("*")]:
        try:
            total += each.stat().st_size if each.is_file() else 0
        except FileNotFoundError:
            pass
    return total


def watch(command: list[str], workdir: str, compiled: str) -> list[dict[str, float]]:
    """Samples at progress lines, but for the first, which has no interval before it."""
    samples: list[dict[str, float]] = []
    before: dict[str, float] = {}
    for pid, step, now in progress(command, compiled):
        found = sample(pid, pathlib.Path(workdir, "train")) | {"step": step, "now": now}
        found["began"] = before.get("began", now)
        if before:
            steps = step - before["step"]
            found["seconds"] = now - found["began"]
            found["seconds a step"] = (now - before["now"]) / steps
            found["CPU seconds a step"] = (found["cpu"] - before["cpu"]) / steps
            samples.append(found)
        before = found
    return samples


def fitted(times: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Slope of a line through `values` by least squares, and its standard error."""
    centred = times - times.mean()
    slope = float(centred @ values / (centred @ centred))
    rest = values - values.mean() - slope * centred
    return slope, float(np.sqrt(rest @ rest / (len(values) - 2) / (centred @ centred)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="of training, about")
    parser.add_argument("--saves", type=int, default=100, help="of checkpoints")
    parser.add_argument("--table", help="a CSV file for the samples")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        data, compiled = f"{temporary}/data", f"{temporary}/compiled"
        for command in (
            job("prepare", data, f"corpus={CORPUS}", "splits=speech=dev-mini"),
            job("label", data, f"audio={data}/prepare/speech"),
        ):
            subprocess.run(command, check=True, cwd=CORPUS.parents[1], stdout=subprocess.DEVNULL)
        trial = training(f"{temporary}/trial", data, CALIBRATION_STEPS, 20, CALIBRATION_STEPS)
        times = [now for _, _, now in progress(trial, compiled)]
        each = (times[-1] - times[0]) / (CALIBRATION_STEPS - 20)
        save_every = max(3, round(60 * arguments.minutes / arguments.saves / each))
        log_every = max(1, round(save_every / LINES_PER_SAVE))
        steps = save_every * arguments.saves
        print(f"{steps} steps, {each:.2f} s each before: saved every {save_every}", flush=True)
        workdir = f"{temporary}/run"
        samples = watch(training(workdir, data, steps, log_every, save_every), workdir, compiled)
    if arguments.table:
        with open(arguments.table, "w", newline="") as file:
            names = ["seconds", "step", *COLUMNS]
            table = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
            table.writeheader()
            rounded = ({name: round(row[name], 4) for name in names} for row in samples)
            table.writerows(rounded)
    _report(samples, arguments.saves, os.cpu_count())


def _report(samples: list[dict[str, float]], saves: int, cores: int | None) -> None:
    times = np.array([row["seconds"] for row in samples])
    second = times > times[-1] / 2
    print(f"{times[-1] / 60:.1f} minutes, {saves} saves, {len(samples)} samples, {cores} cores")
    print(f"second half: {second.sum()} samples; change over the whole run by the line's slope")
    print(f"{'':24}{'median':>10}{'highest':>10}{'change':>10}{'+-':>8}{'of mean':>9}{'+-':>8}")
    lines = []
    for name, unit in COLUMNS.items():
        values = np.array([row[name] for row in samples], float)[second]
        slope, error = fitted(times[second], values)
        change, spread, mean = slope * times[-1], 2 * error * times[-1], values.mean()
        ratio, width = change / mean, spread / mean
        flat = bool(abs(ratio) <= GOAL)
        verdict = ""
        if name in FLAT:
            verdict = "flat" if flat else "not flat"
            if (abs(ratio) + width <= GOAL) != flat:
                verdict += ", within its errors"
            summary = {"benchmark": f"long_run: {name}", "ratio": round(ratio, 4)}
            summary |= {"low": round(ratio - width, 4), "high": round(ratio + width, 4)}
            lines.append(summary | {"goal": GOAL, "met": flat})
        print(
            f"{f'{name} ({unit})' if unit else name:24}{np.median(values):10.3f}"
            f"{values.max():10.3f}{change:10.3f}{spread:8.3f}{ratio:9.1%}{width:8.1%}  {verdict}"
        )
    added = (samples[-1]["logs on disk"] - samples[0]["logs on disk"]) / (len(samples) - 1)
    print(f"logs: {added:.2f} kB a progress line")
    for line in lines:
        print(json.dumps(line))


if __name__ == "__main__":
    main()
