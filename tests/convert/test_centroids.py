"""Codebooks of other libraries: genuine files are read, damaged and malicious ones are refused."""

import copyreg
import io
import os
import pickle
import struct
import tracemalloc

import joblib
import numpy as np
import pytest
import safetensors.numpy
import sklearn
from sklearn.cluster import BisectingKMeans, KMeans, MiniBatchKMeans

from hubert_jax.convert.centroids import read_centroids
from hubert_jax.errors import InputError

FRAMES = np.random.default_rng(0).normal(size=(200, 6)).astype(np.float32)
CENTROIDS = FRAMES[:5]
FLAT = struct.Struct("<4siqqq?iQ")


@pytest.fixture(scope="module", params=[KMeans, MiniBatchKMeans])
def model(request):
    """Fitted, with all that a k-means may hold: labels, counts, a random state."""
    return request.param(5, n_init=1, random_state=np.random.RandomState(3)).fit(FRAMES)


def faiss_flat(vectors, kind=b"IxF2", metric=1) -> bytes:
    count, width = vectors.shape
    header = FLAT.pack(kind, width, count, 1 << 20, 1 << 20, True, metric, vectors.size)
    return header + vectors.astype("<f4").tobytes()


def npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def dumped(content, **options) -> bytes:
    buffer = io.BytesIO()
    joblib.dump(content, buffer, **options)
    return buffer.getvalue()


@pytest.fixture
def read(tmp_path):
    """Reads a file of these bytes, whose name says nothing."""

    def read(content: bytes):
        path = tmp_path / "file.km"
        path.write_bytes(content)
        return read_centroids(path)

    return read


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_files_of_scikit_learn(model, read, protocol):
    contents = [pickle.dumps(model, protocol)]
    for method in (0, 3, ("zlib", 9), ("gzip", 1), ("bz2", 3), ("lzma", 1), ("xz", 1)):
        contents.append(dumped(model, compress=method, protocol=protocol))
    if protocol == 2:  # NumPy before 2.0 had its core under another name
        contents.append(contents[1].replace(b"numpy._core.", b"numpy.core."))
    for content in contents:
        centroids, kind = read(content)
        np.testing.assert_array_equal(centroids, model.cluster_centers_)
        assert centroids.dtype == np.float32 and centroids.flags.c_contiguous
        assert kind == f"{type(model).__name__} of scikit-learn {sklearn.__version__}"


def test_files_of_joblib_before_its_padding(model, read, monkeypatch):
    wrapper = joblib.numpy_pickle.NumpyArrayWrapper
    made = wrapper.__init__

    def older(self, *arguments, **named):
        made(self, *arguments, **named)
        del self.numpy_array_alignment_bytes

    monkeypatch.setattr(wrapper, "__init__", older)
    content = dumped(model)
    assert b"alignment" not in content
    np.testing.assert_array_equal(read(content)[0], model.cluster_centers_)


def test_other_precision_order_and_endianness_are_cast_and_said(model, read):
    expected = model.cluster_centers_
    for kept in (np.float64, np.float16, ">f4", ">f8"):
        other = type(model)(5)
        other.cluster_centers_ = np.asfortranarray(expected.astype(kept))
        contents = (dumped(other), pickle.dumps(other, 3), npy(other.cluster_centers_))
        for centroids, kind in map(read, contents):
            np.testing.assert_array_equal(centroids, expected.astype(kept).astype(np.float32))
            # scikit-learn 1.9 casts what it saves no more than earlier ones do.
            assert kind.endswith(f", cast from {np.dtype(kept)}")


def test_arrays_tensors_and_flat_indices(read):
    counts = {"counts": np.arange(5), "bias": np.ones(3, np.float32)}
    for content, expected in (
        (npy(CENTROIDS), "an array of NumPy"),
        (faiss_flat(CENTROIDS), "IndexFlatL2 of faiss"),
        (faiss_flat(CENTROIDS, b"IxFl"), "IndexFlatL2 of faiss"),
        (safetensors.numpy.save({"centers": CENTROIDS, **counts}), "centers in safetensors"),
    ):
        centroids, kind = read(content)
        np.testing.assert_array_equal(centroids, CENTROIDS)
        assert kind == expected
    wide = safetensors.numpy.save({"centers": CENTROIDS.astype(np.float64)})
    assert read(wide)[1] == "centers in safetensors; narrowed to float32: 1 tensors in float64"


class _Harmful:
    """Unpickled in the usual way, it makes a file."""

    def __init__(self, path):
        self._path = path

    def __reduce__(self):
        return os.system, (f"touch {self._path}",)


@pytest.mark.parametrize("protocol", [2, 4])
def test_pickled_code_is_never_run(read, tmp_path, protocol):
    marker = tmp_path / "it-ran"
    model = KMeans(5, n_init=1).fit(FRAMES)
    model.verbose = _Harmful(marker)
    for content in (
        dumped(model, protocol=protocol),
        dumped(model, protocol=protocol, compress=3),
        pickle.dumps(_Harmful(marker), protocol),
    ):
        with pytest.raises(InputError, match=r"names posix\.system, .*nothing was run.*refused"):
            read(content)
    assert not marker.exists()
    pickle.loads(content)  # what the file asks for is harm indeed
    assert marker.exists()


def test_no_other_way_leads_to_code(read, monkeypatch):
    """Names in dots, numbers for names, calls of what is on the stack, attributes of classes."""
    monkeypatch.setitem(copyreg._inverted_registry, 7, ("posix", "system"))
    for content, message in (
        (b"\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93.", r"names numpy.ndarray.__class__"),
        (b"\x80\x02\x82\x07.", "names copyreg.extension 7"),
        (b"\x80\x02cbuiltins\neval\n(S'1'\ntR.", "names builtins.eval"),
        (b"\x80\x02(S'1'\nibuiltins\neval\n.", "names builtins.eval"),
        (b"\x80\x02P1\n.", "persistent"),
        (b"\x80\x02U\x01x)R.", "not callable"),
        (b"\x80\x02cnumpy\nndarray\n}b.", "cannot be read as a k-means"),
        (b"\x80\x02cnumpy\nndarray\n.", "a pickled type"),
    ):
        with pytest.raises(InputError, match=message):
            read(content)


def test_damage_ends_in_a_line(read):
    """Cut anywhere, or with any bit changed: a line, or centroids."""
    random, model = np.random.default_rng(1), KMeans(5, n_init=1).fit(FRAMES)
    tensors = safetensors.numpy.save({"centers": CENTROIDS})
    contents = [dumped(model), dumped(model, compress=3), dumped(model, compress=("xz", 1))]
    contents += [pickle.dumps(model), npy(CENTROIDS), faiss_flat(CENTROIDS), tensors]
    for content in contents:
        for length in (0, 1, 9, 40, len(content) // 2, len(content) - 1):
            with pytest.raises(InputError) as refused:
                read(content[:length])
            assert "\n" not in str(refused.value)
    refusals = 0
    for content in contents[:1] + contents[3:]:
        for place in random.integers(len(content), size=150):
            changed = bytearray(content)
            changed[place] ^= 1 << random.integers(8)
            try:
                read(bytes(changed))
            except InputError:
                refusals += 1
    assert refusals > 50


def test_a_file_holds_a_codebook_and_nothing_behind_it(read):
    """Two that were joined, or one of another length than it says."""
    model = KMeans(5, n_init=1).fit(FRAMES)
    for content in (dumped(model), pickle.dumps(model), npy(CENTROIDS), faiss_flat(CENTROIDS)):
        read(content)
        with pytest.raises(InputError, match="cannot be read as .*; is it complete?"):
            read(content + content)
    # Nothing is reserved on the word of a file: not 2 TiB, and not what a machine may have.
    for rows in (2**30, 2**20):
        stream = io.BytesIO()
        header = {"descr": "<f4", "fortran_order": False, "shape": (rows, 512)}
        np.lib.format.write_array_header_1_0(stream, header)
        with pytest.raises(InputError, match="announced, 0 bytes"):
            read(stream.getvalue())
    bytearray_ = b"\x80\5\x96" + (2**28).to_bytes(8, "little") + b"."
    tracemalloc.start()
    with pytest.raises(InputError, match="cannot be read as a k-means"):
        read(bytearray_)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_what_is_no_codebook_is_named(read):
    broken = CENTROIDS.copy()
    broken[3, 2] = np.nan
    two = {"a": CENTROIDS, "b": CENTROIDS}
    for content, message in (
        (npy(broken), "centroid 3 is NaN or infinite"),
        (npy(np.full((2, 2), 1e300)), "centroid 0 is NaN or infinite"),
        (npy(CENTROIDS[0]), r"centroids of shape \(6,\) and type float32"),
        (npy(np.arange(6).reshape(2, 3)), "type int64, expected floats"),
        (npy(np.zeros((0, 4), np.float32)), r"shape \(0, 4\), expected 1 to 65,536"),
        (npy(np.zeros((65_537, 1), np.float32)), "expected 1 to 65,536"),
        (npy(np.array([{}])), "cannot be read as an array of NumPy"),
        (safetensors.numpy.save(two), r"2 tensors of two dimensions \(a, b\), expected one"),
        (safetensors.numpy.save({"c": CENTROIDS[0]}), "0 tensors of two dimensions"),
        (faiss_flat(CENTROIDS, b"IxFI", 0), "IxFI: it compares inner products"),
        (faiss_flat(CENTROIDS, b"IxPq"), "a faiss index IxPq, which is no codebook"),
        (faiss_flat(CENTROIDS, b"IxFl", 3), "IxFl of metric 3, expected 1, L2"),
        (faiss_flat(CENTROIDS[:0]), "0 vectors of 6 numbers"),
        (dumped([1, 2]), "a pickled list, expected KMeans or MiniBatchKMeans"),
        (dumped(KMeans(5)), "without cluster_centers_; fit it"),
        (dumped(BisectingKMeans(2).fit(FRAMES)), "_bisect_k_means"),
        (b"PK\x03\x04 and so on", r"begins with b'PK.*expected a k-means of scikit-learn"),
        (b"", "an empty file"),
    ):
        with pytest.raises(InputError, match=message) as refused:
            read(content)
        assert "\n" not in str(refused.value) and str(refused.value).count("file.km") == 1
