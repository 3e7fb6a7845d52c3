"""Data sets that TensorFlow Datasets has prepared (`tfds build`); nothing is downloaded here."""

import dataclasses
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from hubert_jax import storage
from hubert_jax.corpus.audio_files import Samples
from hubert_jax.corpus.sources.transcripts import COLUMNS, utterance_of
from hubert_jax.corpus.sources.utterances import SourceUtterance
from hubert_jax.errors import InputError

PREFIX = "tfds:"
_cache = threading.local()  # this thread's place in the split that it reads


@dataclasses.dataclass(frozen=True)
class TfdsRow:
    """The audio of one example; examples are best read one after the other."""

    data_set: str
    data_dir: str
    split: str
    feature: str
    index: int

    def load(self) -> Samples:
        """The samples; raises InputError if the data set is damaged."""
        here = (self.data_set, self.data_dir, self.split, self.index)
        if getattr(_cache, "next", None) != here:
            builder = _builder(self.data_set, self.data_dir)
            _cache.examples = _examples(builder, f"{self.split}[{self.index}:]", [self.feature])
            _cache.rate = builder.info.features[self.feature].sample_rate
        _cache.next = None
        try:
            values = next(_cache.examples)[self.feature]
        except StopIteration:
            raise InputError(
                f"{PREFIX}{self.data_set}/{self.split}: no example {self.index}; the data set "
                "changed while it was read"
            ) from None
        _cache.next = (*here[:3], self.index + 1)
        return _samples(values, _cache.rate)


def discover(location: str, data_dir: str) -> list[SourceUtterance]:
    """The utterances of `tfds:NAME/CONFIG:VERSION/SPLIT`; ids are the feature `id` or the record's.

    `data_dir` is where it was prepared, "" where TensorFlow Datasets looks by default. Raises
    InputError if it is unknown or not prepared, or has no such split, no audio or no sample rate.
    """
    data_set, _, split = location.removeprefix(PREFIX).rpartition("/")
    if not data_set:
        raise InputError(f"{location}: expected {PREFIX}NAME/SPLIT")
    builder = _builder(data_set, data_dir)
    if not builder.info.splits:
        raise _not_prepared(builder)
    if split not in builder.info.splits:
        raise InputError(
            f"{location}: no split {split!r}; there are {', '.join(sorted(builder.info.splits))}"
        )
    feature = _audio_feature(location, builder.info.features)
    wanted = [
        name
        for name in COLUMNS
        if name in builder.info.features and builder.info.features[name].shape == ()
    ]
    utterances, folder = [], storage.path(builder.data_path)
    for index, values in enumerate(_examples(builder, split, wanted)):
        columns = {
            name: value.decode() if isinstance(value, bytes) else value
            for name, value in values.items()
        }
        name = str(columns.get("id") or columns["tfds_id"])
        row = TfdsRow(data_set, data_dir, split, feature, index)
        utterances.append(utterance_of(name, folder, "", columns, row))
    if not utterances:
        raise InputError(f"{location}: expected examples, found none")
    return utterances


def _builder(data_set: str, data_dir: str) -> Any:
    import tensorflow_datasets as tfds

    try:
        # From what was written: no code of the data set runs, and none has to be installed.
        return tfds.builder(data_set, data_dir=data_dir or None, try_gcs=False)
    except (tfds.core.registered.DatasetNotFoundError, ValueError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"{PREFIX}{data_set}: no such data set in {data_dir or 'the default folder'} "
            f"({reason[:200]})"
        ) from None


def _audio_feature(location: str, features: Any) -> str:
    import tensorflow_datasets as tfds

    for name, feature in features.items():
        if isinstance(feature, tfds.features.Audio):
            if not feature.sample_rate:
                raise InputError(f"{location}: its feature {name!r} does not say its sample rate")
            return name
    raise InputError(f"{location}: expected an audio feature, found {', '.join(features)}")


def _examples(builder: Any, split: str, features: list[str]) -> Iterator[dict]:
    """Examples of a split in their order, with only the named features and `tfds_id`."""
    import tensorflow_datasets as tfds

    from hubert_jax.data.tensorflow import tf

    config = tfds.ReadConfig(
        add_tfds_id=True, try_autocache=False, interleave_cycle_length=1, skip_prefetch=True
    )
    decoders = tfds.decode.PartialDecoding(dict.fromkeys(features, True))
    try:
        data_set = builder.as_dataset(split=split, read_config=config, decoders=decoders)
        yield from data_set.as_numpy_iterator()
    except AssertionError:
        raise _not_prepared(builder) from None
    except tf.errors.OpError as error:
        reason = " ".join(str(error.message).split())
        raise InputError(
            f"{PREFIX}{builder.info.full_name}: {split} cannot be read ({reason[:200]})"
        ) from None


def _not_prepared(builder: Any) -> InputError:
    return InputError(
        f"{PREFIX}{builder.info.full_name}: not prepared in {builder.data_path}; build it first: "
        f"tfds build {builder.name}"
    )


def _samples(values: np.ndarray, rate: int) -> Samples:
    """TensorFlow Datasets gives 16-bit audio as int64 (or int16), (n,) or (n, channels)."""
    if values.ndim == 1:
        values = values[:, None]
    if values.dtype.kind == "i":
        values = values.astype(np.float32) / 32768.0
    return Samples(values.astype(np.float32), rate)
