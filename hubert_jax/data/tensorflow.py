"""TensorFlow as every reader and writer of records has it: late, lean, quiet and on the CPU alone.

It is imported when something of it is first used: two seconds of which help, a mistake in a
configuration or a stage that is skipped need nothing. Keras is left out, which nothing here uses
and which takes a third of that; who asks for `tensorflow.keras` afterwards still gets it.
"""

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

__all__ = ["tf"]

# TensorFlow would announce CPU kernels that nothing here uses; its errors still show.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")


class _Late:
    """TensorFlow's module, by its attributes."""

    def __init__(self) -> None:
        self._module: Any = None
        self._importing = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # as of what copies or pickles this object
            raise AttributeError(name)
        with self._importing:
            self._module = self._module or _imported()
        return getattr(self._module, name)


def _imported() -> Any:
    with _without_keras():
        import tensorflow
    # It reads and decodes on the CPU; it must never take the accelerators' memory.
    with contextlib.suppress(RuntimeError):  # already running: the process chose before
        for kind in ("GPU", "TPU"):
            tensorflow.config.set_visible_devices([], kind)
    return tensorflow


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


if TYPE_CHECKING:
    import tensorflow as tf
else:
    tf = _Late()
