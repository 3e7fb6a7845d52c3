"""The platform that the network is compiled for, which decides between equal ways to compute."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

PLATFORMS = ("cpu", "gpu", "tpu")

_target: contextvars.ContextVar[str | None] = contextvars.ContextVar("target", default=None)


def target_platform() -> str:
    """ "cpu", "gpu" or "tpu": that of `compiling_for`, else the default back-end's."""
    return _target.get() or jax.default_backend()


@contextlib.contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """Traces what is traced inside for another platform than the process runs on.

    Compiling ahead of time for an accelerator happens on a machine without it, where the default
    back-end is the CPU's.
    """
    if platform not in PLATFORMS:
        raise ValueError(f"platform {platform!r}: expected one of {', '.join(PLATFORMS)}")
    token = _target.set(platform)
    try:
        yield
    finally:
        _target.reset(token)
