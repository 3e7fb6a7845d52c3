"""Runs the stages of one configuration in the order of their inputs, and writes the report.

A stage runs again only when its job's version, its configuration or the content of its inputs has
changed; its old output is set aside, and comes back when the change is undone. `--dry_run` prints
what would run, and why, and touches nothing.
"""

import dataclasses
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Any

from hubert_jax import distributed, files, job, storage
from hubert_jax.config import MayChange
from hubert_jax.distributed import DistributedConfig
from hubert_jax.errors import InputError
from hubert_jax.layout import job_of
from hubert_jax.report import rehearsal
from hubert_jax.report.assemble import ReportConfig, assemble
from hubert_jax.stages import plan as stage_plan
from hubert_jax.stages import records
from hubert_jax.stages.fits import require_data, require_fits
from hubert_jax.stages.outlook import Outlook
from hubert_jax.stages.stage import JOBS, Stage, named
from hubert_jax.training import sharding


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
    # By stage, of a training those of a step; others may take as many times as long.
    expected_seconds: MayChange[Any] = None

    @staticmethod
    def with_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
        """`values` with every key of every stage's job, so that all of them can be overridden."""
        complete = dict(stage_plan.group(values, "config").items())
        return {**complete, "stages": stage_plan.with_defaults(complete.get("stages", {}))}


def run(config: PipelineConfig) -> dict:
    """Runs what has to run; returns the content of `WORKDIR/report.json`.

    Raises InputError and Diverged of any stage, with the stage's name.
    """
    stages = plan(config)
    recipe = _recipe(config, stages)
    outlook = Outlook(stages, config.expected_seconds or {})
    workdir = files.require_writable(config.workdir)
    distributed.join(config)
    with distributed.locked(workdir / ".lock", "pipeline"):
        _keep_compiled(workdir)
        distributed.from_first(lambda: _require_devices(workdir, stages))
        outside = distributed.from_first(lambda: records.read_outside(workdir, stages))
        results: dict[str, dict] = {}
        skipped: list[str] = []
        checked: set[str] = set()
        for stage in stages:
            with named(stage.name):
                parts = records.key_parts(stage, stages, results, outside[stage.name])
                state = _state(workdir, stage, parts)
            if state[2] is None and job_of(stage.name) != "prepare":
                # Before anything is set aside.
                _require_data(workdir, stage, stages, results, checked)
            with named(stage.name):
                result = _begin(workdir, stage, parts, state)
                if result is None:
                    results[stage.name] = _run_stage(workdir, stage, outlook)
                else:
                    results[stage.name] = result
                    skipped.append(stage.name)
                    outlook.end(stage.name)
        rehearsed = _rehearsed(recipe, stages, results)
        return distributed.from_first(
            lambda: assemble(workdir, config.report, results, skipped, rehearsed)
        )


def dry_run(config: PipelineConfig) -> dict:
    """Prints every stage, whether it would run, and why; touches nothing."""
    workdir = storage.path(config.workdir)
    results: dict[str, dict] = {}
    runs: list[str] = []
    elsewhere: set[str] = set()  # what would be taken back first
    stages = plan(config)
    Outlook(stages, config.expected_seconds or {})  # which refuses what it does not understand
    outside = records.read_outside(workdir, stages, keeps=False)
    for stage in stages:
        sources = {ref.stage for refs in stage.inputs.values() for ref in refs}
        waiting = [name for name in sorted(sources) if name not in results]
        if waiting:
            state = f"runs after {', '.join(waiting)}, unless they give the same again"
            if changes := records.own_changes(workdir, stage, outside[stage.name]):
                state = f"runs again after {', '.join(waiting)}: {', '.join(changes)}"
        else:
            with named(stage.name):
                parts = records.key_parts(stage, stages, results, outside[stage.name])
                state, stays, result = records.state_of(workdir, stage, parts)
            if result is not None:
                results[stage.name] = result
                elsewhere |= set() if stays else {stage.name}
        if stage.name not in results:
            runs.append(stage.name)
            if _is_prepared(stage, results) and not elsewhere & sources:
                with named(stage.name):
                    require_data(stage, attached=False)
        print(f"[{stage.name}] {state}", flush=True)
    return {"runs": runs}


def plan(config: PipelineConfig) -> list[Stage]:
    """All stages, inputs first; raises InputError for what could not run, or not be reported."""
    stages = stage_plan.plan(config.workdir, config.stages)
    by_name = {stage.name: stage for stage in stages}
    for stage in stages:  # what is wrong is told of the first that names it
        with named(stage.name):
            require_fits(stage, by_name)
    groups = dict.fromkeys(stage.name.rpartition("/")[0] for stage in stages)
    report = config.report
    named_in = {"iterations": report.iterations, "recognisers": report.recognisers}
    for key, names in {**named_in, "controls": report.control_of}.items():
        for name in names:
            if name not in groups:
                known = ", ".join(filter(None, groups))
                raise InputError(f"config.report.{key}: no such group {name!r}; there are {known}")
    return stages


def _recipe(config: PipelineConfig, stages: list[Stage]) -> dict[str, Any]:
    """The recipe's configuration of every stage; empty where nothing is rehearsed."""
    if not config.recipe:
        return {}
    planned = stage_plan.plan(config.workdir, config.recipe)
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


def _state(workdir: pathlib.Path, stage: Stage, parts: Mapping[str, Any]) -> records.State:
    return distributed.from_first(lambda: records.state_of(workdir, stage, parts))


def _begin(
    workdir: pathlib.Path, stage: Stage, parts: Mapping[str, Any], state: records.State
) -> dict | None:
    return distributed.from_first(lambda: records.begin(workdir, stage, parts, state))


def _is_prepared(stage: Stage, results: Mapping[str, dict]) -> bool:
    """Whether the splits that a stage reads are there."""
    splits = stage.splits().values()
    return all(reference.stage in results for read in splits for reference in read)


def _require_devices(workdir: pathlib.Path, stages: list[Stage]) -> None:
    """Refuses meshes that do not fit the devices, but of what has finished and may be skipped."""
    for stage in stages:
        trains = hasattr(stage.config, "mesh") and job_of(stage.name) != "check"
        if trains and not records.has_finished(workdir, stage.name):
            with named(stage.name):
                sharding.make_mesh(stage.config.mesh)


def _require_data(
    workdir: pathlib.Path,
    running: Stage,
    stages: list[Stage],
    results: Mapping[str, dict],
    checked: set[str],
) -> None:
    """Refuses what later stages could not train on, once: not after days of earlier ones.

    What has been trained as it is now, and does not read what is `running`, is taken as it is.
    """
    after = {running.name}
    for stage in stages:
        if any(reference.stage in after for refs in stage.inputs.values() for reference in refs):
            after.add(stage.name)
        if stage.name in {*checked, *results} or not _is_prepared(stage, results):
            continue

        def is_wanted(stage: Stage = stage) -> bool:
            return stage.name in after or not records.was_made(workdir, stage, results)

        with named(stage.name):
            if distributed.from_first(is_wanted):  # else it is looked at when what it reads runs
                require_data(stage)  # in all processes, which it asks to wait for the first
                checked.add(stage.name)


def _run_stage(workdir: pathlib.Path, stage: Stage, outlook: Outlook) -> dict:
    """Runs a stage in its folder, which `records.begin` has made ready; returns its result."""
    distributed.announce(f"[{stage.name}] {outlook.begin(stage.name)}")
    before = time.monotonic()
    found = JOBS[job_of(stage.name)]

    def work() -> dict:
        return found.run(stage.config)

    result = work() if found.together else distributed.from_first(work)
    distributed.from_first(lambda: records.keep_result(workdir / stage.name))
    taken = time.monotonic() - before
    outlook.end(stage.name, taken)
    distributed.announce(f"[{stage.name}] done in {taken:.1f} s")
    return result


def _keep_compiled(workdir: pathlib.Path) -> None:
    """Later stages compile what earlier ones did, and continued stages what they did before."""
    import jax

    if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        # On this host: of buckets JAX uses TensorFlow's file systems, which lack s3://.
        compiled = storage.scratch(workdir / "compiled")
        jax.config.update("jax_compilation_cache_dir", str(compiled))


if __name__ == "__main__":
    asked = [each for each in sys.argv if each in ("--dry_run", "--dry-run", "-dry_run")]
    sys.argv = [argument for argument in sys.argv if argument not in asked]
    job.main("pipeline", PipelineConfig, dry_run if asked else run)
