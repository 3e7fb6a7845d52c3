"""Training with its workdir and its data in a bucket."""

import pathlib

import jax
import numpy as np
import pytest
from splits import TINY_BASE

from hubert_jax import config as config_lib
from hubert_jax import files, storage, train
from hubert_jax.errors import InputError, Unavailable
from hubert_jax.storage import leases
from hubert_jax.training import checkpoint, metrics
from hubert_jax.training.checkpoint import Checkpoints

pytestmark = pytest.mark.usefixtures("two_devices")


def _send(folder: pathlib.Path, goal: storage.BucketPath) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            (goal / path.relative_to(folder).as_posix()).send(path)


def _run(workdir, audio, labels, steps=6, **values) -> dict:
    values = dict(
        workdir=str(workdir),
        audio=str(audio),
        labels=(str(labels),),
        loop=dict(steps=steps, log_every=2, save_every=2, keep=2),
        frames_per_step=512,
        max_frames=64,
        loss=dict(mask_group_rows=4),
        **values,
    )
    return train.run(config_lib.build(train.TrainConfig, {**TINY_BASE, **values}))


def test_a_run_in_a_bucket_is_that_of_a_folder(
    bucket, bucket_server, speech_split, speech_labels, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    whole = _run(tmp_path / "whole", speech_split, speech_labels)
    _send(speech_split, bucket / "audio")
    _send(speech_labels, bucket / "labels")

    write = metrics.ProgressLog.write

    def killed(log, step, *arguments):
        write(log, step, *arguments)
        if step == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(metrics.ProgressLog, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            _run(bucket / "run", bucket / "audio", bucket / "labels")
    checkpoints = bucket / "run" / "train" / "checkpoints"
    assert sorted(storage.names_in(checkpoints)) == ["2", "4"]
    assert not (bucket / "run" / ".train.lock").exists()

    bucket_server.requests.clear()
    found = _run(bucket / "run", bucket / "audio", bucket / "labels")
    assert found["resumed_from"] == 4 and found["last"] == whole["last"]
    assert found["fingerprint"] == whole["fingerprint"]
    assert bucket_server.requests["GET"] < 80 and bucket_server.requests["HEAD"] < 60
    assert sorted(storage.names_in(checkpoints)) == ["4", "6"]
    lines = (bucket / "run" / "train" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 3
    for which in ("", "@4", "@mean2"):
        ours, theirs = (
            checkpoint.restore_parameters(f"{folder}/train/checkpoints{which}")[0]
            for folder in (bucket / "run", tmp_path / "whole")
        )
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)

    # One that is not whole, or damaged, gives way to the one before.
    (bucket / "run" / "train" / "result.json").unlink()
    (checkpoints / "6" / "_CHECKPOINT_METADATA").unlink()
    assert checkpoint.read_metadata(checkpoints)["step"] == 4
    assert _run(bucket / "run", bucket / "audio", bucket / "labels")["resumed_from"] == 4
    (bucket / "run" / "train" / "result.json").unlink()
    damaged = next(name for name in (checkpoints / "6").find() if "/d/" in name)
    (checkpoints / "6" / damaged).write_bytes(b"damaged")
    capsys.readouterr()
    again = _run(bucket / "run", bucket / "audio", bucket / "labels")
    assert again["resumed_from"] == 4 and again["fingerprint"] == whole["fingerprint"]
    assert "checkpoint 6 cannot be read" in capsys.readouterr().out
    assert (bucket / "run" / "train" / "damaged-6").is_dir()
    assert [path.name for path in pathlib.Path().iterdir()] == ["whole"]


def test_a_second_training_in_a_bucket_is_refused(bucket, speech_split, speech_labels, monkeypatch):
    monkeypatch.setattr(leases, "RENEWED_SECONDS", 0.2)
    monkeypatch.setattr(leases, "_LOOKS_SECONDS", 0.1)
    with files.locked(bucket / ".train.lock", "training"):
        with pytest.raises(InputError, match="another training is running there"):
            _run(bucket, speech_split, speech_labels)


def test_a_checkpoint_that_a_bucket_does_not_take_is_told(bucket, bucket_server, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    checkpoints = Checkpoints(bucket / "checkpoints")
    bucket_server.failing = 1.0
    checkpoints.save(1, {"a": np.zeros(3)}, {})
    with pytest.raises(Unavailable, match=str(bucket / "checkpoints")):
        checkpoints.close()


def test_what_was_being_sent_or_removed_when_a_process_was_killed_is_not_read(bucket):
    folder = bucket / "checkpoints"
    for name in ("2/state/d/left", "2/_SOMETHING", "1/state/d/left"):
        (folder / name).write_text("left")
    checkpoints = Checkpoints(folder, keep=1)
    checkpoints.save(2, {"params": {"a": np.arange(3.0)}}, {"step": 2})
    checkpoints.close()
    assert storage.names_in(folder) == ["2"]
    found, _ = checkpoint.restore_parameters(folder)
    assert found["a"].tolist() == [0, 1, 2]


def test_a_service_that_fails_damages_no_checkpoint(bucket, bucket_server, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    folder = bucket / "checkpoints"
    like = {"params": {"a": np.arange(3.0)}}
    checkpoints = Checkpoints(folder)
    for step in (1, 2):
        checkpoints.save(step, like, {"step": step})
    checkpoints.close()
    checkpoints = Checkpoints(folder)

    def fails(self, file):
        raise Unavailable(f"{self}: slow down")

    with monkeypatch.context() as patch:
        patch.setattr(storage.BucketPath, "fetch", fails)
        with pytest.raises(Unavailable):
            checkpoints.restore_newest(like, lambda metadata: None)
        with pytest.raises(Unavailable):
            checkpoint.restore_parameters(folder)
    step, *_ = checkpoints.restore_newest(like, lambda metadata: None)
    assert step == 2 and storage.names_in(folder.parent) == ["checkpoints"]
    checkpoints.close()
