"""Two processes that train together do what one process with both devices does."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import splits
from gloo import without_greetings
from jax.sharding import AxisType, Mesh
from splits import TINY_LARGE

from hubert_jax import config as config_lib
from hubert_jax import train
from hubert_jax.data import batches, records
from hubert_jax.distributed import DistributedConfig
from hubert_jax.errors import InputError
from hubert_jax.training import checkpoint, sharding
from hubert_jax.units.kmeans import Codebook

STEPS = 4
JOB = ("-m", "hubert_jax.train")
# Does not wait as long for a file system that shows later what another host has written.
IMPATIENT = """
from hubert_jax import distributed, job, train
distributed._SHOW_SECONDS = 2
job.main("train", train.TrainConfig, train.run)
"""


@pytest.fixture(scope="module")
def values(speech_split, speech_labels, held_out_split, held_out_labels, tmp_path_factory) -> dict:
    """A training on shards of about two utterances, so that both processes have some."""
    root = tmp_path_factory.mktemp("processes")
    (root / "audio").mkdir()
    splits.write_split(root / "audio", "speech", list(records.read_audio(speech_split)), [], 0.3)
    codebook = Codebook.load(speech_labels.parent)
    splits.write_labels(
        root / "audio", root / "labels", records.read_labels(speech_labels), codebook, 100
    )
    return dict(
        audio=str(root / "audio"),
        labels=(str(root / "labels"),),
        validation_audio=str(held_out_split),
        validation_labels=(str(held_out_labels),),
        loop=dict(steps=STEPS, log_every=1, save_every=2, keep=2),
        **TINY_LARGE,
        frames_per_step=256,
        max_frames=32,
        loss=dict(mask_group_rows=4),
    )


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _together(
    repository, directory, values, count=2, meanwhile=lambda started: None, of_last=(), job=JOB
) -> list[subprocess.CompletedProcess]:
    """The same command in `count` processes of one device each, but for arguments `of_last`."""
    file = directory / "together.py"
    file.write_text(f"def get_config(part):\n    return {values!r}\n")
    command = [
        *(sys.executable, *job, f"--config={file}"),
        f"--config.workdir={directory}",
        f"--config.distributed.coordinator=127.0.0.1:{_free_port()}",
        f"--config.distributed.count={count}",
    ]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    started = [
        subprocess.Popen(
            [
                *command,
                f"--config.distributed.index={index}",
                *(of_last if index == count - 1 else ()),
            ],
            cwd=repository,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
    done = []
    try:
        meanwhile(started)
        for process in started:
            output = process.communicate(timeout=300)
            done.append(subprocess.CompletedProcess(command, process.returncode, *output))
    finally:
        for process in started:
            process.kill()
    return done


def _alone(monkeypatch, directory, values) -> dict:
    """One process with two devices, which reads the rows of both hosts."""
    read = batches.pretraining_batches

    def both(*arguments, host, **named):
        assert host == batches.Host(0, 1)
        hosts = [read(*arguments, host=batches.Host(i, 2), **named) for i in range(2)]
        try:
            for rows in zip(*hosts, strict=True):
                yield {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        finally:
            for stream in hosts:
                stream.close()

    def two_devices(config):
        devices = np.array(jax.devices()[:2]).reshape(2, 1, 1)
        return Mesh(devices, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)

    with monkeypatch.context() as patch:
        patch.setattr(batches, "pretraining_batches", both)
        patch.setattr(sharding, "make_mesh", two_devices)
        config = config_lib.build(train.TrainConfig, {**values, "workdir": str(directory)})
        return train.run(config)


def _lines(directory) -> list[dict]:
    return [json.loads(line) for line in (directory / "train/metrics.jsonl").open()]


def test_sigterm_to_one_saves_in_both(repository, values, tmp_path):
    """It comes in the middle of training; the same command goes on from there."""
    endless = dict(values, loop=dict(steps=100_000, log_every=1, save_every=100_000))

    def terminate_second(started):
        log = tmp_path / "train/metrics.jsonl"
        while not (log.exists() and log.read_text().count("\n") >= 3):
            assert all(process.poll() is None for process in started)
            time.sleep(0.1)
        started[1].send_signal(signal.SIGTERM)

    both = _together(repository, tmp_path, endless, meanwhile=terminate_second)
    (saved,) = (tmp_path / "train/checkpoints").iterdir()
    line = f"SIGTERM; step {saved.name} is saved, the same command goes on with it"
    for process in both:
        assert process.returncode == 75 and process.stderr.count("\n") == 1, process.stderr
        assert process.stderr.startswith("preempted: ") and line in process.stderr

    def terminate_both(started):
        time.sleep(1)
        for process in started:
            process.send_signal(signal.SIGTERM)

    for process in _together(repository, tmp_path, endless, meanwhile=terminate_both):
        assert process.returncode in (75, 143, -signal.SIGTERM), process.stderr  # wherever it was
        assert "Traceback" not in process.stderr


def test_two_processes_train_as_one(repository, values, tmp_path, monkeypatch, capsys):
    together, alone = tmp_path / "together", tmp_path / "alone"
    together.mkdir()
    first, second = _together(repository, together, values)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert f"step {STEPS}/{STEPS}" in first.stdout and "2 cpu device(s)" in first.stdout
    # The collectives' library greets; nothing of ours is said twice.
    assert not without_greetings(second.stdout), second.stdout

    result = _alone(monkeypatch, alone, values)
    ours, theirs = _lines(together), _lines(alone)
    logged = [line["step"] for line in ours if "loss" in line]
    assert logged == list(range(1, STEPS + 1)) and len(ours) == STEPS + 2
    for mine, its in zip(ours, theirs, strict=True):
        found = (name for name in mine if name.startswith("validation/"))
        names = [*found] or ("loss", "masked_loss", "masked_accuracy", "masked_frames")
        for name in names:
            assert mine[name] == pytest.approx(its[name], rel=1e-5), name
    written = json.loads((together / "train/result.json").read_text())
    assert written["fingerprint"] == result["fingerprint"]

    # What two processes saved, one reads: the parameters alone, and the run to its end.
    saved, one = (checkpoint.restore_parameters(d / "train/checkpoints") for d in (together, alone))
    assert saved[1]["step"] == STEPS
    for a, b in zip(jax.tree.leaves(saved[0]), jax.tree.leaves(one[0]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    state = together / "train/checkpoints" / str(STEPS) / "state"
    written = json.loads((state / "sha256.json").read_text())
    of_second = [name for name in written if name.startswith("ocdbt.process_1/d/")]
    content = bytearray((state / of_second[0]).read_bytes())
    content[len(content) // 2] ^= 1
    (state / of_second[0]).write_bytes(content)
    capsys.readouterr()
    resumed = _alone(monkeypatch, together, values)
    assert resumed["resumed_from"] == STEPS - 2
    printed = capsys.readouterr().out
    assert f"checkpoint {STEPS} cannot be read (state/{of_second[0]} is not what was" in printed
    assert "resumed from the checkpoint of step 2\n" in printed
    assert resumed["last"]["loss"] == pytest.approx(result["last"]["loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("key", "line"),
    [
        (
            "validation_audio",
            "config.validation_audio: found False on this host, True on the first",
        ),
        ("labels", "labels: found ["),
        ("workdir", "/elsewhere/train: this host does not see there what the first one writes"),
    ],
)
def test_processes_that_differ_end_before_the_first_step(
    repository, values, speech_labels, tmp_path, key, line
):
    (tmp_path / "first").mkdir()
    given = {
        "validation_audio": "",
        "workdir": str(tmp_path / "elsewhere"),
    }
    if key == "labels":  # of the same split, by another codebook
        codebook = Codebook.load(speech_labels.parent)
        units = ((name, labels % 2) for name, labels in records.read_labels(values["labels"][0]))
        splits.write_labels(values["audio"], tmp_path / "others", units, codebook, 100)
        given[key] = str(tmp_path / "others")
    ours = dict(values, optimizer=dict(peak_learning_rate=1e-3))
    of_last = [f"--config.{key}={given[key]}"]
    if key == "validation_audio":
        of_last.append("--config.validation_labels=()")
    job = ("-c", IMPATIENT) if key == "workdir" else JOB
    for process in _together(repository, tmp_path / "first", ours, of_last=of_last, job=job):
        assert process.returncode == 1 and process.stderr.count("\n") == 1, process.stderr
        assert line in process.stderr
    assert not list(tmp_path.rglob("metrics.jsonl"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(coordinator="host"), "coordinator=host: expected HOST:PORT or auto"),
        (dict(coordinator="host:1", count=2, index=2), "count=2, index=2: expected 0 <= index"),
        (dict(coordinator="host:1"), "count=0, index=0: expected 0 <= index < count"),
        (dict(coordinator="auto", count=2), "count=2, index=0: .*neither without it"),
        (dict(count=2), "count=2, index=0: .*neither without it"),
    ],
)
def test_processes_that_cannot_be_meant_are_refused(values, message):
    with pytest.raises(InputError, match=f"^config.distributed.*{message}"):
        DistributedConfig(**values)


def test_rows_of_a_batch_stay_on_one_process(monkeypatch):
    class Device:
        def __init__(self, index):
            self.process_index = index // 2

    devices = np.array([Device(index) for index in range(8)], object)

    class Grid:
        def __init__(self, shape, *_):
            self.devices = devices.reshape(shape)

    monkeypatch.setattr(jax, "make_mesh", Grid)
    sharding.make_mesh(sharding.MeshConfig(2, 2, 2))
    with pytest.raises(InputError, match="config.mesh.tensor=4: lies across processes"):
        sharding.make_mesh(sharding.MeshConfig(tensor=4))


@pytest.mark.parametrize("values", [dict(data=-2), dict(fsdp=0), dict(tensor=-1)])
def test_impossible_axes_are_refused(values):
    with pytest.raises(InputError, match=f"config.mesh.{next(iter(values))}=.* 1 or more"):
        sharding.MeshConfig(**values)
