"""One seam for all formats: a network is read from and written to `SCHEME:PATH`.

hf:DIR            a directory that transformers loads
fairseq:FILE      a checkpoint of fairseq (.pt)
torchaudio:FILE   a state dict of torchaudio (.pt, .pth), with FILE.json beside it
orbax:DIR         the checkpoint directory of a run of this package; its newest good checkpoint
orbax:DIR@STEP    one of its checkpoints
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from hubert_jax import config as config_lib
from hubert_jax import files
from hubert_jax.convert import fairseq, hugging_face, torchaudio
from hubert_jax.convert.encoders import require_names, shapes
from hubert_jax.convert.network import Network, Units, described, with_mask_embedding
from hubert_jax.errors import InputError
from hubert_jax.model.architecture import Architecture, Head, Regularization
from hubert_jax.vocabulary import Vocabulary

SCHEMES = ("hf", "fairseq", "torchaudio", "orbax")


@dataclasses.dataclass(frozen=True)
class Written:
    """What writing a network left behind.

    Attributes:
      digests: SHA-256 (hex) of every file by its name; of an orbax checkpoint its fingerprint.
      notes: a sentence for everything that the format has no home for.
    """

    digests: dict[str, str]
    notes: tuple[str, ...] = ()


def parse(where: str, key: str) -> tuple[str, pathlib.Path]:
    """Scheme and path of `SCHEME:PATH`.

    Args:
      where: what the user wrote.
      key: the flag or configuration key that it was written for, for messages.

    Raises:
      InputError: no scheme, an unknown one, or no path.
    """
    scheme, separator, path = where.partition(":")
    if not separator or scheme not in SCHEMES or not path:
        remedy = "" if separator else f"; a checkpoint directory of a run is written orbax:{where}"
        raise InputError(
            f"{key}={where}: expected hf:DIR, fairseq:FILE, torchaudio:FILE or orbax:DIR[@STEP]"
            f"{remedy}"
        )
    return scheme, pathlib.Path(path)


def read(where: str, key: str = "--from", shardings: Callable[[Any], Any] | None = None) -> Network:
    """Reads a network.

    Args:
      where, key: as of `parse`.
      shardings: gives the sharding of every parameter, from the tree of their shapes: an orbax
        checkpoint is read straight onto these devices. Other formats give host arrays.

    Raises:
      InputError: nothing there, a damaged file, or a network that is not HuBERT as defined here.
    """
    scheme, path = parse(where, key)
    if scheme == "hf":
        return hugging_face.read_directory(path)
    if scheme == "fairseq":
        return fairseq.read(path)
    if scheme == "torchaudio":
        return torchaudio.read(path)
    return _read_orbax(path, shardings)


def write(where: str, network: Network, key: str = "--to") -> Written:
    """Writes a network, complete or not at all; arguments as of `parse`.

    Raises:
      InputError: something else is in its place, or the format cannot express the network.
    """
    scheme, path = parse(where, key)
    try:
        return _write(scheme, path, network, where, key)
    except OSError as error:
        raise InputError(f"{key}={where}: cannot be written ({error.strerror or error})") from None


def _write(scheme: str, path: pathlib.Path, network: Network, where: str, key: str) -> Written:
    if scheme == "hf":
        return Written(hugging_face.write_directory(path, network))
    if scheme == "orbax":
        return _write_orbax(path, network, where, key)
    if path.is_dir():
        raise InputError(f"{key}={where}: a directory, expected the name of a file")
    notes = (fairseq if scheme == "fairseq" else torchaudio).write(path, network)
    written = sorted(path.parent.glob(f"{path.name}*")) if scheme == "torchaudio" else [path]
    own = [file for file in written if file.name in (path.name, *_companions(path))]
    return Written({file.name: files.sha256_file(file) for file in own}, notes)


def _companions(path: pathlib.Path) -> tuple[str, ...]:
    return (f"{path.name}.json", f"{path.name}.rest.safetensors")


def _read_orbax(path: pathlib.Path, shardings: Callable[[Any], Any] | None) -> Network:
    from hubert_jax.training.checkpoint import fingerprint, restore_parameters

    params, metadata = restore_parameters(path, shardings)
    if metadata["kind"] not in ("pretraining", "ctc", "encoder"):
        raise InputError(
            f"{path}: a checkpoint of kind {metadata['kind']!r}, expected one of train or finetune"
        )
    architecture = config_lib.build(Architecture, metadata["architecture"], f"{path}: architecture")
    regularization = config_lib.build(
        Regularization, metadata["regularization"], f"{path}: regularization"
    )
    vocabulary = head = units = None
    if metadata["kind"] == "ctc":
        vocabulary = Vocabulary.from_dict(metadata["vocabulary"])
    if "label_embeddings_0" in params:
        head = config_lib.build(Head, metadata["head"], f"{path}: head")
        units = _units_of_run(metadata, head, path)
    return Network(
        params, architecture, head, regularization, vocabulary, units, fingerprint(metadata)
    )


def _units_of_run(metadata: dict, head: Head, path: pathlib.Path) -> Units | None:
    """Of a converted network as they came; of a run by its label sets."""
    if metadata.get("units"):
        return Units.from_dict(metadata["units"], head.codebook_sizes, str(path))
    labels = metadata.get("labels")
    if not labels:
        return None
    return Units.numbered(
        head.codebook_sizes,
        rate_hz=float(labels[0]["rate_hz"]),
        codebook_digests=tuple(manifest["codebook_digest"] for manifest in labels),
    )


def _write_orbax(path: pathlib.Path, network: Network, where: str, key: str) -> Written:
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
        **described(network),
        "inputs": {"converted": network.digest()},
        **({"vocabulary": vocabulary.to_dict()} if vocabulary else {}),
        **({"units": network.units.to_dict()} if network.units else {}),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.writing_directory(path) as aside:
        checkpoints = Checkpoints(aside, keep=1)
        checkpoints.save(0, {"params": params}, metadata)
        checkpoints.close()
    return Written({path.name: fingerprint({**metadata, "step": 0})}, notes)
