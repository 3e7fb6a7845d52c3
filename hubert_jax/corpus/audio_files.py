"""Audio files to 16 kHz mono waveforms; defects that libsndfile lets pass are found here."""

import dataclasses
import io
import math
import os
import stat
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
import soundfile

from hubert_jax import files
from hubert_jax.corpus import containers
from hubert_jax.errors import InputError
from hubert_jax.frames import SAMPLE_RATE, WINDOW

_MIN_RATE, _MAX_RATE = 4_000, 768_000  # others are damage; resampling 1 Hz would fill memory
_MAX_FLOAT = 4.0  # full scale may be exceeded a little; beyond this, they are integers
_BLOCK_VALUES = 1 << 20  # of all channels, decoded at a time: 4 MB
_LONGEST = 2 * 3600 * SAMPLE_RATE  # samples of one utterance, which is in memory at once
_FEW_SECONDS = 0.1  # by which counts may differ: the recording is kept, and flagged
_SAMPLE_BYTES = {
    "PCM_S8": 1, "PCM_U8": 1, "ULAW": 1, "ALAW": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4,
    "FLOAT": 4, "DOUBLE": 8,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Samples:
    """Decoded audio: float32 (samples, channels), full scale 1, and its rate in Hz."""

    values: np.ndarray
    rate: int


_File = str | os.PathLike | bytes  # bytes: its content
Audio = _File | Samples


def read_waveform(
    audio: Audio,
    convert: bool = False,
    name: str = "",
    unchecked: bool = False,
    remarks: list[str] | None = None,
    expected: int | None = None,
) -> np.ndarray:
    """The waveform of an audio file or `Samples`: int16 (samples,), mono at 16 kHz, 400 or more.

    Up to 16 bits come back exactly; others are rounded and clipped at full scale. `convert` mixes
    channels to their mean and resamples (soxr, high quality). Messages begin with `name` or path.
    A file's header, its container and what is decoded have to agree to 0.1 s; what is odd is added
    to `remarks`, also where a list of files expects another number of samples, at the file's rate.
    `unchecked` takes codings whose container does not tell how long they are.

    Raises InputError for unsound audio, for more than two hours, which a small file may hold, and
    without `convert` for other rates and channels.
    """
    blocks = waveform_blocks(audio, convert, name, unchecked, remarks, expected, _LONGEST)
    return np.concatenate(list(blocks))


def waveform_blocks(
    audio: Audio,
    convert: bool = False,
    name: str = "",
    unchecked: bool = False,
    remarks: list[str] | None = None,
    expected: int | None = None,
    longest: float = math.inf,
) -> Iterator[np.ndarray]:
    """The waveform of `read_waveform` in blocks: memory does not grow with its length.

    More than `longest` samples are refused, before they are decoded if the container tells.

    An error, which may come at a file's end only, makes the blocks before it void.
    """
    name = name or (str(audio) if isinstance(audio, (str, os.PathLike)) else "audio")
    remarks = [] if remarks is None else remarks
    length = 0
    if isinstance(audio, Samples):
        _check_kind(name, len(audio.values), audio.values.shape[1], audio.rate, convert)
        blocks = _converted(name, iter([audio.values]), audio.rate, floating=True)
    else:
        blocks = _of_file(audio, convert, name, unchecked, remarks, expected, longest)
    for block in blocks:
        length += len(block)
        _check_length(name, length, longest)
        yield block
    if length < WINDOW:
        raise InputError(
            f"{name}: {length} samples at 16 kHz; expected at least {WINDOW} (one frame)"
        )


def _pretence(content: IO[bytes]) -> str:
    content.seek(0)
    return files.pretence(content.read(512))


def _of_file(
    audio: _File,
    convert: bool,
    name: str,
    unchecked: bool,
    remarks: list[str],
    expected: int | None,
    longest: float,
) -> Iterator[np.ndarray]:
    try:
        size = _size(audio, name)
        if size == 0:
            raise InputError(f"{name}: empty file (0 bytes); expected audio")
        with io.BytesIO(audio) if isinstance(audio, bytes) else open(audio, "rb") as content:
            streams, left, zeros = containers.scan(content, size, name)
            if not streams and (found := _pretence(content)):
                raise InputError(f"{name}: {found}")
            if not streams and not unchecked:
                raise InputError(f"{name}: corrupt or not audio; expected {containers.FORMATS}")
            sure = [(min(s.held, s.claimed or s.held), s.rate) for s in streams if s.rate]
            _check_length(name, sum(SAMPLE_RATE * n // rate for n, rate in sure), longest)
            length = native_length = 0
            known: list[containers.Stream | None] = [*streams]
            for stream in known or [None]:
                if stream is not None and stream.held == 0:
                    raise InputError(
                        f"{name}: 0 samples; expected at least {WINDOW}, it is empty or cut off"
                    )
                of_file = stream or containers.Stream(0, size, 0, None)
                source: Any = of_file.of(content)
                if of_file.covers(size) and not isinstance(audio, bytes):
                    source = audio  # read without Python
                with _SoundFile(source) as file:
                    _check_kind(name, file.frames, file.channels, file.samplerate, convert)
                    native_length += file.frames
                    floating = file.subtype in ("FLOAT", "DOUBLE")
                    native = _native_blocks(name, file, stream, unchecked, remarks)
                    for block in _converted(name, native, file.samplerate, floating):
                        length += len(block)
                        yield block
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror})") from None
    except soundfile.SoundFileError as error:
        reason = getattr(error, "error_string", str(error)).strip(" .")
        raise InputError(
            f"{name}: corrupt or not audio ({reason}); expected {containers.FORMATS}"
        ) from None
    # Without a length in the header whoever wrote the list has guessed.
    if expected not in (None, native_length) and all(s.claimed is not None for s in streams):
        remarks.append(f"its list of files counts {expected} samples, {native_length} are there")
    if len(streams) > 1:
        remarks.append(f"{len(streams)} streams, read one after the other")
    if streams and left:
        few = _FEW_SECONDS * SAMPLE_RATE / max(length, 1) * (streams[-1].end - streams[0].start)
        if not zeros and left > few:
            raise InputError(
                f"{name}: {left} bytes behind its audio are neither audio nor a tag; copy the file "
                "again, or cut them off"
            )
        remarks.append(f"{left} bytes behind its audio")


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


def _check_length(name: str, length: int, longest: float) -> None:
    if length > longest:
        raise InputError(
            f"{name}: an utterance of more than {longest / SAMPLE_RATE / 3600:g} hours; cut it "
            "(cut_seconds does, where there is no transcript)"
        )


def _check_kind(name: str, frames: int, channels: int, rate: int, convert: bool) -> None:
    """Refuses from the header alone what need not be decoded."""
    if frames == 0:
        raise InputError(f"{name}: 0 samples; expected at least {WINDOW}")
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


def _native_blocks(
    name: str,
    file: soundfile.SoundFile,
    stream: containers.Stream | None,
    unchecked: bool,
    remarks: list[str],
) -> Iterator[np.ndarray]:
    """A stream's samples, (samples, channels) float32; refuses at the end if counts disagree."""
    held, claimed = _counts(name, file, stream, unchecked, remarks)
    few = int(_FEW_SECONDS * file.samplerate)
    if held is not None and abs(claimed - held) > few:
        raise InputError(
            f"{name}: corrupt or cut off, {held} samples found, {claimed} expected; "
            "copy the file again"
        )
    size = max(1, _BLOCK_VALUES // file.channels)
    decoded = 0
    while decoded < file.frames:
        wanted = min(size, file.frames - decoded)
        block = file.read(wanted, dtype="float32", always_2d=True)
        decoded += len(block)
        yield block
        if len(block) < wanted:  # after damage in an Ogg stream a further read would go on
            break
    if held is None:
        return
    if abs(decoded - held) > few:
        raise InputError(
            f"{name}: corrupt or cut off, {decoded} samples found, {held} expected; "
            "copy the file again"
        )
    if claimed != held:
        remarks.append(f"its header counts {claimed} samples, {held} are there")
    if decoded != held:
        remarks.append(f"{held} samples are there, {decoded} could be decoded")


def _counts(
    name: str,
    file: soundfile.SoundFile,
    stream: containers.Stream | None,
    unchecked: bool,
    remarks: list[str],
) -> tuple[int | None, int]:
    """What is there by the container, and by its header, in samples; None if it does not tell."""
    ratio = None
    if stream is not None and stream.rate and file.format in ("FLAC", "OGG", "MP3", "MPEG"):
        ratio = file.samplerate, stream.rate
    elif stream is not None and file.subtype in _SAMPLE_BYTES:
        ratio = 1, _SAMPLE_BYTES[file.subtype] * file.channels
    if stream is not None and ratio is not None:
        held = stream.held * ratio[0] // ratio[1]
        if stream.claimed is not None:
            return held, stream.claimed * ratio[0] // ratio[1]
        remarks.append(f"its header states no length: read to its end, {held} samples")
        return held, held
    if not unchecked:
        raise InputError(
            f"{name}: {file.format} of {file.subtype}: nobody can tell whether it is complete; "
            "convert it, or take such files with --config.unchecked=True"
        )
    if stream is not None and stream.claimed is not None and stream.held < stream.claimed:
        raise InputError(
            f"{name}: cut off, {stream.held} bytes found, {stream.claimed} expected; "
            "copy the file again"
        )
    remarks.append(f"{file.format} of {file.subtype}: not known to be complete")
    return None, 0
