"""k-means beside scikit-learn's and faiss's: seconds, inertia, assignment, growth.

    python -m benchmarks.kmeans [--feature=mfcc|layer] [--frames=400000] [--codewords=100,500]
        [--seeds=1]

Frames are those of the embedded training speech, drawn as the label job does, of MFCC or of layer 6
of BASE with random weights (768 numbers; take 30,000); of the embedded development speech, as many
at most are held out. scikit-learn fits by its MiniBatchKMeans with the recipe's settings and 20
starts, and by its KMeans; ours with 20 starts, by Lloyd's passes and by mini-batches. KMeans and
faiss, where it is installed, have one start and as many passes as our Lloyd's had. Assignment is of
the frames fitted on, all by the same centroids. A first call of each compiles and does not count.

Prints seconds and inertia a frame; rates of assignment, beside that of NumPy's product of two
matrices of 2,048 x 2,048, which takes turns with them; how they grow with frames, codewords and
dimensions; and a JSON line for each claim: our inertia over the others', on held-out frames too,
and their time over ours.
"""

import argparse
import contextlib
import io
import json
import pathlib
import statistics
import tempfile
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
_SQUARE = np.random.default_rng(0).normal(size=(2_048, 2_048)).astype(np.float32)


def of_mfcc(split: str, frames: int) -> dict[str, np.ndarray]:
    paths = sorted((ROOT / split).rglob("*.opus"))
    waveforms = ((path.stem, read_waveform(path).astype(np.float32) / 32768) for path in paths)
    return dict(mfcc(waveforms))


def of_layer(split: str, frames: int) -> dict[str, np.ndarray]:
    """As many frames at least, where there are so many."""
    from benchmarks.layer_features import LAYER, random_weights
    from hubert_jax import prepare
    from hubert_jax.convert import formats
    from hubert_jax.convert.network import Network
    from hubert_jax.data import manifests
    from hubert_jax.data.index import read_index
    from hubert_jax.frames import HOP
    from hubert_jax.model.architecture import Architecture
    from hubert_jax.networks import trained
    from hubert_jax.units.features import hidden_states

    with tempfile.TemporaryDirectory() as folder:
        asked = prepare.PrepareConfig(folder, corpus=str(ROOT), splits=(f"speech={split}",))
        prepare.run(asked)
        speech = f"{folder}/prepare/speech"
        index = read_index(speech, manifests.read_manifest(speech))
        enough = int(np.searchsorted(np.cumsum(index.samples) // HOP, frames)) + 1
        network = Network(random_weights(Architecture()), Architecture())
        formats.write(f"orbax:{folder}/network", network)
        chosen = set(index.ids[:enough]).__contains__
        states = hidden_states(trained.load(f"orbax:{folder}/network"), speech, (LAYER,), chosen)
        return {name: np.array(of[LAYER]) for _, name, of in states}


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
    parser.add_argument("--feature", choices=("mfcc", "layer"), default="mfcc")
    parser.add_argument("--frames", type=int, default=400_000, help="to fit on, at most")
    parser.add_argument("--codewords", default="100,500", help="sizes of codebooks")
    parser.add_argument("--seeds", type=int, default=1, help="fits of each kind")
    arguments = parser.parse_args()
    host_memory.keep_freed_memory()  # as jobs do
    features = of_mfcc if arguments.feature == "mfcc" else of_layer
    train = features("train-clean-5", arguments.frames)
    held_out = np.concatenate(list(features("dev-mini", arguments.frames // 5).values()))
    for k in map(int, arguments.codewords.split(",")):
        name = f"kmeans_{arguments.feature}_{k}"
        centroids, frames = fits(name, k, train, held_out, arguments.frames, arguments.seeds)
        assignments(name, centroids, frames)
    growth()


def matrix_product() -> None:
    """What a machine's ceiling is taken from: float32, on all cores."""
    _SQUARE @ _SQUARE


def fits(
    name: str,
    k: int,
    train: dict[str, np.ndarray],
    held_out: np.ndarray,
    most: int,
    seeds: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The last of our centroids, and the frames that they were fitted on."""
    found: dict[str, list[tuple[float, float, float]]] = {}

    def note(method: str, seconds: float, centroids: np.ndarray) -> None:
        of = seconds, inertia(centroids, frames), inertia(centroids, held_out)
        found.setdefault(method, []).append(of)
        print(f"K = {k:4} {method:20}{of[0]:9.2f} s{of[1]:12.4f}{of[2]:12.4f}", flush=True)

    for seed in range(seeds):
        for method in ("lloyd", "minibatch", "scikit-learn"):
            sample = sample_of(train, most, seed)
            frames = sample.frames()[0]
            if method != "scikit-learn":
                kmeans.fit(sample, k, seed, {}, KMeansConfig(method, max_iter=2))
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                settings = KMeansConfig(method)
                seconds, codebook = timed(lambda: kmeans.fit(sample, k, seed, {}, settings))  # noqa: B023
            note(method, seconds, codebook.centroids)
            if method == "lloyd":
                ours, passes = codebook.centroids, said.getvalue().count("pass")
        print(f"{passes} passes")
        from sklearn.cluster import KMeans

        lloyds = KMeans(k, n_init=1, max_iter=passes, tol=0.0, random_state=seed)
        note("KMeans", timed(lambda: lloyds.fit(frames))[0], lloyds.cluster_centers_)  # noqa: B023
        with contextlib.suppress(ImportError):
            import faiss

            model = faiss.Kmeans(frames.shape[1], k, niter=passes, seed=seed)
            model.cp.max_points_per_centroid = len(frames)
            note("faiss", timed(lambda: model.train(frames))[0], model.centroids)  # noqa: B023
    columns = {method: list(zip(*rows, strict=True)) for method, rows in found.items()}

    def compare(what: str, one: str, other: str, column: int, goal: float, most: bool) -> None:
        pairs = zip(columns[one][column], columns[other][column], strict=True)
        claim(f"{name}_{what}", [a / b for a, b in pairs], goal, most)

    for column, where in ((1, "fitted"), (2, "held_out")):
        for method in ("lloyd", "minibatch"):
            compare(f"{method}_{where}", method, "scikit-learn", column, 1.0, True)
    for peer, goal in (("scikit-learn", 1.0), ("KMeans", 1.0), ("faiss", 1.5)):
        if peer in columns:
            compare(f"fit_beside_{peer}", peer, "lloyd", 0, goal, False)
            compare(f"inertia_beside_{peer}", "lloyd", peer, 1, 1.0, True)
    return ours, frames


def assignments(name: str, centroids: np.ndarray, frames: np.ndarray) -> None:
    from sklearn.cluster import KMeans

    k, dim = centroids.shape
    model = KMeans(k, init=centroids, n_init=1, max_iter=1).fit(frames[: 20 * k])
    model.cluster_centers_ = centroids
    passes = {
        "ours": lambda: kmeans.assign(codebook(centroids), frames),
        "scikit-learn": lambda: model.predict(frames),
    }
    with contextlib.suppress(ImportError):
        import faiss

        index = faiss.IndexFlatL2(dim)
        index.add(centroids)
        passes["faiss"] = lambda: index.search(frames, 1)[1][:, 0]
    labels = {method: run() for method, run in passes.items()}
    passes["product"] = matrix_product
    seconds: dict[str, list[float]] = {method: [] for method in passes}
    for turn in range(7):
        for method in sorted(passes, reverse=bool(turn % 2)):
            seconds[method].append(timed(passes[method])[0])
    ceiling = 2e-9 * len(_SQUARE) ** 3 / statistics.median(seconds.pop("product"))
    for method, values in seconds.items():
        same = (labels[method] == labels["ours"]).mean()
        rate = 2e-9 * len(frames) * k * dim / statistics.median(values)
        print(
            f"K = {k:4} assign {method:13}{statistics.median(values):9.4f} s{rate:7.0f} GFLOP/s, "
            f"{rate / ceiling:.0%} of the product's {ceiling:.0f}; {same:.4%} as ours"
        )
    peer = min(seconds.keys() - {"ours"}, key=lambda method: statistics.median(seconds[method]))
    ratios = [a / b for a, b in zip(seconds[peer], seconds["ours"], strict=True)]
    claim(f"{name}_assign_beside_{peer}", ratios, 2.0, most=False)


def growth() -> None:
    """Prints how long assignment and a pass of Lloyd's take of normal frames."""
    header = ("frames", 9), ("codewords", 11), ("numbers", 9), ("assign, s", 11), ("of product", 12)
    print("".join(f"{title:>{width}}" for title, width in (*header, ("a pass, s", 11))))
    random = np.random.default_rng(0)
    sizes = [(n, 500, 39) for n in (50_000, 100_000, 200_000, 400_000)]
    sizes += [(100_000, k, 39) for k in (100, 1_000, 2_000)]
    sizes += [(25_000, 500, dim) for dim in (39, 192, 768)]
    for count, k, dim in sizes:
        frames = random.normal(size=(count, dim)).astype(np.float32)
        one = codebook(frames[:k].copy())
        kmeans.assign(one, frames)
        assign = min(timed(lambda: kmeans.assign(one, frames))[0] for _ in range(3))  # noqa: B023
        fit = [0.0, 0.0]
        for i, passes in enumerate((3, 8)):
            settings = KMeansConfig(n_init=1, max_iter=passes, tolerance=0.0)
            sample = sample_of({"": frames}, count, 0)
            with contextlib.redirect_stdout(io.StringIO()):
                kmeans.fit(sample, k, 0, {}, settings)
                fit[i] = timed(lambda: kmeans.fit(sample, k, 0, {}, settings))[0]  # noqa: B023
        square = min(timed(matrix_product)[0] for _ in range(3))
        share = count * k * dim / assign / (len(_SQUARE) ** 3 / square)
        print(
            f"{count:9,}{k:11,}{dim:9}{assign:11.4f}{share:12.0%}{(fit[1] - fit[0]) / 5:11.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
