"""What the parity tests compare with the oracles, and how they measure differences.

A difference of hidden states is the largest absolute one. A difference of gradients is relative,
tensor by tensor: the Euclidean norm of (ours - theirs) over that of theirs.
"""

import dataclasses
import pathlib
import re
from collections.abc import Mapping

import numpy as np
import soundfile

from hubert_jax.convert.network import Network
from hubert_jax.model.architecture import Architecture, Head, Regularization


@dataclasses.dataclass(frozen=True)
class Described:
    """What a network is and what it is trained with, as far as files tell."""

    architecture: Architecture = Architecture()
    head: Head = Head((504,))
    regularization: Regularization = Regularization()

    def network(self, params, vocabulary=None, units=None) -> Network:
        """With its head where the parameters have one."""
        head = self.head if "label_embeddings_0" in params else None
        return Network(params, self.architecture, head, self.regularization, vocabulary, units)


_SMALL = dict(conv_channels=(32,) * 7, dim=48, num_layers=3, ffn_dim=96, num_heads=4)
_HEAD = Head((10, 7), projection_dim=16)
BASE_LIKE = Described(Architecture(**_SMALL), _HEAD)
LARGE_LIKE = Described(
    Architecture(**_SMALL, frontend_norm="layer", normalize_waveform=True, pre_norm=True),
    _HEAD,
    Regularization(frontend_gradient_scale=1.0),
)


def read_speech() -> list[np.ndarray]:
    """The beginnings of three real utterances, 1.1 to 2.6 s: int16 at 16 kHz."""
    corpus = pathlib.Path(__file__).parents[1] / "examples" / "minilibri" / "dev-mini"
    paths = sorted(corpus.glob("*/*/*.opus"))[::20][:3]
    lengths = (41_345, 17_680, 29_999)
    return [
        soundfile.read(path, dtype="int16")[0][8_000 : 8_000 + length]
        for path, length in zip(paths, lengths, strict=True)
    ]


def largest_difference(ours, theirs) -> float:
    """Largest absolute difference of two arrays of the same shape."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float(np.abs(ours - theirs).max())


def relative_difference(ours: float, theirs: float) -> float:
    """Difference of two numbers over the second one."""
    return abs(float(ours) - float(theirs)) / abs(float(theirs))


def gradient_differences(
    ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """Relative difference of every tensor's gradient, by the tensor's name.

    The bias of a key projection adds the same number to all logits of a query, which softmax
    cancels: its gradient is zero, rounding apart, and is measured against the norm of the same
    projection's weight gradient.
    """
    assert set(ours) == set(theirs)
    differences = {}
    for name, expected in theirs.items():
        found, expected = np.asarray(ours[name], np.float64), np.asarray(expected, np.float64)
        assert found.shape == expected.shape, name
        norm = np.linalg.norm(expected)
        if re.search(r"\bk_proj\.bias$", name):
            weight = theirs[name.removesuffix("bias") + "weight"]
            norm = np.linalg.norm(np.asarray(weight, np.float64))
        assert norm > 0, f"{name} has no gradient"
        differences[name] = float(np.linalg.norm(found - expected) / norm)
    return differences
