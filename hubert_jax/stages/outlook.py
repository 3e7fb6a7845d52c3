"""How far a pipeline has come, and how long it will take."""

import math
import sys
from collections.abc import Mapping, Sequence

from hubert_jax.errors import InputError
from hubert_jax.layout import job_of
from hubert_jax.stages.stage import JOBS, Stage

_ENOUGH = 10.0  # expected seconds, after which this machine's speed is known


class Outlook:
    """Stages in the order in which they run, with the `expected` seconds of some, by name.

    Of a training they are those of a step. What has run tells how many times as long they take on
    this machine. Raises InputError for expectations of what is no stage, or of no time.
    """

    def __init__(self, stages: Sequence[Stage], expected: Mapping[str, float]) -> None:
        self._names = [stage.name for stage in stages]
        for name, seconds in expected.items():
            if name not in self._names:
                known = ", ".join(self._names)
                raise InputError(
                    f"config.expected_seconds: no such stage {name!r}; there are {known}"
                )
            number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
            if not number or not 0 < seconds < math.inf:
                raise InputError(
                    f"config.expected_seconds: found {seconds!r} for {name}, expected seconds"
                )
        self._expected = {
            stage.name: expected[stage.name] * _steps(stage)
            for stage in stages
            if stage.name in expected
        }
        self._ahead = list(self._names)
        self._taken = self._foreseen = 0.0

    def begin(self, name: str) -> str:
        """What a stage is for, and what is ahead; one line."""
        described = sys.modules[JOBS[job_of(name)].run.__module__].__doc__ or ""
        purpose = " ".join(described.partition("\n\n")[0].split()).rstrip(".")
        text = f"{purpose}: stage {self._names.index(name) + 1} of {len(self._names)}"
        if name not in self._expected:
            return text
        after = sum(self._expected.get(each, 0.0) for each in self._ahead if each != name)
        text += f", about {self._told(self._expected[name])}"
        return f"{text}, then {self._told(after)}" if after else text

    def end(self, name: str, seconds: float = 0.0) -> None:
        """Notes that a stage took so many seconds; 0: it was skipped."""
        self._ahead.remove(name)
        if seconds and name in self._expected:
            self._taken += seconds
            self._foreseen += self._expected[name]

    def _told(self, expected: float) -> str:
        slower = self._taken / self._foreseen if self._foreseen >= _ENOUGH else 1.0
        seconds = expected * slower
        return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _steps(stage: Stage) -> int:
    trains = job_of(stage.name) in ("train", "finetune", "train_lm")
    return stage.config.loop.steps if trains else 1
