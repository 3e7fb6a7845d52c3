"""Codebooks: k-means on frames, and the codeword of every frame."""

import dataclasses
import hashlib
import io
import itertools
import json
import os
import pathlib
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from hubert_jax import config, distributed, files, storage
from hubert_jax.errors import InputError
from hubert_jax.units import clustering, steps
from hubert_jax.units.clustering import KMeansConfig
from hubert_jax.units.nearest import Nearest

Name = TypeVar("Name")
_COLUMNS = 16  # of a sample, that are put in order at a time
# RuntimeError is what zipfile raises of damage that looks like encryption.
_DAMAGED = (
    *(zipfile.BadZipFile, RuntimeError, ValueError, OSError, EOFError, KeyError, TypeError),
    # Of what is no array, and of headers that NumPy parses.
    *(AttributeError, OverflowError, MemoryError, SyntaxError, tokenize.TokenError, zlib.error),
)
_CHUNK = 8192  # frames that are looked at together
_TOGETHER = 32_768  # frames whose codewords are sought together, at least
_STARTING = 10_000  # frames that starts are made from, or 20 a codeword
_WHITENING = 2**18  # frames of a sample, at most, that whitening is fitted on
_DRAWN_DIM = 16  # of BEST-RQ's codewords
_ARRAYS = ("centroids", "projection")
_HEADER_BYTES = 1_000  # of an array; NumPy takes half a minute for ten times as many


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
    origin: str = "fitted here"  # or drawn here, or the file that it was read from
    # float32 (D' + 1, D), as `steps.project` takes it: whitening, or BEST-RQ's random projection.
    projection: np.ndarray | None = None

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of feature, centroids and projection."""
        described = json.dumps([self.feature, self.centroids.shape], sort_keys=True).encode()
        arrays = (np.ascontiguousarray(array, "<f4").tobytes() for array in self._arrays().values())
        return hashlib.sha256(described + b"".join(arrays)).hexdigest()

    @property
    def dim(self) -> int:
        """Numbers a frame of the features that it labels."""
        if self.projection is not None:
            return len(self.projection) - 1
        return self.centroids.shape[1]

    def _arrays(self) -> dict[str, np.ndarray]:
        found = {name: getattr(self, name) for name in _ARRAYS}
        return {name: array for name, array in found.items() if array is not None}

    def save(self, directory: str | os.PathLike) -> None:
        """Writes `codebook.npz`, then `codebook.json`, each atomically."""
        directory = storage.path(directory)
        buffer = io.BytesIO()
        arrays: dict[str, Any] = self._arrays()
        np.savez(buffer, **arrays)
        files.write_bytes(directory / "codebook.npz", buffer.getvalue())
        described = {"format": 1, "num_classes": len(self.centroids), "digest": self.digest}
        described |= {name: value for name, value in vars(self).items() if name not in _ARRAYS}
        files.write_json(directory / "codebook.json", described)

    @classmethod
    def load(cls, directory: str | os.PathLike) -> "Codebook":
        """Reads what `save` wrote; raises InputError if a file is missing, damaged or another's."""
        directory = storage.path(directory)
        described = files.read_json(directory / "codebook.json", "codebook description")
        path = directory / "codebook.npz"
        try:
            with open(path, "rb") as file:
                if not zipfile.is_zipfile(file):  # NumPy would advise to load it unsafely
                    raise ValueError("no archive of NumPy")
            with np.load(path, max_header_size=_HEADER_BYTES) as stored:
                arrays = {name: stored[name] for name in _ARRAYS if name in stored}
            for name, array in arrays.items():
                if array.ndim != 2 or array.dtype != np.float32 or not array.size:
                    raise ValueError(f"{name} of shape {array.shape}, {array.dtype}")
                if not np.isfinite(array).all():
                    raise ValueError(f"{name} that are NaN or infinite")
            fields = [field.name for field in dataclasses.fields(cls)[1:-1]]
            codebook = cls(**arrays, **{name: described[name] for name in fields})
            if codebook.projection is not None:
                if codebook.projection.shape[1] != codebook.centroids.shape[1]:
                    raise ValueError("centroids of other dimensions than projection")
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


def read(
    path: str, expected: dict[str, Any], dim: int | None, key: str = "config.codebook"
) -> Codebook:
    """An earlier codebook, or that of a file, which does not say of which feature it is.

    `expected` describes the feature, or as much of it as is known, `dim` is how many numbers it
    has before `whiten`, if that is known. Raises InputError for a codebook of another one.
    """
    if storage.path(path).is_file():
        whitened = any(step.startswith("whiten") for step in expected.get("steps", ()))
        if whitened or expected["kind"] == "random_projection":
            raise InputError(
                f"{key}={path}: a file of another library has no matrix for whiten or "
                "random_projection; expected a label job's directory"
            )
        from hubert_jax.convert.centroids import read_centroids

        centroids, kind = read_centroids(path)
        origin = (
            f"{storage.path(path).name} ({kind}; SHA-256 {files.sha256_file(path)}); the file does "
            "not name the feature, the label job was told"
        )
        codebook = Codebook(centroids, expected, None, None, None, None, origin)
    elif not storage.path(path).exists():
        raise InputError(f"{key}={path}: no such file or directory")
    else:
        codebook = Codebook.load(path)
    if dim is not None and codebook.dim != dim:
        raise InputError(
            f"{key}={path}: centroids of {codebook.dim} dimensions, "
            f"{expected['kind']} has {dim}; label with the feature, layer and checkpoint "
            "that it was fitted on"
        )
    unknown = {"checkpoint"} - set(expected) if codebook.feature.get("kind") == "layer" else set()
    for part in sorted((expected | codebook.feature).keys() - unknown):
        found, wanted = codebook.feature.get(part), expected.get(part)
        if found != wanted:
            raise InputError(
                f"{key}={path}: fitted on features with {part} {found}, expected {part} "
                f"{wanted}; label with the feature, layer and checkpoint that it was fitted on, "
                "or fit another codebook"
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

    def frames(self) -> tuple[np.ndarray, np.ndarray]:
        """This process's part of all processes' sample, float32 (N, D), and its keys, in order.

        Raises InputError if nothing was added by any.
        """
        self._merge()
        held = np.array([self._held, self._frames.shape[1]])
        most, width = distributed.everywhere(held).max(axis=0).tolist()
        if not most:
            raise InputError(
                "k-means: no utterance to fit on; raise the fraction of utterances or check the "
                "split"
            )
        order = np.argsort(self._keys[: self._held])
        frames = self._frames[: self._held].reshape(-1, width)
        for first in range(0, width, _COLUMNS):  # a copy of some columns, not of all
            columns = slice(first, first + _COLUMNS)
            frames[:, columns] = frames[order, columns]
        self._keys[: self._held] = self._keys[: self._held][order]
        kept = _below(self._keys[: self._held], self._max_frames)
        return frames[:kept], self._keys[:kept]

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
    sample: FrameSample,
    num_clusters: int,
    seed: int,
    feature: dict[str, Any],
    settings: KMeansConfig,
    directory: pathlib.Path | None = None,
    after: Sequence[str] = (),
) -> Codebook:
    """A codebook of `num_clusters` codewords, fitted on the sample of all processes.

    Steps that come `after` the sampled ones begin with `whiten`, which is fitted, too. In
    `directory`, which processes share, an interrupted fit of the same frames goes on. What the
    sample holds is overwritten. Raises InputError for NaN or infinite features, fewer frames than
    clusters, and as `require_fittable` and `steps.whitening`.
    """
    require_fittable(num_clusters, seed)
    frames, keys = sample.frames()
    _checked(frames)
    count = int(distributed.everywhere(np.array(len(frames))).sum())
    if count < num_clusters:
        raise InputError(
            f"num_clusters={num_clusters}: found {count} frames to fit on, expected at "
            "least as many as clusters; give more speech, a larger share, or fewer clusters"
        )
    projection = None
    if after:
        size = steps.dimensions(after, frames.shape[1]) or 0
        projection = np.zeros((frames.shape[1] + 1, size))
        several = _first(frames, keys, _WHITENING, directory)
        if distributed.is_first():
            projection = steps.whitening(several, after).astype(np.float64)
        projection = distributed.everywhere(projection)[0].astype(np.float32)
        frames = _project_in_place(frames, projection)
    if settings.metric == "cosine":
        for start in range(0, len(frames), _CHUNK):
            frames[start : start + _CHUNK] = clustering.unit(frames[start : start + _CHUNK])
    own = settings.method != clustering.SCIKIT_LEARN
    starting = _first(frames, keys, max(_STARTING, 20 * num_clusters) if own else count, directory)
    centroids = np.zeros((num_clusters, frames.shape[1]), np.float32)
    if not distributed.is_first():
        pass  # it gets the first process's
    elif own:
        centroids = clustering.starts(starting, num_clusters, seed, settings)
    else:
        centroids = _scikit_learns(starting, num_clusters, seed, settings)
    kept = None
    if own and directory is not None:
        content = hashlib.sha256(starting.tobytes()).hexdigest()
        key = [content, count, num_clusters, seed, feature, dataclasses.asdict(settings)]
        kept = directory / f".kmeans-{config.digest(key)[:16]}.npz"
    passes = settings.max_iter if own else 0
    refined = clustering.refine(frames, keys, centroids, settings, passes, kept)
    centroids, inertia, dead = refined
    return Codebook(centroids, feature, inertia, dead, seed, count, "fitted here", projection)


def _project_in_place(frames: np.ndarray, projection: np.ndarray) -> np.ndarray:
    """As `steps.project`, into the memory of `frames`, for which D' is not too large."""
    flat, width = frames.reshape(-1), projection.shape[1]
    for start in range(0, len(frames), _CHUNK):
        some = steps.project(frames[start : start + _CHUNK], projection)
        flat[start * width : start * width + some.size] = some.ravel()
    return flat[: len(frames) * width].reshape(-1, width)


def draw(num_clusters: int, seed: int, name: str, feature: dict[str, Any], dim: int) -> Codebook:
    """BEST-RQ's codebook (Chiu et al. 2022, section 3.1), drawn for features of `dim` numbers.

    A projection to 16 dimensions, uniform as Xavier's, and normal codewords, scaled to length 1.
    Those of another seed or name are others.
    """
    random = np.random.default_rng([seed, *name.encode()])
    bound = np.sqrt(6.0 / (dim + _DRAWN_DIM))
    projection = random.uniform(-bound, bound, (dim, _DRAWN_DIM))
    projection = np.concatenate([projection, np.zeros((1, _DRAWN_DIM))]).astype(np.float32)
    codewords = clustering.unit(random.normal(size=(num_clusters, _DRAWN_DIM)))
    return Codebook(codewords, feature, None, None, seed, None, "drawn here", projection)


def _scikit_learns(
    frames: np.ndarray, num_clusters: int, seed: int, settings: KMeansConfig
) -> np.ndarray:
    # Read at import; OpenMP's threads spin between batches otherwise, slow on shared cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from sklearn.cluster import MiniBatchKMeans

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
    ).fit(frames)
    return np.ascontiguousarray(model.cluster_centers_, np.float32)


def _below(keys: np.ndarray, count: int) -> int:
    """How many of this process's sorted keys are among the `count` smallest of all processes'."""
    if distributed.everywhere(np.array(len(keys))).sum() <= count:
        return len(keys)
    low, high = 0, 2**64 - 1
    while low < high:  # the largest bound that at most `count` are below
        middle = (low + high + 1) // 2
        here = np.array(np.searchsorted(keys, np.uint64(middle)))
        if distributed.everywhere(here).sum() <= count:
            low = middle
        else:
            high = middle - 1
    return int(np.searchsorted(keys, np.uint64(low)))


def _first(
    frames: np.ndarray, keys: np.ndarray, count: int, directory: pathlib.Path | None
) -> np.ndarray:
    """The frames of all processes with the `count` smallest keys, in the first; else its own."""
    below = _below(keys, count)
    frames, keys = frames[:below], keys[:below]
    if directory is None:
        return frames
    stem = directory / f".sample-{distributed.index()}"
    if not distributed.is_first():
        for suffix, rows in ((".frames", frames), (".keys", keys)):
            with files.writing_file(stem.with_suffix(suffix)) as path, path.open("wb") as file:
                np.save(file, rows)
    others = distributed.gather(str(stem))[1:]
    if not others:
        return frames
    places = [[storage.path(other + suffix) for suffix in (".frames", ".keys")] for other in others]
    parts = [(frames, keys), *(tuple(map(np.load, written)) for written in places)]
    for path in itertools.chain.from_iterable(places):
        path.unlink()
    frames, keys = map(np.concatenate, zip(*parts, strict=True))
    return frames[np.argsort(keys)]


def assign(codebook: Codebook, features: np.ndarray) -> np.ndarray:
    """The first of the nearest codewords of every frame of float32 (T, D): uint16, (T,).

    Raises InputError for a wrong shape or number of dimensions, NaN or infinite features.
    """
    return Nearest(codebook.centroids).labels(_fitting(codebook, features))


def assign_each(
    codebooks: Sequence[Codebook], features: Iterable[tuple[int, Name, Sequence[np.ndarray]]]
) -> Iterator[tuple[int, Name, list[np.ndarray]]]:
    """(group, utterance, labels) of (group, utterance, features), in order.

    There are features and labels, as `assign` gives them, for each codebook. Many utterances are
    looked at together, on all devices.
    """
    nearest = [Nearest(codebook.centroids) for codebook in codebooks]
    waiting: list[tuple[int, Name, list[np.ndarray]]] = []

    def labelled() -> Iterator[tuple[int, Name, list[np.ndarray]]]:
        of_codebook = zip(*(values for _, _, values in waiting), strict=True)
        labels = [
            each.labels(np.concatenate(frames))
            for each, frames in zip(nearest, of_codebook, strict=True)
        ]
        start = 0
        for number, name, values in waiting:
            stop = start + len(values[0])
            yield number, name, [each[start:stop] for each in labels]
            start = stop
        waiting.clear()

    frames = 0
    for number, name, values in features:
        fitting = map(_fitting, codebooks, values)
        waiting.append((number, name, list(fitting)))
        frames += len(values[0])
        if frames >= _TOGETHER:
            yield from labelled()
            frames = 0
    if waiting:
        yield from labelled()


def _fitting(codebook: Codebook, features: np.ndarray) -> np.ndarray:
    """Features that the codebook can be of, as its centroids are, or InputError."""
    features = _checked(features)
    if features.shape[1] != codebook.dim:
        raise InputError(
            f"k-means: found features of {features.shape[1]} dimensions, the codebook has "
            f"{codebook.dim}; use the codebook of this feature ({codebook.feature})"
        )
    if codebook.projection is not None:
        features = steps.project(features, codebook.projection)
    return features


def _checked(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features)
    if features.ndim != 2 or not np.issubdtype(features.dtype, np.floating):
        raise InputError(
            f"k-means: found features of shape {features.shape} and type {features.dtype}, "
            "expected floats of shape (frames, dimensions)"
        )
    features = np.ascontiguousarray(features, np.float32)
    for start in range(0, len(features), _CHUNK):  # a mask of all would be a quarter of them
        finite = np.isfinite(features[start : start + _CHUNK])
        if not finite.all():
            raise InputError(
                f"k-means: frame {start + finite.all(axis=1).argmin()} has NaN or infinite "
                "features; check the checkpoint that they come from, or the waveform's range"
            )
    return features
