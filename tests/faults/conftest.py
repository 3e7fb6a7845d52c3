"""Two processes of one device each that train together on real speech."""

import os
import socket
import subprocess
import sys

import pytest
import splits

from hubert_jax.data import records
from hubert_jax.units.kmeans import Codebook


@pytest.fixture(scope="session")
def values(speech_split, speech_labels, tmp_path_factory) -> dict:
    """A training on shards of about two utterances, so that both processes have some."""
    root = tmp_path_factory.mktemp("processes")
    (root / "audio").mkdir()
    splits.write_split(root / "audio", "speech", list(records.read_audio(speech_split)), [], 0.3)
    codebook = Codebook.load(speech_labels.parent)
    units = records.read_labels(speech_labels)
    splits.write_labels(root / "audio", root / "labels", units, codebook, 100)
    return dict(
        audio=str(root / "audio"),
        labels=(str(root / "labels"),),
        **splits.TINY_LARGE,
        frames_per_step=256,
        max_frames=32,
        loss=dict(mask_group_rows=4),
    )


@pytest.fixture(scope="session")
def together(repository, tmp_path_factory):
    """A function that runs one job in two processes, and returns those that end by themselves.

    `programs` are Python's arguments for each, to which those of the job are added; `stopped` is
    the number of a process that is not waited for.
    """

    def run(workdir, values, programs, of_last=(), stopped=None):
        file = tmp_path_factory.mktemp("started") / "together.py"
        file.write_text(f"def get_config(part):\n    return {values!r}\n")
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            coordinator = f"127.0.0.1:{found.getsockname()[1]}"
        job = (f"--config={file}", f"--config.workdir={workdir}", "--config.distributed.count=2")
        job += (f"--config.distributed.coordinator={coordinator}",)
        started = [
            subprocess.Popen(
                [
                    *(sys.executable, *program, *job, f"--config.distributed.index={index}"),
                    *(of_last if index else ()),
                ],
                cwd=repository,
                env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for index, program in enumerate(programs)
        ]
        done = []
        try:
            for index, process in enumerate(started):
                if index != stopped:
                    output = process.communicate(timeout=300)
                    done.append(
                        subprocess.CompletedProcess(process.args, process.returncode, *output)
                    )
        finally:
            for process in started:
                process.kill()
                process.wait()
        return done

    return run
