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
) -> AudioManifest:
    """Copies the records of all parts into a split's shards; writes its index, tables and manifest.

    A shard is full once its utterances have `shard_megabytes`; it is a function of the utterances
    and their order alone, so equal input gives equal bytes however it was divided into parts.
    Buckets without utterances have no shard.

    Args:
      directory: of a `files.writing_directory`.
      split: the split's name.
      written: the parts.
      shard_megabytes: 10**6 bytes of 16-bit audio per shard; 64 are 2,000 s.
      encoding: how the parts' records hold audio.
      mixture: its corpora in the order of their numbers in the parts' index; a shard then holds
        one of them only. None: they are all one.
      workers: threads that copy.

    Raises:
      InputError: two utterances have the same order, or a shard cannot be written.
    """
    groups = tuple(mixture.weights) if mixture else ("",)
    index, part_of, planned = plan_split(written, len(groups), shard_megabytes)
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        copied = [
            pool.submit(_copy, directory / name, rows, index, part_of, written)
            for name, _, _, rows in planned
        ]
        try:
            done = [future.result() for future in copied]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    shards = tuple(
        ShardInfo(
            file=name,
            bucket_frames=frames,
            utterances=len(rows),
            samples=int(index["samples"][rows].sum()),
            digest=digest,
            group=groups[group],
        )
        for (name, frames, group, rows), (digest, _) in zip(planned, done, strict=True)
    )
    del index, part_of, planned  # hundreds of megabytes where there are ten million records
    notes = [part.notes for part in written]
    return write_tables(
        directory,
        split,
        shards,
        [indexed for _, indexed in done],
        notes,
        encoding=encoding,
        mixture=mixture,
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
) -> AudioManifest:
    """Writes what lies beside a split's shards: index, manifest, what was refused, what is odd.

    `indexed` is of the shards, in their order.

    Raises:
      InputError: a corpus of the mixture has nothing that can be used.
    """
    rejected = sorted(row for note in notes for row in note.rejected)
    flagged = sorted(row for note in notes for row in note.flagged)
    for name, rows in (("rejected.tsv", rejected), ("flagged.tsv", flagged)):
        (directory / name).write_text("".join(f"{file}\t{reason}\n" for file, reason in rows))
    manifest = AudioManifest(
        split=split,
        sample_rate=SAMPLE_RATE,
        utterances=sum(shard.utterances for shard in shards),
        seconds=_seconds(shards),
        speakers=len({speaker for note in notes for speaker in note.speakers}),
        transcribed=sum(note.transcribed for note in notes),
        rejected=len(rejected),
        digest=manifests.shards_digest(shards),
        shards=shards,
        encoding=encoding,
        flagged=len(flagged),
        groups=_groups(split, shards, mixture) if mixture else (),
        index=write_index(directory, indexed),
    )
    manifests.write_manifest(directory, manifest)
    return manifest


def shard_name(bucket_frames: int, number: int, count: int) -> str:
    """The file of one of a bucket's shards."""
    return f"audio-b{bucket_frames:04d}-{number:05d}-of-{count:05d}.tfrecord"


def plan_shards(samples: np.ndarray, shard_megabytes: int) -> list[tuple[int, int]]:
    """Divides utterances, in order, into shards: each is full once it has its megabytes.

    Args:
      samples: of every utterance, (n,) int.
      shard_megabytes: 10**6 bytes of 16-bit audio.

    Returns:
      The ranges (first, last + 1) of the shards.
    """
    ends = np.cumsum(samples, dtype=np.int64)
    # An integer, or every search would convert all of `ends`.
    full = math.ceil(shard_megabytes * 10**6 / 2)
    ranges, first, before = [], 0, 0
    while first < len(ends):
        last = min(int(np.searchsorted(ends, before + full)), len(ends) - 1)
        ranges.append((first, last + 1))
        first, before = last + 1, int(ends[last])
    return ranges


def plan_split(
    written: Sequence[Part], groups: int, shard_megabytes: int
) -> tuple[np.ndarray, np.ndarray, list[tuple[str, int, int, np.ndarray]]]:
    """Decides which records of all parts become which shard; reads no audio.

    Args:
      written: the parts; of each, its index alone is read.
      groups: the number of corpora.
      shard_megabytes: 10**6 bytes of 16-bit audio per shard.

    Returns:
      The index of all records (parts.INDEX), the part that each lies in, and of every shard its
      file, its bucket, its group and its rows of the index.

    Raises:
      InputError: two utterances have the same order.
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
    return index, part_of, _plan(index, groups, shard_megabytes)


def _plan(
    index: np.ndarray, groups: int, shard_megabytes: int
) -> list[tuple[str, int, int, np.ndarray]]:
    """(file, bucket, group, rows of the index) of every shard."""
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
    return planned


def _in_order(order: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The rows (n,) by their order (records, 2)."""
    first = order[:, 0][rows]
    ranks = np.argsort(first)
    first = first[ranks]
    if np.any(first[1:] == first[:-1]):  # hardly ever, so no copy of both is made for it
        ranks = np.lexsort((order[:, 1][rows], order[:, 0][rows]))
    return rows[ranks]


def _copy(
    path: pathlib.Path,
    rows: np.ndarray,
    index: np.ndarray,
    part_of: np.ndarray,
    written: Sequence[Part],
) -> tuple[str, ShardIndex]:
    """Writes one shard; returns its SHA-256 and its part of the split's index."""
    digest = hashlib.sha256()
    indexed = []
    try:
        with open(path, "wb") as shard:
            for row in rows:
                content = _record(index[row], written[part_of[row]])
                digest.update(content)
                shard.write(content)
                record = content[records.HEADER_BYTES : -records.FOOTER_BYTES]
                indexed.append(records.index_row(record))
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None
    return digest.hexdigest(), ShardIndex.of(indexed)


def _record(row: np.void, part: Part) -> bytes:
    """A record with its framing, as it lies in its part."""
    with open(part.path, "rb", buffering=0) as file:
        content = os.pread(file.fileno(), int(row["length"]), int(row["offset"]))
    if len(content) != row["length"]:
        raise InputError(
            f"{part.path}: shorter than its index says; remove {part.path.parent} and run "
            "hubert_jax.prepare again"
        )
    return content


def _refuse_equal(index: np.ndarray, part_of: np.ndarray, written: Sequence[Part]) -> None:
    """Two utterances of one id, such as a piece of a recording and a file of the same name."""
    # Halves of the orders first, and no more of them than has to be: there may be ten million.
    first = np.sort(index["order"][:, 0])
    repeated = first[1:][first[1:] == first[:-1]]
    rows = np.flatnonzero(np.isin(index["order"][:, 0], repeated)) if len(repeated) else repeated
    order = index["order"][rows]
    rows, order = (values[np.lexsort((order[:, 1], order[:, 0]))] for values in (rows, order))
    equal = np.flatnonzero((order[1:] == order[:-1]).all(axis=1))
    if len(equal):
        row = rows[equal[0]]
        raise InputError(
            f"{written[part_of[row]].path}: two utterances have the same id; expected every id "
            "once, rename one of the files"
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
