"""How far a pipeline has come, and how long it will take."""

import sys
from collections.abc import Mapping, Sequence

from hubert_jax.errors import InputError
from hubert_jax.layout import job_of
from hubert_jax.stages.stage import JOBS

_ENOUGH = 10.0  # expected seconds, after which this machine's speed is known


class Outlook:
    """Stages in the order in which they run, with the seconds that some are expected to take.

    What has run tells how many times as long they take on this machine. Raises InputError for
    expectations of what is no stage, or of no time.
    """

    def __init__(self, names: Sequence[str], expected: Mapping[str, float]) -> None:
        for name, seconds in expected.items():
            if name not in names:
                known = ", ".join(names)
                raise InputError(
                    f"config.expected_seconds: no such stage {name!r}; there are {known}"
                )
            if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or seconds <= 0:
                raise InputError(
                    f"config.expected_seconds: found {seconds!r} for {name}, expected seconds"
                )
        self._names, self._expected = list(names), dict(expected)
        self._ahead = list(names)
        self._taken = self._foreseen = 0.0

    def begin(self, name: str) -> str:
        """What a stage is for, and what is ahead; one line."""
        purpose = (sys.modules[JOBS[job_of(name)].run.__module__].__doc__ or "").partition("\n\n")[
            0
        ]
        place = f"stage {self._names.index(name) + 1} of {len(self._names)}"
        text = f"{' '.join(purpose.split()).rstrip('.')}: {place}"
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
