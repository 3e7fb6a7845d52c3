"""Stages on a few utterances; what does not fit together is refused before anything runs."""

import contextlib
import copy
import json
import os
import pathlib

import jax
import numpy as np
import pytest
from splits import TINY_LARGE, random_parameters

from hubert_jax import command_line, files, pipeline, prepare
from hubert_jax.convert import formats
from hubert_jax.convert.network import Network
from hubert_jax.errors import InputError
from hubert_jax.model.architecture import Architecture, Head
from hubert_jax.report.assemble import ReportConfig
from hubert_jax.stages.content import ContentDigests
from hubert_jax.stages.outlook import Outlook
from hubert_jax.stages.stage import JOBS, Stage
from hubert_jax.units.kmeans import Codebook
from tests.configs import tiny, two_iterations

CODEBOOKS = (
    dict(name="whole", num_clusters=12),
    dict(name="static", num_clusters=8, steps=("take 0:13", "splice 3")),
)


def _two_codebooks(workdir, corpus, labels, sizes=(12, 8), **label) -> pipeline.PipelineConfig:
    train = tiny.get_config().stages.it1.train.to_dict()
    train["inputs"] = dict(audio="prepare:train", labels=labels)
    train["head"]["codebook_sizes"] = sizes
    train["frames_per_step"] = 256 * jax.device_count()  # as one device is given elsewhere
    values = dict(codebooks=CODEBOOKS, fit_max_frames=900, kmeans=dict(n_init=1, max_iter=3))
    stages = dict(
        prepare=dict(corpus=str(corpus), splits=("train",)),
        label=dict(inputs=dict(audio=("prepare:train",)), **values | label),
        train=train,
        again=dict(label=dict(inputs=dict(audio=("prepare:train",), codebook="label"), **values)),
    )
    return pipeline.PipelineConfig(str(workdir), stages)


def test_two_codebooks_from_label_to_train(tmp_path, short_corpus, monkeypatch):
    monkeypatch.setattr(pipeline, "_keep_compiled", lambda workdir: None)
    labels = ("label:whole/train", "label:static/train")
    config = _two_codebooks(tmp_path / "run", short_corpus, labels)
    pipeline.run(config)
    written = {
        job: json.loads((tmp_path / "run" / job / "result.json").read_text())
        for job in ("label", "train", "again/label")
    }
    codebooks = [Codebook.load(tmp_path / "run/label" / each["name"]) for each in CODEBOOKS]
    last = written["train"]["last"]
    assert {"masked_accuracy_0", "masked_accuracy_1"} <= set(last), last
    assert written["again/label"]["codebook_digest"] == written["label"]["codebook_digest"]
    network = formats.read(f"orbax:{tmp_path}/run/train/checkpoints")
    assert network.units.codebook_digests == tuple(each.digest for each in codebooks)
    assert pipeline.run(config)["skipped"] == ["prepare", "label", "train", "again/label"]
    (tmp_path / "run/label/static/codebook.npz").unlink()
    assert pipeline.dry_run(config)["runs"][:1] == ["label"]


@pytest.mark.parametrize(
    ("labels", "changes", "message"),
    [
        (("label:train",) * 2, {}, "label:train: no such labels; there are whole/train, static/tr"),
        (("label:whole/dev",) * 2, {}, "label:whole/dev: no such split; labelled are train"),
        (("label:whole/train",), {}, "codebook_sizes: found .12, 8., but .* has 1 label set"),
        (
            ("label:static/train", "label:whole/train"),
            {},
            "codebook_sizes: found .12, 8., but label has num_clusters=8",
        ),
        (
            ("label:whole/train", "label:static/train"),
            dict(codebooks=CODEBOOKS[:1]),
            "label:static/train: no such labels; there are whole/train",
        ),
        (
            ("label:train",),
            dict(codebooks=(), sizes=(100,)),
            r"inputs.codebook=label: has the codebooks \[''\], expected \['whole', 'static'\]",
        ),
        (
            ("label:train",),
            dict(codebooks=(), sizes=(9,), feature="phones", alignments="phones.txt"),
            "inputs.codebook=label: has no codebook, as its labels are given",
        ),
    ],
)
def test_codebooks_that_are_not_there_are_refused(tmp_path, short_corpus, labels, changes, message):
    with pytest.raises(InputError, match=message):
        pipeline.plan(_two_codebooks(tmp_path, short_corpus, labels, **changes))


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (dict(it1=3), "config.stages.it1: expected a group of keys, found 3"),
        (dict(it1=dict(train=3)), "config.stages.it1.train: expected a group of keys, found 3"),
        (dict(prepare=dict(inputs="a")), "config.stages.prepare.inputs: expected a group"),
        (dict(prepare=dict(inputs=dict(corpus=3))), "inputs.corpus: expected STAGE or STAGE:SPLIT"),
        ({}, "config.stages: expected at least one stage"),
        (
            dict(label=dict(audio=("a",), distributed=dict(coordinator="auto"))),
            "config.stages.label.distributed: found a coordinator, expected none",
        ),
    ],
)
def test_stages_that_are_no_stages_are_refused(stages, message):
    with pytest.raises(InputError, match=message):
        pipeline.plan(pipeline.PipelineConfig("run", stages))


def test_a_group_or_split_that_is_not_there_is_refused_before_anything_runs(tmp_path):
    label = dict(inputs=dict(audio=("prepare:train",)), num_clusters=4)
    check = dict(
        inputs=dict(audio="prepare:train", labels=("it1/label:dev",)),
        loop=dict(steps=1),
        head=dict(codebook_sizes=(4,)),
    )
    stages = dict(prepare=dict(splits=("train=a",)), it1=dict(label=label))
    reported = ReportConfig(iterations=("it1", "it2"))
    with pytest.raises(InputError, match="report.iterations: no such group 'it2'; there are it1"):
        pipeline.plan(pipeline.PipelineConfig("run", stages, reported))
    stages["it1"]["check"] = check
    with pytest.raises(InputError, match="labels=it1/label:dev: no such split; labelled are train"):
        pipeline.plan(pipeline.PipelineConfig("run", stages))
    check["inputs"]["labels"] = ("it1/label:train",)
    (tmp_path / "a").mkdir()
    stages["prepare"]["corpus"] = str(tmp_path)
    planned = pipeline.dry_run(pipeline.PipelineConfig(str(tmp_path / "run"), stages))
    assert planned["runs"] == ["prepare", "it1/label", "it1/check"]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "it1.label.num_clusters",
            50,
            r"\[it1/train\] config.stages.it1.train.head.codebook_sizes: found \(100,\), but "
            "it1/label has num_clusters=50; change",
        ),
        (
            "it2.label.layer",
            5,
            "config.stages.it2.label.layer: found 5, but it1/train has 4 layers",
        ),
        ("it1.evaluate.layers", (1, 9), "it1.evaluate.layers: found 9, but it1/train has 4 layers"),
        (
            "pretrained.finetune.architecture.ffn_dim",
            8,
            "pretrained.finetune.architecture.ffn_dim: found 8, but it2/train has 768; change one",
        ),
        (
            "pretrained.finetune.inputs.validation_audio",
            "prepare:train-clean-5",
            "inputs.validation_audio: found prepare:train-clean-5, but inputs.audio has the same",
        ),
        (
            "it2.train.head.codebook_sizes",
            (500, 100),
            r"head.codebook_sizes: found \(500, 100\), but inputs.labels has 1 label set",
        ),
        ("it2.label.layer", -1, r"\[it2/label\] config.stages.it2.label.layer=-1: expected 0, the"),
        *(
            ("pretrained.decode.inputs.checkpoint", f"it2/{job}", f"it2/{job}: has no CTC head")
            for job in ("train", "export")
        ),
        (
            "pretrained.finetune.vocabulary",
            {"source": "init_from"},
            "vocabulary.source: found init_from, but it2/train has no CTC head; change one",
        ),
        (
            "it2.label.inputs.codebook",
            "it1/label",
            "it2.label.feature: found layer, but the codebook of it1/label has mfcc; change one",
        ),
        ("it2.label.feature", "mfc", "feature='mfc': expected one of mfcc, mfcc_librosa, cepstra,"),
        (
            "it2.label.feature",
            "mfcc",
            "feature='mfcc' with config.*checkpoint='orbax:.*: expected",
        ),
        ("it1.label.layer", 3, "layer=3: expected 0, .* with feature='layer', and -1 with the oth"),
        ("it1.label.fit_fraction", 2.0, "fit_fraction=2.0: expected a fraction of the split"),
        ("it1.label.fit_max_frames", 0, "fit_max_frames=0: expected at least num_clusters="),
        ("it1.evaluate.frame_rate", 60, "frame_rate=60: expected 50 or 100"),
        ("it1.evaluate.num_clusters", 0, "num_clusters=0: expected 1 to 65,536"),
        ("it1.evaluate.inputs.fit_audio", "", "fit_audio: empty, expected the prepared split"),
        (
            "it1.train.validation",
            {"metric": "wer"},
            "metric=wer: expected one of masked_loss, masked_a",
        ),
        (
            "it1.train.validation",
            {"patience": 3},
            "patience=3: found without config.*validation_audio",
        ),
        ("it1.train.max_frames", 0, "max_frames=0: expected 1 or more"),
        ("it1.train.max_frames", 10, "mask_span=10: expected less than config.*max_frames=10"),
        (
            "it1.train.inputs.labels",
            ("it1/label:dev-mini",),
            "labels: found it1/label:dev-mini, but",
        ),
        ("it1.evaluate.layers", (-1,), r"layers=\(-1,\): expected 0 or more"),
        ("it1.label.layer", -2, "layer=-2: expected 0, .* and -1 with the others"),
        ("scratch.finetune.frames_per_step", 9, "frames_per_step=9: expected at least"),
        ("prepare.splits", (), "config.stages.prepare.splits: expected at least one split"),
        ("prepare.splits", 100, "config.stages.prepare.splits: expected a sequence, found 100"),
        ("it1.train.row_multiple", 0, "row_multiple=0: expected 1 or more"),
        ("it1.train.loss.mask_group_rows", 500, "mask_group_rows=500: found batches of .* rows"),
        ("it1.train.frames_per_step", 8, "mask_group_rows=.: found batches of 0 rows"),
        (
            "scratch.finetune.validation",
            {"metric": "per"},
            "metric=per: expected one of wer, cer, loss",
        ),
        ("scratch.finetune.optimizer.name", "sgd", "name='sgd': expected one of"),
        *(
            ("scratch.finetune.padded_frames", lengths, "padded_frames=.*: expected lengths that")
            for lengths in ((), (0, 9), (128, 100), (100, 100))
        ),
        ("it1.train.micro_batches", -1, r"\] config.stages.it1.train.micro_batches=-1: expected 0"),
        (
            "pretrained.finetune.inputs.validation_audio",
            "prepare:both",
            "validation_audio: found prepare:both, but inputs.audio=prepare:train-clean-5 has the "
            "same audio, train-clean-5; change one",
        ),
        (
            "pretrained.finetune.inputs.validation_audio",
            "prepare:speaker",
            "found prepare:speaker, but inputs.audio=prepare:train-clean-5 has train-clean-5, "
            "which shares audio with train-clean-5/460",
        ),
    ],
)
def test_stages_that_do_not_fit_one_another_are_refused_before_anything_runs(key, value, message):
    config = two_iterations.get_config()
    with config.unlocked(), config.ignore_type():
        splits = (*config.stages.prepare.splits, "both=dev-mini+train-clean-5")
        config.stages.prepare.splits = (*splits, "speaker=train-clean-5/460")
        config.update_from_flattened_dict({f"stages.{key}": value})
    with pytest.raises(InputError, match=message):
        pipeline.plan(pipeline.PipelineConfig("run", config.stages))


@pytest.mark.parametrize(
    ("save_every", "validated", "there", "missing"),
    [
        (2, False, ("4", "6", "mean2"), ("1", "2", "5", "8", "mean3")),
        (4, False, ("4", "6", "mean2"), ("2", "8")),
        (100, False, ("6", "mean1"), ("100", "mean2")),
        # A step at which it is validated may be the best.
        (2, True, ("2", "3", "4", "6", "mean2"), ("1", "5", "8", "9", "mean3")),
        (100, True, ("3", "mean2"), ("2", "100")),
    ],
)
def test_checkpoints_that_a_finished_run_never_has(save_every, validated, there, missing):
    config = two_iterations.get_config()
    with config.unlocked():
        config.stages.it1.train.loop.update(steps=6, save_every=save_every, keep=2)
        if validated:
            held_out = dict(validation_audio="prepare:dev-mini")
            held_out["validation_labels"] = ("it1/label:dev-mini",)
            config.stages.it1.train.inputs.update(held_out)
            config.stages.it1.train.validation = dict(every=3)
    for which in (*there, *missing):
        config.stages.it2.label.inputs.checkpoint = f"it1/train@{which}"
        message = f"checkpoint=it1/train@{which}: the stage has loop.steps=6, .* no such checkpoint"
        refused = pytest.raises(InputError, match=message)
        with refused if which in missing else contextlib.nullcontext():
            pipeline.plan(pipeline.PipelineConfig("run", config.stages))


@pytest.mark.parametrize(
    ("shape", "feature", "message"),
    [
        ((100, 40), None, "centroids of 40 dimensions, mfcc has 39"),
        ((100, 39), {"kind": "mfcc_librosa"}, "with kind mfcc_librosa, expected kind mfcc"),
        ((99, 39), None, "head.codebook_sizes: found .100,., but it1/label has num_clusters=99"),
        ((100, 39), None, ""),
    ],
)
def test_a_codebook_from_elsewhere_is_looked_at_before_anything_runs(
    tmp_path, shape, feature, message
):
    config = two_iterations.get_config()
    path = tmp_path / "codebook.npy"
    centroids = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    if feature:
        path = tmp_path
        Codebook(centroids, feature, None, None, None, None, None).save(path)
    else:
        np.save(path, centroids)
    with config.unlocked():
        config.stages.it1.label.codebook = str(path)
    raises = pytest.raises(InputError, match=message) if message else contextlib.nullcontext()
    with raises:
        pipeline.plan(pipeline.PipelineConfig("run", config.stages))


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        (dict(layer=2, residual="added", checkpoint="another's"), "layer 2, expected layer 3"),
        (dict(layer=3, residual="not added", checkpoint="another's"), "residual not added"),
        (dict(layer=3, residual="added", checkpoint="known when it has run"), ""),
    ],
)
def test_a_layers_codebook_from_elsewhere(tmp_path, feature, message):
    config = two_iterations.get_config()
    centroids = np.random.default_rng(0).normal(size=(100, 192)).astype(np.float32)
    Codebook(centroids, {"kind": "layer", **feature}, None, None, None, None, None).save(tmp_path)
    with config.unlocked():
        config.stages.it2.label.update(codebook=str(tmp_path), layer=3)
    raises = pytest.raises(InputError, match=message) if message else contextlib.nullcontext()
    with raises:
        pipeline.plan(pipeline.PipelineConfig("run", config.stages))


def test_a_codebook_of_another_network_is_told_before_anything_runs(tmp_path):
    architecture = Architecture(**TINY_LARGE["architecture"])
    network = Network(random_parameters(architecture), architecture)
    config = two_iterations.get_config()
    stages, label = config.stages, config.stages.it2.label
    for scheme in ("orbax", "hf"):
        where = f"{scheme}:{tmp_path}/{scheme}"
        formats.write(where, network)
        with config.unlocked():
            stages.public = dict(convert=dict(source=where, target="orbax:"))
            label.update(checkpoint=where, codebook=str(tmp_path / "codebook"), layer=2)
            label.inputs.checkpoint = ""
        for fitted in (formats.read(where).fingerprint, "0" * 64):
            feature = dict(kind="layer", layer=2, residual="added", checkpoint=fitted)
            centroids = np.zeros((100, architecture.dim), np.float32)
            Codebook(centroids, feature, None, None, None, None).save(label.codebook)
            raises = pytest.raises(InputError, match=f"fitted on another network .*={where}; name")
            with raises if fitted == "0" * 64 else contextlib.nullcontext():
                pipeline.plan(pipeline.PipelineConfig("run", stages))
        with config.unlocked():  # what a conversion gives is known when it has run
            label.update(checkpoint="", inputs=dict(checkpoint="public/convert"))
        pipeline.plan(pipeline.PipelineConfig("run", stages))

    # Nor by a stage that takes another one's codebook.
    again = dict(audio=("prepare:dev-mini",), codebook="it2/label")
    with config.unlocked():
        stages.again = dict(label=dict(feature="layer", layer=2, checkpoint=where, inputs=again))
        label.update(codebook="")
    for fitted_on in ("public/convert", "it1/train", where, f"orbax:{tmp_path}/orbax"):
        with config.unlocked():
            outside = ":" in fitted_on
            label.checkpoint = fitted_on if outside else ""
            label.inputs.checkpoint = "" if outside else fitted_on
        message = f"again.label.checkpoint: found {where}, but the codebook of it2/label has "
        raises = pytest.raises(InputError, match=message + fitted_on)
        known = fitted_on in ("public/convert", where)  # a conversion's is known when it has run
        with contextlib.nullcontext() if known else raises:
            pipeline.plan(pipeline.PipelineConfig("run", stages))


_HELD_OUT = "it2.train.inputs.validation_labels"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, ""),
        ({"again.label.layer": 2}, "again.label.layer: found 2, but the codebook of it2/label has"),
        (
            {"again.label.steps": ("mean",)},
            "steps: found .'mean',., but the code",
        ),
        (
            {"again.label.inputs.checkpoint": "scratch/finetune"},
            "inputs.checkpoint: found scratch/finetune, but the codebook of it2/label has it1",
        ),
        ({"again.label.inputs.checkpoint": "twin/train"}, ""),  # another name for the same
        (
            {"again.label.inputs.checkpoint": "twin/train", "twin.label.steps": ("mean",)},
            "found twin/train, but the codebook of it2/label has it1/train; change one",
        ),
        (
            {"again.label.inputs.checkpoint": "it1/train@2000"},
            "found it1/train@2000, but the codebook of it2/label has it1/train; change one",
        ),
        ({"again.label.inputs.checkpoint": "it1/train@2200"}, ""),
        ({"again.label.inputs.checkpoint": "public/convert"}, ""),  # perhaps of the same weights
        ({"it2.label.num_clusters": 50, "it2.train.head.codebook_sizes": (50,)}, ""),
        (
            {"further.label.layer": 2},
            r"\[further/label\] .*label.layer: found 2, but the codebook of it2/label has 3",
        ),
        (
            {"other.label.num_clusters": 50, "again.label.inputs.codebook": "other/label"},
            r"codebook_sizes: found \(100,\), but other/label has num_clusters=50; change one",
        ),
        (
            {_HELD_OUT: ("it1/label:dev-mini",)},
            "validation_labels: found it1/label:dev-mini, but inputs.labels=it2/label:train has "
            "another codebook; change one",
        ),
        (
            {"it2.train.keep_head": True, "it2.train.inputs.init_from": "it1/train"},
            "keep_head: found True, but it1/train has labels by another codebook, of it1/label:tr",
        ),
        (
            {
                "it2.train.keep_head": True,
                "it2.train.inputs.init_from": "it1/train",
                "it2.train.inputs.labels": ("it1/label:train",),
                _HELD_OUT: ("it1/label:dev-mini",),
            },
            "",
        ),
        ({_HELD_OUT: ("other/label:dev-mini",)}, "another codebook"),  # fitted on other speech
        ({_HELD_OUT: ("other/label:dev-mini",), "other.label.inputs.audio": "as it2"}, ""),
    ],
)
def test_a_codebook_of_another_stage(changes, message):
    config = two_iterations.get_config()
    stages = config.stages
    layer = dict(feature="layer", layer=3)
    inputs = dict(audio=("prepare:dev-mini",), checkpoint="it1/train")
    with config.unlocked(), config.ignore_type():
        stages.public = dict(convert=dict(inputs=dict(source="it1/train"), target="orbax:"))
        stages.other = dict(label=dict(layer, inputs=inputs))
        for group, source in (("again", "it2/label"), ("further", "again/label")):
            stages[group] = dict(label=dict(layer, inputs=dict(inputs, codebook=source)))
        stages.twin = copy.deepcopy(dict(label=stages.it1.label, train=stages.it1.train))
        stages.twin.train.inputs.labels = ("twin/label:train",)
        held_out = dict(validation_audio="prepare:dev-mini")
        stages.it2.train.inputs.update(held_out, validation_labels=("further/label:dev-mini",))
        changes = {
            key: (*stages.it2.label.inputs.audio,) if value == "as it2" else value
            for key, value in changes.items()
        }
        config.update_from_flattened_dict({f"stages.{k}": value for k, value in changes.items()})
    with pytest.raises(InputError, match=message) if message else contextlib.nullcontext():
        pipeline.plan(pipeline.PipelineConfig("run", stages))


@pytest.mark.parametrize("killed_at", [1, 2])
def test_what_is_set_aside_survives_a_kill_while_it_is_moved(tmp_path, monkeypatch, killed_at):
    """At the rename that sets a stage aside, or at the one that takes another back."""
    stage = Stage("prepare", prepare.PrepareConfig(str(tmp_path)), {})
    directory = tmp_path / "prepare"
    wanted = []

    def become(key: str) -> str:
        wanted.append(key)
        state = pipeline._state(tmp_path, stage, {"version": key})
        found = pipeline._begin(tmp_path, stage, {"version": key}, state)
        outlook = Outlook([stage], {})
        return (found or pipeline._run_stage(tmp_path, stage, outlook))["key"]

    def work(config):
        files.write_json(directory / "result.json", {"key": wanted[-1]})
        return files.read_json(directory / "result.json", "result")

    monkeypatch.setitem(JOBS, "prepare", JOBS["prepare"]._replace(run=work))
    assert [become("a"), become("b")] == ["a", "b"]
    rename, count = pathlib.Path.rename, iter(range(1, 9))

    def killed(path, target):
        if next(count) == killed_at:
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            become("a")
    monkeypatch.setitem(JOBS, "prepare", JOBS["prepare"]._replace(run=None))
    assert [become(key) for key in "abab"] == ["a", "b", "a", "b"]


def test_a_name_that_is_not_utf8_has_a_digest(tmp_path):
    (tmp_path / os.fsdecode(b"\xff.wav")).write_bytes(b"x")
    contents = ContentDigests(tmp_path.with_suffix(".json"))
    digest = contents.of(tmp_path)
    contents.save()
    assert ContentDigests(tmp_path.with_suffix(".json")).of(tmp_path) == digest


def test_a_misspelt_key_of_a_late_stage_is_refused_before_anything_runs(tmp_path):
    arguments = [
        "--config=tests/configs/tiny.py",
        f"--config.workdir={tmp_path}/run",
        "--config.stages.scratch.decode.methud=lexicon",
    ]
    with pytest.raises(InputError, match="methud: no such key; did you mean .*method"):
        command_line.read(arguments, "pipeline", pipeline.PipelineConfig)


@pytest.mark.parametrize("through", ["", "convert", "export", "both"])
@pytest.mark.parametrize("scheme", ["hf", "orbax"])
def test_a_network_from_elsewhere_is_looked_at_before_anything_runs(tmp_path, scheme, through):
    """Also where other stages convert it first."""
    architecture, head = Architecture(**TINY_LARGE["architecture"]), Head(**TINY_LARGE["head"])
    where = f"{scheme}:{tmp_path}/net"
    formats.write(where, Network(random_parameters(architecture, head), architecture, head))
    config = two_iterations.get_config()
    stages = config.stages
    with config.unlocked():
        decode, finetune = stages.pretrained.decode, stages.pretrained.finetune
        finetune.vocabulary = dict(source="init_from")
        for name in ("pretrained", "scratch"):
            del stages[name]
        for name in ("train", "evaluate", "export"):
            del stages.it2[name]
        stages.public = dict(
            export=dict(checkpoint=where), convert=dict(source=where, target="orbax:")
        )
        if through == "both":
            stages.public.convert = dict(inputs=dict(source="public/export"), target="torchaudio:")

    def read(stage, key, which=""):
        with config.unlocked(), config.ignore_type():
            stage[key] = "" if through else f"{where}{which}"
            stage.inputs[key] = f"public/{through.replace('both', 'convert')}" if through else ""

    def refused(message):
        with pytest.raises(InputError, match=message):
            pipeline.plan(pipeline.PipelineConfig("run", stages))

    read(stages.it2.label, "checkpoint")
    stages.it2.label.layer = architecture.num_layers + 1
    refused(rf"\[it2/label\] .*layer: found 3, but {where} has 2 layers")
    stages.it2.label.layer = architecture.num_layers
    pipeline.plan(pipeline.PipelineConfig("run", stages))

    read(decode, "checkpoint")
    with config.unlocked():
        stages.decode = decode
    refused(r"\[decode\] .*checkpoint=.*: has no CTC head; expected a network of fine")
    read(finetune, "init_from")
    with config.unlocked():
        del stages["decode"]
        stages.finetune = finetune
    refused(rf"vocabulary.source: found init_from, but {where} has no CTC head; change one")
    with config.unlocked():
        del stages["finetune"]
    read(stages.it1.train, "init_from")
    refused(rf"\[it1/train\] .*architecture.conv_channels: .* but {where} has")
    with config.unlocked(), config.ignore_type():
        stages.it1.train.architecture = TINY_LARGE["architecture"]
        stages.it1.evaluate.layers = ()
        pipeline.plan(pipeline.PipelineConfig("run", stages))  # with a fresh head
        stages.it1.train.keep_head = True
        refused(rf"head.codebook_sizes: found \(100,\), but {where} has \(12,\); change one")
        stages.it1.label.num_clusters = 12
        stages.it1.train.head.codebook_sizes = (12,)
        refused(rf"head.projection_dim: found 96, but {where} has 8; change one")
        recipe = copy.deepcopy(stages)
        stages.it1.train.head.projection_dim = 8
        # A rehearsal may begin from a narrow network, as its recipe could not.
        rehearsal = pipeline.PipelineConfig("run", stages, recipe=recipe)
        assert pipeline._recipe(rehearsal, pipeline.plan(rehearsal))
    for which, message in (("@mean2", "expected 2 check"), ("@best", "no validation of the run")):
        if where.startswith("orbax") and not through:
            read(stages.it1.train, "init_from", which)
            refused(message)
            read(stages.it1.train, "init_from", "/0")
            refused("no checkpoint found; step 0 of the run is named .*/net@0; expected")


def test_a_codebook_that_is_not_there_is_told_of_the_stage_that_names_it():
    config = two_iterations.get_config()
    with config.unlocked():
        config.stages.it1.label.codebook = "misspelt.npy"
        config.stages.an_earlier_name = dict(train=config.stages.it1.train)
    message = r"\[it1/label\] config.stages.it1.label.codebook=misspelt.npy: no such file"
    with pytest.raises(InputError, match=message):
        pipeline.plan(pipeline.PipelineConfig("run", config.stages))
