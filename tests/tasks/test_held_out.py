"""What validation measures: the same figures as computed by hand, and as decode finds."""

import dataclasses

import jax
import numpy as np
import pytest
import splits
from scipy.special import log_softmax
from splits import CLUSTERS, TINY_BASE, TINY_LARGE

from hubert_jax import config as config_lib
from hubert_jax import decode, finetune, train
from hubert_jax.data import records
from hubert_jax.errors import InputError
from hubert_jax.frames import num_samples
from hubert_jax.model.architecture import Architecture, Execution, Head
from hubert_jax.model.hubert import HubertForPretraining
from hubert_jax.model.kernels import choice
from hubert_jax.model.masking import span_mask
from hubert_jax.tasks import pretraining
from hubert_jax.training import sharding
from hubert_jax.training.sharding import MeshConfig
from hubert_jax.training.state import abstract_state, create_state
from hubert_jax.training.validation import Validator
from hubert_jax.units.kmeans import Codebook

CROP, SEED = 64, 1337


@pytest.fixture
def values(speech_split, speech_labels, held_out_split, held_out_labels, tmp_path) -> dict:
    """A pre-training of two steps, validated after each."""
    return dict(
        workdir=str(tmp_path),
        audio=str(speech_split),
        labels=(str(speech_labels),),
        validation_audio=str(held_out_split),
        validation_labels=(str(held_out_labels),),
        loop=dict(steps=2, log_every=1, save_every=1),
        frames_per_step=1024,
        max_frames=CROP,
        loss=dict(mask_group_rows=4),
        seed=SEED,
        **TINY_LARGE,
    )


def _by_hand(params, split, labels, every) -> dict[str, float]:
    """Utterance by utterance, `every` so many, in float64 where there is a sum."""
    architecture, head = Architecture(**TINY_LARGE["architecture"]), Head(**TINY_LARGE["head"])
    network = HubertForPretraining(architecture, head, choice.choose(Execution(), architecture))
    apply = jax.jit(lambda *inputs: network.apply({"params": params}, *inputs)["logits"])
    units = dict(records.read_labels(labels))
    loss, correct, count = 0.0, 0, 0
    for number, utterance in enumerate(records.read_audio(split)):
        if number % every:
            continue
        whole = utterance.audio.astype(np.float64) / 32768
        whole = (whole - whole.mean()) / np.sqrt(whole.var() + 1e-7)
        key = jax.random.fold_in(jax.random.key(SEED), number)
        mask = np.asarray(span_mask(key, 1, CROP, 0.8, 10, 1))
        crop = whole[None, : num_samples(CROP)].astype(np.float32)
        (logits,) = apply(crop, mask)
        scores = log_softmax(np.asarray(logits, np.float64)[0], axis=-1)[mask[0]]
        targets = units[utterance.id][: 2 * CROP : 2][mask[0]]  # 100 Hz
        loss -= scores[np.arange(len(targets)), targets].sum()
        correct += (scores.argmax(-1) == targets).sum()
        count += len(targets)
    return {"masked_loss": loss / count, "masked_accuracy": correct / count}


def test_masked_loss_is_that_of_the_same_crops_and_masks_on_any_devices(values):
    """On one, a batch has the six utterances; on eight, two rows count for nothing."""
    config = config_lib.build(train.TrainConfig, values)
    data = pretraining.read(config)
    inputs = values["validation_audio"], values["validation_labels"][0]
    for count, at_most, every in ((1, 0, 1), (8, 0, 1), (8, 3, 2)):
        limited = dataclasses.replace(config.validation, utterances=at_most)
        mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:count])
        task = pretraining.task(dataclasses.replace(config, validation=limited), data, mesh)
        validator = Validator(task.validation, {"kind": "", **task.facts})
        abstract = abstract_state(task, mesh)
        validator.compile(mesh, abstract.params)
        params = create_state(task, abstract, SEED).params
        found, improved = validator.measure(1, params)
        assert improved and validator.measure(2, params) == (found, False)
        expected = _by_hand(jax.device_get(params), *inputs, every)
        assert found == pytest.approx(expected, rel=1e-5)


def test_a_split_that_is_trained_on_or_labelled_otherwise_is_refused(
    values, held_out_split, speech_split, tmp_path
):
    def refused(message, **changes):
        with pytest.raises(InputError, match=message) as error:
            pretraining.read(config_lib.build(train.TrainConfig, {**values, **changes}))
        assert "\n" not in str(error.value)

    message = "config.validation_audio=.*: 24 of its 24 utterances are in config.audio=.* too, "
    refused(message, validation_audio=values["audio"])
    other = Codebook(np.eye(CLUSTERS, dtype=np.float32), {"kind": "mfcc"}, 0.0, 0, 0, CLUSTERS)
    pairs = list(records.read_labels(values["validation_labels"][0]))
    splits.write_labels(held_out_split, tmp_path / "other", pairs, other, 100)
    message = "config.validation_labels: .*other: found units of the codebook .*, expected .*"
    refused(message, validation_labels=(str(tmp_path / "other"),))
    refused("config.validation_labels has 0 label sets", validation_labels=())
    refused("validation_labels: found without config.validation_audio", validation_audio="")


@pytest.mark.usefixtures("two_devices")
def test_word_error_rate_is_that_of_decode(speech_split, held_out_split, tmp_path):
    """Of a split that is transcribed in part: on that part."""
    (tmp_path / "dev").mkdir()
    utterances = (
        dataclasses.replace(utterance, text="" if number == 2 else utterance.text)
        for number, utterance in enumerate(records.read_audio(held_out_split))
    )
    splits.write_split(tmp_path / "dev", "dev", utterances, [], 1)
    values = dict(
        workdir=str(tmp_path),
        audio=str(speech_split),
        init_from="",
        validation_audio=f"{tmp_path}/dev",
        loop=dict(steps=2, log_every=1, save_every=1),
        validation=dict(every=2),
        frames_per_step=768,
        padded_frames=(384,),
        architecture=TINY_BASE["architecture"],
        regularization=TINY_BASE["regularization"],
    )
    result = finetune.run(config_lib.build(finetune.FinetuneConfig, values))
    found = result["validation"]
    assert (found["metric"], found["step"]) == ("wer", 2)
    checkpoint = f"orbax:{result['checkpoint']}@best"
    config = dict(workdir=str(tmp_path), checkpoint=checkpoint, audio=f"{tmp_path}/dev")
    decoded = decode.run(config_lib.build(decode.DecodeConfig, config))
    assert (decoded["transcribed"], decoded["utterances"]) == (5, 6)
    assert decoded["wer"]["greedy"] == found["value"] == found["last"]["wer"]
    assert decoded["cer"]["greedy"] == found["last"]["cer"]
    assert decoded["fingerprint"] == found["fingerprint"]
