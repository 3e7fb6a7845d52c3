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

_AGAIN = "run the label job on this audio"


def read_label_sets(
    audio: AudioManifest,
    directories: Sequence[str],
    codebooks: Sequence[int],
    specials: int = 0,
    key: str = "config.labels",
) -> list[LabelManifest]:
    """The manifests of the label sets of `key`, one for each codebook size of the network.

    Of a network's classes the first `specials` may be no units, which labels then leave out.
    Raises InputError if their number is another, or as `check_labels`.
    """
    if len(directories) != len(codebooks):
        raise InputError(
            f"{key} has {len(directories)} label sets, config.head.codebook_sizes "
            f"{len(codebooks)} codebooks; expected one label set for each codebook"
        )
    found = []
    for directory, classes in zip(directories, codebooks, strict=True):
        found.append(read_label_manifest(directory))
        units = classes - specials
        expected = units if found[-1].num_classes == units else classes
        check_labels(audio, found[-1], num_classes=expected, where=directory)
    return found


def check_labels(
    audio: AudioManifest,
    labels: LabelManifest,
    num_classes: int | None = None,
    where: str = "labels",
) -> None:
    """Raises InputError if labels do not belong to an audio split or cannot be trained on.

    `num_classes` are those that the model predicts, None: any; `where` is named in messages.
    """

    def refuse(field: str, found: Any, expected: Any, remedy: str) -> NoReturn:
        raise InputError(f"{where}: {field}: found {found}, expected {expected}; {remedy}")

    if labels.audio_digest != audio.digest:
        refuse(
            "audio_digest",
            f"{str(labels.audio_digest)[:12]} (labels of split {labels.split!r})",
            f"{audio.digest[:12]} (audio of split {audio.split!r})",
            f"the labels belong to other audio: {_AGAIN}",
        )
    if labels.utterances != audio.utterances:
        refuse("utterances", labels.utterances, audio.utterances, _AGAIN)
    if labels.rate_hz not in RATES:
        rates = " or ".join(map(str, RATES))
        refuse("rate_hz", labels.rate_hz, rates, "write the labels' true rate")
    if len(labels.shards) != len(audio.shards):
        refuse("shards", len(labels.shards), len(audio.shards), _AGAIN)
    for mine, theirs in zip(labels.shards, audio.shards, strict=True):
        _check_shard(mine, theirs, labels.rate_hz, refuse)
    counts = labels.class_counts
    if len(counts) != labels.num_classes:
        refuse("class_counts", f"{len(counts)} classes", f"{labels.num_classes} classes", _AGAIN)
    frames = sum(shard.frames for shard in labels.shards)
    if not labels.frames == frames == sum(counts):
        refuse("class_counts", f"{sum(counts)} labels", f"{frames}, as in the shards", _AGAIN)
    used = np.count_nonzero(counts)
    if used < 2:
        remedy = "there is nothing to predict: fit the codebook on the right features"
        refuse("class_counts", f"{used} class in use", "at least 2", remedy)
    if num_classes is not None and labels.num_classes != num_classes:
        remedy = (
            "set config.head.codebook_sizes to the number of clusters; released heads of 4 classes "
            "more are kept with config.keep_head=True"
        )
        expected = f"{num_classes}, the classes of the model"
        refuse("num_classes", labels.num_classes, expected, remedy)


def _check_shard(
    mine: LabelShardInfo,
    theirs: ShardInfo,
    rate: int,
    refuse: Callable[[str, Any, Any, str], NoReturn],
) -> None:
    name = label_file(theirs.file)
    if mine.file != name:
        refuse("shards", mine.file, name, _AGAIN)
    if mine.utterances != theirs.utterances:
        refuse(f"utterances of {name}", mine.utterances, theirs.utterances, _AGAIN)
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
