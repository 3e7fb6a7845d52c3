"""Where the stages of a pipeline write, and how one refers to what another has written.

The stage JOB or GROUP/JOB writes WORKDIR/JOB or WORKDIR/GROUP/JOB. `prepare:train` is a prepared
split, as is `first/pseudo_label:train`, which is made of the texts of `first/decode`;
`it1/label:train` the labels of one, `it1/label:NAME/train` those by one of several codebooks,
`it1/label` the codebook or codebooks, `lm` an n-gram, `train_lm` a Transformer of words;
`it1/train`, `pretrained/finetune`, `pretrained/export` and `public/convert` are networks;
`it1/train@best`, `@mean3` and `@500` are others of a training's checkpoints than the newest.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from hubert_jax.errors import InputError

_EXAMPLES = {
    "a prepared split": "prepare:SPLIT",
    "labels": "GROUP/label:SPLIT",
    "a codebook": "GROUP/label",
    "a network": "GROUP/train, GROUP/finetune, GROUP/export or GROUP/convert",
    "a language model": "GROUP/lm or GROUP/train_lm",
    "a decoding": "GROUP/decode",
}
TAKEN = {  # what a key of a job takes as its input
    "audio": "a prepared split",
    "more_audio": "a prepared split",
    "fit_audio": "a prepared split",
    "probe_audio": "a prepared split",
    "labels": "labels",
    "validation_audio": "a prepared split",
    "validation_labels": "labels",
    "measured_on": "a prepared split",
    "codebook": "a codebook",
    "lm": "a language model",
    "rescore": "a language model",
    "hypotheses": "a decoding",
    "decoded": "a decoding",
    "checkpoint": "a network",
    "init_from": "a network",
    "source": "a network",
}
_GIVEN = {("prepare", True): "a prepared split", ("label", True): "labels"} | {
    ("pseudo_label", True): "a prepared split",
    ("decode", False): "a decoding",
    ("label", False): "a codebook",
    ("lm", False): "a language model",
    ("train_lm", False): "a language model",
    **{(job, False): "a network" for job in ("train", "finetune", "export", "convert")},
}


@dataclasses.dataclass(frozen=True)
class Reference:
    """One output of a stage: of `split`, where the job has one for each, or NAME/SPLIT.

    Of a training's checkpoints `which` is "" for the newest.
    """

    stage: str
    split: str = ""
    which: str = ""

    @classmethod
    def parse(cls, text: str) -> "Reference":
        """From STAGE, STAGE:SPLIT or STAGE@WHICH."""
        stage, _, split = text.partition(":")
        stage, _, which = stage.partition("@")
        return cls(stage, split, which)

    @property
    def codebook(self) -> str:
        """Which of several codebooks the labels are by; "" is the only one."""
        return self.split.rpartition("/")[0]

    @property
    def audio_split(self) -> str:
        """The split of the audio, without the codebook's name."""
        return self.split.rpartition("/")[2]

    def __str__(self) -> str:
        which, split = self.which and f"@{self.which}", self.split and f":{self.split}"
        return f"{self.stage}{which}{split}"

    def require_fits(self, key: str) -> None:
        """Raises InputError where a job's `key` takes no output of this kind."""
        if key not in TAKEN:
            raise InputError(f"inputs.{key}: no such input; known: {', '.join(TAKEN)}")
        taken, job = TAKEN[key], job_of(self.stage)
        trained = job in ("train", "finetune", "train_lm")
        if _GIVEN.get((job, bool(self.split))) != taken or (self.which and not trained):
            raise InputError(f"inputs.{key}={self}: expected {taken}, {_EXAMPLES[taken]}")
        if self.which and not re.fullmatch(r"[1-9][0-9]*|best|mean[1-9][0-9]*", self.which):
            raise InputError(f"inputs.{key}={self}: expected @STEP, @best or @meanN")

    def path(self, workdir: str, values: Mapping[str, Any] | None = None) -> str:
        """What a job's configuration takes for it; `values` are the stage's own configuration."""
        job, where = job_of(self.stage), f"{workdir}/{self.stage}"
        values = values or {}
        if job in ("train", "finetune", "train_lm"):
            return f"orbax:{where}/checkpoints" + (f"@{self.which}" if self.which else "")
        if job == "export":
            return f"hf:{values.get('out') or f'{where}/model'}"
        if job == "convert":
            target = values["target"]
            return f"{target}{where}/model" if target.endswith(":") else target
        if job == "lm":
            return f"{where}/lm.bin"
        return f"{where}/{self.split}" if self.split else where

    def digest(self, result: dict[str, Any]) -> Any:
        """What identifies the output, from the stage's `result.json`.

        Raises InputError for a split that the stage does not have.
        """
        if self.split:
            splits = result["splits"]
            if self.split not in splits:
                raise InputError(
                    f"{self.stage}:{self.split}: no such split; there are {', '.join(splits)}"
                )
            found = splits[self.split]
            # Another mixture draws from the same shards in other proportions.
            return [found["digest"], found["shares"]] if "shares" in found else found["digest"]
        if self.which == "best":
            return result["validation"]["fingerprint"]
        if self.which:
            return [result["fingerprint"], self.which]
        named = {
            "label": "codebook_digest",
            "lm": "digest",
            "decode": "hypotheses_digest",
            "export": "digests",
            "convert": "digests",
        }
        return result[named.get(job_of(self.stage), "fingerprint")]


def outputs(stage: str, result: Mapping[str, Any]) -> list[str]:
    """What has to be in a finished stage's folder, as far as its `result.json` tells."""
    job = job_of(stage)
    found = [f"{split}/manifest.json" for split in result.get("splits", ())]
    if job == "label":
        for name in result.get("codebooks", ("",)):
            found += [f"{name}/codebook.{end}".lstrip("/") for end in ("npz", "json")]
    if job in ("train", "finetune", "train_lm"):
        best = (result.get("validation") or {}).get("step")
        found += [f"checkpoints/{step}" for step in (result["steps"], best) if step is not None]
    if job == "evaluate":
        found += ["joint_counts.npz", "draws.npz"]
    if job == "lm":
        found += ["lm.arpa", "lm.bin"]
    if job == "decode":
        found.append("hypotheses.jsonl")
    return found


def job_of(stage: str) -> str:
    """The job of a stage: the last part of its name."""
    return stage.rpartition("/")[2]


def group_directory(workdir: str, stage: str) -> str:
    """The working directory of a stage's job, which writes WORKDIR/STAGE."""
    group = stage.rpartition("/")[0]
    return f"{workdir}/{group}" if group else workdir
