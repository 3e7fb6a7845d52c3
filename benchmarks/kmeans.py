"""k-means of MFCC beside scikit-learn's MiniBatchKMeans with the recipe's settings, and faiss's.

    python -m benchmarks.kmeans [--frames=400000] [--codewords=100,500] [--seeds=1]

Frames are those of the embedded training speech, drawn as the label job does; the embedded
development speech is held out. scikit-learn fits with 20 starts; ours with as many, by Lloyd's
passes and by mini-batches; faiss, where it is installed, with as many passes as our Lloyd's had.
Assignment is of the frames fitted on, all by the same centroids. A first call of each compiles and
does not count.

Prints seconds and inertia a frame, and a JSON line for each claim: our inertia over
scikit-learn's, on held-out frames too, and the fastest peer's time over ours.
"""

import argparse
import contextlib
import io
import json
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from hubert_jax import host_memory
from hubert_jax.corpus.audio_files import read_waveform
from hubert_jax.units import kmeans
from hubert_jax.units.clustering import KMeansConfig
from hubert_jax.units.mfcc import mfcc

ROOT = pathlib.Path(__file__).parents[1] / "examples/minilibri"


def features(split: str) -> dict[str, np.ndarray]:
    paths = sorted((ROOT / split).rglob("*.opus"))
    waveforms = ((path.stem, read_waveform(path).astype(np.float32) / 32768) for path in paths)
    return dict(mfcc(waveforms))


def sample_of(found: dict[str, np.ndarray], frames: int, seed: int) -> kmeans.FrameSample:
    sample = kmeans.FrameSample(frames, seed)
    for name, values in found.items():
        sample.add(name, values)
    return sample


def inertia(centroids: np.ndarray, frames: np.ndarray) -> float:
    labels = kmeans.assign(codebook(centroids), frames)
    return float(np.square(frames - centroids[labels]).sum(axis=1).mean(dtype=float))


def codebook(centroids: np.ndarray) -> kmeans.Codebook:
    return kmeans.Codebook(centroids, {}, None, None, None, None)


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def claim(name: str, ratios: list[float], goal: float, most: bool) -> None:
    middle = statistics.median(ratios)
    met = middle <= goal if most else middle >= goal
    figures = {"ratio": middle, "low": min(ratios), "high": max(ratios)}
    rounded = {key: round(value, 4) for key, value in figures.items()}
    print(json.dumps({"benchmark": name, **rounded, "goal": goal, "met": met}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=400_000, help="to fit on, at most")
    parser.add_argument("--codewords", default="100,500", help="sizes of codebooks")
    parser.add_argument("--seeds", type=int, default=1, help="fits of each kind")
    arguments = parser.parse_args()
    host_memory.keep_freed_memory()  # as jobs do
    train = features("train-clean-5")
    held_out = np.concatenate(list(features("dev-mini").values()))
    for k in map(int, arguments.codewords.split(",")):
        fits: dict[str, list[tuple[float, float, float]]] = {}

        def note(name: str, seconds: float, centroids: np.ndarray, frames: np.ndarray) -> None:
            found = seconds, inertia(centroids, frames), inertia(centroids, held_out)
            fits.setdefault(name, []).append(found)  # noqa: B023
            print(f"K = {k:4} {name:20}{found[0]:9.2f} s{found[1]:10.2f}{found[2]:10.2f}")  # noqa: B023

        for seed in range(arguments.seeds):
            for method in ("lloyd", "minibatch", "scikit-learn"):
                sample = sample_of(train, arguments.frames, seed)
                if method != "scikit-learn":
                    kmeans.fit(sample, k, seed, {}, KMeansConfig(method, max_iter=2))
                said = io.StringIO()
                with contextlib.redirect_stdout(said):
                    seconds, found = timed(
                        lambda: kmeans.fit(sample, k, seed, {}, KMeansConfig(method))  # noqa: B023
                    )
                frames = sample.frames()[0]
                note(method, seconds, found.centroids, frames)
                if method == "lloyd":
                    ours, passes = found.centroids, said.getvalue().count("pass")
            with contextlib.suppress(ImportError):
                import faiss

                model = faiss.Kmeans(frames.shape[1], k, niter=passes, seed=seed)
                model.cp.max_points_per_centroid = len(frames)
                seconds, _ = timed(lambda: model.train(frames))  # noqa: B023
                note("faiss", seconds, model.centroids, frames)
        columns = {name: list(zip(*rows, strict=True)) for name, rows in fits.items()}
        for i, where in ((1, "fitted"), (2, "held_out")):
            for method in ("lloyd", "minibatch"):
                pairs = zip(columns[method][i], columns["scikit-learn"][i], strict=True)
                claim(f"kmeans_{k}_{method}_{where}", [a / b for a, b in pairs], 1.0, most=True)
        pairs = zip(columns["scikit-learn"][0], columns["lloyd"][0], strict=True)
        claim(f"kmeans_{k}_fit_beside_scikit_learn", [a / b for a, b in pairs], 1.0, most=False)
        if "faiss" in columns:
            pairs = zip(columns["faiss"][0], columns["lloyd"][0], strict=True)
            claim(f"kmeans_{k}_fit_beside_faiss", [a / b for a, b in pairs], 1.5, most=False)
        assignments(k, ours, frames)


def assignments(k: int, centroids: np.ndarray, frames: np.ndarray) -> None:
    from sklearn.cluster import KMeans

    model = KMeans(k, init=centroids, n_init=1, max_iter=1).fit(frames[: 20 * k])
    model.cluster_centers_ = centroids
    passes = {
        "ours": lambda: kmeans.assign(codebook(centroids), frames),
        "scikit-learn": lambda: model.predict(frames),
    }
    with contextlib.suppress(ImportError):
        import faiss

        index = faiss.IndexFlatL2(frames.shape[1])
        index.add(centroids)
        passes["faiss"] = lambda: index.search(frames, 1)[1][:, 0]
    labels = {name: run() for name, run in passes.items()}
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for turn in range(5):
        for name in sorted(passes, reverse=bool(turn % 2)):
            seconds[name].append(timed(passes[name])[0])
    for name, values in seconds.items():
        same = (labels[name] == labels["ours"]).mean()
        print(f"K = {k:4} assign {name:13}{statistics.median(values):9.3f} s, {same:.4%} as ours")
    peer = min(seconds.keys() - {"ours"}, key=lambda name: statistics.median(seconds[name]))
    ratios = [a / b for a, b in zip(seconds[peer], seconds["ours"], strict=True)]
    claim(f"kmeans_{k}_assign_beside_{peer}", ratios, 2.0, most=False)


if __name__ == "__main__":
    main()
