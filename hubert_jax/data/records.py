"""Records: what one utterance, and one utterance's labels, look like in a TFRecord shard."""

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from hubert_jax import storage
from hubert_jax.data import encoding, manifests
from hubert_jax.data.tensorflow import tf
from hubert_jax.errors import InputError
from hubert_jax.frames import SAMPLE_RATE

HEADER_BYTES, FOOTER_BYTES = 12, 4  # length (8) and its checksum; the record's checksum
FRAMING_BYTES = HEADER_BYTES + FOOTER_BYTES
REMEDY = "the shard is damaged or incomplete, run the job that wrote it again"
_TEXTS = frozenset({"id", "speaker", "text"})  # fields in UTF-8
_LONGEST = 2**30 - 2**20  # samples: a protocol buffer holds less than 2 GiB


@dataclasses.dataclass(frozen=True)
class Utterance:
    """One utterance."""

    id: str  # unique in its split
    audio: np.ndarray  # int16 (samples,), mono at 16 kHz; floats in [-1, 1] are not stored
    speaker: str = ""  # "" if unknown
    text: str = ""  # the transcript, "" if there is none


def serialize(utterance: Utterance, encoded: str = "pcm16") -> bytes:
    """An utterance as a record's bytes, its audio as one of `encoding.ENCODINGS`.

    A tf.train.Example {id, speaker, text: UTF-8 bytes; audio: bytes; num_samples: int64}. Raises
    InputError for more than 18.6 hours of audio, which no record holds.
    """
    audio = utterance.audio
    if audio.ndim != 1 or audio.dtype != np.int16:
        raise ValueError(
            f"{utterance.id}: expected int16 (samples,), found {audio.dtype} {audio.shape}"
        )
    if len(audio) > _LONGEST:
        found, most = (samples / SAMPLE_RATE / 3600 for samples in (len(audio), _LONGEST))
        raise InputError(
            f"{utterance.id}: an utterance of {found:.1f} hours; expected at most {most:.1f}: cut "
            "it (cut_seconds does, where there is no transcript)"
        )
    return _serialized(
        id=utterance.id.encode(),
        audio=encoding.encode(audio, encoded),
        num_samples=len(audio),
        speaker=utterance.speaker.encode(),
        text=utterance.text.encode(),
    )


class RecordWriter:
    """A TFRecord file being written; complete when its `with` block has ended well.

    Raises InputError if the file cannot be written, for example because the disk is full.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = storage.path(path)
        self.bytes = 0
        with self._named():
            self._writer = tf.io.TFRecordWriter(str(path))

    def write(self, record: bytes) -> int:
        """Appends a record; returns its length in the file."""
        with self._named():
            self._writer.write(record)
        length = FRAMING_BYTES + len(record)
        self.bytes += length
        return length

    def flush(self) -> None:
        """What was written can be read."""
        with self._named():
            self._writer.flush()

    def close(self) -> None:
        """Writes the rest."""
        with self._named():
            self._writer.close()

    def __enter__(self) -> "RecordWriter":
        return self

    def __exit__(self, kind: type | None, *error: object) -> None:
        with contextlib.nullcontext() if kind is None else contextlib.suppress(InputError):
            self.close()

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except tf.errors.OpError as error:
            raise InputError(
                f"{self.path}: cannot be written ({error.message.rpartition('; ')[2]})"
            ) from None


def index_row(record: bytes | memoryview) -> tuple[int, int, str, str, bool]:
    """What `index.ShardIndex.of` takes of an audio record, which comes without its framing.

    Raises ValueError for what is no audio record.
    """
    from google.protobuf.message import DecodeError

    # The audio is first, as fields are sorted, and nearly all: it is passed over, not copied.
    try:
        _, begin = _varint(record, 1)
        length, begin = _varint(record, begin + 1)
        features = tf.train.Features.FromString(bytes(record[begin + length :]))
    except (IndexError, DecodeError):
        raise ValueError("not an audio record") from None
    fields = _fields(features, ("id", "num_samples", "speaker", "text"))
    if fields is None:
        raise ValueError("not an audio record")
    names = fields["id"].decode(), fields["speaker"].decode()
    return FRAMING_BYTES + len(record), fields["num_samples"], *names, bool(fields["text"])


def _varint(content: bytes | memoryview, position: int) -> tuple[int, int]:
    """A protocol buffer's integer, 7 bits a byte, and where what follows begins."""
    value = shift = 0
    while True:
        byte = content[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position


def read_shard(path: str | os.PathLike, utterances: int | None = None) -> Iterator[Utterance]:
    """Utterances of an audio shard in order; `utterances` is how many it must hold, None: any.

    Raises InputError, naming shard and record (counted from 0), if the shard is missing or has
    another number of records, or if a record is cut off, damaged or not an utterance.
    """
    names = ("id", "audio", "num_samples", "speaker", "text")
    for number, fields in _read_examples(path, names, utterances):
        audio = encoding.decode(fields["audio"], fields["num_samples"])
        if audio is None:
            raise InputError(
                f"{path}, record {number}: {len(fields['audio'])} bytes of audio are not "
                f"{fields['num_samples']} samples; {REMEDY}"
            )
        yield Utterance(fields["id"], audio, fields["speaker"], fields["text"])


def read_audio(split_dir: str | os.PathLike) -> Iterator[Utterance]:
    """Utterances of a prepared split, shard by shard in the manifest's order.

    Raises as `manifests.read_manifest` and `read_shard`.
    """
    for shard in manifests.read_manifest(split_dir).shards:
        yield from read_shard(storage.path(split_dir, shard.file), shard.utterances)


def write_label_shard(path: str | os.PathLike, labels: Iterable[tuple[str, np.ndarray]]) -> None:
    """Writes (id, labels) pairs, in the order of the audio shard, as one label shard."""
    with RecordWriter(path) as writer:
        for name, values in labels:
            writer.write(label_record(name, np.asarray(values)))


def label_record(name: str, labels: np.ndarray) -> bytes:
    """An utterance's labels, integers (frames,) in [0, 65535], as a record's bytes.

    A tf.train.Example {id: UTF-8 bytes; labels: bytes, uint16 little-endian}.
    """
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(f"{name}: expected (frames,) integers, found {labels.dtype}")
    if labels.size and not 0 <= labels.min() <= labels.max() <= 0xFFFF:
        raise ValueError(f"{name}: labels outside 0 to 65535")
    return _serialized(id=name.encode(), labels=labels.astype("<u2").tobytes())


def read_label_shard(
    path: str | os.PathLike, utterances: int | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """(id, uint16 (frames,)) of a label shard in order; arguments and errors as `read_shard`."""
    for number, fields in _read_examples(path, ("id", "labels"), utterances):
        if len(fields["labels"]) % 2:
            raise InputError(f"{path}, record {number}: odd number of label bytes; {REMEDY}")
        yield fields["id"], np.frombuffer(fields["labels"], "<u2")


def read_labels(label_dir: str | os.PathLike) -> Iterator[tuple[str, np.ndarray]]:
    """(id, uint16 (frames,)) of a label set in the order of `read_audio`; raises likewise."""
    for shard in manifests.read_label_manifest(label_dir).shards:
        yield from read_label_shard(storage.path(label_dir, shard.file), shard.utterances)


def _serialized(**fields: bytes | int) -> bytes:
    """A tf.train.Example; deterministic, since equal input must give equal bytes."""
    features = {
        name: tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
        if isinstance(value, int)
        else tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        for name, value in fields.items()
    }
    example = tf.train.Example(features=tf.train.Features(feature=features))
    return example.SerializeToString(deterministic=True)


def _read_examples(
    path: str | os.PathLike, names: tuple[str, ...], expected: int | None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(record number, its fields) of a TFRecord file, checksums checked."""
    try:
        file = os.fspath(storage.path(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {REMEDY}") from None
    if not os.path.isfile(file):
        raise InputError(f"{path}: expected a shard, found no such file; {REMEDY}")
    records = iter(tf.data.TFRecordDataset(file).as_numpy_iterator())
    position = 0
    for number in itertools.count():
        try:
            record = next(records, None)
            # TensorFlow takes less than a record's header at the end for the end.
            damaged = record is None and position != os.path.getsize(file)
        except tf.errors.DataLossError:
            record, damaged = None, True
        except tf.errors.OpError as error:  # of the disk or the network
            reason = " ".join(str(error.message).split())[:200]
            raise InputError(
                f"{path}, record {number}: cannot be read ({reason}); {REMEDY}"
            ) from None
        if damaged:
            raise InputError(f"{path}, record {number}: cut off or damaged; {REMEDY}")
        if record is None:
            if expected not in (None, number):  # cut off between two records
                raise InputError(
                    f"{path}: {number} records, but {manifests.MANIFEST} says {expected}; {REMEDY}"
                )
            return
        position += FRAMING_BYTES + len(record)
        fields = parse(record, names)
        try:
            if fields is not None:
                fields |= {name: fields[name].decode() for name in _TEXTS & fields.keys()}
        except UnicodeDecodeError:
            fields = None
        if fields is None:
            raise InputError(
                f"{path}, record {number}: expected the fields {', '.join(names)}; {REMEDY}"
            )
        yield number, fields


def parse(record: bytes, names: tuple[str, ...]) -> dict[str, Any] | None:
    """The one value of each field; None if the record is not such an example."""
    from google.protobuf.message import DecodeError

    try:
        features = tf.train.Example.FromString(record).features
    except DecodeError:
        return None
    return _fields(features, names)


def _fields(features: Any, names: tuple[str, ...]) -> dict[str, Any] | None:
    """As `parse`, of a tf.train.Features."""
    fields = {}
    for name in names:
        kind = "int64_list" if name == "num_samples" else "bytes_list"
        values = getattr(features.feature[name], kind).value
        if len(values) != 1:
            return None
        fields[name] = values[0]
    return fields
