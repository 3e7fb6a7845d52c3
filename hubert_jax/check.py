"""Reads every record of a training's audio and labels or transcripts; refuses what does not fit.

Takes the configuration of the train job; --config.labels= checks the audio alone. Prints
hours by bucket, what crops leave out, rows of a step over the devices of config.mesh, dead
codewords, silent and clipped utterances. Writes WORKDIR/check/result.json. A configuration without
labels, FILE.py:finetune for one, is that of the finetune job: its keys are then known.
"""

import dataclasses
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from hubert_jax import files, job
from hubert_jax.data import label_sets, manifests, preflight, schedule
from hubert_jax.errors import printable
from hubert_jax.tasks import ctc
from hubert_jax.tasks.ctc import FinetuneConfig
from hubert_jax.tasks.held_out import HeldOut
from hubert_jax.tasks.pretraining import TrainConfig
from hubert_jax.vocabulary import LIBRISPEECH

VERSION = 1  # raise it when the same configuration and inputs give another output


def run(config: TrainConfig | FinetuneConfig) -> dict:
    """Returns the content of `WORKDIR/check/result.json`; InputErrors name shard and record."""
    if isinstance(config, FinetuneConfig):
        return _finetuning(config)
    started = time.monotonic()
    files.require_writable(config.workdir)
    directory = pathlib.Path(config.audio)
    audio = manifests.read_manifest(directory)
    codebook_sizes = config.head.codebook_sizes if config.labels else ()
    labels = label_sets.read_label_sets(audio, config.labels, codebook_sizes, config.specials)
    cut = max(config.mesh.data, 1) * config.mesh.fsdp
    rows = (config.frames_per_step, config.max_frames, cut, config.row_multiple)
    buckets = schedule.crop_buckets(audio, *rows)
    uses = preflight.bucket_uses(audio, buckets)
    if config.validation_audio:
        HeldOut.read(config.validation_audio, config.audio, audio)
    with_labels = list(zip(map(pathlib.Path, config.labels), labels, strict=True))
    findings = _inspected(directory, audio, with_labels)
    left_out = preflight.crop_loss(uses)
    _print_buckets(uses)
    print(f"a pass leaves out {left_out:.1%} of the audio")
    _print_flagged(findings)
    sets = []
    for (path, manifest), counts in zip(with_labels, findings.class_counts, strict=True):
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
    print("everything fits", flush=True)
    result = {
        **_described(directory, audio, findings),
        "buckets": {frames: dataclasses.asdict(use) for frames, use in uses.items()},
        "crop_loss": left_out,
        "fewest_shards": min(use.shards for use in uses.values() if use.batch),
        "labels": sets,
    }
    return job.finish(config.workdir, "check", result, started)


def _finetuning(config: FinetuneConfig) -> dict:
    started = time.monotonic()
    files.require_writable(config.workdir)
    audio, held_out = ctc.read(config)
    cut = max(config.mesh.data, 1) * config.mesh.fsdp
    buckets = ctc.plan(config, audio, held_out, LIBRISPEECH, cut)
    directory = pathlib.Path(config.audio)
    findings = _inspected(directory, audio)
    print("padded  utterances  rows of a step")
    for bucket in buckets:
        print(f"{bucket.batch_frames:6}  {bucket.utterances:10}  {bucket.rows:14}")
    _print_flagged(findings)
    print("everything fits", flush=True)
    rows = {str(bucket.batch_frames): [bucket.utterances, bucket.rows] for bucket in buckets}
    result = {**_described(directory, audio, findings), "utterances_and_rows": rows}
    return job.finish(config.workdir, "check", result, started)


def _inspected(
    directory: pathlib.Path,
    audio: manifests.AudioManifest,
    labels: Sequence[tuple[pathlib.Path, manifests.LabelManifest]] = (),
) -> Any:
    print(
        f"check {directory}: {audio.utterances} utterances, {audio.seconds / 3600:.2f} h, "
        f"{len(audio.shards)} shards, {audio.encoding} at {audio.sample_rate} Hz",
        flush=True,
    )
    progress = job.Progress("check", audio.seconds / 3600, "{:.2f} of {:.2f} h")
    return preflight.inspect(directory, audio, labels, lambda s: progress(s / 3600))


def _described(
    directory: pathlib.Path, audio: manifests.AudioManifest, findings: Any
) -> dict[str, Any]:
    return {
        "audio": {
            "directory": str(directory),
            "digest": audio.digest,
            "utterances": audio.utterances,
            "seconds": audio.seconds,
        },
        "silent": dataclasses.asdict(findings.silent),
        "clipped": dataclasses.asdict(findings.clipped),
    }


def _print_flagged(findings: Any) -> None:
    for name, flagged in (("silent", findings.silent), ("clipped", findings.clipped)):
        ids = f": {', '.join(flagged.examples)}" if flagged.utterances else ""
        more = ", ..." if flagged.utterances > len(flagged.examples) else ""
        seconds = f"{flagged.seconds / 3600:.2f} h"
        print(printable(f"{flagged.utterances} {name} utterances, {seconds}{ids}{more}"))


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


def _schema(values: Mapping[str, Any]) -> type:
    return TrainConfig if "labels" in values else FinetuneConfig


if __name__ == "__main__":
    job.main("check", TrainConfig, run, part="train", computes=False, schema_of=_schema)
