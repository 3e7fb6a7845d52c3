"""From transcripts in any alphabet to what transformers reads of the export."""

import itertools
import json

import numpy as np
import pytest
import transformers
from splits import TINY_LARGE, write_split

from hubert_jax import check, decode, export, finetune
from hubert_jax import config as config_lib
from hubert_jax.data import records
from hubert_jax.data.waveform import to_float

pytestmark = pytest.mark.parity
TEXTS = {
    "cyrillic": ("Съешь ещё этих мягких французских булок", "да выпей чаю", "Ёлка"),
    "german": ("Zwölf Boxkämpfer jagen Viktor", "über den großen Deich!", "Straße – ja"),
    "phones": ("HH AH0 L OW1 | W ER1 L D", "DH AH0 | K AE1 T", "S AE1 T"),
    "pieces": ("the cat sat on the mat", "a cat and a mat", "that is that"),
}
VOCABULARIES = {
    "cyrillic": dict(source="transcripts"),
    "german": dict(source="transcripts", case="upper", punctuation="drop"),
    "phones": dict(source="transcripts", separated=True),
    "pieces": dict(source="pieces", pieces=16),
}


@pytest.mark.usefixtures("two_devices")
@pytest.mark.parametrize("language", TEXTS)
def test_learnt_checked_decoded_and_exported(language, speech_split, tmp_path, capsys):
    if language == "pieces":
        pytest.importorskip("sentencepiece")
    texts, split = itertools.cycle(TEXTS[language]), tmp_path / "split"
    split.mkdir()
    utterances = itertools.islice(records.read_audio(speech_split), 6)
    said = [records.Utterance(u.id, u.audio, "", next(texts)) for u in utterances]
    write_split(split, "split", said, [], 64)
    values = dict(
        workdir=str(tmp_path),
        audio=str(split),
        init_from="",
        architecture=TINY_LARGE["architecture"],
        regularization=TINY_LARGE["regularization"],
        loop=dict(steps=3, log_every=1),
        optimizer=dict(peak_learning_rate=1e-2),
        frames_per_step=768,
        padded_frames=(384,),
        vocabulary=VOCABULARIES[language],
    )
    config = config_lib.build(finetune.FinetuneConfig, values)
    checked = check.run(config)
    tuned = finetune.run(config)
    assert checked["learnt_seconds"] == tuned["audio_seconds"] > 20
    assert tuned["last"]["infeasible_fraction"] == 0 and np.isfinite(tuned["last"]["loss"])

    values = dict(workdir=str(tmp_path), checkpoint=f"orbax:{tuned['checkpoint']}")
    decoded = decode.run(config_lib.build(decode.DecodeConfig, values | dict(audio=str(split))))
    rows = [json.loads(line) for line in open(decoded["hypotheses"], encoding="utf-8")]
    policy = finetune.Vocabulary.from_dict(checked["vocabulary"])
    assert {row["id"]: row["reference"] for row in rows} == {
        u.id: policy.normalised(u.text) for u in said
    }
    assert "references hold what the head cannot spell" not in capsys.readouterr().out
    exported = export.run(config_lib.build(export.ExportConfig, values))

    tokenizer = transformers.AutoTokenizer.from_pretrained(exported["out"])
    for utterance in said:
        spelt = policy.encode(utterance.text)
        frames = np.stack([spelt, np.zeros_like(spelt)], axis=1).ravel()
        assert tokenizer.decode(frames) == policy.normalised(utterance.text)
    recognise = transformers.pipeline(
        "automatic-speech-recognition", model=exported["out"], device="cpu"
    )
    waveforms = {u.id: to_float(u.audio) for u in said}
    for row in rows[:2]:
        heard = recognise({"raw": waveforms[row["id"]], "sampling_rate": 16_000})["text"]
        assert heard == row["greedy"]
