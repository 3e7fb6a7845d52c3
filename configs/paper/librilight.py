"""LARGE and X-LARGE on Libri-light as in the paper, fine-tuned on its splits and LibriSpeech's.

    python -m hubert_jax.pipeline --config=configs/paper/librilight.py --config.corpus=FOLDER

FOLDER holds Libri-light's `small`, `medium` and `large`, `librispeech_finetuning` and
`LibriSpeech` as they are published. Units are of layer 9 of BASE's second iteration, which
`librispeech.py` trains; `--config.base` names it, `hf:DIR` for instance. `:rehearsal` is as there,
`:full` is LARGE's pre-training for one step; run that file's own first.
"""

from ml_collections import ConfigDict

from configs import large, xlarge
from configs.finetune import large as finetune_large
from configs.finetune import xlarge as finetune_xlarge
from configs.paper import librispeech, rehearsal
from hubert_jax.errors import InputError

PARTS = librispeech.PARTS
_BASE = "orbax:runs/{}/it2/train/checkpoints"
_UNLABELLED = {"60kh": "small+medium+large"}


def get_config(part: str, corpus: str = "", base: str = "", dtype: str = "bfloat16") -> ConfigDict:
    """The whole, for `pipeline`; `dtype` is that of training."""
    if part == "pipeline" and not corpus:
        raise InputError("config.corpus: missing; pass --config.corpus=FOLDER with small/")
    run = "librispeech" if part == "pipeline" else f"librispeech_{part}"
    config = pipeline(corpus, base or _BASE.format(run), dtype)
    if part != "pipeline":
        rehearsal.rehearse(config, full_width=part == "full")
    return config


def pipeline(corpus: str, base: str, dtype: str) -> ConfigDict:
    """One label set for both networks, which are trained and fine-tuned one after the other."""
    audio = librispeech.labelled("prepare:60kh", {})
    label = librispeech.stage(large.label(), audio=audio) | dict(checkpoint=base)
    stages = dict(
        prepare=librispeech.prepare(corpus, _UNLABELLED | librispeech.TRANSCRIBED),
        units=dict(label=label),
    )
    for name, network, tuning in (
        ("large", large, finetune_large),
        ("xlarge", xlarge, finetune_xlarge),
    ):
        trained = librispeech.pretraining(network.train(), dtype, "60kh", "units/label")
        stages[name] = dict(train=trained)
        for split in librispeech.TRANSCRIBED:
            stages |= librispeech.recognition(
                f"{name}_{split}", tuning.get_config(split), split, f"{name}/train", dtype
            )
    return ConfigDict(
        dict(
            workdir="runs/librilight",
            stages=stages,
            report=dict(
                title="HuBERT LARGE and X-LARGE on Libri-light",
                iterations=("large", "xlarge"),
                recognisers=tuple(name for name in stages if "_" in name),
            ),
        )
    )
