"""An interrupted run is the same run; a checkpoint of another one is refused."""

import errno
import itertools
import json
import os
import shutil
import time

import jax
import numpy as np
import pytest
from splits import CLUSTERS, TINY_BASE, random_parameters

from hubert_jax import config as config_lib
from hubert_jax import files, train
from hubert_jax.convert import formats
from hubert_jax.convert.network import Network
from hubert_jax.data import batches
from hubert_jax.errors import Diverged, InputError
from hubert_jax.model.architecture import Architecture, Head
from hubert_jax.networks import warm_start
from hubert_jax.training import checkpoint, metrics
from hubert_jax.unit_classes import Units

pytestmark = pytest.mark.usefixtures("two_devices")


@pytest.fixture
def run(speech_split, speech_labels):
    def run(workdir, steps=6, **values) -> dict:
        values = (
            dict(
                workdir=str(workdir),
                audio=str(speech_split),
                labels=(str(speech_labels),),
                loop=dict(steps=steps, log_every=2, save_every=2, keep=3),
                frames_per_step=512,
                max_frames=64,
                loss=dict(mask_group_rows=4),
            )
            | values
        )
        for group, defaults in TINY_BASE.items():
            values[group] = {**defaults, **values.get(group, {})}
        return train.run(config_lib.build(train.TrainConfig, values))

    return run


def _lines(workdir) -> list[dict]:
    lines = [json.loads(line) for line in open(workdir / "train" / "metrics.jsonl")]
    for line in lines:
        assert line.pop("audio_seconds_per_second") > 0
        assert 0 <= line.pop("data_wait_fraction") <= 1
    return lines


def _restored(workdir) -> tuple[dict, dict]:
    return checkpoint.restore_parameters(workdir / "train" / "checkpoints")


def _assert_same(ours: dict, theirs: dict):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_interrupted_run_ends_as_an_uninterrupted_one(run, tmp_path, monkeypatch, capfd):
    whole = run(tmp_path / "whole")
    assert [line["step"] for line in _lines(tmp_path / "whole")] == [2, 4, 6]
    assert 0 <= whole["data_wait_fraction"] <= 1

    write = metrics.ProgressLog.write

    def killed(log, step, *arguments):
        write(log, step, *arguments)
        if step == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(metrics.ProgressLog, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut")
    checkpoints = tmp_path / "cut" / "train" / "checkpoints"
    assert checkpoint.restore_parameters(checkpoints)[1]["step"] == 4
    assert not (tmp_path / "cut" / "train" / "result.json").exists()
    # A process that is killed may leave half a line, a machine that goes down any bytes.
    with open(tmp_path / "cut" / "train" / "metrics.jsonl", "ab") as log:
        log.write(b'{"step": 6, "lo\xff')
    resumed = run(tmp_path / "cut")
    assert resumed["resumed_from"] == 4 and whole["resumed_from"] == 0
    assert resumed["last"] == whole["last"]
    assert resumed["fingerprint"] == whole["fingerprint"]
    assert _lines(tmp_path / "cut") == _lines(tmp_path / "whole")
    _assert_same(_restored(tmp_path / "cut")[0], _restored(tmp_path / "whole")[0])

    # Interrupted after its last step, before its result was written.
    (tmp_path / "cut" / "train" / "result.json").unlink()
    again = run(tmp_path / "cut")
    assert again["resumed_from"] == 6
    assert again["last"] == whole["last"]
    assert _lines(tmp_path / "cut") == _lines(tmp_path / "whole")
    assert "WARNING" not in capfd.readouterr().err


def test_a_checkpoint_holds_the_state_it_was_taken_of(run, tmp_path, monkeypatch):
    """Saving goes on while the next step overwrites the donated state."""
    taken, save = {}, checkpoint.Checkpoints.save

    def saving(checkpoints, step, state, metadata):
        taken[step] = jax.tree.map(lambda leaf: np.array(leaf, copy=True), state)
        save(checkpoints, step, state, metadata)

    monkeypatch.setattr(checkpoint.Checkpoints, "save", saving)
    run(tmp_path)
    checkpoints = checkpoint.Checkpoints(tmp_path / "train" / "checkpoints", 3)
    assert sorted(taken) == [2, 4, 6]
    for step, state in taken.items():
        restored = checkpoints.restore(step, state)
        for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    checkpoints.close()
    assert int(taken[4].step) == 4


def test_a_shard_that_is_damaged_stops_the_run_in_one_line(run, tmp_path, monkeypatch):
    read, closed = batches.pretraining_batches, []

    def damaged(*arguments, **named):
        stream = read(*arguments, **named)
        try:
            yield from itertools.islice(stream, 3)
            raise InputError("labels-b0128, record 7: damaged")
        finally:
            stream.close()
            closed.append(True)

    with monkeypatch.context() as patch:
        patch.setattr(batches, "pretraining_batches", damaged)
        with pytest.raises(InputError, match="^labels-b0128, record 7: damaged$"):
            run(tmp_path)
    assert closed and not (tmp_path / "train" / "result.json").exists()
    # The step before the damage is not lost: its interval's checkpoint is complete.
    assert run(tmp_path)["resumed_from"] == 2


def test_a_mesh_may_change_between_two_processes(run, tmp_path):
    run(tmp_path, mesh=dict(data=2, fsdp=2, tensor=2), loop=dict(steps=2, log_every=1, keep=1))
    params, metadata = checkpoint.restore_parameters(tmp_path / "train" / "checkpoints")
    assert metadata["kind"] == "pretraining" and metadata["step"] == 2
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(params))
    (tmp_path / "train" / "result.json").unlink()
    assert run(tmp_path, loop=dict(steps=2, log_every=1, keep=1))["resumed_from"] == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(architecture=dict(dim=32)), "config.architecture.dim was 16, is 32"),
        (dict(seed=1), "config.seed was 1337, is 1"),
        (dict(optimizer=dict(clip_norm=1.0)), "config.optimizer.clip_norm was 10.0, is 1.0"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(run, tmp_path_factory, values, message):
    workdir = tmp_path_factory.getbasetemp() / "first_run"
    if not workdir.exists():
        run(workdir, steps=1)
    with pytest.raises(InputError, match=f"another run.*{message}.*config.workdir") as refused:
        run(workdir, steps=1, **values)
    assert "\n" not in str(refused.value)


def test_nan_stops_before_it_is_saved(run, tmp_path):
    # The schedule's first learning rate is 0, the second is the peak.
    optimizer = dict(peak_learning_rate=1e15, warmup_fraction=0.0, clip_norm=0.0)
    with pytest.raises(Diverged, match="step 3: .* is (nan|inf).*peak_learning_rate"):
        run(tmp_path, optimizer=optimizer)
    params, metadata = _restored(tmp_path)
    assert metadata["step"] == 2
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    assert [line["step"] for line in _lines(tmp_path)] == [2]


def test_saving_and_logging_have_intervals_of_their_own(run, tmp_path):
    loop = dict(steps=6, log_every=4, save_every=3, keep=3)
    whole = run(tmp_path / "whole", loop=loop)
    assert [line["step"] for line in _lines(tmp_path / "whole")] == [4, 6]
    checkpoints = tmp_path / "whole" / "train" / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["3", "6"]
    shutil.rmtree(checkpoints / "6")
    (tmp_path / "whole" / "train" / "result.json").unlink()
    again = run(tmp_path / "whole", loop=loop)
    # The first interval after a restart begins at the checkpoint; the last one is whole again.
    assert again["resumed_from"] == 3 and again["last"] == whole["last"]
    assert [line["step"] for line in _lines(tmp_path / "whole")] == [4, 6]


def test_init_from_keeps_the_head_of_the_same_codebook_only(run, speech_labels, tmp_path, capsys):
    run(tmp_path / "first", steps=1)
    first = f"orbax:{tmp_path}/first/train/checkpoints"
    result = run(tmp_path / "second", steps=1, init_from=first)
    assert "init_from" in result["inputs"]
    assert f"network from {first}, with its head\n" in capsys.readouterr().out
    again = run(tmp_path / "second", steps=1, init_from="orbax:elsewhere")  # not looked at
    assert {again["init_from"], result["init_from"]} == {first}
    assert f"step 1; the run began with {first}\n" in capsys.readouterr().out
    # The first update's learning rate is 0: all of it is still the first run's.
    ours, theirs = (_restored(tmp_path / name)[0] for name in ("second", "first"))
    _assert_same(ours, theirs)

    architecture, head = Architecture(**TINY_BASE["architecture"]), Head(**TINY_BASE["head"])
    other = Units.numbered(head.codebook_sizes, codebook_digests=("0" * 64,))
    start = warm_start.for_pretraining(first, architecture, head, other)
    assert start.description.endswith("with a fresh head: its head predicts another codebook")
    _assert_same(start.params, {"hubert": theirs["hubert"]})
    with pytest.raises(
        InputError, match="another architecture: dim is 16, config.architecture.dim is 32"
    ):
        run(tmp_path / "fourth", steps=1, init_from=first, architecture=dict(dim=32))
    assert not (tmp_path / "fourth/train").exists()  # before anything is compiled or written


def test_init_from_reads_the_files_of_other_libraries(run, tmp_path, capsys):
    """A head of 504 classes, as released; it does not say what its classes are."""
    architecture = Architecture(**TINY_BASE["architecture"])
    head = Head((CLUSTERS + 4,), projection_dim=8)
    params = random_parameters(architecture, head)
    where = f"hf:{tmp_path}/public"
    formats.write(where, Network(params, architecture, head))
    result = run(tmp_path / "run", steps=1, init_from=where)
    assert result["inputs"]["init_from"] == formats.read(where).fingerprint
    assert (
        f"network from {where}, with a fresh head: its head has codebook_sizes ({CLUSTERS + 4},), "
        f"config.head.codebook_sizes is ({CLUSTERS},)\n"
    ) in capsys.readouterr().out
    _assert_same(_restored(tmp_path / "run")[0]["hubert"], params["hubert"])


def test_init_from_names_its_format(run, tmp_path):
    message = "config.init_from=some/checkpoints: expected hf:DIR.*orbax:some/checkpoints"
    with pytest.raises(InputError, match=message):
        run(tmp_path, steps=1, init_from="some/checkpoints")


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(run, tmp_path, capsys):
    whole = run(tmp_path)
    (tmp_path / "train" / "result.json").unlink()
    checkpoints = tmp_path / "train" / "checkpoints"
    _damage(checkpoints / "6" / "state")
    again = run(tmp_path)
    assert again["resumed_from"] == 4 and again["fingerprint"] == whole["fingerprint"]
    assert "checkpoint 6 cannot be read" in capsys.readouterr().out
    assert (tmp_path / "train" / "damaged-6").is_dir() and (checkpoints / "6").is_dir()

    for step in (2, 4, 6):
        _damage(checkpoints / str(step) / "state")
    with pytest.raises(
        InputError, match="checkpoint 2 cannot be read .* to begin again"
    ) as refused:
        run(tmp_path)
    assert "\n" not in str(refused.value)
    assert sorted(path.name for path in checkpoints.iterdir()) == ["2", "4", "6"]


def test_a_second_training_in_one_directory_is_refused(run, tmp_path):
    with files.locked(tmp_path / ".train.lock", "training"):
        with pytest.raises(InputError, match="another training is running there"):
            run(tmp_path)
    assert not (tmp_path / "train").exists()


def test_a_full_disk_ends_a_run_in_one_line(run, tmp_path, monkeypatch):
    real, free = shutil.disk_usage, []

    def disk_usage(path):
        usage = real(path)
        free.append(usage.free if len(free) < 2 else 1000)
        return usage._replace(free=free[-1])

    monkeypatch.setattr(checkpoint.shutil, "disk_usage", disk_usage)
    with pytest.raises(InputError, match="checkpoints: no room for checkpoint 6: .*free; ") as full:
        run(tmp_path)
    assert "\n" not in str(full.value)
    monkeypatch.undo()
    assert run(tmp_path)["resumed_from"] == 4


def test_a_checkpoint_that_cannot_be_written_is_no_crash(run, tmp_path, monkeypatch):
    def save(*_, **__):
        raise ValueError("RESOURCE_EXHAUSTED: Failed to write: No space left on device [28]")

    monkeypatch.setattr(checkpoint.ocp.CheckpointManager, "save", save)
    with pytest.raises(InputError, match=r"a checkpoint cannot be written \(No space left"):
        run(tmp_path)


def test_a_save_that_fails_in_the_background_is_told_before_the_next_save(tmp_path, monkeypatch):
    def full(directory):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "_write_checksums", full)
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.check()
    checkpoints.save(1, {"weight": np.zeros(3, np.float32)}, {})
    deadline = time.monotonic() + 60
    with pytest.raises(InputError, match=r"a checkpoint cannot be written \(No space left"):
        while time.monotonic() < deadline:
            checkpoints.check()
            time.sleep(0.01)


def _damage(directory):
    """Changes every byte of the second half of every file."""
    for path in directory.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            half = len(content) // 2
            path.write_bytes(content[:half] + bytes(byte ^ 0xFF for byte in content[half:]))
