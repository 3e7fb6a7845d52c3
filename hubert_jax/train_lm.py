"""Trains a Transformer language model, over words, word pieces or letters.

Reads transcripts of prepared splits, text files with a sentence in each line, or both, in the case
of a network's vocabulary, and a split to measure the perplexity on, if any. Writes
WORKDIR/train_lm/text, which is that text in tokens, checkpoints, metrics.jsonl, tensorboard/ and,
at the end, result.json with the perplexity and the rate of unknown words. The same command
continues an interrupted run; on several hosts it is as `train`. `decode` takes it as config.lm.
"""

import dataclasses
import time

from hubert_jax import config as config_lib
from hubert_jax import distributed, files, job
from hubert_jax.tasks import language_model
from hubert_jax.tasks.language_model import TrainLmConfig
from hubert_jax.training import sharding
from hubert_jax.training.fit import fit

VERSION = language_model.VERSION


def run(config: TrainLmConfig) -> dict:
    """Trains; returns the content of `WORKDIR/train_lm/result.json`.

    Raises InputError for inputs that do not fit together, and Diverged.
    """
    started = time.monotonic()
    workdir = files.require_writable(config.workdir)
    directory = workdir / "train_lm"
    distributed.join(config)  # first, so that no process waits for one that fails
    mesh = sharding.make_mesh(config.mesh)
    with distributed.locked(workdir / ".train_lm.lock", "language model's training"):
        data = language_model.read(config, directory / "text")
        text = data.text
        task = language_model.task(config, data, mesh)
        distributed.require_agreement(config, task.facts["inputs"], directory)
        unknown = text.unknown / max(text.words, 1)
        distributed.announce(
            f"{text.words:,} words in {len(text.ends):,} sentences, {len(text.numbers):,} of "
            f"{text.tokens.size:,} tokens ({config.unit}s); {100 * unknown:.2f} % of the words are "
            "unknown"
        )
        made = (task, config.loop, mesh, directory, config.seed)
        trained = fit(*made, micro_batches=config.micro_batches)
    result = {
        "checkpoint": str(directory / "checkpoints"),
        "architecture": config_lib.to_dict(config.architecture),
        "unit": config.unit,
        "tokens": text.tokens.size,
        "sentences": len(text.ends),
        "words": text.words,
        "unknown_rate": unknown,
        **dataclasses.asdict(trained),
    }
    if measured := (trained.validation or {}).get("last"):
        distributed.announce(
            f"on {config.validation_audio}: perplexity {measured['perplexity']:.2f}, "
            f"{measured['perplexity_without_unknown']:.2f} without unknown words; unknown "
            f"{100 * measured['unknown_rate']:.2f} %"
        )
    return distributed.from_first(lambda: job.finish(config.workdir, "train_lm", result, started))


if __name__ == "__main__":
    job.main("train_lm", TrainLmConfig, run)
