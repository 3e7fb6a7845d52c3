"""BASE on LibriSpeech as in the paper: two iterations, five fine-tunings, word error rates.

    python -m hubert_jax.pipeline --config=configs/paper/librispeech.py --config.corpus=FOLDER

FOLDER holds `LibriSpeech` and `librispeech_finetuning` (Libri-light's 10 h) as they are published.
With `--config.alignments=FILE`, phones of dev-clean and dev-other, both iterations are scored.
`:rehearsal` runs the same stages on some utterances of the embedded corpus with narrow networks and
two steps, on eight devices, which `make rehearsal` simulates. `:full` has whole networks on one
device and, of the fine-tunings, 10 h alone.
"""

from ml_collections import ConfigDict

from configs import base_it1, base_it2
from configs.finetune import base
from configs.paper import rehearsal
from hubert_jax.errors import InputError

PARTS = ("pipeline", "rehearsal", "full")
EVALUATION = ("dev-clean", "dev-other", "test-clean", "test-other")
VALIDATION = "dev-other"  # as released: its word error rate chooses the checkpoint that is decoded
_LIGHT = "librispeech_finetuning"
_HOUR = "+".join(f"{_LIGHT}/1h/{i}/{kind}" for i in range(6) for kind in ("clean", "other"))
TRANSCRIBED = {
    "10min": f"{_LIGHT}/1h/0/clean+{_LIGHT}/1h/0/other",
    "1h": _HOUR,
    "10h": f"{_HOUR}+{_LIGHT}/9h/clean+{_LIGHT}/9h/other",
    "100h": "LibriSpeech/train-clean-100",
    "960h": "+".join(
        f"LibriSpeech/train-{part}" for part in ("clean-100", "clean-360", "other-500")
    ),
}


def get_config(
    part: str, corpus: str = "", alignments: str = "", dtype: str = "bfloat16"
) -> ConfigDict:
    """The whole, for `pipeline`; `dtype` is that of training."""
    if part == "pipeline" and not corpus:
        raise InputError("config.corpus: missing; pass --config.corpus=FOLDER with LibriSpeech/")
    if part == "rehearsal":
        alignments = (
            "examples/minilibri/alignments/train-clean-5.phones.txt"  # of its short/dev.tsv
        )
    config = pipeline(corpus, alignments, dtype)
    if part != "pipeline":
        rehearsal.rehearse(config, full_width=part == "full")
    return config


def pipeline(corpus: str, alignments: str, dtype: str) -> ConfigDict:
    """BASE's stages; pre-training and the longest fine-tuning read one prepared split."""
    scored = dict(dev="LibriSpeech/dev-clean+LibriSpeech/dev-other") if alignments else {}
    stages = dict(
        prepare=prepare(corpus, {**TRANSCRIBED, **scored}),
        it1=dict(
            label=stage(base_it1.label(), audio=labelled("prepare:960h", scored)),
            train=pretraining(base_it1.train(), dtype, "960h", "it1/label"),
        ),
        it2=dict(
            label=stage(
                base_it2.label(),
                audio=labelled("prepare:960h", scored),
                checkpoint="it1/train",
            ),
            train=pretraining(base_it2.train(), dtype, "960h", "it2/label"),
        ),
    )
    for iteration in ("it1", "it2") if alignments else ():
        stages[iteration]["evaluate"] = dict(
            inputs=dict(
                audio="prepare:dev",
                fit_audio="prepare:960h",
                checkpoint=f"{iteration}/train",
                labels=(f"{iteration}/label:dev",),
            ),
            alignments=alignments,
            frame_rate=100,  # as published
        )
    for split in TRANSCRIBED:
        stages |= recognition(f"base_{split}", base.get_config(split), split, "it2/train", dtype)
    return ConfigDict(
        dict(
            workdir="runs/librispeech",
            stages=stages,
            report=dict(
                title="HuBERT BASE on LibriSpeech",
                iterations=("it1", "it2"),
                recognisers=tuple(name for name in stages if name.startswith("base_")),
            ),
        )
    )


def prepare(corpus: str, splits: dict[str, str]) -> dict:
    """The prepare stage: `splits` by name, and what is decoded."""
    evaluated = {name: f"LibriSpeech/{name}" for name in EVALUATION}
    named = tuple(f"{name}={folders}" for name, folders in (splits | evaluated).items())
    return dict(corpus=corpus, splits=named)


def labelled(training: str, scored: dict[str, str]) -> tuple[str, ...]:
    """Splits that are labelled: the training split, on which the codebook is fitted, first."""
    return (training, *(f"prepare:{split}" for split in (VALIDATION, *scored)))


def pretraining(config: ConfigDict, dtype: str, split: str, label: str) -> dict:
    """Pre-training on a split, by the units of the stage `label`."""
    return stage(
        config,
        dtype,
        audio=f"prepare:{split}",
        labels=(f"{label}:{split}",),
        validation_audio=f"prepare:{VALIDATION}",
        validation_labels=(f"{label}:{VALIDATION}",),
    )


def recognition(
    name: str, config: ConfigDict, split: str, network: str, dtype: str
) -> dict[str, dict]:
    """Fine-tuning on a split, and decoding of the four evaluation sets: groups by their names.

    Decoding is greedy: the paper's language models are no part of LibriSpeech's audio.
    """
    inputs = dict(audio=f"prepare:{split}", validation_audio=f"prepare:{VALIDATION}")
    tuned = stage(config, dtype, init_from=network, **inputs)
    groups = {name: dict(finetune=tuned)}
    for evaluated in EVALUATION:
        inputs = dict(checkpoint=f"{name}/finetune@best", audio=f"prepare:{evaluated}")
        groups[f"{name}_{evaluated}"] = dict(decode=dict(inputs=inputs))
    return groups


def stage(config: ConfigDict, dtype: str = "", **inputs: str | tuple[str, ...]) -> dict:
    """A job's configuration as a stage that reads `inputs` of other stages."""
    values = {key: value for key, value in config.to_dict().items() if key not in inputs}
    values.pop("workdir")
    if dtype:
        values["execution"] = values.get("execution", {}) | dict(dtype=dtype)
    return dict(values, inputs=inputs)
