"""The job of the Transformer language model."""

import collections
import gzip
import math

import jax
import numpy as np
import pytest
from lm_oracle import distributions

from configs import transformer_lm
from hubert_jax import config as config_lib
from hubert_jax import files, train_lm
from hubert_jax.data.manifests import read_manifest
from hubert_jax.errors import InputError
from hubert_jax.language.text import Text
from hubert_jax.language.tokens import END, UNKNOWN, Tokens
from hubert_jax.language.transformer import Scorer
from hubert_jax.model.architecture import LmArchitecture
from hubert_jax.tasks import language_model
from hubert_jax.training import checkpoint, metrics, sharding

pytestmark = pytest.mark.usefixtures("two_devices")

ARCHITECTURE = dict(dim=16, num_layers=2, ffn_dim=32, num_heads=2, cutoffs=(20, 60))


@pytest.fixture
def run(speech_split, held_out_split):
    def run(workdir, steps=6, **values) -> dict:
        values = (
            dict(
                workdir=str(workdir),
                audio=(str(speech_split),),
                validation_audio=str(held_out_split),
                loop=dict(steps=steps, log_every=2, save_every=2, keep=3),
                architecture=ARCHITECTURE,
                vocabulary_size=100,
                tokens_per_step=256,
                padded_tokens=(32,),
            )
            | values
        )
        return train_lm.run(config_lib.build(train_lm.TrainLmConfig, values))

    return run


def _restored(workdir):
    return checkpoint.restore_parameters(workdir / "train_lm" / "checkpoints")


def test_perplexity_is_that_of_the_formulas(run, tmp_path, speech_split, held_out_split, capsys):
    texts = tmp_path / "more.txt"
    texts.write_text("some more words " * 3 + "\n\n  SIX   words\n")  # 9 and 2 words
    found = run(tmp_path, steps=2, texts=(str(texts),), padded_tokens=(16, 32))
    params, metadata = _restored(tmp_path)
    tokens = Tokens.from_dict(metadata["tokens"])
    architecture = config_lib.build(LmArchitecture, ARCHITECTURE)
    total = of_unknown = count = unknown = words = 0
    for sentence in Text((), (), "").of_split(str(held_out_split)):
        numbers = tokens.of_sentence(sentence)
        words += len(sentence)
        p = distributions(params, [END, *numbers[:-1]], architecture, tokens.size)
        for place, number in enumerate(numbers):
            total, count = total - math.log(p[place, number]), count + 1
            if number == UNKNOWN:
                of_unknown, unknown = of_unknown - math.log(p[place, number]), unknown + 1
    assert 0 < unknown < words
    measured = found["validation"]["last"]
    assert measured["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)
    assert measured["loss"] == pytest.approx(total / count, rel=1e-5)
    without = math.exp((total - of_unknown) / (count - unknown))
    assert measured["perplexity_without_unknown"] == pytest.approx(without, rel=1e-5)
    assert measured["unknown_rate"] == unknown / words
    assert files.read_json(tmp_path / "train_lm/result.json", "result") == found
    shown = capsys.readouterr().out
    assert f"perplexity {measured['perplexity']:.2f}" in shown
    assert found["sentences"] == read_manifest(speech_split).transcribed + 2
    assert found["tokens"] == tokens.size == 102


def test_it_learns_to_foretell(run, tmp_path):
    optimizer = dict(peak_learning_rate=1e-2, warmup_fraction=0.1)
    found = run(tmp_path, steps=30, optimizer=optimizer, validation=dict(every=30), dropout=0.0)
    losses = found["curves"]["loss"][1]
    assert math.log(50) < losses[0] < math.log(200) and losses[-1] < losses[0] - 1


def test_a_run_that_is_killed_ends_as_one_that_is_not(run, tmp_path, monkeypatch, capsys):
    whole = run(tmp_path / "whole")
    write = metrics.ProgressLog.write

    def killed(log, step, *arguments):
        write(log, step, *arguments)
        if step == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(metrics.ProgressLog, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut")
    capsys.readouterr()
    resumed = run(tmp_path / "cut")
    assert "reading the text" not in capsys.readouterr().out
    assert resumed["resumed_from"] == 4
    for name in ("last", "fingerprint", "validation"):
        assert resumed[name] == whole[name], name
    for a, b in zip(
        jax.tree.leaves(_restored(tmp_path / "cut")[0]),
        jax.tree.leaves(_restored(tmp_path / "whole")[0]),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(InputError, match="another run.*config.vocabulary_size was 100, is 90"):
        run(tmp_path / "cut", vocabulary_size=90)


def test_batches_are_those_of_their_step_and_have_every_sentence(tmp_path):
    lines = [" ".join(f"W{i}" for i in range(n)) for n in (*range(1, 13), *range(20, 32), 40)]
    (tmp_path / "t.txt").write_text("\n".join(lines))
    values = dict(workdir="w", loop=dict(steps=40), texts=(str(tmp_path / "t.txt"),))
    values |= dict(padded_tokens=(16, 32), tokens_per_step=64)
    asked = config_lib.build(train_lm.TrainLmConfig, values)
    task = language_model.task(
        asked,
        language_model.read(asked, tmp_path / "text"),
        sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1]),
    )
    whole, rest = list(task.batches(0)), list(task.batches(17))
    assert len(whole) == 40 and len(rest) == 23
    for ours, theirs in zip(rest, whole[17:], strict=True):
        for name, value in theirs.items():
            np.testing.assert_array_equal(ours[name], value)
    seen = collections.Counter()
    for batch in whole:
        assert batch["tokens"].shape in ((4, 17), (2, 33))
        seen.update(batch["lengths"].tolist())
    # Twelve of either length in batches of four and two: as many passes over both, but for chance.
    assert {*seen} == {*range(2, 14), *range(21, 33)} and task.facts["rows"] == {"16": 4, "32": 2}
    short, long = ([seen[n] for n in lengths] for lengths in (range(2, 14), range(21, 33)))
    for counts in (short, long):
        assert max(counts) - min(counts) <= 1
    assert 0.5 < sum(short) / sum(long) < 2


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_loss_is_the_same_in_parts_and_on_a_mesh(run, tmp_path, micro_batches):
    found = run(
        tmp_path,
        steps=1,
        tokens_per_step=1024,
        dropout=0.0,
        attention_dropout=0.0,
        micro_batches=micro_batches,
        mesh=dict(data=2, fsdp=2, tensor=2),
        validation_audio="",
    )
    assert found["validation"] is None
    same = tmp_path.parent / "loss_of_one_step"
    if same.exists():
        assert found["last"]["loss"] == pytest.approx(float(same.read_text()), rel=1e-5)
    same.write_text(str(found["last"]["loss"]))


@pytest.mark.parametrize("unit", ["piece", "letter"])
def test_units_of_words_are_scored_as_whole_words(run, tmp_path, unit):
    if unit == "piece":
        pytest.importorskip("sentencepiece")
    found = run(
        tmp_path, steps=1, unit=unit, vocabulary_size=40, padded_tokens=(256,), tokens_per_step=4096
    )
    scorer = Scorer(f"orbax:{tmp_path}/train_lm/checkpoints@best")
    for words in (["SIX", "WORDS"], ["É"]):
        assert scorer.sentence(words) == pytest.approx(scorer.sentences([words])[0], abs=1e-5)
    assert found["validation"]["last"]["unknown_rate"] == 0
    assert found["tokens"] == (41 if unit == "piece" else 30)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(audio=()), "config.audio, config.texts: both empty"),
        (dict(texts=("none.txt",)), "config.texts=none.txt: not found"),
        (dict(unit="phone"), "config.unit='phone': expected one of"),
        (dict(vocabulary_size=1), "config.vocabulary_size=1: expected 2"),
        (dict(dropout=1.0), "config.dropout=1.0: expected at least 0 and less"),
        (dict(padded_tokens=(32, 16)), "config.padded_tokens=.*: expected lengths that ascend"),
        (dict(padded_tokens=(2,)), "config.padded_tokens=.*: all sentences are longer"),
        (dict(tokens_per_step=16), "config.tokens_per_step=16: no room for 2 rows of"),
        (dict(validation_audio="AUDIO"), "utterances are in config.audio.*held out of"),
        (dict(validation=dict(metric="wer")), "config.validation.metric=wer: expected one of perp"),
    ],
)
def test_what_is_wrong_is_named(run, tmp_path, speech_split, values, message):
    if "validation_audio" in values:
        values = dict(validation_audio=str(speech_split))
    with pytest.raises(InputError, match=message) as refused:
        run(tmp_path, **values)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "train_lm" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("name", "content", "unit", "message"),
    [
        ("t.txt", "\u043c\u0438\u0440\n... !\n".encode(), "letter", "none of the 3 words can be"),
        ("t.gz", gzip.compress(b"A B\n" * 99)[:-8] + b"\0" * 8, "word", "t.gz: cannot be read"),
        ("t.gz", gzip.compress(b"A B\n")[:10] + b"\xff" * 20, "word", "t.gz: cannot be read"),
    ],
    ids=["of another alphabet", "of another checksum", "no stream"],
)
def test_text_that_tells_nothing_is_refused(run, tmp_path, name, content, unit, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        run(tmp_path, audio=(), texts=(str(tmp_path / name),), unit=unit)


def test_the_papers_network_has_its_published_size():
    """562 million parameters, by wav2letter's table; its vocabulary is not quite the same."""
    values = transformer_lm.get_config()
    asked = config_lib.build(train_lm.TrainLmConfig, values)
    tokens = asked.vocabulary_size + 2
    shapes = jax.eval_shape(language_model.init(asked.architecture, tokens), jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6 == pytest.approx(562, abs=1)


def test_damaged_text_is_read_again(run, tmp_path):
    values = dict(workdir="w", loop=dict(steps=1), texts=(str(tmp_path / "t.txt"),))
    (tmp_path / "t.txt").write_text("A B\n")
    asked = config_lib.build(train_lm.TrainLmConfig, values)
    before = language_model.read(asked, tmp_path / "text")
    (path,) = tmp_path.glob("text/*/numbers.int32")
    path.write_bytes(b"")
    again = language_model.read(asked, tmp_path / "text")
    assert again.digest == before.digest and again.text.numbers.tolist() == [2, 3, 0]
    (tmp_path / "t.txt").write_text("A C\n")
    assert language_model.read(asked, tmp_path / "text").digest != before.digest
