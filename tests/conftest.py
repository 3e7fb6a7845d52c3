"""Eight CPU devices, the embedded corpus, and parity tests with and without their oracles."""

import gc
import importlib.metadata
import importlib.util
import os
import pathlib
import tempfile

# Before anything imports it: TensorFlow prints to standard error about its CPU kernels.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# Runs and resumed runs compile the same programs again and again: once a session is enough, in
# all of its workers and in the jobs that tests start. A new directory each time, so that no test
# depends on what an earlier session left.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _compiled = tempfile.TemporaryDirectory(prefix="compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    # Most of the time goes into compiling programs that then run for milliseconds.
    _flags = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    if importlib.metadata.version("jaxlib").startswith("0.10."):  # newer ones do not know it
        _flags += " --xla_cpu_use_fusion_emitters=false"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_flags}"

import jax
import oracle_imports
import pytest

from hubert_jax import job

# Before any back-end starts. Sharded code runs on eight devices, and 1e-5 holds on CPU alone.
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

REPOSITORY = pathlib.Path(__file__).parents[1]

pytest_plugins = ["splits", "kenlm", "buckets"]

# Parity tests need the oracles of requirements-parity.txt. Users may do without; continuous
# integration may not, so there a missing oracle is a failure.
_ORACLES = all(importlib.util.find_spec(name) for name in ("torch", "torchaudio", "transformers"))
if not _ORACLES and not os.environ.get("CI"):
    collect_ignore_glob = ["*_parity.py"]
# Continuous integration names these, in runs of their own, and so they are collected there.
collect_ignore = ["faults"]
if not importlib.util.find_spec("apache_beam"):
    collect_ignore.append("corpus/test_beam.py")
oracle_imports.without_compiled_libraries()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """One more than there are cores: tests wait for files and for the processes that they start."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_finish():
    """What was imported stays: nothing is gained by looking through it again and again."""
    gc.freeze()
    gc.set_threshold(*job.GARBAGE_THRESHOLDS)


def pytest_collection_modifyitems(items):
    """Marks every test of a `*_parity.py` file."""
    for item in items:
        if item.path.name.endswith("_parity.py"):
            item.add_marker("parity")


def pytest_report_header():
    """Says which kind of run this is."""
    if not _ORACLES and not os.environ.get("CI"):
        return "parity tests left out: requirements-parity.txt is not installed"
    return None


def pytest_terminal_summary(terminalreporter):
    """Prints the differences from the oracles that tests noted, the largest of each kind."""
    largest = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, value in report.user_properties:
                if name == "difference":
                    *what, difference = value
                    largest[tuple(what)] = max(difference, largest.get(tuple(what), 0.0))
    if largest:
        terminalreporter.section("largest differences from the oracles")
    for (oracle, network, what), difference in sorted(largest.items()):
        terminalreporter.write_line(f"{oracle:<12}  {network:<10}  {difference:.1e}  {what}")


@pytest.fixture(scope="session")
def repository() -> pathlib.Path:
    """The repository's root, from where jobs run."""
    return REPOSITORY


@pytest.fixture(scope="session")
def minilibri() -> pathlib.Path:
    """The embedded corpus."""
    return REPOSITORY / "examples" / "minilibri"
