"""A corpus of 10 million utterances, 60,000 hours: its plan, its manifest, the start of a training.

    python -m benchmarks.large_plan [--utterances=10000000]

Two processes, each measured alone, imports left out. The first one indexes synthetic utterances as
the prepare job does (ids, hashed for their order, in parts of 64 files with an index each), puts
them into buckets, divides these into shards of 64 MB, and writes and reads index and manifest. The
second one starts a training on such a split: it reads manifests and indexes of audio and labels,
checks them, schedules 400,000 steps and reads the first batch of this host, for several steps and
hosts of 32.
Every shard is a link to one of its bucket's size that is really there (silence), so a first batch
costs what it would cost. Files are neither found nor decoded here.

Ratios are measured over allowed: 300 s, 2 GB of resident memory, 5 s for the slowest start.
"""

import argparse
import gc
import hashlib
import json
import math
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import numpy as np

SHORTEST, LONGEST = 1.2, 42.0  # seconds; their mean makes 60,000 hours
PART_FILES, SHARD_MEGABYTES = 64, 64
STEPS, HOSTS, SEED = 400_000, 32, 1337
FRAMES_PER_STEP, MAX_FRAMES, DEVICES = 360_000, 768, 128  # of LARGE
ROW_MULTIPLE = math.lcm(3, DEVICES)  # masks are trimmed by threes
STARTS = ((0, 0), (1, 31), (123_456, 7), (399_999, 31))  # (step, host)
SECONDS, GIGABYTES, START_SECONDS = 300.0, 2.0, 5.0


def _name(number: int) -> str:
    return f"{number // 2000:05d}-{number // 50 % 40:05d}-{number % 50:04d}"


def _parts(directory: pathlib.Path, utterances: int) -> Iterator:
    """Parts as the prepare job leaves them, without their records."""
    from hubert_jax.corpus import assembly, parts

    draws = np.random.default_rng(SEED)
    for first in range(0, utterances, PART_FILES):
        count = min(PART_FILES, utterances - first)
        index = np.zeros(count, parts.INDEX)
        index["samples"] = draws.uniform(SHORTEST, LONGEST, count) * 16_000
        index["length"] = 2 * index["samples"] + 200
        index["offset"] = np.cumsum(index["length"]) - index["length"]
        names = map(_name, range(first, first + count))
        index["order"] = np.array([assembly.shuffle_order(name) for name in names], np.uint64)
        path = directory / f"{first:08d}.tfrecord"
        np.save(path.with_suffix(".npy"), index)
        yield parts.Part(path, parts.Notes())


def _plan(directory: pathlib.Path, utterances: int) -> dict:
    """Indexes, plans, writes index and manifest and reads them again."""
    from hubert_jax.corpus import assembly, parts
    from hubert_jax.data import manifests
    from hubert_jax.data.index import ShardIndex, read_index

    aside = directory / "parts"
    aside.mkdir()
    started = time.monotonic()
    written = list(_parts(aside, utterances))
    seconds = {"indexed": time.monotonic() - started}
    index, part_of, planned = assembly.plan_split(written, 1, SHARD_MEGABYTES)
    seconds["planned"] = time.monotonic() - started
    infos = tuple(
        manifests.ShardInfo(
            file=name,
            bucket_frames=frames,
            utterances=len(rows),
            samples=int(index["samples"][rows].sum()),
            digest=hashlib.sha256(name.encode()).hexdigest(),
        )
        for name, frames, _, rows in planned
    )
    for info in infos:
        (directory / info.file).touch()
    described = []
    for _, _, _, rows in planned:
        lengths, samples = (index[name][rows].tolist() for name in ("length", "samples"))
        names = [_name(row) for row in rows.tolist()]
        speakers = (name[:5] for name in names)
        described.append(
            ShardIndex.of(zip(lengths, samples, names, speakers, [True] * len(rows), strict=True))
        )
    del index, part_of, planned  # as `assembly.assemble`
    assembly.write_tables(
        directory, "large", infos, described, [parts.Notes()], encoding="pcm16", mixture=None
    )
    seconds["written"] = time.monotonic() - started
    manifest = manifests.read_manifest(directory)
    read = read_index(directory, manifest)
    assert len(read.ids) == len(read.samples) == manifest.utterances
    seconds["read"] = time.monotonic() - started
    buckets: dict[int, list[int]] = {}
    for shard in manifest.shards:
        buckets.setdefault(shard.bucket_frames, []).append(shard.utterances)
    return {
        "utterances": manifest.utterances,
        "hours": manifest.seconds / 3600,
        "buckets": {frames: (len(counts), sum(counts)) for frames, counts in buckets.items()},
        "seconds": seconds,
    }


def _linked(directory: pathlib.Path, buckets: dict[str, tuple[int, int]]) -> None:
    """A split and its labels with as many shards as planned; all of a bucket are alike."""
    from hubert_jax import files
    from hubert_jax import frames as frames_lib
    from hubert_jax.corpus import assembly
    from hubert_jax.data import manifests, records
    from hubert_jax.data.buckets import MIN_TRAINING_SAMPLES
    from hubert_jax.data.index import ShardIndex, write_label_index

    real, audio_dir, label_dir = (directory / name for name in ("real", "audio", "labels"))
    for folder in (real, audio_dir, label_dir):
        folder.mkdir(parents=True)
    infos, label_infos, described, lengths = [], [], [], []
    for frames, (number, utterances) in ((int(key), value) for key, value in buckets.items()):
        count = max(1, utterances // number)
        samples = 20000
        if frames:
            samples = max(MIN_TRAINING_SAMPLES, frames_lib.num_samples(frames))
        audio = np.zeros(samples, np.int16)
        labels = (np.arange(frames_lib.num_frames(samples)) % 500).astype(np.uint16)
        names = [f"{frames}-{row}" for row in range(count)]
        utterances = [records.Utterance(name, audio) for name in names]
        serialized = [records.serialize(utterance) for utterance in utterances]
        audio_file, label_file = real / f"audio-{frames}", real / f"labels-{frames}"
        with records.RecordWriter(audio_file) as writer:
            for record in serialized:
                writer.write(record)
        audio_digest = files.sha256_file(audio_file)
        indexed = ShardIndex.of(map(records.index_row, serialized))
        with records.RecordWriter(label_file) as writer:
            label_lengths = [writer.write(records.label_record(name, labels)) for name in names]
        label_digest = files.sha256_file(label_file)
        for i in range(number):
            name = assembly.shard_name(frames, i, number)
            label_name = manifests.label_file(name)
            os.symlink(audio_file, audio_dir / name)
            os.symlink(label_file, label_dir / label_name)
            described.append(indexed)
            lengths.append(np.array(label_lengths, np.uint32))
            infos.append(manifests.ShardInfo(name, frames, count, count * samples, audio_digest))
            label_infos.append(
                manifests.LabelShardInfo(label_name, count, count * len(labels), label_digest)
            )
    manifest = assembly.write_tables(
        audio_dir, "large", tuple(infos), described, [], encoding="pcm16", mixture=None
    )
    labelled = sum(info.frames for info in label_infos)
    manifests.write_manifest(
        label_dir,
        manifests.LabelManifest(
            split="large",
            audio_digest=manifest.digest,
            rate_hz=50,
            num_classes=500,
            feature={"kind": "mfcc"},
            codebook_digest="",
            utterances=manifest.utterances,
            frames=labelled,
            class_counts=(labelled - 499, *(1 for _ in range(499))),
            digest=manifests.shards_digest(tuple(label_infos)),
            shards=tuple(label_infos),
            index=write_label_index(label_dir, lengths),
        ),
    )


def _start(directory: pathlib.Path) -> dict:
    """Seconds from nothing to the first batch, for each of STARTS."""
    from hubert_jax.data import batches, manifests, schedule
    from hubert_jax.data.label_sets import read_label_sets

    starts = []
    for step, host in STARTS:
        started = time.monotonic()
        audio = manifests.read_manifest(directory / "audio")
        (labels,) = read_label_sets(audio, (directory / "labels",), (500,))
        read = time.monotonic() - started
        utterances = audio.utterances
        buckets = schedule.crop_buckets(audio, FRAMES_PER_STEP, MAX_FRAMES, ROW_MULTIPLE)
        stream = batches.pretraining_batches(
            directory / "audio",
            audio,
            [batches.LabelSet(directory / "labels", labels)],
            schedule.BucketSchedule(buckets, SEED),
            seed=SEED,
            first_step=step,
            last_step=STEPS,
            normalize_waveform=True,
            host=batches.Host(host, HOSTS),
        )
        batch = next(stream)
        seconds = time.monotonic() - started
        stream.close()
        del stream, audio, labels, buckets
        gc.collect()  # each stands for the start of a process
        starts.append(
            {"step": step, "host": host, "rows": batch["waveform"].shape[0]}
            | {"manifests": read, "seconds": seconds}
        )
    return {"utterances": utterances, "starts": starts}


def _measured(stage: str, directory: pathlib.Path, *arguments: str) -> dict:
    """What a stage reports, measured in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.large_plan", "--stage", stage]
        + ["--directory", str(directory), *arguments],
        cwd=pathlib.Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def _run_stage(stage: str, directory: pathlib.Path, arguments: argparse.Namespace) -> None:
    from hubert_jax.data import batches  # noqa: F401  TensorFlow, before the clock runs

    if stage == "plan":
        found = _plan(directory, arguments.utterances)
    elif stage == "link":
        _linked(directory, json.loads(arguments.buckets))
        found = {}
    else:
        found = _start(directory)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(json.dumps({**found, "gigabytes": peak}))


def main() -> None:
    """Prints what was planned, every start, and three ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--utterances", type=int, default=10_000_000)
    parser.add_argument("--stage", choices=("plan", "link", "start"), help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--buckets", default="{}", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        _run_stage(arguments.stage, arguments.directory, arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        planned_in, linked_in = pathlib.Path(folder, "planned"), pathlib.Path(folder, "linked")
        planned_in.mkdir()
        plan = _measured("plan", planned_in, "--utterances", str(arguments.utterances))
        buckets = json.dumps(plan["buckets"])
        shards = sum(number for number, _ in plan["buckets"].values())
        print(f"{plan['utterances']} utterances, {plan['hours']:.0f} h, {shards} shards")
        for stage, seconds in plan["seconds"].items():
            print(f"  {stage:<8} after {seconds:6.1f} s")
        print(f"  {plan['gigabytes']:.2f} GB", flush=True)
        _measured("link", linked_in, "--buckets", buckets)
        start = _measured("start", linked_in)
    for found in start["starts"]:
        print(
            f"step {found['step']:>6} of {STEPS}, host {found['host']:>2} of {HOSTS}: manifests "
            f"after {found['manifests']:.2f} s, {found['rows']} rows after {found['seconds']:.2f} s"
        )
    print(f"  {start['utterances']} utterances, {start['gigabytes']:.2f} GB")
    seconds = [found["seconds"] / START_SECONDS for found in start["starts"]]
    memory = [plan["gigabytes"] / GIGABYTES, start["gigabytes"] / GIGABYTES]
    for name, ratios in (
        ("seconds", [plan["seconds"]["read"] / SECONDS]),
        ("memory", memory),
        ("start", seconds),
    ):
        worst = max(ratios)
        figures = {"ratio": worst, "low": min(ratios), "high": worst, "goal": 1.0}
        print(json.dumps({"benchmark": f"large_plan_{name}", **figures, "met": worst <= 1.0}))


if __name__ == "__main__":
    main()
