"""Batches by tf.data, indexed by step: batch s is a function of (seed, s, corpus, hosts) alone.

Nothing is replayed and nothing skipped by a restart, and no iterator state is saved: the rows
that steps 0 ... s - 1 used follow from the schedule, whole shards before them are skipped by
their counts. Records are shuffled undecoded, a window of them at a time.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from hubert_jax.data import encoding, records
from hubert_jax.data.manifests import AudioManifest, LabelManifest, ShardInfo
from hubert_jax.data.schedule import Bucket, BucketSchedule
from hubert_jax.data.shards import crop_samples
from hubert_jax.data.waveform import NORMALISATION_EPSILON, SAMPLE_RATE
from hubert_jax.errors import InputError

# TensorFlow reads and decodes; it must never take the accelerator's memory.
with contextlib.suppress(RuntimeError):
    tf.config.set_visible_devices([], "GPU")

_AUDIO_FEATURES = {
    "id": tf.io.FixedLenFeature([], tf.string),
    "audio": tf.io.FixedLenFeature([], tf.string),
    "num_samples": tf.io.FixedLenFeature([], tf.int64),
    "text": tf.io.FixedLenFeature([], tf.string, default_value=""),
}
_LABEL_FEATURES = {
    "id": tf.io.FixedLenFeature([], tf.string),
    "labels": tf.io.FixedLenFeature([], tf.string),
}
_WINDOW = 1024  # records shuffled together; never across a shard's end


@dataclasses.dataclass(frozen=True)
class Host:
    """This process among those that share the batches."""

    index: int = 0
    count: int = 1


@dataclasses.dataclass(frozen=True)
class LabelSet:
    """One label directory: where it is and what it holds."""

    directory: pathlib.Path
    manifest: LabelManifest


def pretraining_batches(
    audio_dir: pathlib.Path,
    manifest: AudioManifest,
    label_sets: list[LabelSet],
    schedule: BucketSchedule,
    *,
    seed: int,
    first_step: int,
    last_step: int,
    normalize_waveform: bool,
    host: Host = Host(),
) -> Iterator[dict[str, np.ndarray]]:
    """Crops of equal length and their labels, for steps `first_step` ... `last_step` - 1.

    Args:
      audio_dir, manifest: an audio split.
      label_sets: one or more label directories of this split.
      schedule: the bucket of every step.
      seed: of shuffling and crops.
      first_step, last_step: the range of steps.
      normalize_waveform: zero mean, unit variance over the whole utterance, before the crop.
      host: which rows are this process's.

    Yields:
      `waveform` (B, 320 T + 80) float32; `labels_i` (B, T) int32, one a label set; B is this
      host's share of the bucket's rows. A crop that starts at sample s starts at label
      round(s * rate / 16000).

    Raises:
      InputError: a damaged shard, or labels of another utterance than the audio's.
    """

    def decode(row, window, bucket):
        audio = tf.io.parse_single_example(window[0], _AUDIO_FEATURES)
        waveform = _waveform(audio, manifest.encoding, normalize_waveform)
        frames = bucket.batch_frames
        length = crop_samples(frames)
        start = tf.random.stateless_uniform(
            [], [seed, row], 0, tf.shape(waveform)[0] - length + 1, tf.int32
        )
        features = {"waveform": waveform[start : start + length]}
        for i, label_set in enumerate(label_sets):
            labels = tf.io.parse_single_example(window[i + 1], _LABEL_FEATURES)
            with tf.control_dependencies(
                [
                    tf.debugging.assert_equal(
                        audio["id"], labels["id"], "labels of another utterance"
                    )
                ]
            ):
                values = tf.cast(tf.io.decode_raw(labels["labels"], tf.uint16), tf.int32)
            rate = label_set.manifest.rate_hz
            first = tf.cast(tf.round(tf.cast(start, tf.float64) * rate / SAMPLE_RATE), tf.int32)
            # Rounding up may pass the end by one label.
            index = first + tf.range(frames) * (rate // 50)
            features[f"labels_{i}"] = tf.gather(values, tf.minimum(index, tf.shape(values)[0] - 1))
        return features

    directories = [label_set.directory for label_set in label_sets]
    yield from _step_batches(
        audio_dir, manifest, directories, schedule, seed, first_step, last_step, host, decode
    )


def finetuning_batches(
    audio_dir: pathlib.Path,
    manifest: AudioManifest,
    schedule: BucketSchedule,
    *,
    seed: int,
    first_step: int,
    last_step: int,
    normalize_waveform: bool,
    host: Host = Host(),
) -> Iterator[dict[str, np.ndarray]]:
    """Whole utterances, padded, with their transcripts: never cropped.

    Arguments are as of `pretraining_batches`.

    Yields:
      `waveform` (B, N) float32, zero in the padding; `num_samples` (B,) int32; `id` and `text`
      (B,) bytes. An utterance longer than the padding keeps `num_samples` = 0 and no audio: the
      caller gives it no weight.
    """

    def decode(row, window, bucket):
        audio = tf.io.parse_single_example(window[0], _AUDIO_FEATURES)
        waveform = _waveform(audio, manifest.encoding, normalize_waveform)
        length = crop_samples(bucket.batch_frames)
        waveform = waveform[: length * tf.cast(tf.shape(waveform)[0] <= length, tf.int32)]
        return {
            "waveform": tf.pad(waveform, [[0, length - tf.shape(waveform)[0]]]),
            "num_samples": tf.shape(waveform)[0],
            "id": audio["id"],
            "text": audio["text"],
        }

    yield from _step_batches(
        audio_dir, manifest, [], schedule, seed, first_step, last_step, host, decode
    )


def _waveform(record: dict[str, tf.Tensor], encoded: str, normalize: bool) -> tf.Tensor:
    if encoded == "pcm16":
        samples = tf.io.decode_raw(record["audio"], tf.int16)
    else:  # TensorFlow has no decoder for FLAC
        content = [record["audio"], record["num_samples"]]
        samples = tf.ensure_shape(tf.numpy_function(_decoded, content, tf.int16), [None])
    waveform = tf.cast(samples, tf.float32) / 32768.0
    if normalize:
        mean, variance = tf.nn.moments(waveform, [0])
        waveform = (waveform - mean) * tf.math.rsqrt(variance + NORMALISATION_EPSILON)
    return waveform


def _decoded(content: bytes, num_samples: np.ndarray) -> np.ndarray:
    audio = encoding.decode(content, int(num_samples))
    if audio is None:
        raise ValueError("audio that is neither PCM nor FLAC")
    return audio


def _step_batches(
    audio_dir, manifest, label_dirs, schedule, seed, first_step, last_step, host, decode
):
    bucket_of_step = schedule.indices(last_step)[first_step:]
    streams = []
    for bucket, used in zip(schedule.buckets, schedule.rows_before(first_step), strict=True):
        if bucket.rows % host.count:
            raise InputError(
                f"batch of {bucket.rows} rows of {bucket.batch_frames} frames does not divide "
                f"over {host.count} hosts; change config.frames_per_step"
            )
        rows = bucket.rows // host.count
        stream = _bucket_rows(
            audio_dir, manifest, label_dirs, bucket, seed, used // host.count, host, decode
        )
        streams.append(stream.batch(rows, drop_remainder=True))
    choice = tf.data.Dataset.from_tensor_slices(bucket_of_step.astype(np.int64))
    # Batches of different buckets differ in shape; relax what choose_from_datasets compares.
    relaxed = [_any_shape(stream) for stream in streams]
    batches = tf.data.Dataset.choose_from_datasets(relaxed, choice, stop_on_empty_dataset=True)
    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False
    options.threading.private_threadpool_size = 2
    batches = batches.prefetch(2).with_options(options)
    try:
        yield from batches.as_numpy_iterator()
    except (
        tf.errors.DataLossError,
        tf.errors.FailedPreconditionError,
        tf.errors.InvalidArgumentError,
        tf.errors.NotFoundError,
    ) as error:
        _name_damage(audio_dir, manifest, label_dirs, host)
        reason = " ".join(str(error.message).split())
        raise InputError(
            f"{audio_dir}: reading a batch failed ({reason[:300]}); the audio or label shards are "
            "damaged or do not belong together: prepare and label them again"
        ) from None


def _name_damage(
    audio_dir: pathlib.Path, manifest: AudioManifest, label_dirs: list[pathlib.Path], host: Host
) -> None:
    """Reads this host's shards until it finds what is wrong, which TensorFlow does not tell.

    Raises:
      InputError: names the shard, and the record where that is known.
    """
    for shard in _host_shards(manifest.shards, host):
        path = audio_dir / shard.file
        ids = [utterance.id for utterance in records.read_shard(path, shard.utterances)]
        for folder in label_dirs:
            path = folder / records.label_file(shard.file)
            labels = records.read_label_shard(path, shard.utterances)
            for number, (expected, (found, _)) in enumerate(zip(ids, labels, strict=True)):
                if found != expected:
                    raise InputError(
                        f"{path}, record {number}: labels of {found!r}, but the audio is of "
                        f"{expected!r}; run the label job on this audio again"
                    )


def _host_shards(shards: tuple[ShardInfo, ...], host: Host) -> list[ShardInfo]:
    """The shards that this host reads: every bucket's, in turn."""
    counts: dict[int, int] = {}
    mine = []
    for shard in shards:
        if shard.utterances:
            number = counts.get(shard.bucket_frames, 0)
            counts[shard.bucket_frames] = number + 1
            if number % host.count == host.index:
                mine.append(shard)
    return mine


def _any_shape(dataset: tf.data.Dataset) -> tf.data.Dataset:
    def relax(features):
        return {
            name: tf.ensure_shape(
                tf.raw_ops.PlaceholderWithDefault(input=value, shape=[None] * value.shape.rank),
                [None] * value.shape.rank,
            )
            for name, value in features.items()
        }

    return dataset.map(relax)


def _bucket_rows(
    audio_dir: pathlib.Path,
    manifest: AudioManifest,
    label_dirs: list[pathlib.Path],
    bucket: Bucket,
    seed: int,
    first_row: int,
    host: Host,
    decode,
) -> tf.data.Dataset:
    """This host's endless rows of a bucket, decoded, from row `first_row` on."""
    of_bucket = tuple(s for s in manifest.shards if s.bucket_frames == bucket.frames)
    shards = _host_shards(of_bucket, host)
    if not shards:
        raise InputError(
            f"{audio_dir}: bucket of {bucket.frames} frames has {len(of_bucket)} shards for "
            f"{host.count} hosts; prepare again with a smaller --config.shard_megabytes"
        )
    counts = np.array([shard.utterances for shard in shards])
    epoch, row = divmod(first_row, int(counts.sum()))
    stream_seed = seed * 1009 + bucket.frames

    def order(epoch):
        return tf.random.experimental.stateless_shuffle(
            tf.range(len(shards), dtype=tf.int64), [stream_seed, epoch]
        )

    ends = np.cumsum(counts[order(epoch).numpy()])
    whole = int(np.searchsorted(ends, row, side="right"))
    row -= int(ends[whole - 1]) if whole else 0

    files = [[str(audio_dir / shard.file) for shard in shards]]
    files += [
        [str(folder / records.label_file(shard.file)) for shard in shards] for folder in label_dirs
    ]
    table = tf.constant(files)  # (1 + label sets, shards)

    def shard_records(epoch, shard):
        # TensorFlow takes a file that was cut off between two records for a shorter one.
        columns = tuple(
            tf.data.TFRecordDataset(table[i, shard], buffer_size=1 << 20).apply(
                tf.data.experimental.assert_cardinality(tf.gather(counts, shard))
            )
            for i in range(len(files))
        )
        windows = tf.data.Dataset.zip(columns).batch(_WINDOW).enumerate()

        def shuffled(number, window):
            key = [stream_seed, epoch * 1_000_003 + shard * 1_009 + number]
            permutation = tf.random.experimental.stateless_shuffle(
                tf.range(tf.shape(window[0])[0]), key
            )
            return tf.data.Dataset.from_tensor_slices(
                tuple(tf.gather(column, permutation) for column in window)
            )

        return windows.flat_map(shuffled)

    shard_order = tf.data.Dataset.counter(epoch).flat_map(
        lambda epoch: tf.data.Dataset.from_tensor_slices(order(epoch)).map(
            lambda shard: (epoch, shard)
        )
    )
    rows = shard_order.skip(whole).flat_map(shard_records).skip(row)
    # Crops are drawn by the row's number over all hosts, so that no two hosts draw alike.
    numbered = rows.enumerate(first_row)

    def decoded(number, window):
        return decode(number * host.count + host.index, window, bucket)

    return numbered.map(decoded, num_parallel_calls=2, deterministic=True)
