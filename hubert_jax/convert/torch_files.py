"""torch's files, read without running what is pickled in them."""

import collections
import itertools
import os
import pathlib
import pickle
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from hubert_jax import files, storage
from hubert_jax.convert.genuine import require_genuine
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
# torch says which names below them it meets; the last ones are in checkpoints of a training.
_INERT_PACKAGES = (
    *("fairseq.", "omegaconf.", "pathlib."),
    *("lightning.", "lightning_fabric.", "lightning_utilities.", "pytorch_lightning."),
)
_STATES = ("state_dict", "model_state_dict", "model")  # where trainings keep the network's
_WRAPPERS = ("module.", "_orig_mod.", "model.")  # that put their names before the network's
_MOST_NAMES = 100  # each costs a reading of the pickle
_MOST_ITEMS, _DEEPEST = 1_000_000, 100  # of plain data


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
    path = storage.path(path)
    zipped = _require_written_by_torch(path)
    file, names = storage.local(path), list(_INERT_NAMES)
    while True:
        try:
            with torch.serialization.safe_globals([(_stand_in(name), name) for name in names]):
                return torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
        except Exception as error:  # a damaged file ends in errors of many types
            named = re.search(r"GLOBAL ([\w.]+)", str(error))
            if named is None:
                # torch advises to load unsafely; what it found comes behind.
                reason = str(error).rpartition("WeightsUnpickler error: ")[2].strip()
                reason = next(iter(reason.splitlines()), "")
                if not reason or "weights_only" in reason:
                    reason = type(error).__name__
                raise InputError(
                    f"{path}: cannot be read as a file of torch ({reason}); is it complete? "
                    "Where a training wrote it, save its state_dict alone"
                ) from None
            known = named[1].startswith(_INERT_PACKAGES) and named[1] not in names
            if not known or len(names) > _MOST_NAMES:
                raise InputError(
                    f"{path}: the file names {named[1]}, which no checkpoint of HuBERT needs and "
                    "which loading it would run; nothing was run, and the file is refused; where "
                    "a training wrote it, save its state_dict alone"
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


def read_state(
    path: str | os.PathLike, content: Any = None
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """The tensors of a state dict (the file's, or its `content`) as float32 arrays, and notes.

    A training's checkpoint has it inside, and its names may begin with those of wrappers.

    Raises InputError as `load`, for no state dict, for integers, and for more numbers than the file
    holds.
    """
    content = load(path) if content is None else content
    notes: tuple[str, ...] = ()
    state = content if isinstance(content, Mapping) else {}
    inside = [key for key in _STATES if isinstance(state.get(key), Mapping)]
    if inside:
        dropped = sorted(key for key in state if isinstance(key, str) and key != inside[0])
        notes += (f"read: {inside[0]} of a training's checkpoint",)
        notes += (f"left out: {', '.join(dropped)}",) * bool(dropped)
        state = state[inside[0]]
    if not state or not all(isinstance(name, str) for name in state):
        raise InputError(
            f"{path}: no state dict: expected tensors by name, found {type(content).__name__} of "
            f"{len(state)} entries; save the network's state_dict() alone"
        )
    state, said = unwrapped(state)
    tensors, widened = _arrays(state, path)
    return tensors, notes + said + widened


def unwrapped(state: Mapping[str, Any]) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """A state dict without the names of modules that the network was wrapped in, and notes."""
    notes: tuple[str, ...] = ()
    for wrapper in itertools.islice(itertools.cycle(_WRAPPERS), 2 * len(_WRAPPERS)):
        below = {n.removeprefix(wrapper): t for n, t in state.items() if n.startswith(wrapper)}
        if below:
            others = sorted(set(state) - {wrapper + name for name in below})
            notes += (f"dropped: the prefix {wrapper} of {len(below)} names",)
            if others:
                notes += (f"left out: {len(others)} tensors without it, such as {others[0]}",)
            state = below
    return state, notes


def _arrays(
    tensors: Mapping[str, Any], path: str | os.PathLike
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Tensors as float32 arrays, and a note on other dtypes."""
    torch = _torch(path)
    found, dtypes = {}, []
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            kind = getattr(tensor, "dtype", type(tensor).__name__)
            raise InputError(
                f"{path}: {name} is {kind}, expected a tensor of floating-point numbers"
            )
        kept = tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not kept or tensor.numel() > tensor.untyped_storage().nbytes() // tensor.itemsize:
            raise InputError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, but the file does not hold as "
                "many numbers"
            )
        dtypes.append(str(tensor.dtype).removeprefix("torch."))
        found[str(name)] = tensor.detach().float().numpy()
    return found, widening_note(dtypes)


def plain(value: Any, path: str | os.PathLike) -> Any:
    """Plain data instead of inert objects: what is in omegaconf's nodes, others' attributes.

    Raises InputError for data that shared references make endless, or very deep.
    """
    items = 0

    def converted(value: Any, within: tuple[int, ...]) -> Any:
        nonlocal items
        items += 1
        if items > _MOST_ITEMS or len(within) > _DEEPEST:
            raise InputError(
                f"{path}: a configuration of more than {_MOST_ITEMS:,} items or {_DEEPEST} levels"
            )
        if id(value) in within:
            return None
        within = (*within, id(value))
        if isinstance(value, Inert):
            attributes = {key: item for key, item in vars(value).items() if key != "arguments"}
            for key in ("_content", "_val"):
                if key in attributes:
                    return converted(attributes[key], within)
            if not attributes and len(value.arguments) == 1:
                return converted(value.arguments[0], within)
            return converted(attributes, within)
        if isinstance(value, Mapping):
            pairs = [(converted(key, within), item) for key, item in value.items()]
            return {str(key): converted(item, within) for key, item in pairs}
        if isinstance(value, (list, tuple)):
            return [converted(item, within) for item in value]
        return value if isinstance(value, (str, int, float)) else None

    return converted(value, ())


def _stand_in(name: str) -> type:
    """torch fills no dictionaries but those it knows, so Lightning's `AttributeDict` is one."""
    return collections.OrderedDict if name.endswith("Dict") else Inert


def _require_written_by_torch(path: pathlib.Path) -> bool:
    """Whether a file is a zip archive, as since torch 1.6; raises InputError for another's.

    torch compresses nothing, so that a file's content is as large as the file.
    """
    require_genuine(path, "a file of torch")
    if not zipfile.is_zipfile(path):
        with open(path, "rb") as file:
            start = file.read(512)
        if start.startswith(b"PK"):
            raise InputError(
                f"{path}: cannot be read as a file of torch (its end is missing); copy it again"
            )
        if start[:1] != pickle.PROTO:
            is_tar = start[257:262] == b"ustar"
            what = "a tar archive" if is_tar else f"begins with {start[:6]!r}"
            raise InputError(
                f"{path}: {what}, expected a file of torch; unpack or decompress it if that is in "
                "it, else copy it again"
            )
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            names = [each.filename.partition("/")[2] for each in archive.infolist()]
            packed = [each.filename for each in archive.infolist() if each.compress_type]
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path}: cannot be read as a file of torch ({error}); is it complete?"
        ) from None
    if "constants.pkl" in names:
        raise InputError(
            f"{path}: a program (TorchScript), expected weights; save its state_dict alone"
        )
    if "data.pkl" not in names:
        raise InputError(
            f"{path}: a zip archive without data.pkl, expected a file of torch; unpack it if that "
            "is in it"
        )
    if packed:
        raise InputError(f"{path}: {packed[0]} is compressed there, which torch does not write")
    return True


def _torch(path: str | os.PathLike) -> Any:
    try:
        import torch
    except ImportError:
        raise InputError(
            f"{path}: files of torch need torch, which is not installed: install the extra, "
            "pip install --editable '.[torch]'"
        ) from None
    return torch
