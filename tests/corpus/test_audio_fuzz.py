"""A part of `benchmarks.audio_fuzz`: no file comes back silently shorter or longer."""

import collections

from benchmarks import audio_fuzz


def test_no_file_is_silently_shorter(tmp_path):
    # Every third of the pairs, so that each format and each change is among them.
    numbers = range(0, len(audio_fuzz.FORMATS) * len(audio_fuzz.CHANGES), 3)
    counts, failures = audio_fuzz.run(numbers, 5, tmp_path)
    assert not failures
    outcomes = sum(counts.values(), collections.Counter())
    assert min(outcomes[name] for name in ("equal", "flagged", "refused")) > 5
