"""The probe against scikit-learn, and its error rates against counting."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from hubert_jax.errors import InputError
from hubert_jax.quality.probe import Probe, ProbeConfig, scores


@pytest.fixture(scope="module")
def frames():
    """Four phones in 12 dimensions that overlap, of unlike scales: (1,500, 12), (1,500,)."""
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 4, 1_500)
    centres = rng.normal(size=(4, 12))
    features = (centres[numbers] + 1.2 * rng.normal(size=(1_500, 12))) * np.geomspace(1e-3, 1e3, 12)
    features[:, 3] = 7.0  # says nothing
    return features.astype(np.float32), np.array(["A", "B", "C D", "SIL"])[numbers]


def test_one_layer_is_scikit_learns_logistic_regression(frames):
    features, phones = frames
    train, test = slice(0, 1_000), slice(1_000, None)
    probe = Probe.fit(features[None, train], phones[train], ProbeConfig(l2=2.0))
    scaler = StandardScaler().fit(features[train].astype(np.float64))
    model = LogisticRegression(C=0.5, tol=1e-8, max_iter=1_000)
    model.fit(scaler.transform(features[train]), phones[train])
    expected = model.predict(scaler.transform(features[test]))
    found = probe.classify(features[None, test])
    assert np.mean(found == expected) > 0.99
    accuracy = np.mean(found == phones[test])
    assert abs(accuracy - np.mean(expected == phones[test])) < 0.01 and 0.5 < accuracy < 0.98
    assert probe.layer_weights.tolist() == [1.0]
    again = Probe.fit(features[None, train], phones[train], ProbeConfig(l2=2.0))
    np.testing.assert_array_equal(again.classify(features[None]), probe.classify(features[None]))


def test_the_layer_that_knows_more_gets_the_weight(frames):
    features, phones = frames
    noise = np.random.default_rng(1).normal(size=(2, *features.shape)).astype(np.float32)
    layers = np.stack([noise[0], features, noise[1]])
    probe = Probe.fit(layers[:, :1_000], phones[:1_000], ProbeConfig())
    assert probe.layer_weights[1] > 0.9 and probe.layer_weights.sum() == pytest.approx(1)
    alone = Probe.fit(features[None, :1_000], phones[:1_000], ProbeConfig())
    rates = [
        np.mean(each.classify(of[:, 1_000:]) == phones[1_000:])
        for each, of in ((probe, layers), (alone, features[None]))
    ]
    assert rates[0] > rates[1] - 0.03


def test_error_rates_of_utterances():
    """Kitten and sitting: of runs, silence is one of them, and phones may have spaces."""
    spoken = {"u": "K K I T T E N".split(), "v": ["SIL", "C D"]}
    found = {"u": "S I I T E N G".split(), "v": ["SIL", "C D"]}
    arrays = [{name: np.array(of) for name, of in each.items()} for each in (spoken, found)]
    # KITEN, SITENG: a substitution and an insertion, of 5 + 2 phones.
    assert scores(*arrays) == {"frame_accuracy": 4 / 9, "phone_error_rate": 2 / 7}


def test_unusable_frames_are_refused(frames):
    with pytest.raises(InputError, match="fewer than two phones"):
        Probe.fit(frames[0][None], np.full(1_500, "A"), ProbeConfig())
    broken = frames[0].copy()
    broken[5, 5] = np.nan
    with pytest.raises(InputError, match="NaN or infinite weights"):
        Probe.fit(broken[None], frames[1], ProbeConfig(iterations=1))
    nothing = {"u": np.zeros(0, "<U1")}
    with pytest.raises(InputError, match="no frame to score"):
        scores(nothing, nothing)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"minutes": -1.0}, "config.probe.minutes=-1.0: expected 0 or more"),
        ({"l2": -1.0}, "config.probe.l2"),
        ({"iterations": 0}, "config.probe.iterations=0: expected 1 or more"),
    ],
)
def test_unusable_settings_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        ProbeConfig(**values)
