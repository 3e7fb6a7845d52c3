"""Steps from a feature's frames to what is clustered: texts such as ("mean", "splice 9").

`mean` takes an utterance's mean away, `variance` divides by its standard deviation. `splice N` puts
the N frames around a frame side by side, `smooth N` averages them; the utterance's first and last
frame are repeated around it. `take A:B` keeps the dimensions A to B - 1. `whiten D` is PCA
whitening to D dimensions, fitted on the sample of the k-means; nothing but `take` follows it.
"""

import itertools
import re
from collections.abc import Sequence

import numpy as np

from hubert_jax.errors import InputError

_FORM = re.compile(
    r"mean|variance|(?:splice|smooth|whiten) ([1-9]\d{0,4})|take (0|[1-9]\d{0,5}):([1-9]\d{0,5})",
    re.ASCII,
)
_FORMS = "mean, variance, splice N, smooth N, take A:B or whiten D"
_LONGEST = 99  # frames around a frame
_CHUNK = 8192  # frames whose products are made together


def dimensions(steps: Sequence[str], dim: int | None, key: str = "config.steps") -> int | None:
    """Numbers a frame after the steps, of `dim` before; None where that is not known.

    Raises InputError, which names `key`, for what is no step, or none of such frames.
    """
    whitened = False
    for step in steps:
        name, numbers = _parsed(step)
        wide = "as many" if dim is None else dim
        expected = ""
        if not name:
            expected = _FORMS
        elif whitened and name != "take":
            expected = "nothing but take after whiten"
        elif name in ("splice", "smooth") and not (numbers[0] % 2 and numbers[0] <= _LONGEST):
            expected = f"an odd number of frames, {_LONGEST} at most"
        elif name == "whiten" and dim is not None and numbers[0] > dim:
            expected = f"{wide} dimensions at most"
        elif name == "take":
            first, last = numbers
            if not first < last <= (last if dim is None else dim):
                expected = f"A < B, and B at most the {wide} dimensions that there are"
        if expected:
            raise InputError(f"{key}: found the step {step!r}, expected {expected}")
        whitened |= name == "whiten"
        if name == "take":
            dim = numbers[1] - numbers[0]
        elif name == "whiten":
            dim = numbers[0]
        elif name == "splice" and dim is not None:
            dim *= numbers[0]
    return dim


def _parsed(step: str) -> tuple[str, tuple[int, ...]]:
    """Name and numbers of a step; no name if it is none."""
    found = _FORM.fullmatch(step)
    if not found:
        return "", ()
    return step.partition(" ")[0], tuple(int(number) for number in found.groups() if number)


def before_whitening(steps: Sequence[str]) -> tuple[str, ...]:
    """Those that `apply` does, utterance by utterance; the others are a `whitening`."""
    return tuple(itertools.takewhile(lambda step: not step.startswith("whiten"), steps))


def apply(steps: Sequence[str], frames: np.ndarray) -> np.ndarray:
    """An utterance's frames, float32 (T, D), after steps without `whiten`: float32 (T, D')."""
    for step in steps:
        name, numbers = _parsed(step)
        if name == "take":
            frames = frames[:, slice(*numbers)]
        elif name in ("splice", "smooth"):
            reach = numbers[0] // 2
            padded = np.pad(frames, ((reach, reach), (0, 0)), mode="edge")
            around = [padded[i : i + len(frames)] for i in range(numbers[0])]
            if name == "splice":
                frames = np.concatenate(around, axis=1)
            else:
                frames = sum(around[1:], around[0]) / np.float32(numbers[0])
        else:
            # Rounded, so that what does not vary is 0 without its mean.
            mean = frames.mean(axis=0, dtype=np.float64).astype(np.float32)
            centred = frames - mean
            if name == "mean":
                frames = centred
            else:
                deviation = np.sqrt(np.square(centred, dtype=np.float64).mean(axis=0))
                frames = frames / np.where(deviation > 0, deviation, 1).astype(np.float32)
    return frames


def whitening(frames: np.ndarray, steps: Sequence[str]) -> np.ndarray:
    """`whiten` and what follows it, fitted on float32 (N, D), for `project`: (D + 1, D').

    Directions of most variance first, each of the sign that makes its largest component positive,
    as scikit-learn's. Raises InputError where frames vary in fewer than the wanted dimensions.
    """
    (_, (size,)), *takes = map(_parsed, steps)
    mean = frames.mean(axis=0, dtype=np.float64)
    scatter = np.zeros((len(mean), len(mean)))
    for start in range(0, len(frames), _CHUNK):
        centred = frames[start : start + _CHUNK] - mean
        scatter += centred.T @ centred
    variances, directions = np.linalg.eigh(scatter / max(len(frames) - 1, 1))
    variances, directions = variances[::-1], directions[:, ::-1]
    varying = int(np.sum(variances > 1e-12 * max(variances[0], 1e-30)))
    if varying < size:
        raise InputError(
            f"config.steps: found the step {steps[0]!r}, but {len(frames)} frames that vary in "
            f"{varying} dimensions; expected at least as many: whiten to fewer, or give more speech"
        )
    signs = np.sign(np.take_along_axis(directions, np.abs(directions).argmax(axis=0)[None], axis=0))
    matrix = (signs * directions / np.sqrt(np.maximum(variances, 1e-300)))[:, :size]
    for _, numbers in takes:
        matrix = matrix[:, slice(*numbers)]
    return np.concatenate([matrix, -mean[None] @ matrix]).astype(np.float32)


def project(frames: np.ndarray, projection: np.ndarray) -> np.ndarray:
    """Frames, float32 (T, D), and a 1 behind each, times (D + 1, D'): float32 (T, D').

    By way of float64, so that no frame's values depend on how many there are.
    """
    matrix = projection.astype(np.float64)
    return (frames.astype(np.float64) @ matrix[:-1] + matrix[-1]).astype(np.float32)
