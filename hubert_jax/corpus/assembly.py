"""Puts the parts of a split together as its shards, and writes the split's manifest."""

import concurrent.futures
import hashlib
import math
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from hubert_jax.corpus.mixing import Mixture
from hubert_jax.corpus.parts import INDEX, Notes, Part
from hubert_jax.data import manifests, records
from hubert_jax.data.buckets import BUCKETS, bucket_numbers
from hubert_jax.data.index import ShardIndex, write_index
from hubert_jax.data.manifests import AudioManifest, GroupInfo, ShardInfo
from hubert_jax.errors import InputError
from hubert_jax.frames import SAMPLE_RATE


def shuffle_order(utterance_id: str) -> tuple[int, int]:
    """Position of an utterance in a split: random-looking, the same everywhere and always."""
    digest = hashlib.sha256(utterance_id.encode()).digest()
    return int.from_bytes(digest[:8]), int.from_bytes(digest[8:16])


def assemble(
    directory: pathlib.Path,
    split: str,
    written: Sequence[Part],
    shard_megabytes: int,
    *,
    encoding: str = "pcm16",
    mixture: Mixture | None = None,
    workers: int = 1,
    provenance: dict | None = None,
) -> AudioManifest:
    """Copies the records of all parts into a split's shards; writes its index, tables and manifest.

    A shard is of one bucket and one corpus of `mixture` (in the order of `INDEX["group"]`). Shards
    depend on the utterances and their order alone, however these were divided into parts.
    `directory` is of a `files.writing_directory`; `workers` threads copy. `provenance` is of
    transcripts that nobody wrote, for the manifest.

    Raises InputError for two utterances of one id, or a shard that cannot be written.
    """
    groups = tuple(mixture.weights) if mixture else ("",)
    # On return the plan is freed: hundreds of megabytes where there are ten million records.
    copied = _copy_records(directory, written, groups, shard_megabytes, workers)
    return write_tables(
        directory,
        split,
        tuple(shard for shard, _ in copied),
        [indexed for _, indexed in copied],
        [part.notes for part in written],
        encoding=encoding,
        mixture=mixture,
        provenance=provenance,
    )


def write_tables(
    directory: pathlib.Path,
    split: str,
    shards: tuple[ShardInfo, ...],
    indexed: Sequence[ShardIndex],
    notes: Sequence[Notes],
    *,
    encoding: str,
    mixture: Mixture | None,
    provenance: dict | None = None,
) -> AudioManifest:
    """Writes a split's manifest, its index (`indexed`, of `shards`), what was refused and is odd.

    Raises InputError if a corpus of the mixture has nothing that can be used.
    """
    noted = Notes.joined(notes)
    for name, rows in (("rejected.tsv", noted.rejected), ("flagged.tsv", noted.flagged)):
        lines = (f"{file}\t{reason}\n" for file, reason in sorted(rows))
        (directory / name).write_text("".join(lines))
    manifest = AudioManifest(
        split=split,
        sample_rate=SAMPLE_RATE,
        utterances=sum(shard.utterances for shard in shards),
        seconds=_seconds(shards),
        speakers=len(noted.speakers),
        transcribed=noted.transcribed,
        rejected=len(noted.rejected),
        digest=manifests.shards_digest(shards),
        shards=shards,
        encoding=encoding,
        flagged=len(noted.flagged),
        groups=_groups(split, shards, mixture) if mixture else (),
        index=write_index(directory, indexed),
        provenance=provenance or {},
    )
    manifests.write_manifest(directory, manifest)
    return manifest


def shard_name(bucket_frames: int, number: int, count: int) -> str:
    """The file of one of a bucket's shards."""
    return f"audio-b{bucket_frames:04d}-{number:05d}-of-{count:05d}.tfrecord"


def plan_shards(samples: np.ndarray, shard_megabytes: int) -> list[tuple[int, int]]:
    """Ranges (first, last + 1) of utterances, a shard each; `samples` (n,) are of the utterances.

    A shard is full once it has `shard_megabytes`, 10**6 bytes of 16-bit audio.
    """
    ends = np.cumsum(samples, dtype=np.int64)
    full = math.ceil(shard_megabytes * 10**6 / 2)  # an integer: else each search converts `ends`
    ranges, first, before = [], 0, 0
    while first < len(ends):
        last = min(int(np.searchsorted(ends, before + full)), len(ends) - 1)
        ranges.append((first, last + 1))
        first, before = last + 1, int(ends[last])
    return ranges


def plan_split(
    written: Sequence[Part], groups: int, shard_megabytes: int
) -> tuple[np.ndarray, np.ndarray, list[tuple[str, int, int, np.ndarray]]]:
    """Decides from the parts' indexes which records become which shard, of `groups` corpora.

    Returns the index of all records (parts.INDEX), the part that each lies in, and (file, bucket,
    group, rows of the index) of every shard. Raises InputError if two have the same order.
    """
    content = bytearray()  # grows in place: a list of arrays would be there twice
    lengths = []
    for part in written:
        rows = part.read_index()
        content += rows.tobytes()
        lengths.append(len(rows))
    index = np.frombuffer(content, INDEX)
    part_of = np.repeat(np.arange(len(written), dtype=np.int32), lengths)
    _refuse_equal(index, part_of, written)
    bucket = bucket_numbers(index["samples"])
    planned = []
    for number, frames in enumerate((0, *BUCKETS)):
        shards = []
        for group in range(groups):
            rows = np.flatnonzero((bucket == number) & (index["group"] == group)).astype(np.int32)
            rows = _in_order(index["order"], rows)
            for first, end in plan_shards(index["samples"][rows], shard_megabytes):
                shards.append((group, rows[first:end]))
        for i, (group, rows) in enumerate(shards):
            planned.append((shard_name(frames, i, len(shards)), frames, group, rows))
    return index, part_of, planned


def _in_order(order: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The rows (n,) by their order (records, 2)."""
    first = order[:, 0][rows]
    ranks = np.argsort(first)
    first = first[ranks]
    if np.any(first[1:] == first[:-1]):  # hardly ever, so no copy of both is made for it
        ranks = np.lexsort((order[:, 1][rows], order[:, 0][rows]))
    return rows[ranks]


def _copy_records(
    directory: pathlib.Path,
    written: Sequence[Part],
    groups: tuple[str, ...],
    shard_megabytes: int,
    workers: int,
) -> list[tuple[ShardInfo, ShardIndex]]:
    """Writes the shards; returns what manifest and index say of each."""
    index, part_of, planned = plan_split(written, len(groups), shard_megabytes)

    def write(shard: tuple[str, int, int, np.ndarray]) -> tuple[ShardInfo, ShardIndex]:
        name, frames, group, rows = shard
        digest = hashlib.sha256()
        indexed = []
        try:
            with open(directory / name, "wb") as file:
                for row in rows:
                    content, described = _record(index[row], written[part_of[row]])
                    digest.update(content)
                    file.write(content)
                    indexed.append(described)
        except OSError as error:
            raise InputError(f"{directory / name}: cannot be written ({error.strerror})") from None
        samples = int(index["samples"][rows].sum())
        info = ShardInfo(name, frames, len(rows), samples, digest.hexdigest(), groups[group])
        return info, ShardIndex.of(indexed)

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        return list(pool.map(write, planned))


def _record(row: np.void, part: Part) -> tuple[bytes, tuple[int, int, str, str, bool]]:
    """A record with its framing, as it lies in its part, and `index_row` of it."""
    again = f"remove {part.path.parent} and run hubert_jax.prepare again"
    with open(part.path, "rb", buffering=0) as file:
        content = os.pread(file.fileno(), int(row["length"]), int(row["offset"]))
    if len(content) != row["length"]:
        raise InputError(f"{part.path}: shorter than its index says; {again}")
    record = memoryview(content)[records.HEADER_BYTES : -records.FOOTER_BYTES]
    try:
        return content, records.index_row(record)
    except ValueError:
        raise InputError(f"{part.path}: damaged at byte {row['offset']}; {again}") from None


def _refuse_equal(index: np.ndarray, part_of: np.ndarray, written: Sequence[Part]) -> None:
    """Two utterances of one id, such as a piece of a recording and a file of the same name."""
    # First halves alone at first, and no copy of the others: there may be ten million.
    first = np.sort(index["order"][:, 0])
    repeated = first[1:][first[1:] == first[:-1]]
    rows = np.flatnonzero(np.isin(index["order"][:, 0], repeated)) if len(repeated) else repeated
    order = index["order"][rows]
    rows, order = (values[np.lexsort((order[:, 1], order[:, 0]))] for values in (rows, order))
    equal = np.flatnonzero((order[1:] == order[:-1]).all(axis=1))
    if len(equal):
        raise InputError(
            f"{written[part_of[rows[equal[0]]]].path}: two utterances have the same id; expected "
            "every id once, rename one of the files"
        )


def _groups(split: str, shards: tuple[ShardInfo, ...], mixture: Mixture) -> tuple[GroupInfo, ...]:
    of_group = {
        name: tuple(shard for shard in shards if shard.group == name) for name in mixture.weights
    }
    for name, held in of_group.items():
        if not held:
            raise InputError(f"split {split}: nothing of {name} can be used; leave it out")
    shares = mixture.shares({name: _seconds(held) for name, held in of_group.items()})
    return tuple(
        GroupInfo(name, sum(shard.utterances for shard in held), _seconds(held), shares[name])
        for name, held in of_group.items()
    )


def _seconds(shards: tuple[ShardInfo, ...]) -> float:
    return round(sum(shard.samples for shard in shards) / SAMPLE_RATE, 3)
