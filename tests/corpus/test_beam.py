"""Preparation on Apache Beam: the shards of the preparation by threads, on whatever runner."""

import pathlib
import shutil

import numpy as np
import pytest
import soundfile

from hubert_jax import config as config_lib
from hubert_jax import prepare
from hubert_jax.corpus import beam_pipeline, preparation
from hubert_jax.corpus.audio_files import read_waveform
from hubert_jax.corpus.sources import discover
from hubert_jax.errors import InputError

FOLDERS = ("dev-mini/1898", "train-clean-100")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, minilibri) -> pathlib.Path:
    """Two folders: one with a long recording and a damaged file, one as it is embedded."""
    folder = tmp_path_factory.mktemp("corpus")
    paths = sorted((minilibri / "dev-mini" / "1898").rglob("*.opus"))[:8]
    recording = np.concatenate([read_waveform(path) for path in paths])
    (folder / "books").mkdir()
    soundfile.write(folder / "books" / "long.flac", recording, 16_000)
    soundfile.write(folder / "books" / "quiet.wav", np.zeros(40_000), 16_000)
    content = (folder / "books" / "long.flac").read_bytes()
    (folder / "books" / "cut.flac").write_bytes(content[: len(content) // 2])
    (folder / "read").symlink_to(minilibri / "dev-mini" / "3664")
    return folder


def _prepare(workdir, corpus, **values) -> dict[str, bytes]:
    values = {
        "workdir": str(workdir),
        "corpus": str(corpus),
        "splits": ("both=books+read",),
        "language_exponent": 0.5,
        "shard_megabytes": 1,
        "max_rejected_fraction": 0.5,
    } | values
    prepare.run(config_lib.build(prepare.PrepareConfig, values))
    directory = pathlib.Path(workdir, "prepare", "both")
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_shards_and_manifest_are_the_same_bytes(corpus, tmp_path, monkeypatch):
    expected = _prepare(tmp_path / "threads", corpus)
    monkeypatch.setattr(preparation, "_PART_FILES", 7)
    assert _prepare(tmp_path / "beam", corpus, beam_runner="DirectRunner") == expected
    assert len(expected) > 5
    # Nor does it matter which of them finds a finished split.
    split = tmp_path / "beam" / "prepare" / "both"
    before = split.stat().st_ino
    assert _prepare(tmp_path / "beam", corpus) == expected and split.stat().st_ino == before


def test_too_many_refused_leave_nothing(corpus, tmp_path):
    with pytest.raises(InputError, match="1 of .* files .* the first is .*cut.flac: "):
        _prepare(tmp_path, corpus, beam_runner="DirectRunner", max_rejected_fraction=0.0)
    assert not list((tmp_path / "prepare").iterdir())


def test_a_runner_that_loses_records_is_noticed(corpus, tmp_path, monkeypatch):
    read = beam_pipeline._read

    def lossy(*arguments):
        records = list(read(*arguments))
        return records[1:]

    monkeypatch.setattr(beam_pipeline, "_read", lossy)
    with pytest.raises(InputError, match="read [0-9]+ utterances and wrote [0-9]+; Apache Beam"):
        _prepare(tmp_path, corpus, beam_runner="DirectRunner")
    assert not list((tmp_path / "prepare").iterdir())


def test_what_a_step_refuses_is_one_line(corpus, tmp_path, monkeypatch):
    shutil.copy(corpus / "books" / "long.flac", tmp_path / "a.flac")
    shutil.copy(corpus / "books" / "long.flac", tmp_path / "b.flac")
    monkeypatch.setattr(beam_pipeline.assembly, "shuffle_order", lambda name: (0, 0))
    with pytest.raises(InputError, match="^audio-b0768.*two utterances have the same id; [^\n]*$"):
        _prepare(
            tmp_path, tmp_path.parent, splits=(f"both={tmp_path.name}",), beam_runner="DirectRunner"
        )


@pytest.mark.parametrize(
    ("runner", "options"),
    [
        ("FlinkRunner", ("--flink_master=localhost:8081", "--environment_type=LOOPBACK")),
        ("SparkRunner", ("--spark_job_server_jar=none.jar", "--environment_type=LOOPBACK")),
        ("PortableRunner", ("--job_endpoint=localhost:8099", "--environment_type=LOOPBACK")),
    ],
)
def test_pipeline_translates_for_clusters(corpus, tmp_path, runner, options):
    """All that is sent to a cluster, without sending it."""
    from apache_beam.options.pipeline_options import PipelineOptions

    pipeline = beam_pipeline.pipeline_on(runner, options)
    assert type(pipeline.runner).__name__ == runner
    sources = discover(corpus / "read")
    conversion = preparation.Conversion()
    beam_pipeline.build(pipeline, tmp_path, sources, conversion, 1, None)
    sent = pipeline.to_runner_api()
    names = {transform.unique_name for transform in sent.components.transforms.values()}
    assert {"Parts", "Read", "Plan", "RecordsByShard", "Write"} <= names
    # Nothing of an option was left over that the runner does not know.
    known, unknown = pipeline.options.view_as(PipelineOptions), pipeline.options._flags
    assert known is not None and len(unknown) == 1 + len(options)


def test_a_runner_that_is_not_there(corpus, tmp_path):
    with pytest.raises(InputError, match="config.beam_runner=NoRunner: cannot be used"):
        _prepare(tmp_path, corpus, beam_runner="NoRunner")
