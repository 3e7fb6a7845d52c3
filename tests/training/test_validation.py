"""Validation within a run: the best checkpoint, the early end, and what a resumed run knows."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from hubert_jax import config as config_lib
from hubert_jax.errors import InputError
from hubert_jax.tasks.ctc import FinetuneConfig
from hubert_jax.tasks.held_out import ValidationConfig
from hubert_jax.tasks.pretraining import TrainConfig
from hubert_jax.training import checkpoint, sharding
from hubert_jax.training.checkpoint import restore_parameters
from hubert_jax.training.fit import LoopConfig, fit
from hubert_jax.training.sharding import MeshConfig
from hubert_jax.training.task import Task, Validation
from hubert_jax.training.validation import Validator

pytestmark = pytest.mark.usefixtures("two_devices")

# What validation finds after each of the steps 1, 2, ...
ERRORS = (9.0, 5.0, 3.0, 6.0, 3.0, 4.0, 4.0, 4.0, 4.0, 7.0)


def countdown(errors=ERRORS, **changes) -> Task:
    """A parameter that each step lowers by 1, so that validation knows the step by it."""

    def batches(count):
        for _ in range(count):
            yield {"rows": np.ones((8,), np.float32)}

    validation = Validation(
        batch_shapes=({"rows": jax.ShapeDtypeStruct((8,), jnp.float32)},),
        batches=lambda: batches(3),
        evaluate=lambda params, batch: {
            "sum": jnp.array((0.0, *errors))[-params["x"].astype(int)] * batch["rows"].sum(),
            "rows": batch["rows"],
        },
        summarise=lambda found: {
            "error": sum(float(sums["sum"]) for sums in found)
            / sum(float(sums["rows"].sum()) for sums in found)
        },
        facts={"audio": "a digest"},
        **{"every": 1, "metric": "error", "larger_is_better": False, "patience": 0, **changes},
    )
    return Task(
        kind="countdown",
        init=lambda key: {"x": jnp.zeros(())},
        loss=lambda params, batch, key, step: (params["x"] * batch["rows"].mean(), {}),
        optimizer=optax.sgd(1.0),
        learning_rate=lambda step: 1.0,
        batch_shapes=({"rows": jax.ShapeDtypeStruct((8,), jnp.float32)},),
        batches=lambda first_step: batches(len(errors) - first_step),
        facts={"inputs": {}, "config": {}, "decisive": {}, "rows": {}, "version": 1},
        sharding_rules=((".*", PartitionSpec()),),
        validation=validation,
    )


def _fit(directory, task=None, **loop):
    task = task or countdown()
    loop = LoopConfig(len(ERRORS), **{"log_every": 5, "save_every": 5, **loop})
    return fit(task, loop, sharding.make_mesh(MeshConfig()), directory, seed=3)


def _saved(directory) -> list[int]:
    return sorted(int(path.name) for path in (directory / "checkpoints").iterdir())


def _lines(directory) -> list[dict]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").open()]
    for line in lines:
        line.pop("audio_seconds_per_second", None), line.pop("data_wait_fraction", None)
    return lines


def test_the_best_checkpoint_is_kept_while_the_newest_move_on(tmp_path, capsys):
    result = _fit(tmp_path)
    # The same value again, at step 5, is not better.
    assert _saved(tmp_path) == [3, 5, 10]
    found = result.validation
    assert (found["metric"], found["step"], found["value"]) == ("error", 3, 3.0)
    assert found["last"] == {"error": 7.0} and found["ended_run"] == ""
    params, metadata = restore_parameters(tmp_path / "checkpoints@best")
    assert params["x"] == -3 and metadata["step"] == 3
    assert checkpoint.fingerprint(metadata) == found["fingerprint"] != result.fingerprint
    lines = {line["step"]: line for line in _lines(tmp_path) if "validation/error" in line}
    assert [line["validation/error"] for line in lines.values()] == list(ERRORS)
    assert "step 3/10  validation: error 3  " in capsys.readouterr().out
    # Larger is better: the first step's.
    _fit(tmp_path / "accuracy", countdown(larger_is_better=True), keep=1)
    assert _saved(tmp_path / "accuracy") == [1, 10]


@pytest.mark.parametrize("patience", [0, 5])
def test_a_resumed_run_finds_the_same(tmp_path, monkeypatch, patience):
    task = countdown(patience=patience)
    whole = _fit(tmp_path / "whole", task)
    measure = Validator.measure

    def killed(validator, step, params):
        if step == 7:
            raise KeyboardInterrupt
        return measure(validator, step, params)

    with monkeypatch.context() as patch:
        patch.setattr(Validator, "measure", killed)
        with pytest.raises(KeyboardInterrupt):
            _fit(tmp_path / "cut", task)
    assert _saved(tmp_path / "cut") == [3, 5]
    resumed = _fit(tmp_path / "cut", task)
    assert resumed.resumed_from == 5 and resumed.validation == whole.validation
    assert (resumed.steps, resumed.fingerprint) == (whole.steps, whole.fingerprint)
    assert _saved(tmp_path / "cut") == _saved(tmp_path / "whole")
    assert _lines(tmp_path / "cut") == _lines(tmp_path / "whole")


def test_a_run_ends_when_it_gets_no_better(tmp_path, capsys):
    result = _fit(tmp_path, countdown(patience=4))
    assert result.steps == 7 and _saved(tmp_path) == [3, 5, 7]
    why = "error was not better than 3 at step 3 in 4 validations"
    assert result.validation["ended_run"] == why
    assert f"the run ended at step 7: {why}" in capsys.readouterr().out
    assert _lines(tmp_path)[-1]["step"] == 7 and "loss" in _lines(tmp_path)[-1]
    again = _fit(tmp_path, countdown(patience=4))
    assert (again.steps, again.resumed_from) == (7, 7)
    assert again.validation == result.validation and again.fingerprint == result.fingerprint
    # More patience: the run goes on, to where it would have come.
    patient = _fit(tmp_path, countdown(patience=8))
    assert (patient.steps, patient.resumed_from) == (10, 7)
    assert patient.fingerprint == _fit(tmp_path / "other").fingerprint


def test_the_mean_of_the_last_checkpoints(tmp_path):
    _fit(tmp_path, save_every=3, keep=3)
    assert _saved(tmp_path) == [3, 6, 9, 10]
    params, metadata = restore_parameters(tmp_path / "checkpoints@mean3")
    assert params["x"] == np.float32(-25 / 3) and metadata["step"] == [6, 9, 10]
    fingerprints = {
        checkpoint.fingerprint(restore_parameters(f"{tmp_path}/checkpoints{which}")[1])
        for which in ("", "@mean1", "@mean2", "@mean3", "@best")
    }
    assert len(fingerprints) == 5
    # The best one is kept out of turn.
    message = r"@mean4: expected 4 checkpoints, found 3 of the newest \(steps 6, 9, 10\)"
    with pytest.raises(InputError, match=message):
        restore_parameters(tmp_path / "checkpoints@mean4")


def test_what_is_not_finite_is_never_the_best(tmp_path):
    errors = (math.nan, 4.0, math.inf, *ERRORS[3:])
    result = _fit(tmp_path, countdown(errors, every=2))
    assert result.validation["step"] == 2
    silent = countdown((3.0, 1.0, 2.0, *ERRORS[3:]))  # at step 2 of weights that say nothing

    def summarise(found, given=silent.validation.summarise):
        figures = given(found)
        return figures | {"loss": math.nan if figures["error"] == 1.0 else 0.5}

    silent = dataclasses.replace(
        silent, validation=dataclasses.replace(silent.validation, summarise=summarise)
    )
    assert _fit(tmp_path / "silent", silent).validation["step"] == 3
    lost = _fit(tmp_path / "lost", countdown((math.nan,) * 10, patience=2))
    assert lost.steps == 2 and lost.validation["step"] is None
    assert lost.validation["ended_run"] == "error was not better in 2 validations"
    with pytest.raises(InputError, match="@best: no validation of the run .*; there are steps 2"):
        restore_parameters(tmp_path / "lost/checkpoints@best")


def test_without_validation_nothing_changes(tmp_path):
    task = countdown()
    with_it, without = _fit(tmp_path / "with"), dataclasses.replace(task, validation=None)
    result = _fit(tmp_path / "without", without)
    assert result.fingerprint == with_it.fingerprint and result.validation is None
    assert _saved(tmp_path / "without") == [5, 10]
    lines = [line for line in _lines(tmp_path / "with") if "loss" in line]
    assert _lines(tmp_path / "without") == lines
    assert "validation" not in restore_parameters(tmp_path / "without/checkpoints")[1]
    with pytest.raises(InputError, match="@best: no validation of the run found"):
        restore_parameters(tmp_path / "without/checkpoints@best")


def test_validation_may_come_and_go_and_another_metric_begins_anew(tmp_path, capsys):
    task = countdown()
    _fit(tmp_path, dataclasses.replace(task, validation=None), log_every=1)
    (tmp_path / "checkpoints/10").rename(tmp_path / "10")
    later = _fit(tmp_path, task)
    assert later.resumed_from == 5 and later.validation["step"] == 6
    assert _saved(tmp_path) == [6, 10]
    (tmp_path / "checkpoints/10").rename(tmp_path / "again")
    gone = _fit(tmp_path, dataclasses.replace(task, validation=None))
    assert gone.validation is None and 6 in _saved(tmp_path)  # still the best that was seen
    (tmp_path / "checkpoints/10").rename(tmp_path / "once more")
    other = dataclasses.replace(task.validation, facts={"audio": "another"})
    capsys.readouterr()
    anew = _fit(tmp_path, dataclasses.replace(task, validation=other))
    assert "validation has changed: the best checkpoint is sought anew" in capsys.readouterr().out
    assert anew.validation["step"] == 7


@pytest.mark.parametrize(
    ("schema", "metric"), [(TrainConfig, "masked_accuracy"), (FinetuneConfig, "cer")]
)
def test_validation_is_in_no_fingerprint_and_no_key(schema, metric):
    values = {"workdir": "w", "audio": "a", "labels": ("l",), "init_from": "", "loop": {"steps": 4}}
    values = {key: value for key, value in values.items() if key in schema.__dataclass_fields__}
    plain = config_lib.build(schema, values)
    values |= {"validation_audio": "d"}
    values |= {"validation": {"every": 7, "metric": metric, "patience": 2}}
    validated = config_lib.build(schema, values)
    for complete in (False, True):
        found = config_lib.decisive(validated, complete)
        assert found == config_lib.decisive(plain, complete) and "validation" not in found


@pytest.mark.parametrize("name", ["every", "patience", "utterances"])
def test_impossible_validations_are_refused(name):
    with pytest.raises(InputError, match=f"config.validation.{name}=-1: expected 0 or more"):
        ValidationConfig(**{name: -1})
