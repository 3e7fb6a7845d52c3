"""hubert_jax: self-supervised speech representation learning (HuBERT, Hsu et al. 2021) in JAX."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from hubert_jax.units.encoding import Encoded, Encoder

__version__ = "0.1.0"


def encode(waveform: np.ndarray, checkpoint: str, codebook: str, layer: int = -1) -> Encoded:
    """The units of a waveform and how many frames each lasts, (units, durations).

    `waveform` is (n,) at 16 kHz, int16 or floats in [-1, 1]. `checkpoint` is hf:DIR, orbax:DIR,
    fairseq:FILE or torchaudio:FILE, or "" for a codebook of MFCC; `codebook` is a label job's
    directory, or a file of another library with the `layer` that it is of. Networks and programs
    are kept for the next call. Raises InputError for what does not fit together.
    """
    return _encoder(checkpoint, codebook, layer)(waveform)


@functools.lru_cache(maxsize=4)
def _encoder(checkpoint: str, codebook: str, layer: int) -> Encoder:
    from hubert_jax.units.encoding import Encoder  # takes seconds, which jobs need not wait for

    return Encoder(checkpoint, codebook, layer)
