"""One seam for all formats: a network is read from and written to `SCHEME:PATH`."""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hubert_jax import config as config_lib
from hubert_jax import files, storage
from hubert_jax.convert import fairseq, hugging_face, torchaudio
from hubert_jax.convert.encoders import require_names, shapes
from hubert_jax.convert.network import Description, Network, with_mask_embedding
from hubert_jax.errors import InputError
from hubert_jax.model.adapters import Adapters
from hubert_jax.model.architecture import Architecture, Head, Regularization
from hubert_jax.unit_classes import Units
from hubert_jax.vocabulary import Vocabulary

SCHEMES = ("hf", "fairseq", "torchaudio", "orbax")


@dataclasses.dataclass(frozen=True)
class WriteResult:
    """SHA-256 (hex) of every file, of orbax the fingerprint; notes on what has no home in it."""

    digests: dict[str, str]
    notes: tuple[str, ...] = ()


def parse(where: str, key: str) -> tuple[str, pathlib.Path]:
    """Scheme and path of `SCHEME:PATH`; raises InputError, naming the flag or key `key`.

    A directory of numbered checkpoints needs no scheme.
    """
    scheme, separator, path = where.partition(":")
    if where and not separator and _has_steps(storage.path(where)):
        return "orbax", storage.path(where)
    if not separator or scheme not in SCHEMES or not path:
        remedy = "" if separator else f"; a checkpoint directory of a run is written orbax:{where}"
        raise InputError(
            f"{key}={where}: expected hf:DIR, fairseq:FILE, torchaudio:FILE or orbax:DIR (or its "
            "DIR@STEP, DIR@best or DIR@mean3)"
            f"{remedy}"
        )
    return scheme, storage.path(path)


def read(where: str, key: str = "--from", shardings: Callable[[Any], Any] | None = None) -> Network:
    """Reads a network: an orbax checkpoint straight onto devices, others as host arrays.

    `shardings` gives every parameter's sharding, from the tree of their shapes.

    Raises InputError for a missing or damaged file, or a network that is no HuBERT.
    """
    scheme, path = parse(where, key)
    if scheme == "orbax":
        return _read_orbax(path, shardings)
    if scheme == "hf":
        network = hugging_face.read_directory(path)
    else:
        network = (fairseq if scheme == "fairseq" else torchaudio).read(path)
    broken = [name for name, leaf in network.flat.items() if not np.isfinite(leaf).all()]
    note = f"NaN or infinite: numbers in {len(broken)} parameters, such as {', '.join(broken[:1])}"
    return dataclasses.replace(network, notes=network.notes + (note,) * bool(broken))


def describe(where: str, key: str) -> Description:
    """What `read` gives, without the parameters, and without a back-end, as processes join later.

    Raises InputError as `read` does; of orbax no parameters are looked at.
    """
    scheme, path = parse(where, key)
    if scheme == "orbax":
        from hubert_jax.training.checkpoint import fingerprint, read_metadata

        metadata = read_metadata(path)
        found = [fingerprint(metadata)]
        for earlier in path.glob("[0-9]*"):  # one is read where the newest turns out to be damaged
            with contextlib.suppress(InputError):
                found.append(fingerprint(read_metadata(f"{path}@{earlier.name}")))
        return dataclasses.replace(_described(path, metadata), fingerprints=tuple(found))
    if path.is_dir():
        there = sorted(path.iterdir())
    else:
        there = [path.with_name(path.name + end) for end in ("", ".json", ".rest.safetensors")]
    changed = tuple((each, each.stat().st_mtime_ns) for each in there if each.is_file())
    return _described_by_files(where, changed)


@functools.lru_cache(maxsize=16)
def _described_by_files(where: str, changed: tuple) -> Description:
    # Kept, as files are read whole, and a plan asks for each stage that names them.
    return read(where).description


def _has_steps(folder: pathlib.Path) -> bool:
    """Whether numbered checkpoints are in a folder."""
    return any(each.name.isdecimal() for each in folder.glob("*/"))


def write(
    where: str,
    network: Network,
    key: str = "--to",
    more: Mapping[str, str | pathlib.Path] | None = None,
) -> WriteResult:
    """Writes a network, complete or not at all, of hf: with `more` as of `write_directory`.

    Raises InputError if something else is there, or for a network that the format cannot express.
    """
    scheme, path = parse(where, key)
    path = storage.absolute(path)  # even . has a name
    try:
        if scheme == "hf":
            return WriteResult(hugging_face.write_directory(path, network, more or {}))
        if scheme == "orbax":
            return _write_orbax(path, network, where, key)
        if path.is_dir():
            raise InputError(f"{key}={where}: a directory, expected the name of a file")
        notes = (fairseq if scheme == "fairseq" else torchaudio).write(path, network)
        suffixes = ("", ".json", ".rest.safetensors") if scheme == "torchaudio" else ("",)
        written = [path.with_name(path.name + suffix) for suffix in suffixes]
        digests = {file.name: files.sha256_file(file) for file in written if file.is_file()}
        return WriteResult(digests, notes)
    except OSError as error:
        raise InputError(f"{key}={where}: cannot be written ({error.strerror or error})") from None


def _read_orbax(path: pathlib.Path, shardings: Callable[[Any], Any] | None) -> Network:
    from hubert_jax.training.checkpoint import fingerprint, restore_parameters

    def merged(params: dict, saved: dict) -> dict:
        where = f"{path}: adapters"
        return config_lib.build(Adapters, saved.get("adapters", {}), where).merged(params)

    params, metadata = restore_parameters(path, shardings, merged)
    described = _described(path, metadata)
    regularization = config_lib.build(
        Regularization, metadata["regularization"], f"{path}: regularization"
    )
    vocabulary = units = None
    head: Any = None
    if metadata["kind"] == "ctc":
        vocabulary = Vocabulary.from_dict(metadata["vocabulary"])
    if "label_embeddings_0" in params:
        head = described.head
        if metadata.get("units"):  # of a converted network
            units = Units.from_dict(metadata["units"], head.codebook_sizes, str(path))
        elif labels := metadata.get("labels"):
            digests = tuple(manifest["codebook_digest"] for manifest in labels)
            rate = float(labels[0]["rate_hz"])
            units = Units.numbered(
                head.codebook_sizes,
                [manifest["num_classes"] for manifest in labels],
                rate_hz=rate,
                codebook_digests=digests,
            )
    digest = fingerprint(metadata)
    beside = metadata.get("beside", {})
    run = metadata if "config" in metadata else {}  # else it was converted
    return Network(
        *(params, described.architecture, head, regularization, vocabulary, units),
        *(digest, (), beside, run),
    )


def _described(path: pathlib.Path, metadata: dict[str, Any]) -> Description:
    """The network of an orbax checkpoint with this metadata."""
    kind, head = metadata.get("kind"), metadata.get("head")
    if kind not in ("pretraining", "ctc", "encoder"):
        raise InputError(
            f"{path}: a checkpoint of kind {kind!r}, expected one of train or finetune"
        )
    return Description(
        kind,
        config_lib.build(Architecture, metadata["architecture"], f"{path}: architecture"),
        head and config_lib.build(Head, head, f"{path}: head"),
    )


def _write_orbax(path: pathlib.Path, network: Network, where: str, key: str) -> WriteResult:
    from hubert_jax.training.checkpoint import Checkpoints, fingerprint

    if path.exists():
        raise InputError(f"{key}={where}: exists; name a directory that does not")
    params, notes = with_mask_embedding(network.params, network.architecture)
    vocabulary = network.vocabulary
    # Label embeddings may lie beside a CTC head, which fairseq keeps.
    head = network.head if network.kind == "pretraining" else None
    expected = shapes(network.architecture, head, vocabulary and vocabulary.size)
    beside = {name for name in network.flat if name.startswith("label_embeddings_")}
    require_names("the network", {*network.flat, "hubert/mask_embedding"}, {*expected, *beside})
    metadata = {
        "kind": network.kind,
        **network.described(),
        "inputs": {"converted": network.digest()},
        **({"vocabulary": vocabulary.to_dict()} if vocabulary else {}),
        **({"units": config_lib.to_dict(network.units)} if network.units else {}),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.writing_directory(path, marker="_CHECKPOINT_METADATA") as aside:
        checkpoints = Checkpoints(aside, keep=1, alone=True)
        checkpoints.save(0, {"params": params}, metadata)
        checkpoints.close()
    return WriteResult({path.name: fingerprint({**metadata, "step": 0})}, notes)
