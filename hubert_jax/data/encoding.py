"""Audio as the bytes of a record: 16-bit PCM, or FLAC where that has fewer bytes than PCM."""

import io

import numpy as np

from hubert_jax.frames import SAMPLE_RATE

ENCODINGS = ("pcm16", "flac")
_FLAC_LEVEL = 5 / 8  # libFLAC's own default; higher levels gain under 1 %


def encode(audio: np.ndarray, encoding: str) -> bytes:
    """int16 samples (n,), mono at 16 kHz, as bytes; `encoding` is one of ENCODINGS.

    FLAC's bytes depend on the version of libFLAC, its samples do not.
    """
    raw = np.ascontiguousarray(audio, "<i2").tobytes()
    if encoding == "pcm16":
        return raw
    import soundfile

    content = io.BytesIO()
    with soundfile.SoundFile(
        content, "w", SAMPLE_RATE, 1, "PCM_16", format="FLAC", compression_level=_FLAC_LEVEL
    ) as file:
        file.write(audio)
    return min(raw, content.getvalue(), key=len)


def decode(content: bytes, num_samples: int) -> np.ndarray | None:
    """The int16 samples (num_samples,) of a record; None if the bytes are not theirs."""
    if len(content) == 2 * num_samples:
        return np.frombuffer(content, "<i2")
    if len(content) > 2 * num_samples:
        return None
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            if (file.channels, file.subtype, file.frames) != (1, "PCM_16", num_samples):
                return None
            audio = file.read(dtype="int16")
    except soundfile.SoundFileError:
        return None
    return audio if len(audio) == num_samples else None
