"""Valid files, changed at random, are read or refused in one line: every parser, within bounds.

    python -m benchmarks.fuzz [--minutes=5] [--seed=0] [--inputs=N] [PARSER ...]

Each parser runs for so many minutes of CPU time, or `--inputs`, in processes of a minute each.
Prints a table: inputs, how many were refused with InputError or accepted, other outcomes, the
longest time of one input and how far a process's memory grew beyond that of the valid files. Exit
status 1 for any other outcome, an input over 10 s, or growth beyond 1 GB; such inputs are kept,
their folder is printed. An input depends on parser, seed and number alone.
"""

import argparse
import faulthandler
import json
import multiprocessing
import operator
import os
import pathlib
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable
from typing import Any

from benchmarks.fuzzing import mutations
from benchmarks.fuzzing.parsers import PARSERS, Files, Parser
from hubert_jax.errors import InputError

MOST_SECONDS, MOST_BYTES = 10, 2**30
_PROCESS_SECONDS = 60  # TensorStore 0.1.86 loses memory with every file that it reads
_DIES = 60  # seconds after which a C library that hangs ends its process
_MEMORY = "/dev/shm"  # where Linux has files that are on no disk
_LIMIT = 8 * 2**30  # bytes, beyond which there is a MemoryError instead of the machine's end


class _Hung(BaseException):
    """An input takes too long."""


def input_of(name: str, seeds: list[Files], seed: int, number: int) -> Files:
    """The files of one input, some of them changed."""
    parser, choose = PARSERS[name], random.Random(f"{seed}/{name}/{number}")
    found = dict(choose.choice(seeds))
    others = [content for files in seeds for content in files.values()]
    changed = [file for file in found if not file.startswith(parser.unchanged)]
    if changed[1:]:
        changed = choose.sample(changed, choose.choice([1, 1, 1, 2]))
    for file in changed:
        found[file] = mutations.changed(found[file], choose, others)
    if choose.random() < 0.7:
        parser.bind(found)
    return found


def fuzz(
    name: str, folder: pathlib.Path, seed: int, seconds: float, numbers: Iterable[int]
) -> dict[str, Any]:
    """Reads inputs of these numbers for so many seconds of CPU time at most; what was found.

    The unexpected ones, one of each outcome, are kept below `folder`.
    """
    parser, current = PARSERS[name], folder / "current"
    (folder / "seeds").mkdir(parents=True)
    seeds = parser.seeds(folder / "seeds")
    for files in seeds * 2:
        parser.read(_written(files, current))
    found = dict.fromkeys(("inputs", "refused", "accepted", "unexpected"), 0)
    kept: dict[str, str] = {}  # outcome and number
    longest, base, begun = 0.0, _peak(), time.process_time()
    for number in numbers:
        if time.process_time() - begun > seconds:
            break
        _written(input_of(name, seeds, seed, number), current)
        before, started = _peak(), time.perf_counter()
        outcome = _outcome(parser, current)
        longest = max(longest, time.perf_counter() - started)
        if _peak() - before > MOST_BYTES // 2:
            outcome += f"; memory grew by {(_peak() - before) / 2**20:.0f} MB"
        found["inputs"] += 1
        found[outcome if outcome in found else "unexpected"] += 1
        if outcome not in found and outcome not in kept:
            kept[outcome] = f"{folder / str(number)}: {outcome}"
            shutil.copytree(current, folder / str(number))
    found |= {"seconds": time.process_time() - begun, "growth": _peak() - base}
    return {**found, "longest": longest, "kept": list(kept.values())}


def _outcome(parser: Parser, current: pathlib.Path) -> str:
    """Refused, accepted, or what was raised and where."""

    def hang(*_: Any) -> None:
        raise _Hung

    signal.signal(signal.SIGALRM, hang)
    signal.alarm(MOST_SECONDS)
    faulthandler.dump_traceback_later(_DIES, exit=True, file=sys.__stderr__)
    try:
        parser.read(current)
    except InputError as error:
        sound = str(error).isprintable() and len(str(error)) > 10
        return "refused" if sound else f"not one line: {str(error)!r}"
    except (Exception, _Hung, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "/hubert_jax/" in frame.filename] or frames
        place = f"{pathlib.Path(ours[-1].filename).name}:{ours[-1].lineno}"
        return f"{place} {type(error).__name__}: {' '.join(str(error).split())[:150]!r}"
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
    return "accepted"


def _written(files: Files, folder: pathlib.Path) -> pathlib.Path:
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def _peak() -> int:
    """Bytes of memory that the process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _child(name: str, folder: pathlib.Path, *bounds: Any) -> None:
    log = open(folder.with_suffix(".log"), "w")  # where C libraries write what they think
    os.dup2(log.fileno(), 2)
    resource.setrlimit(resource.RLIMIT_DATA, (_LIMIT, _LIMIT))
    folder.with_suffix(".json").write_text(json.dumps(fuzz(name, folder, *bounds)))


def _in_turn(name: str, top: pathlib.Path, seed: int, seconds: float, most: int) -> dict[str, Any]:
    """What `fuzz` finds in processes one after another, each for the numbers that follow."""
    total: dict[str, Any] = {"inputs": 0, "kept": []}
    while total["inputs"] < most and seconds > 0:
        folder, numbers = top / f"{name}-{total['inputs']}", range(total["inputs"], most)
        process = multiprocessing.get_context("spawn").Process(
            target=_child, args=(name, folder, seed, min(seconds, _PROCESS_SECONDS), numbers)
        )
        process.start()
        process.join()
        if process.exitcode:
            why = f"{folder}/current: ended with {process.exitcode}, see {folder.name}.log"
            return {"kept": [*total["kept"], why]}
        found = json.loads(folder.with_suffix(".json").read_text())
        for key, value in found.items():
            join = max if key in ("longest", "growth") else operator.add
            total[key] = join(total[key], value) if key in total else value
        seconds -= found["seconds"]
        if not found["kept"]:
            shutil.rmtree(folder)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inputs", type=int, default=0)
    parser.add_argument("parsers", nargs="*", metavar="PARSER", help=", ".join(PARSERS))
    arguments = parser.parse_args()
    if unknown := set(arguments.parsers) - set(PARSERS):
        parser.error(f"no such parser: {', '.join(unknown)}; there are {', '.join(PARSERS)}")
    memory = _MEMORY if os.access(_MEMORY, os.W_OK) else None  # a disk would take most of the time
    top = pathlib.Path(tempfile.mkdtemp(prefix="fuzz-", dir=memory))
    print("| parser | inputs | refused | accepted | unexpected | longest | memory |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    failures, inputs = [], 0
    for name in arguments.parsers or PARSERS:
        found = _in_turn(
            name, top, arguments.seed, arguments.minutes * 60, arguments.inputs or sys.maxsize
        )
        failures += found["kept"]
        if "inputs" not in found:
            continue
        inputs += found["inputs"]
        grown = f"{found['growth'] / 2**20:.0f} MB"
        counts = [found[key] for key in ("inputs", "refused", "accepted", "unexpected")]
        row = " | ".join(map(str, [name, *counts, f"{found['longest']:.2f} s", grown]))
        print(f"| {row} |", flush=True)
        if found["growth"] > MOST_BYTES:
            failures.append(f"{name}: memory grew by {grown}")
    print(*failures, sep="\n")
    unexpected = {"inputs": inputs, "unexpected": len(failures), "met": not failures}
    print(json.dumps({"benchmark": "fuzz", "seed": arguments.seed, **unexpected}))
    if not failures:
        shutil.rmtree(top)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
