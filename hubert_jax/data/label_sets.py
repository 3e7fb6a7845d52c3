"""Label sets of an audio split: whether they belong to it and can be trained on."""

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np

from hubert_jax.data.manifests import (
    AudioManifest,
    LabelManifest,
    LabelShardInfo,
    ShardInfo,
    label_file,
    read_label_manifest,
)
from hubert_jax.errors import InputError
from hubert_jax.frames import RATES, SAMPLE_RATE, WINDOW


def read_label_sets(
    audio: AudioManifest, directories: Sequence[str], codebooks: Sequence[int]
) -> list[LabelManifest]:
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
            f"config.labels has {len(directories)} label sets, config.head.codebook_sizes "
            f"{len(codebooks)} codebooks; expected one label set for each codebook"
        )
    found = []
    for directory, classes in zip(directories, codebooks, strict=True):
        found.append(read_label_manifest(directory))
        check_labels(audio, found[-1], num_classes=classes, where=directory)
    return found


def check_labels(
    audio: AudioManifest,
    labels: LabelManifest,
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

    def refuse(field: str, found: Any, expected: Any, remedy: str) -> NoReturn:
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


def _check_shard(
    mine: LabelShardInfo,
    theirs: ShardInfo,
    rate: int,
    refuse: Callable[[str, Any, Any, str], NoReturn],
) -> None:
    """Refuses a label shard that cannot mirror an audio shard."""
    again = "run the label job on this audio"
    name = label_file(theirs.file)
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
