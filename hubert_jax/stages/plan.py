"""Stages from a configuration, in the order of their inputs."""

import contextlib
import dataclasses
import graphlib
from collections.abc import Mapping
from typing import Any

from hubert_jax import command_line, prepare, storage
from hubert_jax import config as config_lib
from hubert_jax.distributed import DistributedConfig
from hubert_jax.errors import InputError
from hubert_jax.layout import TAKEN, Reference, group_directory, job_of
from hubert_jax.stages.stage import JOBS, Stage, named, split_scheme

_FOLDERS = ("stages", "set_aside", "compiled")  # of a workdir, not of a group of stages


def plan(workdir: str, stages: Any) -> list[Stage]:
    """All stages of `config.stages`, inputs first.

    Raises InputError for what a job's configuration refuses, for inputs that are none, and for
    stages that wait for each other.
    """
    listed = dict(_listed(stages))
    planned = {}
    for name, values in listed.items():
        with named(name):
            planned[name] = _stage(workdir, name, values, listed)
    _require_own_places(workdir, planned)
    order: graphlib.TopologicalSorter[str] = graphlib.TopologicalSorter()
    for name, stage in planned.items():
        order.add(name, *(ref.stage for refs in stage.inputs.values() for ref in refs))
    try:
        return [planned[name] for name in order.static_order()]
    except graphlib.CycleError as error:
        cycle = " -> ".join(error.args[1])
        raise InputError(f"config.stages: {cycle} wait for each other") from None


def with_defaults(stages: Any) -> dict[str, Any]:
    """`config.stages` with every key and input of every stage's job: all can be overridden."""
    complete: dict[str, Any] = {}
    for name, values in _listed(stages):
        schema = JOBS[job_of(name)].config
        filled = command_line.with_defaults(schema, dict(values.items()))
        given = group(filled.get("inputs") or {}, f"config.stages.{name.replace('/', '.')}.inputs")
        optional = {
            field.name: field.default
            for field in dataclasses.fields(schema)
            if field.name in TAKEN and field.default in ("", ())
        }
        filled["inputs"] = {**optional, **dict(given.items())}
        above, _, last = name.rpartition("/")
        where = complete.setdefault(above, {}) if above else complete
        where[last] = filled
    return complete


def _require_own_places(workdir: str, stages: Mapping[str, Stage]) -> None:
    """Refuses two stages that write one model: who read the first would get the second.

    And one that writes where something else is.
    """
    owners: dict[str, str] = {}
    for stage in stages.values():
        if job_of(stage.name) in ("export", "convert"):
            where = Reference(stage.name).path(workdir, vars(stage.config))
            place = str(storage.absolute(split_scheme(where)[1]))
            if place in owners:
                raise InputError(
                    f"[{stage.name}] writes {place}, as {owners[place]} does; expected another "
                    "place for each"
                )
            owners[place] = stage.name
            is_model = storage.path(place, "config.json").exists()
            if where.startswith("hf:") and storage.path(place).exists() and not is_model:
                raise InputError(
                    f"[{stage.name}] {place}: exists and holds no model; it would be replaced: "
                    "name another directory"
                )


def _listed(stages: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    found = []
    for name, values in group(stages, "config.stages").items():
        path = f"config.stages.{name}"
        members = {name: values}
        if name in _FOLDERS:
            raise InputError(f"{path}: the pipeline's own folder; expected another name")
        if name not in JOBS:
            members = {f"{name}/{j}": given for j, given in group(values, path).items()}
        for member, given in members.items():
            path = f"config.stages.{member.replace('/', '.')}"
            if job_of(member) not in JOBS:
                raise InputError(f"{path}: no such job; known: {', '.join(JOBS)}")
            found.append((member, group(given, path)))
    if not found:
        raise InputError("config.stages: expected at least one stage, found none")
    return found


def group(values: Any, path: str) -> Any:
    """`values`; raises InputError unless they are a group of keys."""
    if not hasattr(values, "items"):
        raise InputError(f"{path}: expected a group of keys, found {values!r}")
    return values


def _stage(workdir: str, name: str, values: Mapping[str, Any], listed: Mapping[str, Any]) -> Stage:
    values = dict(values.items())
    inputs = {}
    path = f"config.stages.{name.replace('/', '.')}"
    if values.get("workdir"):
        raise InputError(
            f"{path}.workdir={values['workdir']}: the pipeline decides it; leave it out and pass "
            "--config.workdir=DIR"
        )
    schema = JOBS[job_of(name)].config
    defaults = {field.name: field.default for field in dataclasses.fields(schema)}
    for key, given in group(values.pop("inputs", None) or {}, f"{path}.inputs").items():
        if not given:
            continue
        if values.get(key) not in (None, "", (), defaults.get(key)):
            raise InputError(
                f"{path}.{key}={values[key]}: found beside {path}.inputs.{key}={given}; "
                f"expected one of them, pass --{path}.inputs.{key}= to leave out the latter"
            )
        texts = (given,) if isinstance(given, str) else given
        if not isinstance(texts, (tuple, list)) or not all(isinstance(x, str) for x in texts):
            raise InputError(f"{path}.inputs.{key}: expected STAGE or STAGE:SPLIT, found {given!r}")
        inputs[key] = tuple(Reference.parse(text) for text in texts)
        for reference in inputs[key]:
            _require(reference, key, listed)
        paths = tuple(ref.path(workdir, listed[ref.stage]) for ref in inputs[key])
        values[key] = paths[0] if isinstance(given, str) else paths
    values["workdir"] = group_directory(workdir, name)
    config = config_lib.build(schema, values, path)
    if getattr(config, "distributed", DistributedConfig()).coordinator:
        raise InputError(
            f"{path}.distributed: found a coordinator, expected none, as stages run in the "
            "pipeline's processes; pass --config.distributed"
        )
    return Stage(name, config, inputs)


def _require(reference: Reference, key: str, listed: Mapping[str, Any]) -> None:
    """Refuses a reference to a stage or a split that does not exist."""
    if reference.stage not in listed:
        raise InputError(
            f"inputs.{key}={reference.stage}: no such stage; there are {', '.join(listed)}"
        )
    reference.require_fits(key)
    given = listed[reference.stage]
    validated = [group.get("validation_audio") for group in (given, given.get("inputs") or {})]
    if reference.which == "best" and not any(validated):
        raise InputError(
            f"inputs.{key}={reference.stage}@best: the stage has no validation_audio, so none of "
            "its checkpoints is the best"
        )
    splits, job_name = [], job_of(reference.stage)
    if job_name == "prepare":
        named = given.get("splits", JOBS["prepare"].config.splits)
        with contextlib.suppress(InputError, AttributeError, TypeError):  # the stage itself tells
            splits = list(prepare.split_folders(tuple(named)))
    elif job_name in ("label", "pseudo_label"):  # of its audio; known if that is a stage's
        audio = (given.get("inputs") or {}).get("audio", ())
        texts = (audio,) if isinstance(audio, str) and job_name != "label" else audio
        if isinstance(texts, (tuple, list)):
            splits = [Reference.parse(text).split for text in texts if isinstance(text, str)]
        if given.get("split"):
            splits = [given["split"]]
    if reference.split and splits and reference.audio_split not in splits:
        raise InputError(
            f"inputs.{key}={reference.stage}:{reference.split}: no such split; "
            f"{'labelled' if job_name == 'label' else 'prepared'} are {', '.join(splits)}"
        )
