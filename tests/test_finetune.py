"""Fine-tuning from a checkpoint and from scratch, and decoding what comes of it."""

import re
import shutil

import jax
import numpy as np
import pytest
import splits
from splits import TINY_BASE, TINY_LARGE, random_parameters

from hubert_jax import config as config_lib
from hubert_jax import decode, files, finetune, train
from hubert_jax.asr.emissions import emissions
from hubert_jax.convert import formats
from hubert_jax.convert.network import Network
from hubert_jax.data import records
from hubert_jax.data.manifests import read_manifest
from hubert_jax.errors import InputError
from hubert_jax.model.architecture import Architecture
from hubert_jax.networks import forward, trained, warm_start
from hubert_jax.training.checkpoint import fingerprint, restore_parameters
from hubert_jax.vocabulary import LIBRISPEECH, Vocabulary

pytestmark = pytest.mark.usefixtures("two_devices")


@pytest.fixture(scope="module", params=["base", "large"])
def pretrained(request, speech_split, speech_labels, tmp_path_factory):
    """A model and its checkpoints after two updates."""
    model = {"base": TINY_BASE, "large": TINY_LARGE}[request.param]
    workdir = tmp_path_factory.mktemp("pretrained")
    values = dict(
        workdir=str(workdir),
        audio=str(speech_split),
        labels=(str(speech_labels),),
        **model,
        loop=dict(steps=2),
        frames_per_step=512,
        max_frames=64,
        loss=dict(mask_group_rows=4),
    )
    train.run(config_lib.build(train.TrainConfig, values))
    return model, workdir / "train" / "checkpoints"


def _finetune(workdir, split, model, checkpoints="", steps=4, freeze_steps=2, **values):
    values = (
        dict(
            workdir=str(workdir),
            audio=str(split),
            init_from=f"orbax:{checkpoints}" if checkpoints else "",
            architecture=model["architecture"],
            regularization=model["regularization"],
            loop=dict(steps=steps, log_every=1, save_every=1, keep=10),
            ctc=dict(freeze_steps=freeze_steps, channel_mask_probability=0.1, channel_mask_span=4),
            # Decay would move a frozen parameter that has no gradient.
            optimizer=dict(
                peak_learning_rate=1e-2, weight_decay=0.1, schedule="tri_stage", warmup_fraction=0.1
            ),
            frames_per_step=768,
            padded_frames=(384,),
        )
        | values
    )
    return finetune.run(config_lib.build(finetune.FinetuneConfig, values))


# What has nothing to do with the architecture is tested on one.
on_base = pytest.mark.parametrize("pretrained", ["base"], indirect=True)


@pytest.fixture(scope="module")
def finetuned(pretrained, speech_split, tmp_path_factory):
    """The result of four updates from `pretrained`, of which two are frozen."""
    model, checkpoints = pretrained
    return _finetune(tmp_path_factory.mktemp("finetuned"), speech_split, model, checkpoints)


@on_base
def test_a_second_fine_tuning_in_one_directory_is_refused(pretrained, speech_split, tmp_path):
    with files.locked(tmp_path / ".finetune.lock", "fine-tuning"):
        with pytest.raises(InputError, match="another fine-tuning is running there"):
            _finetune(tmp_path, speech_split, *pretrained)


def _same(ours, theirs) -> list[bool]:
    return [
        bool(np.array_equal(a, b))
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    ]


@on_base
def test_frozen_steps_and_the_frontend_leave_the_network_untouched(
    pretrained, finetuned, speech_split, tmp_path
):
    model, checkpoints = pretrained
    before, source = restore_parameters(checkpoints)
    frozen = _finetune(tmp_path / "frozen", speech_split, model, checkpoints, freeze_steps=9)
    assert frozen["inputs"]["init_from"] == fingerprint(source)
    after, _ = restore_parameters(frozen["checkpoint"])
    assert all(_same(after["hubert"], before["hubert"]))

    learnt, _ = restore_parameters(finetuned["checkpoint"])
    assert all(_same(learnt["hubert"]["frontend"], before["hubert"]["frontend"]))
    assert not any(_same(learnt["hubert"]["transformer"], before["hubert"]["transformer"]))
    assert not any(_same(learnt["ctc_head"], after["ctc_head"]))
    assert finetuned["last"]["infeasible_fraction"] == 0


def test_from_scratch_everything_learns_and_is_decoded(pretrained, speech_split, tmp_path):
    model, checkpoints = pretrained
    result = _finetune(tmp_path, speech_split, model, steps=3)
    assert result["from_scratch"]
    params, metadata = restore_parameters(result["checkpoint"])
    assert metadata["kind"] == "ctc"

    values = dict(workdir=str(tmp_path), audio=str(speech_split))
    values["checkpoint"] = f"orbax:{result['checkpoint']}"
    decoded = decode.run(config_lib.build(decode.DecodeConfig, values))
    assert decoded["utterances"] == read_manifest(speech_split).utterances
    assert decoded["fingerprint"] == result["fingerprint"] == fingerprint(metadata)

    utterances = {utterance.id: utterance for utterance in records.read_audio(speech_split)}
    for _, emitted in emissions(
        trained.load(values["checkpoint"]), forward.utterances(speech_split)
    ):
        utterance, log_probs = utterances.pop(emitted.id), emitted.log_probs
        assert emitted.speaker == utterance.speaker
        frames = (len(utterance.audio) - 400) // 320 + 1
        assert emitted.text == utterance.text and log_probs.shape == (frames, LIBRISPEECH.size)
        np.testing.assert_allclose(np.exp(log_probs).sum(axis=1), 1.0, rtol=1e-5)
    assert not utterances

    values["checkpoint"] = f"orbax:{checkpoints}"
    with pytest.raises(InputError, match="has no CTC head; expected a network of fine-tuning"):
        decode.run(config_lib.build(decode.DecodeConfig, values))


@on_base
def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    pretrained, finetuned, speech_split, tmp_path, monkeypatch
):
    from hubert_jax.training.checkpoint import Checkpoints

    model, checkpoints = pretrained
    save = Checkpoints.save

    def killed(checkpoints, step, state, metadata):
        save(checkpoints, step, state, metadata)
        if step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            _finetune(tmp_path / "cut", speech_split, model, checkpoints)
    resumed = _finetune(tmp_path / "cut", speech_split, model, checkpoints)
    assert resumed["resumed_from"] == 3
    assert resumed["last"] == finetuned["last"]
    ours, theirs = (restore_parameters(result["checkpoint"])[0] for result in (resumed, finetuned))
    assert all(_same(ours, theirs))


@on_base
def test_public_weights_are_fine_tuned_and_a_head_of_the_same_vocabulary_is_kept(
    pretrained, speech_split, tmp_path, capsys
):
    model, _ = pretrained
    architecture = Architecture(**model["architecture"])
    params = {size: random_parameters(architecture, vocabulary_size=size) for size in (29, 32)}
    theirs = Vocabulary.from_symbols(("<s>", "</s>", "<unk>", *LIBRISPEECH.characters))
    params[29]["ctc_head"]["bias"] = np.full(29, 5.0, np.float32)
    same, other = f"hf:{tmp_path}/same", f"hf:{tmp_path}/other"
    formats.write(same, Network(params[29], architecture, vocabulary=LIBRISPEECH))
    formats.write(other, Network(params[32], architecture, vocabulary=theirs))
    kept = _finetune(tmp_path, speech_split, model, init_from=same)
    assert f"network from {same}, with its head\n" in capsys.readouterr().out
    found = restore_parameters(kept["checkpoint"])[0]
    assert all(_same(found["hubert"]["frontend"], params[29]["hubert"]["frontend"]))
    np.testing.assert_allclose(found["ctc_head"]["bias"], 5.0, atol=0.1)  # after four updates
    start = warm_start.for_finetuning(other, architecture, LIBRISPEECH)
    assert start.description == (
        f"network from {other}, with a fresh head: its CTC head has 32 classes, the run's 29"
    )
    assert all(_same(start.params, {"hubert": params[32]["hubert"]}))


@on_base
def test_another_architecture_is_refused(pretrained, speech_split, tmp_path):
    model, checkpoints = pretrained
    another = {**model, "architecture": {**model["architecture"], "num_layers": 3}}
    with pytest.raises(
        InputError, match="architecture: num_layers is 2, config.architecture.num_layers"
    ):
        _finetune(tmp_path, speech_split, another, checkpoints)


def _retold(split, directory, retell):
    """The split with the texts that `retell` makes of (number, text)."""
    utterances = (
        records.Utterance(u.id, u.audio, u.speaker, retell(number, u.text))
        for number, u in enumerate(records.read_audio(split))
    )
    directory.mkdir()
    splits.write_split(directory, directory.name, utterances, [], 64)
    return directory


def test_all_transcripts_are_checked_before_the_first_step(
    speech_split, held_out_split, tmp_path, monkeypatch, capsys
):
    """Of both splits, however late a run would meet them; and what is in none is not refused."""

    def odd(number, text):  # in two of them, the first beyond what is read of a record's end
        spoken = f"{'A' * 3000} \u2019" if number == 5 else f"O\u2019CLOCK\u2019S \u00c9 {text}"
        return spoken if number in (5, 20) else text

    monkeypatch.setattr(finetune, "fit", lambda *arguments: pytest.fail("began to train"))
    names = [utterance.id for utterance in records.read_audio(speech_split)]
    bad = _retold(speech_split, tmp_path / "bad", odd)
    message = (
        f"={bad}: 2 of {len(names)} transcripts hold what none of the vocabulary's 28 symbols "
        f"spells: '\u2019' (U+2019) 3 x, first in {names[5]}; '\u00c9' (U+00C9) 1 x, first in "
        f"{names[20]}; --config.vocabulary.source=transcripts learns all"
    )
    with pytest.raises(InputError, match=f"^config.audio{re.escape(message)}"):
        _finetune(tmp_path, bad, TINY_BASE)
    with pytest.raises(InputError, match=f"^config.validation_audio{re.escape(message)}") as error:
        _finetune(tmp_path, held_out_split, TINY_BASE, validation_audio=str(bad))
    assert "\n" not in str(error.value)

    def endless(number, text):
        return text * 90 if number > 3 else text

    long = _retold(held_out_split, tmp_path / "long", endless)
    with pytest.raises(InputError, match="characters in at most 384 frames.*config.validation_au"):
        _finetune(tmp_path, speech_split, TINY_BASE, validation_audio=str(long))
    with pytest.raises(pytest.fail.Exception, match="began to train"):
        _finetune(tmp_path, long, TINY_BASE)
    ids = [utterance.id for utterance in records.read_audio(long)]
    shown = capsys.readouterr().out
    assert re.search(
        rf"{long}: 2 of 6 transcripts, 0.00 h, are too long for their audio and are not learnt "
        rf"from: {ids[4]}, {ids[5]}\n",
        shown,
    )
    retold = _retold(held_out_split, tmp_path / "few", lambda n, text: text if n == 5 else "\u2026")
    values = dict(vocabulary=dict(punctuation="drop"), validation=dict(utterances=1))
    with pytest.raises(pytest.fail.Exception, match="began to train"):
        _finetune(tmp_path, speech_split, TINY_BASE, validation_audio=str(retold), **values)
    assert f"validation on 1 of 6 utterances of {retold}" in capsys.readouterr().out
    # What is named is put in order.
    monkeypatch.undo()
    values = dict(replace=("\u2019='",), outside="drop")
    _finetune(tmp_path / "mended", bad, TINY_BASE, steps=1, vocabulary=values)
    assert (
        f"{bad}: left out of 1 of {len(names)} transcripts, as no symbol spells it: '\u00c9' "
        in (capsys.readouterr().out)
    )


def test_what_cannot_be_learnt_from_is_told_and_counted(held_out_split, tmp_path, capsys):
    """Of a text with nothing but punctuation, one too long for its audio and one for its row."""
    told = {1: "...", 2: "ABC " * 40, 3: "A" * 112}
    directory = _retold(
        held_out_split, tmp_path / "odd", lambda number, text: told.get(number, text)
    )
    samples = [len(utterance.audio) for utterance in records.read_audio(directory)]
    seconds = sum(n for number, n in enumerate(samples) if number not in told) / 16_000
    values = dict(vocabulary=dict(punctuation="drop"))
    values |= dict(padded_frames=(224,), frames_per_step=1792)
    loop = dict(steps=3, log_every=3, save_every=3)  # 8 rows each: four times all of them
    result = _finetune(tmp_path, directory, TINY_BASE, loop=loop, **values)
    shown = capsys.readouterr().out
    assert (
        "1 of 6 transcripts, 0.00 h, have nothing that a symbol spells and are not learnt" in shown
    )
    assert "2 of 6 transcripts, 0.00 h, are too long for their audio and are not learnt" in shown
    assert f"fine-tuning from scratch: {seconds / 3600:.2f} h" in shown
    assert result["audio_seconds"] == pytest.approx(seconds)
    assert result["last"]["infeasible_fraction"] == pytest.approx(0.5)  # of the last interval
    nothing = _retold(held_out_split, tmp_path / "nothing", lambda number, text: "?!")
    with pytest.raises(InputError, match="none of its 6 transcripts can be learnt from: they have"):
        _finetune(tmp_path, nothing, TINY_BASE, **values)


@on_base
def test_a_run_goes_on_with_its_vocabulary_whatever_becomes_of_its_source(
    pretrained, speech_split, tmp_path, monkeypatch
):
    """Of a public head, which is kept, exported again and gone on with."""
    from hubert_jax.training.checkpoint import Checkpoints

    model, _ = pretrained
    architecture = Architecture(**model["architecture"])
    letters = Vocabulary.from_symbols(("|", *"'abcdefghijklmnopqrstuvwxyz", "<unk>"))
    params = random_parameters(architecture, vocabulary_size=letters.size)
    public = tmp_path / "public"
    formats.write(f"hf:{public}", Network(params, architecture, vocabulary=letters))
    save = Checkpoints.save

    def killed(checkpoints, step, state, metadata):
        save(checkpoints, step, state, metadata)
        if step == 1:
            raise KeyboardInterrupt

    values = dict(steps=2, init_from=f"hf:{public}", vocabulary=dict(source="init_from"))
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            _finetune(tmp_path, speech_split, model, **values)
    shutil.rmtree(public)
    found = _finetune(tmp_path, speech_split, model, **values)
    assert found["resumed_from"] == 1
    network = formats.read(f"orbax:{found['checkpoint']}")
    assert network.vocabulary == letters
    formats.write(f"hf:{tmp_path}/exported", network)
    assert formats.read(f"hf:{tmp_path}/exported").vocabulary == letters
    with pytest.raises(InputError, match="config.vocabulary.source was 'init_from', is ''"):
        _finetune(tmp_path, speech_split, model, **{**values, "vocabulary": {}})
