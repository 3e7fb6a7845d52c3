"""Audio files to 16 kHz mono waveforms; defects that libsndfile lets pass are found here."""

import dataclasses
import io
import os
import re
import stat
import struct
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import soundfile

from hubert_jax.errors import InputError
from hubert_jax.frames import SAMPLE_RATE, WINDOW

_MIN_RATE, _MAX_RATE = 4_000, 768_000  # others are damage; resampling 1 Hz would fill memory
_MAX_FLOAT = 4.0  # full scale may be exceeded a little; beyond this, they are integers
_UNKNOWN_LENGTH = 2**40  # of FLAC written to a pipe: the largest 64-bit number
_BLOCK_VALUES = 1 << 20  # of all channels, decoded at a time: 4 MB
_OGG_LAST_PAGE = 4
_OGG_MAX_PAGE_BYTES = 65_307
_WAV_SAMPLE_BYTES = {"PCM_U8": 1, "ULAW": 1, "ALAW": 1, "PCM_16": 2, "PCM_24": 3, "DOUBLE": 8}


@dataclasses.dataclass(frozen=True)
class Samples:
    """Decoded audio: float32 (samples, channels), full scale 1, and its rate in Hz."""

    values: np.ndarray
    rate: int


_File = str | os.PathLike | bytes  # bytes: its content
Audio = _File | Samples


def read_waveform(audio: Audio, convert: bool = False, name: str = "") -> np.ndarray:
    """The waveform of an audio file or `Samples`: int16 (samples,), mono at 16 kHz, 400 or more.

    Up to 16 bits come back exactly; others are rounded and clipped at full scale. `convert` mixes
    channels to their mean and resamples (soxr, high quality). Messages begin with `name` or path.

    Raises InputError for unsound audio, and without `convert` for other rates and channels.
    """
    return np.concatenate(list(waveform_blocks(audio, convert, name)))


def waveform_blocks(audio: Audio, convert: bool = False, name: str = "") -> Iterator[np.ndarray]:
    """The waveform of `read_waveform` in blocks: memory does not grow with its length.

    An error, which may come at a file's end only, makes the blocks before it void.
    """
    if isinstance(audio, (str, os.PathLike)):
        name = name or str(audio)
    length = 0
    for block in _blocks(audio, convert, name):
        length += len(block)
        yield block
    if length < WINDOW:
        raise InputError(
            f"{name}: {length} samples at 16 kHz; expected at least {WINDOW} (one frame)"
        )


def _blocks(audio: Audio, convert: bool, name: str) -> Iterator[np.ndarray]:
    if isinstance(audio, Samples):
        _check_kind(name, len(audio.values), audio.values.shape[1], audio.rate, convert)
        yield from _converted(name, iter([audio.values]), audio.rate, floating=True)
        return
    try:
        if _size(audio, name) == 0:
            raise InputError(f"{name}: empty file (0 bytes); expected audio")
        with _SoundFile(io.BytesIO(audio) if isinstance(audio, bytes) else audio) as file:
            _check_kind(name, file.frames, file.channels, file.samplerate, convert)
            floating = file.subtype in ("FLOAT", "DOUBLE")
            native = _native_blocks(name, file, audio)
            yield from _converted(name, native, file.samplerate, floating)
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror})") from None
    except soundfile.SoundFileError as error:
        reason = getattr(error, "error_string", str(error)).strip(" .")
        raise InputError(
            f"{name}: corrupt or not audio ({reason}); expected WAV, FLAC, Ogg Vorbis, Opus or MP3"
        ) from None


class _SoundFile(soundfile.SoundFile):
    """Reads on where it is, instead of seeking there: coded formats decode anew after a seek."""

    def seekable(self) -> bool:
        return False


def _size(audio: _File, name: str) -> int:
    if isinstance(audio, bytes):
        return len(audio)
    status = os.stat(audio)
    if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
        raise InputError(f"{name}: not a regular file; expected audio")
    return status.st_size


def _check_kind(name: str, frames: int, channels: int, rate: int, convert: bool) -> None:
    """Refuses from the header alone what need not be decoded."""
    if frames == 0:
        raise InputError(f"{name}: 0 samples; expected at least {WINDOW}")
    if frames >= _UNKNOWN_LENGTH:
        raise InputError(f"{name}: its header states no length; expected it, code the file again")
    if not _MIN_RATE <= rate <= _MAX_RATE:
        raise InputError(f"{name}: {rate} Hz; expected {_MIN_RATE} to {_MAX_RATE} Hz")
    found = []
    if channels != 1:
        found.append("stereo" if channels == 2 else f"{channels} channels")
    if rate != SAMPLE_RATE:
        found.append(f"{rate} Hz")
    if found and not convert:
        raise InputError(
            f"{name}: found {' at '.join(found)}, expected mono at {SAMPLE_RATE} Hz; "
            "pass --config.convert=True to mix down and resample"
        )


def _converted(
    name: str, native: Iterator[np.ndarray], rate: int, floating: bool
) -> Iterator[np.ndarray]:
    """Blocks of (samples, channels) float32 at any rate as int16 mono at 16 kHz."""
    resampler, position = None, 0
    if rate != SAMPLE_RATE:
        import soxr

        resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
    for block in native:
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            where = position + int(np.argmin(finite))
            raise InputError(f"{name}: NaN or infinite at sample {where}; expected finite samples")
        if floating and len(block) and np.abs(block).max() > _MAX_FLOAT:
            raise InputError(
                f"{name}: floating-point samples up to {np.abs(block).max():.6g}; "
                "expected values between -1 and 1"
            )
        position += len(block)
        mono = block.mean(axis=1) if block.shape[1] > 1 else block[:, 0]
        yield _to_int16(mono if resampler is None else resampler.resample_chunk(mono))
    if resampler is not None:
        yield _to_int16(resampler.resample_chunk(np.zeros(0, np.float32), last=True))


def _to_int16(waveform: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(waveform * 32768.0), -32768, 32767).astype(np.int16)


def _native_blocks(name: str, file: soundfile.SoundFile, audio: _File) -> Iterator[np.ndarray]:
    """A file's samples, (samples, channels) float32; refuses at the end if some are missing."""
    size = max(1, _BLOCK_VALUES // file.channels)
    decoded = 0
    while decoded < file.frames:
        wanted = min(size, file.frames - decoded)
        block = file.read(wanted, dtype="float32", always_2d=True)
        decoded += len(block)
        yield block
        if len(block) < wanted:  # after damage in an Ogg stream a further read would go on
            break
    expected = _expected_frames(file, audio)
    if decoded < expected:
        raise InputError(
            f"{name}: corrupt or cut off, {decoded} samples found, {expected} expected; "
            "copy the file again"
        )
    if file.format == "OGG" and not _ends_with_last_page(audio):
        raise InputError(
            f"{name}: cut off, {decoded} samples found but not the page that ends an Ogg stream; "
            "copy the file again"
        )


def _expected_frames(file: soundfile.SoundFile, audio: _File) -> int:
    """Samples that the file says it has, which libsndfile may have lowered."""
    if file.format in ("WAV", "WAVEX"):
        # The header's number is in libsndfile's log; files written to a pipe have 0 or a huge one.
        note = re.search(r"^\s*data : (\d+) \(should be \d+\)", file.extra_info, re.MULTILINE)
        if note and 0 < int(note[1]) < 2**31 - 2**16:
            return int(note[1]) // (file.channels * _WAV_SAMPLE_BYTES.get(file.subtype, 4))
    if file.format in ("MP3", "MPEG"):
        return _mp3_frames(audio)
    return file.frames


def _mp3_frames(audio: _File) -> int:
    """Samples by the tag in which encoders note the number of frames; 0 without one."""
    with _open(audio) as file:
        head = file.read(1 << 16)
    tag = max(head.find(b"Xing"), head.find(b"Info"))
    if tag < 0 or len(head) < tag + 144:
        return 0
    flags, frames = struct.unpack_from(">II", head, tag + 4)
    if not flags & 1:
        return 0
    # The frame's header is at most 36 bytes before; MPEG-1 has 1,152 samples a frame, others 576.
    header = head.rfind(b"\xff", max(0, tag - 40), tag - 3)
    per_frame = 1152 if header >= 0 and head[header + 1] & 0x18 == 0x18 else 576
    # Decoders leave out the encoder's delay and padding, below 4,096 samples each.
    return max(0, frames * per_frame - 2 * 4096)


def _ends_with_last_page(audio: _File) -> bool:
    """Whether an Ogg file's last page is complete and marked as its stream's end."""
    with _open(audio) as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _OGG_MAX_PAGE_BYTES))
        tail = file.read()
    page = tail[tail.rfind(b"OggS") :]
    if len(page) < 27 or len(page) < 27 + page[26]:
        return False
    segments = page[27 : 27 + page[26]]
    return bool(page[5] & _OGG_LAST_PAGE) and len(page) == 27 + len(segments) + sum(segments)


def _open(audio: _File) -> BinaryIO:
    return io.BytesIO(audio) if isinstance(audio, bytes) else open(audio, "rb")
