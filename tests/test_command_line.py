"""What a command line asks for, and what is said when it cannot be had."""

import re

import pytest
from ml_collections import ConfigDict

from hubert_jax import command_line
from hubert_jax.decode import DecodeConfig
from hubert_jax.errors import InputError
from hubert_jax.evaluate import EvaluateConfig
from hubert_jax.finetune import FinetuneConfig
from hubert_jax.label import LabelConfig
from hubert_jax.pipeline import PipelineConfig
from hubert_jax.prepare import PrepareConfig
from hubert_jax.train import TrainConfig

SCHEMAS = {
    "prepare": PrepareConfig,
    "label": LabelConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "finetune": FinetuneConfig,
    "decode": DecodeConfig,
    "pipeline": PipelineConfig,
}


def read(job, *arguments):
    return command_line.read([*arguments], job, SCHEMAS[job])


@pytest.fixture(autouse=True)
def _in_the_repository(repository, monkeypatch):
    monkeypatch.chdir(repository)


def test_overrides_take_the_type_of_their_key():
    config = read(
        "train",
        "--config=configs/small.py",
        "--config.loop.steps=7",
        "--config.workdir",
        "runs/other",
        "--config.regularization.dropout=1e-1",
        "--config.architecture.pre_norm=false",
        "--config.head.codebook_sizes=504,",
        "--config.labels=runs/a-1/x, runs/b+2/x",
    )
    assert (config.loop.steps, config.workdir) == (7, "runs/other")
    assert (config.regularization.dropout, config.architecture.pre_norm) == (0.1, False)
    assert config.head.codebook_sizes == (504,)
    assert config.labels == ("runs/a-1/x", "runs/b+2/x")


def test_literal_sequences_and_split_names():
    splits = ("train=train-clean-5+train-clean-100", "dev-mini")
    for text in (",".join(splits), repr(splits), repr(list(splits))):
        config = read("prepare", "--config=configs/small.py", f"--config.splits={text}")
        assert config.splits == splits
    assert read("evaluate", "--config=configs/small.py", "--config.layers=3").layers == (3,)


def test_keys_that_the_file_lacks_can_be_overridden():
    config = read("prepare", "--config=configs/base_it1.py", "--config.convert=True")
    assert config.convert and config.max_rejected_fraction == 0.0
    config = read("evaluate", "--config=configs/small.py", "--config.kmeans.max_iter=5")
    # The other keys of the group keep what this job sets them to, not the group's own defaults.
    assert (config.kmeans.max_iter, config.kmeans.n_init) == (5, 3)


def test_values_of_a_job_within_the_pipeline():
    config = read(
        "pipeline",
        "--config=configs/demo.py",
        "--config.stages.prepare.corpus=elsewhere",
        "--config.stages.it1.train.loop.steps=9",
    )
    assert config.stages["prepare"]["corpus"] == "elsewhere"
    assert config.stages["it1"]["train"]["loop"]["steps"] == 9


def test_the_part_is_the_job_unless_it_is_named():
    assert read("label", "--config=configs/base_it2.py").layer == 6
    assert read("finetune", "--config=configs/finetune/base.py:1h").loop.steps == 13_000


def test_parameters_of_the_file_are_keys_that_all_its_values_may_depend_on():
    config = ["--config=configs/own_audio.py"]
    given = ["--config.corpus=/speech", "--config.splits=big=a+b,dev", "--config.steps=7"]
    found = read("pipeline", *config, *given, "--config.stages.it1.train.seed=3")
    stages = ConfigDict(found.stages)
    assert stages.prepare.splits == ("big=a+b", "dev") and stages.prepare.corpus == "/speech"
    assert stages.it1.label.inputs.audio == ("prepare:big", "prepare:dev")
    assert stages.it1.train.inputs.labels == ("it1/label:big",)
    assert (stages.it1.train.loop.steps, stages.it1.train.seed) == (7, 3)
    numbers = read("pipeline", *config, given[0], "--config.splits='1','2'")
    assert ConfigDict(numbers.stages).it1.label.inputs.audio == ("prepare:1", "prepare:2")
    for text, message in (
        ("", "expected at least one split"),
        ("1,2", "expected str, found int 1;"),
    ):
        with pytest.raises(InputError, match=rf"^config\.splits(\[0\])?: {message}"):
            read("pipeline", *config, given[0], f"--config.splits={text}")
    with pytest.raises(InputError, match=r"config\.corpus: missing; pass --config\.corpus=\.\.\."):
        read("pipeline", *config)
    with pytest.raises(InputError, match=r"config\.steps: expected int, found 'many'"):
        read("pipeline", *config, "--config.steps=many")


def test_an_optional_key_can_be_given():
    key = "--config.optimizer.decay_fraction"
    found = read("train", "--config=configs/small.py", f"{key}=0.5")
    assert found.optimizer.decay_fraction == 0.5
    assert read("train", "--config=configs/small.py").optimizer.decay_fraction is None
    with pytest.raises(InputError, match="decay_fraction: expected float, found 'fast'"):
        read("train", "--config=configs/small.py", f"{key}=fast")
    with pytest.raises(InputError, match="expected more than 0; without this key it is the rest"):
        read("train", "--config=configs/small.py", f"{key}=-1.0")


def test_required_keys_may_come_from_the_command_line(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def get_config(part):\n    return {'audio': 'a'}\n")
    arguments = [f"--config={file}", "--config.checkpoint=c"]
    with pytest.raises(InputError, match="config.workdir: missing; pass --config.workdir=..."):
        read("decode", *arguments)
    config = read("decode", *arguments, "--config.workdir=w")
    assert config == DecodeConfig(workdir="w", checkpoint="c", audio="a")


@pytest.mark.parametrize(
    ("job", "arguments", "message"),
    [
        (
            "train",
            ["--config=configs/small.py", "--config.loop.step=3"],
            r"config\.loop\.step: no such key; did you mean config\.loop\.steps\?",
        ),
        (
            "train",
            ["--config=configs/small.py", "--config.steps=3"],
            r"config\.steps: no such key; did you mean config\.loop\.steps\?",
        ),
        (
            "train",
            ["--config=configs/small.py", "--config.loop.steps=abc"],
            r"config\.loop\.steps: expected int, found 'abc'",
        ),
        (
            "prepare",
            ["--config=configs/small.py", "--config.convert", "perhaps"],
            r"config\.convert: expected bool, found 'perhaps'",
        ),
        (
            "train",
            ["--config=configs/small.py", "--config.loop=3"],
            r"config\.loop: expected one of its keys \(keep, log_every, .*, steps\)",
        ),
        (
            "train",
            ["--config=configs/small.py", "--config.labels=1,2"],
            r"config\.labels\[0\]: expected str, found int 1; .* two kinds of quotes, \"'1'\"$",
        ),
        *(
            (
                job,
                ["--config=configs/small.py", f"--config.seed={seed}"],
                rf"^config\.seed={seed}: expected 0 to 4,294,967,295$",
            )
            for job, seed in (("train", -1), ("finetune", -1), ("train", 2**32))
        ),
        *(
            (
                job,
                [f"--config=configs/{file}", "--config.execution.attention=cudnn", *more],
                "has no dropout of attention",
            )
            for job, file, *more in (
                ("train", "base_it1.py"),
                (
                    "finetune",
                    "finetune/base.py:10h",
                    "--config.regularization.attention_dropout=0.1",
                ),
            )
        ),
        ("train", ["--config=configs/smal.py"], r"configs/smal\.py: no such file; there are .*sm"),
        ("train", ["--config=README.md"], r"README\.md: expected a Python file"),
        ("train", [], r"--config: missing"),
        ("train", ["--config=configs/small.py", "fast"], r"unexpected argument 'fast'"),
        (
            "decode",
            ["--config=configs/base_it1.py"],
            r"has no part 'decode', only prepare, label, train",
        ),
    ],
)
def test_what_is_wrong_is_one_clear_line(job, arguments, message):
    with pytest.raises(InputError, match=message) as error:
        read(job, *arguments)
    assert "\n" not in str(error.value)


def test_a_configuration_that_fails_to_load_says_why(tmp_path):
    (tmp_path / "broken.py").write_text("from configs import no_such_config\n")
    with pytest.raises(InputError, match=r"broken\.py: cannot be loaded \(ImportError: .*no_such_"):
        read("train", f"--config={tmp_path}/broken.py")


def test_help_shows_the_defaults_that_a_job_gives_to_a_group():
    text = command_line.usage("evaluate", [EvaluateConfig], "Scores.")
    assert re.search(r"--config\.kmeans\.n_init +int, 3  # starts of", text)
    assert re.search(r"--config\.workdir +str, required\n", text)
    trained = command_line.usage("train", [TrainConfig], "Trains.")
    assert re.search(r"--config\.optimizer\.decay_fraction +float \| None, None  # of all", trained)
    assert re.search(r"--config\.alignments +str, required  # its phones, lines UTT-ID START", text)


def test_words_are_values_of_a_key_where_a_job_lists_some():
    from hubert_jax.units.__main__ import UnitsConfig

    def units(*arguments):
        return command_line.read([*arguments], "units", UnitsConfig, listed="files")

    config = units("a.wav", "--config.codebook=runs/a/label", "b c", "--config.deduplicate")
    assert config.files == ("a.wav", "b c") and config.deduplicate
    assert command_line.usage("units", [UnitsConfig], "", listed="files").count("FILE ...") == 1
    with pytest.raises(InputError, match="unexpected argument 'a.wav'"):
        read("train", "--config=configs/small.py", "a.wav")


@pytest.mark.parametrize("parts", ['("train")', '("train", "prepare"),', "7"])
def test_parts_that_are_no_list_of_names_are_refused(tmp_path, parts):
    path = tmp_path / "t.py"
    path.write_text(f"PARTS = {parts}\ndef get_config(part='train'):\n    return {{}}\n")
    with pytest.raises(InputError, match="cannot be loaded .TypeError: ") as refused:
        read("train", f"--config={path}")
    assert "\n" not in str(refused.value)
