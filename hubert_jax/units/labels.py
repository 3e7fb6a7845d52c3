"""Label directories: the units of an audio split, record for record, bound to it by digest."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hubert_jax import config as config_lib
from hubert_jax import distributed, files, storage
from hubert_jax.data import manifests, records
from hubert_jax.data.index import Index, read_index, read_label_index, write_label_index
from hubert_jax.errors import InputError
from hubert_jax.frames import num_frames

_Labels = Callable[[Callable[[int], bool]], Iterable[tuple[int, str, Sequence[np.ndarray]]]]


@dataclasses.dataclass(frozen=True)
class Inventory:
    """What the units of a label set are."""

    size: int
    feature: dict[str, Any]  # what they were made from; labels are of no other one
    digest: str  # of the codebook, or of what their numbers mean where there is none


def write_labels(
    audio_dir: str | os.PathLike,
    inventories: Mapping[pathlib.Path, Inventory],
    labels: _Labels,
    rate: int,
    version: int,
) -> list[manifests.LabelManifest]:
    """Writes label sets of an audio split, one a directory; returns their manifests.

    A directory appears, in place of an older one, when it is complete; what an interrupted call
    finished for the same audio, inventory and `version` of the job is kept. `labels` takes a
    predicate on numbers of audio shards and yields (number, utterance id, for each directory uint16
    (T,) at `rate` Hz) of their utterances. Several processes write shards in turn. Raises
    InputError where an utterance lacks labels or has another number of them than frames.
    """
    audio = manifests.read_manifest(audio_dir)
    index = read_index(audio_dir, audio)
    sets = [
        _LabelSet(audio, index, label_dir, inventory, rate, version)
        for label_dir, inventory in inventories.items()
    ]
    # Of each process the shards that it has to make, by set.
    missing = [each.begin() for each in sets]
    waiting: dict[int, dict[str, Sequence[np.ndarray]]] = {}

    def write(number: int) -> None:
        found = waiting.pop(number, {})
        for place, each in enumerate(sets):
            if number in missing[place]:
                each.write(number, {name: values[place] for name, values in found.items()})

    wanted = set().union(*missing)
    if distributed.everywhere(np.array(len(wanted))).sum():
        for number, name, values in labels(lambda number: number in wanted):
            waiting.setdefault(number, {})[name] = values
            if len(waiting[number]) == audio.shards[number].utterances:
                write(number)
                wanted.remove(number)
        for number in sorted(wanted):
            write(number)
    distributed.gather(None)
    return [each.finish() for each in sets]


class _LabelSet:
    """A label set that is written shard by shard."""

    def __init__(
        self,
        audio: manifests.AudioManifest,
        index: Index,
        label_dir: pathlib.Path,
        inventory: Inventory,
        rate: int,
        version: int,
    ) -> None:
        self._audio, self._index, self._label_dir = audio, index, label_dir
        self._inventory, self._rate, self._version = inventory, rate, version
        key = config_lib.digest([audio.digest, inventory.digest, inventory.feature, rate, version])
        self._parts = label_dir.with_name(f".{label_dir.name}.parts-{key[:16]}")
        self._paths = [self._parts / manifests.label_file(shard.file) for shard in audio.shards]
        self._counted: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._is_open = True

    def begin(self) -> set[int]:
        """The shards that this process has to write."""
        self._is_open = distributed.from_first(self._begin)
        if not self._is_open:
            return set()
        mine = {number for number in range(len(self._paths)) if distributed.takes(number)}
        for number in mine:
            try:
                self._count(number)
            except InputError:  # not written yet, or damaged since
                self._paths[number].unlink(missing_ok=True)
        return mine - set(self._counted)

    def write(self, number: int, labels: Mapping[str, np.ndarray]) -> None:
        """Writes the labels of an audio shard's utterances."""
        rows = _in_order(self._index, number, labels, self._rate)
        with files.writing_file(self._paths[number]) as aside:
            records.write_label_shard(aside, rows)
        self._count(number)

    def finish(self) -> manifests.LabelManifest:
        """The manifest, when all processes have written all shards."""
        if self._is_open:
            distributed.from_first(self._finish)
        return manifests.read_label_manifest(self._label_dir)

    def _begin(self) -> bool:
        if self._is_finished():
            return False
        for leftover in self._label_dir.parent.glob(f".{self._label_dir.name}.parts-*"):
            if leftover != self._parts:
                storage.remove_tree(leftover)
        self._parts.mkdir(parents=True, exist_ok=True)
        for leftover in set(self._parts.iterdir()) - set(self._paths):
            leftover.unlink()  # begun by a process that was killed
        return True

    def _is_finished(self) -> bool:
        """Whether the label set that is there already is the wanted one and whole."""
        try:
            found = manifests.read_label_manifest(self._label_dir)
            read_label_index(self._label_dir, found)
        except InputError:
            return False
        of_set = (found.split, found.audio_digest, found.codebook_digest, found.feature)
        wanted = (self._audio.split, self._audio.digest, self._inventory.digest)
        if (*of_set, found.rate_hz, found.version) != (
            *wanted,
            self._inventory.feature,
            self._rate,
            self._version,
        ):
            return False
        there = self._label_dir
        return all(files.sha256_file(there / s.file) == s.digest for s in found.shards)

    def _count(self, number: int) -> None:
        """Labels of each class in a label shard, int64 (K,); its records' lengths, uint32 (n,)."""
        counts = np.zeros(self._inventory.size, np.int64)
        lengths = []
        utterances = self._audio.shards[number].utterances
        for name, values in records.read_label_shard(self._paths[number], utterances):
            counts += np.bincount(values, minlength=len(counts))
            lengths.append(records.FRAMING_BYTES + len(records.label_record(name, values)))
        self._counted[number] = counts, np.array(lengths, np.uint32)

    def _finish(self) -> None:
        for number in set(range(len(self._paths))) - set(self._counted):
            self._count(number)
        counts, lengths = zip(*(self._counted[i] for i in range(len(self._paths))), strict=True)
        shards = tuple(
            manifests.LabelShardInfo(
                path.name, len(rows), int(count.sum()), files.sha256_file(path)
            )
            for path, count, rows in zip(self._paths, counts, lengths, strict=True)
        )
        manifest = manifests.LabelManifest(
            split=self._audio.split,
            audio_digest=self._audio.digest,
            rate_hz=self._rate,
            num_classes=self._inventory.size,
            feature=self._inventory.feature,
            codebook_digest=self._inventory.digest,
            utterances=sum(shard.utterances for shard in shards),
            frames=sum(shard.frames for shard in shards),
            class_counts=tuple(np.sum(counts, axis=0).tolist()),
            digest=manifests.shards_digest(shards),
            shards=shards,
            index=write_label_index(self._parts, lengths),
            version=self._version,
        )
        manifests.write_manifest(self._parts, manifest)
        if self._label_dir.exists():
            storage.remove_tree(self._label_dir)
        self._parts.rename(self._label_dir)


def _in_order(
    index: Index, number: int, labels: Mapping[str, np.ndarray], rate: int
) -> Iterator[tuple[str, np.ndarray]]:
    """(id, labels) of an audio shard's utterances in its order."""
    for record in index.shard(number):
        name, samples = index.ids[record], int(index.samples[record])
        values, expected = labels.get(name), num_frames(samples, rate)
        if values is None:
            raise InputError(
                f"utterance {name}: found no labels, expected one label a frame; the audio "
                "split changed while it was read: run the label job again"
            )
        if len(values) != expected:
            raise InputError(
                f"utterance {name}: found {len(values)} labels, expected {expected} at "
                f"{rate} Hz for {samples} samples; check the feature's rate"
            )
        yield name, values


def commonest_share(labels: manifests.LabelManifest) -> float:
    """Fraction of the frames whose unit is the commonest one."""
    return max(labels.class_counts) / max(labels.frames, 1)
