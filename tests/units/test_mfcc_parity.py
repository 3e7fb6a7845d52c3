"""MFCC and their differences on all embedded development speech: torchaudio's and librosa's."""

import mfcc_oracle
import numpy as np
import pytest
import torch
import torchaudio
import torchaudio.compliance.kaldi

from hubert_jax.corpus.audio_files import read_waveform
from hubert_jax.units.mfcc import DIMS, mfcc


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


@pytest.mark.parametrize("kind", DIMS)
def test_mfcc_of_all_development_speech_are_the_definitions(waveforms, kind):
    """In float64; librosa's own float32 is 1e-4 away from it."""
    for index, found in mfcc(enumerate(waveforms), kind):
        expected = getattr(mfcc_oracle, kind)(waveforms[index])
        np.testing.assert_allclose(found, expected, atol=1e-4)
