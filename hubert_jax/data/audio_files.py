"""Audio files to 16 kHz mono waveforms, with every way in which a file can be bad named.

libsndfile is lenient: it reads a cut-off WAV or Ogg file without a word and stops in the middle of
a damaged Ogg stream. Audio that ends early no longer fits its transcript or its alignment, so all
of this is looked for here.
"""

import os
import pathlib
import re

import numpy as np
import soundfile

from hubert_jax.data.waveform import SAMPLE_RATE
from hubert_jax.errors import InputError

# The receptive field of one frame, 25 ms.
MIN_SAMPLES = 400
# Float files may exceed full scale a little; this far beyond, they hold integers.
_MAX_FLOAT = 4.0
# FLAC written to a pipe; libsndfile then reports the largest 64-bit number.
_UNKNOWN_LENGTH = 2**40
_OGG_LAST_PAGE = 4
_OGG_MAX_PAGE_BYTES = 65_307


def read_waveform(path: str | os.PathLike, convert: bool = False) -> np.ndarray:
    """Reads an audio file (WAV, FLAC, Ogg Vorbis, Ogg Opus).

    Args:
      path: the file.
      convert: mix channels down to their mean and resample other rates (soxr, high quality);
        without it such files are refused.

    Returns:
      int16, shape (samples,), mono at 16 kHz, at least 400 samples. Files of 16 bits and less
      come back exactly; others are rounded to the nearest step and clipped at full scale.

    Raises:
      InputError: the file is missing, empty, not audio, damaged, cut off, holds NaN or infinite
        samples, has another rate or several channels while `convert` is False, or is too short.
        The message starts with the path.
    """
    path = pathlib.Path(path)
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{path}: empty file (0 bytes); expected audio")
        with soundfile.SoundFile(path) as file:
            _check_format(path, file, convert)
            waveform = file.read(dtype="float32", always_2d=True)
            _check_complete(path, file, len(waveform))
            rate, subtype = file.samplerate, file.subtype
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except soundfile.LibsndfileError as error:
        raise InputError(
            f"{path}: corrupt or not audio ({error.error_string.strip(' .')}); "
            "expected WAV, FLAC, Ogg Vorbis or Opus"
        ) from None
    if not np.isfinite(waveform).all():
        where = int(np.argmin(np.isfinite(waveform).all(axis=1)))
        raise InputError(f"{path}: NaN or infinite at sample {where}; expected finite samples")
    if subtype in ("FLOAT", "DOUBLE") and np.abs(waveform).max() > _MAX_FLOAT:
        raise InputError(
            f"{path}: floating-point samples up to {np.abs(waveform).max():.6g}; "
            "expected values between -1 and 1"
        )
    mono = waveform.mean(axis=1) if waveform.shape[1] > 1 else waveform[:, 0]
    if rate != SAMPLE_RATE:
        import soxr

        mono = soxr.resample(mono, rate, SAMPLE_RATE, quality="HQ")
    if len(mono) < MIN_SAMPLES:
        raise InputError(
            f"{path}: {len(mono)} samples at 16 kHz; expected at least {MIN_SAMPLES} (one frame)"
        )
    return np.clip(np.rint(mono * 32768.0), -32768, 32767).astype(np.int16)


def _check_format(path: pathlib.Path, file: soundfile.SoundFile, convert: bool) -> None:
    """Refuses from the header alone what need not be decoded."""
    if file.frames == 0:
        raise InputError(f"{path}: 0 samples; expected at least {MIN_SAMPLES}")
    if file.frames >= _UNKNOWN_LENGTH:
        raise InputError(f"{path}: its header states no length; expected it, code the file again")
    found = []
    if file.channels != 1:
        found.append("stereo" if file.channels == 2 else f"{file.channels} channels")
    if file.samplerate != SAMPLE_RATE:
        found.append(f"{file.samplerate} Hz")
    if found and not convert:
        raise InputError(
            f"{path}: found {' at '.join(found)}, expected mono at {SAMPLE_RATE} Hz; "
            "pass --config.convert=True to mix down and resample"
        )


def _check_complete(path: pathlib.Path, file: soundfile.SoundFile, decoded: int) -> None:
    expected = file.frames
    if file.format == "WAV":
        # libsndfile takes what is there and notes the difference in its log. Programs that write
        # to a pipe do not know the length and leave 0 or a huge number.
        note = re.search(r"^\s*data : (\d+) \(should be \d+\)", file.extra_info, re.MULTILINE)
        frame_bytes = file.channels * {"PCM_U8": 1, "PCM_16": 2, "PCM_24": 3}.get(file.subtype, 4)
        if note and 0 < int(note[1]) < 2**31 - 2**16:
            expected = int(note[1]) // frame_bytes
    if decoded < expected:
        raise InputError(
            f"{path}: corrupt or cut off, {decoded} samples found, {expected} expected; "
            "copy the file again"
        )
    if file.format == "OGG" and not _ends_with_last_page(path):
        raise InputError(
            f"{path}: cut off, {decoded} samples found but not the page that ends an Ogg stream; "
            "copy the file again"
        )


def _ends_with_last_page(path: pathlib.Path) -> bool:
    """Whether an Ogg file's last page is complete and marked as its stream's end."""
    with open(path, "rb") as file:
        file.seek(-min(_OGG_MAX_PAGE_BYTES, path.stat().st_size), os.SEEK_END)
        tail = file.read()
    page = tail[tail.rfind(b"OggS") :]
    if len(page) < 27 or len(page) < 27 + page[26]:
        return False
    segments = page[27 : 27 + page[26]]
    return bool(page[5] & _OGG_LAST_PAGE) and len(page) == 27 + len(segments) + sum(segments)
