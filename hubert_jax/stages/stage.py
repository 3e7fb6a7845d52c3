"""What a stage is: one job of a pipeline, with its configuration and its inputs."""

import contextlib
import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from hubert_jax import (
    check,
    decode,
    evaluate,
    export,
    finetune,
    label,
    lm,
    prepare,
    pseudo_label,
    storage,
    train,
    train_lm,
)
from hubert_jax.convert import __main__ as convert
from hubert_jax.convert import formats
from hubert_jax.errors import Diverged, InputError, Preempted
from hubert_jax.layout import Reference, job_of


class Job(NamedTuple):
    """A job that can be a stage."""

    config: Any  # its configuration, a dataclass
    run: Callable[[Any], dict]  # returns the content of its result.json
    version: int  # raised when the same configuration and inputs give something else
    together: bool  # whether all processes run it; the first one does the others alone


JOBS = {
    "prepare": Job(prepare.PrepareConfig, prepare.run, prepare.VERSION, False),
    "check": Job(train.TrainConfig, check.run, check.VERSION, False),
    "label": Job(label.LabelConfig, label.run, label.VERSION, True),
    "train": Job(train.TrainConfig, train.run, train.VERSION, True),
    "evaluate": Job(evaluate.EvaluateConfig, evaluate.run, evaluate.VERSION, False),
    "finetune": Job(finetune.FinetuneConfig, finetune.run, finetune.VERSION, True),
    "lm": Job(lm.LmConfig, lm.run, lm.VERSION, False),
    "train_lm": Job(train_lm.TrainLmConfig, train_lm.run, train_lm.VERSION, True),
    "decode": Job(decode.DecodeConfig, decode.run, decode.VERSION, True),
    "pseudo_label": Job(
        pseudo_label.PseudoLabelConfig, pseudo_label.run, pseudo_label.VERSION, False
    ),
    "export": Job(export.ExportConfig, export.run, export.VERSION, False),
    "convert": Job(convert.ConvertConfig, convert.run, convert.VERSION, False),
}


@dataclasses.dataclass(frozen=True)
class Stage:
    """One job of a pipeline, ready to start."""

    name: str  # JOB or GROUP/JOB
    config: Any  # of the job, with the paths of its inputs
    inputs: dict[str, tuple[Reference, ...]]  # by the keys of `config` that they fill

    def splits(self) -> dict[str, tuple[Reference, ...]]:
        """Its inputs that are prepared splits to train and validate on."""
        keys = ("audio", "more_audio", "validation_audio")
        return {key: self.inputs[key] for key in keys if key in self.inputs}


def split_scheme(where: str) -> tuple[str, str]:
    """The format that a network's place begins with, if any, and the path."""
    scheme, _, rest = where.partition(":")
    return (scheme, rest) if scheme in formats.SCHEMES else ("", where)


def outside_paths(config: Any, key: str) -> list[pathlib.Path]:
    """Files and folders that a key of a job's configuration names."""
    if hasattr(config, "reads"):
        return config.reads()
    value = getattr(config, key)
    found = []
    for where in filter(None, [value] if isinstance(value, str) else value):
        scheme, rest = split_scheme(where)
        path = storage.path(rest)
        name, _, which = path.name.rpartition("@")
        if scheme == "orbax" and name:  # which is the best, or the last few, all of them decide
            path = path.with_name(name) / (which if which.isdecimal() else "")
        found.append(path)
        if scheme == "torchaudio":
            beside = (path.with_name(path.name + end) for end in (".json", ".rest.safetensors"))
            found += [companion for companion in beside if companion.exists()]
    return found


@contextlib.contextmanager
def named(stage: str, key: str = "") -> Iterator[None]:
    """Errors inside begin with the stage's name, and with a key of its configuration."""
    try:
        yield
    except (InputError, Diverged, Preempted) as error:
        # The job's keys, but for the two that the pipeline has itself, are longer here.
        own = {*JOBS[job_of(stage)].config.__dataclass_fields__} - {"workdir", "distributed"}
        path = f"config.stages.{stage.replace('/', '.')}."
        message = re.sub(rf"\bconfig\.(?=({'|'.join(own)})\b)", path, f"{key}{error}")
        raise type(error)(f"[{stage}] {message}") from None
