"""Turns a corpus of audio files into the audio shards that every other job reads.

`--config.splits=dev,train=a+b` makes the split `dev` of the folder `dev`, and `train` of two. A
folder may also be a manifest of fairseq's, Parquet files or `tfds:NAME/SPLIT`. An interrupted job
continues; splits whose files and settings are unchanged are kept. Files that cannot be used are
listed in `rejected.tsv`, as far as they are allowed.
"""

import collections
import concurrent.futures
import dataclasses
import itertools
import operator
import os
import pathlib
import time
from typing import TYPE_CHECKING, Any

from hubert_jax import config as config_lib
from hubert_jax import files, job, storage
from hubert_jax.config import MayChange, Reads
from hubert_jax.corpus.sources import common_voice
from hubert_jax.corpus.sources.utterances import read_lines
from hubert_jax.errors import InputError

if TYPE_CHECKING:
    from hubert_jax.corpus.mixing import Mixture
    from hubert_jax.corpus.sources.utterances import SourceUtterance
    from hubert_jax.data.manifests import AudioManifest

_TABLES = [
    f"{below}*.{kind}" for below in ("", "*/") for kind in ("tsv", "csv", "jsonl", "parquet")
]
VERSION = 3  # raise it when the same configuration and inputs give another output


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """Configuration of the job."""

    workdir: MayChange[str]
    corpus: Reads[str] = "examples/minilibri"  # directory that holds the folders of `splits`
    splits: tuple[str, ...] = ("train-clean-5",)  # FOLDER, or NAME=FOLDER+FOLDER*WEIGHT...
    tfds_data_dir: MayChange[str] = ""  # of tfds:NAME/SPLIT; "": TensorFlow Datasets' own
    shard_megabytes: int = 64  # 16-bit audio per shard
    encoding: str = "pcm16"  # of audio in the shards: pcm16, or flac at about half the size
    convert: bool = False  # mix down several channels, resample other rates
    unchecked: bool = False  # take ADPCM, GSM and others that nobody can check for completeness
    cut_seconds: float = 30.0  # longer recordings without transcript are cut at silences; 0: none
    language_exponent: float = 1.0  # below 1, training draws small languages more often
    corpus_exponent: float = 1.0  # the same, for the corpora of a language
    max_rejected_fraction: float = 0.0  # of a split's files; more stop the job
    workers: MayChange[int] = 0  # threads; 0: one a core; the output does not depend on it
    beam_runner: MayChange[str] = ""  # Apache Beam's, such as DirectRunner, instead of threads
    beam_options: MayChange[tuple[str, ...]] = ()  # such as --flink_master=HOST:PORT

    def __post_init__(self) -> None:
        from hubert_jax.data.encoding import ENCODINGS

        for name, fits, expected in (
            ("shard_megabytes", self.shard_megabytes >= 1, "at least 1"),
            ("workers", self.workers >= 0, "at least 0"),
            (
                "max_rejected_fraction",
                0 <= self.max_rejected_fraction < 1,
                "at least 0, less than 1",
            ),
            ("encoding", self.encoding in ENCODINGS, " or ".join(ENCODINGS)),
            (
                "cut_seconds",
                self.cut_seconds == 0 or self.cut_seconds >= 4,
                "at least 4, or 0 to cut nothing",
            ),
            ("language_exponent", 0 <= self.language_exponent <= 1, "between 0 and 1"),
            ("corpus_exponent", 0 <= self.corpus_exponent <= 1, "between 0 and 1"),
        ):
            if not fits:
                raise InputError(f"config.{name}={getattr(self, name)!r}: expected {expected}")
        split_folders(self.splits)

    def reads(self) -> list[pathlib.Path]:
        """Files and folders whose content decides what comes out.

        Not those of TensorFlow Datasets, whose names say their versions. Raises InputError for a
        manifest of fairseq's that is no text.
        """
        found = []
        for path in (storage.path(self.corpus, name) for name in self._folders()):
            # One split of a folder's tables has a name, but no folder.
            tables = itertools.chain.from_iterable(map(path.parent.glob, _TABLES))
            found.append(path.parent if not path.exists() and any(tables) else path)
            if path.suffix.lower() == ".tsv" and path.is_file():
                # A manifest of fairseq's names its folder of audio; transcripts lie beside it.
                if common_voice.is_table(path):
                    found.append(path.parent / "clips")
                    continue
                (_, first), *lines = read_lines(path) or [(1, "")]
                root = path.parent / first.strip()
                listed = [root / line.partition("\t")[0] for _, line in lines]
                found += listed if root == root.parent else [root]
                beside = (path.with_suffix(suffix) for suffix in (".wrd", ".ltr"))
                found += [transcripts for transcripts in beside if transcripts.is_file()]
        return list(dict.fromkeys(found))

    def _folders(self) -> list[str]:
        """Folders of the corpus that the splits name."""
        named = (name for folders in split_folders(self.splits).values() for name in folders)
        return [name for name in named if not name.startswith("tfds:")]


def split_folders(splits: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Folders of every split and their weights: {"train": {"a": 1, "b": 2}} for ("train=a+b*2",).

    Raises InputError for no split, one twice, a folder twice, an unusable name or weight.
    """
    if not splits:
        raise InputError("config.splits: expected at least one split, found none")
    folders: dict[str, dict[str, float]] = {}
    for entry in splits:
        name, equals, listed = entry.partition("=")
        found = [_weighted(folder) for folder in (listed.split("+") if equals else [entry])]
        if not name or "/" in name or name.startswith("."):
            raise InputError(
                f"config.splits: {name!r} cannot name a split; pass NAME={listed or entry} "
                "with a NAME that neither holds / nor starts with a dot"
            )
        if not all(folder for folder, _ in found) or len(dict(found)) < len(found):
            raise InputError(
                f"config.splits: expected NAME=FOLDER+FOLDER with folders that differ, "
                f"found {entry!r}"
            )
        if name in folders:
            raise InputError(f"config.splits: the split {name!r} is there twice, expected it once")
        folders[name] = dict(found)
    return folders


def _weighted(folder: str) -> tuple[str, float]:
    name, star, weight = folder.rpartition("*")
    if not star:
        return folder, 1.0
    try:
        value = float(weight)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise InputError(f"config.splits: expected a weight above 0 after *, found {folder!r}")
    return name, value


def run(config: PrepareConfig) -> dict:
    """Prepares the splits; returns the content of `WORKDIR/prepare/result.json`.

    Raises InputError for unusable folders or files, or a second job at work; the split concerned
    is left as it was.
    """
    workdir = files.require_writable(config.workdir)
    with files.locked(workdir / ".prepare.lock", "preparation"):
        return _prepare(config, workdir / "prepare")


def _prepare(config: PrepareConfig, output: pathlib.Path) -> dict:
    started = time.monotonic()
    from hubert_jax.corpus.sources import discover
    from hubert_jax.corpus.sources.utterances import refuse_duplicates

    corpus = storage.path(config.corpus)
    if not corpus.is_dir() and config._folders():
        raise InputError(
            f"config.corpus={config.corpus}: no such directory; pass --config.corpus=DIR, "
            "the directory that holds the folders of config.splits"
        )
    found: dict[str, list[SourceUtterance]] = {}
    for split, folders in split_folders(config.splits).items():
        mixes = _mixture(config, split) is not None
        located = []
        for number, folder in enumerate(folders):
            location = folder if folder.startswith("tfds:") else corpus / folder
            utterances = discover(location, config.tfds_data_dir)
            _warn_of_splits(split, folder, corpus, utterances)
            if mixes and number:
                utterances = [dataclasses.replace(each, corpus=number) for each in utterances]
            located += utterances
        located.sort(key=operator.attrgetter("id"))
        refuse_duplicates(located)
        found[split] = located
    _warn_of_nested(config, corpus)
    # From here on splits are replaced: an older result would no longer say what is there.
    (output / "result.json").unlink(missing_ok=True)
    splits = {}
    for split, sources in found.items():
        try:
            splits[split] = _prepare_split(config, output, split, sources)
        except OSError as error:
            raise InputError(
                f"split {split}: {error.filename or output} cannot be written ({error.strerror})"
            ) from None
    result = {"config": config_lib.to_dict(config), "splits": splits}
    return job.finish(config.workdir, "prepare", result, started)


def _warn_of_nested(config: PrepareConfig, corpus: pathlib.Path) -> None:
    """Of a folder in one of another split, where its files have other ids: no job would notice."""
    splits = split_folders(config.splits)
    for (split, inner), (other, outer) in itertools.permutations(splits.items(), 2):
        for one, two in itertools.product(inner, outer):
            here, there = (storage.absolute(corpus / name) for name in (one, two))
            if there in here.parents and here.is_dir():
                print(
                    f"prepare {split}: warning: {here} lies in {there}, of the split {other}: "
                    "its files are in both",
                    flush=True,
                )


def _warn_of_splits(
    split: str, folder: str, corpus: pathlib.Path, utterances: list["SourceUtterance"]
) -> None:
    from hubert_jax.corpus.sources import splits

    found = splits.splits_of_folders(corpus / folder, utterances)
    if len(found) > 1:
        print(
            f"prepare {split}: warning: {corpus / folder} has folders of several splits, "
            f"{', '.join(found)}; {split} is made of all of them. Name the folders that belong to "
            f"it: --config.splits={split}=FOLDER+FOLDER",
            flush=True,
        )


def _prepare_split(config: PrepareConfig, output: pathlib.Path, split: str, sources: list) -> dict:
    from hubert_jax.corpus import assembly, parts, preparation

    started, outcome = time.monotonic(), "done"
    conversion = preparation.Conversion(
        config.convert, config.encoding, config.unchecked, config.cut_seconds
    )
    settings: dict[str, Any] = dict(encoding=config.encoding, mixture=_mixture(config, split))
    print(f"prepare {split}: {len(sources)} files", flush=True)
    # Before files are read: the next run makes the split again if one changes meanwhile.
    planned = preparation.divided(sources, conversion)
    made_of = [VERSION, split, config.shard_megabytes, repr(settings["mixture"]), *planned]
    key = config_lib.digest(made_of)
    workers = config.workers or os.cpu_count() or 1
    # Kept where the job is refused or killed: the next run has only the rest to do.
    aside, mark = storage.scratch(output / f".{split}.parts"), output / f".{split}.made"
    if manifest := _made_before(output / split, mark, key, workers):
        outcome = "kept from an earlier call with the same files and settings"
        rows = (output / split / "rejected.tsv").read_text().splitlines()
        rejected: Any = tuple(row.split("\t") for row in rows)
        _refuse_too_many(config, split, [parts.Notes(rejected)], len(sources))
    elif config.beam_runner and storage.is_url(output):
        raise InputError(
            f"config.workdir={config.workdir}: a bucket, which workers of config.beam_runner="
            f"{config.beam_runner} do not write yet; expected a folder that all of them share"
        )
    elif config.beam_runner:
        from hubert_jax.corpus import beam_pipeline

        pipeline = beam_pipeline.pipeline_on(config.beam_runner, config.beam_options)
        with files.writing_directory(output / split) as directory:
            done, indexed, notes = beam_pipeline.write_shards(
                pipeline,
                directory,
                sources,
                conversion,
                config.shard_megabytes,
                settings["mixture"],
            )
            _refuse_too_many(config, split, notes, len(sources))
            manifest = assembly.write_tables(directory, split, done, indexed, notes, **settings)
    else:
        progress = job.Progress(f"prepare {split}", len(sources), "{} of {} files")
        written = preparation.write_parts(aside, planned, conversion, workers, progress)
        _refuse_too_many(config, split, [part.notes for part in written], len(sources))
        with files.writing_directory(output / split) as directory:
            manifest = assembly.assemble(
                directory, split, written, config.shard_megabytes, workers=workers, **settings
            )
    if outcome == "done":
        files.write_text(mark, _mark(output / split, key))
    storage.remove_tree(aside, ignore_errors=True)
    buckets: collections.Counter[str] = collections.Counter()
    for shard in manifest.shards:
        buckets[str(shard.bucket_frames)] += shard.utterances
    print(
        f"prepare {split}: {outcome}, {manifest.utterances} utterances, "
        f"{manifest.seconds / 3600:.2f} h, {manifest.speakers} speakers, "
        f"{manifest.rejected} rejected, {manifest.flagged} flagged, "
        f"{len(manifest.shards)} shards, {time.monotonic() - started:.1f} s",
        flush=True,
    )
    return {
        "files": len(sources),
        "utterances": manifest.utterances,
        "seconds": manifest.seconds,
        "speakers": manifest.speakers,
        "transcribed": manifest.transcribed,
        "rejected": manifest.rejected,
        "flagged": manifest.flagged,
        "utterances_by_bucket": dict(buckets),
        "shards": len(manifest.shards),
        "shares": {group.name: group.share for group in manifest.groups},
        "digest": manifest.digest,
    }


def _mark(directory: pathlib.Path, key: str) -> str:
    """A digest of a split's key and files, but its shards, whose digests are in the manifest.

    In a bucket it is of what the listing says of all files, which nobody has to read then.
    """
    if isinstance(directory, storage.BucketPath):
        return config_lib.digest([key, sorted(directory.find().items())])
    names = ("manifest.json", "index.npz", "rejected.tsv", "flagged.tsv")
    return config_lib.digest([key, *(files.sha256_file(directory / name) for name in names)])


def _made_before(
    directory: pathlib.Path, mark: pathlib.Path, key: str, workers: int
) -> "AudioManifest | None":
    """The manifest of the split that is there, if it is whole and was made with this key."""
    from hubert_jax.data import manifests

    try:
        if mark.read_text() != _mark(directory, key):
            return None
        manifest = manifests.read_manifest(directory)
        if storage.is_url(directory):
            return manifest
        paths = [directory / shard.file for shard in manifest.shards]
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            digests = list(pool.map(files.sha256_file, paths))
    except (OSError, ValueError, InputError):
        return None
    return manifest if digests == [shard.digest for shard in manifest.shards] else None


def _mixture(config: PrepareConfig, split: str) -> "Mixture | None":
    """None where all folders of the split are drawn equally often."""
    from hubert_jax.corpus.mixing import Mixture

    weights = split_folders(config.splits)[split]
    mixture = Mixture(weights, config.language_exponent, config.corpus_exponent)
    return None if mixture.even else mixture


def _refuse_too_many(config: PrepareConfig, split: str, notes: list, total: int) -> None:
    rejected = sorted(row for note in notes for row in note.rejected)
    allowed = config.max_rejected_fraction * total + 1e-9  # 0.29 * 100 is 28.999...
    if len(rejected) <= allowed and len(rejected) < total:
        return
    path, reason = rejected[0]
    first = f"{path}: {reason}"
    if len(rejected) == total:
        raise InputError(f"split {split}: none of {total} files can be used, the first is {first}")
    share = len(rejected) / total
    raise InputError(
        f"split {split}: {len(rejected)} of {total} files ({share:.2%}, allowed are "
        f"{config.max_rejected_fraction:.2%}) cannot be used, the first is {first}; or leave such "
        f"files out with --config.max_rejected_fraction={-(-share * 10_000 // 1) / 10_000:.4f}"
    )


if __name__ == "__main__":
    job.main("prepare", PrepareConfig, run, computes=False)
