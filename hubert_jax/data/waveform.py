"""Waveforms as the network takes them."""

import numpy as np

# As in transformers, for exported networks; fairseq's 1e-5 leaves quiet recordings quieter.
NORMALISATION_EPSILON = 1e-7
_SILENT_PEAK = 32  # 60 dB below full scale
_CLIPPED_FRACTION = 0.001


def to_float(audio: np.ndarray) -> np.ndarray:
    """int16 samples (n,) as float32 in [-1, 1), floats as they are."""
    if audio.dtype != np.int16:
        return audio.astype(np.float32)
    return audio.astype(np.float32) / 32768.0


def normalize(waveform: np.ndarray) -> np.ndarray:
    """Zero mean, unit variance over the whole utterance: (n,) float32 to (n,) float32."""
    variance = waveform.var(dtype=np.float64)
    centred = waveform - waveform.mean(dtype=np.float64)
    return (centred / np.sqrt(variance + NORMALISATION_EPSILON)).astype(np.float32)


def flag(audio: np.ndarray) -> str:
    """What is odd about a waveform (int16, (n,)) that can be used nevertheless; "" if nothing."""
    peak = max(-int(audio.min()), int(audio.max()))
    if peak <= _SILENT_PEAK:
        return f"silent: no sample beyond {peak} of 32768"
    if peak >= 32767:
        clipped = np.count_nonzero((audio == 32767) | (audio == -32768)) / len(audio)
        if clipped >= _CLIPPED_FRACTION:
            return f"clipped: {clipped:.2%} of the samples at full scale"
    return ""
