"""Batches by tf.data, indexed by step: batch s is a function of (seed, s, corpus) alone.

Nothing is replayed and nothing skipped by a restart, and no iterator state is saved: which rows a
step has follows from the schedule, which records they are from `order`, and any record can be read.
Hosts only divide the rows among them. A batch is decoded as a whole, and of its audio only what the
crops keep.
"""

import atexit
import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from hubert_jax import frames as frames_lib
from hubert_jax.data import encoding
from hubert_jax.data.index import Index, read_index, read_label_index
from hubert_jax.data.manifests import AudioManifest, LabelManifest
from hubert_jax.data.order import BucketOrder
from hubert_jax.data.reading import RecordReader
from hubert_jax.data.schedule import Bucket, BucketSchedule
from hubert_jax.data.waveform import NORMALISATION_EPSILON
from hubert_jax.errors import InputError
from hubert_jax.frames import SAMPLE_RATE

# TensorFlow reads and decodes; it must never take the accelerator's memory.
with contextlib.suppress(RuntimeError):
    tf.config.set_visible_devices([], "GPU")

_AUDIO_FEATURES = {
    "id": tf.io.FixedLenFeature([], tf.string),
    "audio": tf.io.FixedLenFeature([], tf.string),
    "num_samples": tf.io.FixedLenFeature([], tf.int64),
}
_TEXT_FEATURE = {"text": tf.io.FixedLenFeature([], tf.string, default_value="")}
_LABEL_FEATURES = {
    "id": tf.io.FixedLenFeature([], tf.string),
    "labels": tf.io.FixedLenFeature([], tf.string),
}
_THREADS = 2


@dataclasses.dataclass(frozen=True)
class Host:
    """This process among those that share the batches."""

    index: int = 0
    count: int = 1

    def rows(self, bucket: Bucket) -> np.ndarray:
        """Those of a batch's rows 0 ... bucket.rows - 1 that this process reads, int64 (B,).

        Raises:
          InputError: the rows do not divide over the hosts.
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
    host: Host = _ALONE,
    on_damage: Callable[[str], None] | None = None,
) -> Generator[dict[str, np.ndarray]]:
    """Crops of equal length and their labels, for steps `first_step` ... `last_step` - 1.

    Args:
      audio_dir, manifest: an audio split.
      label_sets: one or more label directories of this split.
      schedule: the bucket of every step.
      seed: of shuffling and crops.
      first_step, last_step: the range of steps.
      normalize_waveform: zero mean, unit variance over the whole utterance, before the crop.
      host: which rows are this process's.
      on_damage: None: a damaged record ends the batches. Otherwise it is told in one line, once a
        shard, and records from before the damage stand in for those that are damaged.

    Yields:
      `waveform` (B, 320 T + 80) float32; `labels_i` (B, T) int32, one a label set; B is this
      host's share of the bucket's rows. A crop that starts at sample s starts at label
      round(s * rate / 16000).

    Raises:
      InputError: a damaged record, with `on_damage` only one with no sound record before it in its
        shard; labels of another utterance than the audio's; or an index that is not the split's.
    """

    def decode(frames: tf.Tensor, element: dict[str, Any]) -> dict[str, tf.Tensor]:
        audio = tf.io.parse_example(element["records"][0], _AUDIO_FEATURES)
        content, num_samples = _pcm16(audio, manifest.encoding)
        length = frames_lib.num_samples(frames)
        with tf.control_dependencies(
            [tf.debugging.assert_greater_equal(num_samples, length, "shorter than the crop")]
        ):
            places = tf.cast(num_samples - length + 1, tf.int64)
        start = tf.cast(tf.cast(element["draw"], tf.int64) % places, tf.int32)
        crops = tf.strings.substr(content, 2 * start, tf.fill(tf.shape(start), 2 * length))
        waveform = _waveform(tf.io.decode_raw(crops, tf.int16), content, normalize_waveform)
        features = {"waveform": waveform}
        for i, label_set in enumerate(label_sets):
            labels = tf.io.parse_example(element["records"][i + 1], _LABEL_FEATURES)
            with tf.control_dependencies(
                [
                    tf.debugging.assert_equal(
                        audio["id"], labels["id"], "labels of another utterance"
                    )
                ]
            ):
                values = tf.identity(labels["labels"])
            features[f"labels_{i}"] = _window(values, start, frames, label_set.manifest.rate_hz)
        return features | {"stood_in": element["stood_in"]}

    index = read_index(audio_dir, manifest)
    located = [
        (held.directory, read_label_index(held.directory, held.manifest)) for held in label_sets
    ]
    reader = RecordReader(audio_dir, manifest, index, located, on_damage is not None)
    told: set[int] = set()
    orders = _bucket_orders(manifest, index, schedule, seed)
    steps = _step_batches(reader, orders, schedule, host, seed, first_step, last_step, decode)
    with _closing(steps):
        for batch in steps:
            for number in sorted({*batch.pop("stood_in").tolist()} - told - {-1}):
                assert on_damage is not None  # or the record would have ended the batches
                told.add(number)
                on_damage(f"{reader.damaged[number]}; records before it stand in for it")
            yield batch


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
    """Whole utterances, padded, with their transcripts: never cropped.

    Arguments are as of `pretraining_batches`.

    Yields:
      `waveform` (B, N) float32, zero in the padding; `num_samples` (B,) int32; `id` and `text`
      (B,) bytes. An utterance longer than the padding keeps `num_samples` = 0 and no audio: the
      caller gives it no weight.
    """

    def decode(frames: tf.Tensor, element: dict[str, Any]) -> dict[str, tf.Tensor]:
        audio = tf.io.parse_example(element["records"][0], _AUDIO_FEATURES | _TEXT_FEATURE)
        content, num_samples = _pcm16(audio, manifest.encoding)
        length = frames_lib.num_samples(frames)
        fits = num_samples <= length
        content = tf.where(fits, content, "")
        num_samples = tf.where(fits, num_samples, 0)
        padded = tf.io.decode_raw(content, tf.int16, fixed_length=2 * length)
        waveform = _waveform(padded, content, normalize_waveform)
        return {
            "waveform": tf.where(tf.sequence_mask(num_samples, length), waveform, 0.0),
            "num_samples": num_samples,
            "id": audio["id"],
            "text": audio["text"],
        }

    index = read_index(audio_dir, manifest)
    reader = RecordReader(audio_dir, manifest, index)
    orders = _bucket_orders(manifest, index, schedule, seed)
    steps = _step_batches(reader, orders, schedule, host, seed, first_step, last_step, decode)
    with _closing(steps):
        yield from steps


def _pcm16(audio: dict[str, tf.Tensor], encoded: str) -> tuple[tf.Tensor, tf.Tensor]:
    """16-bit PCM of a batch's records, (B,) bytes, and its samples, (B,) int32."""
    content, num_samples = audio["audio"], tf.cast(audio["num_samples"], tf.int32)
    if encoded != "pcm16":  # TensorFlow has no decoder for FLAC
        content = tf.numpy_function(_decoded, [content, num_samples], tf.string)
        content = tf.ensure_shape(content, [None])
    complete = tf.debugging.assert_equal(
        tf.strings.length(content), 2 * num_samples, "audio of another length than its record says"
    )
    with tf.control_dependencies([complete]):
        return tf.identity(content), num_samples


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
    first = tf.cast(tf.round(tf.cast(start, tf.float64) * rate_hz / SAMPLE_RATE), tf.int32)
    # Rounding up may pass the end by one label: the last one stands there twice.
    longer = tf.strings.join([labels, tf.strings.substr(labels, -2, 2)])
    count = (frames - 1) * step + 1
    window = tf.strings.substr(longer, 2 * first, tf.fill(tf.shape(first), 2 * count))
    values = tf.io.decode_raw(window, tf.uint16)[:, ::step]
    # Refuses utterances that have too few labels.
    return tf.cast(tf.reshape(values, [tf.size(first), frames]), tf.int32)


def _bucket_orders(
    manifest: AudioManifest, index: Index, schedule: BucketSchedule, seed: int
) -> list[BucketOrder]:
    """The order of the rows of each of the schedule's buckets."""
    shards: dict[tuple[int, str], list[range]] = {}
    for number, shard in enumerate(manifest.shards):
        if shard.utterances:
            shards.setdefault((shard.bucket_frames, shard.group), []).append(index.shard(number))
    orders = []
    for bucket in schedule.buckets:
        held = [of_kind for (frames, _), of_kind in shards.items() if frames == bucket.frames]
        if len(bucket.groups) < 2:
            corpora, weights = [sum(held, [])], [1.0]
        else:
            corpora = [shards[bucket.frames, group.name] for group in bucket.groups]
            weights = [group.visits for group in bucket.groups]
        orders.append(BucketOrder(corpora, weights, bucket.frames, seed))
    return orders


@contextlib.contextmanager
def _closing(steps: Generator) -> Iterator[None]:
    """Closes `steps` at the end of the block, or of the process if that comes first.

    A thread of TensorFlow's that calls into Python would keep the interpreter from ending.
    """

    def close() -> None:
        with contextlib.suppress(ValueError):  # a thread is in it
            steps.close()

    atexit.register(close)
    unregister = atexit.unregister  # modules may be gone by then
    try:
        yield
    finally:
        unregister(close)
        steps.close()


def _step_batches(
    reader: RecordReader,
    orders: list[BucketOrder],
    schedule: BucketSchedule,
    host: Host,
    seed: int,
    first_step: int,
    last_step: int,
    decode: Callable[[tf.Tensor, dict[str, Any]], dict[str, tf.Tensor]],
) -> Generator[dict[str, np.ndarray]]:
    """This host's rows of the batches of steps `first_step` ... `last_step` - 1.

    `decode` gets the batch's frames, and a dictionary: `records`, of the audio and each label set
    (B,) serialised; `draw`, (B,) uint32, a random number of each row's own, for its crop;
    `stood_in`, (B,) int64 as of `RecordReader.read`.
    """
    bucket_of_step = schedule.indices(last_step)
    first_rows = schedule.first_rows(last_step)
    of_host = [host.rows(bucket) for bucket in schedule.buckets]
    frames = np.array([bucket.batch_frames for bucket in schedule.buckets], np.int32)
    strings = [tf.string] * reader.columns
    held = [reader]  # TensorFlow keeps `read` for as long as the process lives
    refused: list[InputError] = []  # TensorFlow would only hand on its text

    def rows(step: int) -> np.ndarray:
        return first_rows[step] + of_host[bucket_of_step[step]]

    def numbers(step: int) -> np.ndarray:
        return orders[bucket_of_step[step]].records(rows(step))

    def read(step: int) -> tuple:
        try:
            columns, stood_in = held[0].read(numbers(step))
        except InputError as error:
            refused.append(error)
            raise
        return frames[bucket_of_step[step]], rows(step), stood_in, *columns

    def element(step: tf.Tensor) -> tuple:
        kinds = [tf.int32, tf.int64, tf.int64, *strings]
        length, row, stood_in, *columns = tf.numpy_function(read, [step], kinds, stateful=False)
        row, stood_in, *columns = (tf.ensure_shape(c, [None]) for c in (row, stood_in, *columns))
        return tf.ensure_shape(length, []), row, stood_in, tuple(columns)

    def decoded(
        length: tf.Tensor, row: tf.Tensor, stood_in: tf.Tensor, columns: tuple
    ) -> dict[str, tf.Tensor]:
        def draw(number: tf.Tensor) -> tf.Tensor:
            # By the row's number in its bucket, so that no two rows draw alike.
            return tf.random.stateless_uniform([], [seed, number], None, None, tf.uint32)

        draws = tf.map_fn(draw, row, fn_output_signature=tf.uint32)
        return decode(length, {"records": columns, "draw": draws, "stood_in": stood_in})

    batches = tf.data.Dataset.range(first_step, last_step).map(element)
    batches = batches.map(decoded, num_parallel_calls=_THREADS, deterministic=True)
    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False
    # By default small maps become parallel ones, which read records ahead of their turn.
    options.experimental_optimization.map_parallelization = False
    options.threading.private_threadpool_size = _THREADS
    # Sums over an utterance must not depend on how many cores divide them.
    options.threading.max_intra_op_parallelism = 1
    step = first_step
    try:
        for batch in batches.prefetch(1).with_options(options).as_numpy_iterator():
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
