"""Starts a job in several processes of this machine, as a cluster starts one on each host.

    python -m launch.one_machine 2 hubert_jax.train --config=configs/large.py ...

All processes get the arguments and, as `--config.distributed`, who takes part. The first one's
output is shown, of the others what they write to standard error. On CPU each has as many devices as
JAX_NUM_CPU_DEVICES says. Ends with the status of the process that failed first, and the others
with it; 0 when all have finished. SIGTERM is passed on to all, the second one ends them at once.
"""

import signal
import socket
import subprocess
import sys
import time

_LOOK_SECONDS = 0.2
_LAST_WORDS_SECONDS = 10.0


def main(arguments: list[str]) -> int:
    """The exit status."""
    if len(arguments) < 2 or not arguments[0].isdecimal() or int(arguments[0]) < 1:
        print(__doc__, file=sys.stderr)
        return 2
    count, command = int(arguments[0]), [sys.executable, "-m", *arguments[1:]]
    command.append(f"--config.distributed.coordinator=127.0.0.1:{_free_port()}")
    command.append(f"--config.distributed.count={count}")
    processes = [
        subprocess.Popen(
            [*command, f"--config.distributed.index={index}"],
            stdout=subprocess.DEVNULL if index else None,
        )
        for index in range(count)
    ]

    def pass_on(number: int, _: object) -> None:
        signal.signal(number, lambda number, _: sys.exit(128 + number))
        for process in processes:
            process.send_signal(number)

    signal.signal(signal.SIGTERM, pass_on)
    try:
        return _first_failure(processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _first_failure(processes: list[subprocess.Popen]) -> int:
    running = list(processes)
    while running:
        failed = [process for process in running if process.poll()]
        if failed:  # a job ends its other processes by itself, with a line that says why
            deadline = time.monotonic() + _LAST_WORDS_SECONDS
            while time.monotonic() < deadline and any(p.poll() is None for p in running):
                time.sleep(_LOOK_SECONDS)
            status = failed[0].returncode
            return status if status > 0 else 128 - status  # of a signal, as shells say it
        running = [process for process in running if process.poll() is None]
        time.sleep(_LOOK_SECONDS)
    return 0


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
