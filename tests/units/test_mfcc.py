"""MFCC against the definition written out in float64, a NumPy oracle, and librosa."""

import pathlib

import mfcc_oracle
import numpy as np
import pytest

from hubert_jax.errors import InputError
from hubert_jax.frames import num_frames
from hubert_jax.units.mfcc import DIMS, mfcc


def of(waveform, kind="mfcc"):
    return next(mfcc([("", waveform)], kind))[1]


def mel(hertz):
    return 1127 * np.log(1 + hertz / 700)


def cepstrum_by_definition(frame):
    """13 cepstra of 400 float64 samples, step by step, with sums instead of transforms."""
    x = frame - frame.mean()
    x = np.array([x[i] - 0.97 * x[max(i - 1, 0)] for i in range(400)])
    x *= (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)) ** 0.85
    n = np.arange(400)
    power = [abs(np.sum(x * np.exp(-2j * np.pi * k * n / 512))) ** 2 for k in range(257)]
    edges = np.linspace(mel(20.0), mel(8000.0), 25)
    logs = []
    for b in range(23):
        left, centre, right = edges[b : b + 3]
        energy = 0.0
        for k in range(256):
            m = mel(k * 16_000 / 512)
            if left < m <= centre:
                energy += power[k] * (m - left) / (centre - left)
            elif centre < m < right:
                energy += power[k] * (right - m) / (right - centre)
        logs.append(np.log(max(energy, 2.0**-23)))
    cepstra = []
    for i in range(13):
        norm = np.sqrt((1 if i == 0 else 2) / 23)
        total = sum(logs[b] * np.cos(np.pi * i * (b + 0.5) / 23) for b in range(23))
        cepstra.append(norm * total * (1 + 11 * np.sin(np.pi * i / 22)))
    return np.array(cepstra)


def differences_by_definition(rows):
    at = lambda t: rows[min(max(t, 0), len(rows) - 1)]  # noqa: E731
    slopes = [
        sum(k * (at(t + k) - at(t - k)) for k in (1, 2)) / (2 * (1 + 4)) for t in range(len(rows))
    ]
    return np.array(slopes)


def test_mfcc_is_kaldis_definition(speech):
    samples = next(iter(speech.values()))[8_000 : 8_000 + 400 + 7 * 160 + 159]
    waveform = samples / 32768
    cepstra = np.array([cepstrum_by_definition(waveform[t : t + 400]) for t in range(0, 1121, 160)])
    first = differences_by_definition(cepstra)
    expected = np.concatenate([cepstra, first, differences_by_definition(first)], axis=1)
    found = of(waveform.astype(np.float32))
    assert found.dtype == np.float32
    assert found.shape == expected.shape == (8, 39)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_mfcc_equals_torchaudio():
    golden = np.load(pathlib.Path(__file__).with_name("kaldi_mfcc.npz"))  # by make_golden.py
    found = of(golden["samples"].astype(np.float32) / 32768)
    np.testing.assert_allclose(found, golden["features"], atol=1e-3)


@pytest.mark.parametrize("kind", DIMS)
def test_utterances_of_one_strip_and_of_several_are_the_oracles(kind, speech):
    """Among them the shortest, one longer than a strip, and silence; edges and differences too."""
    audio = [samples.astype(np.float32) / 32768 for samples in speech.values()]
    long = np.concatenate(audio * (1 + 90 * 16_000 // sum(map(len, audio))))
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 1_200).astype(np.float32)
    waveforms = [*audio, noise[:400], noise[:559], noise[:560], noise, long, np.zeros_like(noise)]
    found = list(mfcc(enumerate(waveforms), kind))
    assert [key for key, _ in found] == list(range(len(waveforms)))
    for waveform, (_, features) in zip(waveforms, found, strict=True):
        expected = getattr(mfcc_oracle, kind)(waveform)
        assert features.shape == expected.shape == (num_frames(len(waveform), 100), DIMS[kind])
        np.testing.assert_allclose(features, expected, atol=1e-4)
    # What lies beside an utterance, and where, changes no bit of it.
    for index in (0, 3, len(audio)):
        np.testing.assert_array_equal(of(waveforms[index], kind), found[index][1])


def test_silence_meets_the_floor_and_nothing_is_infinite():
    found = of(np.zeros(1_600, np.float32))
    assert found[0, 0] == pytest.approx(np.sqrt(23) * np.log(2.0**-23), rel=1e-6)
    np.testing.assert_allclose(found[:, 1:], 0, atol=1e-4)


def test_damage_stays_in_its_utterance():
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 4_000).astype(np.float32)
    for bad in (np.nan, np.inf, 1e30):
        broken = np.full(4_000, bad, np.float32)
        waveforms = {"a": noise, "broken": broken, "b": noise[::-1]}
        found = dict(mfcc(waveforms.items()))
        for key in "ab":
            np.testing.assert_array_equal(found[key], of(waveforms[key]))


def test_librosa_variant_is_librosas(speech):
    import librosa

    waveform = next(iter(speech.values()))[:16_000].astype(np.float32) / 32768
    found = of(waveform, "mfcc_librosa")
    # librosa's own padding centres frame t at sample 160 t; ours is centred at 160 t + 200.
    centred = librosa.feature.mfcc(
        y=waveform[200:].astype(np.float64), sr=16_000, n_mfcc=13, hop_length=160, win_length=400
    ).T
    inner = slice(2, len(found) - 2)
    # top_db clips at the utterance's maximum, which the padding leaves alone.
    np.testing.assert_allclose(found[inner, :13], centred[inner], atol=1e-4)
    assert np.abs(found[:, :13] - of(waveform)[:, :13]).max() > 10


@pytest.mark.parametrize("kind", DIMS)
@pytest.mark.parametrize(
    ("waveform", "found"),
    [
        (np.zeros(399, np.float32), "399 samples"),
        (np.zeros(1_600, np.int16), "int16"),
        (np.zeros((2, 1_600), np.float32), r"\(2, 1600\)"),
    ],
)
def test_unusable_waveforms_are_refused(kind, waveform, found):
    with pytest.raises(InputError, match=f"found .*{found}.*expected"):
        of(waveform, kind)
