"""What the pictures of units are drawn from, against counts made by hand."""

import numpy as np

from hubert_jax.report import figures


def test_units_follow_their_likeliest_phone():
    counts = np.array(
        [
            [0, 8, 1, 0, 0],  # AA
            [6, 0, 1, 0, 9],  # SIL
            [0, 0, 0, 0, 0],  # ZH never occurs
            [0, 0, 1, 0, 0],  # unknown
            [4, 2, 2, 0, 1],  # S
        ]
    )
    phones, units, conditional = figures._sort_by_phone(["AA", "SIL", "ZH", "qx", "S"], counts)
    assert phones == ["SIL", "S", "AA", "qx"]
    assert units.tolist() == [4, 0, 2, 1]  # SIL 0.9, SIL 0.6, S 0.4, AA 0.8; unit 3 is unused
    np.testing.assert_allclose(
        conditional,
        [[0.9, 0.6, 0.2, 0.0], [0.1, 0.4, 0.4, 0.2], [0.0, 0.0, 0.2, 0.8], [0, 0, 0.2, 0]],
    )


def test_silence_has_a_spectrogram():
    drawn = figures.speech(
        np.zeros(16_000, np.int16), {"units": (np.zeros(49, int), 50, {})}, None, 0
    )
    assert drawn.startswith("<svg") and "NaN" not in drawn
