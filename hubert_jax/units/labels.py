"""Label directories: the units of an audio split, record for record, bound to it by digest."""

import os
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np

from hubert_jax import files
from hubert_jax.data import manifests, records
from hubert_jax.data.index import read_index, write_label_index
from hubert_jax.errors import InputError
from hubert_jax.frames import num_frames
from hubert_jax.units.kmeans import Codebook


def write_labels(
    audio_dir: str | os.PathLike,
    label_dir: str | os.PathLike,
    labels: Iterable[tuple[str, np.ndarray]],
    codebook: Codebook,
    rate: int,
) -> manifests.LabelManifest:
    """Writes the label shards of an audio split; the directory appears when it is complete.

    Args:
      audio_dir: the split.
      label_dir: where to write; an older directory is replaced.
      labels: (id, uint16 of shape (T,)) of every utterance of the split. Labels that come before
        their turn wait in memory (2 bytes a frame).
      codebook: what the labels were assigned with.
      rate: frames per second.

    Returns:
      The manifest that was written.

    Raises:
      InputError: labels are missing for an utterance, or their number is not that of its frames.
    """
    audio_dir = pathlib.Path(audio_dir)
    manifest = manifests.read_manifest(audio_dir)
    index = read_index(audio_dir, manifest)
    num_classes = len(codebook.centroids)
    class_counts = np.zeros(num_classes, np.int64)
    in_turn = _InTurn(labels)
    shards, lengths = [], []

    def rows(number: int) -> Iterator[tuple[str, np.ndarray]]:
        nonlocal class_counts
        for record in index.shard(number):
            name, samples = index.ids[record], int(index.samples[record])
            values = in_turn.of(name)
            expected = num_frames(samples, rate)
            if len(values) != expected:
                raise InputError(
                    f"utterance {name}: found {len(values)} labels, expected {expected} at "
                    f"{rate} Hz for {samples} samples; check the feature's rate"
                )
            class_counts += np.bincount(values, minlength=num_classes)
            yield name, values

    with files.writing_directory(label_dir) as directory:
        for number, shard in enumerate(manifest.shards):
            path = directory / manifests.label_file(shard.file)
            info, length = records.write_label_shard(path, rows(number))
            shards.append(info)
            lengths.append(length)
        written = manifests.LabelManifest(
            split=manifest.split,
            audio_digest=manifest.digest,
            rate_hz=rate,
            num_classes=num_classes,
            feature=codebook.feature,
            codebook_digest=codebook.digest,
            utterances=sum(shard.utterances for shard in shards),
            frames=sum(shard.frames for shard in shards),
            class_counts=tuple(class_counts.tolist()),
            digest=manifests.shards_digest(tuple(shards)),
            shards=tuple(shards),
            index=write_label_index(directory, lengths),
        )
        manifests.write_manifest(directory, written)
    return written


class _InTurn:
    """Labels of a stream, by id; those passed on the way are kept."""

    def __init__(self, labels: Iterable[tuple[str, np.ndarray]]):
        self._labels = iter(labels)
        self._waiting: dict[str, np.ndarray] = {}

    def of(self, utterance_id: str) -> np.ndarray:
        while utterance_id not in self._waiting:
            try:
                found, values = next(self._labels)
            except StopIteration:
                raise InputError(
                    f"utterance {utterance_id}: found no labels, expected one label a frame; the "
                    "audio split changed while it was read: run the label job again"
                ) from None
            self._waiting[found] = values
        return self._waiting.pop(utterance_id)


def commonest_share(labels: manifests.LabelManifest) -> float:
    """Share of the frames whose unit is the commonest one."""
    return max(labels.class_counts) / max(labels.frames, 1)
