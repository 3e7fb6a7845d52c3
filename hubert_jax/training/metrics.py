"""Progress lines, TensorBoard scalars and `metrics.jsonl` of a run."""

import json
import math
import pathlib
import time

import jax
import numpy as np

from hubert_jax import distributed, files, storage
from hubert_jax.data.scalars import ScalarWriter
from hubert_jax.errors import Diverged

_SHOWN = ("loss", "masked_loss", "masked_accuracy", "unmasked_accuracy", "learning_rate")
_EARLY_STEPS = 10  # after which the first estimate of a run's time is made
_POINTS = 120  # of a curve, at most
_KEPT_SECONDS = 60


class ProgressLog:
    """Means of a run's metrics over intervals of steps; of several processes the first writes.

    Of a bucket's directory they are written on this host, and sent by `keep` and each minute. A
    resumed run drops the lines of `metrics.jsonl` beyond its first step. `means` are of the last
    interval, at first those of the checkpoint; of a vector of counts NAME they have `entropy/NAME`,
    in nats, of the interval's sum.
    """

    def __init__(
        self, directory: pathlib.Path, first_step: int, total_steps: int, means: dict[str, float]
    ):
        self.means = means
        self._first_step, self._total_steps = first_step, total_steps
        self._pending: list[dict[str, jax.Array]] = []  # still on the device
        self._interval: list[dict[str, np.ndarray]] = []
        self._audio_seconds = self._waited = 0.0
        self._writes = distributed.is_first()
        self._copy, self._kept = None, time.monotonic()
        if self._writes:
            if isinstance(directory, storage.BucketPath):
                self._copy = storage.WorkingCopy(directory, ["metrics.jsonl"])
                directory = self._copy.local
            directory.mkdir(parents=True, exist_ok=True)
            path = directory / "metrics.jsonl"
            earlier = _complete_lines(path, first_step)
            files.write_text(path, "".join(line + "\n" for line in earlier))
            self._file = path.open("a", buffering=1)
            self._board = ScalarWriter(directory / "tensorboard", first_step)
        self._started = self._last = time.monotonic()

    def add(self, metrics: dict[str, jax.Array], audio_seconds: float) -> None:
        """Takes a step's metrics without waiting for them, and the seconds of audio it saw."""
        self._pending.append(metrics)
        self._audio_seconds += audio_seconds
        if len(self._pending) == _EARLY_STEPS + 1 and not self._interval and self._writes:
            # Of the first interval alone, which may take hours: afterwards every line tells.
            if self._started == self._last:
                left = self._total_steps - self._first_step - _EARLY_STEPS
                print(
                    f"{self._to_go(_EARLY_STEPS, left)} to go, by {_EARLY_STEPS} steps", flush=True
                )

    def require_finite(self, step: int) -> None:
        """Waits for all steps so far, `step` of them; raises Diverged at one that is not finite."""
        first = step - len(self._pending) + 1
        fetched = jax.device_get(self._pending)
        for number, metrics in enumerate(fetched, first):
            updates = [name for name in metrics if name.startswith("update_rms/")]
            for name in ("loss", "gradient_norm", *updates):
                if not math.isfinite(metrics[name]):
                    raise Diverged(
                        f"step {number}: {name.replace('_', ' ')} is {metrics[name]}, expected a "
                        "finite number; the last checkpoint is of an earlier step: lower "
                        "config.optimizer.peak_learning_rate or look at the audio of this step"
                    )
        self._interval += fetched
        self._pending = []

    def write(self, step: int, waited: float) -> None:
        """Logs the interval that ends with `step`, or raises Diverged; `waited`: seconds so far."""
        self.require_finite(step)
        names = self._interval[0]
        columns = {name: [metrics[name] for metrics in self._interval] for name in names}
        self.means = {
            name: math.fsum(values) / len(values)
            for name, values in columns.items()
            if not np.ndim(values[0])
        }
        for name in sorted(columns.keys() - self.means.keys()):
            self.means[f"entropy/{name}"] = _entropy(np.sum(columns[name], axis=0, dtype=float))
        now = time.monotonic()
        elapsed = max(now - self._last, 1e-9)
        rate, fraction = self._audio_seconds / elapsed, (waited - self._waited) / elapsed
        self._last, self._waited, self._audio_seconds, self._interval = now, waited, 0.0, []
        if not self._writes:
            return
        scalars = self.means | {"audio_seconds_per_second": rate, "data_wait_fraction": fraction}
        self._file.write(json.dumps({"step": step, **scalars}) + "\n")
        self._board.write(step, scalars)
        shown = "  ".join(
            f"{name.replace('_', ' ')} {scalars[name]:.4g}" for name in _SHOWN if name in scalars
        )
        to_go = self._to_go(max(step - self._first_step, 1), self._total_steps - step)
        speed = f"{rate:.0f} audio-s/s  " if rate else ""
        print(
            f"step {step}/{self._total_steps}  {shown}  {speed}"
            f"{fraction:.1%} waiting for data  ETA {to_go}",
            flush=True,
        )
        if now - self._kept > _KEPT_SECONDS:
            self.keep()

    def keep(self) -> None:
        """Sends what was logged so far, if it goes to a bucket; raises OSError if it cannot."""
        self._kept = time.monotonic()
        if self._copy:
            self._copy.push()

    def _to_go(self, done: int, left: int) -> str:
        """H:MM:SS that `left` steps take if they take as long as those `done` have."""
        seconds = int((time.monotonic() - self._started) / done * left)
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"

    def write_validation(self, step: int, figures: dict[str, float], seconds: float) -> None:
        """Logs what a validation after `step` found; its seconds count for no interval."""
        self._last += seconds
        if not self._writes:
            return
        scalars = {f"validation/{name}": value for name, value in figures.items()}
        self._file.write(json.dumps({"step": step, **scalars}) + "\n")
        self._board.write(step, scalars)
        shown = "  ".join(
            f"{name.replace('_', ' ')} {value:.4g}" for name, value in figures.items()
        )
        print(f"step {step}/{self._total_steps}  validation: {shown}  {seconds:.1f} s", flush=True)

    def curves(self) -> dict[str, list[list[float]]]:
        """Steps and values of what progress lines show, means of neighbours where there are many.

        Of all processes the first has them.
        """
        if not self._writes:
            return {}
        rows = [json.loads(line) for line in storage.path(self._file.name).read_text().splitlines()]
        found = {name: [[r["step"], r[name]] for r in rows if name in r] for name in _SHOWN}
        return {name: _thinned(points) for name, points in found.items() if points}

    def close(self) -> None:
        """Flushes and closes."""
        if self._writes:
            self._file.close()
            self._board.close()
            self.keep()


def _thinned(points: list[list[float]]) -> list[list[float]]:
    parts = np.array_split(np.array(points), min(len(points), _POINTS))
    return np.array([part.mean(axis=0) for part in parts]).T.tolist()


def _entropy(counts: np.ndarray) -> float:
    fractions = counts[counts > 0] / max(counts.sum(), 1)
    return float(-np.sum(fractions * np.log(fractions)))


def _complete_lines(path: pathlib.Path, first_step: int) -> list[str]:
    """The lines of an earlier, perhaps interrupted, run for steps up to `first_step`."""
    kept = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            if json.loads(line)["step"] <= first_step:
                kept.append(line)
        except (ValueError, TypeError, KeyError):
            break  # the process was killed, or the machine, while it wrote this line
    return kept
