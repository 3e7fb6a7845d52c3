"""Label directories: the units of an audio split, record for record, bound to it by digest."""

import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from hubert_jax import config as config_lib
from hubert_jax import distributed, files
from hubert_jax.data import manifests, records
from hubert_jax.data.index import Index, read_index, read_label_index, write_label_index
from hubert_jax.errors import InputError
from hubert_jax.frames import num_frames
from hubert_jax.units.kmeans import Codebook

_Labels = Callable[[Callable[[int], bool]], Iterable[tuple[int, str, np.ndarray]]]


def write_labels(
    audio_dir: str | os.PathLike,
    label_dir: str | os.PathLike,
    labels: _Labels,
    codebook: Codebook,
    rate: int,
    version: int,
) -> manifests.LabelManifest:
    """Writes the label set of an audio split; returns its manifest.

    The directory appears, in place of an older one, when it is complete; what an interrupted call
    finished for the same audio, codebook and `version` of the job is kept. `labels` takes a
    predicate on numbers of audio shards and yields (number, utterance id, uint16 (T,) at `rate` Hz)
    of their utterances. Several processes write shards in turn. Raises InputError where an
    utterance lacks labels or has another number of them than frames.
    """
    audio_dir, label_dir = pathlib.Path(audio_dir), pathlib.Path(label_dir)
    audio = manifests.read_manifest(audio_dir)
    key = config_lib.digest([audio.digest, codebook.digest, rate, version])[:16]
    parts = label_dir.with_name(f".{label_dir.name}.parts-{key}")
    paths = [parts / manifests.label_file(shard.file) for shard in audio.shards]

    def begin() -> bool:
        wanted = (audio.split, audio.digest, codebook.digest, rate, version)
        if _is_finished(label_dir, wanted):
            return False
        for leftover in label_dir.parent.glob(f".{label_dir.name}.parts-*"):
            if leftover != parts:
                shutil.rmtree(leftover)
        parts.mkdir(parents=True, exist_ok=True)
        for leftover in set(parts.iterdir()) - set(paths):
            leftover.unlink()  # begun by a process that was killed
        return True

    if not distributed.from_first(begin):
        return manifests.read_label_manifest(label_dir)
    index, classes = read_index(audio_dir, audio), len(codebook.centroids)
    counted: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def count(number: int) -> None:
        counted[number] = _counted(paths[number], audio.shards[number].utterances, classes)

    mine = {number for number in range(len(paths)) if distributed.takes(number)}
    for number in mine:
        try:
            count(number)
        except InputError:  # not written yet, or damaged since
            paths[number].unlink(missing_ok=True)
    waiting: dict[int, dict[str, np.ndarray]] = {}

    def write(number: int) -> None:
        rows = _in_order(index, number, waiting.pop(number, {}), rate)
        with files.writing_file(paths[number]) as aside:
            records.write_label_shard(aside, rows)
        count(number)

    for number, name, values in labels(lambda number: number in mine and number not in counted):
        waiting.setdefault(number, {})[name] = values
        if len(waiting[number]) == audio.shards[number].utterances:
            write(number)
    for number in sorted(mine - set(counted)):
        write(number)
    distributed.gather(None)

    def finish() -> None:
        for number in set(range(len(paths))) - mine:
            count(number)
        counts, lengths = zip(*(counted[number] for number in range(len(paths))), strict=True)
        class_counts = np.sum(counts, axis=0)
        shards = tuple(
            manifests.LabelShardInfo(
                path.name, len(rows), int(count.sum()), files.sha256_file(path)
            )
            for path, count, rows in zip(paths, counts, lengths, strict=True)
        )
        manifest = manifests.LabelManifest(
            split=audio.split,
            audio_digest=audio.digest,
            rate_hz=rate,
            num_classes=classes,
            feature=codebook.feature,
            codebook_digest=codebook.digest,
            utterances=sum(shard.utterances for shard in shards),
            frames=sum(shard.frames for shard in shards),
            class_counts=tuple(class_counts.tolist()),
            digest=manifests.shards_digest(shards),
            shards=shards,
            index=write_label_index(parts, lengths),
            version=version,
        )
        manifests.write_manifest(parts, manifest)
        if label_dir.exists():
            shutil.rmtree(label_dir)
        parts.rename(label_dir)

    distributed.from_first(finish)
    return manifests.read_label_manifest(label_dir)


def _is_finished(label_dir: pathlib.Path, wanted: tuple[str, str, str, int, int]) -> bool:
    """Whether the label set that is there already is the wanted one and whole."""
    try:
        found = manifests.read_label_manifest(label_dir)
        read_label_index(label_dir, found)
    except InputError:
        return False
    of_set = (found.split, found.audio_digest, found.codebook_digest, found.rate_hz, found.version)
    if of_set != wanted:
        return False
    return all(files.sha256_file(label_dir / s.file) == s.digest for s in found.shards)


def _counted(path: pathlib.Path, utterances: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels of each class in a label shard, int64 (K,), and its records' lengths, uint32 (n,)."""
    counts = np.zeros(classes, np.int64)
    lengths = []
    for name, values in records.read_label_shard(path, utterances):
        counts += np.bincount(values, minlength=classes)
        lengths.append(records.FRAMING_BYTES + len(records.label_record(name, values)))
    return counts, np.array(lengths, np.uint32)


def _in_order(
    index: Index, number: int, labels: dict[str, np.ndarray], rate: int
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
