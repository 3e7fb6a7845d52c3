"""Time of MFCC with differences, beside torchaudio's and librosa's.

    python -m benchmarks.mfcc [--turns=7]

All embedded development speech, utterance by utterance for the peers, as float32 waveforms in
memory; features are NumPy arrays in the end. All run in one process on the same cores and take
turns; a first pass of each compiles and does not count. The Kaldi kind is compared with
`torchaudio.compliance.kaldi.mfcc` and two of `compute_deltas`, the other kind with
`librosa.feature.mfcc` and two of `delta`. The largest differences are printed too.

Prints seconds for a minute of audio, lowest and median of the turns, and one JSON line: the peer's
median over ours.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import time

import numpy as np

from hubert_jax import host_memory
from hubert_jax.corpus.audio_files import read_waveform
from hubert_jax.frames import SAMPLE_RATE
from hubert_jax.units.mfcc import mfcc

ROOT = pathlib.Path(__file__).parents[1]
GOALS = {"mfcc": 8.0, "mfcc_librosa": 2.0}


def torchaudios(waveform: np.ndarray) -> np.ndarray:
    import torch
    import torchaudio

    features = [
        torchaudio.compliance.kaldi.mfcc(
            torch.from_numpy(waveform)[None], sample_frequency=SAMPLE_RATE, use_energy=False
        ).T
    ]
    for _ in range(2):
        features.append(torchaudio.functional.compute_deltas(features[-1]))
    return torch.cat(features).T.numpy()


def librosas(waveform: np.ndarray) -> np.ndarray:
    import librosa

    padded = np.pad(waveform, (2048 - 400) // 2)
    settings = dict(sr=SAMPLE_RATE, n_mfcc=13, hop_length=160, win_length=400, center=False)
    cepstra = librosa.feature.mfcc(y=padded, **settings)
    deltas = [librosa.feature.delta(cepstra, order=order, mode="nearest") for order in (1, 2)]
    return np.concatenate([cepstra, *deltas]).T


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=7, help="passes of each")
    arguments = parser.parse_args()
    host_memory.keep_freed_memory()  # as jobs do
    sys.path.insert(0, str(ROOT / "tests"))
    import oracle_imports

    oracle_imports.without_compiled_libraries()
    import torch
    import torchaudio.compliance.kaldi  # noqa: F401

    paths = sorted((ROOT / "examples/minilibri/dev-mini").rglob("*.opus"))
    audio = [read_waveform(path).astype(np.float32) / 32768 for path in paths]
    minutes = sum(map(len, audio)) / SAMPLE_RATE / 60
    print(
        f"{len(audio)} utterances, {minutes:.1f} minutes; {len(os.sched_getaffinity(0))} cores, "
        f"torch on {torch.get_num_threads()} threads"
    )
    passes = {
        "mfcc": lambda: [features for _, features in mfcc(enumerate(audio))],
        "torchaudio": lambda: [torchaudios(waveform) for waveform in audio],
        "mfcc_librosa": lambda: [
            features for _, features in mfcc(enumerate(audio), "mfcc_librosa")
        ],
        "librosa": lambda: [librosas(waveform) for waveform in audio],
    }
    peers = {"mfcc": "torchaudio", "mfcc_librosa": "librosa"}
    first = {name: run() for name, run in passes.items()}
    for name, peer in peers.items():
        pairs = zip(first[name], first[peer], strict=True)
        print(f"{name}: largest difference {max(np.abs(a - b).max() for a, b in pairs):.1e}")
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for turn in range(arguments.turns):
        for name in sorted(passes, reverse=bool(turn % 2)):
            started = time.perf_counter()
            passes[name]()
            seconds[name].append((time.perf_counter() - started) / minutes)
    print(f"{'s a minute of audio':14}{'lowest':>12}{'median':>9}")
    for name, values in seconds.items():
        print(f"{name:19}{min(values):12.5f}{statistics.median(values):9.5f}")
    result: dict = {"benchmark": "mfcc"}
    for name, peer in peers.items():
        ratio = statistics.median(seconds[peer]) / statistics.median(seconds[name])
        pairs = sorted(a / b for a, b in zip(seconds[peer], seconds[name], strict=True))
        result[name] = {
            "ratio": round(ratio, 2),
            "low": round(pairs[0], 2),
            "high": round(pairs[-1], 2),
            "goal": GOALS[name],
            "met": ratio >= GOALS[name],
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
