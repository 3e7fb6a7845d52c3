"""Batches by tf.data, indexed by step: batch s is a function of (seed, s, corpus, hosts) alone.

Nothing is replayed and nothing skipped by a restart, and no iterator state is saved: the rows
that steps 0 ... s - 1 used follow from the schedule, and `streams` begins behind them. A batch is
decoded as a whole, and of its audio only what the crops keep.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from hubert_jax import frames as frames_lib
from hubert_jax.data import encoding
from hubert_jax.data.manifests import AudioManifest, LabelManifest
from hubert_jax.data.schedule import BucketSchedule
from hubert_jax.data.streams import Host, Split
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
      on_damage: None: a damaged shard ends the batches. Otherwise it is told in one line, once a
        shard, and records from before the damage stand in for those after it.

    Yields:
      `waveform` (B, 320 T + 80) float32; `labels_i` (B, T) int32, one a label set; B is this
      host's share of the bucket's rows. A crop that starts at sample s starts at label
      round(s * rate / 16000).

    Raises:
      InputError: a damaged shard, with `on_damage` only one that is damaged from its start; or
        labels of another utterance than the audio's.
    """

    def decode(frames, element):
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
        return features | {name: element[name] for name in ("damaged",) if name in element}

    directories = tuple(label_set.directory for label_set in label_sets)
    split = Split(audio_dir, manifest, directories, host, skip_damaged=on_damage is not None)
    told = set()
    steps = _step_batches(split, schedule, seed, first_step, last_step, decode)
    with contextlib.closing(steps):
        for batch in steps:
            if on_damage is not None:
                for number in sorted({*batch.pop("damaged").tolist()} - told - {-1}):
                    told.add(number)
                    on_damage(_damage(split, number))
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
) -> Iterator[dict[str, np.ndarray]]:
    """Whole utterances, padded, with their transcripts: never cropped.

    Arguments are as of `pretraining_batches`.

    Yields:
      `waveform` (B, N) float32, zero in the padding; `num_samples` (B,) int32; `id` and `text`
      (B,) bytes. An utterance longer than the padding keeps `num_samples` = 0 and no audio: the
      caller gives it no weight.
    """

    def decode(frames, element):
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

    split = Split(audio_dir, manifest, (), host)
    yield from _step_batches(split, schedule, seed, first_step, last_step, decode)


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

    def moments(content):
        utterance = tf.cast(tf.io.decode_raw(content, tf.int16), tf.float32) * (1 / 32768)
        mean, variance = tf.nn.moments(utterance, [0])
        return mean, tf.math.rsqrt(variance + NORMALISATION_EPSILON)

    mean, scale = tf.map_fn(moments, content, fn_output_signature=(tf.float32, tf.float32))
    return (waveform - mean[:, None]) * scale[:, None]


def _window(labels: tf.Tensor, start: tf.Tensor, frames: tf.Tensor, rate_hz: int) -> tf.Tensor:
    """The labels (B, frames) int32 of crops from sample `start` (B,) on; `labels` are bytes (B,)"""
    step = rate_hz // 50
    first = tf.cast(tf.round(tf.cast(start, tf.float64) * rate_hz / SAMPLE_RATE), tf.int32)
    # Rounding up may pass the end by one label: the last one stands there twice.
    longer = tf.strings.join([labels, tf.strings.substr(labels, -2, 2)])
    count = (frames - 1) * step + 1
    window = tf.strings.substr(longer, 2 * first, tf.fill(tf.shape(first), 2 * count))
    values = tf.io.decode_raw(window, tf.uint16)[:, ::step]
    # Refuses utterances that have too few labels.
    return tf.cast(tf.reshape(values, [tf.size(first), frames]), tf.int32)


def _step_batches(split, schedule, seed, first_step, last_step, decode):
    """Decoded batches; `decode` gets the batch's frames and what `Split.rows` yields, batched."""
    host = split.host
    bucket_of_step = schedule.indices(last_step)[first_step:]
    streams = []
    for bucket, used in zip(schedule.buckets, schedule.rows_before(first_step), strict=True):
        if bucket.rows % host.count:
            raise InputError(
                f"batch of {bucket.rows} rows of {bucket.batch_frames} frames does not divide "
                f"over {host.count} hosts; change config.frames_per_step"
            )
        rows = split.rows(bucket, seed, used // host.count)
        # Endless, so there is no remainder: but buckets' batches must agree in their static shape.
        streams.append(rows.batch(bucket.rows // host.count, drop_remainder=False))
    frames = np.array([bucket.batch_frames for bucket in schedule.buckets], np.int32)
    undecoded = tf.data.Dataset.choose_from_datasets(
        streams,
        tf.data.Dataset.from_tensor_slices(bucket_of_step.astype(np.int64)),
        stop_on_empty_dataset=True,
    )
    lengths = tf.data.Dataset.from_tensor_slices(frames[bucket_of_step])
    batches = tf.data.Dataset.zip((lengths, undecoded)).map(
        decode, num_parallel_calls=_THREADS, deterministic=True
    )
    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False
    # By default small maps become parallel ones, which read records ahead of their turn.
    options.experimental_optimization.map_parallelization = False
    options.threading.private_threadpool_size = _THREADS
    # Sums over an utterance must not depend on how many cores divide them.
    options.threading.max_intra_op_parallelism = 1
    try:
        yield from batches.prefetch(1).with_options(options).as_numpy_iterator()
    except (
        tf.errors.DataLossError,
        tf.errors.FailedPreconditionError,
        tf.errors.InvalidArgumentError,
        tf.errors.NotFoundError,
    ) as error:
        for held in split.shards.values():
            for _, shard in held:
                split.refuse_damage(shard)
        reason = " ".join(str(error.message).split())
        raise InputError(
            f"{split.audio_dir}: reading a batch failed ({reason[:300]}); the audio or label "
            "shards are damaged or do not belong together: prepare and label them again"
        ) from None


def _damage(split: Split, number: int) -> str:
    """One line about a shard that could not be read to its end."""
    shard = split.manifest.shards[number]
    try:
        split.refuse_damage(shard)
    except InputError as error:
        return f"{error}; records before the damage stand in for the rest"
    return f"{split.paths(shard)[0]}: could not be read to its end just now, but can be again"
