"""Which stages of a pipeline run, in which order, and why: with jobs that only write a result."""

import dataclasses
import itertools
import json
import os
import pathlib
import shutil
from typing import Any

import pytest

from hubert_jax import command_line, files, layout, pipeline
from hubert_jax import config as config_lib
from hubert_jax.config import MayChange, Reads
from hubert_jax.errors import InputError
from hubert_jax.layout import Reference
from hubert_jax.model.architecture import Architecture
from hubert_jax.prepare import PrepareConfig
from hubert_jax.stages import records
from hubert_jax.stages.content import ContentDigests
from hubert_jax.stages.stage import JOBS, Job, Stage
from hubert_jax.training.sharding import MeshConfig


@dataclasses.dataclass(frozen=True)
class Prepare:
    workdir: MayChange[str]
    corpus: Reads[str]
    splits: tuple[str, ...] = ("train",)
    share: float = 1.0
    workers: MayChange[int] = 0


@dataclasses.dataclass(frozen=True)
class Label:
    workdir: MayChange[str]
    audio: Reads[tuple[str, ...]]
    checkpoint: Reads[str] = ""
    num_clusters: int = 100


@dataclasses.dataclass(frozen=True)
class Loss:
    alpha: float = 1.0


@dataclasses.dataclass(frozen=True)
class Train:
    workdir: MayChange[str]
    audio: Reads[str]
    labels: Reads[tuple[str, ...]]
    init_from: Reads[str] = ""
    loss: Loss = Loss()
    architecture: Architecture = Architecture()


@pytest.fixture
def jobs(monkeypatch):
    """Jobs that note their runs; what they give depends on what the real ones' does."""
    ran = []

    def job(name: str, result):
        def run(config: Any) -> dict:
            ran.append(f"{pathlib.Path(config.workdir).name}/{name}")
            found = {"seconds": 1.0, **result(config)}
            for output in layout.outputs(name, found):
                path = pathlib.Path(config.workdir, name, output)
                files.write_json(path, {"shards": [{"file": "shard"}]})
                files.write_text(path.with_name("shard"), "")
                files.write_text(path.with_name("index.npz"), "")
            files.write_json(f"{config.workdir}/{name}/result.json", found)
            return found

        return run

    def prepared(config: Prepare) -> dict:
        names = sorted(path.read_text() for path in pathlib.Path(config.corpus).iterdir())
        found = {"digest": str(names), "shares": {"corpus": config.share}}
        return {"splits": {split: found for split in config.splits}}

    def labelled(config: Label) -> dict:
        digest = f"{config.num_clusters} of {len(config.checkpoint)}"
        return {"splits": {"train": {"digest": digest}}, "codebook_digest": digest}

    def trained(config: Train) -> dict:
        return {"fingerprint": f"{config.loss.alpha} {bool(config.init_from)}", "steps": 4}

    for name, config, work in (
        ("prepare", Prepare, prepared),
        ("label", Label, labelled),
        ("train", Train, trained),
    ):
        monkeypatch.setitem(JOBS, name, Job(config, job(name, work), 1, together=False))
    # A directory for compiled programs would outlive the test.
    monkeypatch.setattr(pipeline, "_keep_compiled", lambda workdir: None)
    monkeypatch.setattr(pipeline, "require_data", lambda stage, attached=True: None)
    monkeypatch.setattr(
        pipeline,
        "assemble",
        lambda workdir, report, results, skipped, rehearsed: {
            "skipped": skipped,
            "rehearsed": rehearsed,
        },
    )
    return ran


@pytest.fixture
def corpus(tmp_path) -> pathlib.Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.wav").write_text("speech")
    return folder


def _config(tmp_path, corpus, **stages) -> pipeline.PipelineConfig:
    values = {
        "prepare": {"corpus": str(corpus)},
        "it2": {
            "label": {"inputs": {"audio": ("prepare:train",), "checkpoint": "it1/train"}},
            "train": {
                "inputs": {
                    "audio": "prepare:train",
                    "labels": ("it2/label:train",),
                    "init_from": "it1/train",
                }
            },
        },
        "it1": {
            "label": {"inputs": {"audio": ("prepare:train",)}},
            "train": {"inputs": {"audio": "prepare:train", "labels": ("it1/label:train",)}},
        },
    }
    for name, change in stages.items():
        values[name] = {**values.get(name, {}), **change}
    return pipeline.PipelineConfig(str(tmp_path / "run"), values)


ALL = ["run/prepare", "it1/label", "it1/train", "it2/label", "it2/train"]


def test_inputs_decide_the_order_and_a_second_call_skips_all(jobs, tmp_path, corpus):
    config = _config(tmp_path, corpus)
    assert pipeline.run(config)["skipped"] == []
    assert jobs == ALL
    skipped = pipeline.run(config)["skipped"]
    assert skipped == ["prepare", "it1/label", "it1/train", "it2/label", "it2/train"]
    assert jobs == ALL


def test_a_rehearsal_is_compared_with_its_recipe(jobs, tmp_path, corpus, monkeypatch):
    monkeypatch.setattr(
        pipeline.rehearsal, "proven", lambda config, result, readers: f"read by {readers}"
    )
    recipe = _config(tmp_path, corpus)
    inputs = {"audio": ("prepare:train",)}
    shrunk = _config(tmp_path, corpus, it1={"label": {"inputs": inputs, "num_clusters": 7}})
    rehearsed = pipeline.run(dataclasses.replace(shrunk, recipe=recipe.stages))["rehearsed"]
    assert list(rehearsed) == ["prepare", "it1/label", "it1/train", "it2/label", "it2/train"]
    assert {name: found["shrunk"] for name, found in rehearsed.items() if found["shrunk"]} == {
        "it1/label": {"num_clusters": [100, 7]}
    }
    assert rehearsed["it1/train"]["proven"] == "read by 2"
    assert pipeline.run(shrunk)["rehearsed"] == {}
    lacks = {name: stage for name, stage in recipe.stages.items() if name != "it2"}
    with pytest.raises(InputError, match="config.recipe: has no it2/label, it2/train; expected"):
        pipeline.run(dataclasses.replace(shrunk, recipe=lacks))


def test_only_content_counts(jobs, tmp_path, corpus, monkeypatch):
    """A corpus copied again, another place, other speeds: nothing runs."""
    pipeline.run(_config(tmp_path, corpus))
    read = []
    sha256 = files.sha256_file
    monkeypatch.setattr(files, "sha256_file", lambda path: read.append(path) or sha256(path))
    pipeline.run(_config(tmp_path, corpus))
    assert not read  # times of change tell that nothing has changed
    os.utime(corpus / "a.wav", (1, 1))
    pipeline.run(_config(tmp_path, corpus, prepare={"corpus": str(corpus), "workers": 3}))
    assert read == [corpus / "a.wav"]
    shutil.copytree(corpus, tmp_path / "copy")
    pipeline.run(_config(tmp_path, tmp_path / "copy"))
    assert jobs == ALL


def test_another_corpus_runs_what_reads_it(jobs, tmp_path, corpus):
    pipeline.run(_config(tmp_path, corpus))
    (corpus / "b.wav").write_text("more")
    jobs.clear()
    pipeline.run(_config(tmp_path, corpus))
    assert jobs == ALL


def test_what_gives_the_same_again_stops_the_chain(jobs, tmp_path, corpus, monkeypatch):
    pipeline.run(_config(tmp_path, corpus))
    monkeypatch.setitem(JOBS, "prepare", JOBS["prepare"]._replace(version=2))
    jobs.clear()
    pipeline.run(_config(tmp_path, corpus))
    assert jobs == ["run/prepare"]


def test_another_mixture_of_the_same_audio_trains_again(jobs, tmp_path, corpus):
    pipeline.run(_config(tmp_path, corpus))
    jobs.clear()
    pipeline.run(_config(tmp_path, corpus, prepare={"corpus": str(corpus), "share": 0.5}))
    assert "run/prepare" in jobs and "it1/train" in jobs


def test_a_changed_default_of_the_loss_trains_again(jobs, tmp_path, corpus, monkeypatch):
    pipeline.run(_config(tmp_path, corpus))
    changed = dataclasses.make_dataclass("Loss", [("alpha", float, 0.5)], frozen=True)
    other = dataclasses.make_dataclass(
        "Train", [("loss", changed, changed())], bases=(Train,), frozen=True
    )
    monkeypatch.setitem(JOBS, "train", JOBS["train"]._replace(config=other))
    jobs.clear()
    pipeline.run(_config(tmp_path, corpus))
    # The second labelling gives the same again here, but has to be done.
    assert jobs == ["it1/train", "it2/label", "it2/train"]


def test_a_new_key_with_a_default_trains_nothing_again(jobs, tmp_path, corpus, monkeypatch):
    pipeline.run(_config(tmp_path, corpus))
    jobs.clear()
    for default, ran in ((2.0, []), (3.0, ["it1/train", "it2/train"])):
        fields = [("alpha", float, 1.0), ("beta", float, default)]
        loss = dataclasses.make_dataclass("Loss", fields, frozen=True)
        other = dataclasses.make_dataclass(
            "Train",
            [("more", int, 7), ("loss", loss, loss())],
            bases=(Train,),
            frozen=True,
        )
        monkeypatch.setitem(JOBS, "train", JOBS["train"]._replace(config=other))
        pipeline.run(_config(tmp_path, corpus))
        assert jobs == ran
    jobs.clear()
    inputs = {"audio": "prepare:train", "labels": ("it1/label:train",)}
    pipeline.run(_config(tmp_path, corpus, it1={"train": {"inputs": inputs, "loss": {"beta": 5}}}))
    assert jobs == ["it1/train"]  # not its default


def test_what_an_interrupted_prepare_has_done_stays_for_other_settings(jobs, tmp_path, corpus):
    """Such as the one that its refusal names; once it is finished it is set aside."""
    pipeline.run(_config(tmp_path, corpus))
    (tmp_path / "run/prepare/result.json").unlink()
    for share in (0.5, 0.25):
        pipeline.run(_config(tmp_path, corpus, prepare={"corpus": str(corpus), "share": share}))
        asides = {path.name.rpartition("-")[0] for path in (tmp_path / "run").glob("set_aside/*")}
        assert ("prepare" in asides) == (share == 0.25)


def test_a_job_that_was_run_by_itself_does_not_pass_for_the_stage(jobs, tmp_path, corpus, capsys):
    config = _config(tmp_path, corpus)
    pipeline.run(config)
    result = tmp_path / "run/it1/label/result.json"
    result.write_text(result.read_text().replace("100 of 0", "5 of 0"))
    jobs.clear()
    pipeline.run(config)
    assert jobs == ["it1/label"]
    assert "[it1/label] runs again: a job that was run by itself" in capsys.readouterr().out
    more = {"label": {"inputs": {"audio": ("prepare:train",)}, "num_clusters": 500}}
    pipeline.run(_config(tmp_path, corpus, it1=more))
    pipeline.run(config)  # takes back its own, not what the job has written
    assert "100 of 0" in result.read_text()


def test_what_a_job_has_written_after_a_killed_stage_is_not_the_stages(
    jobs, tmp_path, corpus, monkeypatch
):
    """The record says nothing of a result yet; the stage's own job sees what it can use."""
    config = _config(tmp_path, corpus)

    def killed(config):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(JOBS, "label", JOBS["label"]._replace(run=killed))
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(config)
    JOBS["label"].run(Label(str(tmp_path / "run/it1"), (), num_clusters=7))
    jobs.clear()
    pipeline.run(config)
    assert jobs == ["it1/label", "it1/train", "it2/label", "it2/train"]
    assert "100 of 0" in (tmp_path / "run/it1/label/result.json").read_text()


def test_what_is_gone_of_what_was_set_aside_is_made_again(jobs, tmp_path, corpus, capsys):
    config = _config(tmp_path, corpus)
    pipeline.run(config)
    more = {"label": {"inputs": {"audio": ("prepare:train",)}, "num_clusters": 500}}
    pipeline.run(_config(tmp_path, corpus, it1=more))
    (aside,) = (tmp_path / "run/set_aside").glob("it1-label-*")
    (aside / "train/shard").unlink()
    jobs.clear()
    pipeline.run(config)
    assert jobs == ["it1/label"]
    assert f"taken back from {aside}, and continues: {aside}" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["{", "[]", "null", '""', '{"x": 7}'])
def test_damaged_digests_of_files_are_made_again(jobs, tmp_path, corpus, content):
    config = _config(tmp_path, corpus)
    pipeline.run(config)
    (tmp_path / "run/stages/contents.json").write_text(content)
    assert len(pipeline.run(config)["skipped"]) == 5


@pytest.mark.parametrize(
    ("stage", "output"),
    [
        ("prepare", "train/manifest.json"),
        ("prepare", "train/index.npz"),
        ("it1/label", "codebook.npz"),
        ("it1/label", "train/shard"),
        ("it1/train", "checkpoints"),
    ],
)
def test_an_output_that_is_gone_is_made_again(jobs, tmp_path, corpus, capsys, stage, output):
    config = _config(tmp_path, corpus)
    pipeline.run(config)
    path = tmp_path / "run" / stage / output
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    jobs.clear()
    pipeline.run(config)
    assert [name.removeprefix("run/") for name in jobs] == [stage]
    assert f"[{stage}] continues: {path}" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["[]", '{"key": "x"}', '{"parts": 7}', "{"])
def test_a_damaged_record_is_named(jobs, tmp_path, corpus, content):
    pipeline.run(_config(tmp_path, corpus))
    (tmp_path / "run/it1/train/stage.json").write_text(content)
    with pytest.raises(InputError, match=r"\[it1/train\] .*stage.json: "):
        pipeline.run(_config(tmp_path, corpus))


def test_nothing_is_deleted_and_an_undone_change_comes_back(jobs, tmp_path, corpus, capsys):
    config = _config(tmp_path, corpus)
    pipeline.run(config)
    weights = tmp_path / "run/it1/train/checkpoints"
    (weights / "weights").write_text("weeks of work")
    more = {"label": {"inputs": {"audio": ("prepare:train",)}, "num_clusters": 500}}
    changed = _config(tmp_path, corpus, it1=more)
    jobs.clear()
    pipeline.run(changed)
    assert jobs == ["it1/label", "it1/train"]  # whose fingerprint the fake job leaves as it is
    aside = [p for p in (tmp_path / "run/set_aside").iterdir() if p.name.startswith("it1-train")]
    assert (aside[0] / "checkpoints/weights").read_text() == "weeks of work"
    assert "what is there is set aside in" in capsys.readouterr().out
    jobs.clear()
    assert len(pipeline.run(config)["skipped"]) == 5
    assert not jobs and (weights / "weights").read_text() == "weeks of work"
    assert "taken back from" in capsys.readouterr().out
    assert len(pipeline.run(changed)["skipped"]) == 5 and not jobs


def test_what_was_made_outside_of_the_pipeline_is_set_aside_each_time(jobs, tmp_path, corpus):
    config = _config(tmp_path, corpus)
    for content in ("first", "second"):
        prepared = tmp_path / "run/prepare"
        if prepared.exists():
            shutil.rmtree(prepared)
        files.write_text(prepared / "by_hand", content)
        pipeline.run(config)
    asides = (tmp_path / "run/set_aside").glob("prepare-unknown*")
    assert sorted((aside / "by_hand").read_text() for aside in asides) == ["first", "second"]


def test_a_new_file_is_the_only_one_that_is_read(jobs, tmp_path, corpus, monkeypatch):
    pipeline.run(_config(tmp_path, corpus))
    (corpus / "b.wav").write_text("more")
    read = []
    sha256 = files.sha256_file
    monkeypatch.setattr(files, "sha256_file", lambda path: read.append(path) or sha256(path))
    pipeline.run(_config(tmp_path, corpus))
    assert read == [corpus / "b.wav"]


def test_linked_folders_count_and_circles_end(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/a.wav").write_text("speech")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/speaker").symlink_to(tmp_path / "disk")
    (tmp_path / "disk/circle").symlink_to(tmp_path / "corpus")
    contents = ContentDigests(tmp_path / "cache.json")
    before = contents.of(tmp_path / "corpus")
    assert contents.of(tmp_path / "corpus") == before
    (tmp_path / "disk/a.wav").write_text("other speech")
    assert contents.of(tmp_path / "corpus") != before


def test_prepare_reads_the_folders_that_it_names(tmp_path):
    def digests(*splits):
        config = PrepareConfig("w", str(tmp_path), splits)
        return [ContentDigests(tmp_path / "none").of(path) for path in config.reads()]

    for name in ("a/x.wav", "b/x.wav", "audio/y.wav"):
        files.write_text(tmp_path / name, name)
    files.write_text(tmp_path / "lists/train.tsv", "../audio\ny.wav\t9\n")
    files.write_text(tmp_path / "lists/train.wrd", "HELLO\n")
    splits = ("train=a*2", "t=tfds:librispeech/test"), ("train=lists/train.tsv",)
    before = [digests(*entries) for entries in splits]
    assert [len(entries) for entries in before] == [1, 3]
    files.write_text(tmp_path / "b/x.wav", "other")
    assert [digests(*entries) for entries in splits] == before
    for name in ("audio/y.wav", "lists/train.wrd"):
        files.write_text(tmp_path / name, "other")
        after = digests(*splits[1])
        assert after != before[1]
        before[1] = after


@pytest.mark.parametrize("step", ["", "@2", "@best", "@mean1"])
def test_a_checkpoint_of_another_run_counts_by_its_content(jobs, tmp_path, corpus, step):
    weights = tmp_path / "other/checkpoints/2/state/weights"
    files.write_text(weights, "one")
    described = {
        "kind": "encoder",
        "architecture": {},
        "keep": 2,
        "validation": {"best": {"step": 2}},
    }
    files.write_json(tmp_path / "other/checkpoints/2/metadata/metadata", described)
    config = _config(tmp_path, corpus)
    config.stages["it1"]["label"]["checkpoint"] = f"orbax:{tmp_path}/other/checkpoints{step}"
    pipeline.run(config)
    jobs.clear()
    files.write_text(weights, "two")
    pipeline.run(config)
    assert jobs == ["it1/label"]


def test_an_input_that_is_missing_is_found_before_anything_runs(jobs, tmp_path, corpus):
    config = _config(tmp_path, corpus)
    config.stages["it1"]["train"]["init_from"] = f"hf:{tmp_path}/nothing"
    message = rf"\[it1/train\] config.stages.it1.train.init_from: {tmp_path}/nothing: not found"
    for start in (pipeline.dry_run, pipeline.run):
        with pytest.raises(InputError, match=message):
            start(config)
    assert not jobs


@pytest.mark.parametrize("renames", [0, 1])
def test_killed_while_results_change_places(jobs, tmp_path, corpus, monkeypatch, renames):
    """After any of the renames every result is still bound to what it was made from."""
    config = _config(tmp_path, corpus)
    more = {"label": {"inputs": {"audio": ("prepare:train",)}, "num_clusters": 500}}
    changed = _config(tmp_path, corpus, it1=more)
    results = {}
    for name, wanted in (("config", config), ("changed", changed)):
        pipeline.run(wanted)
        results[name] = (tmp_path / "run/it1/label/result.json").read_text()
    rename, done = pathlib.Path.rename, []

    def killed(path, target):
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(rename(path, target))

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(config)
    jobs.clear()
    for name, wanted in (("changed", changed), ("config", config), ("changed", changed)):
        assert len(pipeline.run(wanted)["skipped"]) == 5
        assert (tmp_path / "run/it1/label/result.json").read_text() == results[name]
    assert not jobs


def test_an_interrupted_stage_continues(jobs, tmp_path, corpus, monkeypatch, capsys):
    def interrupted(config):
        path = pathlib.Path(config.workdir, "train", "half")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("done")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(JOBS, "train", JOBS["train"]._replace(run=interrupted))
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(_config(tmp_path, corpus))
    pipeline.run(_config(tmp_path, corpus))
    assert "[it1/train] continues" in capsys.readouterr().out
    assert (tmp_path / "run/it1/train/half").exists()


def test_dry_run_says_what_and_why_and_touches_nothing(jobs, tmp_path, corpus, capsys):
    config = _config(tmp_path, corpus)
    assert pipeline.dry_run(config)["runs"] == [stage.name for stage in pipeline.plan(config)]
    assert not (tmp_path / "run").exists()
    pipeline.run(config)
    capsys.readouterr()
    before = sorted(str(path) for path in (tmp_path / "run").rglob("*"))
    more = {"label": {"inputs": {"audio": ("prepare:train",)}, "num_clusters": 500}}
    later = {"label": _config(tmp_path, corpus).stages["it2"]["label"] | {"num_clusters": 500}}
    runs = pipeline.dry_run(_config(tmp_path, corpus, it1=more, it2=later))["runs"]
    assert runs == ["it1/label", "it1/train", "it2/label", "it2/train"]
    printed = capsys.readouterr().out
    assert "[prepare] skipped" in printed
    assert "[it1/label] runs again: config.num_clusters" in printed
    assert "[it1/train] runs after it1/label, unless" in printed
    assert "[it2/label] runs again after it1/train: config.num_clusters" in printed
    assert sorted(str(path) for path in (tmp_path / "run").rglob("*")) == before
    assert jobs == ALL


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (
            {"it3": {"sing": {}}},
            r"config.stages.it3.sing: no such job; known: prepare, check, label",
        ),
        (
            {"it1": {"label": {"inputs": {"audio": ("prepare:dev",)}}}},
            r"\[it1/label\] inputs.audio=prepare:dev: no such split; prepared are train",
        ),
        (
            {
                "it1": {
                    "label": {"inputs": {"audio": ("prepare:train",), "checkpoint": "it9/train"}}
                }
            },
            r"\[it1/label\] inputs.checkpoint=it9/train: no such stage; there are",
        ),
        (
            {"it1": {"label": {"inputs": {"audio": ("prepare",)}}}},
            r"\[it1/label\] inputs.audio=prepare: expected a prepared split, prepare:SPLIT",
        ),
        (
            {"it2": {"label": {"inputs": {"checkpoint": "it1/label"}}}},
            r"\[it2/label\] inputs.checkpoint=it1/label: expected a network, GROUP/train",
        ),
        (
            {"it1": {"label": {"inputs": {"audios": ("prepare:train",)}}}},
            r"\[it1/label\] inputs.audios: no such input; known: audio, more_audio, fit_audio",
        ),
        (
            {"it1": {"label": {"workdir": "elsewhere"}}},
            r"\[it1/label\] config.stages.it1.label.workdir=elsewhere: the pipeline decides it",
        ),
        (
            {
                "it1": {
                    "label": {"inputs": {"audio": ("prepare:train",), "checkpoint": "it1/train"}}
                }
            },
            "it1/label.*wait for each other",
        ),
        (
            {"it2": {"label": {"inputs": {"checkpoint": "it1/train@best"}}}},
            r"\[it2/label\] inputs.checkpoint=it1/train@best: the stage has no validation_audio",
        ),
        (
            {"it2": {"label": {"inputs": {"checkpoint": "it1/train@nonsense"}}}},
            "inputs.checkpoint=it1/train@nonsense: expected @STEP, @best or @meanN",
        ),
        (
            {"it2": {"label": {"inputs": {"checkpoint": "it1/train@mean0"}}}},
            "inputs.checkpoint=it1/train@mean0: expected @STEP, @best or @meanN",
        ),
        (
            {"it2": {"label": {"inputs": {"checkpoint": "it1/train@02"}}}},
            "inputs.checkpoint=it1/train@02: expected @STEP, @best or @meanN",
        ),
        (
            {"it2": {"label": {"inputs": {"audio": ("prepare@best:train",)}}}},
            r"\[it2/label\] inputs.audio=prepare@best:train: expected a prepared split",
        ),
        ({"set_aside": {"label": {}}}, "config.stages.set_aside: the pipeline's own folder"),
        ({"prepare": {"corpse": "x"}}, r"\[prepare\] config.stages.prepare.corpse: no such key"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_runs(
    jobs, tmp_path, corpus, stages, message
):
    with pytest.raises(InputError, match=message):
        pipeline.run(_config(tmp_path, corpus, **stages))
    assert not jobs and not (tmp_path / "run").exists()


def test_any_key_of_any_stage_can_be_overridden(jobs, tmp_path, corpus):
    file = tmp_path / "config.py"
    values = dict(_config(tmp_path, corpus).stages)
    file.write_text(
        "from ml_collections import ConfigDict\n"
        f"def get_config(part):\n    return ConfigDict(dict(workdir='x', stages={values!r}))\n"
    )
    read = command_line.read(
        [
            f"--config={file}",
            "--config.stages.it1.train.loss.alpha=0.25",
            "--config.stages.prepare.workers=7",
            "--config.stages.it1.label.inputs.checkpoint=it2/train",  # the file names no input
            "--config.stages.it2.label.inputs.checkpoint=",
            "--config.stages.it2.train.inputs.init_from=",
        ],
        "pipeline",
        pipeline.PipelineConfig,
    )
    stages = {stage.name: stage.config for stage in pipeline.plan(read)}
    assert stages["it1/train"].loss.alpha == 0.25 and stages["prepare"].workers == 7
    assert stages["it1/label"].checkpoint == "orbax:x/it2/train/checkpoints"
    with pytest.raises(InputError, match="config.stages.it1.train.loss.alfa: no such key"):
        command_line.read(
            [f"--config={file}", "--config.stages.it1.train.loss.alfa=1"],
            "pipeline",
            pipeline.PipelineConfig,
        )


def test_a_value_beside_an_input_is_never_dropped_in_silence(jobs, tmp_path, corpus):
    """A run that was to begin from other weights must not begin from those of the input."""
    weights = tmp_path / "weights"
    file = tmp_path / "config.py"
    values = dict(_config(tmp_path, corpus).stages)
    file.write_text(
        "from ml_collections import ConfigDict\n"
        f"def get_config(part):\n    return ConfigDict(dict(workdir='x', stages={values!r}))\n"
    )
    override = f"--config.stages.it2.train.init_from=hf:{weights}"

    def planned(*overrides):
        arguments = [f"--config={file}", override, *overrides]
        read = command_line.read(arguments, "pipeline", pipeline.PipelineConfig)
        return {stage.name: stage for stage in pipeline.plan(read)}["it2/train"]

    message = r"\[it2/train\] config.stages.it2.train.init_from=hf:.*: found beside .*=it1/train"
    with pytest.raises(InputError, match=message):
        planned()
    stage = planned("--config.stages.it2.train.inputs.init_from=")
    assert stage.config.init_from == f"hf:{weights}" and "init_from" not in stage.inputs


def test_a_converted_network_feeds_other_stages(tmp_path, corpus):
    """Public weights, converted once, are what both labelling and training begin from."""
    public = {"inputs": {"source": "theirs/export"}, "target": "orbax:"}
    values = {
        "prepare": {"corpus": str(corpus), "splits": ("train=.",)},
        "theirs": {"export": {"checkpoint": "hf:later", "out": "elsewhere"}},
        "public": {"convert": public},
        "it1": {
            "label": {
                "inputs": {"audio": ("prepare:train",), "checkpoint": "public/convert"},
                "feature": "layer",
                "layer": 6,
            },
        },
    }
    run = str(tmp_path / "run")
    stages = pipeline.plan(pipeline.PipelineConfig(run, values))
    assert [stage.name for stage in stages].index("public/convert") > 0
    configs = {stage.name: stage.config for stage in stages}
    assert configs["public/convert"].source == "hf:elsewhere"
    assert configs["it1/label"].checkpoint == f"orbax:{run}/public/convert/model"


def test_an_ngram_feeds_decoding(tmp_path):
    reference = Reference.parse("text/lm")
    reference.require_fits("lm")
    assert reference.path("w") == "w/text/lm/lm.bin"
    assert reference.digest({"digest": "abc"}) == "abc"
    with pytest.raises(
        InputError, match="inputs.lm=it1/label: expected a language model, GROUP/lm"
    ):
        Reference.parse("it1/label").require_fits("lm")


def test_a_transformer_feeds_decoding_in_the_beam_or_after_it(tmp_path):
    def planned(**inputs):
        values = {
            "prepare": {"corpus": str(tmp_path), "splits": ("train=a", "dev=b")},
            "letters": {"lm": {"inputs": {"audio": ("prepare:train",)}, "unit": "letter"}},
            "text": {
                "lm": {"inputs": {"audio": ("prepare:train",)}},
                "train_lm": {
                    "inputs": {"audio": ("prepare:train",), "validation_audio": "prepare:dev"},
                    "loop": {"steps": 5},
                },
            },
            "decode": {
                "inputs": {"audio": "prepare:dev", **inputs},
                "checkpoint": f"hf:{tmp_path}/public",  # which is not there yet
                "method": "lexicon",
            },
            # Beside a network either kind is handed over.
            "export": {"inputs": {"lm": "letters/lm"}, "checkpoint": f"hf:{tmp_path}/public"},
        }
        stages = pipeline.plan(pipeline.PipelineConfig(str(tmp_path / "run"), values))
        return {stage.name: stage.config for stage in stages}

    where = f"orbax:{tmp_path}/run/text/train_lm/checkpoints"
    assert planned(lm="text/train_lm@best")["decode"].lm == f"{where}@best"
    both = planned(lm="text/lm", rescore="text/train_lm")["decode"]
    assert (both.lm, both.rescore) == (f"{tmp_path}/run/text/lm/lm.bin", where)
    with pytest.raises(InputError, match="inputs.rescore=text/lm: is an n-gram; expected a Trans"):
        planned(lm="text/train_lm", rescore="text/lm")
    with pytest.raises(InputError, match="inputs.lm=letters/lm: is an n-gram of letters; expected"):
        planned(lm="letters/lm")
    result = {"fingerprint": "last", "steps": 5, "validation": {"step": 4}}
    assert Reference.parse("text/train_lm").digest(result) == "last"
    assert layout.outputs("text/train_lm", result) == ["checkpoints/5", "checkpoints/4"]


def test_self_training_is_a_pipeline(tmp_path, corpus):
    """What a first recogniser hears is what a second one learns from, too."""
    audio = {"audio": "prepare:train"}
    heard = {"checkpoint": "first/finetune", "audio": "prepare:more"}
    labelled = {"audio": "prepare:more", "hypotheses": "first/decode"}
    mixed = {**audio, "more_audio": ("first/pseudo_label:more",)}
    exported = {"checkpoint": "second/finetune", "decoded": ("second/decode",)}
    loop = {"init_from": "", "loop": {"steps": 2}}
    values = {
        "second": {
            "finetune": {"inputs": mixed, **loop, "audio_weights": (1.0, 0.5)},
            "decode": {"inputs": {"checkpoint": "second/finetune", "audio": "prepare:train"}},
            "export": {"inputs": exported},
        },
        "first": {
            "finetune": {"inputs": audio, **loop},
            "decode": {"inputs": heard, "method": "letters"},
            "pseudo_label": {"inputs": labelled, "threshold": 0.5},
        },
        "prepare": {"corpus": str(corpus), "splits": ("train=a", "more=b")},
    }
    run = str(tmp_path / "run")
    stages = {s.name: s for s in pipeline.plan(pipeline.PipelineConfig(run, values))}
    names = list(stages)
    assert names.index("first/pseudo_label") < names.index("second/finetune")
    assert stages["first/pseudo_label"].config.hypotheses == f"{run}/first/decode"
    tuned = stages["second/finetune"].config
    assert tuned.more_audio == (f"{run}/first/pseudo_label/more",)
    assert stages["second/export"].config.decoded == (f"{run}/second/decode",)
    (reference,) = stages["second/finetune"].inputs["more_audio"]
    assert reference.digest({"splits": {"more": {"digest": "abc"}}}) == "abc"
    assert layout.outputs("first/pseudo_label", {"splits": {"more": {}}}) == ["more/manifest.json"]
    (decoding,) = stages["first/pseudo_label"].inputs["hypotheses"]
    assert decoding.digest({"hypotheses_digest": "def"}) == "def"
    for key, given, message in (
        ("more_audio", ("first/pseudo_label:train",), "no such split; prepared are more"),
        ("more_audio", ("first/decode",), "expected a prepared split"),
        ("validation_audio", "first/pseudo_label:more", "the same split"),
    ):
        inputs = {**mixed, key: given}
        second = {**values["second"], "finetune": {**values["second"]["finetune"]}}
        second["finetune"]["inputs"] = inputs
        with pytest.raises(InputError, match=message):
            pipeline.plan(pipeline.PipelineConfig(run, {**values, "second": second}))
    greedy = {"decode": {**values["first"]["decode"], "method": "greedy"}}
    other = {"pseudo_label": {"inputs": {**labelled, "audio": "prepare:train"}, "split": "more"}}
    for change, message in (
        (greedy, "inputs.hypotheses=first/decode: is greedy, which has no confidences"),
        (other, "inputs.audio: found prepare:train, but first/decode has prepare:more"),
    ):
        with pytest.raises(InputError, match=message):
            first = {**values["first"], **change}
            pipeline.plan(pipeline.PipelineConfig(run, {**values, "first": first}))


def test_references():
    found = {
        text: Reference.parse(text).path("runs/x")
        for text in ("prepare:dev", "it1/label:train", "it1/label", "it1/train", "a/export")
        + ("it1/train@best", "it1/train@mean3")
    }
    assert found == {
        "prepare:dev": "runs/x/prepare/dev",
        "it1/label:train": "runs/x/it1/label/train",
        "it1/label": "runs/x/it1/label",
        "it1/train": "orbax:runs/x/it1/train/checkpoints",
        "a/export": "hf:runs/x/a/export/model",
        "it1/train@best": "orbax:runs/x/it1/train/checkpoints@best",
        "it1/train@mean3": "orbax:runs/x/it1/train/checkpoints@mean3",
    }
    result = {"fingerprint": "last", "validation": {"fingerprint": "best"}}
    digests = [Reference.parse(f"a/train{w}").digest(result) for w in ("", "@best", "@mean3")]
    assert digests == ["last", "best", ["last", "mean3"]]


def test_a_workdir_inside_of_the_corpus_is_refused(tmp_path):
    """Every run would change what it reads, so that nothing would ever be skipped."""
    (tmp_path / "speech").mkdir()
    values = {"prepare": {"corpus": str(tmp_path), "splits": ("speech",)}}
    config = pipeline.PipelineConfig(str(tmp_path / "speech" / "run"), values)
    message = (
        r"\[prepare\] config.stages.prepare.corpus: .*holds the workdir .*; pass another --config.w"
    )
    with pytest.raises(InputError, match=message):
        pipeline.dry_run(config)


@pytest.mark.parametrize(
    "name",
    ["demo.py", "own_audio.py", "reference.py"]
    + [
        f"paper/{f}.py{p}"
        for f in ("librispeech", "librilight")
        for p in ("", ":rehearsal", ":full")
    ],
)
def test_every_pipeline_of_the_repository_plans(name, repository, monkeypatch):
    monkeypatch.chdir(repository)
    arguments = [f"--config=configs/{name}"]
    if name.endswith(".py") and name != "demo.py":
        if name == "reference.py":
            arguments.append("--config.alignments=phones")
        with pytest.raises(InputError, match="config.corpus: missing"):
            command_line.read(arguments, "pipeline", pipeline.PipelineConfig)
        arguments.append("--config.corpus=speech")
    config = command_line.read(arguments, "pipeline", pipeline.PipelineConfig)
    stages = pipeline.plan(config)
    names = [stage.name for stage in stages]
    assert names[0] == "prepare" and {"it1/train", "large/train"} & set(names)
    for earlier, later in itertools.pairwise(names):
        assert earlier != later
    assert json.dumps(config_lib.decisive(stages[1].config))


def test_two_stages_may_not_write_one_model(tmp_path):
    stages = {
        name: {"export": {"checkpoint": f"orbax:{tmp_path}", "audio": "", "out": out}}
        for name, out in (("one", f"{tmp_path}/m"), ("other", f"{tmp_path}/x/../m"))
    }
    message = rf"\[other/export\] writes {tmp_path}/m, as one/export does"
    with pytest.raises(InputError, match=message):
        pipeline.plan(pipeline.PipelineConfig(str(tmp_path / "run"), stages))
    del stages["other"]
    (tmp_path / "m").mkdir()
    with pytest.raises(
        InputError, match=rf"\[one/export\] {tmp_path}/m: exists and holds no model"
    ):
        pipeline.plan(pipeline.PipelineConfig(str(tmp_path / "run"), stages))


def test_all_trainings_are_held_against_the_data_before_the_first_runs(
    jobs, tmp_path, corpus, monkeypatch
):
    seen = []

    def require(stage, attached=True):
        seen.append((stage.name, attached, tuple(jobs)))
        if stage.name == "it2/train" and refuses:
            raise InputError("config.loss=x: too large")

    monkeypatch.setattr(pipeline, "require_data", require)
    config, refuses = _config(tmp_path, corpus), True
    message = r"\[it2/train\] config.stages.it2.train.loss=x: too large"
    with pytest.raises(InputError, match=message):
        pipeline.run(config)
    assert {name for name, _, _ in seen} >= {"it1/train", "it2/train"}
    assert all(attached and ran == ("run/prepare",) for _, attached, ran in seen)
    with pytest.raises(InputError, match=message):
        pipeline.dry_run(config)
    assert seen[-1][1] is False
    refuses = False
    pipeline.run(config)
    seen.clear()
    pipeline.run(config)
    assert not seen  # nothing is to be run
    refuses = True
    inputs = {"audio": "prepare:train", "labels": ("it1/label:train",)}
    changed = {"inputs": inputs, "loss": {"alpha": 0.5}}
    with pytest.raises(InputError, match=message):
        pipeline.run(_config(tmp_path, corpus, it1={"train": changed}))
    assert not (tmp_path / "run/set_aside").exists()


def test_a_finished_training_is_not_held_against_other_devices_for_another_stage(
    jobs, tmp_path, corpus, monkeypatch
):
    pipeline.run(_config(tmp_path, corpus))
    held = []
    monkeypatch.setattr(pipeline, "require_data", lambda stage, **_: held.append(stage.name))
    more = {
        "label": {"inputs": {"audio": ("prepare:train",)}},
        "train": {"inputs": {"audio": "prepare:train", "labels": ("it3/label:train",)}},
    }
    jobs.clear()
    result = pipeline.run(_config(tmp_path, corpus, it3=more))
    assert jobs == ["it3/label", "it3/train"] and len(result["skipped"]) == 5
    assert held == ["it3/label", "it3/train"]
    held.clear()
    inputs = {"audio": "prepare:train", "labels": ("it1/label:train",)}
    changed = {"inputs": inputs, "loss": {"alpha": 0.5}}
    pipeline.run(_config(tmp_path, corpus, it1={"train": changed}))
    assert set(held) == {"it1/train", "it2/label", "it2/train"}  # and what comes after it
    # Where two change, what was passed over at the first is held at the second.
    held.clear()
    label = {"inputs": {"audio": ("prepare:train",)}, "num_clusters": 7}
    it3, it2 = {**more, "label": label}, _config(tmp_path, corpus).stages["it2"]
    it2 = {**it2, "label": {**it2["label"], "num_clusters": 7}}
    pipeline.run(_config(tmp_path, corpus, it1={"train": changed}, it2=it2, it3=it3))
    assert held.index("it3/label") >= 0 and "it2/train" in held


def test_devices_that_are_not_there_are_told_before_anything_runs(
    jobs, tmp_path, corpus, monkeypatch
):
    pipeline.run(_config(tmp_path, corpus))
    mesh = ("mesh", MayChange[MeshConfig], MeshConfig(fsdp=1000))
    meshed = dataclasses.make_dataclass("Train", [mesh], bases=(Train,), frozen=True)
    monkeypatch.setitem(JOBS, "train", JOBS["train"]._replace(config=meshed))
    jobs.clear()
    message = (
        r"\[it1/train\] config.stages.it1.train.mesh: data x fsdp x tensor = 1 x 1000 x 1 does"
    )
    with pytest.raises(InputError, match=message):
        pipeline.run(_config(tmp_path / "new", corpus))
    assert not jobs
    # What has finished needs no devices, also where it lies aside.
    assert len(pipeline.run(_config(tmp_path, corpus))["skipped"]) == 5
    other = {"inputs": {"audio": "prepare:train", "labels": ("it1/label:train",)}}
    with monkeypatch.context() as patch:
        patch.setitem(JOBS, "train", JOBS["train"]._replace(config=Train))
        pipeline.run(_config(tmp_path, corpus, it1={"train": {**other, "loss": {"alpha": 0.5}}}))
    held = []
    monkeypatch.setattr(pipeline, "require_data", lambda stage: held.append(stage.name))
    more = {"label": {"inputs": {"audio": ("prepare:train",)}}}
    jobs.clear()
    pipeline.run(_config(tmp_path, corpus, a=more))
    assert jobs == ["a/label"] and held == ["a/label"]


@pytest.mark.parametrize("content", ['{"seconds": 1', "[]", "{}"])
@pytest.mark.parametrize("path", ["it1/train/result.json", "it1/label/train/manifest.json"])
def test_a_stage_whose_files_are_cut_off_goes_on(jobs, tmp_path, corpus, capsys, path, content):
    config = _config(tmp_path, corpus)
    pipeline.run(config)
    (tmp_path / "run" / path).write_text(content)
    jobs.clear()
    pipeline.run(config)
    stage = "/".join(path.split("/")[:2])
    assert jobs == [stage] and not (tmp_path / "run/set_aside").exists()
    assert f"[{stage}] continues: {tmp_path}/run/{path} is damaged" in capsys.readouterr().out


def test_a_corpus_that_holds_a_config_json_is_a_corpus(jobs, tmp_path, corpus):
    (corpus / "config.json").write_text("{}")
    pipeline.run(_config(tmp_path, corpus))
    (corpus / "a.wav").write_text("other speech")
    jobs.clear()
    pipeline.run(_config(tmp_path, corpus))
    assert "run/prepare" in jobs


def test_files_that_nobody_reads_change_nothing(tmp_path, corpus):
    before = ContentDigests(tmp_path / "none").of(corpus)
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (corpus / name).write_bytes(b"\0")
    assert ContentDigests(tmp_path / "none").of(corpus) == before


def test_a_card_beside_a_networks_weights_changes_nothing(tmp_path):
    network = tmp_path / "network"
    files.write_json(network / "config.json", {})
    files.write_text(network / "model.safetensors", "\1weights")
    stage = Stage("label", Label("run", (), f"hf:{network}"), {})

    def outside() -> dict:
        return records.read_outside(tmp_path / "run", [stage], keeps=False)

    before = outside()
    files.write_text(network / "README.md", "a card")
    assert outside() == before
    files.write_text(network / "model.safetensors", "\1other weights")
    assert outside() != before


def test_stand_ins_for_files_are_told_by_a_dry_run(tmp_path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/config.json").write_text("{}")
    for (name, where), (content, said) in itertools.product(
        (("hf/model.safetensors", "hf:{}/hf"), ("hubert.pt", "fairseq:{}/hubert.pt")),
        ((pointer, "a pointer of Git LFS"), ("Entry not found", "a text that begins 'Entry")),
    ):
        (tmp_path / name).write_text(content)
        stages = {"convert": {"source": where.format(tmp_path), "target": "hf:"}}
        with pytest.raises(InputError, match=f"{name}: {said}"):
            pipeline.dry_run(pipeline.PipelineConfig(str(tmp_path / "run"), stages))


def test_a_probe_reads_a_split_of_the_pipeline(tmp_path, corpus):
    inputs = {"audio": "prepare:dev", "labels": ("label:dev",), "probe_audio": "prepare:train"}
    values = {
        "prepare": {"corpus": str(corpus), "splits": ("train=a", "dev=b")},
        "label": {"inputs": {"audio": ("prepare:train", "prepare:dev")}},
        "evaluate": {"inputs": inputs, "alignments": "dev.txt", "probe_alignments": "train.txt"},
    }
    run = str(tmp_path / "run")
    stages = {s.name: s for s in pipeline.plan(pipeline.PipelineConfig(run, values))}
    assert stages["evaluate"].config.probe_audio == f"{run}/prepare/train"
