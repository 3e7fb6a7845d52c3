"""Typed configuration, and every configuration file that the repository has."""

import ast
import dataclasses
import importlib
import math
import re

import jax
import pytest
from ml_collections import ConfigDict

from configs.paper import librilight, librispeech
from hubert_jax import command_line, pipeline
from hubert_jax import config as config_lib
from hubert_jax.analyse import AnalyseConfig
from hubert_jax.decode import DecodeConfig
from hubert_jax.errors import InputError
from hubert_jax.evaluate import EvaluateConfig
from hubert_jax.export import ExportConfig
from hubert_jax.finetune import FinetuneConfig
from hubert_jax.label import LabelConfig
from hubert_jax.lm import LmConfig
from hubert_jax.pipeline import PipelineConfig
from hubert_jax.prepare import PrepareConfig
from hubert_jax.pseudo_label import PseudoLabelConfig
from hubert_jax.report import rehearsal
from hubert_jax.stages import stage as stage_lib
from hubert_jax.tasks.pretraining import init
from hubert_jax.train import TrainConfig
from hubert_jax.train_lm import TrainLmConfig

SCHEMAS = {
    "prepare": PrepareConfig,
    "label": LabelConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "analyse": AnalyseConfig,
    "finetune": FinetuneConfig,
    "lm": LmConfig,
    "train_lm": TrainLmConfig,
    "decode": DecodeConfig,
    "pseudo_label": PseudoLabelConfig,
    "export": ExportConfig,
    "pipeline": PipelineConfig,
}
JOB_CONFIGS = ("base_it1", "base_it2", "large", "xlarge", "small", "transformer_lm")


@dataclasses.dataclass(frozen=True)
class Inner:
    depth: int = 3
    rate: float = 0.5


@dataclasses.dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner = Inner()
    sizes: tuple[int, ...] = (1, 2)
    fast: bool = False
    limit: int | None = None

    def __post_init__(self):
        if not self.name:
            raise InputError("config.name: empty")


def test_build_converts_and_fills_in():
    values = ConfigDict({"name": "a", "inner": {"rate": 1}, "sizes": [4, 5]})
    built = config_lib.build(Outer, values)
    assert built == Outer("a", Inner(3, 1.0), (4, 5))
    assert isinstance(built.inner.rate, float)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "a", "inner": {"dept": 1}}, "config.inner.dept: .* mean config.inner.depth"),
        ({"name": "a", "zzz": 1}, "config.zzz: no such key; known: name, inner"),
        ({}, "config.name: missing"),
        ({"name": 3}, "config.name: expected str, found int 3"),
        ({"name": "a", "inner": {"depth": True}}, "config.inner.depth: expected int, found bool"),
        ({"name": "a", "inner": {"depth": 2.0}}, "config.inner.depth: expected int, found float"),
        ({"name": "a", "inner": 3}, "config.inner: expected a group"),
        ({"name": "a", "sizes": "12"}, "config.sizes: expected a sequence"),
        ({"name": "a", "sizes": (1, "2")}, r"config.sizes\[1\]: expected int, found str"),
        ({"name": "a", "fast": 1}, "config.fast: expected bool"),
        ({"name": "a", "limit": "1"}, "config.limit: expected int"),
        ({"name": ""}, "config.name: empty"),
        ({"name": "a", "inner": {"rate": math.nan}}, "config.inner.rate: .* finite number"),
        ({"name": "a", "inner": {"rate": math.inf}}, "config.inner.rate: .* finite number"),
    ],
)
def test_build_names_what_is_wrong(values, message):
    with pytest.raises(InputError, match=message) as error:
        config_lib.build(Outer, values)
    assert "\n" not in str(error.value)


def test_a_group_takes_what_it_lacks_from_the_default_of_its_field():
    """Fine-tuning's optimiser has other defaults than pre-training's."""
    values = dict(workdir="w", audio="a", init_from="", loop=dict(steps=5))
    given = dict(values, optimizer=dict(peak_learning_rate=1e-4))
    expected = config_lib.build(FinetuneConfig, values)
    expected = dataclasses.replace(
        expected, optimizer=dataclasses.replace(expected.optimizer, peak_learning_rate=1e-4)
    )
    assert config_lib.build(FinetuneConfig, given) == expected
    complete = command_line.with_defaults(FinetuneConfig, given)
    assert config_lib.build(FinetuneConfig, complete) == expected


@pytest.mark.parametrize("value", ["az://bucket/run", "hf:http://host/model", "file://a"])
def test_a_url_is_no_local_folder(value):
    base = {"workdir": "runs", "audio": "a", "labels": ["b"]}
    kind = value.removeprefix("hf:").partition("/")[0]
    for key, given in (("workdir", value), ("audio", value), ("labels", ["b", value])):
        expected = rf"config.{key}={value}: a URL of kind {kind}//; expected a local path or one of"
        with pytest.raises(InputError, match=expected):
            config_lib.build(TrainConfig, {**base, key: given})
    with pytest.raises(
        InputError, match="config.workdir=gs://: names no bucket; expected gs://BUC"
    ):
        config_lib.build(TrainConfig, {**base, "workdir": "gs://"})


@pytest.mark.parametrize("value", ["gs://bucket/run", "s3://bucket/a/b", "orbax:s3://bucket/a@5"])
def test_folders_may_be_in_buckets(value):
    values = {"workdir": value, "audio": value, "labels": [value], "loop": {"steps": 1}}
    assert config_lib.build(TrainConfig, values).labels == (value,)


def test_digest_sees_values_and_not_their_order():
    assert config_lib.digest({"a": 1, "b": 2}) == config_lib.digest({"b": 2, "a": 1})
    assert config_lib.digest(Outer("a")) == config_lib.digest(Outer("a", sizes=(1, 2)))
    assert config_lib.digest(Outer("a")) != config_lib.digest(Outer("a", sizes=(2, 1)))


@pytest.mark.parametrize("name", JOB_CONFIGS)
def test_every_part_of_a_configuration_builds(name, repository, monkeypatch):
    monkeypatch.chdir(repository)
    module = importlib.import_module(f"configs.{name}")
    for part in module.PARTS:
        built = command_line.read([f"--config=configs/{name}.py"], part, SCHEMAS[part])
        assert built.workdir.startswith("runs/")


def test_configurations_feed_one_another():
    """What one job's configuration reads is where the one before writes."""
    for name in ("base_it1", "large", "xlarge"):
        module = importlib.import_module(f"configs.{name}")
        prepare, label, train = (module.get_config(part) for part in ("prepare", "label", "train"))
        splits = [entry.partition("=")[0] for entry in prepare.splits]
        assert train.audio == label.audio[0] == f"{prepare.workdir}/prepare/{splits[0]}"
        assert train.labels == (f"{label.workdir}/label/{splits[0]}",)


@pytest.mark.parametrize(
    ("name", "pretrained"), [("base", "base_it2"), ("large", "large"), ("xlarge", "xlarge")]
)
def test_every_finetuning_configuration_builds(name, pretrained, repository, monkeypatch):
    monkeypatch.chdir(repository)
    module = importlib.import_module(f"configs.finetune.{name}")
    pretraining = importlib.import_module(f"configs.{pretrained}")
    for part in module.PARTS:
        built = command_line.read(
            [f"--config=configs/finetune/{name}.py:{part}"], "finetune", FinetuneConfig
        )
        learning_rate, steps, freeze_steps, time_mask, channel_mask = module.TABLE[part]
        assert built.optimizer.peak_learning_rate == learning_rate
        assert (built.loop.steps, built.ctc.freeze_steps) == (steps, freeze_steps)
        assert built.ctc.time_mask_probability == time_mask
        assert built.ctc.channel_mask_probability == channel_mask
        assert (
            built.init_from == f"orbax:{pretraining.get_config('train').workdir}/train/checkpoints"
        )


@pytest.mark.parametrize(
    ("name", "encoder", "total"),
    [
        ("base_it2", 94_371_712, 94_697_600),
        ("large", 315_435_136, 316_609_408),
        ("xlarge", 962_493_824, 964_321_664),
    ],
)
def test_networks_have_the_published_sizes(name, encoder, total):
    values = importlib.import_module(f"configs.{name}").get_config("train")
    config = config_lib.build(TrainConfig, values)
    assert config.head.codebook_sizes == (500,)
    # Released heads have 4 classes more, for the special symbols of their label dictionaries.
    released = dataclasses.replace(config.head, codebook_sizes=(504,))
    shapes = jax.eval_shape(init(config.architecture, released), jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["hubert"])) == encoder
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == total


@pytest.mark.parametrize("name", ["base_it1", "base_it2", "large", "xlarge"])
def test_a_network_has_a_class_for_each_cluster_of_its_labels(name):
    get_config = importlib.import_module(f"configs.{name}").get_config
    config = config_lib.build(TrainConfig, get_config("train"))
    assert config.head.codebook_sizes == (get_config("label").num_clusters,)


@pytest.mark.parametrize("name", ["librispeech", "librilight"])
def test_a_rehearsal_has_the_stages_of_the_paper_and_shrinks_what_costs(
    name, repository, monkeypatch
):
    monkeypatch.chdir(repository)
    plans = {}
    for part in ("pipeline", "rehearsal"):
        arguments = [f"--config=configs/paper/{name}.py:{part}", "--config.corpus=corpus"]
        arguments += ["--config.alignments=phones.txt"] * (name == "librispeech")
        config = command_line.read(arguments, "pipeline", PipelineConfig)
        plans[part] = {stage.name: stage for stage in pipeline.plan(config)}
    assert list(plans["pipeline"]) == list(plans["rehearsal"])
    shrunk = set()
    for name, stage in plans["pipeline"].items():
        rehearsed = plans["rehearsal"][name]
        assert rehearsed.inputs == stage.inputs
        shrunk |= {*rehearsal.differences(stage.config, rehearsed.config, stage.inputs)}
    assert shrunk <= {
        *(
            "splits",
            "cut_seconds",
            "fit_max_frames",
            "fit_fraction",
            "kmeans.n_init",
            "kmeans.max_iter",
            "layers",
        ),
        *("max_frames", "padded_frames", "frames_per_step", "mesh.fsdp", "mesh.tensor"),
        *("loop.steps", "loop.log_every", "loop.save_every", "ctc.freeze_steps"),
        *("architecture.conv_channels", "architecture.dim", "architecture.ffn_dim"),
        *("head.projection_dim", "validation.utterances"),
    }


def test_values_are_what_processes_agree_on_and_files_whether_they_are_given():
    values = dict(workdir="w", audio="a", labels=("l",), loop=dict(steps=1))
    values["optimizer"] = dict(peak_learning_rate=0.5)
    found = config_lib.values_by_key(config_lib.build(TrainConfig, values))
    assert found["config.optimizer.peak_learning_rate"] == 0.5 and found["config.workdir"] == "w"
    given = ("audio", "labels", "validation_audio", "validation_labels", "init_from")
    assert [found[f"config.{key}"] for key in given] == [True, True, False, False, False]


# Configurations that no rehearsal reaches: the test that has each, and how it names it.
TESTED_ELSEWHERE = {
    "configs.demo": ("tests/configs/tiny.py", "from configs import demo"),  # of test_pipeline.py
    "configs.own_audio": ("tests/test_stages.py", "own_audio.py"),  # planned; stages of the demo
    "configs.reference": ("tests/test_stages.py", "reference.py"),  # planned; stages of the demo
    "configs.small": ("tests/faults/test_interruption.py", "configs/small.py"),
    "configs.transformer_lm": ("tests/test_train_lm.py", "import transformer_lm"),
}


def test_every_configuration_is_rehearsed_or_tested_elsewhere(repository):
    files = sorted((repository / "configs").rglob("[!_]*.py"))
    names = {".".join(path.relative_to(repository).with_suffix("").parts): path for path in files}
    reached, found = set(), {"configs.paper.librispeech", "configs.paper.librilight"}
    while found:
        reached |= found
        found = {name for at in found for name in _imported(names[at]) & set(names)} - reached
    assert set(names) - reached == set(TESTED_ELSEWHERE)
    for test, mention in TESTED_ELSEWHERE.values():
        assert mention in (repository / test).read_text(), test


# Stages that no rehearsal has, and the test that runs each.
# In two processes, by tests/faults/test_hosts.py.
STAGES_TESTED_ELSEWHERE = {"check", "convert", "export", "lm", "train_lm", "pseudo_label"}


def test_every_kind_of_stage_is_rehearsed_or_tested_elsewhere(repository):
    def kinds(stages):
        for name, below in stages.items():
            yield from [name] if name in stage_lib.JOBS else kinds(below)

    plans = (paper.get_config("rehearsal").stages for paper in (librispeech, librilight))
    rehearsed = {kind for stages in plans for kind in kinds(stages)}
    assert set(stage_lib.JOBS) - rehearsed == STAGES_TESTED_ELSEWHERE
    text = (repository / "tests/faults/test_hosts.py").read_text()
    for kind in STAGES_TESTED_ELSEWHERE:
        assert re.search(rf'\b{kind}=dict\(|\["{kind}"\] = ', text), kind


def _imported(path):
    """Dotted names that a file imports."""
    imports = (node for node in ast.walk(ast.parse(path.read_text())))
    return {
        f"{node.module}.{alias.name}"
        for node in imports
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
