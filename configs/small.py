"""The demonstration's network and corpus, one job at a time.

    python -m hubert_jax.prepare  --config=configs/small.py
    python -m hubert_jax.label    --config=configs/small.py
    python -m hubert_jax.check    --config=configs/small.py   (may be left out)
    python -m hubert_jax.train    --config=configs/small.py
    python -m hubert_jax.evaluate --config=configs/small.py
    python -m hubert_jax.finetune --config=configs/small.py
    python -m hubert_jax.decode   --config=configs/small.py
    python -m hubert_jax.export   --config=configs/small.py

For a corpus of one's own see the README; `--config.workdir=...` alone is not enough to move
everything, since the other paths name what an earlier job wrote.
"""

from ml_collections import ConfigDict

from configs import demo

WORKDIR = "runs/small"
PARTS = ("prepare", "label", "train", "evaluate", "finetune", "decode", "export")


def get_config(part: str = "train") -> ConfigDict:
    """The part of one job."""
    run = demo.get_config()
    audio = {
        "train": f"{WORKDIR}/prepare/{run.train_split}",
        "finetune": f"{WORKDIR}/prepare/{run.finetune_split}",
        "dev": f"{WORKDIR}/prepare/{run.dev_split}",
    }
    pretrained = f"orbax:{WORKDIR}/train/checkpoints"
    finetuned = f"orbax:{WORKDIR}/finetune/checkpoints"
    iteration = run.iterations.it1
    parts = {
        "prepare": dict(run.prepare),
        "label": dict(iteration.label, audio=(audio["train"], audio["dev"])),
        "train": dict(
            iteration.train,
            audio=audio["train"],
            labels=(f"{WORKDIR}/label/{run.train_split}",),
        ),
        "evaluate": dict(
            run.evaluate,
            audio=audio["dev"],
            fit_audio=audio["train"],
            alignments=run.alignments,
            labels=(f"{WORKDIR}/label/{run.dev_split}",),
            checkpoint=pretrained,
        ),
        "finetune": dict(run.finetune, audio=audio["finetune"], init_from=pretrained),
        "decode": dict(run.decode, audio=audio["dev"], checkpoint=finetuned),
        "export": dict(checkpoint=finetuned, audio=audio["dev"]),
    }
    return ConfigDict(dict(parts[part], workdir=WORKDIR))
