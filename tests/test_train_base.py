"""BASE in full size from the command line: 94.7 M parameters, two steps, the last of them twice."""

import json
import os
import subprocess
import sys

import numpy as np
from splits import CLUSTERS

from hubert_jax.data import manifests, records
from hubert_jax.data.index import write_label_index

CLASSES = 504


def _labels_504(speech_labels, directory):
    """The same units as labels of a model with four special symbols first, as released."""
    directory.mkdir()
    manifest = manifests.read_label_manifest(speech_labels)
    written = [
        records.write_label_shard(
            directory / shard.file,
            [
                (name, labels + np.uint16(4))
                for name, labels in records.read_label_shard(speech_labels / shard.file)
            ],
        )
        for shard in manifest.shards
    ]
    shards, lengths = zip(*written, strict=True)
    counts = (0,) * 4 + manifest.class_counts + (0,) * (CLASSES - CLUSTERS - 4)
    values = {field: getattr(manifest, field) for field in manifest.__dataclass_fields__}
    values |= dict(
        num_classes=CLASSES,
        class_counts=counts,
        shards=shards,
        digest=manifests.shards_digest(shards),
        index=write_label_index(directory, lengths),
    )
    manifests.write_manifest(directory, manifests.LabelManifest(**values))
    return directory


def _train(repository, workdir, audio, labels):
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "hubert_jax.train",
            "--config=configs/base_it1.py",
            f"--config.workdir={workdir}",
            f"--config.audio={audio}",
            f"--config.labels=('{labels}',)",
            f"--config.model.codebooks=({CLASSES},)",
            "--config.loop.steps=2",
            "--config.loop.log_every=1",
            "--config.loop.save_every=1",
            "--config.frames_per_step=32",
            "--config.max_frames=32",
        ],
        cwd=repository,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )


def test_base_trains_and_resumes(repository, speech_split, speech_labels, tmp_path):
    labels = _labels_504(speech_labels, tmp_path / "labels")
    done = _train(repository, tmp_path, speech_split, labels)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    result = json.loads((tmp_path / "train" / "result.json").read_text())
    assert result["parameters"] == 94_697_600
    assert "94,697,600 parameters" in done.stdout

    # As if it had been killed before its last checkpoint was complete.
    checkpoints = tmp_path / "train" / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["1", "2"]
    (checkpoints / "2").rename(tmp_path / "2")
    (tmp_path / "train" / "result.json").unlink()
    done = _train(repository, tmp_path, speech_split, labels)
    assert done.returncode == 0, done.stderr
    assert "resumed from the checkpoint of step 1" in done.stdout
    resumed = json.loads((tmp_path / "train" / "result.json").read_text())
    assert resumed["last"] == result["last"]
    assert np.isfinite(resumed["last"]["loss"])
