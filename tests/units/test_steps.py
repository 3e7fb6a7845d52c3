"""Steps of features against NumPy in float64, loops and scikit-learn."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from hubert_jax import label
from hubert_jax.errors import InputError
from hubert_jax.units import kmeans, steps
from hubert_jax.units.clustering import KMeansConfig


@pytest.fixture(scope="module")
def frames():
    random = np.random.default_rng(0)
    mixed = random.normal(size=(500, 6)) @ random.normal(size=(6, 6)) + random.normal(size=6) * 9
    return mixed.astype(np.float32)


def around(frames, t, count):
    """The frames around frame t, one by one."""
    places = (min(max(t + k, 0), len(frames) - 1) for k in range(-(count // 2), count // 2 + 1))
    return [frames[place] for place in places]


def by_hand(step, frames):
    name, _, number = step.partition(" ")
    if name == "mean":
        return frames - frames.mean(axis=0)
    if name == "variance":
        return frames / frames.std(axis=0)
    if name == "take":
        first, last = map(int, number.split(":"))
        return np.array([[row[d] for d in range(first, last)] for row in frames])
    rows = [around(frames, t, int(number)) for t in range(len(frames))]
    if name == "splice":
        return np.array([np.concatenate(row) for row in rows])
    return np.array([np.mean(row, axis=0) for row in rows])


@pytest.mark.parametrize(
    "taken",
    [
        ("mean",),
        ("variance",),
        ("splice 1",),
        ("splice 5",),
        ("smooth 3",),
        ("take 2:5",),
        ("mean", "variance", "smooth 3", "splice 9", "take 5:50"),
        ("take 1:4", "splice 3", "mean"),
    ],
)
@pytest.mark.parametrize("length", [1, 3, 500])
def test_steps_are_their_definitions(frames, taken, length):
    frames = frames[:length]
    if length == 1 and "variance" in taken:
        pytest.skip("nothing varies")
    expected = frames.astype(np.float64)
    for step in taken:
        expected = by_hand(step, expected)
    found = steps.apply(taken, frames)
    assert found.dtype == np.float32 and found.shape[1] == steps.dimensions(taken, 6)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_what_does_not_vary_stays():
    """Digital silence, whose log-mels are all the same."""
    frames = np.full((7, 3), -15.942385, np.float32)
    np.testing.assert_array_equal(steps.apply(("mean", "variance"), frames), 0)
    np.testing.assert_array_equal(steps.apply(("variance",), frames), frames)


@pytest.mark.parametrize("size", [1, 4, 6])
def test_whitening_is_scikit_learns(frames, size):
    expected = PCA(size, whiten=True).fit(frames.astype(np.float64)).transform(frames)
    matrix = steps.whitening(frames, (f"whiten {size}",))
    assert matrix.dtype == np.float32 and matrix.shape == (7, size)
    found = steps.project(frames, matrix)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.cov(found.T), np.eye(size), atol=1e-5)
    some = steps.whitening(frames, (f"whiten {size}", "take 0:1"))
    np.testing.assert_array_equal(some, matrix[:, :1])
    # A frame's values do not depend on how many there are.
    np.testing.assert_array_equal(steps.project(frames[3:5], matrix), found[3:5])


def test_whitening_of_what_varies_in_fewer_dimensions_is_refused(frames):
    flat = np.concatenate([frames[:, :2], frames[:, :1] + 1, np.ones((500, 1), np.float32)], axis=1)
    assert steps.whitening(flat, ("whiten 2",)).shape == (5, 2)
    with pytest.raises(InputError, match="'whiten 3', but 500 frames that vary in 2 dimensions"):
        steps.whitening(flat, ("whiten 3",))
    with pytest.raises(InputError, match="1 frames that vary in 0"):
        steps.whitening(flat[:1], ("whiten 1",))


def test_a_whitened_codebook_labels_raw_frames(frames, tmp_path):
    frames = np.concatenate([frames] * 20)  # more than are multiplied together
    sample = kmeans.FrameSample(10_000, 0)
    sample.add("utterance", frames)
    quick = KMeansConfig(n_init=1, max_iter=3)
    codebook = kmeans.fit(sample, 5, 0, {"kind": "mfcc"}, quick, None, ("whiten 4", "take 1:4"))
    whitened = PCA(4, whiten=True).fit(frames.astype(np.float64)).transform(frames)[:, 1:]
    distances = np.square(whitened[:, None] - codebook.centroids).sum(axis=2)
    labels = kmeans.assign(codebook, frames)
    np.testing.assert_array_equal(labels, distances.argmin(axis=1))
    assert codebook.inertia == pytest.approx(distances.min(axis=1).mean(), rel=1e-4)
    codebook.save(tmp_path)
    loaded = kmeans.Codebook.load(tmp_path)
    np.testing.assert_array_equal(kmeans.assign(loaded, frames), labels)
    assert loaded.digest == codebook.digest and (loaded.dim, codebook.dim) == (6, 6)
    # The matrix is part of the digest.
    np.savez(
        tmp_path / "codebook.npz",
        centroids=codebook.centroids,
        projection=codebook.projection + np.float32(1e-3),
    )
    with pytest.raises(InputError, match="copy both files of one fit"):
        kmeans.Codebook.load(tmp_path)
    np.savez(tmp_path / "codebook.npz", centroids=codebook.centroids)
    with pytest.raises(InputError, match="copy both files of one fit"):
        kmeans.Codebook.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(steps=("means",)), "config.steps: found the step 'means', expected mean, variance, "),
        (dict(steps=("splice",)), "the step 'splice', expected mean"),
        (dict(steps=("splice 4",)), "the step 'splice 4', expected an odd number of frames, 99 at"),
        (dict(steps=("smooth 101",)), "the step 'smooth 101', expected an odd number"),
        (dict(steps=("take 13:40",)), "expected A < B, and B at most the 39 dimensions that there"),
        (dict(steps=("take 3:3",)), "the step 'take 3:3', expected A < B"),
        (dict(steps=("whiten 40",)), "expected 39 dimensions at most"),
        (dict(steps=("splice 3", "whiten 118")), "expected 117 dimensions at most"),
        (dict(steps=("whiten 9", "mean")), "the step 'mean', expected nothing but take after whi"),
        (dict(steps=("whiten 9", "whiten 8")), "expected nothing but take after whiten"),
        (dict(steps=("whiten 9", "take 0:10")), "at most the 9 dimensions"),
        (dict(feature="cepstra", steps=("take 0:14",)), "at most the 13 dimensions"),
        (dict(feature="random_projection", steps=("whiten 3",)), "expected no whiten, which is"),
        (
            dict(
                steps=("take 0:13",), codebooks=(label.CodebookConfig("a", steps=("take 9:14",)),)
            ),
            r"config.codebooks\[0\].steps: found the step 'take 9:14', expected .* 13 dimensions",
        ),
        (dict(codebooks=(label.CodebookConfig(".."),)), r"codebooks\[0\].name='..': expected let"),
        (dict(codebooks=(label.CodebookConfig("a.b"),)), r"codebooks\[0\].name='a.b': expected"),
        (dict(codebooks=(label.CodebookConfig("a"),) * 2), r"names \['a', 'a'\], expected differ"),
        (
            dict(codebooks=(label.CodebookConfig("a"), label.CodebookConfig("b", 0))),
            r"config.codebooks\[1\].num_clusters=0: expected 1 to 65,536",
        ),
        (
            dict(codebooks=(label.CodebookConfig("b", 500),), fit_max_frames=400),
            "fit_max_frames=400: expected at least num_clusters=500",
        ),
        (dict(feature="phones"), "feature='phones' with config.alignments='': expected files for"),
        (dict(alignments="a"), "feature='mfcc' with config.alignments='a': expected .* none for"),
        (dict(feature="units", units=("a",)), "with config.utterances=.*: expected files for"),
        (
            dict(feature="units", units=("a", "b"), utterances=("a",)),
            "config.utterances=.*: expected the .tsv of each file",
        ),
        (
            dict(feature="phones", alignments="a", steps=("mean",)),
            "config.steps=.*: expected none with feature='phones', whose labels are given",
        ),
        (dict(frame_rate=60), "config.frame_rate=60: expected 50 or 100"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_read(changes, message):
    with pytest.raises(InputError, match=message) as refusal:
        label.LabelConfig("run", ("audio",), **changes)
    assert "\n" not in str(refusal.value)
