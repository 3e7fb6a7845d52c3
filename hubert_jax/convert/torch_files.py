"""torch's files, read without running what is pickled in them."""

import os
import pathlib
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from hubert_jax import files
from hubert_jax.convert.network import widening_note
from hubert_jax.errors import InputError

# Names in genuine checkpoints of fairseq; NumPy's are of scalars among the training metrics.
_INERT_NAMES = (
    "argparse.Namespace",
    "typing.Any",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "_codecs.encode",
)
_INERT_PACKAGES = ("fairseq.", "omegaconf.")  # torch says which names below them it meets


class Inert:
    """Stands in for a class that a file names: keeps arguments and state, does nothing."""

    arguments: tuple = ()

    def __new__(cls, *args: Any, **kwargs: Any) -> "Inert":  # noqa: D102
        self = super().__new__(cls)
        self.arguments = args
        return self

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


def load(path: str | os.PathLike) -> Any:
    """The content of a file that torch wrote, on the CPU; tensors stay in the file until used.

    Raises:
      InputError: torch or the file is missing; the file is damaged, or names code to be run.
    """
    torch = _torch(path)
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    zipped = zipfile.is_zipfile(path)  # else written before torch 1.6
    names = list(_INERT_NAMES)
    while True:
        try:
            with torch.serialization.safe_globals([(Inert, name) for name in names]):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
        except Exception as error:  # a damaged file ends in errors of many types
            named = re.search(r"GLOBAL ([\w.]+)", str(error))
            if named is None:
                reason = next(iter(str(error).splitlines()), "") or type(error).__name__
                raise InputError(
                    f"{path}: cannot be read as a file of torch ({reason}); is it complete?"
                ) from None
            if named[1] in names or not named[1].startswith(_INERT_PACKAGES):
                raise InputError(
                    f"{path}: the file names {named[1]}, which no checkpoint of HuBERT needs and "
                    "which loading it would run; nothing was run, and the file is refused"
                ) from None
            names.append(named[1])


def save(path: str | os.PathLike, content: Any) -> None:
    """Writes nested dictionaries; arrays become tensors. Raises InputError without torch."""
    torch = _torch(path)

    def converted(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return torch.from_numpy(np.require(value, requirements=["C", "W"]))
        if isinstance(value, Mapping):
            return {key: converted(item) for key, item in value.items()}
        return value

    # Through a file object, or torch would write the temporary name into the file.
    with files.writing_file(path) as aside, open(aside, "wb") as file:
        torch.save(converted(content), file)


def arrays(
    tensors: Mapping[str, Any], path: str | os.PathLike
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Tensors as float32 arrays, and a note on other dtypes; raises InputError for integers."""
    torch = _torch(path)
    found, dtypes = {}, []
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            kind = getattr(tensor, "dtype", type(tensor).__name__)
            raise InputError(
                f"{path}: {name} is {kind}, expected a tensor of floating-point numbers"
            )
        dtypes.append(str(tensor.dtype).removeprefix("torch."))
        found[name] = tensor.detach().float().numpy()
    return found, widening_note(dtypes)


def plain(value: Any, _within: frozenset[int] = frozenset()) -> Any:
    """Plain data instead of inert objects: what is in omegaconf's nodes, others' attributes."""
    if id(value) in _within:
        return None
    within = _within | {id(value)}
    if isinstance(value, Inert):
        attributes = {key: item for key, item in vars(value).items() if key != "arguments"}
        for key in ("_content", "_val"):
            if key in attributes:
                return plain(attributes[key], within)
        if not attributes and len(value.arguments) == 1:
            return plain(value.arguments[0], within)
        return plain(attributes, within)
    if isinstance(value, Mapping):
        return {str(plain(key)): plain(item, within) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, within) for item in value]
    return value


def _torch(path: str | os.PathLike) -> Any:
    try:
        import torch
    except ImportError:
        raise InputError(
            f"{path}: files of torch need torch, which is not installed: install the extra, "
            "pip install --editable '.[torch]'"
        ) from None
    return torch
