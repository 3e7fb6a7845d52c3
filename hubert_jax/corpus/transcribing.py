"""A part of a prepared split with other transcripts, as a split of its own."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from hubert_jax import files
from hubert_jax.corpus import assembly
from hubert_jax.corpus.parts import Notes
from hubert_jax.data import records
from hubert_jax.data.buckets import BUCKETS, bucket_numbers
from hubert_jax.data.index import ShardIndex
from hubert_jax.data.manifests import AudioManifest, ShardInfo
from hubert_jax.data.reading import RecordReader


def write_transcribed(
    directory: pathlib.Path,
    source: pathlib.Path,
    manifest: AudioManifest,
    texts: Mapping[str, str],
    shard_megabytes: int,
    provenance: dict[str, Any],
) -> AudioManifest:
    """Writes the utterances of the split `source` that are in `texts`, by id, with these.

    Their audio is copied as it is encoded, since a record holds both. The split has the name of
    `directory`, which appears complete or not at all. It mixes nothing, and flags nothing: that
    is in the tables of `source`.
    Raises InputError for a damaged record, or a shard that cannot be written.
    """
    reader = RecordReader(source, manifest)
    ids = reader.index.ids
    kept = np.array([number for number in range(len(ids)) if ids[number] in texts], np.int64)
    samples = reader.index.samples[kept]
    bucket = bucket_numbers(samples)
    shards, indexed, speakers = [], [], set()
    with files.writing_directory(directory) as aside:
        for place, frames in enumerate((0, *BUCKETS)):
            mine = kept[bucket == place]
            planned = assembly.plan_shards(reader.index.samples[mine], shard_megabytes)
            for number, (first, end) in enumerate(planned):
                path = aside / assembly.shard_name(frames, number, len(planned))
                rows = []
                (contents,), _ = reader.read(mine[first:end])
                with records.RecordWriter(path) as writer:
                    for record, content in zip(mine[first:end].tolist(), contents, strict=True):
                        retold = records.with_text(content, texts[ids[record]])
                        writer.write(retold)
                        rows.append(records.index_row(retold))
                speakers |= {row[3] for row in rows} - {""}
                total = int(reader.index.samples[mine[first:end]].sum(dtype=np.int64))
                digest = files.sha256_file(path)
                shards.append(ShardInfo(path.name, frames, end - first, total, digest))
                indexed.append(ShardIndex.of(rows))
        notes = Notes(speakers=tuple(speakers), transcribed=len(kept), utterances=len(kept))
        return assembly.write_tables(
            aside,
            directory.name,
            tuple(shards),
            indexed,
            [notes],
            encoding=manifest.encoding,
            mixture=None,
            provenance=provenance,
        )
