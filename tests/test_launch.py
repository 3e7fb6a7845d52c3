"""What the scripts of launch/ do, as far as one machine shows it."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

JOB = ["hubert_jax.train", "--config=configs/large.py", "--config.workdir=/mnt/shared/a run"]


@pytest.fixture
def call(repository, tmp_path):
    """Runs a script with the environment changed; programs in `tmp_path` come first."""

    def run(script, *arguments, **environment):
        return subprocess.run(
            [repository / "launch" / script, *arguments],
            env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"} | environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


@pytest.fixture
def program(tmp_path):
    """Writes a program of the shell that keeps count of its starts in `starts`."""

    def write(text, name="job"):
        path = tmp_path / name
        path.write_text(f'#!/bin/bash\necho "$@" >> {tmp_path}/starts\n{text}\n')
        path.chmod(0o755)
        return path

    return write


def _starts(tmp_path) -> list[str]:
    return (tmp_path / "starts").read_text().splitlines()


@pytest.mark.parametrize(
    ("statuses", "last"),
    [
        ([0], 0),
        ([1], 1),
        ([3], 3),
        ([75, 75, 75, 75, 0], 0),  # preemptions are no crashes
        ([137, 0], 0),
        ([143, 143, 143, 0], 0),  # before the first step a preemption has this status
        ([143] * 4 + [75, 143, 143, 0], 0),
        ([143] * 5, 143),  # MOST_EARLY of them
        ([134, 75, 1], 1),
        ([134, 70, 139, 0], 139),  # three crashes in a row
    ],
)
def test_what_the_machine_ended_is_started_again(call, program, tmp_path, statuses, last):
    given = " ".join(map(str, statuses))
    job = program(f"all=({given}); exit ${{all[$(wc -l < {tmp_path}/starts) - 1]}}")
    done = call("keep_running.sh", str(job), "a b", RESTART_SECONDS="0", MOST_EARLY="5")
    assert done.returncode == last, done.stderr
    expected = statuses.index(last) + 1 if statuses.count(last) == 1 else len(statuses)
    assert _starts(tmp_path) == ["a b"] * expected


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_sigterm_and_ctrl_c_reach_the_job_and_end_it(program, repository, tmp_path, sent):
    job = program("trap 'sleep 0.5; exit 75' TERM; echo up; while :; do sleep 0.1; done")
    script = repository / "launch/keep_running.sh"
    # Tests that run in the background of a script ignore Ctrl-C, and so would what they start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen([script, job], stdout=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    assert process.stdout.readline() == "up\n"
    process.send_signal(sent)
    assert process.wait(timeout=20) == 75 and len(_starts(tmp_path)) == 1


def test_commands_for_a_tpu_pod(call, program, tmp_path):
    def printed(*arguments) -> list[list[str]]:
        done = call("tpu_pod.sh", "--dry-run", *arguments, ZONE="us-east5-a", PROJECT="speech")
        assert done.returncode == 0, done.stderr
        return [shlex.split(line) for line in done.stdout.splitlines()]

    where = ["--zone=us-east5-a", "--project=speech"]
    (created,) = printed("create", "large", "v5litepod-128", "--spot")
    assert created[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "large"]
    assert {*where, "--accelerator-type=v5litepod-128", "--spot"} <= {*created}
    assert "--runtime-version=v2-alpha-tpuv5-lite" in created
    (installed,) = printed("install", "large", "https://host/us/hubert_jax#main")
    assert "--worker=all" in installed
    assert "git clone --depth=1 --branch=main https://host/us/hubert_jax hub" in installed[-1]
    (started,) = printed("run", "large", *JOB)
    command = started[-1].removeprefix("--command=")
    assert subprocess.run(["bash", "-n", "-c", command]).returncode == 0
    _, _, job = command.partition(" -m ")
    job = shlex.split(job.partition(" > ")[0])
    assert job == [*JOB, "--config.distributed.coordinator=auto"]
    # The number that is kept is the job's own, and nothing holds the connection.
    home = tmp_path / "home"
    kept = program("trap 'echo ended >> $HOME/seen; exit 75' TERM; while :; do sleep 0.1; done")
    (home / "hubert_jax/launch").mkdir(parents=True)
    shutil.copy(kept, home / "hubert_jax/launch/keep_running.sh")
    environment = os.environ | {"HOME": str(home)}
    begun = ["bash", "-c", f"cd && {command}"]
    subprocess.run(begun, env=environment, stdout=subprocess.PIPE, timeout=20, check=True)
    (line,) = printed("stop", "large")
    time.sleep(0.5)
    subprocess.run(["bash", "-c", line[-1].removeprefix("--command=")], env=environment, check=True)
    until = time.monotonic() + 20
    while not (home / "seen").exists() and time.monotonic() < until:
        time.sleep(0.1)
    assert (home / "seen").read_text() == "ended\n"
    for action in ("logs", "stop", "status", "delete"):
        (line,) = printed(action, "large")
        assert {"gcloud", "large", *where} <= {*line}
    for arguments, environment, message in (
        (("run", "large"), {"ZONE": "z"}, "run NAME JOB"),
        (("status", "large"), {}, "error: ZONE is not set"),
        (("create", "large", "v9-8"), {"ZONE": "z"}, "v9-8: which software has it"),
    ):
        done = call("tpu_pod.sh", "--dry-run", *arguments, **environment)
        assert done.returncode == 2 and message in done.stderr


def test_a_job_under_slurm(call, program, tmp_path):
    """With stand-ins for its programs: the first node, a process for each, queued again."""
    program("echo node7; echo node8", "scontrol")
    program(
        'shift; for SLURM_PROCID in 0 1; do export SLURM_PROCID; "$@" || last=$?; done; exit $last',
        "srun",
    )
    python = program("exit 75", "python")
    slurm = dict(SLURM_JOB_ID="4097", SLURM_JOB_NODELIST="node[7-8]", SLURM_JOB_NUM_NODES="2")
    done = call("slurm.sh", *JOB, PYTHON=str(python), **slurm)
    assert done.returncode == 75, done.stderr
    lines = _starts(tmp_path)
    place = "--config.distributed.coordinator=node7:61441 --config.distributed.count=2"
    arguments = " ".join(["-m", *JOB, place])
    for index in range(2):
        assert f"{arguments} --config.distributed.index={index}" in lines
    assert lines[-1] == "requeue 4097"
    for within in (slurm, {}):
        done = call("slurm.sh", *JOB, DRY_RUN="1", **within)
        assert done.returncode == 0 and shlex.split(done.stdout)[0] == "srun"
    done = call("slurm.sh", *JOB)
    assert done.returncode == 2 and "error: not within a job of SLURM" in done.stderr


def test_a_set_of_pods(repository):
    def printed(*arguments, place="--claim=c"):
        asked = ["--name=large", "--image=i", "--hosts=16", place, *arguments, "--", *JOB]
        command = [sys.executable, "-m", "launch.kubernetes.jobset", *asked]
        done = subprocess.run(command, cwd=repository, capture_output=True, text=True)
        return done, json.loads(done.stdout or "null")

    for arguments, chips, last in (
        (("--tpu=tpu-v5p-slice/4x4x4",), {"google.com/tpu": 4}, ["coordinator=auto"]),
        (
            (),
            {"nvidia.com/gpu": 8},
            [
                "coordinator=large-host-0-0.large:8476",
                "count=16",
                "index=$(JOB_COMPLETION_INDEX)",
            ],
        ),
    ):
        done, found = printed(*arguments)
        assert done.returncode == 0, done.stderr
        (replicated,) = found["spec"]["replicatedJobs"]
        assert f"{found['metadata']['name']}-{replicated['name']}" == "large-host"
        job = replicated["template"]["spec"]
        assert job["completions"] == job["parallelism"] == 16
        container = job["template"]["spec"]["containers"][0]
        assert container["resources"]["limits"] == chips
        assert container["args"] == [*JOB, *(f"--config.distributed.{each}" for each in last)]
        assert job["template"]["spec"]["volumes"][0]["persistentVolumeClaim"] == {"claimName": "c"}
    done, found = printed("--secret=keys", place="--account=writer")  # of a bucket
    assert done.returncode == 0, done.stderr
    pod = found["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == "writer" and "emptyDir" in pod["volumes"][0]
    (container,) = pod["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": "keys"}}]
    assert {"name": "HUBERT_JAX_CACHE", "value": "/shared/copies"} in container["env"]
    for name in ("Large", "large_run", "1st", "run-", "x" * 48):
        done, _ = printed(f"--name={name}")
        assert done.returncode == 2 and "expected at most 47 of a-z, 0-9 and -" in done.stderr
    assert printed(f"--name={'x' * 47}")[0].returncode == 0
    done, _ = printed("--tpu=v5p")
    assert done.returncode == 2 and "expected ACCELERATOR/TOPOLOGY" in done.stderr
    asked = "--name=large --image=i --hosts=16 --claim=c -- train"
    line = f"{{ {sys.executable} -m launch.kubernetes.jobset {asked}; echo $? >&2; }} | true"
    done = subprocess.run(["bash", "-c", line], cwd=repository, capture_output=True, text=True)
    assert done.stderr == "1\n"  # nobody reads it, and no traceback


def test_scripts_of_the_shell_are_clean(repository):
    shellcheck = shutil.which("shellcheck", path=f"{sys.prefix}/bin:{os.environ['PATH']}")
    scripts = sorted((repository / "launch").glob("*.sh"))
    done = subprocess.run([shellcheck, *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
