"""Centroids of codebooks that others fitted, read without running what their files name.

Sources: joblib 1.6 (`numpy_pickle.py`), NumPy 2.4 (how arrays are pickled), faiss 1.11
(`impl/index_write.cpp`).
"""

import bz2
import io
import lzma
import math
import os
import pathlib
import pickle
import re
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from hubert_jax import storage
from hubert_jax.convert.genuine import require_genuine
from hubert_jax.convert.safetensors_files import read_tensors
from hubert_jax.convert.torch_files import Inert
from hubert_jax.errors import InputError

_MOST_BYTES = 2**30  # of a file, decompressed
_MOST_CODEWORDS = 2**16  # labels are uint16
_COMPRESSED: dict[bytes, Callable[[], Any]] = {  # by joblib, as the first bytes tell
    b"\x1f\x8b": lambda: zlib.decompressobj(wbits=31),
    b"\x78": zlib.decompressobj,
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ": lzma.LZMADecompressor,
    b"\x5d\x00": lzma.LZMADecompressor,
}
_KMEANS = ("sklearn.cluster._kmeans.KMeans", "sklearn.cluster._kmeans.MiniBatchKMeans")
_WRAPPER = "joblib.numpy_pickle.NumpyArrayWrapper"
# All that a fitted KMeans names; NumPy's are of arrays, scalars and the random state.
_NAMES = {
    *_KMEANS,
    _WRAPPER,
    "_codecs.encode",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.random._mt19937.MT19937",
    "numpy.random._pickle.__bit_generator_ctor",
    "numpy.random._pickle.__randomstate_ctor",
} | {
    f"numpy.{core}.{name}"
    for core in ("core", "_core")
    for name in ("multiarray._reconstruct", "multiarray.scalar", "numeric._frombuffer")
}
_EXPECTED = (
    "a k-means of scikit-learn (joblib or pickle), .npy, safetensors or an IndexFlatL2 of faiss"
)


def read_centroids(path: str | os.PathLike) -> tuple[np.ndarray, str]:
    """Centroids, float32 (K, D), and a phrase on what they were read from; content tells the kind.

    Raises InputError for a file that is damaged, of another kind or names code to be run, and for
    centroids of another shape, NaN or infinite.
    """
    path = storage.path(path)
    require_genuine(path, _EXPECTED)
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InputError(f"{path}: larger than 1 GiB, expected {_EXPECTED}")
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if content.startswith(b"\x93NUMPY"):
        try:
            found, kind = _npy(content), "an array of NumPy"
        except Exception as error:  # NumPy parses the header as Python
            raise _damaged(path, "an array of NumPy", error) from None
    elif content[8:9] == b"{":
        found, kind = _safetensors(path)
    elif content[:2] in (b"Ix", b"Iw"):
        found, kind = _faiss(content, path)
    else:
        content = _decompressed(content, path)
        if not content.startswith(pickle.PROTO):
            raise InputError(f"{path}: begins with {content[:6]!r}, expected {_EXPECTED}")
        found, kind = _kmeans(content, path)
    if found.ndim != 2 or not np.issubdtype(found.dtype, np.floating):
        raise InputError(
            f"{path}: centroids of shape {found.shape} and type {found.dtype}, expected floats of "
            "shape (codewords, dimensions)"
        )
    if not 1 <= len(found) <= _MOST_CODEWORDS or not found.shape[1]:
        raise InputError(f"{path}: centroids of shape {found.shape}, expected 1 to 65,536 of them")
    if found.dtype != np.float32:
        kind += f", cast from {found.dtype}"
    with np.errstate(over="ignore"):
        centroids = np.ascontiguousarray(found, np.float32)
    finite = np.isfinite(centroids).all(axis=1)
    if not finite.all():
        raise InputError(
            f"{path}: centroid {finite.argmin()} is NaN or infinite; fit the codebook again"
        )
    return centroids, kind


def _damaged(path: pathlib.Path, what: str, error: Exception | str) -> InputError:
    reason = next(iter(str(error).splitlines()), "")
    if isinstance(error, Exception):
        reason = f"{type(error).__name__}: {reason}"
    return InputError(f"{path}: cannot be read as {what} ({reason}); is it complete?")


def _npy(content: bytes) -> np.ndarray:
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    header = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
    # NumPy takes half a minute for a header of ten times this length.
    shape, fortran, dtype = header[version[0]](stream, max_header_size=1_000)
    there = len(content) - stream.tell()
    if dtype.hasobject or there != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"shape {shape} of {dtype} announced, {there} bytes")
    values = np.frombuffer(content, dtype, -1, stream.tell())
    return values.reshape(shape, order="F" if fortran else "C")


def _safetensors(path: pathlib.Path) -> tuple[np.ndarray, str]:
    tensors, _, notes = read_tensors(path, ndim=2)
    if len(tensors) != 1:
        raise InputError(
            f"{path}: {len(tensors)} tensors of two dimensions ({', '.join(sorted(tensors))}), "
            "expected one, the centroids"
        )
    ((name, centroids),) = tensors.items()
    return centroids, "; ".join([f"{name} in safetensors", *notes])


def _faiss(content: bytes, path: pathlib.Path) -> tuple[np.ndarray, str]:
    header = struct.Struct("<4siqqq?iQ")
    kind = content[:4].decode("latin1")
    if kind not in ("IxF2", "IxFl"):
        why = ": it compares inner products" if kind == "IxFI" else ""
        raise InputError(
            f"{path}: a faiss index {kind}{why}, which is no codebook of nearest centroids; "
            "expected IndexFlatL2 (IxF2)"
        )
    if len(content) < header.size:
        raise _damaged(path, "an index of faiss", f"{len(content)} bytes")
    _, width, count, _, _, _, metric, size = header.unpack_from(content)
    if metric != 1:
        raise InputError(f"{path}: a faiss index {kind} of metric {metric}, expected 1, L2")
    there = len(content) - header.size
    if width < 1 or count < 1 or size != width * count or there != 4 * size:
        reason = f"{count} vectors of {width} numbers, {size} numbers announced, {there} bytes"
        raise _damaged(path, "an index of faiss", reason)
    vectors = np.frombuffer(content, "<f4", size, header.size)
    return vectors.reshape(count, width), "IndexFlatL2 of faiss"


def _decompressed(content: bytes, path: pathlib.Path) -> bytes:
    for prefix, decompressor in _COMPRESSED.items():
        if content.startswith(prefix):
            stream = decompressor()
            try:
                content = stream.decompress(content, _MOST_BYTES)
            except (zlib.error, lzma.LZMAError, OSError) as error:
                raise _damaged(path, "a compressed file", error) from None
            if not stream.eof:
                raise _damaged(path, "a compressed file", "cut off, or larger than 1 GiB")
            break
    return content


def _kmeans(content: bytes, path: pathlib.Path) -> tuple[np.ndarray, str]:
    what = "a k-means of scikit-learn"
    try:
        stream = io.BytesIO(content)
        model = _Unpickler(stream, path).load()
        if behind := len(content) - stream.tell():
            raise ValueError(f"{behind} bytes behind it")
        name = getattr(type(model), "named", type(model).__name__)
        if name not in _KMEANS:
            raise InputError(f"{path}: a pickled {name}, expected KMeans or MiniBatchKMeans")
        if not hasattr(model, "cluster_centers_"):
            raise InputError(f"{path}: a k-means without cluster_centers_; fit it before saving")
        version = getattr(model, "_sklearn_version", "of unknown version")
        found = _array(model.cluster_centers_)
    except InputError:
        raise
    except Exception as error:  # a damaged file ends in errors of many types
        raise _damaged(path, what, error) from None
    return found, f"{name.rpartition('.')[2]} of scikit-learn {version}"


class _StandIn(Inert):
    """For an instance of what a file names; `named` is the name."""

    named = ""
    state: Any = None

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        if not isinstance(state, dict):
            self.state = state


class _Wrapper(_StandIn):
    """Describes an array of joblib's, whose bytes follow between the opcodes, after padding."""

    content: io.BytesIO
    raw = b""

    def __setstate__(self, state: Any) -> None:
        size = _dtype(state["dtype"]).itemsize * math.prod(state["shape"])
        super().__setstate__(state)
        if state.get("numpy_array_alignment_bytes") is not None:  # since joblib 1.2
            self.content.read(self.content.read(1)[0])
        self.raw = self.content.read(size)


def _bytearray(unpickler: Any) -> None:
    """As Python's own, which first reserves as many bytes as a file says."""
    (size,) = struct.unpack("<Q", unpickler.read(8))
    unpickler.append(bytearray(unpickler.read(size)))


class _Unpickler(pickle._Unpickler):
    """Python's own, as joblib uses it: C's may have read beyond the opcode it is at.

    On its stack are numbers, texts, bytes, containers of them, and stand-ins.
    """

    def __init__(self, content: io.BytesIO, path: pathlib.Path) -> None:
        super().__init__(content)
        self._content, self._path = content, path

    dispatch = {**pickle._Unpickler.dispatch, pickle.BYTEARRAY8[0]: _bytearray}

    def find_class(self, module: str, name: str) -> Any:
        """A stand-in class of that name."""
        named = f"{module}.{name}"
        if named not in _NAMES:
            raise InputError(
                f"{self._path}: the file names {named}, which no k-means of scikit-learn needs "
                "and which loading it would run; nothing was run, and the file is refused"
            )
        if named == _WRAPPER:
            return type(name, (_Wrapper,), {"named": named, "content": self._content})
        return type(name, (_StandIn,), {"named": named})

    def get_extension(self, code: int) -> None:
        """Refuses what stands for a name by its number in this process."""
        self.find_class("copyreg", f"extension {code}")


def _dtype(found: Any) -> np.dtype:
    """The NumPy type that a stand-in names; ValueError for other than numbers."""
    name = found.arguments[0]
    if not re.fullmatch("[fiub][1248]", str(name)):
        raise ValueError(f"an array of {name}")
    order = found.state[1] if found.state else "="
    return np.dtype(name).newbyteorder(order)


def _array(found: Any) -> np.ndarray:
    """The array that a stand-in describes, whichever way it was pickled."""
    name = getattr(type(found), "named", "").rpartition(".")[2]
    raw: Any
    if name == "NumpyArrayWrapper":
        raw, dtype, shape, order = found.raw, found.dtype, found.shape, found.order
    elif name == "_frombuffer":
        raw, dtype, shape, order = found.arguments
    elif name == "_reconstruct":
        _, shape, dtype, fortran, raw = found.state
        order = "F" if fortran else "C"
    else:
        raise ValueError("cluster_centers_ is no array")
    if isinstance(raw, _StandIn):  # text that stands for bytes, before protocol 3
        raw = raw.arguments[0].encode("latin1")
    return np.frombuffer(raw, _dtype(dtype)).reshape(shape, order=order)
