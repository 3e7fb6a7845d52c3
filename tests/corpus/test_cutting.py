"""Long recordings cut at silences: against a brute-force search, and never inside speech."""

import numpy as np
import pytest

from hubert_jax.corpus.audio_files import read_waveform
from hubert_jax.corpus.cutting import pieces

RATE = 16_000


@pytest.fixture(scope="module")
def speech(minilibri) -> np.ndarray:
    """Two and a half minutes of one reader."""
    paths = sorted((minilibri / "dev-mini" / "1898").rglob("*.opus"))[:14]
    return np.concatenate([read_waveform(path) for path in paths])


def _blocks(waveform: np.ndarray, size: int = 100_003):
    return (waveform[i : i + size] for i in range(0, len(waveform), size))


@pytest.mark.parametrize("longest", [8.0, 30.0])
def test_pieces_lie_end_to_end_and_have_the_wanted_lengths(speech, longest):
    found = list(pieces(_blocks(speech), longest))
    assert len(found) >= len(speech) / RATE / longest
    np.testing.assert_array_equal(np.concatenate([waveform for *_, waveform in found]), speech)
    ends = [0]
    for start, end, waveform in found:
        assert start == ends[-1] and end - start == len(waveform)
        assert 2 * RATE <= end - start <= longest * RATE
        ends.append(end)


def test_cuts_do_not_depend_on_the_blocks(speech):
    expected = [piece[:2] for piece in pieces([speech], 12.0)]
    for size in (160, 99_999, 1_000_000):
        assert [piece[:2] for piece in pieces(_blocks(speech, size), 12.0)] == expected


def _energy(waveform: np.ndarray, centre: int) -> float:
    """Of the loudest 10 ms within 0.15 s of a cut."""
    around = waveform[centre - 2400 : centre + 2400].astype(np.float64).reshape(-1, 160)
    return (around**2).mean(axis=1).max()


def test_cuts_are_in_silence(speech):
    """Every cut is where 0.3 s are 30 dB below speech, or at the quietest place there is."""
    steps = speech[: len(speech) // 160 * 160].reshape(-1, 160).astype(np.float64)
    typical = np.percentile((steps**2).mean(axis=1), 95)
    silent = 0
    for start, end, _ in list(pieces([speech], 12.0))[:-1]:
        level = _energy(speech, end)
        silent += level < typical / 500
        candidates = range(start + 2 * RATE, min(start + 12 * RATE, len(speech) - 2400), 160)
        quietest = min(_energy(speech, centre) for centre in candidates)
        assert level < typical / 500 or level == quietest
    assert silent >= 8


def test_the_last_silence_is_taken_and_its_middle():
    random = np.random.default_rng(0)
    noise = random.integers(-8000, 8000, 40 * RATE).astype(np.int16)
    for second in (5, 21, 28):
        noise[second * RATE : second * RATE + RATE // 2] //= 4000
    (_, first, _), (_, end, _) = pieces([noise], 30.0)
    # 0.3 s of silence on which the cut lies in the middle end where the silence ends.
    assert first == int(28.35 * RATE) and end == 40 * RATE


def test_noise_without_silence_and_silence_without_sound_are_cut_all_the_same():
    noise = np.random.default_rng(1).integers(-99, 99, 95 * RATE).astype(np.int16)
    for waveform in (noise, np.zeros_like(noise)):
        lengths = [end - start for start, end, _ in pieces(_blocks(waveform), 30.0)]
        assert sum(lengths) == len(waveform)
        assert all(2 * RATE <= length <= 30 * RATE for length in lengths)


@pytest.mark.parametrize("seconds", [30.0, 30.1, 31.9, 32.0, 61.9])
def test_no_remainder_is_too_short(seconds):
    waveform = np.zeros(int(seconds * RATE), np.int16)
    lengths = [end - start for start, end, _ in pieces([waveform], 30.0)]
    assert sum(lengths) == len(waveform)
    assert len(lengths) == 1 if seconds == 30.0 else min(lengths) >= 2 * RATE


def test_memory_does_not_grow_with_the_recording():
    """Two hours, block by block: never more than a block and a piece are at hand."""
    import tracemalloc

    block = np.random.default_rng(2).integers(-999, 999, 10 * RATE).astype(np.int16)
    tracemalloc.start()
    count = sum(1 for _ in pieces((block for _ in range(720)), 30.0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count >= 240
    assert peak < 25e6
