"""The loop with a task of another kind, and what it promises every task."""

import dataclasses
import json
import os
import re
import shutil
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from splits import TINY_BASE

from hubert_jax import config as config_lib
from hubert_jax import train
from hubert_jax.errors import Diverged, InputError, Preempted
from hubert_jax.tasks import pretraining
from hubert_jax.training import sharding, step
from hubert_jax.training.checkpoint import Checkpoints, fingerprint, restore_parameters
from hubert_jax.training.fit import LoopConfig, fit
from hubert_jax.training.metrics import ProgressLog
from hubert_jax.training.sharding import MeshConfig
from hubert_jax.training.state import abstract_state, create_state, with_parameters
from hubert_jax.training.task import Task, WarmStart

CLASSES, WIDTH, RATE = 11, 8, 0.3


def language_model(steps: int, **changes) -> Task:
    """Predicts the next of a few integers: an embedding and a matrix, plain descent."""

    def init(key):
        first, second = jax.random.split(key)
        return {
            "embedding": jax.random.normal(first, (CLASSES, WIDTH)),
            "output": {"kernel": jax.random.normal(second, (WIDTH, CLASSES)) * 0.1},
        }

    def loss(params, batch, key, step):
        del key, step
        hidden = params["embedding"][batch["text"][:, :-1]]
        scores = hidden @ params["output"]["kernel"]
        targets = batch["text"][:, 1:]
        losses = optax.softmax_cross_entropy_with_integer_labels(scores, targets)
        return jnp.mean(losses), {"accuracy": jnp.mean(scores.argmax(-1) == targets)}

    def batches(first_step):
        for number in range(first_step, steps):
            length = 16 if number % 3 else 24
            start = np.random.default_rng(number).integers(CLASSES, size=(8, 1))
            yield {"text": ((start + 3 * np.arange(length)) % CLASSES).astype(np.int32)}

    task = Task(
        kind="language_model",
        init=init,
        loss=loss,
        optimizer=optax.sgd(RATE),
        learning_rate=lambda step: RATE,
        batch_shapes=tuple(
            {"text": jax.ShapeDtypeStruct((8, length), jnp.int32)} for length in (16, 24)
        ),
        batches=batches,
        facts={"inputs": {}, "config": {}, "decisive": {}, "rows": {}, "version": 1},
        sharding_rules=((r"embedding|output/.*", PartitionSpec()),),
    )
    return dataclasses.replace(task, **changes)


def _fit(task, directory, steps=12, mesh=None, warm_start=None, **loop):
    loop = LoopConfig(steps, **{"log_every": 3, "save_every": 4, **loop})
    mesh = mesh or sharding.make_mesh(MeshConfig())
    return fit(task, loop, mesh, directory, seed=3, warm_start=warm_start)


def _lines(directory) -> list[dict]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").open()]
    for line in lines:
        line.pop("audio_seconds_per_second"), line.pop("data_wait_fraction")
    return lines


def test_a_toy_language_model_trains_resumes_and_logs(tmp_path, capsys):
    whole = _fit(language_model(12), tmp_path / "whole")
    lines = _lines(tmp_path / "whole")
    assert [line["step"] for line in lines] == [3, 6, 9, 12]
    assert whole.last["loss"] < lines[0]["loss"] - 0.2 and whole.parameters == 2 * CLASSES * WIDTH
    assert whole.curves["loss"] == [[3, 6, 9, 12], [line["loss"] for line in lines]]
    output = capsys.readouterr().out
    assert f"{whole.parameters} parameters" in output and "ETA 0:00:0" in output

    _fit(language_model(12), tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut/checkpoints/12")
    resumed = _fit(language_model(12), tmp_path / "cut")
    assert resumed.resumed_from == 8 and "resumed from the checkpoint of step 8" in (
        capsys.readouterr().out
    )
    # An interval that a restart cuts in two has the mean of its second part.
    assert _lines(tmp_path / "cut")[-1] == lines[-1]
    assert resumed.fingerprint == whole.fingerprint and resumed.last == whole.last
    assert resumed.curves["loss"][1] == [line["loss"] for line in _lines(tmp_path / "cut")]
    trees = [restore_parameters(tmp_path / name / "checkpoints")[0] for name in ("whole", "cut")]
    jax.tree.map(np.testing.assert_array_equal, *trees)


def test_a_long_curve_is_thinned_out_to_means_of_neighbours(tmp_path):
    log = ProgressLog(tmp_path, 0, 2400, {})
    for number in range(1, 2401):
        log.add({"loss": np.float32(number), "gradient_norm": np.float32(1)}, 0.0)
        log.write(number, 0.0)
    log.close()
    steps, losses = log.curves()["loss"]
    np.testing.assert_allclose(losses, np.arange(1.0, 2401).reshape(120, 20).mean(axis=1))
    assert steps == losses


def test_the_hours_to_go_are_told_long_before_the_first_interval_ends(tmp_path, capsys):
    log = ProgressLog(tmp_path, 0, 400_000, {})
    for _ in range(60):
        log.add({"loss": np.float32(1), "gradient_norm": np.float32(1)}, 0.0)
    log.close()
    assert re.fullmatch(r"\d+:\d\d:\d\d to go, by 10 steps\n", capsys.readouterr().out)


def test_a_terminated_run_is_saved_and_goes_on(tmp_path):
    """After the step that ran when the signal came, whatever `save_every` is."""
    whole, task = _fit(language_model(12), tmp_path / "whole"), language_model(12)

    def terminated(first_step):
        for number, batch in enumerate(task.batches(first_step), first_step):
            if number == 6:  # read while earlier steps run
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted, match="^SIGTERM; step . is saved"):
        _fit(dataclasses.replace(task, batches=terminated), tmp_path / "cut", save_every=100)
    assert signal.getsignal(signal.SIGTERM) is before
    (saved,) = (tmp_path / "cut/checkpoints").iterdir()
    assert 1 <= int(saved.name) <= 7
    resumed = _fit(task, tmp_path / "cut", save_every=100)
    assert resumed.resumed_from == int(saved.name) and resumed.fingerprint == whole.fingerprint
    trees = [restore_parameters(tmp_path / name / "checkpoints")[0] for name in ("whole", "cut")]
    jax.tree.map(np.testing.assert_array_equal, *trees)


def test_a_signal_while_the_last_step_is_saved_ends_the_run_too(tmp_path, monkeypatch):
    """Or a pipeline would begin the next stage; what is being saved is not cut off."""
    close = Checkpoints.close

    def slow(self):
        os.kill(os.getpid(), signal.SIGTERM)
        close(self)

    monkeypatch.setattr(Checkpoints, "close", slow)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted, match="^SIGTERM; step 2, the last, is saved"):
        _fit(language_model(2), tmp_path, steps=2)
    assert signal.getsignal(signal.SIGTERM) is before
    assert (tmp_path / "checkpoints/2").is_dir()


def test_learning_rate_and_sizes_are_logged_by_group(tmp_path):
    task = language_model(1)
    _fit(task, tmp_path, steps=1, log_every=1)
    (line,) = _lines(tmp_path)
    assert line["learning_rate"] == pytest.approx(RATE)
    params = task.init(jax.random.key(3))
    batch = next(task.batches(0))
    gradients = jax.grad(lambda params: task.loss(params, batch, None, 0)[0])(params)
    for group, value, gradient in (
        ("embedding", params["embedding"], gradients["embedding"]),
        ("output", params["output"]["kernel"], gradients["output"]["kernel"]),
    ):
        gradient = np.sqrt(np.mean(np.square(np.asarray(gradient, np.float64))))
        assert line[f"gradient_rms/{group}"] == pytest.approx(gradient, rel=1e-5)
        assert line[f"update_rms/{group}"] == pytest.approx(RATE * gradient, rel=1e-5)
        value = np.sqrt(np.mean(np.square(np.asarray(value, np.float64))))
        assert line[f"parameter_rms/{group}"] == pytest.approx(value, rel=1e-5)


def test_every_shape_is_compiled_before_the_first_step(tmp_path, monkeypatch):
    """And none afterwards: the loop has executables alone."""
    compiled = []
    original = step.train_step

    def traced(*arguments):
        update = original(*arguments)

        def counted(state, batch):
            compiled.append(batch["text"].shape)
            return update(state, batch)

        return counted

    monkeypatch.setattr(step, "train_step", traced)
    add = ProgressLog.add

    def after_compiling(self, metrics, audio_seconds):
        assert sorted(compiled) == [(8, 16), (8, 24)]
        add(self, metrics, audio_seconds)

    monkeypatch.setattr(ProgressLog, "add", after_compiling)
    _fit(language_model(6), tmp_path, steps=6)
    assert len(compiled) == 2


def test_the_first_batch_is_read_while_steps_are_compiled(tmp_path, monkeypatch):
    begun, closed = threading.Event(), threading.Event()
    task = language_model(1)

    def batches(first_step):
        begun.set()
        try:
            yield from task.batches(first_step)
        finally:
            closed.set()

    def compile_steps(*_):
        assert begun.wait(0.9)
        raise InputError("no number of micro-batches fits")

    monkeypatch.setattr("hubert_jax.training.fit.compile_steps", compile_steps)
    with pytest.raises(InputError, match="^no number"):
        _fit(dataclasses.replace(task, batches=batches), tmp_path, steps=1)
    assert closed.is_set()  # or a half-consumed iterator could keep the process alive


def test_a_loss_that_is_not_finite_is_no_input_error(tmp_path):
    def loss(params, batch, key, step):
        value = jnp.where(step == 5, jnp.nan, jnp.sum(params["embedding"] ** 2))
        return value, {}

    with pytest.raises(Diverged, match="^step 6: loss is nan, expected a finite number") as error:
        _fit(language_model(12, loss=loss), tmp_path)
    assert not isinstance(error.value, InputError) and "\n" not in str(error.value)
    # The checkpoint of before is there, none of afterwards.
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["4"]


def test_an_update_that_is_not_finite_is_not_saved(tmp_path):
    """Though the loss, which it was computed from, is."""
    task = language_model(12)
    rate = optax.sgd(lambda step: jnp.where(step == 5, jnp.inf, 0.1))
    with pytest.raises(Diverged, match="^step 6: update rms/.* is (nan|inf), expected a finite"):
        _fit(dataclasses.replace(task, optimizer=rate), tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["4"]


def test_a_warm_start_is_read_once(tmp_path):
    reads = []

    def start():
        reads.append(True)
        params = {"embedding": np.full((CLASSES, WIDTH), 0.5, np.float32)}
        return WarmStart(params, "a fingerprint", "hf:elsewhere", "from elsewhere")

    task = language_model(4, optimizer=optax.sgd(0.0))
    first = _fit(task, tmp_path, steps=4, warm_start=start)
    params, metadata = restore_parameters(tmp_path / "checkpoints")
    assert (params["embedding"] == 0.5).all() and first.inputs == {"init_from": "a fingerprint"}
    again = _fit(task, tmp_path, steps=4, warm_start=start)
    assert reads == [True] and again.inputs == first.inputs and again.last == first.last
    with pytest.raises(InputError, match="config.init_from was set, is empty"):
        _fit(task, tmp_path, steps=4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": {"128": 8}}, "rows of a batch.128 is new and 8"),
        ({"version": 2}, "version of the code was 1, is 2"),
        ({"inputs": {"audio": "b"}}, "inputs.audio is new"),
        ({"config": {"seed": 2}, "decisive": {"seed": 2}}, "config.seed is new and 2"),
    ],
)
def test_what_decides_the_weights_may_not_change(tmp_path, change, message):
    task = language_model(4)
    first = _fit(task, tmp_path, steps=4)
    facts = {**task.facts, **change}
    with pytest.raises(InputError, match=f"another run, these differ: {message}"):
        _fit(dataclasses.replace(task, facts=facts), tmp_path, steps=4)
    other = _fit(dataclasses.replace(task, facts=facts), tmp_path / "other", steps=4)
    if "config" not in change or "decisive" in change:
        assert other.fingerprint != first.fingerprint


def test_another_default_gives_weights_another_fingerprint(tmp_path):
    """They are other weights, though nobody has set a value: what reads them has to run again."""
    task, fingerprints = language_model(4), []
    for default in (1.0, 2.0):
        facts = {**task.facts, "config": {"loss": {"alpha": default}}, "decisive": {}}
        changed = dataclasses.replace(task, facts=facts)
        fingerprints.append(_fit(changed, tmp_path / str(default), steps=4).fingerprint)
    assert len({*fingerprints}) == 2


def test_a_new_field_with_a_default_voids_no_checkpoint(tmp_path):
    """Its default is what the run had; another value is another run."""
    task = language_model(4)
    first = _fit(task, tmp_path, steps=4)
    facts = {**task.facts, "config": {"loss": {"new": 1.0}}, "decisive": {}}
    again = _fit(dataclasses.replace(task, facts=facts), tmp_path, steps=4)
    assert again.resumed_from == 4 and again.fingerprint == first.fingerprint
    facts["config"], facts["decisive"] = ({"loss": {"new": 2.0}} for _ in range(2))
    with pytest.raises(InputError, match="config.loss.new is new and 2.0"):
        _fit(dataclasses.replace(task, facts=facts), tmp_path, steps=4)


@pytest.fixture
def values(speech_split, speech_labels, tmp_path) -> dict:
    return dict(
        workdir=str(tmp_path),
        audio=str(speech_split),
        labels=(str(speech_labels),),
        loop=dict(steps=2, log_every=1, save_every=1),
        frames_per_step=1024,
        max_frames=64,
        loss=dict(mask_group_rows=4),
        **TINY_BASE,
    )


def _train(values, **changes):
    return train.run(config_lib.build(train.TrainConfig, {**values, **changes}))


@pytest.mark.usefixtures("two_devices")
def test_a_run_goes_on_with_another_execution(values, tmp_path):
    first = _train(values)
    for execution, mesh in (
        (dict(attention="xla", rematerialize="all_but_dots"), dict(fsdp=2)),
        (dict(dtype="bfloat16", scan_unroll=2), dict(tensor=2)),
    ):
        shutil.rmtree(tmp_path / "train/checkpoints/2")
        again = _train(values, execution=execution, mesh=mesh)
        assert again["resumed_from"] == 1 and again["fingerprint"] == first["fingerprint"]
        tolerance = 0.02 if "dtype" in execution else 1e-5
        assert again["last"]["loss"] == pytest.approx(first["last"]["loss"], rel=tolerance)


@pytest.mark.usefixtures("two_devices")
def test_a_new_field_of_a_group_voids_no_checkpoint(values, tmp_path, monkeypatch):
    first = _train(values)
    grown = dataclasses.make_dataclass(
        "LossConfig",
        [("smoothing", float, 0.0)],
        bases=(pretraining.LossConfig,),
        frozen=True,
    )

    def config(**loss):
        built = config_lib.build(train.TrainConfig, values)
        return dataclasses.replace(built, loss=grown(**{**dataclasses.asdict(built.loss), **loss}))

    again = train.run(config())
    assert again["resumed_from"] == 2 and again["fingerprint"] == first["fingerprint"]
    with pytest.raises(InputError, match="config.loss.smoothing is new and 0.1"):
        train.run(config(smoothing=0.1))


def test_a_fingerprint_names_rows_and_not_execution(values):
    """160 rows on 32 devices and 176 on 8 are not the same training."""
    config = config_lib.build(train.TrainConfig, {**values, "frames_per_step": 1300})
    data = pretraining.read(config)
    facts = {}
    for count in (7, 6):
        mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:count])
        facts[count] = pretraining.task(config, data, mesh).facts
    assert facts[7]["rows"] != facts[6]["rows"]
    assert fingerprint({**facts[7], "step": 1}) != fingerprint({**facts[6], "step": 1})
    changed = dataclasses.replace(
        config, execution=dataclasses.replace(config.execution, dtype="bfloat16")
    )
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:7])
    assert pretraining.task(changed, data, mesh).facts == facts[7]


@pytest.mark.parametrize("values", [dict(steps=0), dict(steps=2**31), dict(steps=1, keep=-1)])
def test_impossible_loops_are_refused(values):
    with pytest.raises(InputError, match=f"config.loop.{list(values)[-1]}=.*: expected"):
        LoopConfig(**values)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            dict(mask_group_rows=4, mask_span=64),
            "mask_span=64: expected less than config.max_frames=64",
        ),
        (dict(mask_group_rows=17), "mask_group_rows=17: found batches of 16 rows"),
    ],
)
def test_masks_have_room_in_every_batch(values, loss, message):
    with pytest.raises(InputError, match=f"config.loss.{message}"):
        _train({**values, "loss": loss})


def test_a_process_places_no_more_of_a_network_than_its_devices_hold():
    rules = ((r"embedding|output/.*", PartitionSpec("fsdp")),)
    task = language_model(4, sharding_rules=rules)
    mesh = sharding.make_mesh(MeshConfig(fsdp=8))
    state = create_state(task, abstract_state(task, mesh), seed=0)
    read = []

    class Weights:
        shape = (WIDTH, CLASSES)

        def __getitem__(self, index):
            piece = np.ones(self.shape, np.float32)[index]
            read.append(piece.shape)
            return piece

    changed = with_parameters(state, {"output": {"kernel": Weights()}})
    assert read == [(1, CLASSES)] * WIDTH
    assert changed.params["output"]["kernel"].sharding == state.params["output"]["kernel"].sharding
    assert jnp.all(changed.params["output"]["kernel"] == 1)
    assert changed.params["embedding"] is state.params["embedding"]


def test_a_group_may_have_more_numbers_than_an_int32_counts():
    task = language_model(
        4,
        init=lambda key: {"embedding": jnp.zeros((2**16, 2**16))},
        loss=lambda params, batch, key, step: (jnp.sum(params["embedding"]), {}),
    )
    mesh = sharding.make_mesh(MeshConfig())
    update = step.train_step(task, mesh, seed=0)
    _, metrics = jax.eval_shape(update, abstract_state(task, mesh), task.batch_shapes[0])
    assert metrics["parameter_rms/embedding"].shape == ()


@pytest.mark.usefixtures("two_devices")
def test_saved_metadata_says_what_a_network_is(values, tmp_path):
    _train(values)
    checkpoints = Checkpoints(tmp_path / "train/checkpoints")
    metadata = checkpoints.metadata(2)
    checkpoints.close()
    assert metadata["architecture"]["dim"] == TINY_BASE["architecture"]["dim"]
    assert metadata["head"]["codebook_sizes"] == list(TINY_BASE["head"]["codebook_sizes"])
    assert "execution" not in metadata["config"] and "workdir" not in metadata["config"]
    assert set(metadata["decisive"]) <= set(metadata["config"])
