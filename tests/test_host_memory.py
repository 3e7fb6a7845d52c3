"""What a process frees it uses again."""

import os
import platform
import subprocess
import sys

import pytest

_PROGRAM = """
import resource, sys
import numpy as np
from hubert_jax import host_memory

if "keep" in sys.argv:
    host_memory.keep_freed_memory()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        np.ones(16_000_000, np.float32)  # 15,625 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults())
"""


def _faults(repository, *arguments, platforms="cpu") -> int:
    command = [sys.executable, "-c", _PROGRAM, *arguments]
    # NumPy would ask for huge pages, of which fewer are mapped.
    environment = {**os.environ, "NUMPY_MADVISE_HUGEPAGE": "0", "JAX_PLATFORMS": platforms}
    done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator alone is told")
def test_pages_are_mapped_once(repository):
    assert _faults(repository, "keep") < 1_000 < 4 * 15_000 < _faults(repository)
    # On an accelerator's host the allocator is left alone.
    assert _faults(repository, "keep", platforms="tpu,cpu") > 4 * 15_000
