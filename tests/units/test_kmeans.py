"""Codebooks: exact assignment, fits beside scikit-learn's, determinism, files, sampling."""

import json
import tracemalloc
import zipfile

import jax
import numpy as np
import pytest

from hubert_jax import distributed
from hubert_jax.errors import InputError
from hubert_jax.units import clustering, kmeans
from hubert_jax.units.clustering import KMeansConfig
from hubert_jax.units.kmeans import Codebook, FrameSample

QUICK = KMeansConfig(n_init=2, batch_frames=256, max_iter=5)
METHODS = ("lloyd", "minibatch", "scikit-learn")


@pytest.fixture(scope="module")
def features(speech):
    from hubert_jax.units.mfcc import mfcc

    pieces = ((name, audio[:24_000].astype(np.float32) / 32768) for name, audio in speech.items())
    return np.concatenate([features for _, features in mfcc(pieces)])


def sample_of(features, order=1):
    """All frames, 500 an utterance, added in one order or the other."""
    sample = FrameSample(len(features), 0)
    for start in range(0, len(features), 500)[::order]:
        sample.add(f"utterance-{start}", features[start : start + 500])
    return sample


def fit(features, num_clusters, seed=0, settings=QUICK, directory=None, order=1):
    sample = sample_of(features, order)
    return kmeans.fit(sample, num_clusters, seed, {"kind": "mfcc"}, settings, directory)


def codebook_of(centroids):
    return Codebook(np.asarray(centroids, np.float32), {"kind": "mfcc"}, 0.0, 0, 0, 0)


def test_assignment_is_exact_under_a_large_offset():
    """Far from the origin float32 products cannot tell the centroids apart; float64 must."""
    rng = np.random.default_rng(0)
    centroids = (1_000 + rng.normal(size=(50, 39))).astype(np.float32)
    frames = (1_000 + rng.normal(size=(9_000, 39))).astype(np.float32)
    found = kmeans.assign(codebook_of(centroids), frames)
    exact = np.square(frames[:, None].astype(np.float64) - centroids).sum(axis=2).argmin(axis=1)
    naive = (np.square(centroids).sum(axis=1) - 2 * frames @ centroids.T).argmin(axis=1)
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, exact)
    assert (naive != exact).any()


@pytest.mark.parametrize(("clusters", "dim"), [(1, 3), (700, 5), (5_000, 2), (40, 2_500)])
def test_assignment_of_any_size_is_exact(clusters, dim):
    """Tiles of many and of few frames, several blocks, and codewords that are there twice."""
    rng = np.random.default_rng(0)
    frames = rng.normal(size=(2_500, dim)).astype(np.float32)
    centroids = np.concatenate([frames[:clusters], frames[:clusters]])[:clusters]
    centroids[clusters // 2 :] = centroids[: clusters - clusters // 2]
    found = kmeans.assign(codebook_of(centroids), frames)
    exact = centroids.astype(np.float64)
    distances = np.square(exact).sum(axis=1) - 2.0 * frames.astype(np.float64) @ exact.T
    np.testing.assert_array_equal(found, distances.argmin(axis=1))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_frame_that_is_not_finite_is_named(value):
    frames = np.zeros((9_000, 3), np.float32)
    frames[8_500, 1] = value
    with pytest.raises(InputError, match="frame 8500 has NaN or infinite features"):
        kmeans.assign(codebook_of(np.eye(3)), frames)


def test_labels_do_not_depend_on_the_batch(features):
    codebook = fit(features, 20)
    whole = kmeans.assign(codebook, features)
    pieces = [kmeans.assign(codebook, features[i : i + 7]) for i in range(0, 700, 7)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole[:700])
    cut = [(number, str(number), [features[number:][:7]]) for number in range(0, 700, 7)]
    for (number, name, (labels,)), piece in zip(
        kmeans.assign_each([codebook], cut * 60), pieces * 60, strict=True
    ):
        assert name == str(number)
        np.testing.assert_array_equal(labels, piece)


def test_of_equal_codewords_the_first_is_taken():
    assert kmeans.assign(codebook_of([[1.0], [3.0], [3.0]]), np.array([[3.0], [2.0]])).tolist() == [
        1,
        0,
    ]
    assert kmeans.assign(codebook_of([[3.0]]), np.array([[3.0], [2.0]])).tolist() == [0, 0]


def test_fit_is_scikit_learns_with_the_recipes_settings(features):
    from sklearn.cluster import MiniBatchKMeans

    found = fit(features, 10, 3, KMeansConfig(method="scikit-learn"))
    frames = sample_of(features).frames()[0]
    expected = MiniBatchKMeans(
        10,
        n_init=20,
        batch_size=10_000,
        max_iter=100,
        max_no_improvement=100,
        tol=0.0,
        reassignment_ratio=0.0,
        random_state=3,
    ).fit(frames)
    np.testing.assert_allclose(found.centroids, expected.cluster_centers_, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(kmeans.assign(found, frames), expected.labels_)
    assert found.inertia == pytest.approx(expected.inertia_ / len(frames), rel=1e-5)
    assert (found.fitted_frames, found.dead_codewords, found.seed) == (len(frames), 0, 3)


def test_from_equal_centroids_lloyds_are_scikit_learns(features):
    from sklearn.cluster import KMeans

    frames, keys = sample_of(features).frames()
    begin = frames[:20].copy()
    expected = KMeans(20, init=begin, n_init=1, max_iter=7, tol=0, algorithm="lloyd").fit(frames)
    centroids, inertia, _ = clustering.refine(
        frames, keys, begin, KMeansConfig(tolerance=0.0), most=7
    )
    np.testing.assert_allclose(centroids, expected.cluster_centers_, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(
        kmeans.assign(codebook_of(centroids), frames), expected.predict(frames)
    )
    assert inertia == pytest.approx(expected.inertia_ / len(frames), rel=1e-5)


@pytest.mark.parametrize("method", ["lloyd", "minibatch"])
def test_fits_are_as_good_as_scikit_learns(features, method):
    from sklearn.cluster import KMeans, MiniBatchKMeans

    settings = KMeansConfig(method, n_init=10, batch_frames=1_000)
    found = np.mean([fit(features, 30, seed, settings).inertia for seed in range(3)])
    for kind, most in ((KMeans, 1.005), (MiniBatchKMeans, 1.0)):
        models = [kind(30, n_init=10, random_state=seed).fit(features) for seed in range(3)]
        assert found <= most * np.mean([model.inertia_ for model in models]) / len(features)


@pytest.mark.parametrize("method", METHODS)
def test_neither_devices_nor_the_order_of_shards_change_a_bit(features, method, monkeypatch):
    many = np.concatenate([features] * (1 + 20_000 // len(features)))  # several blocks
    expected = fit(many, 10, settings=KMeansConfig(method, n_init=2, max_iter=3))
    assert expected.digest != fit(many, 10, 1, KMeansConfig(method, n_init=2, max_iter=3)).digest
    assert jax.local_device_count() > 1
    device = jax.local_devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: device)
    found = fit(many, 10, settings=KMeansConfig(method, n_init=2, max_iter=3), order=-1)
    assert (found.digest, found.inertia) == (expected.digest, expected.inertia)


@pytest.mark.parametrize("method", ["lloyd", "minibatch"])
def test_an_interrupted_fit_goes_on(features, method, monkeypatch, tmp_path):
    settings = KMeansConfig(method, n_init=2, batch_frames=1_000, max_iter=6, tolerance=0.0)
    expected, said = fit(features, 20, settings=settings), []

    def announce(line):
        said.append(line)
        if "pass 4" in line:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(distributed, "announce", announce)
        with pytest.raises(KeyboardInterrupt):
            fit(features, 20, settings=settings, directory=tmp_path)
    assert [line.partition(":")[2][:7] for line in said] == [f" pass {i}" for i in range(1, 5)]
    said.clear()
    monkeypatch.setattr(distributed, "announce", said.append)
    found = fit(features, 20, settings=settings, directory=tmp_path)
    assert (found.digest, found.inertia) == (expected.digest, expected.inertia)
    assert said[0] == "k-means: goes on after pass 3" and "pass 4" in said[1]
    # Not with other frames or settings, nor from a damaged file.
    said.clear()
    other = fit(features[1:], 20, settings=settings, directory=tmp_path)
    assert "pass 1" in said[0] and other.digest != found.digest
    for kept in tmp_path.glob(".kmeans-*"):
        kept.write_bytes(kept.read_bytes()[:100])
    said.clear()
    assert fit(features, 20, settings=settings, directory=tmp_path).digest == found.digest
    assert "pass 1" in said[0]


def test_empty_clusters_are_moved_to_frames_far_from_their_centroids(capsys):
    rng = np.random.default_rng(0)
    middles = np.array([[0, 0], [9, 0], [0, 9], [90, 90], [90, -90]], np.float32)
    frames = np.repeat(middles, 100, axis=0) + rng.normal(0, 0.1, (500, 2)).astype(np.float32)
    begin = np.array([[0, 0], [9, 0], [0, 9], [99, 0], [-99, 0]], np.float32)
    keys = np.arange(500, dtype=np.uint64)
    _, inertia, dead = clustering.refine(frames, keys, begin, KMeansConfig(), most=20)
    first = capsys.readouterr().out.splitlines()[0]
    assert first.endswith(", 1 empty clusters re-seeded")
    assert dead == 0 and inertia < 0.1


def test_codewords_by_cosine_have_length_one_and_are_of_the_nearest_direction(features):
    codebook = fit(features, 10, settings=KMeansConfig(metric="cosine", n_init=2))
    np.testing.assert_allclose(np.linalg.norm(codebook.centroids, axis=1), 1.0, rtol=1e-6)
    exact = features.astype(np.float64)
    cosines = exact / np.linalg.norm(exact, axis=1, keepdims=True) @ codebook.centroids.T
    labels = kmeans.assign(codebook, features)
    np.testing.assert_allclose(
        cosines[np.arange(len(labels)), labels], cosines.max(axis=1), atol=1e-6
    )
    # Mean squared distance on the sphere.
    assert codebook.inertia == pytest.approx(2 - 2 * cosines.max(axis=1).mean(), rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_duplicate_frames_leave_dead_codewords(method):
    frames = np.repeat(np.eye(3, dtype=np.float32), 50, axis=0)
    assert fit(frames, 5, settings=KMeansConfig(method, n_init=2, max_iter=5)).dead_codewords == 2


@pytest.mark.parametrize(
    ("frames", "clusters", "message"),
    [
        (np.zeros((9, 3), np.float32), 10, "found 9 frames .* expected at least as many"),
        (np.full((9, 3), np.nan, np.float32), 2, "frame 0 has NaN or infinite"),
        (np.zeros((9, 3), np.float32), 70_000, "num_clusters=70000"),
        (np.zeros((9, 3), np.float32), 0, "num_clusters=0"),
    ],
)
def test_what_cannot_be_clustered_is_refused(frames, clusters, message):
    with pytest.raises(InputError, match=message):
        fit(frames, clusters)


def test_features_of_other_dimensions_are_refused():
    with pytest.raises(InputError, match="found features of 3 dimensions, the codebook has 2"):
        kmeans.assign(codebook_of(np.zeros((4, 2))), np.zeros((5, 3), np.float32))
    with pytest.raises(InputError, match=r"shape \(9,\)"):
        kmeans.assign(codebook_of(np.zeros((4, 2))), np.zeros(9, np.float32))


def test_codebook_files(tmp_path, features):
    codebook = fit(features, 10)
    codebook.save(tmp_path)
    loaded = Codebook.load(tmp_path)
    np.testing.assert_array_equal(loaded.centroids, codebook.centroids)
    assert loaded.digest == codebook.digest
    assert (loaded.feature, loaded.inertia) == ({"kind": "mfcc"}, codebook.inertia)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["codebook.json", "codebook.npz"]


def test_damaged_codebooks_are_refused(tmp_path):
    with pytest.raises(InputError, match="codebook description not found"):
        Codebook.load(tmp_path)
    codebook_of([[0.0], [1.0]]).save(tmp_path)
    described = json.loads((tmp_path / "codebook.json").read_text())
    (tmp_path / "codebook.json").write_text(
        json.dumps(described | {"feature": {"kind": "mfcc_librosa"}})
    )
    with pytest.raises(InputError, match="copy both files of one fit"):
        Codebook.load(tmp_path)
    codebook_of([[0.0], [1.0]]).save(tmp_path)
    content = (tmp_path / "codebook.npz").read_bytes()
    (tmp_path / "codebook.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="codebook.npz: not a codebook"):
        Codebook.load(tmp_path)
    (tmp_path / "codebook.npz").unlink()
    with pytest.raises(InputError, match="codebook.npz: codebook not found"):
        Codebook.load(tmp_path)


def test_a_header_that_numpy_would_parse_for_half_a_minute_is_refused(tmp_path):
    codebook_of([[0.0], [1.0]]).save(tmp_path)
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 1), }" + b" " * 5_000 + b"\n"
    array = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(8)
    with zipfile.ZipFile(tmp_path / "codebook.npz", "w") as file:
        file.writestr("centroids.npy", array)
    with pytest.raises(InputError, match=r"codebook.npz: .*[Hh]eader"):
        Codebook.load(tmp_path)


def test_any_damaged_byte_of_a_codebook_is_refused_or_changes_nothing(tmp_path):
    codebook = codebook_of([[0.0], [1.0]])
    codebook.save(tmp_path)
    for path in (tmp_path / "codebook.npz", tmp_path / "codebook.json"):
        content = path.read_bytes()
        for place, byte in enumerate(content):
            path.write_bytes(content[:place] + bytes([byte ^ 1]) + content[place + 1 :])
            try:
                assert Codebook.load(tmp_path).digest == codebook.digest
            except InputError:
                pass
        path.write_bytes(content)


def _sampled(seed, order, max_frames=60):
    """The frames, numbered 0 to 299, that are drawn from ten utterances added in some order."""
    sample = FrameSample(max_frames, seed)
    for utterance in order:
        frames = np.arange(utterance * 30, utterance * 30 + 30, dtype=np.float32)
        sample.add(f"utterance-{utterance}", frames[:, None])
    return sample.frames()[0][:, 0].astype(int)


def test_frame_sample_is_uniform():
    counts = np.zeros(300)
    for seed in range(200):
        frames = _sampled(seed, range(10))
        assert len(set(frames)) == 60
        counts[frames] += 1
    # 200 draws of 60 from 300: 40 a frame, standard deviation 5.7.
    assert abs(counts[:100].mean() - 40) < 3 and abs(counts[200:].mean() - 40) < 3
    assert counts.min() > 15 and counts.max() < 65


def test_frame_sample_does_not_depend_on_the_order_of_adding():
    expected = _sampled(3, range(10))
    for order in ([9, 8, 7, 6, 5, 4, 3, 2, 1, 0], [5, 0, 9, 1, 8, 2, 7, 3, 6, 4]):
        np.testing.assert_array_equal(_sampled(3, order), expected)
    # A larger sample begins with the smaller one.
    np.testing.assert_array_equal(_sampled(3, range(10), max_frames=100)[:60], expected)


def test_frame_sample_takes_little_more_memory_than_its_frames():
    rows, width = 20_000, 64
    features = np.random.default_rng(0).normal(size=(1_000, width)).astype(np.float32)
    tracemalloc.start()
    sample = FrameSample(rows, 0)
    for utterance in range(200):
        sample.add(f"utterance-{utterance}", features)
    frames = sample.frames()[0]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert frames.shape == (rows, width)
    # The waiting frames and the columns being put in order weigh more in a sample this small.
    assert peak < 1.6 * frames.nbytes


def test_small_samples_are_kept_whole():
    sample = FrameSample(1_000, 0)
    with pytest.raises(InputError, match="no utterance to fit on"):
        sample.frames()
    sample.add("utterance", np.ones((3, 2), np.float32))
    assert sample.frames()[0].shape == (3, 2)


def test_sampled_utterances_are_a_share_and_nested():
    ids = [f"utterance-{i}" for i in range(4_000)]
    tenth = {i for i in ids if kmeans.is_sampled(i, 0.1, 0)}
    half = {i for i in ids if kmeans.is_sampled(i, 0.5, 0)}
    assert 340 < len(tenth) < 460 and 1_900 < len(half) < 2_100
    assert tenth < half
    assert tenth != {i for i in ids if kmeans.is_sampled(i, 0.1, 1)}
    assert all(kmeans.is_sampled(i, 1.0, 0) for i in ids)
