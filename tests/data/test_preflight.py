"""Pre-flight against brute force; what does not fit is named with its shard and record."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import splits

from hubert_jax import check, command_line, files
from hubert_jax import config as config_lib
from hubert_jax.data import manifests, preflight, records
from hubert_jax.errors import InputError
from hubert_jax.frames import num_frames, num_samples
from hubert_jax.stages.fits import require_data
from hubert_jax.stages.stage import Stage
from hubert_jax.tasks.ctc import FinetuneConfig
from hubert_jax.train import TrainConfig
from hubert_jax.units.kmeans import Codebook

CODEBOOK = Codebook(np.eye(6, dtype=np.float32), {"kind": "mfcc"}, 0.0, 0, 0, 10)


def some_labels(utterances):
    """Classes 0 to 3 of 6."""
    for utterance in utterances:
        frames = num_frames(len(utterance.audio), 100)
        yield utterance.id, (np.arange(frames) % 4).astype(np.uint16)


@pytest.fixture(scope="module")
def utterances(speech) -> list[records.Utterance]:
    """Real speech, one silent and one clipped utterance, and one under 2 s."""
    found = [records.Utterance(name, audio) for name, audio in speech.items()]
    first, second, third = found[0].audio, found[1].audio, found[2].audio
    return [
        *found,
        records.Utterance("silent", first // 4096),
        records.Utterance("clipped", np.clip(second * 64.0, -32768, 32767).astype(np.int16)),
        records.Utterance("short", third[:20_000]),
    ]


@pytest.fixture(scope="module")
def prepared(utterances, tmp_path_factory) -> pathlib.Path:
    """Shards of about two utterances, and labels of theirs."""
    root = tmp_path_factory.mktemp("preflight")
    (root / "audio").mkdir()
    splits.write_split(root / "audio", "dev", utterances, [], 0.2)
    labels = some_labels(records.read_audio(root / "audio"))
    splits.write_labels(root / "audio", root / "labels", labels, CODEBOOK, 100)
    return root


def _config(root: pathlib.Path, **values) -> TrainConfig:
    values = dict(
        workdir=str(root / "work"),
        audio=str(root / "audio"),
        labels=(str(root / "labels"),),
        loop=dict(steps=1),
        head=dict(codebook_sizes=(6,)),
        mesh=dict(data=2, fsdp=2),
        loss=dict(mask_group_rows=8),
        frames_per_step=1500,
        row_multiple=8,
        max_frames=120,
    )
    return config_lib.build(TrainConfig, values)


def test_what_fits_is_described(prepared, utterances, capsys):
    result = check.run(_config(prepared))
    assert json.loads((prepared / "work/check/result.json").read_text())["job"] == "check"
    long = [len(u.audio) for u in utterances if u.id != "short"]
    # All of them have between 2.56 and 5.12 s; of the 1500 // 120 rows
    # there are as many as config.row_multiple divides, which four devices do.
    bucket = result["buckets"][128]
    assert (bucket["utterances"], bucket["batch"]) == (8, (120, 8))
    assert bucket["seconds"] == pytest.approx(sum(long) / 16_000)
    assert bucket["shards"] == result["fewest_shards"] > 2
    kept = 8 * (320 * 120 + 80)
    assert bucket["crop_loss"] == pytest.approx(1 - kept / sum(long))
    assert bucket["step_share"] == 1.0
    assert result["buckets"][0]["batch"] is None and result["buckets"][0]["step_share"] == 0.0
    assert result["crop_loss"] == pytest.approx(1 - kept / (sum(long) + 20_000))
    for name in ("silent", "clipped"):
        assert (result[name]["utterances"], result[name]["examples"]) == (1, [name])
    (labels,) = result["labels"]
    assert labels["dead_codewords"] == [4, 5]
    assert labels["frames"] == sum(num_frames(len(u.audio), 100) for u in utterances)
    printed = capsys.readouterr().out
    assert "8 x 120" in printed and "2 without a frame (4, 5)" in printed
    assert f"a pass leaves out {result['crop_loss']:.1%} of the audio" in printed


def _rewritten(prepared, root, change, kind="labels"):
    """A copy whose first shard's records went through `change`; its manifests fit the new shard.

    Returns the shard.
    """
    for name in ("audio", "labels"):
        (root / name).mkdir()
        for path in (prepared / name).iterdir():
            (root / name / path.name).write_bytes(path.read_bytes())
    audio, labels = (
        manifests.read_manifest(root / "audio"),
        manifests.read_label_manifest(root / "labels"),
    )
    number = next(i for i, shard in enumerate(audio.shards) if shard.bucket_frames == 128)
    held = {"audio": audio, "labels": labels}[kind].shards
    path = root / kind / held[number].file
    if kind == "audio":
        rows = change(list(records.read_shard(path)))
        written = dataclasses.replace(splits.write_shard(path, rows), bucket_frames=128)
    else:
        rows = change([(name, values.copy()) for name, values in records.read_label_shard(path)])
        written = splits.write_label_shard(path, rows)
    changed = (*held[:number], written, *held[number + 1 :])
    digest = manifests.shards_digest(changed)
    if kind == "audio":
        audio = dataclasses.replace(audio, shards=changed, digest=digest)
        labels = dataclasses.replace(labels, audio_digest=digest)
    else:
        labels = dataclasses.replace(labels, shards=changed, digest=digest)
    manifests.write_manifest(root / "audio", audio)
    manifests.write_manifest(root / "labels", labels)
    return path


def _set(rows, number, value):
    return [(name, value if i == number else labels) for i, (name, labels) in enumerate(rows)]


LABEL_CHANGES = {
    "another utterance": (
        lambda rows: [(rows[1][0], rows[0][1]), (rows[0][0], rows[1][1]), *rows[2:]],
        "record 0: found labels of '.*', expected those of '.*', as in the audio shard",
    ),
    "frames moved": (
        lambda rows: [
            (rows[0][0], np.append(rows[0][1], 0)),
            (rows[1][0], rows[1][1][:-1]),
            *rows[2:],
        ],
        "record 0: found [0-9]+ labels of '.*', expected [0-9]+ at 100 Hz for [0-9]+ samples",
    ),
    "class": (
        lambda rows: _set(rows, 1, np.where(rows[1][1] == 3, 6, rows[1][1])),
        "record 1: found label 6 of '.*', expected 0 to 5",
    ),
}


@pytest.mark.parametrize("name", LABEL_CHANGES)
def test_labels_that_do_not_fit_are_named(prepared, tmp_path, name):
    change, message = LABEL_CHANGES[name]
    path = _rewritten(prepared, tmp_path, change)
    files.write_json(tmp_path / "work/check/result.json", {})  # of the labels as they were
    with pytest.raises(InputError, match=f"^{path}, {message}; run the label job") as refused:
        check.run(_config(tmp_path))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "work/check/result.json").exists()


def test_classes_that_the_manifest_does_not_count_are_refused(prepared, tmp_path):
    _rewritten(prepared, tmp_path, lambda rows: _set(rows, 0, np.zeros_like(rows[0][1]) + 5))
    with pytest.raises(InputError, match=r"labels/manifest.json: class_counts\[0\]: found"):
        check.run(_config(tmp_path))


def test_audio_of_another_bucket_is_named(prepared, tmp_path):
    def shorter(rows):
        rows[1] = dataclasses.replace(rows[1], audio=rows[1].audio[:36_000])
        return rows

    path = _rewritten(prepared, tmp_path, shorter, "audio")
    # Its labels' frames have to fit the manifest, which is looked at first.
    audio = manifests.read_manifest(tmp_path / "audio")
    message = "record 1: found 36000 samples of '.*', expected a length of bucket 128; run"
    with pytest.raises(InputError, match=f"^{path}, {message}"):
        preflight.inspect(tmp_path / "audio", audio)


def test_a_shard_that_was_exchanged_is_named(prepared, tmp_path):
    """Sound records of the same lengths, but not the ones that were labelled."""

    def louder(rows):
        return [dataclasses.replace(row, audio=row.audio + np.int16(1)) for row in rows]

    path = _rewritten(prepared, tmp_path, louder, "audio")
    for name in ("audio", "labels"):
        manifest = files.read_json(prepared / name / manifests.MANIFEST, "manifest")
        files.write_json(tmp_path / name / manifests.MANIFEST, manifest)
    with pytest.raises(InputError, match=f"^{path}: digest: found .*, expected .*; the file was"):
        check.run(_config(tmp_path))


def test_a_split_that_is_not_held_out_is_refused(prepared):
    audio = str(prepared / "audio")
    with pytest.raises(InputError, match="config.validation_audio=.* are in config.audio=.* too"):
        check.run(dataclasses.replace(_config(prepared), validation_audio=audio))


def test_the_configuration_of_fine_tuning_is_checked(speech_split, tmp_path, capsys):
    arguments = [
        "--config=configs/small.py:finetune",
        *(f"--config.workdir={tmp_path}", f"--config.audio={speech_split}"),
        *("--config.padded_frames=200,256,300", "--config.init_from="),
    ]

    def read(*more):
        return command_line.read([*arguments, *more], "train", TrainConfig, FinetuneConfig)

    result = check.run(read())
    samples = np.array([len(each.audio) for each in records.read_audio(speech_split)])
    assert result["left_out"] == (samples > num_samples(300)).sum()
    for fewest, length in ((0, 200), (200, 256), (256, 300)):
        held = samples[
            (samples > (fewest and num_samples(fewest))) & (samples <= num_samples(length))
        ]
        found = result["buckets"].get(length)
        assert (found is None) == (len(held) == 0)
        if found:
            assert (found["utterances"], found["seconds"]) == (len(held), held.sum() / 16_000)
            assert found["padding"] == pytest.approx(1 - held.mean() / num_samples(length))
    assert len(result["buckets"]) >= 2 and "everything fits" in capsys.readouterr().out
    with pytest.raises(InputError, match="config.padded_frame: no such key; .*padded_frames"):
        read("--config.padded_frame=200")
    with pytest.raises(InputError, match="are in config.audio=.* too"):
        check.run(read(f"--config.validation_audio={speech_split}"))
    for override, message in (
        ("--config.init_from=orbax:/nowhere", "/nowhere: no checkpoint found"),
        ("--config.micro_batches=1000", "micro_batches=1000: the batches of bucket"),
    ):
        with pytest.raises(InputError, match=message):
            check.run(read(override))


def test_what_training_would_refuse_is_refused(prepared, speech_split):
    """Also by a pipeline, once the split is prepared, before what comes before the training."""
    shared = dict(workdir="run", audio=str(speech_split), loop=dict(steps=1))
    train = dict(shared, labels=(), frames_per_step=8192, max_frames=256)
    for job, schema, values, message in (
        ("train", TrainConfig, dict(train, micro_batches=3), "micro_batches=3: the batches of"),
        ("train", TrainConfig, dict(train, loss=dict(mask_group_rows=60)), "mask_group_rows=60"),
        ("train", TrainConfig, dict(train, mesh=dict(fsdp=3)), "does not match the"),
        ("train", TrainConfig, dict(train, validation_audio=str(speech_split)), "are in config"),
        ("finetune", FinetuneConfig, dict(shared, init_from="", micro_batches=77), "batches=77: "),
        (
            "finetune",
            FinetuneConfig,
            dict(shared, init_from="", padded_frames=(9,)),
            "beyond config.padded_",
        ),
    ):
        with pytest.raises(InputError, match=message):
            require_data(Stage(f"it2/{job}", config_lib.build(schema, values), {}))
    config = _config(prepared)
    for changes, message in (
        (dict(init_from="hf:/nowhere"), "/nowhere"),
        (dict(micro_batches=1000), "micro_batches=1000: the batches of bucket"),
        (dict(loss=dataclasses.replace(config.loss, mask_group_rows=9)), "mask_group_rows=9"),
    ):
        with pytest.raises(InputError, match=message):
            check.run(dataclasses.replace(config, **changes))


def test_the_command_refuses_in_one_line(prepared, tmp_path, repository):
    path = _rewritten(prepared, tmp_path, lambda rows: rows)
    content = path.read_bytes()
    path.write_bytes(content[:-7])
    done = subprocess.run(
        [
            *(sys.executable, "-m", "hubert_jax.check", "--config=configs/small.py"),
            f"--config.workdir={tmp_path}/work",
            f"--config.audio={tmp_path}/audio",
            f"--config.labels={tmp_path}/labels",
            "--config.head.codebook_sizes=6",
        ],
        cwd=repository,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {path}, record ") and done.stderr.count("\n") == 1
