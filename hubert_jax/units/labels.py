"""Label directories: the units of an audio split, record for record, bound to it by digest."""

import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from hubert_jax import files
from hubert_jax.data import manifests, records
from hubert_jax.errors import InputError
from hubert_jax.units.frames import RATES, SAMPLE_RATE, WINDOW, num_frames
from hubert_jax.units.kmeans import Codebook


def write_labels(
    audio_dir: str | os.PathLike,
    label_dir: str | os.PathLike,
    labels: Iterable[tuple[str, np.ndarray]],
    codebook: Codebook,
    rate: int,
) -> records.LabelManifest:
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
    manifest = records.read_manifest(audio_dir)
    num_classes = len(codebook.centroids)
    class_counts = np.zeros(num_classes, np.int64)
    in_turn = _InTurn(labels)
    shards = []

    def rows(path: pathlib.Path) -> Iterator[tuple[str, np.ndarray]]:
        nonlocal class_counts
        for utterance in records.read_shard(path):
            values = in_turn.of(utterance.id)
            expected = num_frames(len(utterance.audio), rate)
            if len(values) != expected:
                raise InputError(
                    f"utterance {utterance.id}: found {len(values)} labels, expected {expected} at "
                    f"{rate} Hz for {len(utterance.audio)} samples; check the feature's rate"
                )
            class_counts += np.bincount(values, minlength=num_classes)
            yield utterance.id, values

    with files.writing_directory(label_dir) as directory:
        for shard in manifest.shards:
            path = directory / records.label_file(shard.file)
            shards.append(records.write_label_shard(path, rows(audio_dir / shard.file)))
        written = records.LabelManifest(
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


def read_label_sets(
    audio: records.AudioManifest, directories: Sequence[str], codebooks: Sequence[int]
) -> list[records.LabelManifest]:
    """The manifests of the label sets of a training, if they fit.

    Args:
      audio: manifest of the audio.
      directories: of the label sets, one for each codebook.
      codebooks: the numbers of classes that the network predicts.

    Raises:
      InputError: another number of label sets than of codebooks, or as `check_labels`.
    """
    if len(directories) != len(codebooks):
        raise InputError(
            f"config.labels has {len(directories)} label sets, config.model.codebooks "
            f"{len(codebooks)} codebooks; expected one label set for each codebook"
        )
    found = []
    for directory, classes in zip(directories, codebooks, strict=True):
        found.append(records.read_label_manifest(directory))
        check_labels(audio, found[-1], num_classes=classes, where=directory)
    return found


def check_labels(
    audio: records.AudioManifest,
    labels: records.LabelManifest,
    num_classes: int | None = None,
    where: str = "labels",
) -> None:
    """Refuses labels that do not belong to an audio split or cannot be trained on.

    Args:
      audio: manifest of the audio.
      labels: manifest of the labels.
      num_classes: classes that the model predicts; None: any.
      where: the labels' directory, for messages.

    Raises:
      InputError: names the field that is wrong, what was found, what was expected, what to do.
    """

    def refuse(field: str, found: Any, expected: Any, remedy: str):
        raise InputError(f"{where}: {field}: found {found}, expected {expected}; {remedy}")

    again = "run the label job on this audio"
    if labels.audio_digest != audio.digest:
        refuse(
            "audio_digest",
            f"{str(labels.audio_digest)[:12]} (labels of split {labels.split!r})",
            f"{audio.digest[:12]} (audio of split {audio.split!r})",
            f"the labels belong to other audio: {again}",
        )
    if labels.utterances != audio.utterances:
        refuse("utterances", labels.utterances, audio.utterances, again)
    if labels.rate_hz not in RATES:
        refuse(
            "rate_hz", labels.rate_hz, " or ".join(map(str, RATES)), "write the labels' true rate"
        )
    if len(labels.shards) != len(audio.shards):
        refuse("shards", len(labels.shards), len(audio.shards), again)
    for mine, theirs in zip(labels.shards, audio.shards, strict=True):
        _check_shard(mine, theirs, labels.rate_hz, refuse)
    counts = labels.class_counts
    if len(counts) != labels.num_classes:
        refuse("class_counts", f"{len(counts)} classes", f"{labels.num_classes} classes", again)
    frames = sum(shard.frames for shard in labels.shards)
    if not labels.frames == frames == sum(counts):
        refuse("class_counts", f"{sum(counts)} labels", f"{frames}, as in the shards", again)
    if np.count_nonzero(counts) < 2:
        refuse(
            "class_counts",
            f"{np.count_nonzero(counts)} class in use",
            "at least 2",
            "there is nothing to predict: fit the codebook on the right features",
        )
    if num_classes is not None and labels.num_classes != num_classes:
        refuse(
            "num_classes",
            labels.num_classes,
            f"{num_classes}, the classes of the model",
            "set the model's codebook to the number of clusters",
        )


def _check_shard(mine, theirs, rate: int, refuse) -> None:
    """Refuses a label shard that cannot mirror an audio shard."""
    again = "run the label job on this audio"
    name = records.label_file(theirs.file)
    if mine.file != name:
        refuse("shards", mine.file, name, again)
    if mine.utterances != theirs.utterances:
        refuse(f"utterances of {name}", mine.utterances, theirs.utterances, again)
    # Every utterance of n samples has floor((n - 400) / hop) + 1 frames.
    hop = SAMPLE_RATE // rate
    least = (theirs.samples - theirs.utterances * WINDOW) / hop
    most = least + theirs.utterances
    if not least < mine.frames <= most and theirs.utterances:
        refuse(
            f"frames of {name}",
            mine.frames,
            f"about {round(most)} for {theirs.samples} samples at {rate} Hz",
            "check the rate of the labels: MFCC has 100 Hz, a layer 50 Hz",
        )


def commonest_share(labels: records.LabelManifest) -> float:
    """Share of the frames whose unit is the commonest one."""
    return max(labels.class_counts) / max(labels.frames, 1)
