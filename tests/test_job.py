"""Jobs as a user calls them: from the repository's root, in a process of their own."""

import errno
import os
import re
import subprocess
import sys

import pytest

from hubert_jax import job
from hubert_jax.errors import Unavailable


@pytest.fixture
def call(repository):
    """Runs a job; returns the finished process."""

    def run(job, *arguments):
        return subprocess.run(
            [sys.executable, "-m", f"hubert_jax.{job}", *map(str, arguments)],
            cwd=repository,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


@pytest.mark.parametrize(
    ("job", "arguments", "message"),
    [
        (
            "train",
            ["--config=configs/small.py", "--config.loop.step=3"],
            r"config\.loop\.step: no such key; did you mean config\.loop\.steps\?",
        ),
        (
            "decode",
            ["--config=configs/small.py", "--config.search.beam=0"],
            r"config\.search\.beam=0: expected at least 1",
        ),
        ("label", ["--config=configs/smal.py"], r"configs/smal\.py: no such file; there are .*sm"),
    ],
)
def test_a_bad_command_line_is_one_clear_line(call, tmp_path, job, arguments, message):
    workdir = tmp_path / "run"
    process = call(job, *arguments, f"--config.workdir={workdir}")
    assert process.returncode == 1
    assert re.search(message, process.stderr), process.stderr
    assert process.stderr.startswith("error: ")
    assert process.stderr.count("\n") == 1
    assert process.stdout == ""
    assert not workdir.exists()


def test_a_name_that_is_too_long_is_one_line(capsys):
    with pytest.raises(SystemExit, match="1"):
        job.guarded(lambda: os.stat("x" * 5000))
    assert capsys.readouterr().err == f"error: {'x' * 100}...: too long for a name of a file\n"


def test_a_crash_is_shown_whole_and_has_a_status_of_its_own(capsys):
    """Of a lost device, say: the job may be started again, as after bad input it may not."""

    def lose():
        raise RuntimeError("the device is lost")

    with pytest.raises(SystemExit, match="70"):
        job.guarded(lose)
    told = capsys.readouterr().err
    assert told.startswith("Traceback") and told.endswith("RuntimeError: the device is lost\n")


def test_sigterm_is_told_in_one_line(repository, tmp_path):
    (tmp_path / "config.py").write_text(
        f"def get_config(part):\n    return {dict(workdir='a')!r}\n"
    )
    script = f"""
import dataclasses, sys, time
from hubert_jax import job

@dataclasses.dataclass(frozen=True)
class Config:
    workdir: str

def run(config):
    print("begins", flush=True)
    time.sleep(60)

sys.argv = ["job", "--config={tmp_path}/config.py"]
job.main("job", Config, run)
"""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", script], cwd=repository, **pipes)
    assert process.stdout.readline() == "begins\n"
    process.terminate()
    _, told = process.communicate(timeout=20)
    assert process.returncode == 143 and told.startswith("terminated: SIGTERM; what is finished is")
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        # The same command may be given again once the service works.
        (Unavailable("s3://bucket/a: slow down"), "70", "error: s3://bucket/a: slow down\n"),
        (
            PermissionError(errno.EACCES, "Forbidden", "s3://bucket/a"),
            "1",
            "error: s3://bucket/a: Forbidden; expected credentials that may\n",
        ),
    ],
)
def test_a_bucket_that_fails_is_one_line(capsys, error, status, line):
    def write():
        raise error

    with pytest.raises(SystemExit, match=status):
        job.guarded(write)
    assert capsys.readouterr().err == line


def test_a_full_disk_is_one_line_also_where_numpy_tells(capsys):
    def write():
        raise OSError("9592 requested and 5120 written")

    with pytest.raises(SystemExit, match="1"):
        job.guarded(write)
    told = capsys.readouterr().err
    assert told.startswith("error: cannot be written (9592 requested and 5120 written); make room")


def test_workdir_that_cannot_be_written(call, tmp_path):
    # A path below a file refuses even the superuser.
    (tmp_path / "file").write_text("")
    workdir = tmp_path / "file" / "run"
    process = call("prepare", "--config=configs/small.py", f"--config.workdir={workdir}")
    assert process.returncode == 1
    assert process.stderr == (
        f"error: config.workdir={workdir}: cannot be written (Not a directory); "
        "pass --config.workdir=DIR with a directory that you may write\n"
    )


def test_inputs_that_are_not_there_name_the_job_that_makes_them(call, tmp_path, speech_split):
    for audio, message in (
        (tmp_path, "audio manifest not found; run hubert_jax.prepare first"),
        (speech_split, "label manifest not found; run hubert_jax.label first"),
    ):
        missing = call(
            "train",
            "--config=configs/small.py",
            f"--config.workdir={tmp_path}",
            f"--config.audio={audio}",
            f"--config.labels={tmp_path}",
        )
        assert missing.returncode == 1
        assert missing.stderr == f"error: {tmp_path}/manifest.json: {message}\n"


def test_help_tells_what_the_job_does_and_its_keys(call):
    process = call("train", "--help")
    assert process.returncode == 0
    assert process.stdout.startswith("Pre-trains HuBERT by masked prediction of units.\n")
    assert "--config=FILE.py[:PART]" in process.stdout
    assert re.search(r"--config\.labels +tuple\[str, \.\.\.\], required", process.stdout)
    assert re.search(r"--config\.optimizer\.beta2 +float, 0\.98", process.stdout)
    assert re.search(r"--config\.max_frames +int, 768  # of a crop", process.stdout)
