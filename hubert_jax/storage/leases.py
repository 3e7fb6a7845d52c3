"""Locks in buckets: an object that says who works there and until when, renewed in the background.

Services have no locks, but put an object on condition that there is none, or the one that was read.
"""

import _thread
import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator

from hubert_jax.errors import InputError
from hubert_jax.storage.paths import BucketPath

RENEWED_SECONDS = 60.0
_LASTS = 3  # times as long
_INSISTS_SECONDS = 0.5
_LOOKS_SECONDS = 2.0


@contextlib.contextmanager
def leased(place: BucketPath, what: str) -> Iterator[None]:
    """Raises InputError where another `what` holds the lease of an object, which is created.

    One that was killed elsewhere holds it for three minutes, which are waited for, as long as it is
    not renewed. Raises InputError, too, where another has taken the lease meanwhile, as after a
    long suspension.
    """
    version = _taken(place, what)
    ended, lost = threading.Event(), threading.Event()

    def renew(version: str) -> None:
        while not ended.wait(RENEWED_SECONDS):
            try:
                version = _put(place, _content(), version)
            except (FileExistsError, FileNotFoundError):
                lost.set()
                break
            except OSError:
                continue  # there are two more tries before it ends
        while not ended.wait(_INSISTS_SECONDS):
            _thread.interrupt_main()  # again, as Python drops it within some callbacks

    thread = threading.Thread(target=renew, args=(version,), daemon=True)
    thread.start()
    try:
        yield
    except KeyboardInterrupt:
        if not lost.is_set():
            raise
    finally:
        ended.set()
        thread.join()
        if not lost.is_set():
            with contextlib.suppress(OSError):  # it ends by itself
                place.unlink(missing_ok=True)
    if lost.is_set():
        raise InputError(
            f"{place}: another {what} has taken the lease while this one gave no sign; it goes on "
            "there"
        )


def _taken(place: BucketPath, what: str) -> str:
    """The version of the lease once it is this process's."""
    mine, held = _content(), ""
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
            owner, left = _owner(there)
            if left <= 0:
                mine = _content()
                return _put(place, mine, version)
            if not held:
                held = version
                print(
                    f"{place.parent}: a {what} has been running there, {owner}; waits until it "
                    f"gives a sign or {left:.0f} s are over",
                    flush=True,
                )
            elif version != held:
                raise InputError(
                    f"{place.parent}: another {what} is running there, {owner}; wait for it or "
                    "pass another --config.workdir"
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


def _owner(content: bytes) -> tuple[str, float]:
    """Who holds a lease and for how long yet: 0 for a process of this host that is gone."""
    try:
        owner = dict(json.loads(content))
        left, process = float(owner["until"]) - time.time(), int(owner["process"])
    except (ValueError, TypeError, KeyError):
        return "", 0.0
    if owner.get("host") == _host():
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            left = 0.0
        except OSError:
            pass
    return f"process {process} of {str(owner.get('host')).split(' ')[0]}", left


def _host() -> str:
    """This host, or container, whose processes have numbers of their own."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()
