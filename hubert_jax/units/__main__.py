"""Writes audio files' units, for speech language models and vocoders.

Takes files and folders, of any format, length and sampling rate, or an existing label set. Writes
WORKDIR/units: units.jsonl, a line for each recording (`audio`, `duration` in seconds, `hubert`, a
unit for each frame, between spaces, as unit vocoders read it; `units` without repetitions, and
their `durations` in frames), fairseq's units.km (a line for each recording), units.tsv (the
recordings in that order, with their samples at 16 kHz) and dict.km.txt, and at the end result.json.
What a call that was killed has done is kept.
"""

import contextlib
import dataclasses
import json
import pathlib
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from hubert_jax import config as config_lib
from hubert_jax import files, job, storage
from hubert_jax.config import MayChange, Reads
from hubert_jax.errors import InputError
from hubert_jax.frames import SAMPLE_RATE
from hubert_jax.model.architecture import Execution

_VERSION = 1  # raise it when the same files give other units


@dataclasses.dataclass(frozen=True)
class UnitsConfig:
    """Configuration of the units job."""

    files: Reads[tuple[str, ...]] = ()  # audio files, and folders of them
    labels: Reads[str] = ""  # instead of files, the label set of a split, WORKDIR/label/SPLIT
    codebook: Reads[str] = ""  # of files: a label job's directory, or another library's file
    checkpoint: Reads[str] = ""  # of a codebook of a layer: orbax:DIR[@STEP], hf:DIR, ...
    layer: int = -1  # of another library's codebook: which layer of `checkpoint` it is of
    workdir: MayChange[str] = "."
    deduplicate: MayChange[bool] = False  # units.km without repetitions
    unchecked: MayChange[bool] = False  # take formats that do not tell whether a file is complete
    execution: MayChange[Execution] = Execution()

    def __post_init__(self) -> None:
        if bool(self.files) == bool(self.labels):
            raise InputError(
                f"config.files={self.files} with config.labels={self.labels!r}: expected audio "
                "files or folders, or else a label set"
            )
        if self.labels and (self.codebook or self.checkpoint or self.layer != -1):
            raise InputError(
                f"config.labels={self.labels}: has its units; expected no config.codebook, "
                "config.checkpoint or config.layer"
            )
        if self.files and not self.codebook:
            raise InputError("config.codebook: missing; pass a label job's directory")


def run(config: UnitsConfig) -> dict:
    """Writes the units; returns the content of `WORKDIR/units/result.json`.

    Raises InputError for what does not fit together, and where no file could be read.
    """
    started = time.monotonic()
    workdir = files.require_writable(config.workdir)
    with contextlib.ExitStack() as stack:
        stack.enter_context(files.locked(workdir / ".units.lock", "units job"))
        if config.labels:
            found, about = _of_labels(config, workdir / "units")
        else:
            found, about = _of_files(config, workdir / "units", stack)
        return _write(config, workdir / "units", found, about, started)


_Units = Iterable[tuple[str, np.ndarray, int | None]]  # name, uint16 (T,), samples if known


def _of_labels(config: UnitsConfig, directory: pathlib.Path) -> tuple[_Units, dict[str, Any]]:
    from hubert_jax.data import manifests, records

    manifest = manifests.read_label_manifest(config.labels)
    (directory / "result.json").unlink(missing_ok=True)
    found = ((name, units, None) for name, units in records.read_labels(config.labels))
    about: dict[str, Any] = {"rate_hz": manifest.rate_hz, "num_units": manifest.num_classes}
    return found, about | {"codebook_digest": manifest.codebook_digest}


def _of_files(
    config: UnitsConfig, directory: pathlib.Path, stack: contextlib.ExitStack
) -> tuple[_Units, dict[str, Any]]:
    """Units that are read while `stack` is open."""
    from hubert_jax.corpus.recordings import Recordings
    from hubert_jax.units.encoding import Labeller, open_codebook

    recordings = Recordings(config.files, config.unchecked)
    feature, codebook = open_codebook(
        config.codebook, config.checkpoint, config.layer, config.execution
    )
    label = Labeller([feature], [codebook])
    content = recordings.content()
    execution = dataclasses.asdict(config.execution)
    key = config_lib.digest([_VERSION, codebook.digest, execution, config.unchecked])
    kept = stack.enter_context(contextlib.closing(files.KeptLines(directory / ".kept", key)))
    (directory / "result.json").unlink(missing_ok=True)  # only a finished job has a result
    done = {name for name, digest in content.items() if digest in kept}
    if done:
        print(f"{len(done)} of {len(content)} recordings kept from an earlier call", flush=True)
    progress = job.Progress("recordings", len(content) - len(done), "{} of {}")
    for _, recording, [units] in label(recordings.groups(lambda name: name not in done)):
        found = {"units": units.tolist(), "samples": len(recording.audio)}
        kept.add(content[recording.id], found)
        progress(1)
    if len(recordings.refused) == (count := len(recordings.paths)):
        raise InputError(f"config.files: none of {count} recordings could be read")

    def all_of_them() -> Iterator[tuple[str, np.ndarray, int]]:
        for name, digest in content.items():
            if name not in recordings.refused:
                found = kept[digest]
                yield name, np.array(found["units"], np.uint16), found["samples"]

    about: dict[str, Any] = {"rate_hz": feature.rate, "num_units": len(codebook.centroids)}
    about |= {"codebook_digest": codebook.digest, "feature": codebook.feature}
    about |= {"refused": recordings.refused, "remarks": recordings.remarks}
    return all_of_them(), about


def _write(
    config: UnitsConfig,
    directory: pathlib.Path,
    found: _Units,
    about: Mapping[str, Any],
    started: float,
) -> dict:
    from hubert_jax.units.encoding import Encoded

    recordings = frames = kept = 0
    with contextlib.ExitStack() as stack:

        def opened(name: str) -> Any:
            aside = stack.enter_context(files.writing_file(directory / name))
            return stack.enter_context(aside.open("w", encoding="utf-8"))

        lines, units_file, listed = opened("units.jsonl"), opened("units.km"), opened("units.tsv")
        print(_root(config), file=listed)
        for name, units, samples in found:
            encoded = Encoded.of_frames(units)
            of_frames, once = (" ".join(map(str, each.tolist())) for each in (units, encoded.units))
            seconds = (samples or 0) / SAMPLE_RATE or len(units) / about["rate_hz"]
            line = {"audio": name, "duration": round(seconds, 4), "hubert": of_frames}
            line |= {"units": encoded.units.tolist(), "durations": encoded.durations.tolist()}
            print(json.dumps(line, ensure_ascii=False), file=lines)
            print(once if config.deduplicate else of_frames, file=units_file)
            print(f"{name}\t{'' if samples is None else samples}", file=listed)
            recordings, frames = recordings + 1, frames + len(units)
            kept += len(encoded.units)
        dictionary = opened("dict.km.txt")
        for unit in range(about["num_units"]):
            print(f"{unit} 1", file=dictionary)
    per_second = round(kept * about["rate_hz"] / max(frames, 1), 3)
    result = {**about, "recordings": recordings, "frames": frames, "units_per_second": per_second}
    print(f"units of {recordings} recordings in {directory}", flush=True)
    return job.finish(config.workdir, "units", result, started)


def _root(config: UnitsConfig) -> str:
    """What the names of the list are below, as fairseq has it in its first line."""
    if len(config.files) == 1 and storage.is_dir(config.files[0]):
        return str(storage.absolute(config.files[0]))
    return str(storage.absolute(config.labels or "."))


if __name__ == "__main__":
    job.main("units", UnitsConfig, run, listed="files")
