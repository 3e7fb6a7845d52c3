"""The demonstration's network and corpus, one job at a time.

    python -m hubert_jax.prepare  --config=configs/small.py
    python -m hubert_jax.label    --config=configs/small.py
    python -m hubert_jax.check    --config=configs/small.py   (may be left out)
    python -m hubert_jax.train    --config=configs/small.py
    python -m hubert_jax.evaluate --config=configs/small.py
    python -m hubert_jax.finetune --config=configs/small.py
    python -m hubert_jax.lm       --config=configs/small.py --config.kenlm=DIR   (needs lmplz)
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
    *("prepare", "label", "train", "evaluate", "finetune", "lm", "decode", "pseudo_label"),
    "export",
)


def get_config(part: str = "train") -> ConfigDict:
    """The part of one job: the demonstration's first iteration, then its fine-tuning."""
    if part == "lm":
        return ConfigDict(
            dict(
                workdir=WORKDIR,
                audio=(_paths("prepare:train-clean-5"),),
                measured_on=_paths("prepare:dev-mini"),
                order=3,
            )
        )
    if part == "pseudo_label":
        audio, hypotheses = _paths("prepare:dev-mini"), _paths("decode")
        return ConfigDict(dict(workdir=WORKDIR, audio=audio, hypotheses=hypotheses))
    stages = demo.get_config().stages.to_dict()
    group = "it1" if part in ("label", "train", "evaluate") else "pretrained"
    values = stages[part] if part == "prepare" else stages[group][part]
    inputs = values.pop("inputs", {})
    if part == "evaluate":
        values["untrained"] = False
    paths = {key: _paths(reference) for key, reference in inputs.items()}
    return ConfigDict(dict(values, **paths, workdir=WORKDIR))


def _paths(reference: str | tuple) -> str | tuple:
    """Where the job by job way has what a stage of the demonstration reads."""
    if isinstance(reference, tuple):
        return tuple(_paths(part) for part in reference)
    stage = reference.replace("it1/", "").replace("it2/", "").replace("pretrained/", "")
    return Reference.parse(stage).path(WORKDIR)
