"""Runs the stages of one configuration in the order of their inputs, and writes the report.

A stage runs again only when its job's version, its configuration or the content of its inputs has
changed; its old output is set aside, and comes back when the change is undone. `--dry_run` prints
what would run, and why, and touches nothing.
"""

import contextlib
import dataclasses
import graphlib
import itertools
import os
import pathlib
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

from hubert_jax import (
    check,
    command_line,
    decode,
    distributed,
    evaluate,
    export,
    files,
    finetune,
    job,
    label,
    prepare,
    train,
)
from hubert_jax import config as config_lib
from hubert_jax.config import MayChange
from hubert_jax.content import ContentDigests
from hubert_jax.convert import __main__ as convert
from hubert_jax.convert import formats
from hubert_jax.distributed import DistributedConfig
from hubert_jax.errors import Diverged, InputError, Preempted
from hubert_jax.layout import Reference, group_directory, job_of, outputs
from hubert_jax.model.architecture import Architecture
from hubert_jax.report import rehearsal
from hubert_jax.report.assemble import ReportConfig, assemble

# The configuration and the function of every job that can be a stage.
JOBS: dict[str, tuple[Any, Callable[[Any], dict], int]] = {
    "prepare": (prepare.PrepareConfig, prepare.run, prepare.VERSION),
    "check": (train.TrainConfig, check.run, check.VERSION),
    "label": (label.LabelConfig, label.run, label.VERSION),
    "train": (train.TrainConfig, train.run, train.VERSION),
    "evaluate": (evaluate.EvaluateConfig, evaluate.run, evaluate.VERSION),
    "finetune": (finetune.FinetuneConfig, finetune.run, finetune.VERSION),
    "decode": (decode.DecodeConfig, decode.run, decode.VERSION),
    "export": (export.ExportConfig, export.run, export.VERSION),
    "convert": (convert.ConvertConfig, convert.run, convert.VERSION),
}
_METRICS = {"train": "masked_loss", "finetune": "wer"}  # by which the best is chosen by default
_TOGETHER = {"label", "train", "finetune", "decode"}  # the first process does the others alone
# What a stage's folder was made from, in that folder: one rename moves both.
_RECORD = "stage.json"
_CONTENTS = "stages/contents.json"
_MISSING = object()


@dataclasses.dataclass(frozen=True)
class PipelineConfig:
    """Configuration of a pipeline.

    A stage, JOB or GROUP.JOB, holds values of the job's configuration, and `inputs` by its keys:
    outputs of other stages, as in `layout`. A rehearsal also has the `recipe` that it shrinks, and
    reports what differs.
    """

    workdir: MayChange[str]
    stages: Any
    report: MayChange[ReportConfig] = ReportConfig()
    distributed: MayChange[DistributedConfig] = DistributedConfig()
    recipe: MayChange[Any] = None  # stages by the same names, with the values that count

    @staticmethod
    def with_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
        """`values` with every key of every stage's job, so that all of them can be overridden."""
        complete = dict(_group(values, "config").items())
        listed = _listed(complete.get("stages", {}))
        complete["stages"] = {}
        for name, stage in listed:
            schema = JOBS[job_of(name)][0]
            filled = command_line.with_defaults(schema, dict(stage.items()))
            group, _, last = name.rpartition("/")
            where = complete["stages"].setdefault(group, {}) if group else complete["stages"]
            where[last] = filled
        return complete


@dataclasses.dataclass(frozen=True)
class Stage:
    """One job of a pipeline, ready to start."""

    name: str  # JOB or GROUP/JOB
    config: Any  # of the job, with the paths of its inputs
    inputs: dict[str, tuple[Reference, ...]]  # by the keys of `config` that they fill


def run(config: PipelineConfig) -> dict:
    """Runs what has to run; returns the content of `WORKDIR/report.json`.

    Raises InputError and Diverged of any stage, with the stage's name.
    """
    stages = plan(config)
    recipe = _recipe(config, stages)
    workdir = files.require_writable(config.workdir)
    distributed.join(config.distributed)
    with distributed.locked(workdir / ".lock", "pipeline"):
        _keep_compiled(workdir)
        outside = distributed.from_first(lambda: _read_outside(workdir, stages))
        results: dict[str, dict] = {}
        skipped = []
        for stage in stages:
            with _named(stage.name):
                parts = _key_parts(stage, stages, results, outside[stage.name])
                results[stage.name], was_skipped = _run_stage(workdir, stage, parts)
            if was_skipped:
                skipped.append(stage.name)
        rehearsed = _rehearsed(recipe, stages, results)
        return distributed.from_first(
            lambda: assemble(workdir, config.report, results, skipped, rehearsed)
        )


def dry_run(config: PipelineConfig) -> dict:
    """Prints every stage, whether it would run, and why; touches nothing."""
    workdir = pathlib.Path(config.workdir)
    results: dict[str, dict] = {}
    runs: list[str] = []
    stages = plan(config)
    outside = _outside(workdir, stages, ContentDigests(workdir / _CONTENTS, keeps=False))
    for stage in stages:
        sources = {ref.stage for refs in stage.inputs.values() for ref in refs}
        waiting = [name for name in sorted(sources) if name not in results]
        if waiting:
            state = f"runs after {', '.join(waiting)}, unless they give the same again"
        else:
            with _named(stage.name):
                parts = _key_parts(stage, stages, results, outside[stage.name])
                state, _, result = _state(workdir, stage, parts)
            if result is not None:
                results[stage.name] = result
        if stage.name not in results:
            runs.append(stage.name)
        print(f"[{stage.name}] {state}", flush=True)
    return {"runs": runs}


def plan(config: PipelineConfig) -> list[Stage]:
    """All stages, inputs first; raises InputError for what a stage's configuration refuses."""
    listed = dict(_listed(config.stages))
    stages = {}
    for name, values in listed.items():
        with _named(name):
            stages[name] = _stage(config.workdir, name, values, listed)
    for stage in stages.values():
        with _named(stage.name):
            _require_fits(stage, stages)
    groups = dict.fromkeys(name.rpartition("/")[0] for name in listed)
    for key in ("iterations", "recognisers"):
        for name in getattr(config.report, key):
            if name not in groups:
                known = ", ".join(filter(None, groups))
                raise InputError(f"config.report.{key}: no such group {name!r}; there are {known}")
    order: graphlib.TopologicalSorter[str] = graphlib.TopologicalSorter()
    for name, stage in stages.items():
        order.add(name, *(ref.stage for refs in stage.inputs.values() for ref in refs))
    try:
        return [stages[name] for name in order.static_order()]
    except graphlib.CycleError as error:
        cycle = " -> ".join(error.args[1])
        raise InputError(f"config.stages: {cycle} wait for each other") from None


def _recipe(config: PipelineConfig, stages: list[Stage]) -> dict[str, Any]:
    """The recipe's configuration of every stage; empty where nothing is rehearsed."""
    if not config.recipe:
        return {}
    planned = plan(dataclasses.replace(config, stages=config.recipe))
    recipe = {stage.name: stage.config for stage in planned}
    if missing := [stage.name for stage in stages if stage.name not in recipe]:
        raise InputError(f"config.recipe: has no {', '.join(missing)}; expected every stage")
    return recipe


def _rehearsed(
    recipe: Mapping[str, Any], stages: list[Stage], results: Mapping[str, dict]
) -> dict[str, dict]:
    """What each stage has proven and shrunk, by name."""
    read = [ref.stage for stage in stages for refs in stage.inputs.values() for ref in refs]
    return {
        stage.name: {
            "proven": rehearsal.proven(stage.config, results[stage.name], read.count(stage.name)),
            "shrunk": rehearsal.differences(recipe[stage.name], stage.config, stage.inputs),
        }
        for stage in stages
        if recipe
    }


def _listed(stages: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    found = []
    for name, values in _group(stages, "config.stages").items():
        path = f"config.stages.{name}"
        members = {name: values}
        if name not in JOBS:
            members = {f"{name}/{j}": given for j, given in _group(values, path).items()}
        for member, given in members.items():
            path = f"config.stages.{member.replace('/', '.')}"
            if job_of(member) not in JOBS:
                raise InputError(f"{path}: no such job; known: {', '.join(JOBS)}")
            found.append((member, _group(given, path)))
    if not found:
        raise InputError("config.stages: expected at least one stage, found none")
    return found


def _group(values: Any, path: str) -> Any:
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
    schema = JOBS[job_of(name)][0]
    defaults = {field.name: field.default for field in dataclasses.fields(schema)}
    for key, given in _group(values.pop("inputs", None) or {}, f"{path}.inputs").items():
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
        named = given.get("splits", JOBS["prepare"][0].splits)
        with contextlib.suppress(InputError, AttributeError, TypeError):  # the stage itself tells
            splits = list(prepare.split_folders(tuple(named)))
    elif job_name == "label":  # each split of its audio; known before it runs if that is a stage's
        audio = (listed[reference.stage].get("inputs") or {}).get("audio", ())
        if isinstance(audio, (tuple, list)):
            splits = [Reference.parse(text).split for text in audio if isinstance(text, str)]
    if reference.split and splits and reference.split not in splits:
        raise InputError(
            f"inputs.{key}={reference.stage}:{reference.split}: no such split; "
            f"{'prepared' if job_name == 'prepare' else 'labelled'} are {', '.join(splits)}"
        )


def _require_fits(stage: Stage, stages: Mapping[str, Stage]) -> None:
    """Refuses what a stage could never take of another: its jobs would, but after days."""

    def refuse(key: str, found: Any, source: str, expected: str) -> NoReturn:
        path = f"config.stages.{stage.name.replace('/', '.')}.{key}"
        raise InputError(f"{path}: found {found}, but {source} has {expected}; change one of them")

    config, inputs = stage.config, stage.inputs
    for key, references in inputs.items():
        for reference in references:
            if lacking := _lacking(reference, stages, key, config):
                raise InputError(f"inputs.{key}={reference}: {lacking}")
    source, architecture = _architecture(stage, "checkpoint", stages)
    if isinstance(config, label.LabelConfig) and config.codebook and "codebook" not in inputs:
        _known_codebook(config, architecture)
    for reference in inputs.get("validation_audio", ()):
        for other in inputs.get("audio", ()):
            if reference == other:
                refuse("inputs.validation_audio", reference, "inputs.audio", "the same split")
            if shared := _shared_folder(reference, other, stages):
                refuse("inputs.validation_audio", reference, f"inputs.audio={other}", shared)
    if hasattr(config, "head"):
        sizes = config.head.codebook_sizes
        if job_of(stage.name) == "train" and config.validation_audio:
            if not config.validation_labels:
                refuse("validation_labels", "none", "validation_audio", config.validation_audio)
        for key in ("labels", "validation_labels"):
            labels = inputs.get(key, ())
            if labels and len(labels) != len(sizes):
                refuse("head.codebook_sizes", sizes, f"inputs.{key}", f"{len(labels)} label set(s)")
            for size, reference in zip(sizes, labels, strict=bool(labels)):
                clusters = _num_clusters(stages[reference.stage])
                if clusters is not None and size - clusters not in (0, config.specials):
                    expected = f"num_clusters={clusters}"
                    refuse("head.codebook_sizes", sizes, reference.stage, expected)
    for part in ("", "validation_"):
        audio = [reference.split for reference in inputs.get(f"{part}audio", ())]
        for reference in inputs.get(f"{part}labels", ()):
            if audio and reference.split not in audio:
                refuse(f"inputs.{part}labels", reference, f"inputs.{part}audio", audio[0])
    if architecture:
        key = "layers" if hasattr(config, "layers") else "layer"
        layers = getattr(config, "layers", (getattr(config, "layer", 0),))
        if (highest := max(layers, default=0)) > architecture.num_layers:
            refuse(key, highest, source, f"{architecture.num_layers} layers")
    source, architecture = _architecture(stage, "init_from", stages)
    described: dict[str, Any] = vars(architecture) if architecture else {}
    for name, value in described.items():
        # Directories of transformers may ask for another preparation than their weights had.
        if name != "normalize_waveform" or not source.startswith("hf:"):
            if (found := getattr(config.architecture, name)) != value:
                refuse(f"architecture.{name}", found, source, str(value))


def _lacking(reference: Reference, stages: Mapping[str, Stage], key: str, config: Any) -> str:
    """Why a stage that is finished never has what another one reads of it; "" if it may."""
    source, which = stages[reference.stage], reference.which
    if isinstance(config, decode.DecodeConfig) and key == "checkpoint":
        network, seen = source, {source.name}
        while network.inputs and job_of(network.name) in ("export", "convert"):
            (before,) = network.inputs.get("checkpoint") or network.inputs["source"]
            if before.stage in seen:
                break
            network = stages[before.stage]
            seen.add(network.name)
        if job_of(network.name) == "train":
            return "has no CTC head; expected a network of fine-tuning, such as GROUP/finetune"
    if which in ("", "best"):
        return ""
    loop, number = source.config.loop, int(which.removeprefix("mean"))
    saves = -(-loop.steps // loop.save_every)
    newer = saves - -(-number // loop.save_every)
    # One that is validated saves its best steps, too, keeps the best, and may end early.
    validated = bool(source.config.validation_audio)
    every = validated and source.config.validation.every or loop.save_every
    if which.startswith("mean"):
        there = number <= loop.keep and (validated or number <= saves)
    else:
        saved = number % loop.save_every == 0 or number % every == 0 or number == loop.steps
        there = 0 < number <= loop.steps and saved and (validated or newer < loop.keep)
    if there:
        return ""
    return (
        f"the stage has loop.steps={loop.steps}, save_every={loop.save_every} and "
        f"keep={loop.keep}: there is no such checkpoint at its end"
    )


def _architecture(
    stage: Stage, key: str, stages: Mapping[str, Stage]
) -> tuple[str, Architecture | None]:
    """Which network a stage reads as its `key`, and its architecture, as far as it is known yet."""
    if key in stage.inputs:
        (reference,) = stage.inputs[key]
        return reference.stage, getattr(stages[reference.stage].config, "architecture", None)
    where = getattr(stage.config, key, "")
    if not where or not all(path.exists() for path in _outside_paths(stage.config, key)):
        return where, None  # what is missing is told when all that is outside is read
    return where, formats.read_architecture(where, f"config.{key}")


def _known_codebook(config: label.LabelConfig, architecture: Architecture | None) -> label.Codebook:
    """The codebook from elsewhere that a label stage takes; InputError if it is of another feature.

    Of the network, another stage's, nothing but its architecture is known, if that.
    """
    described: dict[str, Any] = {"kind": config.feature}
    dim: int | None = 39  # of every kind of MFCC
    if config.feature == "layer":
        described |= {"layer": config.layer, "residual": "added"}
        dim = architecture.dim if architecture else None
    return label.read_codebook(config.codebook, described, dim)


def _num_clusters(stage: Stage) -> int | None:
    """How many units the labels of a stage have; None where another stage's codebook says it."""
    if "codebook" in stage.inputs:
        return None
    if stage.config.codebook:
        return len(_known_codebook(stage.config, None).centroids)
    return stage.config.num_clusters


def _shared_folder(one: Reference, other: Reference, stages: Mapping[str, Stage]) -> str:
    """A folder of the corpus that is in both of two splits; "" if they share none."""
    if one.stage != other.stage or job_of(one.stage) != "prepare":
        return ""
    folders = prepare.split_folders(tuple(stages[one.stage].config.splits))
    for mine, its in itertools.product(folders[one.split], folders[other.split]):
        a, b = (pathlib.PurePosixPath(os.path.normpath(folder)) for folder in (mine, its))
        if a.is_relative_to(b) or b.is_relative_to(a):
            return f"the same audio, {mine}" if a == b else f"{its}, which shares audio with {mine}"
    return ""


def _key_parts(
    stage: Stage,
    stages: list[Stage],
    results: Mapping[str, dict],
    outside: Mapping[str, list[str]],
) -> dict[str, Any]:
    metrics = {
        other.name: other.config.validation.metric or _METRICS[job_of(other.name)]
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
    return {
        "version": JOBS[job_of(stage.name)][2],
        "config": config_lib.decisive(stage.config, complete=True),
        "inputs": {
            key: [reference.digest(results[reference.stage]) for reference in references]
            for key, references in stage.inputs.items()
        },
        "files": outside,
    }


def _outside(
    workdir: pathlib.Path, stages: list[Stage], contents: ContentDigests
) -> dict[str, dict[str, list[str]]]:
    """Digests of what each stage reads from outside of the pipeline, by stage and key."""
    found: dict[str, dict[str, list[str]]] = {stage.name: {} for stage in stages}
    for stage in stages:
        for field in dataclasses.fields(stage.config):
            marks = config_lib.field_marks(type(stage.config), field.name)
            if "reads" in marks and field.name not in stage.inputs:
                paths = _outside_paths(stage.config, field.name)
                with _named(stage.name, f"config.{field.name}: "):
                    for path in paths:
                        if workdir.absolute().is_relative_to(path.absolute()):
                            raise InputError(
                                f"{path}: holds the workdir {workdir}, so that every run would "
                                "change it; pass another --config.workdir"
                            )
                    digests = [contents.of(path) for path in paths]
                if digests:
                    found[stage.name][field.name] = digests
    return found


def _read_outside(workdir: pathlib.Path, stages: list[Stage]) -> dict[str, dict[str, list[str]]]:
    """`_outside`, whose digests are kept for the next time."""
    contents = ContentDigests(workdir / _CONTENTS)
    found = _outside(workdir, stages, contents)
    contents.save()
    return found


def _outside_paths(config: Any, key: str) -> list[pathlib.Path]:
    """Files and folders that a key of a job's configuration names."""
    if hasattr(config, "reads"):
        return config.reads()
    value = getattr(config, key)
    found = []
    for where in filter(None, [value] if isinstance(value, str) else value):
        scheme, _, rest = where.partition(":")
        path = pathlib.Path(rest if scheme in ("hf", "fairseq", "torchaudio", "orbax") else where)
        name, _, which = path.name.rpartition("@")
        if scheme == "orbax" and name:  # which is the best, or the last few, all of them decide
            path = path.with_name(name) / (which if which.isdecimal() else "")
        found.append(path)
        if scheme == "torchaudio":
            beside = (path.with_name(path.name + end) for end in (".json", ".rest.safetensors"))
            found += [companion for companion in beside if companion.exists()]
    return found


def _state(
    workdir: pathlib.Path, stage: Stage, parts: Mapping[str, Any]
) -> tuple[str, bool, dict | None]:
    """What would be done about a stage, in words; whether its folder stays; a finished result."""
    directory = workdir / stage.name
    record, result = _record(directory), _result(directory)
    changes = _changes(record, parts, stage.config) if record else []
    if record and not changes:
        if result is None:
            return "continues", True, None
        if not _is_own(record, result):
            return "runs again: a job that was run by itself has written there", False, None
        written = _written(stage, directory, result)
        if gone := next((path for path in written if not path.exists()), None):
            return f"continues: {gone} is gone", True, None
        return "skipped: version, configuration and inputs are unchanged", True, result
    if aside := _aside_of(workdir, stage, parts):
        if _writes_elsewhere(stage.config):
            return "runs again: others may have written where it does", False, None
        return f"taken back from {aside}", False, _result(aside)
    if record:
        # Splits and parts that prepare has finished have keys of their own: none is ever stale.
        stays = job_of(stage.name) == "prepare" and result is None
        return f"runs again: {', '.join(changes)}", stays, None
    return "runs", False, None


def _written(
    stage: Stage, directory: pathlib.Path, result: Mapping[str, Any]
) -> Iterator[pathlib.Path]:
    """What a finished stage has written, as far as others may read it."""
    for name in outputs(stage.name, result):
        path = directory / name
        yield path
        if path.name == "manifest.json" and path.exists():
            shards = files.read_json(path, "manifest").get("shards", ())
            yield from (path.with_name(shard["file"]) for shard in shards)
            yield path.with_name("index.npz")
    if job_of(stage.name) in ("export", "convert"):
        scheme, _, model = Reference(stage.name).path("", vars(stage.config)).partition(":")
        own = scheme and model == f"/{stage.name}/model"
        yield directory / "model" if own else pathlib.Path(model)


def _writes_elsewhere(config: Any) -> bool:
    """Whether a stage's model lies outside of its folder."""
    target = getattr(config, "out", "") or getattr(config, "target", "")
    return bool(target) and not target.endswith(":")


def _run_stage(workdir: pathlib.Path, stage: Stage, parts: Mapping[str, Any]) -> tuple[dict, bool]:
    """Skips, continues or runs a stage; returns its result and whether it was skipped."""
    result = distributed.from_first(lambda: _begin(workdir, stage, parts))
    if result is not None:
        return result, True
    before = time.monotonic()

    def work() -> dict:
        return JOBS[job_of(stage.name)][1](stage.config)

    result = work() if job_of(stage.name) in _TOGETHER else distributed.from_first(work)
    distributed.from_first(lambda: _keep_result(workdir / stage.name))
    distributed.announce(f"[{stage.name}] done in {time.monotonic() - before:.1f} s")
    return result, False


def _begin(workdir: pathlib.Path, stage: Stage, parts: Mapping[str, Any]) -> dict | None:
    """Makes a stage's folder ready to work in; its result where it is finished."""
    state, stays, result = _state(workdir, stage, parts)
    print(f"[{stage.name}] {state}", flush=True)
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


def _keep_result(directory: pathlib.Path) -> None:
    """Notes which result is the pipeline's own."""
    record = {**_record(directory), "result": config_lib.digest(_result(directory))}
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
    for path in sorted(_aside(workdir, stage.name, "").parent.glob(f"{_flat(stage.name)}-*")):
        record = _record(path)
        if record and _is_own(record, _result(path)):
            if not _changes(record, parts, stage.config):
                return path
    return None


def _is_own(record: Mapping[str, Any], result: dict | None) -> bool:
    """Whether a result is the pipeline's, not of a job that was run by itself."""
    return result is None or record.get("result") in (None, config_lib.digest(result))


def _record(directory: pathlib.Path) -> dict[str, Any]:
    path = directory / _RECORD
    if not path.exists():
        return {}
    record = files.read_json(path, "record of a stage")
    if not (isinstance(record, dict) and isinstance(record.get("parts"), dict)):
        raise InputError(
            f"{path}: damaged; remove it, and what is there is set aside and made again"
        )
    return record


def _result(directory: pathlib.Path) -> dict | None:
    path = directory / "result.json"
    return files.read_json(path, "result") if path.exists() else None


def _changes(record: Mapping[str, Any], parts: Mapping[str, Any], config: Any) -> list[str]:
    """What has changed; of a key that is new in the configuration its default has not."""
    before: dict[str, Any] = record["parts"]
    given = {"config": config_lib.decisive(config)}
    return [
        line
        for part in list({**before, **parts})
        for line in _differing(
            {str(part): before.get(part, {})},
            {str(part): parts.get(part, {})},
            given if part == "config" else None,
        )
    ]


def _differing(
    before: Mapping[str, Any], now: Mapping[str, Any], given: Any, path: str = ""
) -> list[str]:
    """Keys that differ; one that is new where `given`, if any, has it."""
    found = []
    for name in {**before, **now}:
        a: Any = before.get(name, _MISSING)
        b: Any = now.get(name, _MISSING)
        if isinstance(b, Mapping) and (a is _MISSING or isinstance(a, Mapping)):
            below = None if given is None else given.get(name, {})
            if a is _MISSING:
                a = {}
            found += _differing(a, b, below, f"{path}{name}.")
        elif a != b and not (a is _MISSING and given is not None and name not in given):
            found.append(f"{path}{name}")
    return found


@contextlib.contextmanager
def _named(stage: str, key: str = "") -> Iterator[None]:
    """Errors inside begin with the stage's name, and with a key of its configuration."""
    try:
        yield
    except (InputError, Diverged, Preempted) as error:
        # The job's keys, but for the two that the pipeline has itself, are longer here.
        own = {*JOBS[job_of(stage)][0].__dataclass_fields__} - {"workdir", "distributed"}
        path = f"config.stages.{stage.replace('/', '.')}."
        message = re.sub(rf"\bconfig\.(?=({'|'.join(own)})\b)", path, f"{key}{error}")
        raise type(error)(f"[{stage}] {message}") from None


def _keep_compiled(workdir: pathlib.Path) -> None:
    """Later stages compile what earlier ones did, and continued stages what they did before."""
    import jax

    if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(workdir / "compiled"))


if __name__ == "__main__":
    asked = [each for each in sys.argv if each in ("--dry_run", "--dry-run", "-dry_run")]
    sys.argv = [argument for argument in sys.argv if argument not in asked]
    job.main("pipeline", PipelineConfig, dry_run if asked else run)
