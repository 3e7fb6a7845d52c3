"""Hidden states of BASE's layer 6 over embedded speech: weights sent once, or with every batch.

    python -m benchmarks.layer_features [--pairs=5] [--seconds=100]

BASE with random weights, float32, on some of the embedded development speech as a prepared split.
Measured against what the label job did before: the weights are NumPy arrays that go into the
compiled function with every call, and a batch is prepared when the one before has come back. Both
run the same network on the same kinds of batches in one process and take turns; a first pass of
each compiles and does not count. Features reach the host in both.

Prints seconds per second of audio, the largest difference of
the features, and one JSON line: the ratio of our time to the other's. A CPU shares the memory of
the weights or copies it within a batch's noise, so about 1 is expected there.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from hubert_jax import prepare
from hubert_jax.convert import formats
from hubert_jax.convert.network import Network
from hubert_jax.data import records
from hubert_jax.data.inference_batches import padded_batches
from hubert_jax.frames import SAMPLE_RATE
from hubert_jax.model.architecture import Architecture, Execution
from hubert_jax.model.hubert import Hubert
from hubert_jax.model.kernels import choice
from hubert_jax.model.transformer import first_layers
from hubert_jax.networks import trained
from hubert_jax.units.features import hidden_states

GOAL = 1.0
LAYER = 6
FRAMES_PER_BATCH = 4096  # as the job
CORPUS = pathlib.Path(__file__).parents[1] / "examples" / "minilibri"

Pass = Callable[[], Iterator[tuple[str, np.ndarray]]]


def random_weights(architecture: Architecture) -> dict:
    """The encoder as initialised: host arrays."""
    model = Hubert(architecture, choice.choose(Execution(), architecture))
    silence = jnp.zeros((1, SAMPLE_RATE))
    params = jax.jit(lambda key: model.init(key, silence)["params"])(jax.random.key(0))
    return {"hubert": jax.tree.map(np.asarray, params)}


def weights_once(where: str, split: str, wanted: Callable[[str], bool]) -> Pass:
    """Ours."""
    network = trained.load(where)

    def run() -> Iterator[tuple[str, np.ndarray]]:
        for _, name, features in hidden_states(network, split, (LAYER,), wanted):
            yield name, features[LAYER]

    return run


def weights_with_every_batch(
    params: dict, architecture: Architecture, split: str, wanted: Callable[[str], bool]
) -> Pass:
    """As it was before."""
    weights = jax.tree.map(np.asarray, first_layers(params, LAYER)["hubert"])
    lower = dataclasses.replace(architecture, num_layers=LAYER)
    model = Hubert(lower, choice.choose(Execution(), lower))

    def run() -> Iterator[tuple[str, np.ndarray]]:
        # Compiled anew in each pass, as ours is.
        @jax.jit
        def states(params, waveform, num_samples):
            layers = model.apply({"params": params}, waveform, num_samples, collect=True)["layers"]
            return layers[jnp.array([LAYER])].astype(jnp.float32)

        utterances = (each for each in records.read_audio(split) if wanted(each.id))
        for batch in padded_batches(utterances, FRAMES_PER_BATCH, False):
            hidden = np.asarray(states(weights, batch.waveform, batch.num_samples))[0]
            for row, window in enumerate(batch.windows):
                yield window.utterance.id, hidden[row, window.own]

    return run


def measure(passes: dict[str, Pass], pairs: int) -> dict[str, list[float]]:
    """Seconds of every pass, in turns; which of them begins a turn alternates."""
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for pair in range(pairs):
        for name in sorted(passes, reverse=bool(pair % 2)):
            started = time.perf_counter()
            for _ in passes[name]():
                pass
            seconds[name].append(time.perf_counter() - started)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5, help="passes of each")
    parser.add_argument("--seconds", type=float, default=100.0, help="of speech, at least")
    arguments = parser.parse_args()
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
        chosen, audio_seconds = set(), 0.0
        for utterance in records.read_audio(split):
            if audio_seconds < arguments.seconds:
                chosen.add(utterance.id)
                audio_seconds += len(utterance.audio) / SAMPLE_RATE
        architecture = Architecture()
        params = random_weights(architecture)
        formats.write(f"orbax:{temporary}/network", Network(params, architecture))
        passes = {
            "once": weights_once(f"orbax:{temporary}/network", split, chosen.__contains__),
            "every batch": weights_with_every_batch(
                params, architecture, split, chosen.__contains__
            ),
        }
        first, second = (dict(run()) for run in passes.values())  # compiles
        assert first.keys() == second.keys() == chosen
        difference = max(float(np.abs(first[name] - second[name]).max()) for name in chosen)
        del first, second
        seconds = measure(passes, arguments.pairs)
    _report(seconds, audio_seconds, difference)


def _report(seconds: dict[str, list[float]], audio_seconds: float, difference: float) -> None:
    print(f"{jax.devices()[0].device_kind}: layer {LAYER} of BASE, {audio_seconds:.0f} s of speech")
    print(f"{'weights sent':14}{'s per audio-second':>20}{'lowest':>9}{'highest':>9}")
    for name, values in seconds.items():
        median, low, high = (
            value / audio_seconds for value in (statistics.median(values), min(values), max(values))
        )
        print(f"{name:14}{median:20.4f}{low:9.4f}{high:9.4f}")
    print(f"largest difference of the features: {difference:.1e}")
    ours, before = seconds["once"], seconds["every batch"]
    ratio = statistics.median(ours) / statistics.median(before)
    pairs = sorted(a / b for a, b in zip(ours, before, strict=True))
    summary = {
        "benchmark": "layer_features",
        "ratio": round(ratio, 3),
        "low": round(pairs[0], 3),
        "high": round(pairs[-1], 3),
        "goal": GOAL,
        "met": ratio <= GOAL,
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
