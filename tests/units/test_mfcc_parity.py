"""MFCC and their differences against torchaudio's, on all embedded development speech."""

import numpy as np
import torch
import torchaudio
import torchaudio.compliance.kaldi

from hubert_jax.corpus.audio_files import read_waveform
from hubert_jax.units.mfcc import mfcc


def test_mfcc_of_all_development_speech_are_torchaudios(minilibri):
    paths = sorted((minilibri / "dev-mini").rglob("*.opus"))
    waveforms = [read_waveform(path).astype(np.float32) / 32768 for path in paths]
    assert len(waveforms) == 46
    for index, found in mfcc(enumerate(waveforms)):
        # In float64, since quiet bands differ by 1e-3 between two libraries' float32 alone.
        waveform = torch.from_numpy(waveforms[index].astype(np.float64))[None]
        kaldi = torchaudio.compliance.kaldi.mfcc(
            waveform, sample_frequency=16_000, use_energy=False
        )
        expected = [kaldi.T]
        for _ in range(2):
            expected.append(torchaudio.functional.compute_deltas(expected[-1]))
        np.testing.assert_allclose(found, torch.cat(expected).T.numpy(), atol=1e-3)
