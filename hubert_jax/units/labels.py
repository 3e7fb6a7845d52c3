"""Label directories: the units of an audio split, record for record, bound to it by digest."""

import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator

import numpy as np

import hubert_jax
from hubert_jax import config as config_lib
from hubert_jax import files
from hubert_jax.data import manifests, records
from hubert_jax.data.index import Index, read_index, read_label_index, write_label_index
from hubert_jax.errors import InputError
from hubert_jax.frames import num_frames
from hubert_jax.units.kmeans import Codebook

Labels = Callable[[Callable[[int], bool]], Iterable[tuple[int, str, np.ndarray]]]


def write_labels(
    audio_dir: str | os.PathLike,
    label_dir: str | os.PathLike,
    labels: Labels,
    codebook: Codebook,
    rate: int,
) -> manifests.LabelManifest:
    """Writes the label shards of an audio split; the directory appears when it is complete.

    Shards that an interrupted call finished for the same audio and codebook are kept, and so is
    a whole label set of them.

    Args:
      audio_dir: the split.
      label_dir: where to write; an older directory is replaced.
      labels: given a predicate on numbers of audio shards, yields (shard number, utterance id,
        uint16 (T,)) of every utterance of those shards, shard by shard.
      codebook: what the labels were assigned with.
      rate: frames per second.

    Returns:
      The manifest that was written.

    Raises:
      InputError: labels are missing for an utterance, or their number is not that of its frames.
    """
    audio_dir, label_dir = pathlib.Path(audio_dir), pathlib.Path(label_dir)
    audio = manifests.read_manifest(audio_dir)
    finished = _finished(label_dir, audio, codebook, rate)
    if finished is not None:
        return finished
    index = read_index(audio_dir, audio)
    key = config_lib.digest([audio.digest, codebook.digest, rate, hubert_jax.__version__])[:16]
    parts = label_dir.with_name(f".{label_dir.name}.parts-{key}")
    for leftover in label_dir.parent.glob(f".{label_dir.name}.parts-*"):
        if leftover != parts:
            shutil.rmtree(leftover)
    parts.mkdir(parents=True, exist_ok=True)
    paths = [parts / manifests.label_file(shard.file) for shard in audio.shards]
    written: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for number, (path, shard) in enumerate(zip(paths, audio.shards, strict=True)):
        if path.exists():
            try:
                written[number] = _counted(path, shard.utterances, codebook)
            except InputError:
                path.unlink()  # damaged since it was written
    for leftover in set(parts.iterdir()) - set(paths):
        leftover.unlink()  # begun by a process that was killed
    waiting: dict[int, dict[str, np.ndarray]] = {}
    for number, name, values in labels(lambda number: number not in written):
        of_shard = waiting.setdefault(number, {})
        of_shard[name] = values
        if len(of_shard) == audio.shards[number].utterances:
            _write_shard(paths[number], index, number, waiting.pop(number), rate)
    for number, shard in enumerate(audio.shards):
        if not paths[number].exists():
            _write_shard(paths[number], index, number, waiting.get(number, {}), rate)
        if number not in written:
            written[number] = _counted(paths[number], shard.utterances, codebook)
    counts = [written[number][0] for number in range(len(paths))]
    class_counts = np.stack(counts).sum(axis=0, dtype=np.int64)
    shards = tuple(
        manifests.LabelShardInfo(
            path.name, shard.utterances, int(count.sum()), files.sha256_file(path)
        )
        for path, shard, count in zip(paths, audio.shards, counts, strict=True)
    )
    manifest = manifests.LabelManifest(
        split=audio.split,
        audio_digest=audio.digest,
        rate_hz=rate,
        num_classes=len(class_counts),
        feature=codebook.feature,
        codebook_digest=codebook.digest,
        utterances=sum(shard.utterances for shard in shards),
        frames=sum(shard.frames for shard in shards),
        class_counts=tuple(class_counts.tolist()),
        digest=manifests.shards_digest(shards),
        shards=shards,
        index=write_label_index(parts, [written[number][1] for number in range(len(paths))]),
    )
    manifests.write_manifest(parts, manifest)
    if label_dir.exists():
        shutil.rmtree(label_dir)
    parts.rename(label_dir)
    return manifest


def _finished(
    label_dir: pathlib.Path, audio: manifests.AudioManifest, codebook: Codebook, rate: int
) -> manifests.LabelManifest | None:
    """The label set that is there already, if it is the wanted one and whole."""
    try:
        found = manifests.read_label_manifest(label_dir)
        read_label_index(label_dir, found)
    except InputError:
        return None
    wanted = (audio.split, audio.digest, codebook.digest, rate)
    if (found.split, found.audio_digest, found.codebook_digest, found.rate_hz) != wanted:
        return None
    for shard in found.shards:
        if files.sha256_file(label_dir / shard.file) != shard.digest:
            return None
    return found


def _counted(
    path: pathlib.Path, utterances: int, codebook: Codebook
) -> tuple[np.ndarray, np.ndarray]:
    """Labels of each class in a label shard, (classes,), and its records' lengths, (n,)."""
    counts = np.zeros(len(codebook.centroids), np.int64)
    lengths = []
    for name, values in records.read_label_shard(path, utterances):
        counts += np.bincount(values, minlength=len(counts))
        lengths.append(records.FRAMING_BYTES + len(records.label_record(name, values)))
    return counts, np.array(lengths, np.uint32)


def _write_shard(
    path: pathlib.Path, index: Index, number: int, labels: dict[str, np.ndarray], rate: int
) -> None:
    """Writes the labels of an audio shard in its order."""

    def rows() -> Iterator[tuple[str, np.ndarray]]:
        for record in index.shard(number):
            name, samples = index.ids[record], int(index.samples[record])
            values = labels.get(name)
            if values is None:
                raise InputError(
                    f"utterance {name}: found no labels, expected one label a frame; the audio "
                    "split changed while it was read: run the label job again"
                )
            expected = num_frames(samples, rate)
            if len(values) != expected:
                raise InputError(
                    f"utterance {name}: found {len(values)} labels, expected {expected} at "
                    f"{rate} Hz for {samples} samples; check the feature's rate"
                )
            yield name, values

    with files.writing_file(path) as aside:
        records.write_label_shard(aside, rows())


def commonest_share(labels: manifests.LabelManifest) -> float:
    """Share of the frames whose unit is the commonest one."""
    return max(labels.class_counts) / max(labels.frames, 1)
