"""Reads every record of a training's audio and labels, and refuses what does not fit.

Takes the configuration of the train job, where --config.labels= checks the audio alone, or of the
finetune job (--config=FILE.py:PART), whose transcripts are spelled. Prints hours by bucket, what
crops leave out or padding adds, rows of a step over the devices of config.mesh, dead codewords,
silent and clipped utterances. Writes WORKDIR/check/result.json.
"""

import dataclasses
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from hubert_jax import files, job, storage
from hubert_jax.asr import vocabularies
from hubert_jax.data import batches, manifests, preflight, schedule
from hubert_jax.data.index import read_index
from hubert_jax.errors import printable
from hubert_jax.frames import SAMPLE_RATE, num_samples
from hubert_jax.networks import warm_start
from hubert_jax.tasks import ctc, pretraining
from hubert_jax.tasks.ctc import FinetuneConfig
from hubert_jax.tasks.held_out import HeldOut
from hubert_jax.tasks.pretraining import TrainConfig
from hubert_jax.training.task import micro_batch_counts

VERSION = 3  # raise it when the same configuration and inputs give another output

_WithLabels = Sequence[tuple[pathlib.Path, manifests.LabelManifest]]


def run(config: TrainConfig | FinetuneConfig) -> dict:
    """Returns the content of `WORKDIR/check/result.json`; InputErrors name shard and record."""
    started = time.monotonic()
    workdir = files.require_writable(config.workdir)
    (workdir / "check" / "result.json").unlink(missing_ok=True)  # of what was there before
    found = _finetuning(config) if isinstance(config, FinetuneConfig) else _pretraining(config)
    print("everything fits", flush=True)
    return job.finish(config.workdir, "check", found, started)


def _pretraining(config: TrainConfig) -> dict[str, Any]:
    directory = storage.path(config.audio)
    audio = manifests.read_manifest(directory)
    buckets = config.buckets(audio, _row_shards(config))
    _require_micro_batches(config, buckets)
    with_labels: _WithLabels = []
    if config.labels:
        data = pretraining.read(config)
        with_labels = _manifests(data.label_sets)
        if config.init_from:
            described = (config.architecture, config.head, data.units, config.keep_head)
            print(warm_start.for_pretraining(config.init_from, *described).description)
        if data.held_out:
            _inspect(data.held_out.directory, data.held_out.audio, _manifests(data.held_out_labels))
    elif config.validation_audio:
        HeldOut.read(config.validation_audio, config.audio, audio)
    uses = preflight.bucket_uses(audio, buckets)
    flagged, class_counts = _inspect(directory, audio, with_labels)
    left_out = preflight.crop_loss(uses)
    _print_buckets(uses)
    print(f"a pass leaves out {left_out:.1%} of the audio")
    sets = []
    for (path, manifest), counts in zip(with_labels, class_counts, strict=True):
        dead = [index for index, count in enumerate(counts) if not count]
        sets.append(
            {
                "directory": str(path),
                "digest": manifest.digest,
                "rate_hz": manifest.rate_hz,
                "num_classes": manifest.num_classes,
                "frames": int(counts.sum()),
                "dead_codewords": dead,
                "commonest_unit_share": float(counts.max() / counts.sum()),
            }
        )
        print(
            f"labels {path}: {counts.sum()} at {manifest.rate_hz} Hz, {len(counts)} classes, "
            f"{len(dead)} without a frame"
            + (f" ({', '.join(map(str, dead[:10]))}{', ...' if dead[10:] else ''})" if dead else "")
            + f", the commonest has {counts.max() / counts.sum():.1%}"
        )
    return {
        **_described(directory, audio),
        "buckets": {frames: dataclasses.asdict(use) for frames, use in uses.items()},
        "crop_loss": left_out,
        "fewest_shards": min(use.shards for use in uses.values() if use.batch),
        **flagged,
        "labels": sets,
    }


def _finetuning(config: FinetuneConfig) -> dict[str, Any]:
    directory = storage.path(config.audio)
    audio, held_out = ctc.read(config)
    lengths, index = config.padded_frames, read_index(directory, audio)
    buckets = config.buckets(audio, _row_shards(config))
    _require_micro_batches(config, buckets)
    where = (config.vocabulary_file, config.init_from, config.audio)
    vocabulary = vocabularies.choose(config.vocabulary, *where, audio)
    learnt = config.learnable_seconds(audio, held_out, vocabulary)
    if config.init_from:
        start = warm_start.for_finetuning(config.init_from, config.architecture, vocabulary)
        print(start.description)
    if held_out:
        _inspect(held_out.directory, held_out.audio)
    flagged, _ = _inspect(directory, audio)
    print("padded to  utterances      hours  padding  rows x frames")
    padded = {}
    for bucket in buckets:
        fewest, most = bucket.samples or (0, 0)
        held = index.samples[(fewest <= index.samples) & (index.samples <= most)]
        seconds = float(held.sum(dtype=np.int64)) / SAMPLE_RATE
        padding = 1 - seconds * SAMPLE_RATE / (len(held) * num_samples(bucket.batch_frames))
        print(
            f"{bucket.frames:9}  {len(held):10}  {seconds / 3600:9.2f}  {padding:7.1%}"
            f"  {f'{bucket.rows} x {bucket.batch_frames}':>13}"
        )
        padded[bucket.frames] = {
            "utterances": len(held),
            "seconds": seconds,
            "padding": padding,
            "batch": [bucket.batch_frames, bucket.rows],
        }
    left_out = audio.utterances - sum(use["utterances"] for use in padded.values())
    print(f"{left_out} utterances are left out: longer than {lengths[-1]} frames")
    print(f"{learnt / 3600:.2f} h are learnt from")
    return {
        **_described(directory, audio),
        "vocabulary": vocabulary.to_dict(),
        "learnt_seconds": learnt,
        "buckets": padded,
        "left_out": left_out,
        **flagged,
    }


def _row_shards(config: TrainConfig | FinetuneConfig) -> int:
    """Over how many devices a batch's rows are divided, as far as the configuration says."""
    return max(config.mesh.data, 1) * config.mesh.fsdp


def _require_micro_batches(
    config: TrainConfig | FinetuneConfig, buckets: Sequence[schedule.Bucket]
) -> None:
    rows = {str(bucket.frames): bucket.rows for bucket in buckets}
    micro_batch_counts(rows, config.micro_batches, _row_shards(config))


def _manifests(sets: Sequence[batches.LabelSet]) -> _WithLabels:
    return [(each.directory, each.manifest) for each in sets]


def _inspect(
    directory: pathlib.Path,
    audio: manifests.AudioManifest,
    with_labels: _WithLabels = (),
) -> tuple[dict[str, Any], tuple[np.ndarray, ...]]:
    """What somebody should listen to, printed too, and counts (classes,) of each label set."""
    print(
        f"check {directory}: {audio.utterances} utterances, {audio.seconds / 3600:.2f} h, "
        f"{len(audio.shards)} shards, {audio.encoding} at {audio.sample_rate} Hz",
        flush=True,
    )
    progress = job.Progress("check", audio.seconds / 3600, "{:.2f} of {:.2f} h")
    found = preflight.inspect(directory, audio, with_labels, lambda s: progress(s / 3600))
    both = {"silent": found.silent, "clipped": found.clipped}
    for name, flagged in both.items():
        ids = f": {', '.join(flagged.examples)}" if flagged.utterances else ""
        more = ", ..." if flagged.utterances > len(flagged.examples) else ""
        seconds = f"{flagged.seconds / 3600:.2f} h"
        print(printable(f"{flagged.utterances} {name} utterances, {seconds}{ids}{more}"))
    return {name: dataclasses.asdict(each) for name, each in both.items()}, found.class_counts


def _described(directory: pathlib.Path, audio: manifests.AudioManifest) -> dict[str, Any]:
    return {
        "audio": {
            "directory": str(directory),
            "digest": audio.digest,
            "utterances": audio.utterances,
            "seconds": audio.seconds,
        }
    }


def _print_buckets(uses: dict[int, preflight.BucketUse]) -> None:
    print("bucket  utterances      hours  shards  crop loss  rows x frames    a step  of steps")
    for frames, use in uses.items():
        line = f"{frames:6}  {use.utterances:10}  {use.seconds / 3600:9.2f}  {use.shards:6}"
        if use.batch:
            length, rows = use.batch
            print(
                f"{line}  {use.crop_loss:9.1%}  {f'{rows} x {length}':>13}  {rows * length:8}"
                f"  {use.step_share:8.1%}"
            )
        else:
            print(f"{line}  under 2 s, not for pre-training")


if __name__ == "__main__":
    job.main("check", (TrainConfig, FinetuneConfig), run, part="train", computes=False)
