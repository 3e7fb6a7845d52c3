"""The training loop: resume, compile, step, validate, log, save."""

import contextlib
import dataclasses
import faulthandler
import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from hubert_jax import distributed
from hubert_jax.config import MayChange
from hubert_jax.errors import InputError, Preempted
from hubert_jax.training import sharding
from hubert_jax.training.checkpoint import Checkpoints, fingerprint
from hubert_jax.training.metrics import ProgressLog
from hubert_jax.training.prefetch import Prefetch
from hubert_jax.training.resume import require_same_run
from hubert_jax.training.state import abstract_state, create_state, with_parameters
from hubert_jax.training.step import compile_steps, shape_of
from hubert_jax.training.task import Task, WarmStart
from hubert_jax.training.validation import Validator

_MOST_STEPS = 100_000_000  # the bucket of each is in memory


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """Length of a run and its intervals, in updates; the last one is always logged and saved."""

    steps: int
    log_every: MayChange[int] = 50
    save_every: MayChange[int] = 1000
    keep: MayChange[int] = 2  # newest checkpoints
    stall_minutes: MayChange[int] = 30  # without a step, after which all stacks are printed

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if value < 1:
                raise InputError(f"config.loop.{name}={value}: expected 1 or more")
        if self.steps > _MOST_STEPS:
            raise InputError(f"config.loop.steps={self.steps}: expected at most {_MOST_STEPS:,}")


def require_run(seed: int, micro_batches: int, row_multiple: int) -> None:
    """Raises InputError for a seed that JAX would cut to 32 bits, or numbers out of range."""
    if not 0 <= seed < 2**32:
        raise InputError(f"config.seed={seed}: expected 0 to 4,294,967,295")
    if micro_batches < 0:
        raise InputError(f"config.micro_batches={micro_batches}: expected 0 or more")
    if row_multiple < 1:
        raise InputError(f"config.row_multiple={row_multiple}: expected 1 or more")


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """Result of a training run."""

    steps: int  # fewer than asked for where validation ended the run
    last: dict[str, float]  # means of the metrics over the last logged interval
    curves: dict[str, list[list[float]]]  # steps and values of what was logged, thinned out
    parameters: int  # how many numbers were trained
    fingerprint: str  # of the last checkpoint
    inputs: dict[str, Any]  # digests of the data, and of the network that it started from
    init_from: str  # where that network was; empty: from scratch
    resumed_from: int  # first step of this process
    mesh: dict[str, int]  # devices along each axis
    data_wait_fraction: float  # of this process's time
    validation: dict[str, Any] | None  # the best step, its value and fingerprint, the last figures


def fit(
    task: Task,
    loop: LoopConfig,
    mesh: Mesh,
    directory: pathlib.Path,
    seed: int,
    warm_start: Callable[[], WarmStart] | None = None,
    micro_batches: int = 1,
) -> TrainingResult:
    """Trains `task` to the last step of `loop`, or goes on with the run in `directory`.

    All processes have the same `directory`. `warm_start` reads the network that step 0 starts from;
    None: from scratch. Batches are computed in `micro_batches` parts, 0: as few as fit the device.
    Raises InputError for a checkpoint of another run, batches that cannot be read or cut, Diverged
    for a loss or gradient that is not finite, Preempted after SIGTERM, when a checkpoint is saved.
    """
    counts = task.micro_batch_counts(micro_batches, sharding.batch_shards(mesh))
    has_begun = any(each.name.isdecimal() for each in directory.glob("checkpoints/*"))
    # Read first: what is refused is refused before anything is compiled or written.
    start = None if has_begun or warm_start is None else warm_start()
    checkpoints = Checkpoints(directory / "checkpoints", loop.keep)
    abstract = abstract_state(task, mesh)
    metadata = {"kind": task.kind, **task.facts}
    parameters, frozen = (
        sum(leaf.size for leaf in jax.tree.leaves(part)) for part in task.divided(abstract.params)
    )
    beside = f" beside {frozen:,} that are frozen" if frozen else ""
    distributed.announce(f"{parameters:,} parameters{beside}")
    # The order of resume: the run's own checkpoint, another network's weights, scratch.
    found = checkpoints.restore_newest(
        abstract, lambda saved: require_same_run(saved, metadata, warm_start is not None, directory)
    )
    if found is not None:
        first_step, state, known = found
        metadata |= known
        began = f"; the run began with {known['init_from']}" if known["init_from"] else ""
        distributed.announce(f"resumed from the checkpoint of step {first_step}{began}")
    else:
        first_step, state = 0, create_state(task, abstract, seed)
        if warm_start is not None:
            start = start or warm_start()
            state = with_parameters(state, start.params)
            metadata["inputs"] = {**metadata["inputs"], "init_from": start.fingerprint}
            metadata["init_from"] = start.where
            distributed.require_same({"config.init_from": start.fingerprint})
            distributed.announce(start.description)

    distributed.require_same({f"{directory}: newest checkpoint": first_step})
    done, finished = first_step, first_step >= loop.steps
    validator = Validator(task.validation, metadata, goes_on=not finished)
    finished = finished or bool(validator.ends_run)
    prefetch = Prefetch(mesh, functools.partial(task.batches, first_step), task.audio_seconds)
    steps = {}
    try:
        if not finished:
            prefetch.begin()  # TensorFlow's import and the first batch take seconds
            steps = compile_steps(task, mesh, abstract, seed, counts)
            validator.compile(mesh, abstract.params)
        log = ProgressLog(directory, first_step, loop.steps, metadata.get("metrics", {}))
    except BaseException:
        prefetch.close()
        raise
    preemption = distributed.Preemption()
    running, started = None, time.monotonic()
    try:
        while not finished:
            faulthandler.dump_traceback_later(60 * loop.stall_minutes, file=2)  # stderr
            batch, audio_seconds = prefetch.take(running)
            with jax.transfer_guard("disallow"):
                state, metrics = steps[shape_of(batch)](state, batch)
            if running is not None:  # one runs, one waits; more would hold the inputs of all
                running.block_until_ready()
            running = metrics["loss"]
            log.add(metrics, audio_seconds)
            checkpoints.check()
            done, improved = done + 1, False
            if validator.is_due(done, loop.steps):
                log.require_finite(done)
                begun = time.monotonic()
                figures, improved = validator.measure(done, state.params)
                log.write_validation(done, figures, time.monotonic() - begun)
            finished = done == loop.steps or bool(validator.ends_run)
            preempted = preemption.reached(done)
            if finished or done % loop.log_every == 0:
                log.write(done, prefetch.waited)
            if finished or improved or preempted or done % loop.save_every == 0:
                log.require_finite(done)
                metadata["metrics"] = log.means
                log.keep()  # before a checkpoint says that it was
                checkpoints.save(done, state, metadata)
            if preempted:  # also after the last step: a pipeline would begin the next stage
                raise Preempted(f"SIGTERM; step {done} is saved, the same command goes on with it")
    finally:
        faulthandler.cancel_dump_traceback_later()
        with contextlib.ExitStack() as last_first:
            last_first.callback(preemption.close)  # or SIGTERM cuts off what is being saved
            for each in (log, checkpoints, prefetch):
                last_first.callback(each.close)
    if preemption.received:
        raise Preempted(f"SIGTERM; step {done}, the last, is saved; the same command goes on")
    if why := validator.ends_run:
        distributed.announce(f"the run ended at step {done}: {why}")
    return TrainingResult(
        steps=done,
        last=log.means,
        curves=log.curves(),
        parameters=parameters,
        fingerprint=fingerprint({**metadata, "step": done}),
        inputs=metadata["inputs"],
        init_from=metadata.get("init_from", ""),
        resumed_from=first_step,
        mesh=dict(mesh.shape),
        data_wait_fraction=prefetch.waited / (time.monotonic() - started),
        validation=validator.result(),
    )
