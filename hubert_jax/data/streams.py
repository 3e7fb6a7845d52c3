"""Endless rows of a bucket as serialised records, from any row on.

Rows are drawn shard by shard: an epoch's order of shards and the order of records inside each
window of a shard are functions of (seed, epoch). To start at row k, whole shards before it are
skipped by their counts and only the rest of one shard is read. Records are shuffled undecoded.
"""

import dataclasses
import functools
import pathlib

import numpy as np
import tensorflow as tf

from hubert_jax.data import manifests, records
from hubert_jax.data.corpus_sampler import CorpusSampler
from hubert_jax.data.manifests import AudioManifest, ShardInfo
from hubert_jax.data.schedule import Bucket
from hubert_jax.errors import InputError

_WINDOW = 1024  # records shuffled together; never across a shard's end
# Read at once: records of audio are long enough to be read one by one, straight to their place.
_READ_BYTES = {"audio": 0, "labels": 1 << 18}
_ROWS_AT_ONCE = 1024  # rows whose corpora are found at once


@dataclasses.dataclass(frozen=True)
class Host:
    """This process among those that share the batches."""

    index: int = 0
    count: int = 1


@dataclasses.dataclass(frozen=True)
class Split:
    """A split and its label sets as one host reads them.

    Attributes:
      audio_dir, manifest: the audio.
      label_dirs: of its label sets.
      host: reads every `count`-th shard of a bucket.
      skip_damaged: take the records before the damage in place of those after it.
    """

    audio_dir: pathlib.Path
    manifest: AudioManifest
    label_dirs: tuple[pathlib.Path, ...]
    host: Host
    skip_damaged: bool = False

    def rows(self, bucket: Bucket, seed: int, first_row: int) -> tf.data.Dataset:
        """This host's endless rows of a bucket, from its row `first_row` on.

        Elements are dictionaries: `draw`, uint32, a random number of the row's own, for its crop;
        `records`, (1 + label sets,) serialised; and, with `skip_damaged`, `damaged`: the number
        (in the manifest) of the shard whose damage the record stands in for, -1 for none.

        Raises:
          InputError: this host has no shard of the bucket, or of one of its corpora.
        """
        if len(bucket.groups) < 2:
            rows = self._stream(bucket, None, 0, seed, first_row)
        else:
            host = self.host
            sampler = CorpusSampler(
                [group.visits for group in bucket.groups], [seed, bucket.frames]
            )
            before = sampler.before(first_row, host.index, host.count)
            streams = [
                self._stream(bucket, group.name, number, seed, used)
                for number, (group, used) in enumerate(zip(bucket.groups, before, strict=True))
            ]
            rows = tf.data.Dataset.choose_from_datasets(
                streams, _corpora(sampler, first_row, host), stop_on_empty_dataset=True
            )

        def with_draw(row, element):
            # By the row's number over all hosts, so that no two hosts draw alike.
            key = [seed, row * self.host.count + self.host.index]
            return element | {"draw": tf.random.stateless_uniform([], key, None, None, tf.uint32)}

        return rows.enumerate(first_row).map(with_draw)

    def _stream(
        self, bucket: Bucket, group: str | None, number: int, seed: int, first_row: int
    ) -> tf.data.Dataset:
        """Endless rows of a bucket, or of its `number`-th corpus alone, undrawn."""
        shards = [
            shard
            for (frames, corpus), held in self.shards.items()
            if frames == bucket.frames and group in (None, corpus)
            for shard in held
        ]
        if not shards:
            whose = f" of {group}" if group else ""
            found = sum(
                shard.bucket_frames == bucket.frames and group in (None, shard.group)
                for shard in self.manifest.shards
            )
            raise InputError(
                f"{self.audio_dir}: bucket of {bucket.frames} frames{whose} has {found} shards "
                f"for {self.host.count} hosts; prepare again with a smaller "
                "--config.shard_megabytes"
            )
        counts = np.array([shard.utterances for _, shard in shards])
        epoch, row = divmod(first_row, int(counts.sum()))
        stream_seed = (number << 32) + seed * 1009 + bucket.frames

        def order(epoch):
            return tf.random.experimental.stateless_shuffle(
                tf.range(len(shards), dtype=tf.int64), [stream_seed, tf.cast(epoch, tf.int64)]
            )

        ends = np.cumsum(counts[order(epoch).numpy()])
        whole = int(np.searchsorted(ends, row, side="right"))
        row -= int(ends[whole - 1]) if whole else 0

        table = tf.constant([self.paths(shard) for _, shard in shards])  # (shards, 1 + label sets)
        numbers = tf.constant([index for index, _ in shards], tf.int64)

        def shard_rows(epoch, shard):
            elements = self._shard(
                table[shard], tf.gather(counts, shard), tf.gather(numbers, shard)
            )

            def shuffled(number, window):
                key = [stream_seed, epoch * 1_000_003 + shard * 1_009 + number]
                size = tf.shape(window["records"][0])[0]
                permutation = tf.random.experimental.stateless_shuffle(tf.range(size), key)
                # Row by row: a permuted copy of the window would take its memory twice.
                return tf.data.Dataset.from_tensor_slices(permutation).map(
                    lambda place: tf.nest.map_structure(lambda column: column[place], window)
                )

            return elements.batch(_WINDOW).enumerate().flat_map(shuffled)

        shard_order = tf.data.Dataset.counter(epoch).flat_map(
            lambda epoch: tf.data.Dataset.from_tensor_slices(order(epoch)).map(
                lambda shard: (epoch, shard)
            )
        )
        return shard_order.skip(whole).flat_map(shard_rows).skip(row)

    def _shard(self, files: tf.Tensor, count: tf.Tensor, number: tf.Tensor) -> tf.data.Dataset:
        """The records of one shard and of its labels, exactly `count`, in order.

        A damaged shard ends where its damage begins. Where that is to be skipped, its records come
        again from the start: every row keeps its number, so later rows do not move and a restart
        finds them where they were.
        """
        # TensorFlow takes a file that was cut off between two records for a shorter one.
        counted = tf.data.experimental.assert_cardinality(count)
        columns = [
            tf.data.TFRecordDataset(files[i], buffer_size=_READ_BYTES["labels" if i else "audio"])
            for i in range(1 + len(self.label_dirs))
        ]
        if not self.skip_damaged:
            whole = tuple(column.apply(counted) for column in columns)
            return tf.data.Dataset.zip({"records": whole})
        sound = tf.data.Dataset.zip(tuple(column.ignore_errors() for column in columns))
        repeated = sound.enumerate().repeat().take(count).apply(counted).enumerate()
        return repeated.map(
            lambda row, found: {
                "records": found[1],
                "damaged": tf.where(found[0] == row, tf.constant(-1, tf.int64), number),
            }
        )

    def paths(self, shard: ShardInfo) -> list[str]:
        """The files of a shard: its audio and each label set."""
        labels = [str(folder / manifests.label_file(shard.file)) for folder in self.label_dirs]
        return [str(self.audio_dir / shard.file), *labels]

    @functools.cached_property
    def shards(self) -> dict[tuple[int, str], list[tuple[int, ShardInfo]]]:
        """The shards that this host reads and their numbers in the manifest, by (bucket, corpus).

        Hosts take turns in each, so that all of them have something of everything.
        """
        of_kind: dict[tuple[int, str], list[tuple[int, ShardInfo]]] = {}
        for number, shard in enumerate(self.manifest.shards):
            if shard.utterances:
                kind = of_kind.setdefault((shard.bucket_frames, shard.group), [])
                kind.append((number, shard))
        return {kind: held[self.host.index :: self.host.count] for kind, held in of_kind.items()}

    def refuse_damage(self, shard: ShardInfo) -> None:
        """Reads a shard and its labels to find what is wrong, which TensorFlow does not tell.

        Raises:
          InputError: names the file, and the record where that is known.
        """
        audio, *labels = self.paths(shard)
        ids = [utterance.id for utterance in records.read_shard(audio, shard.utterances)]
        for path in labels:
            found = records.read_label_shard(path, shard.utterances)
            for number, (expected, (name, _)) in enumerate(zip(ids, found, strict=True)):
                if name != expected:
                    raise InputError(
                        f"{path}, record {number}: labels of {name!r}, but the audio is of "
                        f"{expected!r}; run the label job on this audio again"
                    )


def _corpora(sampler: CorpusSampler, first_row: int, host: Host) -> tf.data.Dataset:
    """The corpus (its number in the bucket) of each of this host's rows from `first_row` on."""

    def corpora(row):
        rows = (row + tf.range(_ROWS_AT_ONCE, dtype=tf.int64)) * host.count + host.index
        places = (sampler.start + rows * sampler.STRIDE) % sampler.CYCLE
        found = tf.searchsorted(sampler.ends[:-1], places, side="right", out_type=tf.int64)
        return tf.data.Dataset.from_tensor_slices(found)

    return tf.data.Dataset.counter(first_row, _ROWS_AT_ONCE).flat_map(corpora)
