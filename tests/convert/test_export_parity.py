"""The export job, from a checkpoint to what transformers makes of it."""

import jax
import pytest
import transformers

from hubert_jax import config as config_lib
from hubert_jax import export, files
from hubert_jax.convert import compare, formats, hugging_face
from hubert_jax.errors import InputError
from hubert_jax.vocabulary import LIBRISPEECH

pytestmark = pytest.mark.parity


@pytest.fixture(params=["pretraining", "ctc"])
def checkpoint(request, tmp_path, config, make_params):
    """A checkpoint and the parameters in it."""
    vocabulary = LIBRISPEECH if request.param == "ctc" else None
    params = make_params(config, vocabulary and vocabulary.size)
    where = f"orbax:{tmp_path}/run/checkpoints"
    formats.write(where, config.network(params, vocabulary))
    return where, params


def test_checkpoint_to_directory(
    checkpoint, config, tmp_path, speech_split, assert_identical, monkeypatch
):
    directory, params = checkpoint
    monkeypatch.setattr(export, "_COMPARED_UTTERANCES", 2)
    values = dict(workdir=str(tmp_path / "work"), checkpoint=directory, audio=str(speech_split))
    result = export.run(config_lib.build(export.ExportConfig, values))
    assert result == files.read_json(tmp_path / "work" / "export" / "result.json", "result")
    assert 0 < result["max_abs_difference"] < 1e-4
    assert result["compared_utterances"] == 2
    assert result["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(params))
    out = tmp_path / "work" / "export" / "model"
    assert result["out"] == str(out)
    for name, digest in result["digests"].items():
        assert files.sha256_file(out / name) == digest
    assert_identical(hugging_face.read_directory(out).params, params)
    load = transformers.AutoModelForCTC if "ctc_head" in params else transformers.AutoModel
    _, report = load.from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]


def test_without_transformers_nothing_is_compared_and_the_job_says_so(
    checkpoint, tmp_path, speech_split, monkeypatch, capsys
):
    directory, _ = checkpoint
    monkeypatch.setattr(compare, "can_compare", lambda: False)
    directory = directory.removeprefix("orbax:")  # a run's directory needs no scheme
    values = dict(workdir=str(tmp_path / "work"), checkpoint=directory, audio=str(speech_split))
    values["out"] = str(tmp_path / "elsewhere")
    result = export.run(config_lib.build(export.ExportConfig, values))
    assert result["max_abs_difference"] is None
    assert "not compared: transformers and torch are not installed" in capsys.readouterr().out
    assert (tmp_path / "elsewhere" / hugging_face.MODEL).is_file()


def test_missing_checkpoint_is_one_clear_line(tmp_path):
    values = dict(workdir=str(tmp_path), checkpoint=f"orbax:{tmp_path}/nothing")
    with pytest.raises(InputError, match="nothing: no checkpoint found"):
        export.run(config_lib.build(export.ExportConfig, values))
    assert not list(tmp_path.glob("export/*"))
