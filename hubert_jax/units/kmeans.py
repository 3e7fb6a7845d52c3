"""Codebooks: k-means on frames, and the codeword of every frame."""

import dataclasses
import hashlib
import io
import json
import os
import pathlib
import tokenize
import zipfile
import zlib
from typing import Any

import numpy as np

from hubert_jax import distributed, files
from hubert_jax.errors import InputError

_COLUMNS = 16  # of a sample, that are put in order at a time
# RuntimeError is what zipfile raises of damage that looks like encryption.
_DAMAGED = (
    *(zipfile.BadZipFile, RuntimeError, ValueError, OSError, EOFError, KeyError, TypeError),
    # Of what is no array, and of headers that NumPy parses.
    *(AttributeError, OverflowError, MemoryError, SyntaxError, tokenize.TokenError, zlib.error),
)
_CHUNK = 8192  # frames whose distances to all codewords are in memory at once
_HEADER_BYTES = 1_000  # of an array; NumPy takes half a minute for ten times as many


@dataclasses.dataclass(frozen=True)
class KMeansConfig:
    """How scikit-learn's MiniBatchKMeans runs; the defaults are the released recipe's."""

    n_init: int = 20  # starts of k-means++, the best of which is refined
    batch_frames: int = 10_000
    max_iter: int = 100  # passes over the frames at most; 2 or more
    max_no_improvement: int = 100  # batches without progress after which it stops

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise InputError(f"config.kmeans.{name}={value}: expected 1 or more")
        if self.max_iter == 1:  # scikit-learn fails if one batch holds all
            raise InputError("config.kmeans.max_iter=1: expected 2 or more")


@dataclasses.dataclass(frozen=True, eq=False)
class Codebook:
    """Centroids and where they come from."""

    centroids: np.ndarray  # float32 (K, D)
    feature: dict[str, Any]  # as `Feature.describe` gives it
    # Of the fit; None where another library's file does not tell.
    inertia: float | None  # mean squared distance of the frames to their codewords
    dead_codewords: int | None  # that no frame it was fitted on is nearest to
    seed: int | None
    fitted_frames: int | None
    origin: str = "fitted here"  # or the file that it was read from

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of feature and centroids."""
        described = json.dumps([self.feature, self.centroids.shape], sort_keys=True).encode()
        content = np.ascontiguousarray(self.centroids, "<f4").tobytes()
        return hashlib.sha256(described + content).hexdigest()

    def save(self, directory: str | os.PathLike) -> None:
        """Writes `codebook.npz`, then `codebook.json`, each atomically."""
        directory = pathlib.Path(directory)
        buffer = io.BytesIO()
        np.savez(buffer, centroids=self.centroids)
        files.write_bytes(directory / "codebook.npz", buffer.getvalue())
        described = {"format": 1, "num_classes": len(self.centroids), "digest": self.digest}
        described |= {name: value for name, value in vars(self).items() if name != "centroids"}
        files.write_json(directory / "codebook.json", described)

    @classmethod
    def load(cls, directory: str | os.PathLike) -> "Codebook":
        """Reads what `save` wrote; raises InputError if a file is missing, damaged or another's."""
        directory = pathlib.Path(directory)
        described = files.read_json(directory / "codebook.json", "codebook description")
        path = directory / "codebook.npz"
        try:
            with open(path, "rb") as file:
                if not zipfile.is_zipfile(file):  # NumPy would advise to load it unsafely
                    raise ValueError("no archive of NumPy")
            with np.load(path, max_header_size=_HEADER_BYTES) as arrays:
                centroids = arrays["centroids"]
            if centroids.ndim != 2 or centroids.dtype != np.float32 or not centroids.size:
                raise ValueError(f"centroids of shape {centroids.shape}, {centroids.dtype}")
            if not np.isfinite(centroids).all():
                raise ValueError("centroids that are NaN or infinite")
            codebook = cls(centroids, *(described[f.name] for f in dataclasses.fields(cls)[1:]))
            digest = described["digest"]
        except FileNotFoundError:
            raise InputError(f"{path}: codebook not found; run the label job again") from None
        except _DAMAGED as error:
            raise InputError(f"{path}: not a codebook ({error}); run the label job again") from None
        if codebook.digest != digest:
            raise InputError(
                f"{path}: found centroids with digest {codebook.digest[:12]}, codebook.json says "
                f"{str(digest)[:12]}; copy both files of one fit, or fit again"
            )
        return codebook


def is_sampled(utterance_id: str, fraction: float, seed: int) -> bool:
    """Whether an utterance is sampled, by its id alone; larger fractions contain smaller ones."""
    hashed = hashlib.sha256(f"{seed}:{utterance_id}".encode()).digest()
    return int.from_bytes(hashed[:8], "big") < fraction * 2.0**64


class FrameSample:
    """The `max_frames` frames with the smallest hash of (seed, utterance, frame), in its order.

    Independent of the order of adding. Memory is that of the sample and a few percent.
    """

    def __init__(self, max_frames: int, seed: int) -> None:
        self._max_frames, self._seed = max_frames, seed
        self._frames = np.zeros((0, 0), np.float32)
        self._keys = np.zeros(0, np.uint64)
        self._pending: list[tuple[np.ndarray, np.ndarray]] = []
        self._held = self._waiting = 0
        self._largest = np.uint64(2**64 - 1)

    def add(self, utterance_id: str, features: np.ndarray) -> None:
        """Adds an utterance's frames: float32, shape (T, D)."""
        keys = _frame_keys(utterance_id, len(features), self._seed)
        self._add(np.asarray(features, np.float32), keys)

    def gather(self, directory: pathlib.Path) -> None:
        """Adds the other processes' samples to the first one's, through files in `directory`."""
        self._merge()
        stem = directory / f".sample-{distributed.index()}"
        if not distributed.is_first():
            for suffix, rows in ((".frames", self._frames), (".keys", self._keys)):
                with files.writing_file(stem.with_suffix(suffix)) as path, path.open("wb") as file:
                    np.save(file, rows[: self._held])
        for other in distributed.gather(str(stem))[1:]:
            frames = np.load(f"{other}.frames", mmap_mode="r")
            keys = np.load(f"{other}.keys")
            for start in range(0, len(keys), _CHUNK):
                self._add(frames[start : start + _CHUNK], keys[start : start + _CHUNK])
            for suffix in (".frames", ".keys"):
                os.unlink(other + suffix)

    def frames(self) -> np.ndarray:
        """The sample, float32 (N, D), N <= max_frames. Raises InputError if nothing was added."""
        self._merge()
        if not self._held:
            raise InputError(
                "k-means: no utterance to fit on; raise the fraction of utterances or check the "
                "split"
            )
        order = np.argsort(self._keys[: self._held])
        frames = self._frames[: self._held]
        for first in range(0, frames.shape[1], _COLUMNS):  # a copy of some columns, not of all
            columns = slice(first, first + _COLUMNS)
            frames[:, columns] = frames[order, columns]
        self._keys[: self._held] = self._keys[: self._held][order]
        return frames

    def _add(self, frames: np.ndarray, keys: np.ndarray) -> None:
        kept = keys <= self._largest
        self._pending.append((frames[kept], keys[kept]))
        self._waiting += int(kept.sum())
        if self._waiting >= max(1024, self._max_frames // 50):
            self._merge()

    def _merge(self) -> None:
        if not self._pending:
            return
        frames, keys = map(np.concatenate, zip(*self._pending, strict=True))
        self._pending, self._waiting = [], 0
        if not self._held:
            # Pages that are not written yet cost no memory.
            self._frames = np.empty((self._max_frames, frames.shape[1]), np.float32)
            self._keys = np.empty(self._max_frames, np.uint64)
        room = min(self._max_frames - self._held, len(keys))
        self._frames[self._held : self._held + room] = frames[:room]
        self._keys[self._held : self._held + room] = keys[:room]
        self._held += room
        frames, keys = frames[room:], keys[room:]
        if len(keys):
            everyone = np.concatenate([self._keys[: self._held], keys])
            chosen = np.argpartition(everyone, self._held - 1)[: self._held]
            inside = np.zeros(len(everyone), bool)
            inside[chosen] = True
            free = np.flatnonzero(~inside[: self._held])
            coming = np.flatnonzero(inside[self._held :])
            self._frames[free], self._keys[free] = frames[coming], keys[coming]
        if 0 < self._held == self._max_frames:
            self._largest = self._keys[: self._held].max()


def _frame_keys(utterance_id: str, frames: int, seed: int) -> np.ndarray:
    """SplitMix64 of every frame's place: uint64 (frames,)."""
    start = hashlib.sha256(f"{seed}:{utterance_id}".encode()).digest()[8:16]
    place = np.arange(frames, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = place + np.uint64(int.from_bytes(start, "big"))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


def require_fittable(
    num_clusters: int, seed: int, fit_max_frames: int = 65_536, fit_fraction: float = 1.0
) -> None:
    """Raises InputError for a configuration's number of clusters, seed or sample out of range."""
    for key, value, holds, expected in (
        ("num_clusters", num_clusters, 1 <= num_clusters <= 65_536, "1 to 65,536"),
        ("seed", seed, 0 <= seed < 2**32, "0 to 4,294,967,295"),
        (
            "fit_max_frames",
            fit_max_frames,
            fit_max_frames >= num_clusters,
            f"at least num_clusters={num_clusters}",
        ),
        ("fit_fraction", fit_fraction, 0 < fit_fraction <= 1, "a fraction of the split, in (0, 1]"),
    ):
        if not holds:
            raise InputError(f"config.{key}={value}: expected {expected}")


def fit(
    features: np.ndarray,
    num_clusters: int,
    seed: int,
    feature: dict[str, Any],
    settings: KMeansConfig,
) -> Codebook:
    """A codebook of `num_clusters` codewords, fitted on float32 (N, D) features.

    Raises InputError for a wrong shape, NaN or infinite features, fewer frames than clusters, and
    as `require_fittable`.
    """
    # Read at import; OpenMP's threads spin between batches otherwise, slow on shared cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from sklearn.cluster import MiniBatchKMeans

    features = _checked(features)
    require_fittable(num_clusters, seed)
    if len(features) < num_clusters:
        raise InputError(
            f"num_clusters={num_clusters}: found {len(features)} frames to fit on, expected at "
            "least as many as clusters; give more speech, a larger share, or fewer clusters"
        )
    model = MiniBatchKMeans(
        n_clusters=num_clusters,
        init="k-means++",
        n_init=settings.n_init,
        batch_size=settings.batch_frames,
        max_iter=settings.max_iter,
        max_no_improvement=settings.max_no_improvement,
        tol=0.0,
        reassignment_ratio=0.0,
        random_state=seed,
        compute_labels=False,
    ).fit(features)
    centroids = np.ascontiguousarray(model.cluster_centers_, np.float32)
    labels, squared = _nearest(centroids, features), 0.0
    for start in range(0, len(features), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        squared += float(np.square(features[chunk] - centroids[labels[chunk]]).sum(dtype=float))
    dead = num_clusters - len(np.unique(labels))
    return Codebook(centroids, feature, squared / len(features), dead, seed, len(features))


def assign(codebook: Codebook, features: np.ndarray) -> np.ndarray:
    """The first of the nearest codewords of every frame of float32 (T, D): uint16, (T,).

    Raises InputError for a wrong shape or number of dimensions, NaN or infinite features.
    """
    features = _checked(features)
    expected = codebook.centroids.shape[1]
    if features.shape[1] != expected:
        raise InputError(
            f"k-means: found features of {features.shape[1]} dimensions, the codebook has "
            f"{expected}; use the codebook of this feature ({codebook.feature})"
        )
    return _nearest(codebook.centroids, features)


def _nearest(centroids: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Exact nearest centroids, uint16 (T,), by |x - c|^2 - |x|^2 = |c|^2 - 2 x c in float32.

    Where rounding could decide, float64 does: labels depend neither on the machine nor the batch.
    """
    exact = centroids.astype(np.float64)
    exact_squares = np.square(exact).sum(axis=1)
    squares, doubled = exact_squares.astype(np.float32), -2.0 * centroids.T
    rounding = 2.0 * (centroids.shape[1] + 2) * np.finfo(np.float32).eps
    longest = float(np.sqrt(exact_squares.max()))
    labels = np.empty(len(features), np.uint16)
    for start in range(0, len(features), _CHUNK):
        frames = features[start : start + _CHUNK]
        distances = frames @ doubled
        distances += squares
        best = distances.argmin(axis=1)
        rows = np.arange(len(frames))
        smallest = distances[rows, best]
        distances[rows, best] = np.inf
        lengths = np.sqrt(np.square(frames).sum(axis=1))
        bound = rounding * longest * (2.0 * lengths + longest)
        close = np.flatnonzero(distances.min(axis=1) - smallest <= bound)
        if len(close):
            again = frames[close].astype(np.float64) @ (-2.0 * exact.T) + exact_squares
            best[close] = again.argmin(axis=1)
        labels[start : start + len(frames)] = best
    return labels


def _checked(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features)
    if features.ndim != 2 or not np.issubdtype(features.dtype, np.floating):
        raise InputError(
            f"k-means: found features of shape {features.shape} and type {features.dtype}, "
            "expected floats of shape (frames, dimensions)"
        )
    features = np.ascontiguousarray(features, np.float32)
    for start in range(0, len(features), _CHUNK):  # a mask of all would be a quarter of them
        finite = np.isfinite(features[start : start + _CHUNK]).all(axis=1)
        if not finite.all():
            raise InputError(
                f"k-means: frame {start + finite.argmin()} has NaN or infinite features; check the "
                "checkpoint that they come from, or the waveform's range"
            )
    return features
