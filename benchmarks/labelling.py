"""Labelling by layer 6 of BASE, beside a whole forward pass and beside transformers one by one.

    python -m benchmarks.labelling [--turns=5] [--seconds=100]

BASE with random weights, float32, on some of the embedded development speech as a prepared split,
500 codewords that are frames of layer 6. Ours is what the label job does: batches of the network's
lower half, the nearest codeword of every frame. It is measured against our forward pass through all
twelve layers, without codewords, and against transformers' HubertModel with the same weights, one
utterance at a time, hidden states and nearest codewords of layer 6: the whole network, as its users
run it, and cut to six layers. All run in one process and take turns; a first pass of each compiles
and does not count. Needs requirements-parity.txt.

Prints seconds for a second of audio, how many labels are the same, and three JSON lines: our time
over our whole forward pass, and the peers' times over ours.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.layer_features import CORPUS, LAYER, random_weights
from hubert_jax import host_memory, prepare
from hubert_jax.convert import formats
from hubert_jax.convert.network import Network
from hubert_jax.data import records
from hubert_jax.data.waveform import to_float
from hubert_jax.frames import SAMPLE_RATE
from hubert_jax.model.architecture import Architecture
from hubert_jax.networks import forward, trained
from hubert_jax.units import kmeans
from hubert_jax.units.encoding import Labeller
from hubert_jax.units.features import Feature, hidden_states

CODEWORDS = 500

Labels = dict[str, np.ndarray]


def transformers_labels(
    folder: str, layers: int, centroids: np.ndarray, audio: Labels
) -> Callable[[], Labels]:
    """Labels by transformers with so many layers."""
    sys.path.insert(0, str(CORPUS.parents[1] / "tests"))
    from oracle_imports import without_compiled_libraries

    without_compiled_libraries()
    import torch
    from transformers import HubertModel

    model = HubertModel.from_pretrained(folder).eval()
    model.encoder.layers = model.encoder.layers[:layers]
    codewords = torch.from_numpy(centroids)
    squares = codewords.square().sum(dim=1)

    def run() -> Labels:
        found = {}
        with torch.inference_mode():
            for name, waveform in audio.items():
                batch = torch.from_numpy(waveform)[None]
                states = model(batch, output_hidden_states=True).hidden_states[LAYER][0]
                found[name] = (squares - 2 * states @ codewords.T).argmin(dim=1).numpy()
        return found

    return run


def measured(passes: dict[str, Callable[[], Any]], turns: int) -> dict[str, list[float]]:
    """Seconds of every pass, in turns; which of them begins a turn alternates."""
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for turn in range(turns):
        for name in list(passes)[:: -1 if turn % 2 else 1]:
            started = time.perf_counter()
            passes[name]()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def claim(name: str, over: list[float], under: list[float], goal: float, most: bool) -> None:
    ratio = statistics.median(over) / statistics.median(under)
    pairs = [a / b for a, b in zip(over, under, strict=True)]
    figures = {"ratio": ratio, "low": min(pairs), "high": max(pairs)}
    rounded = {key: round(value, 3) for key, value in figures.items()}
    met = ratio <= goal if most else ratio >= goal
    print(json.dumps({"benchmark": name, **rounded, "goal": goal, "met": met}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=5, help="passes of each")
    parser.add_argument("--seconds", type=float, default=100.0, help="of speech, at least")
    arguments = parser.parse_args()
    host_memory.keep_freed_memory()  # as jobs do
    with tempfile.TemporaryDirectory() as temporary:
        # Passes trace their functions anew; what XLA made of them stays.
        jax.config.update("jax_compilation_cache_dir", f"{temporary}/compiled")
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        prepare.run(
            prepare.PrepareConfig(
                workdir=temporary, corpus=str(CORPUS), splits=("speech=dev-mini",)
            )
        )
        split = f"{temporary}/prepare/speech"
        audio: Labels = {}
        seconds = 0.0
        for utterance in records.read_audio(split):
            if seconds < arguments.seconds:
                audio[utterance.id] = to_float(utterance.audio)
                seconds += len(utterance.audio) / SAMPLE_RATE
        architecture = Architecture()
        network = Network(random_weights(architecture), architecture)
        formats.write(f"hf:{temporary}/network", network)
        ours = trained.load(f"hf:{temporary}/network")
        of_split = split, (LAYER,), audio.__contains__
        frames = np.concatenate([each[LAYER] for *_, each in hidden_states(ours, *of_split)])
        chosen = np.random.default_rng(0).choice(len(frames), CODEWORDS, replace=False)
        codebook = kmeans.Codebook(frames[chosen], {}, None, None, None, None)
        labeller = Labeller([Feature("layer", ours, LAYER)], [codebook])

        def labelled() -> Labels:
            groups = forward.utterances(split, audio.__contains__)
            return {utterance.id: units for _, utterance, (units,) in labeller(groups)}

        def whole_pass() -> None:
            for _ in hidden_states(ours, split, (architecture.num_layers,), audio.__contains__):
                pass

        folder, centroids = f"{temporary}/network", codebook.centroids
        passes: dict[str, Callable[[], Any]] = {
            "labels": labelled,
            "whole forward pass": whole_pass,
            "transformers": transformers_labels(folder, architecture.num_layers, centroids, audio),
            "transformers, 6 layers": transformers_labels(folder, LAYER, centroids, audio),
        }
        found = {name: run() for name, run in passes.items()}  # compiles
        took = measured(passes, arguments.turns)
    print(f"{jax.devices()[0].device_kind}: {len(audio)} utterances, {seconds:.0f} s of speech")
    print(f"{'s a second of audio':24}{'median':>9}{'lowest':>9}{'highest':>9}")
    for name, values in took.items():
        median, low, high = (
            value / seconds for value in (statistics.median(values), min(values), max(values))
        )
        print(f"{name:24}{median:9.4f}{low:9.4f}{high:9.4f}")
    for name in ("transformers", "transformers, 6 layers"):
        pairs = [(found["labels"][key], found[name][key]) for key in audio]
        same = sum((a == b).sum() for a, b in pairs) / sum(len(a) for a, _ in pairs)
        print(f"labels as by {name}: {same:.3%}")
    half, whole, peer, shorter = took.values()
    claim("labelling_beside_whole_forward", half, whole, 0.55, most=True)
    claim("labelling_beside_transformers", peer, half, 3.0, most=False)
    claim("labelling_beside_transformers_of_six_layers", shorter, half, 3.0, most=False)


if __name__ == "__main__":
    main()
