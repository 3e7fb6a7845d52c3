"""Audio in shards as 16-bit PCM or as FLAC: size, and the speed with which batches decode it.

    python -m benchmarks.audio_encodings

Both decode the same utterances of the embedded corpus, from serialised records in memory, to
float32 waveforms in a tf.data pipeline of one thread, as training does; FLAC has to leave
TensorFlow for libsndfile. Pairs are interleaved. The ratio is PCM's speed over FLAC's.
"""

import json
import pathlib
import statistics
import time

import numpy as np
import tensorflow as tf

from hubert_jax.corpus.audio_files import read_waveform
from hubert_jax.corpus.sources import discover
from hubert_jax.data import encoding, records
from hubert_jax.data.records import Utterance

CORPUS = pathlib.Path(__file__).parents[1] / "examples" / "minilibri" / "train-clean-5"
UTTERANCES = 60
PAIRS = 7
GOAL = 2.0  # below it, FLAC's smaller size would be worth its time

_FEATURES = {
    "audio": tf.io.FixedLenFeature([], tf.string),
    "num_samples": tf.io.FixedLenFeature([], tf.int64),
}


def _pcm16(parsed: dict) -> tf.Tensor:
    return tf.io.decode_raw(parsed["audio"], tf.int16)


def _flac(parsed: dict) -> tf.Tensor:
    def decode(content, num_samples):
        return encoding.decode(content, int(num_samples))

    return tf.numpy_function(decode, [parsed["audio"], parsed["num_samples"]], tf.int16)


def _seconds(serialised: list[bytes], decode) -> tuple[float, int]:
    """Time of one pass, and the samples that it gave."""

    def waveform(record):
        parsed = tf.io.parse_single_example(record, _FEATURES)
        return tf.cast(decode(parsed), tf.float32) / 32768.0

    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    data_set = tf.data.Dataset.from_tensor_slices(serialised).map(waveform, num_parallel_calls=1)
    started = time.perf_counter()
    samples = sum(len(found) for found in data_set.with_options(options).as_numpy_iterator())
    return time.perf_counter() - started, samples


def main() -> None:
    """Prints the table and the ratio."""
    utterances = [
        Utterance(source.id, read_waveform(source.path), source.speaker, source.text or "")
        for source in discover(CORPUS)[:UTTERANCES]
    ]
    samples = sum(len(utterance.audio) for utterance in utterances)
    serialised, encode_seconds = {}, {}
    for encoded in encoding.ENCODINGS:
        started = time.process_time()
        serialised[encoded] = [records.serialize(utterance, encoded) for utterance in utterances]
        encode_seconds[encoded] = time.process_time() - started
    decoders = {"pcm16": _pcm16, "flac": _flac}
    times: dict[str, list[float]] = {encoded: [] for encoded in decoders}
    for _ in range(PAIRS + 1):  # the first pass compiles
        for encoded, decode in decoders.items():
            seconds, found = _seconds(serialised[encoded], decode)
            assert found == samples
            times[encoded].append(seconds)
    audio_seconds = samples / 16_000
    print(f"{UTTERANCES} utterances, {audio_seconds:.0f} s of audio, medians of {PAIRS} passes")
    print("encoding   bytes/second   encoding x real time   decoding x real time")
    for encoded in encoding.ENCODINGS:
        size = sum(map(len, serialised[encoded])) / audio_seconds
        speed = audio_seconds / statistics.median(times[encoded][1:])
        print(
            f"{encoded:8}   {size:12,.0f}   {audio_seconds / encode_seconds[encoded]:20,.0f}   "
            f"{speed:20,.0f}"
        )
    ratios = np.array(times["flac"][1:]) / np.array(times["pcm16"][1:])
    ratio = statistics.median(times["flac"][1:]) / statistics.median(times["pcm16"][1:])
    figures = {"ratio": ratio, "low": ratios.min(), "high": ratios.max()}
    figures = {name: round(float(value), 2) for name, value in figures.items()}
    print(
        json.dumps({"benchmark": "audio_encodings", **figures, "goal": GOAL, "met": ratio >= GOAL})
    )


if __name__ == "__main__":
    main()
