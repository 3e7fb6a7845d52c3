"""Batches by tf.data: batch s is a function of (seed, s, corpus) alone, without a replay."""

from __future__ import annotations  # TensorFlow's types are not looked at before it is used

import atexit
import contextlib
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Generator, Iterator
from typing import Any, ParamSpec

import numpy as np

from hubert_jax import frames as frames_lib
from hubert_jax.data import encoding
from hubert_jax.data.index import Index
from hubert_jax.data.manifests import AudioManifest, LabelManifest
from hubert_jax.data.order import BucketOrder
from hubert_jax.data.reading import RecordReader
from hubert_jax.data.schedule import Bucket, BucketSchedule, OnePass
from hubert_jax.data.tensorflow import tf
from hubert_jax.data.waveform import NORMALISATION_EPSILON
from hubert_jax.errors import InputError

_Given = ParamSpec("_Given")
_THREADS = min(os.cpu_count() or 1, 8)  # each holds a batch


@dataclasses.dataclass(frozen=True)
class Host:
    """This process among those that share the batches."""

    index: int = 0
    count: int = 1

    def rows(self, bucket: Bucket) -> np.ndarray:
        """Those of a batch's rows 0 ... bucket.rows - 1 that this process reads, int64 (B,).

        Raises InputError if the rows do not divide over the hosts.
        """
        if bucket.rows % self.count:
            raise InputError(
                f"batch of {bucket.rows} rows of {bucket.batch_frames} frames does not divide "
                f"over {self.count} hosts; change config.frames_per_step"
            )
        each = bucket.rows // self.count
        return np.arange(self.index * each, (self.index + 1) * each)


_ALONE = Host()


@dataclasses.dataclass(frozen=True)
class LabelSet:
    """One label directory and what it holds."""

    directory: pathlib.Path
    manifest: LabelManifest
    first_class: int = 0  # of the network, which stands for unit 0


def _after_import(
    batches: Callable[_Given, Generator[dict[str, np.ndarray]]],
) -> Callable[_Given, Generator[dict[str, np.ndarray]]]:
    """Imports TensorFlow in the call: its seconds are no part of the first batch's."""

    @functools.wraps(batches)
    def called(*args: _Given.args, **kwargs: _Given.kwargs) -> Generator[dict[str, np.ndarray]]:
        _ = tf.data
        return batches(*args, **kwargs)

    return called


@_after_import
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
    host: Host = _ALONE,
    on_damage: Callable[[str], None] | None = None,
) -> Generator[dict[str, np.ndarray]]:
    """This host's rows of crops and labels, for steps `first_step` ... `last_step` - 1.

    Yields `waveform` (B, 320 T + 80) float32 and, of each label set, `labels_i` (B, T) int32. A
    crop from sample s on has the labels from round(s * rate / 16000) on. `normalize_waveform` gives
    the whole utterance zero mean and unit variance, before the crop. Of `OnePass` also `record`
    (B,) int32, its number in the split, -1 in rows that count for nothing.

    Raises InputError for a damaged record, labels of another utterance or an index of another
    split. `on_damage` is told of damage instead, once a shard, where a sound record can stand in.
    """

    def decode(frames: tf.Tensor, element: dict[str, Any]) -> dict[str, tf.Tensor]:
        audio = tf.io.parse_example(element["records"][0], _features("id", "audio", "num_samples"))
        content, num_samples = _pcm16(audio, manifest.encoding)
        length = frames_lib.num_samples(frames)
        long = tf.debugging.assert_greater_equal(num_samples, length, "shorter than the crop")
        places = tf.cast(_checked(num_samples, long) - length + 1, tf.int64)
        start = tf.cast(tf.cast(element["draw"], tf.int64) % places, tf.int32)
        crops = tf.strings.substr(content, 2 * start, tf.fill(tf.shape(start), 2 * length))
        waveform = _waveform(tf.io.decode_raw(crops, tf.int16), content, normalize_waveform)
        features = {"waveform": waveform}
        for i, label_set in enumerate(label_sets):
            labels = tf.io.parse_example(element["records"][i + 1], _features("id", "labels"))
            ids = audio["id"], labels["id"]
            same = tf.debugging.assert_equal(*ids, "labels of another utterance")
            values = _checked(labels["labels"], same)
            units = _window(values, start, frames, label_set.manifest.rate_hz)
            features[f"labels_{i}"] = units + label_set.first_class
        return features | {"stood_in": element["stood_in"]}

    labels = [(label_set.directory, label_set.manifest) for label_set in label_sets]
    reader = RecordReader(audio_dir, manifest, labels, on_damage is not None)
    told: set[int] = set()
    with _closing(
        _step_batches(reader, manifest, schedule, host, seed, first_step, last_step, decode)
    ) as steps:
        for batch in steps:
            for number in sorted({*batch.pop("stood_in").tolist()} - told - {-1}):
                assert on_damage is not None  # or the record would have ended the batches
                told.add(number)
                on_damage(f"{reader.damaged[number]}; records before it stand in for it")
            yield batch


@_after_import
def finetuning_batches(
    audio_dir: pathlib.Path,
    manifest: AudioManifest,
    schedule: BucketSchedule,
    *,
    seed: int,
    first_step: int,
    last_step: int,
    normalize_waveform: bool,
    host: Host = _ALONE,
) -> Generator[dict[str, np.ndarray]]:
    """Whole utterances, padded, with their transcripts; as `pretraining_batches`.

    Yields `waveform` (B, N) float32, zero in the padding; `num_samples` (B,) int32; `id` and `text`
    (B,) bytes.
    """

    def decode(frames: tf.Tensor, element: dict[str, Any]) -> dict[str, tf.Tensor]:
        fields = _features("id", "audio", "num_samples", "text")
        audio = tf.io.parse_example(element["records"][0], fields)
        content, num_samples = _pcm16(audio, manifest.encoding)
        length = frames_lib.num_samples(frames)
        fits = tf.debugging.assert_less_equal(num_samples, length, "longer than its padding")
        padded = tf.io.decode_raw(_checked(content, fits), tf.int16, fixed_length=2 * length)
        waveform = _waveform(padded, content, normalize_waveform)
        return {
            "waveform": tf.where(tf.sequence_mask(num_samples, length), waveform, 0.0),
            "num_samples": num_samples,
            "id": audio["id"],
            "text": audio["text"],
        }

    reader = RecordReader(audio_dir, manifest)
    with _closing(
        _step_batches(reader, manifest, schedule, host, seed, first_step, last_step, decode)
    ) as steps:
        yield from steps


def _features(*names: str) -> dict[str, tf.io.FixedLenFeature]:
    """Fields of a record, for `tf.io.parse_example`; an audio record may be without a text."""
    kinds = {"num_samples": tf.int64}
    defaults = {"text": ""}
    return {
        name: tf.io.FixedLenFeature([], kinds.get(name, tf.string), defaults.get(name))
        for name in names
    }


def _pcm16(audio: dict[str, tf.Tensor], encoded: str) -> tuple[tf.Tensor, tf.Tensor]:
    """16-bit PCM of a batch's records, (B,) bytes, and its samples, (B,) int32."""
    content, num_samples = audio["audio"], tf.cast(audio["num_samples"], tf.int32)
    if encoded != "pcm16":  # TensorFlow has no decoder for FLAC
        content = tf.numpy_function(_decoded, [content, num_samples], tf.string)
        content = tf.ensure_shape(content, [None])
    complete = tf.debugging.assert_equal(
        tf.strings.length(content), 2 * num_samples, "audio of another length than its record says"
    )
    return _checked(content, complete), num_samples


def _checked(value: tf.Tensor, assertion: tf.Operation) -> tf.Tensor:
    with tf.control_dependencies([assertion]):
        return tf.identity(value)


def _decoded(contents: np.ndarray, num_samples: np.ndarray) -> np.ndarray:
    decoded = []
    for content, samples in zip(contents, num_samples, strict=True):
        audio = encoding.decode(content, int(samples))
        if audio is None:
            raise ValueError("audio that is neither PCM nor FLAC")
        decoded.append(audio.tobytes())
    return np.array(decoded, object)  # of bytes: NumPy's own strings drop zeros at their end


def _waveform(samples: tf.Tensor, content: tf.Tensor, normalize: bool) -> tf.Tensor:
    """(B, N) int16 as float32, normalised by the whole utterances (B,) that they are from."""
    waveform = tf.cast(samples, tf.float32) * (1 / 32768)
    if not normalize:
        return waveform

    def moments(content: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        utterance = tf.cast(tf.io.decode_raw(content, tf.int16), tf.float32) * (1 / 32768)
        mean, variance = tf.nn.moments(utterance, [0])
        return mean, tf.math.rsqrt(variance + NORMALISATION_EPSILON)

    mean, scale = tf.map_fn(moments, content, fn_output_signature=(tf.float32, tf.float32))
    return (waveform - mean[:, None]) * scale[:, None]


def _window(labels: tf.Tensor, start: tf.Tensor, frames: tf.Tensor, rate_hz: int) -> tf.Tensor:
    """Labels (B, frames) int32 of crops from sample `start` (B,) on; `labels` are bytes (B,)."""
    step = rate_hz // 50
    exact = tf.cast(start, tf.float64) * rate_hz / frames_lib.SAMPLE_RATE
    first = tf.cast(tf.round(exact), tf.int32)
    # Rounding up may pass the end by one label: the last one stands there twice.
    longer = tf.strings.join([labels, tf.strings.substr(labels, -2, 2)])
    count = (frames - 1) * step + 1
    window = tf.strings.substr(longer, 2 * first, tf.fill(tf.shape(first), 2 * count))
    values = tf.io.decode_raw(window, tf.uint16)[:, ::step]
    values = tf.reshape(values, [tf.size(first), frames])  # fails where labels are too few
    return tf.cast(values, tf.int32)


def _bucket_orders(
    manifest: AudioManifest, index: Index, schedule: BucketSchedule, seed: int
) -> list[BucketOrder]:
    orders = []
    for bucket in schedule.buckets:
        held: dict[str, list[range | np.ndarray]] = {}
        for number, shard in enumerate(manifest.shards):
            if len(records := bucket.records(index, number, shard)):
                held.setdefault(shard.group, []).append(records)
        if len(bucket.groups) < 2:
            corpora, weights = [sum(held.values(), [])], [1.0]
        else:
            corpora = [held[group.name] for group in bucket.groups]
            weights = [group.visits for group in bucket.groups]
        orders.append(BucketOrder(corpora, weights, bucket.frames, seed))
    return orders


@contextlib.contextmanager
def _closing(steps: Generator) -> Iterator[Generator]:
    """Closes `steps` after the block or at exit, where TensorFlow's threads would hang Python."""

    def close() -> None:
        with contextlib.suppress(ValueError):  # a thread is in it
            steps.close()

    atexit.register(close)
    unregister = atexit.unregister  # modules may be gone by then
    try:
        yield steps
    finally:
        unregister(close)
        steps.close()


def _step_batches(
    reader: RecordReader,
    manifest: AudioManifest,
    schedule: BucketSchedule,
    host: Host,
    seed: int,
    first_step: int,
    last_step: int,
    decode: Callable[[tf.Tensor, dict[str, Any]], dict[str, tf.Tensor]],
) -> Generator[dict[str, np.ndarray]]:
    """What `decode` gives for each step's frames and this host's rows.

    Of the rows it gets `records`, serialised (B,) for the audio and each label set; `draw`, (B,)
    uint32, each row's own random number; `stood_in`, (B,) int64 as from `RecordReader.read`.
    """
    once = schedule if isinstance(schedule, OnePass) else None
    orders = [] if once else _bucket_orders(manifest, reader.index, schedule, seed)
    bucket_of_step = schedule.indices(last_step)
    first_rows = schedule.first_rows(last_step)
    of_host = [host.rows(bucket) for bucket in schedule.buckets]
    frames = np.array([bucket.batch_frames for bucket in schedule.buckets], np.int32)
    kinds = [tf.int32, tf.int64, tf.int64] + [tf.string] * reader.columns
    held = [reader]  # TensorFlow keeps `read` for as long as the process lives
    refused: list[InputError] = []  # TensorFlow would only hand on its text

    def rows(step: int) -> np.ndarray:
        return first_rows[step] + of_host[bucket_of_step[step]]

    def numbers(step: int) -> np.ndarray:
        if once:
            return once.records(bucket_of_step[step], rows(step))
        return orders[bucket_of_step[step]].records(rows(step))

    def read(step: int) -> tuple:
        try:
            columns, stood_in = held[0].read(numbers(step))
        except InputError as error:
            refused.append(error)
            raise
        return frames[bucket_of_step[step]], rows(step), stood_in, *columns

    def element(step: tf.Tensor) -> tuple:
        length, row, stood_in, *columns = tf.numpy_function(read, [step], kinds, stateful=False)
        row, stood_in, *columns = (tf.ensure_shape(c, [None]) for c in (row, stood_in, *columns))
        return tf.ensure_shape(length, []), row, stood_in, tuple(columns)

    def decoded(
        length: tf.Tensor, row: tf.Tensor, stood_in: tf.Tensor, columns: tuple
    ) -> dict[str, tf.Tensor]:
        def draw(number: tf.Tensor) -> tf.Tensor:
            return tf.random.stateless_uniform([], [seed, number], None, None, tf.uint32)

        draws = tf.zeros_like(row, tf.uint32)
        if not once:
            draws = tf.map_fn(draw, row, fn_output_signature=tf.uint32)
        return decode(length, {"records": columns, "draw": draws, "stood_in": stood_in})

    batches = tf.data.Dataset.range(first_step, last_step).map(element)
    batches = batches.map(decoded, num_parallel_calls=_THREADS, deterministic=True)
    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False
    options.experimental_optimization.map_parallelization = False  # would read far ahead
    options.threading.private_threadpool_size = _THREADS
    options.threading.max_intra_op_parallelism = 1  # or sums would depend on the cores
    step = first_step
    try:
        for batch in batches.prefetch(1).with_options(options).as_numpy_iterator():
            if once:
                counts = rows(step) < once.buckets[bucket_of_step[step]].utterances
                batch["record"] = np.where(counts, numbers(step), -1).astype(np.int32)
            yield batch
            step += 1
    except tf.errors.OpError as error:
        if refused:
            raise refused[0] from None
        reader.refuse(numbers(step))
        reason = " ".join(str(error.message).split())
        raise InputError(
            f"{reader.directory}: reading a batch failed ({reason[:300]}); the audio or label "
            "shards are damaged or do not belong together: prepare and label them again"
        ) from None
    finally:
        held.clear()
