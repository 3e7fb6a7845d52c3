"""Runs all jobs in order from one configuration, and writes the report.

corpus -> audio shards -> MFCC units -> pre-training -> layer units -> pre-training again -> CTC
fine-tuning beside the same network from scratch -> decoding -> export -> report.html.

Restartable: a stage whose inputs, configuration and code are unchanged (by digest) is skipped,
any other runs again, and what was interrupted continues. Writes WORKDIR/report.json,
WORKDIR/report.html and what each job writes.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import pathlib
import shutil
import time
from collections.abc import Iterator
from typing import Any

import hubert_jax
from hubert_jax import config as config_lib
from hubert_jax import files, job
from hubert_jax.errors import InputError
from hubert_jax.report.assemble import ReportConfig, assemble
from hubert_jax.stages import Stage, plan


@dataclasses.dataclass(frozen=True)
class PipelineConfig:
    """Configuration of a whole run; the values of each group are those of its job.

    Attributes:
      workdir: where everything is written.
      prepare: of the prepare job.
      train_split, finetune_split, dev_split: names among the prepared splits: pre-trained on,
        fine-tuned on (transcribed), evaluated on (transcribed, with alignments).
      alignments: phone alignments of the development split.
      iterations: named groups in order, each with `label`, `train` and, optionally,
        `continue_previous`: start from the weights of the iteration before.
      evaluate: of the evaluate job.
      finetune: of the finetune job, from the last iteration and from scratch.
      decode: of the decode job.
    """

    workdir: str
    prepare: Any
    train_split: str
    finetune_split: str
    dev_split: str
    alignments: str
    iterations: Any
    evaluate: Any
    finetune: Any
    decode: Any


def run(config: PipelineConfig) -> dict:
    """Runs what has to run; returns the content of `WORKDIR/report.json`.

    Raises:
      InputError: of any stage; the message begins with the stage's name.
    """
    workdir = files.require_writable(config.workdir)
    stages = plan(config)
    code = code_digest()
    with _locked(workdir):
        keys: dict[str, str] = {}
        results: dict[str, dict] = {}
        skipped = []
        for stage in stages:
            keys[stage.name] = _key(stage, keys, code)
            results[stage.name], was_skipped = _run_stage(workdir, stage, keys[stage.name])
            if was_skipped:
                skipped.append(stage.name)
        seconds = {stage: result["seconds"] for stage, result in results.items()}
        report = ReportConfig(
            iterations=tuple(config.iterations), recognisers=("pretrained", "scratch")
        )
        return assemble(workdir, report, seconds, skipped)


def code_digest() -> str:
    """SHA-256 over the package's Python files, names and contents."""
    package = pathlib.Path(hubert_jax.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _key(stage: Stage, keys: dict[str, str], code: str) -> str:
    """What a stage's outcome depends on: its configuration, inputs, files and the code."""
    return config_lib.digest(
        {
            "config": config_lib.to_dict(stage.config),
            "after": {name: keys[name] for name in stage.after},
            "files": {path: _files_digest(path) for path in stage.reads},
            "code": code,
        }
    )


def _files_digest(path: str) -> str:
    """Digest of a file's or folder's names, sizes and times of change."""
    root = pathlib.Path(path)
    if not root.exists():
        raise InputError(f"{path}: not found; expected the input of a stage")
    found = sorted(root.rglob("*")) if root.is_dir() else [root]
    listing = []
    for file in found:
        status = file.stat()
        listing.append([str(file.relative_to(root)), status.st_size, status.st_mtime_ns])
    return config_lib.digest(listing)


def _run_stage(workdir: pathlib.Path, stage: Stage, key: str) -> tuple[dict, bool]:
    """Skips, continues or runs a stage; returns its result and whether it was skipped."""
    record = workdir / "stages" / f"{stage.name}.json"
    earlier = files.read_json(record, "stage record") if record.exists() else {}
    directory = workdir / stage.directory
    if earlier.get("key") == key and earlier.get("finished") and _has_result(directory):
        print(f"[{stage.name}] skipped: inputs, configuration and code are unchanged", flush=True)
        return files.read_json(directory / "result.json", "result"), True
    if directory.exists() and earlier.get("key") != key:
        # Made from other inputs, by another configuration or by other code.
        shutil.rmtree(directory)
    continued = directory.exists()
    files.write_json(record, {"key": key, "finished": False})
    print(f"[{stage.name}] {'continues' if continued else 'runs'}", flush=True)
    _keep_compiled(workdir)
    before = time.monotonic()
    try:
        result = stage.run(stage.config)
    except InputError as error:
        raise InputError(f"[{stage.name}] {error}") from None
    seconds = time.monotonic() - before
    files.write_json(record, {"key": key, "finished": True})
    print(f"[{stage.name}] done in {seconds:.1f} s", flush=True)
    return result, False


def _keep_compiled(workdir: pathlib.Path) -> None:
    """Later stages compile what earlier ones did, and continued stages what they did before."""
    import jax

    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(workdir / "compiled"))


def _has_result(directory: pathlib.Path) -> bool:
    return (directory / "result.json").exists()


@contextlib.contextmanager
def _locked(workdir: pathlib.Path) -> Iterator[None]:
    """Refuses a second pipeline in the same directory; a killed one leaves no lock behind."""
    with open(workdir / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                f"{workdir}: another pipeline is running there; wait for it or pass another "
                "--config.workdir"
            ) from None
        yield


if __name__ == "__main__":
    job.main("pipeline", PipelineConfig, run)
