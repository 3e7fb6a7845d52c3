"""The training loop: resume, compile, step, log, save."""

import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from hubert_jax.config import MayChange
from hubert_jax.errors import InputError
from hubert_jax.training import distributed
from hubert_jax.training.checkpoint import Checkpoints, fingerprint
from hubert_jax.training.metrics import ProgressLog
from hubert_jax.training.prefetch import Prefetch
from hubert_jax.training.resume import require_same_run
from hubert_jax.training.state import abstract_state, create_state, with_parameters
from hubert_jax.training.step import compile_steps, shape_of
from hubert_jax.training.task import Task, WarmStart


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """Length of a run, and the intervals of its log and its checkpoints.

    Attributes:
      steps: updates in all; the schedules span them.
      log_every: updates between progress lines; the last update is always logged.
      save_every: updates between checkpoints; the last update is always saved.
      keep: newest checkpoints kept.
    """

    steps: int
    log_every: MayChange[int] = 50
    save_every: MayChange[int] = 1000
    keep: MayChange[int] = 2

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise InputError(
                    f"config.loop.{field.name}={getattr(self, field.name)}: expected 1 or more"
                )


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Result of a training run.

    Attributes:
      last: means of the metrics over the last logged interval.
      parameters: how many numbers were trained.
      fingerprint: of the last checkpoint.
      inputs: digests of what it was trained on, and of the network that it started from.
      resumed_from: first step of this process, 0 without a checkpoint.
      data_wait_fraction: fraction of this process's time in which its devices waited for data.
    """

    last: dict[str, float]
    parameters: int
    fingerprint: str
    inputs: dict[str, Any]
    resumed_from: int
    data_wait_fraction: float


def fit(
    task: Task,
    loop: LoopConfig,
    mesh: Mesh,
    directory: pathlib.Path,
    seed: int,
    warm_start: Callable[[], WarmStart] | None = None,
) -> Outcome:
    """Trains to the last step.

    Args:
      task: what is trained.
      loop: how long.
      mesh: the device mesh.
      directory: the run's: `checkpoints`, `metrics.jsonl`, `tensorboard`; the same one for all
        processes, of which the first writes the logs.
      seed: of initialisation and of the randomness of every step.
      warm_start: reads the network that step 0 starts from; None: start from scratch.

    Raises:
      InputError: a checkpoint of another run, or batches that cannot be read.
      Diverged: a loss or gradient that is not finite.
    """
    checkpoints = Checkpoints(directory / "checkpoints", loop.keep)
    abstract = abstract_state(task, mesh)
    metadata = {"kind": task.kind, **task.facts}
    parameters = sum(leaf.size for leaf in jax.tree.leaves(abstract.params))
    distributed.announce(f"{parameters:,} parameters")
    # The order of resume: the run's own checkpoint, another network's weights, scratch.
    first_step = 0
    if checkpoints.latest_step is not None:
        expected, warm = dict(metadata), warm_start is not None
        first_step, state, known = checkpoints.restore_newest(
            abstract, lambda found: require_same_run(found, expected, warm, directory)
        )
        metadata |= known
        distributed.announce(f"resumed from the checkpoint of step {first_step}")
    else:
        state = create_state(task, mesh, seed)
        if warm_start is not None:
            start = warm_start()
            state = with_parameters(state, start.params)
            metadata["inputs"] = {**metadata["inputs"], "init_from": start.fingerprint}
            distributed.announce(start.description)

    steps = compile_steps(task, mesh, abstract, seed) if first_step < loop.steps else {}
    log = ProgressLog(directory, first_step, loop.steps, metadata.get("metrics", {}))
    prefetch = Prefetch(mesh, task.batches(first_step))
    running, started = None, time.monotonic()
    try:
        for step in range(first_step, loop.steps):
            batch, audio_seconds = prefetch.take(running)
            with jax.transfer_guard("disallow"):
                state, metrics = steps[shape_of(batch)](state, batch)
            if running is not None:
                # One step runs and one waits; more would hold the inputs of all of them.
                running.block_until_ready()
            running = metrics["loss"]
            log.add(metrics, audio_seconds)
            done, last = step + 1, step + 1 == loop.steps
            if last or done % loop.log_every == 0:
                log.write(done, prefetch.waited)
            if last or done % loop.save_every == 0:
                log.require_finite(done)
                metadata["metrics"] = log.means
                checkpoints.save(done, state, metadata)
    finally:
        prefetch.close()
        checkpoints.close()
        log.close()
    return Outcome(
        last=log.means,
        parameters=parameters,
        fingerprint=fingerprint({**metadata, "step": loop.steps}),
        inputs=metadata["inputs"],
        resumed_from=first_step,
        data_wait_fraction=prefetch.waited / (time.monotonic() - started),
    )
