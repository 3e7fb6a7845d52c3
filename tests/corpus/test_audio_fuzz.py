"""A part of `benchmarks.audio_fuzz`: no file comes back silently shorter or longer."""

import collections

import pytest

from benchmarks import audio_fuzz


def test_no_file_is_silently_shorter(tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    counts, failures = audio_fuzz.run(
        len(audio_fuzz.FORMATS) * len(audio_fuzz.CHANGES), 5, tmp_path
    )
    assert not failures
    outcomes = sum(counts.values(), collections.Counter())
    assert min(outcomes[name] for name in ("equal", "flagged", "refused")) > 20
