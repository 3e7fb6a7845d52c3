"""The stages of a run: which job, with which configuration, after which others."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from hubert_jax import config as config_lib
from hubert_jax.decode import DecodeConfig
from hubert_jax.decode import run as decode
from hubert_jax.evaluate import EvaluateConfig
from hubert_jax.evaluate import run as evaluate
from hubert_jax.export import ExportConfig
from hubert_jax.export import run as export
from hubert_jax.finetune import FinetuneConfig
from hubert_jax.finetune import run as finetune
from hubert_jax.label import LabelConfig
from hubert_jax.label import run as label
from hubert_jax.prepare import PrepareConfig
from hubert_jax.prepare import run as prepare
from hubert_jax.train import TrainConfig
from hubert_jax.train import run as train


@dataclasses.dataclass(frozen=True)
class Stage:
    """One job of a run.

    Attributes:
      name: unique in the run.
      directory: what the job writes, below the run's directory; removed before it runs afresh.
      config: the job's configuration.
      run: the job.
      after: names of the stages whose output it reads.
      reads: files and folders from outside the run that it reads.
    """

    name: str
    directory: str
    config: Any
    run: Callable[[Any], dict]
    after: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()


def plan(config) -> list[Stage]:
    """All stages of a `PipelineConfig`, in order, every configuration checked.

    Raises:
      InputError: an unknown key, a wrong type or an impossible combination in any stage.
    """
    work = config.workdir
    train_audio, finetune_audio, dev_audio = (
        f"{work}/prepare/{split}"
        for split in (config.train_split, config.finetune_split, config.dev_split)
    )
    stages = [
        Stage(
            "prepare",
            "prepare",
            _build(PrepareConfig, config.prepare, "config.prepare", workdir=work),
            prepare,
            reads=(config.prepare["corpus"],),
        )
    ]
    previous = None
    for name, iteration in config.iterations.items():
        here = f"{work}/{name}"
        path = f"config.iterations.{name}"
        iteration = dict(iteration.items())
        continues = previous is not None and iteration.pop("continue_previous", False)
        checkpoint = f"orbax:{work}/{previous}/train/checkpoints" if previous else ""
        audio = (train_audio, dev_audio)
        stages.append(
            Stage(
                f"{name}-label",
                f"{name}/label",
                _build(
                    LabelConfig,
                    iteration.pop("label"),
                    f"{path}.label",
                    workdir=here,
                    audio=audio,
                    checkpoint=checkpoint,
                ),
                label,
                after=("prepare", f"{previous}-train") if previous else ("prepare",),
            )
        )
        stages.append(
            Stage(
                f"{name}-train",
                f"{name}/train",
                _build(
                    TrainConfig,
                    iteration.pop("train"),
                    f"{path}.train",
                    workdir=here,
                    audio=train_audio,
                    labels=(f"{here}/label/{config.train_split}",),
                    init_from=checkpoint if continues else "",
                ),
                train,
                after=(f"{name}-label",),
            )
        )
        stages.append(
            Stage(
                f"{name}-evaluate",
                f"{name}/evaluate",
                _build(
                    EvaluateConfig,
                    config.evaluate,
                    "config.evaluate",
                    workdir=here,
                    audio=dev_audio,
                    fit_audio=train_audio,
                    alignments=config.alignments,
                    checkpoint=f"orbax:{here}/train/checkpoints",
                    labels=(f"{here}/label/{config.dev_split}",),
                    untrained=previous is None,
                ),
                evaluate,
                after=(f"{name}-train",),
                reads=(config.alignments,),
            )
        )
        previous = name
    for name, init_from in (
        ("pretrained", f"orbax:{work}/{previous}/train/checkpoints"),
        ("scratch", ""),
    ):
        here = f"{work}/{name}"
        stages.append(
            Stage(
                f"{name}-finetune",
                f"{name}/finetune",
                _build(
                    FinetuneConfig,
                    config.finetune,
                    "config.finetune",
                    workdir=here,
                    audio=finetune_audio,
                    init_from=init_from,
                ),
                finetune,
                after=("prepare", f"{previous}-train") if init_from else ("prepare",),
            )
        )
        stages.append(
            Stage(
                f"{name}-decode",
                f"{name}/decode",
                _build(
                    DecodeConfig,
                    config.decode,
                    "config.decode",
                    workdir=here,
                    audio=dev_audio,
                    checkpoint=f"orbax:{here}/finetune/checkpoints",
                ),
                decode,
                after=(f"{name}-finetune",),
            )
        )
    for name in (previous, "pretrained"):
        kind = "finetune" if name == "pretrained" else "train"
        stages.append(
            Stage(
                f"{name}-export",
                f"{name}/export",
                ExportConfig(
                    workdir=f"{work}/{name}",
                    checkpoint=f"orbax:{work}/{name}/{kind}/checkpoints",
                    audio=dev_audio,
                ),
                export,
                after=(f"{name}-{kind}",),
            )
        )
    return stages


def _build(schema: type, values: Mapping, path: str, **paths):
    """A job's configuration: the run's values, and the paths that the run decides."""
    return config_lib.build(schema, {**dict(values.items()), **paths}, path)
