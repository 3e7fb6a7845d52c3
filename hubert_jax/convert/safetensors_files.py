"""Safetensors files of NumPy arrays."""

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from hubert_jax import storage
from hubert_jax.convert.genuine import require_genuine
from hubert_jax.convert.network import widening_note
from hubert_jax.errors import InputError


def write_tensors(
    path: str | os.PathLike, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, Any]
) -> None:
    """Writes arrays as torch's, or transformers would refuse them; the metadata as JSON."""
    # safetensors writes the bytes as they lie: a transposed view would be stored scrambled.
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    described = {name: json.dumps(value) for name, value in metadata.items()}
    path = storage.path(path)
    path.touch()
    mode = path.stat().st_mode
    safetensors.numpy.save_file(tensors, path, {"format": "pt", **described})
    path.chmod(mode)  # version 0.8 leaves a file that its owner alone can read


def read_tensors(
    path: str | os.PathLike, ndim: int | None = None
) -> tuple[dict[str, np.ndarray], dict[str, str], tuple[str, ...]]:
    """Arrays by name, float32; the file's metadata; a note on what was not float32.

    With `ndim` only those of so many dimensions are read. Raises InputError for a file that is
    missing, damaged, or holds other than floating point.
    """
    require_genuine(path, "safetensors")
    try:
        local = storage.local(path)
        with safetensors.safe_open(local, framework="numpy") as file:
            metadata = file.metadata() or {}
            slices = {name: file.get_slice(name) for name in file.keys()}
            names = {n for n, s in slices.items() if ndim in (None, len(s.get_shape()))}
            for name in sorted(names):
                dtype = slices[name].get_dtype()
                if dtype not in ("F16", "BF16", "F32", "F64"):
                    raise InputError(
                        f"{path}: {name} is {dtype}, expected floating-point numbers of 16 bits "
                        "or more"
                    )
            half = {name for name in names if slices[name].get_dtype() == "BF16"}
            tensors = {name: file.get_tensor(name) for name in file.keys() if name in names - half}
        dtypes = [tensor.dtype.name for tensor in tensors.values()] + ["bfloat16"] * len(half)
        if half:  # NumPy itself does not know the dtype
            with safetensors.safe_open(local, framework="flax") as file:
                tensors |= {name: np.asarray(file.get_tensor(name), np.float32) for name in half}
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise InputError(f"{path}: cannot be read as safetensors ({error})") from None
    for name, tensor in tensors.items():
        tensors[name] = tensor.astype(np.float32, copy=False)
    return tensors, metadata, widening_note(dtypes)
