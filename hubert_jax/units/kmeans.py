"""Codebooks: k-means on frames, and the codeword of every frame.

Settings are the released recipe's: scikit-learn's MiniBatchKMeans, k-means++ started 20 times,
batches of 10,000 frames, no tolerance, no reassignment of small clusters.
"""

import dataclasses
import hashlib
import io
import json
import os
import pathlib
import zipfile
from typing import Any

import numpy as np

from hubert_jax import files
from hubert_jax.errors import InputError

_COLUMNS = 16  # of a sample, that are put in order at a time
_CHUNK = 8192  # frames whose distances to all codewords are in memory at once


@dataclasses.dataclass(frozen=True)
class KMeansConfig:
    """How k-means runs; the defaults are the released recipe's."""

    n_init: int = 20  # starts of k-means++, the best of which is refined
    batch_frames: int = 10_000
    max_iter: int = 100  # passes over the frames at most
    max_no_improvement: int = 100  # batches without progress after which it stops

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise InputError(
                    f"config.kmeans.{field.name}={getattr(self, field.name)}: expected 1 or more"
                )


@dataclasses.dataclass(frozen=True, eq=False)
class Codebook:
    """Centroids and where they come from.

    Attributes:
      centroids: float32, shape (K, D).
      feature: what was clustered: {"kind": "mfcc"}, or {"kind": "layer", "layer": l,
        "checkpoint": identity}; labels of other features are not to be made with it.
      inertia: mean squared distance of a fitted frame to its codeword.
      dead_codewords: codewords that no fitted frame is nearest to.
      seed: of the k-means.
      fitted_frames: number of frames it was fitted on.
    """

    centroids: np.ndarray
    feature: dict[str, Any]
    inertia: float
    dead_codewords: int
    seed: int
    fitted_frames: int

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the feature's description and of the centroids, bit for bit."""
        described = json.dumps([self.feature, self.centroids.shape], sort_keys=True).encode()
        content = np.ascontiguousarray(self.centroids, "<f4").tobytes()
        return hashlib.sha256(described + content).hexdigest()

    def save(self, directory: str | os.PathLike) -> None:
        """Writes `codebook.npz`, then `codebook.json`, each atomically, into `directory`."""
        directory = pathlib.Path(directory)
        buffer = io.BytesIO()
        np.savez(buffer, centroids=self.centroids)
        files.write_bytes(directory / "codebook.npz", buffer.getvalue())
        described = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "centroids"
        }
        files.write_json(
            directory / "codebook.json",
            {"format": 1, "num_classes": len(self.centroids), "digest": self.digest} | described,
        )

    @classmethod
    def load(cls, directory: str | os.PathLike) -> "Codebook":
        """Reads what `save` wrote.

        Raises:
          InputError: a file is missing or damaged, or the two do not belong together.
        """
        directory = pathlib.Path(directory)
        described = files.read_json(directory / "codebook.json", "codebook description")
        path = directory / "codebook.npz"
        try:
            with np.load(path) as arrays:
                centroids = arrays["centroids"]
            codebook = cls(centroids, *(described[f.name] for f in dataclasses.fields(cls)[1:]))
            digest = described["digest"]
        except FileNotFoundError:
            raise InputError(f"{path}: codebook not found; run the label job again") from None
        except (
            # What zipfile raises of damage that looks like encryption or another compression.
            *(zipfile.BadZipFile, RuntimeError, NotImplementedError),
            *(ValueError, OSError, EOFError, KeyError, TypeError),
        ) as error:
            raise InputError(f"{path}: not a codebook ({error}); run the label job again") from None
        if codebook.digest != digest:
            raise InputError(
                f"{path}: found centroids with digest {codebook.digest[:12]}, codebook.json says "
                f"{str(digest)[:12]}; copy both files of one fit, or fit again"
            )
        return codebook


def is_sampled(utterance_id: str, share: float, seed: int) -> bool:
    """Whether an utterance is in the sample of a share of all utterances.

    A function of the id and the seed alone, so it needs no list of the corpus, is the same on
    every host and does not depend on the order of shards; a larger share contains a smaller one.
    """
    hashed = hashlib.sha256(f"{seed}:{utterance_id}".encode()).digest()
    return int.from_bytes(hashed[:8], "big") < share * 2.0**64


def sufficient_share(share: float, max_frames: int, frames: int, utterances: int) -> float:
    """The share of utterances to read where `max_frames` of a split's frames are wanted.

    Args:
      share: of the utterances, at most.
      max_frames: frames wanted, at most.
      frames, utterances: the split's.

    Returns:
      At most `share`; about a quarter more frames than wanted and 20 utterances more, so that
      chance does not leave too few.
    """
    return min(share, 1.25 * max_frames / max(frames, 1) + 20 / max(utterances, 1))


class FrameSample:
    """The `max_frames` frames with the smallest hash of (seed, utterance, frame).

    The same frames whatever the order of adding, and in the same order: so hosts and orders of
    shards do not matter. Frames are kept in place; memory is that of the sample and a few percent.
    """

    def __init__(self, max_frames: int, seed: int) -> None:
        if max_frames < 1:
            raise InputError(f"fit_max_frames={max_frames}: expected a positive number of frames")
        self._max_frames = max_frames
        self._seed = seed
        self._frames = np.zeros((0, 0), np.float32)
        self._keys = np.zeros(0, np.uint64)
        self._pending: list[tuple[np.ndarray, np.ndarray]] = []
        self._held = self._waiting = self.seen = 0
        self._largest = np.uint64(2**64 - 1)

    def add(self, utterance_id: str, features: np.ndarray) -> None:
        """Adds an utterance's frames: float32, shape (T, D)."""
        keys = _frame_keys(utterance_id, len(features), self._seed)
        self.seen += len(features)
        kept = keys <= self._largest
        self._pending.append((np.asarray(features, np.float32)[kept], keys[kept]))
        self._waiting += int(kept.sum())
        if self._waiting >= max(1024, self._max_frames // 50):
            self._merge()

    def frames(self) -> np.ndarray:
        """The sample by hash: float32, shape (N, D), N <= max_frames.

        Raises:
          InputError: nothing was added.
        """
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

    def _merge(self) -> None:
        """Puts waiting frames into the sample, in place of those with the largest keys."""
        if not self._pending:
            return
        frames = np.concatenate([frames for frames, _ in self._pending])
        keys = np.concatenate([keys for _, keys in self._pending])
        self._pending, self._waiting = [], 0
        if not self._held:
            # All at once: pages that are not written yet cost no memory.
            self._frames = np.empty((self._max_frames, frames.shape[1]), np.float32)
            self._keys = np.empty(self._max_frames, np.uint64)
        room = min(self._max_frames - self._held, len(keys))
        if room:
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
        if self._held == self._max_frames:
            self._largest = self._keys[: self._held].max()


def _frame_keys(utterance_id: str, frames: int, seed: int) -> np.ndarray:
    """64 random-looking bits for every frame, uint64 (frames,): SplitMix64 of its place."""
    start = hashlib.sha256(f"{seed}:{utterance_id}".encode()).digest()[8:16]
    place = np.arange(frames, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = place + np.uint64(int.from_bytes(start, "big"))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


def require_fittable(num_clusters: int, seed: int) -> None:
    """Raises InputError for a number of clusters or a seed that no codebook can be fitted with."""
    if not 1 <= num_clusters <= 65_536:
        raise InputError(f"num_clusters={num_clusters}: expected 1 to 65,536")
    if not 0 <= seed < 2**32:
        raise InputError(f"config.seed={seed}: expected 0 to 4,294,967,295")


def fit(
    features: np.ndarray,
    num_clusters: int,
    seed: int,
    feature: dict[str, Any],
    settings: KMeansConfig | None = None,
) -> Codebook:
    """Fits a codebook.

    Args:
      features: float32, shape (N, D).
      num_clusters: K, at most 65,536 (labels are 16-bit).
      seed: of the starts and the batches; same seed and frames, same codebook.
      feature: what the features are; kept in the codebook.
      settings: how k-means runs; the recipe's settings when left out.

    Raises:
      InputError: wrong shape, NaN or infinite features, fewer frames than clusters.
    """
    # By default OpenMP's threads spin between batches, which costs twice the time and more on
    # cores that other processes use as well. Read when scikit-learn is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from sklearn.cluster import MiniBatchKMeans

    settings = settings or KMeansConfig()
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
    labels = _nearest(centroids, features)
    squared = 0.0
    for start in range(0, len(features), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        squared += float(np.square(features[chunk] - centroids[labels[chunk]]).sum(dtype=float))
    return Codebook(
        centroids=centroids,
        feature=feature,
        inertia=squared / len(features),
        dead_codewords=num_clusters - len(np.unique(labels)),
        seed=seed,
        fitted_frames=len(features),
    )


def assign(codebook: Codebook, features: np.ndarray) -> np.ndarray:
    """The nearest codeword of every frame; of equally near ones the first.

    Args:
      codebook: K codewords of D dimensions.
      features: float32, shape (T, D).

    Returns:
      uint16, shape (T,).

    Raises:
      InputError: wrong shape or number of dimensions, NaN or infinite features.
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
    """Exact nearest centroids, whatever the batch they are computed in: uint16, (T,).

    |x - c|^2 - |x|^2 = |c|^2 - 2 x c is one product of matrices, in float32. Where its rounding
    could have decided between two centroids, float64 decides; otherwise the label of a frame
    could depend on the machine and on its neighbours in the batch.
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
    if not np.isfinite(features).all():
        bad = int(np.flatnonzero(~np.isfinite(features).all(axis=1))[0])
        raise InputError(
            f"k-means: frame {bad} has NaN or infinite features; check the checkpoint that they "
            "come from, or the waveform's range"
        )
    return features
