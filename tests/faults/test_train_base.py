"""BASE in full size from the command line: 94.7 M parameters, two steps, the last of them twice."""

import json
import os
import subprocess
import sys

import numpy as np
import splits

from hubert_jax.data import manifests, records
from hubert_jax.units.kmeans import Codebook

CLASSES = 500


def _labels(speech_split, speech_labels, directory):
    """The units of `speech_labels` as labels of the second iteration's codebook size."""
    codebook = Codebook(np.eye(CLASSES, dtype=np.float32), {"kind": "mfcc"}, 0.0, 0, 0, CLASSES)
    rate = manifests.read_label_manifest(speech_labels).rate_hz
    splits.write_labels(speech_split, directory, records.read_labels(speech_labels), codebook, rate)
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
            f"--config.head.codebook_sizes=({CLASSES},)",
            "--config.loop.steps=2",
            "--config.loop.log_every=1",
            "--config.loop.save_every=1",
            "--config.frames_per_step=32",
            "--config.max_frames=32",
            "--config.loss.mask_group_rows=1",
        ],
        cwd=repository,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )


def test_base_trains_and_resumes(repository, speech_split, speech_labels, tmp_path):
    labels = _labels(speech_split, speech_labels, tmp_path / "labels")
    done = _train(repository, tmp_path, speech_split, labels)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    result = json.loads((tmp_path / "train" / "result.json").read_text())
    assert result["parameters"] == 94_696_576
    assert "94,696,576 parameters" in done.stdout

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
