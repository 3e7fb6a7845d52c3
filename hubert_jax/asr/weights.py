"""Searches the weights of equation 4 that give the fewest errors, by Optuna."""

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from hubert_jax import storage
from hubert_jax.asr.search import BeamSearch
from hubert_jax.errors import InputError

_RANGES = ("lm_weight", "word_score", "silence_score")


@dataclasses.dataclass(frozen=True)
class WeightSearch:
    """How weights are searched, and between which: the paper's ranges of its n-gram."""

    trials: int = 0  # 60 in the paper; 0: none, the given weights are taken
    lm_weight: tuple[float, ...] = (0.0, 8.0)
    word_score: tuple[float, ...] = (-5.0, 5.0)
    silence_score: tuple[float, ...] = (-10.0, 0.0)
    beam: tuple[int, ...] = ()  # widths to choose from; empty: search.beam
    seed: int = 0

    def __post_init__(self) -> None:
        if self.trials < 0 or self.seed < 0:
            key = "trials" if self.trials < 0 else "seed"
            raise InputError(f"config.weights.{key}={getattr(self, key)}: expected 0 or more")
        for key in _RANGES:
            found = getattr(self, key)
            if len(found) != 2 or not found[0] <= found[1]:
                raise InputError(f"config.weights.{key}={found}: expected the least and the most")
        if min(self.beam, default=1) < 1:
            raise InputError(f"config.weights.beam={self.beam}: expected widths of at least 1")

    def require_start(self, start: BeamSearch) -> None:
        """Raises InputError where the search could not begin with the weights that are given."""
        for key in _RANGES:
            value, (least, most) = getattr(start, key), getattr(self, key)
            if value is not None and not least <= value <= most:
                raise InputError(
                    f"config.search.{key}={value}: the search begins with it; expected one in "
                    f"config.weights.{key}={(least, most)}"
                )
        if self.beam and start.beam not in self.beam:
            raise InputError(
                f"config.search.beam={start.beam}: the search begins with it; expected one of "
                f"config.weights.beam={self.beam}"
            )


def find(
    asked: WeightSearch,
    start: BeamSearch,
    error_rate: Callable[[BeamSearch], float],
    journal: pathlib.Path,
    study_name: str,
    tell: Callable[[str], Any],
) -> tuple[BeamSearch, list[dict[str, Any]]]:
    """The weights of the lowest error rate, and all trials as [{weights, error_rate}].

    The first trial is `start`, whose weights are in the ranges, so that nothing worse is found.
    Trials of the same `study_name` that the file `journal` has are not done again; `tell` gets a
    line on each one. Raises InputError where `journal` is damaged.
    """
    with _kept(journal) as (file, keep):
        return _found(asked, start, error_rate, file, keep, study_name, tell)


@contextlib.contextmanager
def _kept(journal: pathlib.Path) -> Iterator[tuple[pathlib.Path, Callable[[], None]]]:
    """A local file of what `journal` has, and what makes `journal` have what the file has."""
    if not isinstance(journal, storage.BucketPath):
        yield journal, lambda: None
        return
    copy = storage.WorkingCopy(journal.parent, [journal.name])
    with contextlib.closing(copy):
        yield copy.local / journal.name, lambda: copy.push(ready=lambda name: name == journal.name)


def _found(
    asked: WeightSearch,
    start: BeamSearch,
    error_rate: Callable[[BeamSearch], float],
    journal: pathlib.Path,
    keep: Callable[[], None],
    study_name: str,
    tell: Callable[[str], Any],
) -> tuple[BeamSearch, list[dict[str, Any]]]:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal.parent.mkdir(parents=True, exist_ok=True)
    if journal.exists():
        _require_whole(journal)
    # Of a killed call; Optuna would wait for it. Its caller's lock keeps others out.
    journal.with_name(f"{journal.name}.lock").unlink(missing_ok=True)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(journal.absolute()))),  # its lock is a link
        study_name=study_name,
        load_if_exists=True,
    )

    def finished() -> list[Any]:
        return study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))

    widths = asked.beam or (start.beam,)
    if not finished():
        study.enqueue_trial({key: getattr(start, key) for key in (*_RANGES, "beam")})
    while (done := len(finished())) < asked.trials:
        # Its state is not kept: a trial depends on those before and its own number.
        study.sampler = optuna.samplers.TPESampler(seed=asked.seed + done)
        trial = study.ask()
        found: dict[str, Any] = {
            key: trial.suggest_float(key, *getattr(asked, key)) for key in _RANGES
        }
        found["beam"] = trial.suggest_categorical("beam", widths)
        rate = error_rate(dataclasses.replace(start, **found))
        study.tell(trial, rate)
        keep()
        listed = ", ".join(f"{key} {value:.4g}" for key, value in found.items())
        tell(
            f"trial {done + 1} of {asked.trials}: WER {100 * rate:.2f} % with {listed}; best "
            f"{100 * study.best_value:.2f} %"
        )
    trials = [trial.params | {"error_rate": trial.value} for trial in finished()]
    return dataclasses.replace(start, **study.best_params), trials


def _require_whole(journal: pathlib.Path) -> None:
    """Cuts off a last line that a full disk or a kill has cut; Optuna would append to it."""
    whole, newline, _ = journal.read_bytes().rpartition(b"\n")
    os.truncate(journal, len(whole) + len(newline))
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            json.loads(line)
        except ValueError:
            raise InputError(
                f"{journal}: line {number} is damaged, expected what Optuna has written; put the "
                "file back, or remove it, and its trials are done again"
            ) from None
