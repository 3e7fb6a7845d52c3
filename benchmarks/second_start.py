"""From a command to the end of step 1: without and with programs that an earlier start compiled.

    python -m benchmarks.second_start [--pairs=3]

`train` as a process of its own, BASE on the embedded development speech, 15.36 s a step in crops of
all the recipe's lengths that this speech has, and again one row of 2.56 s a step, of one length;
JAX_COMPILATION_CACHE_DIR set. Of each pair the first start finds that folder empty, the second one
finds what the first has left there. Time counts from the start of the process to the progress line
of step 1, which is printed when the step has ended; then the process is stopped. Seconds of CPU,
of all threads, stand beside it: other work on the machine does not count in them.

At the end one more start of each kind tells where its time goes.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

GOAL = 3.0
CORPUS = pathlib.Path(__file__).parents[1] / "examples" / "minilibri"
MARK = "parts "  # before the worker's answer
# JAX's names of what it does with a program.
EVENTS = {
    "/jax/core/compile/jaxpr_trace_duration": "  of this: trace",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "  of this: lower",
    "/jax/core/compile/backend_compile_duration": "  of this: compile, or read",
}


def arguments_of(job: str, workdir: str, *overrides: str) -> list[str]:
    """A job's arguments with the configuration of BASE's first iteration."""
    given = [f"--config.{each}" for each in (f"workdir={workdir}", *overrides)]
    return [f"hubert_jax.{job}", "--config=configs/base_it1.py", *given]


# Crops of the recipe, and of one length; both as short as they can be: frames of a step, of a crop.
LENGTHS = {"the recipe's lengths": (768, 768), "one length": (128, 128)}


def training(workdir: str, data: str, lengths: str) -> list[str]:
    """Arguments of the training; only its first step is of interest."""
    frames, longest = LENGTHS[lengths]
    return arguments_of(
        "train",
        workdir,
        f"audio={data}/prepare/speech",
        f"labels={data}/label/speech",
        f"frames_per_step={frames}",
        f"max_frames={longest}",
        "row_multiple=1",
        "loss.mask_group_rows=1",
        "loop.steps=3",
        "loop.log_every=1",
    )


def start(arguments: list[str], compiled: str) -> tuple[float, float, dict[str, list[float]]]:
    """Seconds to the end of step 1, by the clock and of CPU, and where they went if it says so."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": compiled}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    command = [sys.executable, "-u", "-m", *arguments]
    began = time.monotonic()
    process = subprocess.Popen(command, env=environment, cwd=CORPUS.parents[1], **pipes)
    parts, seconds = {}, None
    for line in process.stdout:
        if line.startswith(MARK):
            parts = json.loads(line.removeprefix(MARK))
        if line.startswith("step 1/"):
            seconds = time.monotonic() - began
            break
    process.kill()
    _, _, used = os.wait4(process.pid, 0)
    process.returncode = 0
    if seconds is None:
        raise SystemExit(f"no step was taken: {' '.join(command)}")
    return seconds, used.ru_utime + used.ru_stime, parts


def work(arguments: list[str]) -> None:
    """A worker: trains, and prints at the end of step 1 where its time went."""
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    # Field 22 of proc(5): ticks from the machine's start to the process's.
    began = pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    zero = time.monotonic() - now + int(began) / os.sysconf("SC_CLK_TCK")
    parts: dict[str, list[float]] = {}
    import jax

    from hubert_jax import job, train
    from hubert_jax.training import fit, metrics

    marks = [(zero, 0.0)]

    def until_here(part: str) -> None:
        marks.append((time.monotonic(), time.process_time()))
        parts[part] = [now - before for now, before in zip(marks[-1], marks[-2], strict=True)]

    def listen(event: str, seconds: float, **of: object) -> None:
        if event in EVENTS and "update" in str(of.get("fun_name")):
            parts[EVENTS[event]] = [parts.get(EVENTS[event], [0.0])[0] + seconds]

    until_here("import")
    jax.monitoring.register_event_duration_secs_listener(listen)
    for module, name, before, after in (
        (fit.Checkpoints, "__init__", "read configuration and data", ""),
        (fit, "compile_steps", "begin to create the state", "compile steps"),
        (fit.Prefetch, "take", "open the logs", "wait for a batch"),
        (metrics.ProgressLog, "require_finite", "begin the step", "take the step"),
    ):
        original = getattr(module, name)

        def timed(*given, original=original, before=before, after=after, **named):
            until_here(before)
            found = original(*given, **named)
            if after:
                until_here(after)
            if after == "take the step":
                print(MARK + json.dumps(parts), flush=True)
            return found

        setattr(module, name, timed)
    sys.argv = arguments
    job.main("train", train.TrainConfig, train.run)


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=3, help="of starts; 0: only where time goes")
    pairs = parser.parse_args().pairs
    with tempfile.TemporaryDirectory() as temporary:
        data, workdir, compiled = (f"{temporary}/{name}" for name in ("data", "run", "compiled"))
        for arguments in (
            arguments_of("prepare", data, f"corpus={CORPUS}", "splits=speech=dev-mini"),
            arguments_of("label", data, f"audio={data}/prepare/speech"),
        ):
            command = [sys.executable, "-m", *arguments]
            subprocess.run(command, check=True, cwd=CORPUS.parents[1], stdout=subprocess.DEVNULL)
        for lengths in LENGTHS:
            found: dict[str, list[tuple[float, float]]] = {"first": [], "second": []}
            parts: dict[str, dict[str, list[float]]] = {}
            for pair in range(pairs + 1):
                shutil.rmtree(compiled, ignore_errors=True)
                for which in found:
                    shutil.rmtree(workdir, ignore_errors=True)
                    arguments = training(workdir, data, lengths)
                    if pair == pairs:
                        arguments = ["benchmarks.second_start", "--worker", *arguments]
                    wall, cpu, told = start(arguments, compiled)
                    if pair < pairs:
                        print(f"{which:8}{wall:8.2f} s {cpu:8.2f} s of CPU", flush=True)
                        found[which].append((wall, cpu))
                    else:
                        parts[which] = told
            _report(lengths, found, parts)


def _report(
    lengths: str,
    found: dict[str, list[tuple[float, float]]],
    parts: dict[str, dict[str, list[float]]],
) -> None:
    print(f"BASE, {lengths}, seconds to the end of step 1, {os.cpu_count()} cores")
    print(f"{'':32}{'first':>9}{'second':>9}{'ratio':>8}")
    lines = []
    for number, kind in enumerate(("seconds", "seconds of CPU") if found["first"] else ()):
        first, second = ([pair[number] for pair in found[which]] for which in ("first", "second"))
        ratio = statistics.median(first) / statistics.median(second)
        pairs = sorted(a / b for a, b in zip(first, second, strict=True))
        median = [statistics.median(first), statistics.median(second)]
        print(f"{kind:32}{median[0]:9.2f}{median[1]:9.2f}{ratio:8.2f}")
        summary = {"benchmark": f"second_start: {lengths}, {kind}", "ratio": round(ratio, 3)}
        summary |= {"low": round(pairs[0], 3), "high": round(pairs[-1], 3)}
        lines.append(json.dumps(summary | {"goal": GOAL, "met": ratio >= GOAL}))
    print("where the time of one more of each went: seconds, of CPU, with threads beside")
    for part in parts["first"]:
        cells = (
            "".join(f"{value:9.2f}" for value in parts[which].get(part, ())).ljust(18)
            for which in found
        )
        print(f"  {part:30}{'  '.join(cells)}")
    for line in lines:
        print(line)


if __name__ == "__main__":
    main()
