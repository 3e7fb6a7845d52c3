"""Where the stages of a pipeline write, and how one refers to what another has written.

A stage is called JOB or GROUP/JOB and writes WORKDIR/JOB or WORKDIR/GROUP/JOB. `prepare:train` is a
prepared split, `it1/label:train` the labels of a split, `it1/label` its codebook, `it1/train` the
checkpoints of a training, `pretrained/export` an exported model, `public/convert` a converted one.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from hubert_jax.errors import InputError

_CHECKPOINTS = ("train", "finetune")
_SPLITS = ("prepare", "label")


@dataclasses.dataclass(frozen=True)
class Reference:
    """One output of a stage: of `split`, where the job has one for each split."""

    stage: str
    split: str = ""

    @classmethod
    def parse(cls, text: str) -> "Reference":
        """From STAGE or STAGE:SPLIT."""
        stage, _, split = text.partition(":")
        return cls(stage, split)

    def path(self, workdir: str, values: Mapping[str, Any] | None = None) -> str:
        """What the key of a job's configuration takes for it.

        Args:
          workdir: the run's.
          values: of the stage's configuration, which may say where it writes.

        Raises:
          InputError: a split of a job that has none, none of one that has, or a job without an
            output that others read.
        """
        job = job_of(self.stage)
        where = stage_directory(workdir, self.stage)
        if job in _SPLITS and self.split:
            return f"{where}/{self.split}"
        if job == "label":
            return where
        if job in _CHECKPOINTS and not self.split:
            return f"orbax:{where}/checkpoints"
        if job == "export" and not self.split:
            return f"hf:{(values or {}).get('out') or f'{where}/model'}"
        if job == "convert" and not self.split and values:
            target = values["target"]
            return f"{target}{where}/model" if target.endswith(":") else target
        raise InputError(
            f"{self.stage}{':' * bool(self.split)}{self.split}: expected prepare:SPLIT, "
            "GROUP/label:SPLIT, GROUP/label, GROUP/train, GROUP/finetune, GROUP/export or "
            "GROUP/convert"
        )

    def digest(self, result: dict[str, Any]) -> Any:
        """What identifies the output, from the stage's `result.json`.

        Raises:
          InputError: the stage has no such split.
        """
        if self.split:
            splits = result["splits"]
            if self.split not in splits:
                raise InputError(
                    f"{self.stage}:{self.split}: no such split; there are {', '.join(splits)}"
                )
            found = splits[self.split]
            # The same shards are drawn from in other proportions by another mixture.
            return [found["digest"], found["shares"]] if "shares" in found else found["digest"]
        job = job_of(self.stage)
        named = {"label": "codebook_digest", "export": "digests", "convert": "digests"}
        return result[named.get(job, "fingerprint")]


def job_of(stage: str) -> str:
    """The job of a stage: the last part of its name."""
    return stage.rpartition("/")[2]


def group_directory(workdir: str, stage: str) -> str:
    """The working directory of a stage's job."""
    group = stage.rpartition("/")[0]
    return f"{workdir}/{group}" if group else workdir


def stage_directory(workdir: str, stage: str) -> str:
    """What a stage writes, `result.json` among it."""
    return f"{workdir}/{stage}"
