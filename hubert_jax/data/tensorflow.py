"""TensorFlow as every reader and writer of records has it: lean, quiet and on the CPU alone.

Keras is left out: nothing here uses it, and it takes a third of TensorFlow's import. Who asks for
`tensorflow.keras` afterwards still gets it.
"""

import contextlib
import os
from collections.abc import Iterator

__all__ = ["tf"]

# TensorFlow would announce CPU kernels that nothing here uses; its errors still show.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")


@contextlib.contextmanager
def _without_keras() -> Iterator[None]:
    """Names an older Keras, which is imported where it is installed and else passed over."""
    before = os.environ.get("TF_USE_LEGACY_KERAS")
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TF_USE_LEGACY_KERAS"]
        else:
            os.environ["TF_USE_LEGACY_KERAS"] = before


with _without_keras():
    import tensorflow as tf

# It reads and decodes on the CPU; it must never take the accelerators' memory.
with contextlib.suppress(RuntimeError):  # already running: the process chose before
    for _kind in ("GPU", "TPU"):
        tf.config.set_visible_devices([], _kind)
