"""Host memory that the process keeps between steps."""

import ctypes
import importlib.util
import os
import platform

# Parameters of glibc's mallopt (malloc.h).
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_NEVER = -1


def keep_freed_memory() -> None:
    """Makes glibc reuse what is freed instead of giving it back to the kernel.

    XLA's CPU back-end allocates its workspace at every call, which the kernel would map and zero
    anew: a fifth of a training step. The process keeps the most memory that it ever had. Call it
    before other threads start. Does nothing where JAX computes on an accelerator.
    """
    if platform.libc_ver()[0] != "glibc" or not _computes_on_cpu():
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_ARENA_MAX, 1)  # a thread's own arena cannot grow beyond 64 MB
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, _NEVER)


def _computes_on_cpu() -> bool:
    """Without asking JAX, whose back-ends must not start before processes join."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms.split(",")[0] == "cpu"
    # What brings a GPU or a TPU to JAX.
    return not any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))
