"""Two processes that train together do what one process with both devices does."""

import json
import re

import jax
import numpy as np
import pytest
import splits
from gloo import without_greetings
from jax.sharding import AxisType, Mesh

from hubert_jax import config as config_lib
from hubert_jax import train
from hubert_jax.data import batches, records
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
# Is told to end while it reads the third batch.
PREEMPTED = """
import os, signal
from hubert_jax import job, train
from hubert_jax.data import batches

read = batches.pretraining_batches

def disturbed(*arguments, **named):
    for number, batch in enumerate(read(*arguments, **named)):
        if number == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        yield batch

batches.pretraining_batches = disturbed
job.main("train", train.TrainConfig, train.run)
"""


@pytest.fixture(scope="module")
def values(values, held_out_split, held_out_labels) -> dict:
    """A short training that is validated."""
    return values | dict(
        validation_audio=str(held_out_split),
        validation_labels=(str(held_out_labels),),
        loop=dict(steps=STEPS, log_every=1, save_every=2, keep=2),
    )


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


def test_two_processes_train_as_one(together, values, tmp_path, monkeypatch, capsys):
    both, alone = tmp_path / "both", tmp_path / "alone"
    first, second = together(both, values, [JOB] * 2)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert f"step {STEPS}/{STEPS}" in first.stdout and "2 cpu device(s)" in first.stdout
    # The collectives' library greets; nothing of ours is said twice.
    assert not without_greetings(second.stdout), second.stdout

    result = _alone(monkeypatch, alone, values)
    ours, theirs = _lines(both), _lines(alone)
    logged = [line["step"] for line in ours if "loss" in line]
    assert logged == list(range(1, STEPS + 1)) and len(ours) == STEPS + 2
    for mine, its in zip(ours, theirs, strict=True):
        found = (name for name in mine if name.startswith("validation/"))
        names = [*found] or ("loss", "masked_loss", "masked_accuracy", "masked_frames")
        for name in names:
            assert mine[name] == pytest.approx(its[name], rel=1e-5), name
    written = json.loads((both / "train/result.json").read_text())
    assert written["fingerprint"] == result["fingerprint"]

    # What two processes saved, one reads: the parameters alone, and the run to its end.
    saved, one = (checkpoint.restore_parameters(d / "train/checkpoints") for d in (both, alone))
    assert saved[1]["step"] == STEPS
    for a, b in zip(jax.tree.leaves(saved[0]), jax.tree.leaves(one[0]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    state = both / "train/checkpoints" / str(STEPS) / "state"
    written = json.loads((state / "sha256.json").read_text())
    of_second = [name for name in written if name.startswith("ocdbt.process_1/d/")]
    content = bytearray((state / of_second[0]).read_bytes())
    content[len(content) // 2] ^= 1
    (state / of_second[0]).write_bytes(content)
    capsys.readouterr()
    resumed = _alone(monkeypatch, both, values)
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
    together, values, speech_labels, tmp_path, key, line
):
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
    for process in together(tmp_path / "first", ours, [job] * 2, of_last):
        assert process.returncode == 1 and process.stderr.count("\n") == 1, process.stderr
        assert line in process.stderr
    assert not list(tmp_path.rglob("metrics.jsonl"))


def test_two_processes_save_in_a_bucket_what_is_divided_between_them(
    together, values, bucket, tmp_path
):
    """As in a folder that both share, also when they are preempted."""
    values = values | dict(mesh=dict(data=1, fsdp=2))
    folder, run = tmp_path / "folder", bucket / "run"
    assert [each.returncode for each in together(folder, values, [JOB] * 2)] == [0, 0]
    done = together(run, values, [JOB, ("-c", PREEMPTED)])
    assert [each.returncode for each in done] == [75, 75], done
    saved = int(re.search(r"SIGTERM; step (\d+) is saved", done[0].stderr)[1])
    assert checkpoint.read_metadata(run / "train/checkpoints")["step"] == saved < STEPS
    done = together(run, values, [JOB] * 2)
    assert [each.returncode for each in done] == [0, 0], done
    assert all(f"resumed from the checkpoint of step {saved}" in each.stdout for each in done[:1])
    assert _lines(run)[-1]["step"] == STEPS
    ours, theirs = (
        checkpoint.restore_parameters(each / "train/checkpoints")[0] for each in (run, folder)
    )
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    (run / "train/checkpoints" / str(STEPS) / "state/sha256.json").write_bytes(b"{")
    (run / "train/result.json").unlink()
    done = together(run, values, [JOB] * 2)
    assert [each.returncode for each in done] == [0, 0], done
    assert f"checkpoint {STEPS} cannot be read" in done[0].stdout
    assert (run / "train" / f"damaged-{STEPS}").is_dir()
