"""Batches for pre-training: ours against the input pipeline of torchaudio's HuBERT recipe.

    python -m benchmarks.input_pipeline [--pairs=10]

The embedded corpus (real speech, 1.6 h) becomes PCM shards by the prepare job and, for the peers,
FLAC files, which LibriSpeech has. Each implementation makes batches of random crops with 100 Hz
labels, of 87.5 s at most, the recipe's default, in a process of its own that has one core; passes
take turns. Peers:

- torch: the recipe's buckets, batches and crops to the shortest of a batch; soundfile reads, since
  torchaudio.load no longer does it alone. It reads in the process itself, so nothing is spent on
  passing batches between processes, and its labels are arrays in memory, not text.
- datasets: the same files and labels in an Arrow table of Hugging Face's datasets; the same
  batches. Left out where it is not installed.

`torch, wav` reads files that need no decoding: for scale, since corpora do not come so.
Speed is audio delivered per second of CPU time, of all threads, from the end of one pass to that
of the next: batches made ahead of time count. The ratio is our speed to that of the fastest peer.

Needs requirements-parity.txt. The memory of our process is printed over 2,000 batches.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np

REPOSITORY = pathlib.Path(__file__).parents[1]
SAMPLE_RATE = 16_000
BATCH_SECONDS = 87.5
BUCKETS = 1000  # of the recipe
SHORTEST, LONGEST = 32_000, 250_000  # samples, of the recipe
PASS_SECONDS = 6_000  # of audio: about an epoch
MEMORY_BATCHES = 2_000
GOAL = 4.0


def prepare(directory: pathlib.Path) -> None:
    """Writes shards and labels for us, and the same audio as files for the peers."""
    import soundfile

    from hubert_jax import prepare as prepare_job
    from hubert_jax.data import manifests, records
    from hubert_jax.data.index import read_index
    from hubert_jax.frames import num_frames
    from hubert_jax.units.labels import Inventory, write_labels

    prepare_job.run(
        prepare_job.PrepareConfig(
            workdir=str(directory),
            corpus=str(REPOSITORY / "examples" / "minilibri"),
            splits=("speech=train-clean-5+train-clean-100",),
            shard_megabytes=16,
        )
    )
    split, audio_files = directory / "prepare" / "speech", directory / "files"
    audio_files.mkdir()
    random_units = np.random.default_rng(0)  # which units is of no consequence
    units, listed = {}, {}
    for utterance in records.read_audio(split):
        samples = len(utterance.audio)
        units[utterance.id] = random_units.integers(500, size=num_frames(samples, 100))
        for kind in ("flac", "wav"):
            path = audio_files / f"{utterance.id}.{kind}"
            soundfile.write(path, utterance.audio, SAMPLE_RATE, subtype="PCM_16")
        if SHORTEST <= samples <= LONGEST:
            listed[utterance.id] = units[utterance.id]
    inventory = Inventory(500, {}, "")
    manifest = manifests.read_manifest(split)
    index = read_index(split, manifest)

    def labels(wanted: Callable[[int], bool]) -> Iterator[tuple[int, str, list]]:
        for number in filter(wanted, range(len(manifest.shards))):
            for record in index.shard(number):
                yield number, index.ids[record], [units[index.ids[record]]]

    write_labels(split, {directory / "labels": inventory}, labels, 100, version=0)
    np.savez(directory / "labels.npz", **listed)


def ours(directory: pathlib.Path) -> Iterator[int]:
    """Samples of each batch of our pre-training job, without end."""
    from hubert_jax import host_memory

    host_memory.keep_freed_memory()  # as every job does
    from hubert_jax.data import batches, manifests, schedule

    split, labels = directory / "prepare" / "speech", directory / "labels"
    manifest = manifests.read_manifest(split)
    buckets = schedule.crop_buckets(manifest, int(BATCH_SECONDS * 50), 768, 1)
    made = batches.pretraining_batches(
        split,
        manifest,
        [batches.LabelSet(labels, manifests.read_label_manifest(labels))],
        schedule.BucketSchedule(buckets, 0),
        seed=0,
        first_step=0,
        last_step=10**6,
        normalize_waveform=False,
    )
    for batch in made:
        assert batch["labels_0"].shape[1] * 320 + 80 == batch["waveform"].shape[1]
        yield batch["waveform"].size


def torch_flac(directory: pathlib.Path) -> Iterator[int]:
    """Samples of each batch of the recipe's pipeline over FLAC files."""
    return _torch(directory, "flac")


def torch_wav(directory: pathlib.Path) -> Iterator[int]:
    """The same over WAV files."""
    return _torch(directory, "wav")


def _torch(directory: pathlib.Path, kind: str) -> Iterator[int]:
    import soundfile
    import torch

    with np.load(directory / "labels.npz") as stored:
        labels = {name: torch.from_numpy(stored[name]) for name in stored.files}
    paths = [str(directory / "files" / f"{name}.{kind}") for name in labels]
    units = list(labels.values())

    class Speech(torch.utils.data.Dataset):
        def __len__(self):
            return len(paths)

        def __getitem__(self, index):
            waveform, _ = soundfile.read(paths[index], dtype="float32")
            return torch.from_numpy(waveform), units[index]

    lengths = [soundfile.info(path).frames for path in paths]
    return _load(Speech(), lengths)


def hugging_face(directory: pathlib.Path) -> Iterator[int]:
    """Samples of each batch, the FLAC files and labels being a table of `datasets`."""
    import io

    import datasets
    import soundfile
    import torch

    with np.load(directory / "labels.npz") as stored:
        labels = {name: stored[name] for name in stored.files}
    paths = [directory / "files" / f"{name}.flac" for name in labels]
    stored = datasets.Dataset.from_dict(
        {"audio": [path.read_bytes() for path in paths], "labels": list(labels.values())}
    )
    stored.save_to_disk(str(directory / "table"))  # from where it is mapped into memory
    table = datasets.load_from_disk(str(directory / "table")).with_format("arrow")

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return len(table)

        def __getitems__(self, indices):
            rows = table[indices]
            read = []
            for content, units in zip(rows["audio"], rows["labels"], strict=True):
                # Its own decoder of audio needs FFmpeg; soundfile is what both peers have.
                audio = io.BytesIO(content.as_buffer())
                waveform, _ = soundfile.read(audio, dtype="float32")
                units = np.array(units.values)
                read.append((torch.from_numpy(waveform), torch.from_numpy(units)))
            return read

    return _load(Rows(), [soundfile.info(path).frames for path in paths])


def _load(speech, lengths: list[int]) -> Iterator[int]:
    """Batches of the recipe, epoch after epoch."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)
    while True:
        sampler = _recipe_batches(lengths)
        loader = torch.utils.data.DataLoader(speech, batch_sampler=sampler, collate_fn=_collate)
        for waveform, _ in loader:
            yield waveform.numel()


def _recipe_batches(lengths: list[int]) -> list[list[int]]:
    """Shuffled within 1,000 buckets of equal width, then filled up in their order."""
    edges = np.linspace(SHORTEST, LONGEST, BUCKETS + 1)
    of_bucket: dict[int, list[int]] = {}
    for index in np.argsort(lengths):
        of_bucket.setdefault(int(np.searchsorted(edges, lengths[index])), []).append(int(index))
    batches, batch, total = [], [], 0
    for members in of_bucket.values():
        random.shuffle(members)
        for index in members:
            if batch and total + lengths[index] > BATCH_SECONDS * SAMPLE_RATE:
                batches.append(batch)
                batch, total = [], 0
            batch.append(index)
            total += lengths[index]
    return batches


def _collate(rows):
    """Crops to the shortest, at random; every second label, from where the crop begins."""
    import torch

    shortest = min(len(waveform) for waveform, _ in rows)
    frames = (shortest - 400) // 320
    waveforms = torch.zeros(len(rows), shortest)
    labels = []
    for i, (waveform, units) in enumerate(rows):
        units, start = units[::2], 0
        if len(waveform) > shortest:
            start = int(torch.randint(len(waveform) - shortest, size=(1,)))
        waveforms[i] = waveform[start : start + shortest]
        first = max(0, (start - 400) // 320)
        labels.append(units[first : first + frames])
    return waveforms, torch.nn.utils.rnn.pad_sequence(labels, batch_first=True)


IMPLEMENTATIONS = {
    "ours": ours,
    "torch": torch_flac,
    "datasets": hugging_face,
    "torch, wav": torch_wav,
}
PEERS = ("torch", "datasets")


def work(name: str, directory: pathlib.Path) -> None:
    """A worker: a pass for every line on standard input."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    # What libraries print must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    batches = IMPLEMENTATIONS[name](directory)
    _take(batches)  # fills caches
    finished = time.process_time()
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        if line.strip() == "memory":
            print(json.dumps(_memory(batches)), file=answers, flush=True)
            continue
        started = time.perf_counter()
        seconds = _take(batches)
        wall, before = time.perf_counter() - started, finished
        finished = time.process_time()
        print(seconds / (finished - before), seconds / wall, file=answers, flush=True)


def _take(batches: Iterator[int]) -> float:
    """Seconds of audio of a pass."""
    seconds = 0.0
    while seconds < PASS_SECONDS:
        seconds += next(batches) / SAMPLE_RATE
    return seconds


def _memory(batches: Iterator[int]) -> list[float]:
    """Megabytes that the process holds after each tenth of 2,000 batches."""
    held = []
    for _ in range(10):
        for _ in range(MEMORY_BATCHES // 10):
            next(batches)
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        held.append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)
    return held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=10, help="passes of each implementation")
    parser.add_argument("--worker", choices=IMPLEMENTATIONS, help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=pathlib.Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments.directory)
        return
    names = list(IMPLEMENTATIONS)
    if importlib.util.find_spec("datasets") is None:
        names.remove("datasets")
        print("Hugging Face datasets is not installed: left out")
    with tempfile.TemporaryDirectory() as temporary:
        directory = pathlib.Path(temporary)
        # Beside this process, which stays small and idle.
        subprocess.run([sys.executable, "-c", _PREPARE, temporary], cwd=REPOSITORY, check=True)
        speeds, memory = _measure(names, directory, arguments.pairs)
    _report(speeds, memory)


_PREPARE = (
    "import pathlib, sys; from benchmarks import input_pipeline; "
    "input_pipeline.prepare(pathlib.Path(sys.argv[1]))"
)


def _measure(names: list[str], directory: pathlib.Path, pairs: int) -> tuple[dict, list[float]]:
    """(audio-seconds per CPU second, per wall second) of every pass, and our memory."""
    workers = {}
    try:
        for name in names:
            workers[name] = _start(name, directory)
        speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
        for _ in range(pairs):
            for name, worker in workers.items():
                cpu, wall = _ask(worker, "pass").split()
                speeds[name].append((float(cpu), float(wall)))
                time.sleep(0.3)  # the next batches are made ahead
        memory = json.loads(_ask(workers["ours"], "memory"))
    finally:
        for worker in workers.values():
            worker.stdin.close()
            worker.wait()
    return speeds, memory


def _start(name: str, directory: pathlib.Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "benchmarks.input_pipeline"]
    worker = subprocess.Popen(
        [*command, f"--worker={name}", f"--directory={directory}"],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    if worker.stdout.readline().strip() != "ready":
        raise SystemExit(f"{name}: its worker did not start; is requirements-parity.txt there?")
    return worker


def _ask(worker: subprocess.Popen, question: str) -> str:
    worker.stdin.write(question + "\n")
    worker.stdin.flush()
    return worker.stdout.readline().strip()


def _report(speeds: dict[str, list[tuple[float, float]]], memory: list[float]) -> None:
    print("audio-seconds per second, one core")
    print(f"{'':12}{'per CPU second':>16}{'lowest':>9}{'highest':>9}{'per wall second':>17}")
    median = {}
    for name, values in speeds.items():
        cpu, wall = zip(*values, strict=True)
        median[name] = statistics.median(cpu)
        print(
            f"{name:12}{median[name]:16,.0f}{min(cpu):9,.0f}{max(cpu):9,.0f}"
            f"{statistics.median(wall):17,.0f}"
        )
    print(
        f"our memory over {MEMORY_BATCHES:,} batches, MB: "
        + " ".join(f"{megabytes:.0f}" for megabytes in memory)
    )
    peer = max((name for name in PEERS if name in median), key=median.__getitem__)
    ratio = median["ours"] / median[peer]
    pairs = sorted(a / b for (a, _), (b, _) in zip(speeds["ours"], speeds[peer], strict=True))
    print(f"ours / {peer}: {ratio:.2f} (pairs {pairs[0]:.2f} to {pairs[-1]:.2f})")
    summary = {
        "benchmark": "input_pipeline",
        "ratio": round(ratio, 2),
        "low": round(pairs[0], 2),
        "high": round(pairs[-1], 2),
        "goal": GOAL,
        "met": ratio >= GOAL,
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
