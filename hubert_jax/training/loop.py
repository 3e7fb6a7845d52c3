"""The loop that pre-training and fine-tuning share: restore, step, log, save."""

import dataclasses
import math
import pathlib
import time
from collections.abc import Callable, Generator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from hubert_jax import config as config_lib
from hubert_jax.errors import InputError
from hubert_jax.training import processes
from hubert_jax.training.checkpoint import Checkpoints
from hubert_jax.training.feed import Feed
from hubert_jax.training.metrics import ProgressLog
from hubert_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How long and how often.

    Attributes:
      steps: updates in all; the schedules span them.
      log_every: updates between progress lines; the last update is always logged.
      save_every: updates between checkpoints, a multiple of `log_every`, so that a checkpoint
        never cuts an interval of means in two; the last update is always saved.
      keep: newest checkpoints kept.
    """

    steps: int
    log_every: int = 50
    save_every: int = 1000
    keep: int = 2

    def __post_init__(self):
        for name in ("steps", "log_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise InputError(f"config.loop.{name}={getattr(self, name)}: expected 1 or more")
        # A run that ends before its first regular checkpoint saves at its last update alone.
        if self.save_every % self.log_every and self.save_every < self.steps:
            raise InputError(
                f"config.loop.save_every={self.save_every}: expected a multiple of "
                f"config.loop.log_every={self.log_every}"
            )


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run has come to, and how this process got there.

    Attributes:
      last: means of the metrics over the last logged interval.
      resumed_from: the first step of this process, 0 without a checkpoint.
      data_wait_share: share of the time of its steps for which its devices waited for batches; 0
        if none was left to do.
    """

    last: dict[str, float]
    resumed_from: int
    data_wait_share: float


def run_digest(config: Any, paths: tuple[str, ...]) -> str:
    """Digest of all that decides a run's weights, for the `inputs` of its checkpoints.

    Args:
      config: the job's configuration, with a `LoopConfig` under `loop`.
      paths: its keys that say only where something lies; how often is logged and saved is left
        out too.
    """
    values = config_lib.to_dict(config)
    for key in paths:
        del values[key]
    values["loop"] = {"steps": config.loop.steps}
    return config_lib.digest(values)


def run_loop(
    config: LoopConfig,
    directory: pathlib.Path,
    metadata: dict,
    mesh: Mesh,
    new_state: Callable[[], TrainState],
    abstract: TrainState,
    step_function: Callable[[int], Callable[[TrainState, dict], tuple[TrainState, dict]]],
    batches: Callable[[int], Generator[dict[str, np.ndarray]]],
) -> Outcome:
    """Trains to the last step, from the newest checkpoint of `directory` or from `new_state`.

    Args:
      config: how long and how often.
      directory: the run's; holds `checkpoints`, `metrics.jsonl`, `tensorboard`; of several
        processes all need the same one, and the first alone writes the logs.
      metadata: the JSON document of every checkpoint; a checkpoint found with other `inputs` or
        another `model` is refused.
      mesh: the device mesh.
      new_state: makes the state of step 0; called when there is no checkpoint.
      abstract: shapes and shardings of the state.
      step_function: step -> the compiled update for that step.
      batches: first step -> this host's batches from there on; a batch's `waveform` (B, N)
        counts as B x N / 16000 seconds of audio.

    Raises:
      InputError: a checkpoint of another run, batches that cannot be read, or a loss or gradient
        that is not finite.
    """
    checkpoints = Checkpoints(directory / "checkpoints", config.keep)
    first_step = checkpoints.latest_step or 0
    if checkpoints.latest_step is None:
        state = new_state()
    else:
        _require_same_run(checkpoints.metadata(first_step), metadata, directory)
        state = checkpoints.restore(first_step, abstract)
        processes.announce(f"resumed from the checkpoint of step {first_step}")
    log = ProgressLog(directory, first_step, config.steps, silent=not processes.is_first())
    pending: list[dict] = []  # metrics still on the device
    audio_seconds = wait_logged = wait_share = 0.0
    means = log.last_means(first_step)
    feed = Feed(mesh, batches(first_step))
    running = None
    started = time.monotonic()
    try:
        for step in range(first_step, config.steps):
            batch, seconds = feed.take(running)
            audio_seconds += seconds
            with jax.set_mesh(mesh):  # kernels that XLA cannot cut over devices by itself ask it
                state, metrics = step_function(step)(state, batch)
            if running is not None:
                # One step runs and one waits; more would hold the inputs of all of them.
                running.block_until_ready()
            running = metrics["loss"]
            pending.append(metrics)
            done = step + 1
            if done % config.log_every == 0 or done == config.steps:
                means = _means(jax.device_get(pending))
                log.write(done, means, audio_seconds, feed.waited - wait_logged)
                pending, audio_seconds, wait_logged = [], 0.0, feed.waited
                wait_share = feed.waited / (time.monotonic() - started)
            if done % config.save_every == 0 or done == config.steps:
                checkpoints.save(done, state, metadata)
    finally:
        feed.close()
        checkpoints.close()
        log.close()
    return Outcome(means, first_step, wait_share)


def _means(metrics: list[dict[str, np.ndarray]]) -> dict[str, float]:
    return {
        name: math.fsum(float(entry[name]) for entry in metrics) / len(metrics)
        for name in metrics[0]
    }


def _require_same_run(found: dict, expected: dict, directory: pathlib.Path) -> None:
    if all(found.get(key) == expected[key] for key in ("kind", "model", "inputs")):
        return
    differing = _differing(found.get("config", {}), expected["config"], "config")
    if found.get("kind") != expected["kind"] or not differing:
        # Paths may be the same while what lies there is not.
        differing = [
            name
            for key in ("kind", "inputs")
            for name in _differing(found.get(key, {}), expected[key], key)
        ]
    raise InputError(
        f"{directory}: its checkpoint is of another run, these differ: {'; '.join(differing)}; "
        "use another config.workdir, or remove this directory to begin again"
    )


def _differing(found, expected, path: str) -> list[str]:
    """`path: found, expected` of every leaf that differs between two configurations."""
    if isinstance(found, dict) and isinstance(expected, dict):
        return [
            line
            for name in {**found, **expected}
            for line in _differing(found.get(name), expected.get(name), f"{path}.{name}")
        ]
    if found == expected:
        return []
    return [f"{path} was {found!r:.40}, is {expected!r:.40}"]
