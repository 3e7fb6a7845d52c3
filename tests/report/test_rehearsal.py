"""What a report says of a rehearsal: what each stage has proven, and what was shrunk."""

import dataclasses
import types

import pytest

from hubert_jax.config import MayChange, Reads
from hubert_jax.model.architecture import Architecture
from hubert_jax.report import rehearsal
from hubert_jax.report.assemble import ReportConfig, assemble


@dataclasses.dataclass(frozen=True)
class Config:
    workdir: MayChange[str]
    audio: Reads[str] = ""
    layer: int = 9
    steps: MayChange[int] = 400_000
    splits: tuple[str, ...] = ("a", "b")
    architecture: Architecture = Architecture()


def test_differences_are_of_values_and_not_of_places():
    narrow = Architecture(conv_channels=(8,) * 7, dim=48)
    recipe, here = Config("a", "x"), Config("b", "y", 6, 2, ("a=c", "b"), narrow)
    found = rehearsal.differences(recipe, here, left_out=("layer",))
    assert found == {
        "steps": [400_000, 2],
        "splits": [("a", "b"), ("a=c", "b")],
        "architecture.conv_channels": [(512,) * 7, (8,) * 7],
        "architecture.dim": [768, 48],
    }
    assert rehearsal.shrunk(found) == (
        "steps 400,000 -> 2; splits (2 entries) -> (2 entries); "
        "architecture.conv_channels 7 x 512 -> 7 x 8; architecture.dim 768 -> 48"
    )
    assert rehearsal.shrunk(rehearsal.differences(recipe, recipe, ())) == "-"


TRAINED = {
    "last": {"loss": 5.678},
    "steps": 2,
    "resumed_from": 0,
    "mesh": {"data": 4, "fsdp": 2, "tensor": 1},
    "init_from": "",
}


@pytest.mark.parametrize(
    ("job", "result", "line"),
    [
        ("prepare", {"splits": {"a": {"seconds": 20.4}, "b": {"seconds": 1}}},
         "splits: 2, 21 s of audio"),
        ("label", {"k": 500, "frames": 1173, "splits": {"a": {"used_codewords": 488}}},
         "K = 500, 488 of them used for 1,173 frames"),
        ("train", TRAINED,
         "loss 5.68 after 2 steps, mesh data 4 x fsdp 2, bfloat16, everything rematerialised, "
         "classes 500, checkpoint read by 3"),
        ("finetune", TRAINED | {"resumed_from": 1, "mesh": {"data": 1}, "init_from": "orbax:a"},
         "loss 5.68 after 2 steps, resumed from 1, mesh of one device, bfloat16, "
         "everything rematerialised, from a checkpoint, checkpoint read by 3"),
        ("decode", {"wer": {"greedy": 1.0, "beam": 0.971}, "utterances": 2},
         "WER 100 % greedy, 97 % beam on 2 utterances"),
        ("decode", {"wer": {"greedy": None, "beam": None}, "utterances": 2},
         "texts, without transcripts, of 2 utterances"),
        ("evaluate", {"pnmi_by_layer": {"6": 0.314}, "labels": [{"pnmi": 0.25}]},
         "PNMI 0.31 of layer 6, 0.25 of labels"),
        ("export", {}, "finished"),
    ],
)  # fmt: skip
def test_what_a_stage_has_proven(job, result, line):
    config = types.SimpleNamespace(
        execution=types.SimpleNamespace(dtype="bfloat16", rematerialize="everything"),
        head=types.SimpleNamespace(codebook_sizes=(500,)),
    )
    assert rehearsal.proven(config, {"job": job, **result}, readers=3) == line


def test_the_report_of_a_rehearsal_has_its_table(tmp_path, capsys):
    found = {"it1/train": {"proven": "loss 5.68", "shrunk": {"loop.steps": [250_000, 2]}}}
    report = assemble(tmp_path, ReportConfig(), {}, [], found)
    assert report["rehearsed"] == found
    printed = capsys.readouterr().out
    assert "Rehearsal\n" in printed
    assert "  it1/train  loss 5.68  loop.steps 250,000 -> 2\n" in printed
    assert "loop.steps 250,000 -&gt; 2" in (tmp_path / "report.html").read_text()
