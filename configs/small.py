"""The demonstration's network and corpus, with the paper's MFCC units, one job at a time.

    python -m hubert_jax.prepare  --config=configs/small.py
    python -m hubert_jax.label    --config=configs/small.py
    python -m hubert_jax.check    --config=configs/small.py   (may be left out)
    python -m hubert_jax.train    --config=configs/small.py
    python -m hubert_jax.evaluate --config=configs/small.py
    python -m hubert_jax.analyse  --config=configs/small.py   (may be left out)
    python -m hubert_jax.finetune --config=configs/small.py
    python -m hubert_jax.lm       --config=configs/small.py --config.kenlm=DIR   (needs lmplz)
    python -m hubert_jax.train_lm --config=configs/small.py   (may be left out)
    python -m hubert_jax.decode   --config=configs/small.py
    python -m hubert_jax.pseudo_label --config=configs/small.py   (of decode's beam search)
    python -m hubert_jax.export   --config=configs/small.py

For a corpus of one's own see the README; `--config.workdir=...` alone is not enough to move
everything, since the other paths name what an earlier job wrote.
"""

from ml_collections import ConfigDict

from configs import demo
from hubert_jax.layout import Reference

WORKDIR = "runs/small"
PARTS = (
    *("prepare", "label", "train", "evaluate", "analyse", "finetune", "lm", "train_lm", "decode"),
    *("pseudo_label", "export"),
)


def get_config(part: str = "train") -> ConfigDict:
    """The part of one job: one iteration, then fine-tuning."""
    if part == "lm":
        return ConfigDict(
            dict(
                workdir=WORKDIR,
                audio=(_paths("prepare:train-clean-5"),),
                measured_on=_paths("prepare:dev-mini"),
                order=3,
            )
        )
    if part == "train_lm":
        return ConfigDict(
            dict(
                workdir=WORKDIR,
                audio=(_paths("prepare:train-clean-5"),),
                validation_audio=_paths("prepare:dev-mini"),
                vocabulary_size=2_000,
                architecture=dict(dim=128, num_layers=2, ffn_dim=512, num_heads=4, cutoffs=()),
                dropout=0.3,
                optimizer=dict(peak_learning_rate=2e-3),
                loop=dict(steps=80, log_every=20, save_every=20),
                tokens_per_step=4_096,
                seed=1337,
            )
        )
    if part == "pseudo_label":
        audio, hypotheses = _paths("prepare:dev-mini"), _paths("decode")
        return ConfigDict(dict(workdir=WORKDIR, audio=audio, hypotheses=hypotheses))
    if part == "analyse":
        return ConfigDict(
            dict(
                workdir=WORKDIR,
                audio=_paths("prepare:dev-mini"),
                alignments="examples/minilibri/alignments/dev-mini.phones.txt",
                fit_audio=_paths("prepare:train"),
                checkpoints=(f"it1={_paths('train')}",),
                hours=(0.1, 0.5),
                trials=3,
                kmeans=dict(n_init=3),  # 60 codebooks are fitted
            )
        )
    values = dict(stages()[part])
    inputs = values.pop("inputs", {})
    paths = {key: _paths(reference) for key, reference in inputs.items()}
    return ConfigDict(dict(values, **paths, workdir=WORKDIR))


def stages() -> dict:
    """Every job's values; what it reads of another one stands in its `inputs`."""
    train, dev = "prepare:train", "prepare:dev-mini"
    tuned = dict(checkpoint="finetune", audio=dev)
    return dict(
        prepare=dict(
            corpus="examples/minilibri",
            splits=("train=train-clean-5+train-clean-100", "train-clean-5", "dev-mini"),
        ),
        label=dict(inputs=dict(audio=(train, dev)), feature="mfcc", num_clusters=100, seed=0),
        train=dict(
            demo.pretraining(2200, (0.5, 0.5, 1.0), (0, 300, 700), 2e-3),
            inputs=dict(audio=train, labels=("label:train",)),
        ),
        evaluate=dict(
            inputs=dict(audio=dev, fit_audio=train, checkpoint="train", labels=("label:dev-mini",)),
            alignments="examples/minilibri/alignments/dev-mini.phones.txt",
            untrained=False,
            num_clusters=100,
            frame_rate=50,
            seed=0,
            fit_max_frames=60_000,
        ),
        finetune=dict(
            demo.finetuning(320, 3e-4, freeze_steps=240, head_scale=30.0),
            inputs=dict(audio="prepare:train-clean-5", init_from="train"),
        ),
        decode=dict(inputs=tuned),
        export=dict(inputs=tuned),
    )


def _paths(reference: str | tuple) -> str | tuple:
    """Where a job has written what another one reads."""
    if isinstance(reference, tuple):
        return tuple(_paths(part) for part in reference)
    return Reference.parse(reference).path(WORKDIR)
