"""What a run tells: progress lines, TensorBoard scalars, `metrics.jsonl`."""

import json
import math
import pathlib
import time

from hubert_jax import files
from hubert_jax.errors import InputError

# What depends on the machine and not on the run.
_RATE, _WAIT = "audio_seconds_per_second", "data_wait_share"


class ProgressLog:
    """Writes the scalars of a run, and one line of progress each time.

    `metrics.jsonl` holds one JSON object a line; a resumed run first drops the lines
    beyond its first step, so that every step stands there once.
    """

    def __init__(
        self, directory: pathlib.Path, first_step: int, total_steps: int, silent: bool = False
    ):
        """Opens the logs in `directory` for steps `first_step` ... `total_steps` - 1.

        `silent` ones print and write nothing: those of all processes of a run but the first.
        """
        self._silent = silent
        self._earlier: list[str] = []
        self._first_step = first_step
        self._total_steps = total_steps
        self._started = self._last = time.monotonic()
        if silent:
            return
        import tensorboardX

        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "metrics.jsonl"
        self._earlier = _complete_lines(path, first_step)
        files.write_text(path, "".join(line + "\n" for line in self._earlier))
        self._file = path.open("a", buffering=1)
        self._board = tensorboardX.SummaryWriter(
            str(directory / "tensorboard"), purge_step=first_step
        )
        self._started = self._last = time.monotonic()

    def write(
        self, step: int, scalars: dict[str, float], audio_seconds: float, waited: float
    ) -> None:
        """Logs one interval.

        Args:
          step: the last update's number, counted from 1.
          scalars: means over the interval; printed in this order.
          audio_seconds: audio trained on in the interval.
          waited: seconds of it for which the devices waited for batches.

        Raises:
          InputError: the loss or the gradient is not finite; nothing is logged then.
        """
        for name in ("loss", "gradient_norm"):
            if not math.isfinite(scalars.get(name, 0.0)):
                raise InputError(
                    f"step {step}: {name.replace('_', ' ')} is {scalars[name]}, expected a finite "
                    "number; the last checkpoint is from before: lower "
                    "config.optimizer.peak_learning_rate or look at the audio of these steps"
                )
        if self._silent:
            return
        now = time.monotonic()
        elapsed = max(now - self._last, 1e-9)
        rate, share = audio_seconds / elapsed, waited / elapsed
        self._last = now
        per_step = (now - self._started) / max(step - self._first_step, 1)
        remaining = per_step * (self._total_steps - step)
        scalars = {**scalars, _RATE: rate, _WAIT: share}
        self._file.write(json.dumps({"step": step, **scalars}) + "\n")
        for name, value in scalars.items():
            self._board.add_scalar(name, value, step)
        shown = "  ".join(
            f"{name.replace('_', ' ')} {scalars[name]:.4g}"
            for name in ("loss", "masked_loss", "masked_accuracy", "unmasked_accuracy")
            if name in scalars
        )
        print(
            f"step {step}/{self._total_steps}  {shown}  {rate:.0f} audio-s/s  "
            f"{share:.1%} waiting for data  "
            f"ETA {int(remaining // 60)}:{int(remaining % 60):02d}",
            flush=True,
        )

    def last_means(self, step: int) -> dict[str, float]:
        """The scalars that an earlier process logged at `step`; empty if it logged none there."""
        scalars = json.loads(self._earlier[-1]) if self._earlier else {}
        if scalars.pop("step", None) != step:
            return {}
        return {name: value for name, value in scalars.items() if name not in (_RATE, _WAIT)}

    def close(self) -> None:
        """Flushes and closes."""
        if self._silent:
            return
        self._file.close()
        self._board.close()


def _complete_lines(path: pathlib.Path, first_step: int) -> list[str]:
    """The lines of an earlier, perhaps interrupted, run for steps up to `first_step`."""
    if not path.exists():
        return []
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= first_step:
                kept.append(line)
        except ValueError:
            break  # the process was killed while it wrote this line
    return kept
