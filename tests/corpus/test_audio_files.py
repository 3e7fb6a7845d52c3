"""Reading audio files: exactness, conversion, and one clear line for each kind of bad file."""

import os
import pathlib

import numpy as np
import pytest
import soundfile

from hubert_jax.corpus import audio_files
from hubert_jax.corpus.audio_files import Samples, read_waveform, waveform_blocks
from hubert_jax.errors import InputError

CORPUS = pathlib.Path(__file__).parents[2] / "examples" / "minilibri"
SPEECH = CORPUS / "dev-mini" / "1898" / "145715" / "1898-145715-0017.opus"


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    return read_waveform(SPEECH)


def test_opus_length_fits_its_alignment(speech):
    lines = (CORPUS / "alignments" / "dev-mini.phones.txt").read_text().splitlines()
    ends = [float(line.split()[2]) for line in lines if line.startswith(SPEECH.stem)]
    assert speech.dtype == np.int16
    assert len(speech) / 16_000 == pytest.approx(ends[-1], abs=0.0006)


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_lossless_formats_come_back_exactly(tmp_path, suffix):
    # Every 16-bit value, full scale included.
    samples = np.arange(-32768, 32768, dtype=np.int32).astype(np.int16)
    soundfile.write(tmp_path / f"a.{suffix}", samples, 16_000, subtype="PCM_16")
    np.testing.assert_array_equal(read_waveform(tmp_path / f"a.{suffix}"), samples)


def test_float_samples_are_rounded_and_clipped(tmp_path):
    samples = np.full(400, 0.25, np.float32)
    samples[:4] = [1.5, -1.5, 0.7 / 32768, -0.3 / 32768]
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    waveform = read_waveform(tmp_path / "a.wav")
    assert waveform[:5].tolist() == [32767, -32768, 1, 0, 8192]


def test_stereo_is_mixed_down_only_when_asked(tmp_path, speech):
    other = np.roll(speech, 100)
    soundfile.write(tmp_path / "a.wav", np.stack([speech, other], axis=1), 16_000)
    with pytest.raises(InputError, match="found stereo, expected mono at 16000 Hz; pass --config"):
        read_waveform(tmp_path / "a.wav")
    expected = (speech.astype(np.float64) + other) / 2
    converted = read_waveform(tmp_path / "a.wav", convert=True)
    assert np.abs(converted - expected).max() <= 0.5


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000, 192_000])
def test_other_rates_are_resampled_only_when_asked(tmp_path, rate):
    def tone(rate):
        return np.sin(2 * np.pi * 440 * np.arange(rate) / rate) * 0.5

    soundfile.write(tmp_path / "a.wav", tone(rate), rate)
    with pytest.raises(InputError, match=f"found {rate} Hz, expected mono at 16000 Hz"):
        read_waveform(tmp_path / "a.wav")
    converted = read_waveform(tmp_path / "a.wav", convert=True) / 32768
    assert len(converted) == 16_000
    # The ends ring; in between the resampled tone is the tone at 16 kHz.
    np.testing.assert_allclose(converted[500:-500], tone(16_000)[500:-500], atol=1e-3)


def _cut(content: bytes) -> bytes:
    return content[: len(content) * 6 // 10]


def _damaged(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]


@pytest.mark.parametrize(
    ("suffix", "change", "message"),
    [
        ("mp3", _cut, r"cut off, \d+ samples found, \d+ expected"),
        ("mp3", lambda content: b"", r"empty file \(0 bytes\)"),
        ("wav", _cut, r"cut off, \d+ samples found, 186080 expected"),
        ("flac", _cut, r"cut off, \d+ samples found, 186080 expected"),
        ("ogg", _cut, "cut off .* the page that ends an Ogg stream is not there"),
        ("opus", _cut, "cut off .* the page that ends an Ogg stream is not there"),
        ("flac", _damaged, "corrupt or not audio"),
        ("ogg", _damaged, r"corrupt or cut off, \d+ samples found, 186080 expected"),
        ("opus", _damaged, r"corrupt or cut off, \d+ samples found, 186080 expected"),
        ("opus", lambda content: b"", r"empty file \(0 bytes\)"),
        ("wav", lambda content: content[:20], "cut off before its audio"),
        ("wav", lambda content: b"version https://git-lfs.github.com/spec/v1\n", "of Git LFS"),
        ("opus", lambda content: b"<!DOCTYPE html><title>404</title>", "a web page saved under"),
        ("flac", lambda content: b"not audio at all" * 100, "not audio; expected WAV, FLAC, Ogg"),
    ],
)
def test_cut_off_and_damaged_files(tmp_path, speech, suffix, change, message):
    path = tmp_path / f"a.{suffix}"
    if suffix == "opus":
        path.write_bytes(SPEECH.read_bytes())
    else:
        soundfile.write(path, speech, 16_000)
    # MP3 has whole frames only.
    assert len(read_waveform(path)) == pytest.approx(len(speech), abs=1152 * (suffix == "mp3"))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputError, match=message) as error:
        read_waveform(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros(0, np.float32), "0 samples; expected at least 400"),
        (np.zeros(399, np.float32), "399 samples at 16 kHz; expected at least 400"),
        (np.where(np.arange(500) == 7, np.nan, 0).astype(np.float32), "NaN .* at sample 7;"),
        (np.where(np.arange(500) == 7, np.inf, 0).astype(np.float32), "infinite at sample 7;"),
        (np.full(500, 12345, np.float32), "floating-point samples up to 12345;"),
    ],
)
def test_samples_that_cannot_be_used(tmp_path, samples, message):
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    with pytest.raises(InputError, match=message):
        read_waveform(tmp_path / "a.wav")


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="a.wav: cannot be read .No such file"):
        read_waveform(tmp_path / "a.wav")


@pytest.mark.parametrize("coded", ["mp3", "flac", "ogg"])
def test_a_file_is_what_it_holds_not_what_its_name_says(tmp_path, speech, coded):
    soundfile.write(tmp_path / f"a.{coded}", speech, 16_000)
    renamed = tmp_path / "a.wav"
    renamed.write_bytes((tmp_path / f"a.{coded}").read_bytes())
    expected = read_waveform(tmp_path / f"a.{coded}")
    np.testing.assert_array_equal(read_waveform(renamed), expected)
    # So it is where it lies in a table.
    np.testing.assert_array_equal(read_waveform(renamed.read_bytes(), name="row 1"), expected)


def test_six_channels_at_192_khz(tmp_path, speech):
    # The same in all channels: their mean is any of them.
    soundfile.write(tmp_path / "a.wav", np.repeat(speech[:, None], 6, axis=1), 192_000)
    with pytest.raises(InputError, match="found 6 channels at 192000 Hz, expected mono"):
        read_waveform(tmp_path / "a.wav")
    assert len(read_waveform(tmp_path / "a.wav", convert=True)) == round(len(speech) / 12)


def test_blocks_are_the_waveform_whatever_the_length(tmp_path, speech):
    """Resampled in a stream and at once: the same to half a step and a little."""
    import soxr

    long = np.tile(speech, 20)  # several blocks
    soundfile.write(tmp_path / "a.flac", long, 22_050)
    blocks = list(waveform_blocks(tmp_path / "a.flac", convert=True))
    assert len(blocks) > 3
    whole = soxr.resample(long / 32768.0, 22_050, 16_000, quality="HQ") * 32768.0
    assert len(np.concatenate(blocks)) == len(whole)
    assert np.abs(np.concatenate(blocks) - np.clip(whole, -32768, 32767)).max() < 1.0


@pytest.mark.parametrize("suffix", ["ogg", "opus", "mp3"])
def test_coded_formats_go_on_between_blocks(tmp_path, speech, suffix, monkeypatch):
    path = tmp_path / f"a.{suffix}"
    subtype = "OPUS" if suffix == "opus" else None
    soundfile.write(path, speech, 16_000, subtype=subtype, format="OGG" if subtype else None)
    whole = read_waveform(path)
    monkeypatch.setattr(audio_files, "_BLOCK_VALUES", 10_007)
    assert len(list(waveform_blocks(path))) > 15
    np.testing.assert_array_equal(read_waveform(path), whole)


@pytest.mark.parametrize("suffix", ["flac", "ogg", "opus", "mp3"])
def test_what_is_too_long_is_not_decoded(tmp_path, speech, suffix, monkeypatch):
    path = tmp_path / f"a.{suffix}"
    subtype = "OPUS" if suffix == "opus" else None
    soundfile.write(path, speech, 16_000, subtype=subtype, format="OGG" if subtype else None)
    monkeypatch.setattr(audio_files, "_LONGEST", len(speech))
    assert len(read_waveform(path)) == len(speech)
    monkeypatch.setattr(audio_files, "_LONGEST", len(speech) - 1)
    monkeypatch.setattr(audio_files, "_SoundFile", None)
    with pytest.raises(InputError, match=f"a.{suffix}: an utterance of more than"):
        read_waveform(path)


def test_samples_of_a_data_set(speech):
    samples = Samples(speech[:, None].astype(np.float32) / 32768, 16_000)
    np.testing.assert_array_equal(read_waveform(samples, name="row"), speech)
    with pytest.raises(InputError, match="row: found 8000 Hz"):
        read_waveform(Samples(samples.values, 8_000), name="row")


@pytest.mark.parametrize("rate", [1, 2_000_000])
def test_rates_that_only_damage_explains(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", np.zeros(500, np.int16), 16_000)
    content = bytearray((tmp_path / "a.wav").read_bytes())
    content[24:28] = rate.to_bytes(4, "little")
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(InputError, match=f"{rate} Hz; expected 4000 to 768000 Hz"):
        read_waveform(tmp_path / "a.wav", convert=True)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.wav")
    with pytest.raises(InputError, match="a.wav: not a regular file"):
        read_waveform(tmp_path / "a.wav")
