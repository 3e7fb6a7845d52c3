"""Reads every record of a training's audio and labels, and refuses what does not fit.

Takes the configuration of the train job; --config.labels= checks the audio alone. Prints
hours by bucket, what crops leave out, rows of a step over the devices of config.mesh, dead
codewords, silent and clipped utterances. Writes WORKDIR/check/result.json.
"""

import dataclasses
import pathlib
import time

from hubert_jax import files, job
from hubert_jax.data import label_sets, manifests, preflight, schedule
from hubert_jax.errors import printable
from hubert_jax.tasks.held_out import HeldOut
from hubert_jax.tasks.pretraining import TrainConfig

VERSION = 1  # raise it when the same configuration and inputs give another output


def run(config: TrainConfig) -> dict:
    """Returns the content of `WORKDIR/check/result.json`; InputErrors name shard and record."""
    started = time.monotonic()
    workdir = files.require_writable(config.workdir)
    (workdir / "check" / "result.json").unlink(missing_ok=True)  # of what was there before
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
    print(
        f"check {directory}: {audio.utterances} utterances, {audio.seconds / 3600:.2f} h, "
        f"{len(audio.shards)} shards, {audio.encoding} at {audio.sample_rate} Hz",
        flush=True,
    )
    with_labels = list(zip(map(pathlib.Path, config.labels), labels, strict=True))
    progress = job.Progress("check", audio.seconds / 3600, "{:.2f} of {:.2f} h")
    findings = preflight.inspect(directory, audio, with_labels, lambda s: progress(s / 3600))
    left_out = preflight.crop_loss(uses)
    _print_buckets(uses)
    print(f"a pass leaves out {left_out:.1%} of the audio")
    for name, flagged in (("silent", findings.silent), ("clipped", findings.clipped)):
        ids = f": {', '.join(flagged.examples)}" if flagged.utterances else ""
        more = ", ..." if flagged.utterances > len(flagged.examples) else ""
        seconds = f"{flagged.seconds / 3600:.2f} h"
        print(printable(f"{flagged.utterances} {name} utterances, {seconds}{ids}{more}"))
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
        "audio": {
            "directory": str(directory),
            "digest": audio.digest,
            "utterances": audio.utterances,
            "seconds": audio.seconds,
        },
        "buckets": {frames: dataclasses.asdict(use) for frames, use in uses.items()},
        "crop_loss": left_out,
        "fewest_shards": min(use.shards for use in uses.values() if use.batch),
        "silent": dataclasses.asdict(findings.silent),
        "clipped": dataclasses.asdict(findings.clipped),
        "labels": sets,
    }
    return job.finish(config.workdir, "check", result, started)


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
    job.main("check", TrainConfig, run, part="train", computes=False)
