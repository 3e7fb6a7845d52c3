"""Waveforms as the network takes them."""

import numpy as np

# As transformers adds to the variance, so that an exported network hears what it was trained on.
# fairseq's layer_norm adds 1e-5, which leaves quiet recordings quieter than the others.
NORMALISATION_EPSILON = 1e-7
_SILENT_PEAK = 32  # 60 dB below full scale
_CLIPPED_SHARE = 0.001


def to_float(audio: np.ndarray) -> np.ndarray:
    """int16 samples (n,) as float32 in [-1, 1)."""
    return audio.astype(np.float32) / 32768.0


def normalize(waveform: np.ndarray) -> np.ndarray:
    """Zero mean, unit variance over the whole utterance: (n,) float32 to (n,) float32."""
    variance = waveform.var(dtype=np.float64)
    centred = waveform - waveform.mean(dtype=np.float64)
    return (centred / np.sqrt(variance + NORMALISATION_EPSILON)).astype(np.float32)


def flag(audio: np.ndarray) -> str:
    """What is odd about a waveform (int16, (n,)) that can be used nevertheless; "" if nothing."""
    low, high = int(audio.min()), int(audio.max())
    if max(-low, high) <= _SILENT_PEAK:
        return f"silent: no sample beyond {max(-low, high)} of 32768"
    if max(-low, high) >= 32767:
        share = np.count_nonzero((audio == 32767) | (audio == -32768)) / len(audio)
        if share >= _CLIPPED_SHARE:
            return f"clipped: {share:.2%} of the samples at full scale"
    return ""
