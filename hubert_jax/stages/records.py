"""What a stage's folder was made from, and whether it is made again.

The record lies in that folder, so that one rename moves both.
"""

import contextlib
import dataclasses
import glob
import itertools
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from hubert_jax import config as config_lib
from hubert_jax import files, storage
from hubert_jax.convert import genuine
from hubert_jax.errors import InputError
from hubert_jax.layout import Reference, job_of, outputs
from hubert_jax.stages.content import ContentDigests
from hubert_jax.stages.stage import JOBS, Stage, named, outside_paths

_METRICS = {
    "train": "masked_loss",
    "finetune": "wer",
    "train_lm": "perplexity",
}  # by which the best is chosen by default
_RECORD = "stage.json"
_CONTENTS = "stages/contents.json"
# What transformers and this package read in a directory of theirs; its README decides nothing.
_OF_NETWORKS = (".json", ".safetensors", ".bin", ".model", ".txt")

# What would be done, in words; whether the folder stays; the result, where it is finished.
State = tuple[str, bool, dict | None]


def key_parts(
    stage: Stage,
    stages: list[Stage],
    results: Mapping[str, dict],
    outside: Mapping[str, list[str]],
) -> dict[str, Any]:
    """What decides whether a stage runs again: job's version, configuration, inputs, files.

    `results` are of the stages before it, `outside` digests of what it reads of nobody's. Raises
    InputError where it takes the best checkpoint and another measure is asked for now.
    """
    metrics = {
        other.name: other.config.validation.metric or _METRICS.get(job_of(other.name), "")
        for other in stages
        if hasattr(other.config, "validation")
    }
    for key, references in stage.inputs.items():
        for reference in references:
            found = results[reference.stage].get("validation") or {}
            if reference.which == "best" and found["metric"] != metrics[reference.stage]:
                raise InputError(
                    f"inputs.{key}={reference}: is the best by {found['metric']}, but "
                    f"{reference.stage} now has validation.metric={metrics[reference.stage]}; "
                    "change it back, or move the folder of that stage away to train again"
                )
    inputs = {
        key: [reference.digest(results[reference.stage]) for reference in references]
        for key, references in stage.inputs.items()
    }
    return _own_parts(stage, outside) | {"inputs": inputs}


def _own_parts(stage: Stage, outside: Mapping[str, list[str]]) -> dict[str, Any]:
    return {
        "version": JOBS[job_of(stage.name)].version,
        "config": config_lib.decisive(stage.config, complete=True),
        "files": outside,
    }


def own_changes(workdir: pathlib.Path, stage: Stage, outside: Mapping[str, list[str]]) -> list[str]:
    """What differs from when the stage ran last, whatever its inputs are now; as `key_parts`."""
    record = _record(workdir / stage.name)
    return (
        _changes(record, record["parts"] | _own_parts(stage, outside), stage.config)
        if record
        else []
    )


def _outside(
    workdir: pathlib.Path, stages: list[Stage], contents: ContentDigests
) -> dict[str, dict[str, list[str]]]:
    """Digests of what each stage reads from outside of the pipeline, by stage and key."""
    found: dict[str, dict[str, list[str]]] = {stage.name: {} for stage in stages}
    for stage in stages:
        for field in dataclasses.fields(stage.config):
            marks = config_lib.field_marks(type(stage.config), field.name)
            if "reads" in marks and field.name not in stage.inputs:
                paths = outside_paths(stage.config, field.name)
                with named(stage.name, f"config.{field.name}: "):
                    for path in paths:
                        _require_genuine(path)
                        if workdir.absolute().is_relative_to(path.absolute()):
                            raise InputError(
                                f"{path}: holds the workdir {workdir}, so that every run would "
                                "change it; pass another --config.workdir"
                            )
                    ends = _OF_NETWORKS if _is_transformers(stage.config, field.name) else ("",)
                    digests = [contents.of(path, ends) for path in paths]
                if digests:
                    found[stage.name][field.name] = digests
    return found


def _is_transformers(config: Any, key: str) -> bool:
    """Whether a key names a directory of transformers."""
    value = getattr(config, key)
    return isinstance(value, str) and value.startswith("hf:")


def _require_genuine(path: pathlib.Path) -> None:
    """Raises InputError for a file that is a stand-in; networks' directories the plan has read."""
    weights = (".pt", ".pth", ".ckpt", ".safetensors")
    if path.is_file() and path.stat().st_size:
        genuine.require_genuine(path, "weights" if path.suffix in weights else "")


def read_outside(
    workdir: pathlib.Path, stages: list[Stage], keeps: bool = True
) -> dict[str, dict[str, list[str]]]:
    """Digests of what each stage reads from outside of the pipeline, by stage and key.

    They are kept for the next time, unless nothing may be touched.
    """
    contents = ContentDigests(workdir / _CONTENTS, keeps=keeps)
    found = _outside(workdir, stages, contents)
    if keeps:
        contents.save()
    return found


def state_of(workdir: pathlib.Path, stage: Stage, parts: Mapping[str, Any]) -> State:
    """What would be done about a stage with these parts of its key."""
    directory = workdir / stage.name
    record = _record(directory)
    changes = _changes(record, parts, stage.config) if record else []
    if record and not changes:
        if not _is_own(record, directory):
            return "runs again: a job that was run by itself has written there", False, None
        result, gone = _finished(stage, record, directory)
        if result is None:
            return f"continues{gone}", True, None
        return "skipped: version, configuration and inputs are unchanged", True, result
    if aside := _aside_of(workdir, stage, parts):
        if _writes_elsewhere(stage.config):
            return "runs again: others may have written where it does", False, None
        result, gone = _finished(stage, _record(aside), aside)
        return f"taken back from {aside}{', and continues' * bool(gone)}{gone}", False, result
    if record:
        # Splits and parts that prepare has finished have keys of their own: none is ever stale.
        unfinished = _finished(stage, record, directory)[0] is None
        stays = job_of(stage.name) == "prepare" and unfinished
        return f"runs again: {', '.join(changes)}", stays, None
    return "runs", False, None


def was_made(workdir: pathlib.Path, stage: Stage, results: Mapping[str, dict]) -> bool:
    """Whether a stage has finished with this configuration on these prepared splits.

    What is set aside counts, too, as it would be taken back.
    """
    inputs = {
        key: [reference.digest(results[reference.stage]) for reference in references]
        for key, references in stage.splits().items()
    }
    parts = {"config": config_lib.decisive(stage.config, complete=True), "inputs": inputs}
    for place, record in _records(workdir, stage.name):
        before = record["parts"]
        of_audio = {key: before.get("inputs", {}).get(key) for key in inputs}
        same = {"parts": {**before, "inputs": of_audio}}
        if not _changes(same, {**before, **parts}, stage.config):
            if _finished(stage, record, place)[0] is not None:
                return True
    return False


def has_finished(workdir: pathlib.Path, name: str) -> bool:
    """Whether a stage has ever finished, whatever it was then."""
    return any("result" in record for _, record in _records(workdir, name))


def _finished(
    stage: Stage, record: Mapping[str, Any], directory: pathlib.Path
) -> tuple[dict | None, str]:
    """The result of a stage that has finished there, all of which is there; else what is gone.

    Whatever lies beside a record without a result was left by a call that was killed, or by a job
    that was run by itself: the stage's own job finds out what of it can be used.
    """
    if "result" not in record:
        return None, ""
    path = directory / "result.json"
    if not path.exists():
        return None, f": {path} is gone"
    if not (result := _result(path)):
        return None, f": {path} is damaged"
    is_there = _presence(directory)
    for path in _written(stage, directory, result):
        if not is_there(path):
            return None, f": {path} is gone"
        if path.name == "manifest.json" and _shards(path) is None:
            return None, f": {path} is damaged"
    return result, ""


def _presence(directory: pathlib.Path) -> Callable[[pathlib.Path], bool]:
    """Whether a path is there; those in a folder of a bucket are listed, which is one request."""
    if not isinstance(directory, storage.BucketPath):
        return pathlib.Path.exists
    listed = {directory}
    for name in directory.find():
        listed |= {directory / name, *(directory / name).parents}
    return lambda path: path in listed or (directory not in path.parents and path.exists())


def _result(path: pathlib.Path) -> dict[str, Any]:
    """What a finished job has written; empty where it is damaged."""
    with contextlib.suppress(InputError):
        if isinstance(result := files.read_json(path, "result"), dict):
            return result
    return {}


def _shards(manifest: pathlib.Path) -> list[str] | None:
    """The files that a manifest lists; None where it is damaged."""
    try:
        return [shard["file"] for shard in files.read_json(manifest, "manifest")["shards"]]
    except (InputError, KeyError, TypeError):
        return None


def _written(
    stage: Stage, directory: pathlib.Path, result: Mapping[str, Any]
) -> Iterator[pathlib.Path]:
    """What a finished stage has written, as far as others may read it."""
    for name in outputs(stage.name, result):
        path = directory / name
        yield path
        if path.name == "manifest.json":
            yield from (path.with_name(file) for file in _shards(path) or ())
            yield path.with_name("index.npz")
    if job_of(stage.name) in ("export", "convert"):
        scheme, _, model = Reference(stage.name).path("", vars(stage.config)).partition(":")
        own = scheme and model == f"/{stage.name}/model"
        yield directory / "model" if own else storage.path(model)


def _writes_elsewhere(config: Any) -> bool:
    """Whether a stage's model lies outside of its folder."""
    target = getattr(config, "out", "") or getattr(config, "target", "")
    return bool(target) and not target.endswith(":")


def begin(
    workdir: pathlib.Path, stage: Stage, parts: Mapping[str, Any], state: State
) -> dict | None:
    """Makes the folder of a stage in this state ready to work in; its result, if finished."""
    words, stays, result = state
    print(f"[{stage.name}] {words}", flush=True)
    directory = workdir / stage.name
    if not stays:
        aside = _aside_of(workdir, stage, parts)
        _set_aside(workdir, stage.name, directory)
        if aside:
            directory.parent.mkdir(parents=True, exist_ok=True)
            aside.rename(directory)
    record = _record(directory)
    if result is None or record["parts"] != parts:  # or a key is new, whose default may change
        kept = {} if result is None else {"result": record.get("result")}
        record = {"key": config_lib.digest(parts), "parts": parts, **kept}
        files.write_json(directory / _RECORD, record)
    return result


def keep_result(directory: pathlib.Path) -> None:
    """Notes in a stage's folder which result is the pipeline's own."""
    result = files.read_json(directory / "result.json", "result")
    record = {**_record(directory), "result": config_lib.digest(result)}
    files.write_json(directory / _RECORD, record)


def _set_aside(workdir: pathlib.Path, name: str, directory: pathlib.Path) -> None:
    """Moves away what another key, or a job run by itself, has written there."""
    if not directory.exists():
        return
    first = _aside(workdir, name, _record(directory).get("key", "unknown"))
    numbered = (first.with_name(f"{first.name}-{n}") for n in itertools.count(2))
    aside = next(path for path in itertools.chain([first], numbered) if not path.exists())
    print(f"[{name}] what is there is set aside in {aside}", flush=True)
    aside.parent.mkdir(exist_ok=True)
    directory.rename(aside)


def _aside(workdir: pathlib.Path, name: str, key: str) -> pathlib.Path:
    return workdir / "set_aside" / f"{_flat(name)}-{key[:12]}"


def _flat(stage: str) -> str:
    return stage.replace("/", "-")


def _aside_of(workdir: pathlib.Path, stage: Stage, parts: Mapping[str, Any]) -> pathlib.Path | None:
    """What was set aside of a stage with these parts."""
    for path, record in _records(workdir, stage.name):
        aside = path != workdir / stage.name
        if aside and _is_own(record, path) and not _changes(record, parts, stage.config):
            return path
    return None


def _records(workdir: pathlib.Path, name: str) -> Iterator[tuple[pathlib.Path, dict[str, Any]]]:
    """The folder of a stage and those set aside of it, with what each was made from."""
    asides = (workdir / "set_aside").glob(f"{glob.escape(_flat(name))}-*")
    for path in (workdir / name, *sorted(asides)):
        with contextlib.suppress(InputError):  # damaged: nobody needs to mend what is not used
            if record := _record(path):
                yield path, record


def _is_own(record: Mapping[str, Any], directory: pathlib.Path) -> bool:
    """Whether a result is the pipeline's, if there is any, not of a job that was run by itself."""
    path = directory / "result.json"
    result = _result(path)
    # Damaged: the stage's job finds what of its work is whole.
    return not result or record.get("result") in (None, config_lib.digest(result))


def _record(directory: pathlib.Path) -> dict[str, Any]:
    path = directory / _RECORD
    if not path.exists():
        return {}
    try:
        record = files.read_json(path, "record of a stage")
    except InputError:
        record = None
    if not (isinstance(record, dict) and isinstance(record.get("parts"), dict)):
        raise InputError(
            f"{path}: damaged; remove it, and what is there is set aside and made again"
        )
    return record


def _changes(record: Mapping[str, Any], parts: Mapping[str, Any], config: Any) -> list[str]:
    """What has changed; of a key that is new in the configuration its default has not."""
    before: dict[str, Any] = record["parts"]
    given = {"config": config_lib.decisive(config)}
    return [
        path
        for part in list({**before, **parts})
        for path, _, _ in config_lib.differences(
            {str(part): before.get(part, {})},
            {str(part): parts.get(part, {})},
            given if part == "config" else None,
        )
    ]
