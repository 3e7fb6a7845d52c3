"""Leases: one job at a time in a folder of a bucket, whatever becomes of the one before."""

import json
import os
import re
import socket
import subprocess
import sys
import time

import pytest

from hubert_jax import storage
from hubert_jax.errors import InputError, Unavailable
from hubert_jax.storage import leases

ELSEWHERE = {"host": "another", "process": 1}


@pytest.fixture
def place(bucket, monkeypatch):
    """Where a lease lies; renewed and looked at after parts of a second."""
    monkeypatch.setattr(leases, "RENEWED_SECONDS", 0.2)
    monkeypatch.setattr(leases, "_LOOKS_SECONDS", 0.05)
    return bucket / ".train.lock"


def _hold(place):
    with storage.leased(place, "training"):
        pass


def test_one_holds_it(place):
    with storage.leased(place, "training"):
        named = f"process {os.getpid()} of {socket.gethostname()}"
        running = f"{place.parent}: another training is running there, {named}; wait for it or pass"
        with pytest.raises(InputError, match=running):
            _hold(place)
    assert not place.exists()
    _hold(place)


def test_one_of_another_host_is_waited_for_until_it_gives_a_sign(place, monkeypatch, capsys):
    with storage.leased(place, "training"):
        with monkeypatch.context() as patch:
            patch.setattr(leases, "_host", lambda: "here")
            with pytest.raises(InputError, match="another training is running there"):
                _hold(place)
    told = capsys.readouterr().out
    line = rf"{place.parent}: a training has been running there, process \d+ of .*; waits until it"
    assert re.match(line, told) and told.count("\n") == 1


@pytest.mark.parametrize("ahead", [-300, 0, 300, float("nan"), float("inf")])
def test_a_killed_ones_is_taken_when_it_has_ended_whatever_its_hosts_clock_says(place, ahead):
    place.write_text(json.dumps(ELSEWHERE | {"until": time.time() + ahead}))
    began = time.monotonic()
    _hold(place)
    assert 0.6 <= time.monotonic() - began < 10


def test_one_that_is_long_gone_is_taken_at_once(place, repository, monkeypatch):
    monkeypatch.setattr(leases, "RENEWED_SECONDS", 60.0)
    script = f"""
import os, signal
from hubert_jax import storage
with storage.leased(storage.path({str(place)!r}), "training"):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", script], cwd=repository)
    assert place.exists()
    _hold(place)  # of this host, whose processes are known
    for left in (
        json.dumps(ELSEWHERE | {"until": time.time() - 4000}),
        *("", "{", "[]", "[" * 100_000, '{"until": 1, "process": "x"}', "\0"),
    ):
        place.write_text(left)
        _hold(place)


def test_it_is_renewed_and_one_that_is_lost_ends_the_process(place, repository):
    """Also where SIGINT is ignored, as in what a shell's script starts."""
    script = f"""
import signal, sys, time
from hubert_jax import storage
from hubert_jax.storage import leases
signal.signal(signal.SIGINT, signal.SIG_IGN)
leases.RENEWED_SECONDS = leases._LOOKS_SECONDS = 0.1
with storage.leased(storage.path({str(place)!r}), "training"):
    print("held", flush=True)
    try:
        time.sleep(60)
    finally:
        print("goes on", flush=True)
"""
    command = [sys.executable, "-c", script]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=repository, **pipes)
    assert process.stdout.readline() == "held\n"
    first = place.found().version
    deadline = time.monotonic() + 20
    while place.found().version == first and time.monotonic() < deadline:
        time.sleep(0.05)
    assert place.found().version != first
    place.write_text("another's")
    told = process.communicate(timeout=20)
    assert (process.returncode, told[0]) == (1, "")
    assert told[1] == (
        f"error: {place}: another training has taken the lease while this one gave no sign\n"
    )
    assert place.read_text() == "another's"


def test_anothers_is_not_given_back(place, monkeypatch):
    monkeypatch.setattr(leases, "RENEWED_SECONDS", 60.0)
    with storage.leased(place, "training"):
        place.write_text("another's")
    assert place.read_text() == "another's"


@pytest.mark.parametrize("error", [OSError("slow"), InputError("expired"), Unavailable("down")])
def test_one_that_cannot_be_renewed_ends_the_process_after_a_while(place, error, monkeypatch):
    put, ended, failing = storage.BucketPath.replace_version, [], [1, 0]

    def renew(self, content, version):
        if not failing or failing.pop(0):
            raise error
        return put(self, content, version)

    monkeypatch.setattr(storage.BucketPath, "replace_version", renew)
    monkeypatch.setattr(leases, "_exit", ended.append)
    with storage.leased(place, "training"):
        time.sleep(0.5)
        assert ended == []  # the second try did it
        time.sleep(1)
    assert ended[0] == 1


def test_it_outlives_lost_answers(place, monkeypatch):
    put = storage.BucketPath.replace_version

    def answered_late(self, content, version):
        put(self, content, version)
        return put(self, content, version)

    monkeypatch.setattr(storage.BucketPath, "replace_version", answered_late)
    with storage.leased(place, "training"):
        first = place.found().version
        time.sleep(0.6)
        assert place.found().version != first
