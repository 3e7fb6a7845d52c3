"""Labels that are made elsewhere: phones of alignments, units in fairseq's .km files."""

import os
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from hubert_jax import config, files, storage
from hubert_jax.corpus.sources.utterances import identify, read_lines
from hubert_jax.data import manifests
from hubert_jax.data.index import read_index
from hubert_jax.errors import InputError
from hubert_jax.frames import num_frames
from hubert_jax.units import alignments as alignments_lib
from hubert_jax.units.labels import Inventory


class _Imported:
    """Labels of every utterance by its id and its samples; `inventory` says what they are."""

    def __init__(self, inventory: Inventory, of: Callable[[str, int], np.ndarray]) -> None:
        self.inventory, self._of = inventory, of

    def labels(
        self, split_dir: str | os.PathLike, shards: Callable[[int], bool]
    ) -> Iterator[tuple[int, str, list[np.ndarray]]]:
        """Yields (number of the audio shard, utterance id, [uint16 (T,)]); reads no audio.

        Raises InputError, naming the utterance, for one that has no labels or another's.
        """
        manifest = manifests.read_manifest(split_dir)
        index = read_index(split_dir, manifest)
        for number in filter(shards, range(len(manifest.shards))):
            for record in index.shard(number):
                name = index.ids[record]
                yield number, name, [self._of(name, int(index.samples[record]))]


def phones(path: str, rate: int) -> _Imported:
    """The phone at the centre of each frame of `rate` Hz, numbered as sorted phones of the file.

    Raises InputError as `alignments.read_alignments` and `alignments.fitted`.
    """
    alignments = alignments_lib.read_alignments(path)
    found = set().union(*(each.phones.tolist() for each in alignments.values()))
    if not all(each.whole for each in alignments.values()):
        found.add(alignments_lib.SILENCE)
    names = sorted(found)
    described = {"kind": "phones", "phones": names}

    def of(name: str, samples: int) -> np.ndarray:
        if name not in alignments:
            raise InputError(
                f"{path}: utterance {name}: no alignment; give the alignments of this split, or "
                "leave the utterance out of it"
            )
        one, _ = alignments_lib.fitted(alignments, {name: samples}, 0.0, path)
        spoken = alignments_lib.phones_at_frames(one[name], num_frames(samples, rate), rate)
        return np.searchsorted(names, spoken).astype(np.uint16)

    whole = described | {"alignments": alignments_lib.digest(path)}
    return _Imported(Inventory(len(names), whole, config.digest(described)), of)


def units(paths: Sequence[str], manifest_paths: Sequence[str], size: int) -> _Imported:
    """Units, below `size`, of .km files: a line an utterance, in the order of fairseq's .tsv.

    Their lines are read when they are asked for. Raises InputError, which names the file, for
    another number of lines than utterances, an utterance that is listed twice, or what cannot be
    read.
    """
    places: dict[str, tuple[str, int, int]] = {}  # file, number of the line, where it begins
    for path, manifest_path in zip(paths, manifest_paths, strict=True):
        (_, first), *rows = read_lines(storage.path(manifest_path)) or [(1, "")]
        begins = _lines(path)
        if len(begins) != len(rows):
            raise InputError(
                f"{path}: found {len(begins)} lines, but {manifest_path} lists {len(rows)} "
                "utterances; expected a line for each"
            )
        for number, ((at, row), begin) in enumerate(zip(rows, begins, strict=True), start=1):
            relative = pathlib.PurePosixPath(row.partition("\t")[0])
            if not relative.name:
                raise InputError(
                    f"{manifest_path}, line {at}: expected PATH<TAB>SAMPLES, found {row[:80]!r}"
                )
            name, *_ = identify(storage.path(first.strip()), relative)
            if name in places:
                raise InputError(
                    f"{path}, line {number}: utterance {name} is also in {places[name][0]}, line "
                    f"{places[name][1]}; expected every utterance once"
                )
            places[name] = path, number, begin

    copies = {path: storage.local(path) for path in paths}

    def of(name: str, samples: int) -> np.ndarray:
        if name not in places:
            raise InputError(
                f"utterance {name}: not listed in {', '.join(manifest_paths)}; give the .km and "
                ".tsv of this audio, or leave the utterance out of the split"
            )
        path, number, begin = places[name]
        with open(copies[path], "rb") as file:
            file.seek(begin)
            line = file.readline()
        found = line.split()
        if not all(unit.isdigit() and len(unit) < 6 and int(unit) < size for unit in found):
            raise InputError(
                f"{path}, line {number}: found {line[:40].decode(errors='replace').strip()!r}, "
                f"expected units below config.num_clusters={size} between spaces"
            )
        return np.array([int(unit) for unit in found], np.uint16)

    described = {"kind": "units", "files": [files.sha256_file(path) for path in paths]}
    return _Imported(Inventory(size, described, config.digest([described, size])), of)


def _lines(path: str) -> list[int]:
    """Where each line of a file begins, in bytes."""
    begins, begin = [], 0
    try:
        with open(storage.path(path), "rb") as file:
            for line in file:
                begins.append(begin)
                begin += len(line)
    except OSError as error:
        raise InputError(f"{path}: units cannot be read ({error.strerror})") from None
    return begins
