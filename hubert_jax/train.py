"""Pre-trains HuBERT by masked prediction of units.

Reads audio shards (prepare) and label sets of it (label), and those of a held-out split to
validate on, if any. Writes WORKDIR/train/checkpoints, metrics.jsonl, tensorboard/ and, at the end,
result.json. The same command continues an interrupted run. On several hosts, with
`--config.distributed.coordinator` and the same files, it is one run.
"""

import dataclasses
import time

from hubert_jax import config as config_lib
from hubert_jax import distributed, files, job
from hubert_jax.networks import warm_start
from hubert_jax.tasks import pretraining
from hubert_jax.tasks.pretraining import TrainConfig
from hubert_jax.training import sharding
from hubert_jax.training.fit import fit
from hubert_jax.training.task import WarmStart

VERSION = pretraining.VERSION


def run(config: TrainConfig) -> dict:
    """Trains; returns the content of `WORKDIR/train/result.json`.

    Raises InputError for inputs that do not fit together, and Diverged.
    """
    started = time.monotonic()
    workdir = files.require_writable(config.workdir)
    directory = workdir / "train"
    distributed.join(config)  # first, so that no process waits for one that fails
    data = pretraining.read(config)
    mesh = sharding.make_mesh(config.mesh)
    task = pretraining.task(config, data, mesh)
    distributed.require_agreement(config, task.facts["inputs"], directory)
    distributed.announce(pretraining.description(config, data, mesh, task))

    def start() -> WarmStart:
        return warm_start.for_pretraining(
            config.init_from, config.architecture, config.head, data.units, config.keep_head
        )

    warm = start if config.init_from else None
    with distributed.locked(workdir / ".train.lock", "training"):
        trained = fit(task, config.loop, mesh, directory, config.seed, warm, config.micro_batches)
    counts = data.label_sets[0].manifest.class_counts
    result = {
        "checkpoint": str(directory / "checkpoints"),
        "architecture": config_lib.to_dict(config.architecture),
        "commonest_unit_share": max(counts) / sum(counts),
        "audio_seconds": data.audio.seconds,
        **dataclasses.asdict(trained),
    }
    return distributed.from_first(lambda: job.finish(config.workdir, "train", result, started))


if __name__ == "__main__":
    job.main("train", TrainConfig, run)
