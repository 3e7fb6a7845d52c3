"""Valid files, changed at random, are read or refused in one line: every parser, within bounds.

    python -m benchmarks.fuzz [--minutes=5] [--seed=0] [--inputs=N] [PARSER ...]

Each parser runs in a process of its own for so many minutes of CPU time, or `--inputs`. Prints a
table: inputs, how many were refused with InputError or accepted, other exceptions, the longest
time of one input and how far memory grew beyond that of the valid files. Exit status 1 for any
other exception, an input over 10 s, or growth beyond 1 GB; such inputs are kept, their folder is
printed. An input depends on parser, seed and number alone.
"""

import argparse
import faulthandler
import json
import multiprocessing
import os
import pathlib
import pickle
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from typing import Any

from benchmarks import mutations
from benchmarks.fuzz_parsers import PARSERS, Files, Parser

MOST_SECONDS, MOST_BYTES = 10.0, 2**30
_HANGS, _DIES = 30, 60  # seconds after which an input is given up in Python, and altogether


class _Hung(BaseException):
    """An input took too long."""


def input_of(parser: Parser, name: str, seeds: list[Files], seed: int, number: int) -> Files:
    """The files of one input, some of them changed."""
    choose = random.Random(f"{seed}/{name}/{number}")
    found = dict(choose.choice(seeds))
    others = [content for files in seeds for content in files.values()]
    changeable = [file for file in found if not file.startswith(parser.unchanged or "?")]
    for file in (
        choose.sample(changeable, choose.choice([1, 1, 1, 2])) if changeable[1:] else changeable
    ):
        found[file] = mutations.changed(found[file], choose, others)
    if choose.random() < 0.7:
        parser.bind(found)
    return found


def run(
    name: str, seed: int, folder: pathlib.Path, first: int, seconds: float, most: int, report: Any
) -> dict[str, Any]:
    """Reads inputs from number `first` on; what was found, which `report` also gets after each.

    Unexpected inputs are kept below `folder`.
    """
    parser, made = PARSERS[name], folder / "seeds.pickle"
    if not made.exists():
        below = folder / "making"
        below.mkdir()
        made.write_bytes(pickle.dumps(parser.seeds(below)))
        shutil.rmtree(below)
    seeds: list[Files] = pickle.loads(made.read_bytes())
    for files in seeds * 2:
        parser.read(_written(files, folder / "current"))
    base, begun = _peak(), time.process_time()
    found: dict[str, Any] = dict(
        inputs=0, refused=0, accepted=0, unexpected=[], longest=0.0, growth=0, slowest=None
    )
    number = first
    while found["inputs"] < most and time.process_time() - begun < seconds:
        current = _written(input_of(parser, name, seeds, seed, number), folder / "current")
        before, started = _peak(), time.perf_counter()
        outcome = _outcome(parser, current)
        took, grew = time.perf_counter() - started, _peak() - before
        found["inputs"] += 1
        found["growth"] = _peak() - base
        if took > found["longest"]:
            found["longest"], found["slowest"] = took, number
        if took > MOST_SECONDS:
            outcome = outcome if outcome not in ("refused", "accepted") else f"{took:.1f} s"
        if grew > MOST_BYTES // 4:
            print(f"{name} {number}: memory grew by {grew / 2**20:.0f} MB", flush=True)
        if outcome in ("refused", "accepted"):
            found[outcome] += 1
        else:
            known = [line.partition(": ")[2] for line in found["unexpected"]]
            found["unexpected"].append(f"{number}: {outcome}")
            if outcome not in known:
                _keep(current, folder / f"{number}")
        number += 1
        if report is not None:
            report.send({**found, "next": number, "spent": time.process_time() - begun})
    return found


def _outcome(parser: Parser, current: pathlib.Path) -> str:
    """Refused, accepted, or what was raised and where."""
    from hubert_jax.errors import InputError

    try:
        parser.read(current)
    except InputError as error:
        return "refused" if str(error).strip() else "an empty message"
    except (Exception, _Hung, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "/hubert_jax/" in frame.filename] or frames
        place = f"{pathlib.Path(ours[-1].filename).name}:{ours[-1].lineno}"
        return f"{place} {type(error).__name__}: {' '.join(str(error).split())[:150]!r}"
    return "accepted"


def _written(files: Files, folder: pathlib.Path) -> pathlib.Path:
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def _keep(current: pathlib.Path, aside: pathlib.Path) -> None:
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(current, aside)


def _peak() -> int:
    """Bytes of memory that the process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _child(*arguments: Any) -> None:
    def hang(*_: Any) -> None:
        raise _Hung

    def watch(*_: Any) -> None:
        signal.alarm(_HANGS)
        faulthandler.dump_traceback_later(_DIES, exit=True)

    *settings, report = arguments
    log = open(settings[2] / "stderr", "a")  # where C libraries write what they think of an input
    os.dup2(log.fileno(), 2)
    signal.signal(signal.SIGALRM, hang)
    parser = PARSERS[settings[0]]
    read = parser.read

    def watched(folder: pathlib.Path) -> None:
        watch()
        try:
            read(folder)
        finally:
            signal.alarm(0)
            faulthandler.cancel_dump_traceback_later()

    object.__setattr__(parser, "read", watched)
    # Beyond this a MemoryError, instead of the machine's end.
    resource.setrlimit(resource.RLIMIT_DATA, (8 * 2**30, 8 * 2**30))
    run(*settings, report)
    report.close()


def fuzz(name: str, seed: int, folder: pathlib.Path, seconds: float, most: int) -> dict[str, Any]:
    """As `run`, in processes of its own: where one dies, another goes on behind that input."""
    folder.mkdir(parents=True, exist_ok=True)
    total: dict[str, Any] = dict(
        inputs=0, refused=0, accepted=0, unexpected=[], longest=0.0, growth=0
    )
    number = 0
    context = multiprocessing.get_context("spawn")
    while seconds > 0 and most > 0:
        receive, send = context.Pipe(duplex=False)
        process = context.Process(
            target=_child, args=(name, seed, folder, number, seconds, most, send)
        )
        process.start()
        send.close()
        last: dict[str, Any] = {}
        while True:
            try:
                last = receive.recv()
            except EOFError:
                break
        process.join()
        if not last:
            raise RuntimeError(f"{name}: no valid files, see {folder / 'stderr'}")
        for key in ("inputs", "refused", "accepted", "unexpected"):
            total[key] += last.get(key, 0 if key != "unexpected" else [])
        for key in ("longest", "growth"):
            total[key] = max(total[key], last.get(key, 0))
        if process.exitcode == 0:
            break
        number = last.get("next", number)
        total["unexpected"].append(f"{number}: the process ended with {process.exitcode}")
        _keep(folder / "current", folder / f"{number}")
        total["inputs"] += 1
        seconds -= last.get("spent", 0)
        most -= last.get("inputs", 0) + 1
        number += 1
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inputs", type=int, default=10**9)
    parser.add_argument("parsers", nargs="*", metavar="PARSER", help=", ".join(PARSERS))
    arguments = parser.parse_args()
    if unknown := set(arguments.parsers) - set(PARSERS):
        parser.error(f"no such parser: {', '.join(unknown)}; there are {', '.join(PARSERS)}")
    top = pathlib.Path(tempfile.mkdtemp(prefix="fuzz-"))
    names = ("inputs", "refused", "accepted", "unexpected", "longest", "growth")
    print("| parser | inputs | refused | accepted | unexpected | longest | memory |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    failures, totals = [], {}
    for name in arguments.parsers or PARSERS:
        found = fuzz(name, arguments.seed, top / name, arguments.minutes * 60, arguments.inputs)
        totals[name] = {key: found[key] for key in names}
        print(
            f"| {name} | {found['inputs']} | {found['refused']} | {found['accepted']} | "
            f"{len(found['unexpected'])} | {found['longest']:.2f} s | "
            f"{found['growth'] / 2**20:.0f} MB |",
            flush=True,
        )
        different = {
            line.partition(": ")[2].partition(":")[0]: line for line in found["unexpected"]
        }
        failures += [f"{top / name}/{line}" for line in different.values()]
        if found["growth"] > MOST_BYTES:
            failures.append(f"{name}: memory grew by {found['growth'] / 2**20:.0f} MB")
    print(*failures, sep="\n")
    print(json.dumps({"benchmark": "fuzz", "seed": arguments.seed, "met": not failures}))
    if not failures:
        shutil.rmtree(top)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
