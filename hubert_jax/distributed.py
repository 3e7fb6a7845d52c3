"""The processes of one run, one a host: they start, wait for each other and end together.

They exchange small values through JAX's coordination service, which waits as long as it takes and
needs no device; large ones, and results, go through the file system that they share. All of them
make the calls below in the same order.
"""

import atexit
import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import distributed as _jax_distributed  # the one way to the service's store
from jax.experimental import multihost_utils

import hubert_jax
from hubert_jax import config as config_lib
from hubert_jax import files, storage
from hubert_jax.errors import CRASHED, InputError, printable

T = TypeVar("T")
_AUTO = "auto"
_FAILED = "hubert_jax/failed"  # key of the first failure
_SIGNS = "hubert_jax/signs"  # keys of signs of life, by process
_LEFT = "left"  # the last one
_NOTICE = "RECEIVED_PREEMPTION_NOTICE"  # key of JAX, which takes SIGTERM of processes that joined
_LOOK_SECONDS = 0.5  # between looks for it
_SIGN_SECONDS = 2  # between a process's signs of life
_SILENT_SECONDS = 40  # without one, after which a process is given up; JAX's own limit is 50 to 100
_SUSPECT_SECONDS = 10  # the same, once this process has crashed
_SHOW_SECONDS = 20  # in which a file system shows on one host what another has written
_LISTEN_SECONDS = 5  # between looks whether somebody interrupts a process that waits
_calls = itertools.count()
_ending = threading.Event()
_stops_by_itself = threading.Event()  # while a Preemption is open
_by_itself = threading.Event()  # while this process does what the others wait for
_crashed = threading.Event()  # once this process has, perhaps because another was lost
_failures: list[int] = []  # this process's exit status, if it has failed


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """The processes that work together; their configurations differ in `index` alone.

    With the coordinator `auto` the cluster says who takes part (TPU pod, SLURM, Open MPI,
    Kubernetes).
    """

    coordinator: str = ""  # HOST:PORT of process 0, or auto; empty: works alone
    count: int = 0  # of processes
    index: int = 0  # of this one

    def __post_init__(self) -> None:
        named = self.coordinator not in ("", _AUTO)
        if named and not self.coordinator.rpartition(":")[2].isdigit():
            raise InputError(
                f"config.distributed.coordinator={self.coordinator}: expected HOST:PORT or {_AUTO}"
            )
        if not (0 <= self.index < self.count if named else self.count == self.index == 0):
            raise InputError(
                f"config.distributed: count={self.count}, index={self.index}: expected "
                "0 <= index < count with coordinator=HOST:PORT, and neither without it"
            )


def join(config: Any) -> None:
    """Waits for the other processes; call it before anything asks JAX for its devices.

    `config` is a job's, with `distributed`. From then on a failure of one ends all
    (`tell_failure`), and so does one that is killed, stopped or cut off. Raises InputError where
    the cluster does not say who takes part, the others do not come, or one has another
    configuration (`require_agreement`).
    """
    asked: DistributedConfig = config.distributed
    if not asked.coordinator or jax.distributed.is_initialized():
        return
    try:
        if asked.coordinator == _AUTO:
            jax.distributed.initialize()
        else:
            place = (asked.coordinator, asked.count, asked.index)
            # All of this host's devices are this process's, whatever started it.
            jax.distributed.initialize(*place, cluster_detection_method="deactivate")
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"config.distributed.coordinator={asked.coordinator}: the other processes cannot be "
            f"joined ({reason}); expected HOST:PORT of process 0 with count and index, or {_AUTO} "
            "on a TPU pod or under SLURM, Open MPI or Kubernetes"
        ) from None
    if _several():  # asks for the devices, for which processes wait minutes at most
        watch = threading.Thread(target=_watch, daemon=True)
        watch.start()
        atexit.register(_leave, watch)
        # At once: those that do other work make other calls, and would take each other's answers.
        require_agreement(config, {})


def index() -> int:
    """The number of this process, 0 where it is alone."""
    return jax.process_index() if _several() else 0


def is_first() -> bool:
    """Whether this process prints and writes for all of them."""
    return index() == 0


def announce(line: str) -> None:
    """Prints a line, in the first process alone."""
    if is_first():
        print(printable(line), flush=True)


def takes(number: int) -> bool:
    """Whether audio shard `number` is this process's: they take them in turn."""
    return not _waits() or number % jax.process_count() == index()


def from_first(work: Callable[[], T]) -> T:
    """What `work` returns, done by the first process while the others wait; JSON-able.

    To the work it is as if the process were alone.
    """
    if not _waits():
        return work()
    key = f"hubert_jax/{next(_calls)}"
    if is_first():
        _by_itself.set()
        try:
            value = work()
        finally:
            _by_itself.clear()
        _store().key_value_set(key, json.dumps(value))
        return value
    return _received(key)


def gather(value: T) -> list[T]:
    """All processes' JSON-able values, in order, once they have come; [] but in the first."""
    if not _waits():
        return [value]
    key = f"hubert_jax/{next(_calls)}"
    if not is_first():
        _store().key_value_set(f"{key}/{index()}", json.dumps(value))
        return []
    return [value, *(_received(f"{key}/{other}") for other in range(1, jax.process_count()))]


def everywhere(values: np.ndarray) -> np.ndarray:
    """All processes' int64 or float64 arrays of one shape, over their devices: (processes, ...)."""
    if not _waits():
        return values[None]
    gather(None)
    from_first(lambda: None)  # all have come: a collective does not wait as long as it takes
    halves = np.atleast_1d(values).view(np.int32)  # devices have 32 bits
    gathered = np.ascontiguousarray(multihost_utils.process_allgather(halves))
    return gathered.view(values.dtype).reshape(-1, *values.shape)


def require_agreement(
    config: Any, found: dict[str, Any], directory: str | os.PathLike = ""
) -> None:
    """Raises InputError, in all processes, unless they do the same work.

    That is: their configurations have the same values, but for `distributed` and the names of
    files, of which the same are given; they `found` the same; and `directory`, if any, is one that
    they share.
    """
    if not _waits():
        return
    values = {"version of hubert_jax": hubert_jax.__version__, "version of jax": jax.__version__}
    values |= config_lib.values_by_key(config)
    values = json.loads(json.dumps(values, default=dataclasses.asdict))
    mine = {
        key: value
        for key, value in _by_key(values)
        if key != "config.workdir" and not key.startswith("config.distributed.")
    }
    first = from_first(lambda: mine)
    for key in {**first, **mine}:
        if mine.get(key) != first.get(key):
            raise InputError(
                f"{key}: found {mine.get(key)!r} on this host, {first.get(key)!r} on the first; "
                "expected the same on all: start them with the same command and the same code"
            )
    require_same(found)
    if directory:
        _require_shared(storage.path(directory))


def _by_key(values: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Values that are no groups, by dotted keys."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _by_key(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def require_same(found: dict[str, Any]) -> None:
    """Raises InputError where a process found another value than the first, by its key."""
    first = from_first(lambda: found)
    for key, value in found.items():
        if value != first[key]:
            raise InputError(
                f"{key}: found {value!r} on this host, {first[key]!r} on the first; expected the "
                "same files under the same paths on all: share the file system, or start again "
                "if it shows new files late"
            )


def tell_failure(kind: str, message: str, status: int) -> None:
    """Ends the other processes with a line on standard error, and all of them with `status`.

    They would wait for this one otherwise, and it for them when JAX shuts down. Where another has
    failed before, this process ends with its line.
    """
    if not _several():
        return
    try:
        _tell(kind, message, status)
    except jax.errors.JaxRuntimeError:
        time.sleep(6 * _LOOK_SECONDS)  # the watch ends it, unless the first process is gone
    _failures.append(status)


def end_all(kind: str, message: str, status: int) -> None:
    """The same for work in the background: ends this process as the others, if there are any."""
    if _several():
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another has failed before
            _tell(kind, message, status)


def _tell(kind: str, message: str, status: int) -> None:
    line = ": ".join(filter(None, (kind, f"process {index()}", message)))
    _store().key_value_set(_FAILED, json.dumps([line, status]))


def await_cause() -> None:
    """Waits, after a crash, for the loss of another process, which may have caused it.

    Where one is lost, the others end with a line that names it, and this does not return.
    """
    if _several():
        _crashed.set()
        time.sleep(_SUSPECT_SECONDS + 2 * _SIGN_SECONDS)


class Preemption:
    """SIGTERM, which a cluster sends to some of the processes before it takes their machines away.

    While one is open, the loop that asks it stops in all of them after the same step; a second
    signal ends a process that is alone at once. Elsewhere SIGTERM ends them all.
    """

    def __init__(self) -> None:
        self._received, self._before = threading.Event(), None
        if _several():
            _stops_by_itself.set()
        elif threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._receive)

    def reached(self, step: int) -> bool:
        """Whether all processes stop after `step`; to be asked after every step."""
        if _several() and multihost_utils.reached_preemption_sync_point(step):
            self._received.set()
        return self._received.is_set()

    @property
    def received(self) -> bool:
        """Whether the signal has come, also after the last step was asked about."""
        return self._received.is_set()

    def close(self) -> None:
        """Leaves SIGTERM as it was."""
        if not self._received.is_set():  # or it is about to end
            _stops_by_itself.clear()
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _receive(self, *_: object) -> None:
        self._received.set()
        self.close()


def locked(path: str | os.PathLike, what: str) -> contextlib.AbstractContextManager[None]:
    """`files.locked` of the first process, for all of them."""
    return files.locked(path, what) if is_first() else contextlib.nullcontext()


def compiled_here() -> dict[str, Any]:
    """Options of `jax.jit` for a program of this process's devices alone.

    XLA shares out the tuning of a GPU's program among all processes, and would wait for those that
    never compile it.
    """
    if _several() and jax.default_backend() == "gpu":
        return {"compiler_options": {"xla_gpu_shard_autotuning": False}}
    return {}


def _require_shared(directory: pathlib.Path) -> None:
    """Raises InputError where a process does not see what the first writes into `directory`."""
    token = from_first(lambda: secrets.token_hex(8))
    path = directory / f".shared-{token}"
    if is_first():
        files.write_text(path, "")
    from_first(lambda: None)
    try:
        deadline = time.monotonic() + _SHOW_SECONDS
        while token not in "".join(storage.names_in(directory) if directory.is_dir() else ()):
            if time.monotonic() > deadline:
                raise InputError(
                    f"{directory}: this host does not see there what the first one writes; "
                    "expected one folder that all hosts share, of a network file system say"
                )
            time.sleep(_LOOK_SECONDS)
        gather(None)
    finally:
        if is_first():
            path.unlink(missing_ok=True)


def _several() -> bool:
    # Processes that have not joined do not start a back-end, which takes an accelerator's memory.
    return jax.distributed.is_initialized() and jax.process_count() > 1


def _waits() -> bool:
    """Whether the others do what this process does."""
    return _several() and not _by_itself.is_set()


def _store() -> Any:
    return _jax_distributed.global_state.client


def _received(key: str) -> Any:
    """The value of a key, once another process has set it."""
    while True:
        try:
            return json.loads(_store().blocking_key_value_get(key, 1000 * _LISTEN_SECONDS))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


class _SignsOfLife:
    """When each process gave its last one, by this process's clock."""

    def __init__(self) -> None:
        self._exchanged = -float("inf")
        self._seen = {number: ("", time.monotonic()) for number in range(jax.process_count())}

    def exchange(self) -> None:
        """Gives one and looks for the others'.

        Raises JaxRuntimeError where the first process, whose store it is, does not answer.
        """
        if not is_first():  # alone of the store's calls this one does not wait for ever
            _store().blocking_key_value_get(f"{_SIGNS}/0", 1000 * _SIGN_SECONDS)
        if time.monotonic() - self._exchanged < _SIGN_SECONDS:
            return
        self._exchanged = time.monotonic()
        _give_sign(repr(self._exchanged))
        for key, sign in _store().key_value_dir_get(_SIGNS):
            number = int(key.rpartition("/")[2])
            if sign != self._seen[number][0]:
                self._seen[number] = (sign, time.monotonic())

    def lost(self) -> tuple[int, str, int] | None:
        """A process that has given none for too long, with a line and a status to end with."""
        limit = _SUSPECT_SECONDS if _crashed.is_set() else _SILENT_SECONDS
        for number, (sign, since) in self._seen.items():
            if number != index() and sign != _LEFT and time.monotonic() - since > limit:
                line = (
                    f"lost: process {number} has given no sign of life for {limit} s: it was "
                    "killed or stopped, or is cut off; the same command goes on from what is saved"
                )
                return number, line, CRASHED
        return None


def _give_sign(sign: str) -> None:
    _store().key_value_set(f"{_SIGNS}/{index()}", sign, allow_overwrite=True)


def _watch() -> None:
    """Ends this process when another has failed or is lost, whatever it waits for."""
    signs = _SignsOfLife()
    while not _ending.wait(_LOOK_SECONDS):
        found = _end_of_another(signs)
        if found and not _failures:
            line, status = found
            print(line, file=sys.stderr, flush=True)
            _end(status)


def _end_of_another(signs: _SignsOfLife) -> tuple[str, int] | None:
    """The line and the status with which all processes end, once one has."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        signs.exchange()
        if not _stops_by_itself.is_set() and _was_noticed():
            return "terminated: SIGTERM", 128 + signal.SIGTERM
        if lost := signs.lost():
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # another has told it
                _store().key_value_set(_FAILED, json.dumps(lost[1:]))
        line, status = json.loads(_store().key_value_try_get(_FAILED))
        return line, status
    # None has; or the first process does not answer. If it has ended, JAX ends this one.
    lost = signs.lost()
    return lost[1:] if lost and lost[0] == 0 else None


def _was_noticed() -> bool:
    try:
        _store().key_value_try_get(_NOTICE)
        return True
    except jax.errors.JaxRuntimeError:
        return False


def _leave(watch: threading.Thread) -> None:
    """Before JAX shuts down, which waits for all processes."""
    _ending.set()
    watch.join()
    if _failures:
        _end(_failures[0])
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        _give_sign(_LEFT)


def _end(status: int) -> None:
    sys.stdout.flush()
    # All have to have looked; the first, without which JAX ends them, is the last to go.
    time.sleep((4 if is_first() else 2) * _LOOK_SECONDS)
    os._exit(status)
