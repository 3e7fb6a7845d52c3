"""TensorBoard's file of a run's scalars, which is a TFRecord file of events."""

import pathlib
import socket
import time
from typing import Any

from hubert_jax.data.records import RecordWriter
from hubert_jax.data.tensorflow import tf


class ScalarWriter:
    """Appends scalars by step; what earlier files have beyond `first_step` is hidden.

    Not TensorFlow's summaries nor tensorboardX's: their threads tell late of a full disk or never.
    Raises InputError if the file cannot be written.
    """

    def __init__(self, directory: pathlib.Path, first_step: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        seconds, rest = divmod(time.time_ns(), 10**9)
        name = f"events.out.tfevents.{seconds:010d}.{socket.gethostname()}.{rest:09d}"
        self._writer = RecordWriter(directory / name)
        self._append(file_version="brain.Event:2")
        start = tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START)
        self._append(step=first_step, session_log=start)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Appends the scalars of a step, which can then be seen."""
        summary = tf.compat.v1.Summary()
        for name, value in scalars.items():
            summary.value.add(tag=name, simple_value=value)
        self._append(step=step, summary=summary)
        self._writer.flush()

    def close(self) -> None:
        """Ends the file."""
        self._writer.close()

    def _append(self, **fields: Any) -> None:
        event = tf.compat.v1.Event(wall_time=time.time(), **fields)
        self._writer.write(event.SerializeToString())
