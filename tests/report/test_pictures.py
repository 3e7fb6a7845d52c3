"""What the pictures are drawn from, against counts and signals made by hand."""

import numpy as np

from hubert_jax.report import phones
from hubert_jax.report.contents import JointCounts
from hubert_jax.report.pictures import sorted_conditional, spectrogram
from hubert_jax.report.plots import thinned


def test_units_follow_their_likeliest_phone():
    counts = [
        [0, 8, 1, 0, 0],  # AA
        [6, 0, 1, 0, 9],  # SIL
        [0, 0, 0, 0, 0],  # ZH never occurs
        [4, 2, 3, 0, 1],  # S
    ]
    names, units, conditional = sorted_conditional(JointCounts(["AA", "SIL", "ZH", "S"], counts))
    assert names == ["SIL", "S", "AA"]
    assert units.tolist() == [4, 0, 2, 1]  # SIL 0.9, SIL 0.6, S 0.6, AA 0.8; unit 3 is unused
    np.testing.assert_allclose(
        conditional, [[0.9, 0.6, 0.2, 0.0], [0.1, 0.4, 0.6, 0.2], [0.0, 0.0, 0.2, 0.8]]
    )


def test_no_counts_at_all():
    names, units, conditional = sorted_conditional(JointCounts(["AA"], np.zeros((1, 3))))
    assert (names, units.size, conditional.size) == ([], 0, 0)


def test_articulatory_order():
    given = ["IY", "qx", "Z", "AA1", "SIL", "p", "S", "OY", "N", "ZZ"]
    assert phones.articulatory_order(given) == [
        *("SIL", "p", "S", "Z", "N", "IY", "AA1", "OY"),
        *("ZZ", "qx"),
    ]
    assert phones.group("AA1") == "vowels"
    assert phones.group("qx") == "others"


def test_every_phone_of_cmudict_has_a_place_and_its_own_colour():
    known = [phone for _, group in phones.GROUPS for phone in group]
    assert len(known) == len(set(known)) == 39 + 4
    spoken = [phone for phone in known if phones.group(phone) != "silence"]
    assert len({phones.colours(known)[phone] for phone in spoken}) == 39


def test_a_tone_is_loudest_at_its_frequency_and_time():
    time = np.arange(16_000) / 16_000
    tone = np.where(time < 0.5, np.sin(2 * np.pi * 2000 * time), 0.0)
    decibels = spectrogram(tone, 16_000)
    frequencies, windows = decibels.shape
    assert windows == 251  # every 4 ms, both ends included
    assert decibels.max() == 0.0
    assert decibels.min() == -70.0
    loudest = decibels[:, 10:110].argmax(axis=0) * 8000 / (frequencies - 1)
    np.testing.assert_allclose(loudest, 2000, atol=63)
    assert (decibels[:, 130:] == -70).all()


def test_silence_has_a_spectrogram():
    assert (spectrogram(np.zeros(800, np.int16), 16_000) == -70).all()


def test_thinned_curves_keep_the_mean_and_drop_what_was_not_logged():
    values = np.arange(1000.0)
    values[::2] = np.nan
    curve = {"step": np.arange(1000), "loss": values}
    steps, means = thinned(curve, "loss", points=10)
    np.testing.assert_allclose(means, np.arange(1.0, 1000, 2).reshape(10, 50).mean(axis=1))
    np.testing.assert_array_equal(steps, means)
    assert [len(series) for series in thinned(curve, "accuracy")] == [0, 0]
