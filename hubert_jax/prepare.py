"""Turns a corpus of audio files into the audio shards that every other job reads.

A split is one folder of the corpus, or several: `--config.splits="('train-clean-5',
'train=train-clean-5+train-clean-100')"` makes the splits `train-clean-5` and `train`. Each appears
under WORKDIR/prepare/ when it is complete; files that cannot be used stop the job unless
`--config.max_rejected_share` allows some, which are then listed in the split's `rejected.tsv`.
"""

import collections
import concurrent.futures
import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator

from hubert_jax import config as config_lib
from hubert_jax import files, job
from hubert_jax.errors import InputError

_PROGRESS_SECONDS = 5.0


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """Configuration of the job."""

    workdir: str
    corpus: str = "examples/minilibri"  # directory that holds the folders of `splits`
    splits: tuple[str, ...] = ("train-clean-5",)  # FOLDER, or NAME=FOLDER+FOLDER...
    shard_megabytes: int = 64  # audio per shard; every host needs a shard of every bucket
    convert: bool = False  # mix down several channels, resample other rates
    max_rejected_share: float = 0.0  # of a split's files; more stop the job
    workers: int = 2  # threads that decode; the output does not depend on it

    def __post_init__(self):
        for name in ("shard_megabytes", "workers"):
            if getattr(self, name) < 1:
                raise InputError(f"config.{name}: expected at least 1, found {getattr(self, name)}")
        if not 0 <= self.max_rejected_share < 1:
            raise InputError(
                f"config.max_rejected_share: expected at least 0 and less than 1, "
                f"found {self.max_rejected_share}"
            )
        split_folders(self.splits)


def split_folders(splits: tuple[str, ...]) -> dict[str, list[str]]:
    """Folders of every split: {"train": ["a", "b"]} for ("train=a+b",).

    Raises:
      InputError: no split, a split twice, a folder twice, or a name that is not a directory's.
    """
    if not splits:
        raise InputError("config.splits: expected at least one split, found none")
    folders: dict[str, list[str]] = {}
    for entry in splits:
        name, equals, listed = entry.partition("=")
        found = listed.split("+") if equals else [entry]
        if not name or "/" in name or name.startswith("."):
            raise InputError(
                f"config.splits: {name!r} cannot name a split; pass NAME={listed or entry} "
                "with a NAME that neither holds / nor starts with a dot"
            )
        if not all(found) or len(set(found)) < len(found):
            raise InputError(
                f"config.splits: expected NAME=FOLDER+FOLDER with folders that differ, "
                f"found {entry!r}"
            )
        if name in folders:
            raise InputError(f"config.splits: the split {name!r} is there twice, expected it once")
        folders[name] = found
    return folders


def run(config: PrepareConfig) -> dict:
    """Prepares the splits; returns what it wrote to `WORKDIR/prepare/result.json`.

    Raises:
      InputError: a folder is missing or empty, two utterances have the same id, or more files
        than allowed cannot be used; the split that it concerns is left as it was.
    """
    started = time.monotonic()
    from hubert_jax.data.sources import discover, refuse_duplicates

    output = files.require_writable(config.workdir) / "prepare"
    corpus = pathlib.Path(config.corpus)
    if not corpus.is_dir():
        raise InputError(
            f"config.corpus={config.corpus}: no such directory; pass --config.corpus=DIR, "
            "the directory that holds the folders of config.splits"
        )
    found = {}
    for split, folders in split_folders(config.splits).items():
        found[split] = sorted(
            (utterance for folder in folders for utterance in discover(corpus / folder)),
            key=lambda utterance: utterance.id,
        )
        refuse_duplicates(found[split])
    # From here on splits are replaced: an older result would no longer say what is there.
    (output / "result.json").unlink(missing_ok=True)
    splits = {
        split: _prepare_split(config, output / split, split, utterances)
        for split, utterances in found.items()
    }
    result = {"config": config_lib.to_dict(config), "splits": splits}
    return job.finish(config.workdir, "prepare", result, started)


def _prepare_split(
    config: PrepareConfig, directory: pathlib.Path, split: str, sources: list
) -> dict:
    """Writes one split; returns its part of the result."""
    started = time.monotonic()
    print(f"prepare {split}: {len(sources)} files", flush=True)
    from hubert_jax.data import shards

    sources = sorted(sources, key=lambda source: shards.shuffle_key(source.id))
    rejected: list[tuple[str, str]] = []
    with files.writing_directory(directory) as aside:
        utterances = _read(config, split, sources, rejected)
        manifest = shards.write_split(aside, split, utterances, rejected, config.shard_megabytes)
    buckets = collections.Counter()
    for shard in manifest.shards:
        buckets[str(shard.bucket_frames)] += shard.utterances
    print(
        f"prepare {split}: done, {manifest.utterances} utterances, "
        f"{manifest.seconds / 3600:.2f} h, {manifest.speakers} speakers, "
        f"{manifest.rejected} rejected, "
        f"{len(manifest.shards)} shards, {time.monotonic() - started:.1f} s",
        flush=True,
    )
    return {
        "utterances": manifest.utterances,
        "seconds": manifest.seconds,
        "speakers": manifest.speakers,
        "transcribed": manifest.transcribed,
        "rejected": manifest.rejected,
        "utterances_by_bucket": dict(buckets),
        "shards": len(manifest.shards),
        "digest": manifest.digest,
    }


def _read(
    config: PrepareConfig, split: str, sources: list, rejected: list[tuple[str, str]]
) -> Iterator:
    """Utterances in the order of `sources`; what cannot be used is added to `rejected`.

    Raises InputError after the last file if too many were rejected, so that it can tell how many.
    """
    from hubert_jax.data.audio_files import read_waveform
    from hubert_jax.data.records import Utterance

    def read(source) -> Utterance | str:
        if source.defect:
            return f"{source.path}: {source.defect}"
        try:
            waveform = read_waveform(source.path, config.convert)
        except InputError as error:
            return str(error)
        return Utterance(source.id, waveform, source.speaker, source.text or "")

    reported = time.monotonic()
    for done, (source, outcome) in enumerate(_parallel(read, sources, config.workers), start=1):
        if isinstance(outcome, str):
            path = str(source.path)
            reason = " ".join(outcome.removeprefix(f"{path}: ").split())
            rejected.append((" ".join(path.split()), reason))
        else:
            yield outcome
        if time.monotonic() - reported > _PROGRESS_SECONDS:
            reported = time.monotonic()
            print(f"prepare {split}: {done} of {len(sources)} files", flush=True)
    rejected.sort()
    allowed = config.max_rejected_share * len(sources) + 1e-9  # 0.29 * 100 is 28.999...
    if len(rejected) > allowed or len(rejected) == len(sources):
        raise InputError(_refusal(config, split, rejected, len(sources)))


def _refusal(config: PrepareConfig, split: str, rejected: list[tuple[str, str]], total: int) -> str:
    path, reason = rejected[0]
    first = f"{path}: {reason}"
    if len(rejected) == total:
        return f"split {split}: none of {total} files can be used, the first is {first}"
    share = len(rejected) / total
    allowed = f"allowed are {config.max_rejected_share:.2%}"
    return (
        f"split {split}: {len(rejected)} of {total} files ({share:.2%}, {allowed}) cannot be used, "
        f"the first is {first}; or leave such files out with "
        f"--config.max_rejected_share={-(-share * 10_000 // 1) / 10_000:.4f}"
    )


def _parallel(function: Callable, items: list, workers: int) -> Iterator[tuple]:
    """(item, function(item)) in order, a few items ahead of the consumer."""
    pending: collections.deque = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                pending.append((item, pool.submit(function, item)))
                if len(pending) > 4 * workers:
                    first, future = pending.popleft()
                    yield first, future.result()
            while pending:
                first, future = pending.popleft()
                yield first, future.result()
        finally:
            for _, future in pending:
                future.cancel()


if __name__ == "__main__":
    job.main("prepare", PrepareConfig, run)
