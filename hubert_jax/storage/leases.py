"""Locks in buckets: an object that says who works there and until when, renewed in the background.

Services have no locks, but put an object on condition that there is none, or the one that was read.
No host's clock is compared with another's, but for an hour.
"""

import contextlib
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator

from hubert_jax.errors import InputError, Unavailable
from hubert_jax.storage.paths import BucketPath

RENEWED_SECONDS = 60.0
_LASTS = 3  # times as long
_LOOKS_SECONDS = 2.0
_LONG_AGO_SECONDS = 3600.0


@contextlib.contextmanager
def leased(place: BucketPath, what: str) -> Iterator[None]:
    """Raises InputError where another `what` holds the lease of an object, which is created.

    One that was killed elsewhere holds it for three minutes, which are waited for, as long as it is
    not renewed. Where another takes the lease meanwhile, as after a long suspension, or where it
    cannot be renewed for as long, this process ends at once with a line and status 1: whatever it
    wrote from then on would be in the other's way.
    """
    lease = _Lease(place, what)
    ended = threading.Event()
    thread = threading.Thread(target=lease.keep, args=(ended,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        lease.give_back()


class _Lease:
    """One that this process holds."""

    def __init__(self, place: BucketPath, what: str) -> None:
        self._place, self._what = place, what
        self._version, self._renewed = _taken(place, what), _clocks()

    def keep(self, ended: threading.Event) -> None:
        """Renews it until then."""
        while not ended.wait(min(_LOOKS_SECONDS, RENEWED_SECONDS)):
            since = _since(self._renewed)
            if since < RENEWED_SECONDS:
                continue
            now = _clocks()
            try:
                self._version = _put(self._place, _content(), self._version)
                self._renewed = now
            except (FileExistsError, FileNotFoundError):
                self._end(f"another {self._what} has taken the lease while this one gave no sign")
            except (OSError, InputError, Unavailable) as error:
                if since > _LASTS * RENEWED_SECONDS:
                    self._end(f"the lease could not be renewed for {since:.0f} s ({error})")

    def give_back(self) -> None:
        """Removes it, unless it is another's."""
        with contextlib.suppress(OSError, InputError, Unavailable):  # it ends by itself
            if self._place.found().version == self._version:
                self._place.unlink(missing_ok=True)

    def _end(self, reason: str) -> None:
        sys.stdout.flush()
        print(f"error: {self._place}: {reason}", file=sys.stderr, flush=True)
        _exit(1)


_exit = os._exit


def _taken(place: BucketPath, what: str) -> str:
    """The version of the lease once it is this process's."""
    mine, held, since = _content(), "", _clocks()
    while True:
        try:
            place.create(mine)
        except FileExistsError:
            pass
        except OSError as error:
            raise InputError(
                f"{place}: cannot be written ({error.strerror}); expected a bucket that you may "
                "write"
            ) from None
        with contextlib.suppress(FileExistsError, FileNotFoundError):  # it changes right now
            version, there = place.found().version, place.read_bytes()
            if there == mine:
                return version
            owner, lives = _owner(there)
            if lives or (held and version != held):
                raise InputError(
                    f"{place.parent}: another {what} is running there, {owner}; wait for it or "
                    "pass another --config.workdir"
                )
            left = _LASTS * RENEWED_SECONDS - _since(since)
            if lives is False or left <= 0:
                mine = _content()
                return _put(place, mine, version)
            if not held:
                held, since = version, _clocks()
                print(
                    f"{place.parent}: a {what} has been running there, {owner}; waits until it "
                    f"gives a sign or {left:.0f} s are over",
                    flush=True,
                )
            time.sleep(min(left, _LOOKS_SECONDS))


def _put(place: BucketPath, content: bytes, version: str) -> str:
    """As `replace_version`, also where a request was answered but its answer was lost."""
    try:
        return place.replace_version(content, version)
    except FileExistsError:
        found = place.found().version
        if place.read_bytes() != content:
            raise
        return found


def _content() -> bytes:
    until = time.time() + _LASTS * RENEWED_SECONDS
    owner = {"host": _host(), "process": os.getpid(), "until": until, "key": secrets.token_hex(8)}
    return json.dumps(owner).encode()


def _owner(content: bytes) -> tuple[str, bool | None]:
    """Who holds a lease, and whether it lives; None where that cannot be told from here."""
    try:
        owner = dict(json.loads(content))
        left, process = float(owner["until"]) - time.time(), int(owner["process"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return "", False
    found = f"process {process} of {str(owner.get('host')).split(' ')[0]}"
    if left < -_LONG_AGO_SECONDS:
        return found, False
    if owner.get("host") != _host():
        return found, None
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return found, False
    except OSError:  # another user's
        pass
    return found, True if left > 0 else None  # or another process has its number


def _host() -> str:
    """This host, or container, whose processes have numbers of their own."""
    names = [socket.gethostname()]
    for read in (
        lambda: os.readlink("/proc/self/ns/pid"),
        lambda: open("/proc/sys/kernel/random/boot_id").read().strip(),
    ):
        with contextlib.suppress(OSError):
            names.append(read())
    return " ".join(names)


def _clocks() -> tuple[float, float]:
    """Two, of which one at least goes on, or is set, when the machine was suspended."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)), time.time()


def _since(clocks: tuple[float, float]) -> float:
    return max(now - before for now, before in zip(_clocks(), clocks, strict=True))
