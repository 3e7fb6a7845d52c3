"""MFCC and their differences on all embedded development speech: torchaudio's and librosa's."""

import mfcc_oracle
import numpy as np
import pytest
import torch
import torchaudio
import torchaudio.compliance.kaldi

from hubert_jax.corpus.audio_files import read_waveform
from hubert_jax.units.mfcc import mfcc


@pytest.fixture(scope="module")
def waveforms(minilibri):
    paths = sorted((minilibri / "dev-mini").rglob("*.opus"))
    assert len(paths) == 46
    return [read_waveform(path).astype(np.float32) / 32768 for path in paths]


@pytest.mark.parametrize("precision", [np.float32, np.float64])
def test_mfcc_of_all_development_speech_are_torchaudios(waveforms, precision):
    for index, found in mfcc(enumerate(waveforms)):
        waveform = torch.from_numpy(waveforms[index].astype(precision))[None]
        kaldi = torchaudio.compliance.kaldi.mfcc(
            waveform, sample_frequency=16_000, use_energy=False
        )
        expected = [kaldi.T]
        for _ in range(2):
            expected.append(torchaudio.functional.compute_deltas(expected[-1]))
        np.testing.assert_allclose(found, torch.cat(expected).T.numpy(), atol=1e-3)


def test_log_mels_and_cepstra_of_all_development_speech(waveforms):
    cepstra = mfcc(enumerate(waveforms), "cepstra")
    whole, levels = mfcc(enumerate(waveforms)), mfcc(enumerate(waveforms), "log_mel")
    for (index, found), (_, first), (_, all_39) in zip(levels, cepstra, whole, strict=True):
        waveform = torch.from_numpy(waveforms[index])[None]
        expected = torchaudio.compliance.kaldi.fbank(waveform, sample_frequency=16_000)
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-3)
        np.testing.assert_array_equal(first, all_39[:, :13])


@pytest.mark.parametrize("kind", ["mfcc", "mfcc_librosa", "log_mel"])
def test_mfcc_of_all_development_speech_are_the_definitions(waveforms, kind):
    """In float64; librosa's own float32 is 1e-4 away from it."""
    for index, found in mfcc(enumerate(waveforms), kind):
        expected = getattr(mfcc_oracle, kind)(waveforms[index])
        np.testing.assert_allclose(found, expected, atol=1e-4)
