"""What a configuration names in a bucket and is not there is told in one line."""

import pytest
import splits

from hubert_jax import config as config_lib
from hubert_jax.errors import InputError
from hubert_jax.stages.stage import JOBS

LOOP = dict(loop=dict(steps=2), frames_per_step=512)
HEAD = dict(LOOP, frames_per_step=4096, head=dict(codebook_sizes=(splits.CLUSTERS,)))


@pytest.mark.parametrize(
    ("job", "values"),
    [
        ("train", dict(audio="MISSING", labels=("MISSING",), max_frames=64, **LOOP)),
        ("train", dict(audio="SPLIT", labels=("MISSING",), max_frames=64, **LOOP)),
        ("train", dict(audio="SPLIT", labels=("LABELS",), init_from="orbax:MISSING", **HEAD)),
        ("finetune", dict(audio="SPLIT", init_from="orbax:MISSING", loop=dict(steps=2))),
        ("finetune", dict(audio="SPLIT", init_from="", vocabulary_file="MISSING", **LOOP)),
        ("label", dict(audio=("MISSING",), num_clusters=4)),
        ("label", dict(audio=("SPLIT",), codebook="MISSING")),
        ("label", dict(audio=("SPLIT",), feature="phones", alignments="MISSING")),
        ("label", dict(audio=("SPLIT",), feature="layer", checkpoint="hf:MISSING", layer=1)),
        ("evaluate", dict(audio="SPLIT", alignments="MISSING", labels=("LABELS",))),
        ("decode", dict(audio="SPLIT", checkpoint="hf:MISSING")),
        ("decode", dict(audio="SPLIT", checkpoint="fairseq:MISSING/a.pt")),
        ("decode", dict(audio="SPLIT", checkpoint="torchaudio:MISSING/a.pt")),
        ("pseudo_label", dict(audio="SPLIT", hypotheses="MISSING")),
        ("prepare", dict(corpus="MISSING", splits=("a",))),
        ("train_lm", dict(texts=("MISSING",), loop=dict(steps=2))),
    ],
)
def test_it_is_told_in_one_line(
    job, values, bucket, speech_split, speech_labels, tmp_path, monkeypatch
):
    def filled(value):
        if isinstance(value, tuple):
            return tuple(map(filled, value))
        if not isinstance(value, str):
            return value
        value = value.replace("MISSING", f"{bucket}/missing").replace("SPLIT", str(speech_split))
        return value.replace("LABELS", str(speech_labels))

    values = {key: filled(value) for key, value in values.items()} | {"workdir": str(tmp_path)}
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    with pytest.raises(InputError) as told:
        JOBS[job].run(config_lib.build(JOBS[job].config, values))
    assert f"{bucket}/missing" in str(told.value) and "\n" not in str(told.value)
    assert list(empty.iterdir()) == []
