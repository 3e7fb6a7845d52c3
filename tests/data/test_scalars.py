"""Scalars as TensorBoard reads them."""

import time

import pytest

from hubert_jax.data import records
from hubert_jax.data.scalars import ScalarWriter
from hubert_jax.data.tensorflow import tf
from hubert_jax.errors import InputError


def test_tensorboard_has_what_is_written(tmp_path):
    began = time.time()
    writer = ScalarWriter(tmp_path / "board", 3)
    writer.write(4, {"loss": 2.5, "validation/wer": 0.5})
    (path,) = (tmp_path / "board").iterdir()
    events = list(tf.compat.v1.train.summary_iterator(str(path)))  # before it is closed
    assert events[0].file_version == "brain.Event:2" and "tfevents" in path.name
    assert events[1].step == 3
    assert events[1].session_log.status == tf.compat.v1.SessionLog.START
    found = [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value]
    assert found == [(4, "loss", 2.5), (4, "validation/wer", 0.5)]
    assert all(began <= event.wall_time <= time.time() for event in events)
    writer.close()
    again = ScalarWriter(tmp_path / "board", 4)  # beside the first
    again.close()
    assert len(list((tmp_path / "board").iterdir())) == 2


def test_a_full_disk_is_told_at_the_step(tmp_path, monkeypatch):
    real = records.tf.io.TFRecordWriter
    monkeypatch.setattr(records.tf.io, "TFRecordWriter", lambda path: real("/dev/full"))
    writer = ScalarWriter(tmp_path, 0)
    with pytest.raises(InputError, match="tfevents.*cannot be written .*No space left on device"):
        writer.write(1, {"loss": 1.0})
