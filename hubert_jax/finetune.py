"""Fine-tunes a pre-trained network with CTC on transcribed speech.

Reads a transcribed split (prepare), another to validate on, if any, and a network, if it is not to
learn from scratch. Writes WORKDIR/finetune/checkpoints, metrics.jsonl, tensorboard/ and, at the
end, result.json. The same command continues an interrupted run; on several hosts it is as `train`.
"""

import dataclasses
import pathlib
import time

from hubert_jax import distributed, files, job
from hubert_jax.asr import vocabularies
from hubert_jax.data.manifests import AudioManifest
from hubert_jax.networks import warm_start
from hubert_jax.tasks import ctc
from hubert_jax.tasks.ctc import FinetuneConfig
from hubert_jax.training import sharding
from hubert_jax.training.checkpoint import Checkpoints
from hubert_jax.training.fit import fit
from hubert_jax.training.task import WarmStart
from hubert_jax.vocabulary import Vocabulary

VERSION = ctc.VERSION


def run(config: FinetuneConfig) -> dict:
    """Fine-tunes; returns the content of `WORKDIR/finetune/result.json`.

    Raises InputError for inputs that do not fit together, and Diverged.
    """
    started = time.monotonic()
    workdir = files.require_writable(config.workdir)
    directory = workdir / "finetune"
    distributed.join(config)  # first, so that no process waits for one that fails
    audio, held_out = ctc.read(config)
    mesh = sharding.make_mesh(config.mesh)
    vocabulary = _vocabulary(config, audio, directory)
    seconds = config.learnable_seconds(audio, held_out, vocabulary)
    task = ctc.task(config, audio, held_out, vocabulary, mesh)
    distributed.require_agreement(config, task.facts["inputs"], directory)
    kernels = ctc.network(config, vocabulary.size, mesh).kernels
    distributed.announce(
        f"fine-tuning {'from ' + config.init_from if config.init_from else 'from scratch'}: "
        f"{seconds / 3600:.2f} h, {config.loop.steps} steps; attention by "
        f"{kernels.attention_backend} ({kernels.attention_reason})"
    )

    def start() -> WarmStart:
        return warm_start.for_finetuning(config.init_from, config.architecture, vocabulary)

    warm = start if config.init_from else None
    with distributed.locked(workdir / ".finetune.lock", "fine-tuning"):
        trained = fit(task, config.loop, mesh, directory, config.seed, warm, config.micro_batches)
    result = {
        "checkpoint": str(directory / "checkpoints"),
        "from_scratch": not config.init_from,
        "audio_seconds": seconds,
        **dataclasses.asdict(trained),
    }
    return distributed.from_first(lambda: job.finish(config.workdir, "finetune", result, started))


def _vocabulary(
    config: FinetuneConfig, audio: AudioManifest, directory: pathlib.Path
) -> Vocabulary:
    """That of the run which is there, whatever has become of its source, or of a new one."""
    if saved := Checkpoints.newest_metadata(directory / "checkpoints").get("vocabulary"):
        return Vocabulary.from_dict(saved)
    where = (config.vocabulary_file, config.init_from, config.audio)
    return vocabularies.choose(config.vocabulary, *where, audio)


if __name__ == "__main__":
    job.main("finetune", FinetuneConfig, run)
