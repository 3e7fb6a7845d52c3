"""Audio in records: FLAC gives the same samples as PCM, and bytes that are neither are told."""

import numpy as np
import pytest
import splits

from hubert_jax.corpus import assembly, parts
from hubert_jax.corpus.audio_files import read_waveform
from hubert_jax.corpus.sources import discover
from hubert_jax.data import batches, encoding, records, schedule
from hubert_jax.data.index import read_index
from hubert_jax.data.records import Utterance


@pytest.fixture(scope="module")
def speech(minilibri) -> np.ndarray:
    return read_waveform(next((minilibri / "dev-mini").rglob("*.opus")))


@pytest.mark.parametrize("encoded", encoding.ENCODINGS)
def test_samples_come_back(tmp_path, speech, encoded):
    noise = np.random.default_rng(0).integers(-32768, 32768, 5000).astype(np.int16)
    short = np.arange(400, dtype=np.int16)
    utterances = [Utterance(str(i), audio) for i, audio in enumerate((speech, noise, short))]
    splits.write_shard(tmp_path / "shard.tfrecord", utterances, encoded)
    for found, utterance in zip(
        records.read_shard(tmp_path / "shard.tfrecord"), utterances, strict=True
    ):
        assert found.audio.dtype == np.int16
        np.testing.assert_array_equal(found.audio, utterance.audio)


def test_flac_is_smaller_for_speech_and_never_larger(speech):
    assert len(encoding.encode(speech, "flac")) < 0.75 * 2 * len(speech)
    noise = np.random.default_rng(0).integers(-32768, 32768, 5000).astype(np.int16)
    assert encoding.encode(noise, "flac") == noise.tobytes()


@pytest.mark.parametrize("change", [lambda c: c[:-1], lambda c: c[:99], lambda c: b"", bytes.upper])
def test_bytes_that_are_not_the_samples(speech, change):
    content = encoding.encode(speech, "flac")
    assert encoding.decode(change(content), len(speech)) is None
    assert encoding.decode(content, len(speech) - 1) is None
    assert encoding.decode(speech.tobytes() + b"x", len(speech)) is None


def test_batches_of_flac_are_those_of_pcm(tmp_path, minilibri):
    """As fine-tuning reads them: whole utterances, padded."""
    sources = discover(minilibri / "dev-mini")[:12]
    utterances = [Utterance(s.id, read_waveform(s.path), s.speaker, s.text) for s in sources]
    found = {}
    for encoded in encoding.ENCODINGS:
        directory = tmp_path / encoded
        directory.mkdir()
        numbered = [((0, i), utterance) for i, utterance in enumerate(utterances)]
        part = parts.write(tmp_path / f"{encoded}.tfrecord", [parts.Item("x", numbered)], encoded)
        manifest = assembly.assemble(directory, "some", [part], 64, encoding=encoded)
        index = read_index(directory, manifest)
        padded = schedule.padded_buckets(manifest, index, 4096, (256, 512, 1024), 1)
        read = batches.finetuning_batches(
            directory,
            manifest,
            schedule.BucketSchedule(padded, 0),
            seed=0,
            first_step=0,
            last_step=4,
            normalize_waveform=True,
        )
        found[encoded] = list(read)
    for left, right in zip(found["pcm16"], found["flac"], strict=True):
        assert left.keys() == right.keys()
        assert all(np.array_equal(left[name], right[name]) for name in left)
    assert np.abs(found["flac"][0]["waveform"]).max() > 1
