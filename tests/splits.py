"""Fixtures: real speech prepared and labelled, and the networks that tests train on it."""

import dataclasses
import functools
import pathlib
import shutil

import numpy as np
import pytest
from flax import traverse_util

from hubert_jax import config as config_lib
from hubert_jax import files
from hubert_jax.convert import encoders
from hubert_jax.model.architecture import Architecture, Head

CORPUS = pathlib.Path(__file__).parents[1] / "examples" / "minilibri"
LONGEST = 7.2  # seconds
CLUSTERS = 12

_ARCHITECTURE = dict(
    conv_channels=(8,) * 7,
    dim=16,
    num_layers=2,
    ffn_dim=32,
    num_heads=2,
    positional_kernel=16,
    positional_groups=4,
)
_HEAD = dict(codebook_sizes=(CLUSTERS,), projection_dim=8)
# As BASE: dropout everywhere and LayerDrop, so that their randomness is tested too.
TINY_BASE = dict(architecture=_ARCHITECTURE, head=_HEAD, regularization=dict(layer_drop=0.2))
TINY_LARGE = dict(
    architecture=dict(_ARCHITECTURE, frontend_norm="layer", normalize_waveform=True, pre_norm=True),
    head=_HEAD,
    regularization=dict(
        dropout=0.0,
        attention_dropout=0.0,
        input_dropout=0.0,
        layer_drop=0.0,
        frontend_gradient_scale=1.0,
    ),
)


def write_shard(path, utterances, encoded="pcm16"):
    """Writes utterances as one audio shard; what a manifest says of it."""
    from hubert_jax.data import buckets, manifests, records

    utterances = list(utterances)
    with records.RecordWriter(path) as writer:
        for utterance in utterances:
            writer.write(records.serialize(utterance, encoded))
    samples = [len(utterance.audio) for utterance in utterances]
    frames = buckets.bucket_of(min(samples))
    digest = files.sha256_file(path)
    return manifests.ShardInfo(path.name, frames, len(samples), sum(samples), digest)


def write_label_shard(path, labels):
    """`records.write_label_shard`; what a manifest says of the shard."""
    from hubert_jax.data import manifests, records

    labels = list(labels)
    records.write_label_shard(path, labels)
    frames = sum(len(values) for _, values in labels)
    return manifests.LabelShardInfo(path.name, len(labels), frames, files.sha256_file(path))


def write_labels(audio_dir, label_dir, pairs, codebook, rate):
    """`units.labels.write_labels` of (id, labels) pairs in the order of the split."""
    from hubert_jax.data import manifests, records
    from hubert_jax.units import labels

    by_id = dict(pairs)

    def assigned(shards):
        for number, shard in enumerate(manifests.read_manifest(audio_dir).shards):
            if shards(number):
                for utterance in records.read_shard(pathlib.Path(audio_dir, shard.file)):
                    if utterance.id in by_id:
                        yield number, utterance.id, [by_id[utterance.id]]

    inventories = {pathlib.Path(label_dir): inventory_of(codebook)}
    return labels.write_labels(audio_dir, inventories, assigned, rate, version=0)[0]


def inventory_of(codebook):
    from hubert_jax.units.labels import Inventory

    return Inventory(len(codebook.centroids), codebook.feature, codebook.digest)


def random_parameters(
    architecture: Architecture, head: Head | None = None, vocabulary_size: int | None = None
) -> dict:
    """Parameters of a network that nobody trained, quicker than to initialise it."""
    random = np.random.default_rng(0)
    shapes = encoders.shapes(architecture, head, vocabulary_size)
    flat = {path: random.normal(0.0, 0.1, shape) for path, shape in shapes.items()}
    flat = {path: leaf.astype(np.float32) for path, leaf in flat.items()}
    return traverse_util.unflatten_dict(flat, sep="/")


def write_split(directory, split, utterances, rejected, shard_megabytes):
    """Writes utterances as a split's shards, in the order in which they come; its manifest.

    `rejected` are (file, reason) pairs; the other arguments are those of `assembly.assemble`.
    """
    from hubert_jax.corpus import assembly, parts

    numbered = (((0, number), utterance) for number, utterance in enumerate(utterances))
    path = directory / "part.tmp.tfrecord"
    try:
        part = parts.write(path, [parts.Item(split, numbered)], "pcm16")
        notes = dataclasses.replace(part.notes, rejected=tuple(rejected))
        part = dataclasses.replace(part, notes=notes)
        return assembly.assemble(directory, split, [part], shard_megabytes)
    finally:
        for suffix in (".tfrecord", ".npy", ".json"):
            path.with_suffix(suffix).unlink(missing_ok=True)


@pytest.fixture(scope="module")
def two_devices():
    """What would take all devices takes two of the eight: as sharded, compiled in less time."""
    import jax

    from hubert_jax.training import sharding

    make = sharding.make_mesh

    def of_few(config, devices=None):
        devices = devices or jax.devices()
        asked = abs(config.data) * config.fsdp * config.tensor  # -1: as many as there are
        few = max(asked, 2) if len(devices) == jax.device_count() else None
        return make(config, devices[:few])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", of_few)
        yield


def copy_shortest(source, target, count):
    """Copies a folder's `count` shortest utterances of the embedded corpus, with their text."""
    audio = sorted(source.rglob("*.opus"), key=lambda path: path.stat().st_size)[:count]
    for path in audio:
        folder = target / path.parent.relative_to(source)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
        transcripts = next(path.parent.glob("*.trans.txt"))
        lines = transcripts.read_text().splitlines()
        with (folder / transcripts.name).open("a") as file:
            file.writelines(f"{line}\n" for line in lines if line.startswith(path.stem))


@pytest.fixture(scope="session")
def short_corpus(tmp_path_factory) -> pathlib.Path:
    """Ten utterances to train on and three to develop on, the shortest of the embedded corpus."""
    root = tmp_path_factory.mktemp("corpus")
    copy_shortest(CORPUS / "train-clean-5", root / "train", 10)
    copy_shortest(CORPUS / "dev-mini", root / "dev-mini", 3)
    return root


@pytest.fixture(scope="session")
def speech_split(tmp_path_factory) -> pathlib.Path:
    """A split of 22 transcribed utterances of 4.1 to 7.1 s: buckets 128 and 256."""
    import soundfile

    from hubert_jax.corpus import audio_files, sources
    from hubert_jax.data.records import Utterance

    directory = tmp_path_factory.mktemp("speech") / "prepare" / "speech"
    directory.mkdir(parents=True)
    utterances = [
        Utterance(source.id, audio_files.read_waveform(source.path), source.speaker, source.text)
        for source in sources.discover(CORPUS / "train-clean-5")
        if soundfile.info(source.path).duration < LONGEST
    ]
    write_split(directory, "speech", utterances, [], shard_megabytes=1)
    return directory


@pytest.fixture(scope="session")
def speech_labels(speech_split) -> pathlib.Path:
    """MFCC units of `speech_split`, at 100 Hz."""
    from hubert_jax import label

    workdir = speech_split.parents[1]
    values = dict(workdir=str(workdir), audio=(str(speech_split),), num_clusters=CLUSTERS)
    values |= dict(kmeans=dict(n_init=1))
    label.run(config_lib.build(label.LabelConfig, values))
    return workdir / "label" / "speech"


@pytest.fixture(scope="session")
def held_out_split(tmp_path_factory) -> pathlib.Path:
    """A split of the utterances of `speech` here, with invented transcripts: bucket 128."""
    from hubert_jax.data.records import Utterance

    texts = (("SIX WORDS ", "AND SOME ", "MORE ")[: number % 3 + 1] for number in range(6))
    utterances = (
        Utterance(name, audio, text="".join(text).strip())
        for (name, audio), text in zip(_speech().items(), texts, strict=True)
    )
    directory = tmp_path_factory.mktemp("held_out") / "dev"
    directory.mkdir()
    write_split(directory, "dev", utterances, [], shard_megabytes=0.3)
    return directory


@pytest.fixture(scope="session")
def held_out_labels(held_out_split, speech_labels) -> pathlib.Path:
    """Units of `held_out_split`, drawn at random but of the codebook of `speech_labels`."""
    from hubert_jax.data import records
    from hubert_jax.frames import num_frames
    from hubert_jax.units.kmeans import Codebook

    random, directory = np.random.default_rng(0), held_out_split.with_name("labels")
    pairs = (
        (utterance.id, random.integers(CLUSTERS, size=num_frames(len(utterance.audio), 100)))
        for utterance in records.read_audio(held_out_split)
    )
    codebook = Codebook.load(speech_labels.parent)
    write_labels(held_out_split, directory, pairs, codebook, 100)
    return directory


@pytest.fixture(scope="session")
def speech():
    """{id: int16 (n,)}: the first seconds of two utterances of each development speaker."""
    return _speech()


@functools.cache
def _speech():
    import soundfile

    found = {}
    for speaker in sorted((CORPUS / "dev-mini").iterdir()):
        for path in sorted(speaker.glob("*/*.opus"))[:2]:
            # Lengths that differ, none a whole number of frames.
            stop = 4 * 16_000 - 1_003 * len(found)
            found[path.stem] = soundfile.read(path, stop=stop, dtype="int16")[0]
    assert len(found) == 6
    return found
