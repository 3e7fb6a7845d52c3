"""Writes kaldi_mfcc.npz: MFCC with differences by torchaudio, for test_mfcc.py.

python tests/units/make_golden.py, with torch and torchaudio 2.11.0 installed.
"""

import pathlib

import numpy as np
import soundfile
import torch
import torchaudio

HERE = pathlib.Path(__file__).parent
UTTERANCE = "3664/178355/3664-178355-0016.opus"


def main():
    path = HERE.parents[1] / "examples" / "minilibri" / "dev-mini" / UTTERANCE
    samples = soundfile.read(path, start=16_000, stop=32_000, dtype="int16")[0]
    waveform = torch.from_numpy(samples.astype(np.float64) / 32768)[None]
    cepstra = torchaudio.compliance.kaldi.mfcc(waveform, sample_frequency=16_000, use_energy=False)
    first = torchaudio.functional.compute_deltas(cepstra.T)
    second = torchaudio.functional.compute_deltas(first)
    features = torch.cat([cepstra.T, first, second]).T.numpy().astype(np.float32)
    np.savez_compressed(HERE / "kaldi_mfcc.npz", samples=samples, features=features)


if __name__ == "__main__":
    main()
