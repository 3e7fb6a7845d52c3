"""Every parser of files that others write: valid files to begin with, and how they are read."""

import dataclasses
import functools
import io
import json
import pathlib
import pickle
import struct
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import audio_fuzz

Files = dict[str, bytes]  # by name, of one input


@dataclasses.dataclass(frozen=True)
class Parser:
    """What is fuzzed."""

    seeds: Callable[[pathlib.Path], list[Files]]  # made below an empty folder
    read: Callable[[pathlib.Path], Any]  # the folder of an input
    unchanged: tuple[str, ...] = ()  # files that are left as they are
    bind: Callable[[Files], None] = lambda files: None  # makes digests anew, as somebody could


def _of(folder: pathlib.Path, *skipped: str) -> Files:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    named = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    return {name: content for name, content in named.items() if not name.startswith(skipped or "?")}


def _audio_seeds(folder: pathlib.Path) -> list[Files]:
    random = np.random.default_rng(0)
    kinds = [kind for kind in audio_fuzz.FORMATS if kind not in audio_fuzz.OF_FFMPEG]
    return [{"a.audio": audio_fuzz.coded(kind, random)[0]} for kind in kinds]


def _read_audio(folder: pathlib.Path) -> None:
    from hubert_jax.corpus.audio_files import read_waveform

    waveform = read_waveform(folder / "a.audio", convert=True)
    assert waveform.dtype == np.int16 and waveform.ndim == 1


@functools.cache
def _prepared() -> Files:
    """A split of six utterances, one in FLAC, and units of it, below `audio` and `labels`."""
    with tempfile.TemporaryDirectory() as folder:
        return _prepared_in(pathlib.Path(folder))


def _prepared_in(folder: pathlib.Path) -> Files:
    from hubert_jax import label, prepare
    from hubert_jax.units.clustering import KMeansConfig

    corpus = folder / "corpus" / "dev"
    corpus.mkdir(parents=True)
    random, lines = np.random.default_rng(0), []
    import soundfile

    for number in range(6):
        soundfile.write(corpus / f"{number}.wav", audio_fuzz.speech(random)[:40_000], 16_000)
        lines.append(f"{number}.wav\tWORDS OF {number}\n")
    (corpus / "transcripts.tsv").write_text("".join(lines))
    work = folder / "work"
    prepare.run(
        prepare.PrepareConfig(str(work), str(corpus.parent), ("dev",), encoding="flac", workers=1)
    )
    kmeans = KMeansConfig(n_init=1, max_iter=3)
    label.run(
        label.LabelConfig(str(work), (str(work / "prepare/dev"),), num_clusters=4, kmeans=kmeans)
    )
    audio, labels = _of(work / "prepare" / "dev"), _of(work / "label" / "dev")
    found = {f"audio/{name}": content for name, content in audio.items()}
    return found | {f"labels/{name}": content for name, content in labels.items()}


def _split_seeds(folder: pathlib.Path) -> list[Files]:
    return [_prepared()]


def _bind_split(files: Files) -> None:
    import hashlib

    for folder in ("audio", "labels"):
        try:
            manifest = json.loads(files[f"{folder}/manifest.json"])
            for shard in manifest["shards"]:
                content = files.get(f"{folder}/{shard['file']}")
                if content is not None:
                    shard["digest"] = hashlib.sha256(content).hexdigest()
            manifest["index"] = hashlib.sha256(files[f"{folder}/index.npz"]).hexdigest()
            digests = "".join(shard["digest"] for shard in manifest["shards"])
            manifest["digest"] = hashlib.sha256(digests.encode()).hexdigest()
            if folder == "labels":
                manifest["audio_digest"] = json.loads(files["audio/manifest.json"])["digest"]
            files[f"{folder}/manifest.json"] = json.dumps(manifest).encode()
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
            pass


def _read_split(folder: pathlib.Path) -> None:
    from hubert_jax.data import index, label_sets, manifests, preflight, records, schedule
    from hubert_jax.data.reading import RecordReader

    audio = manifests.read_manifest(folder / "audio")
    labels = manifests.read_label_manifest(folder / "labels")
    label_sets.check_labels(audio, labels)
    found = index.read_index(folder / "audio", audio)
    index.read_label_index(folder / "labels", labels)
    list(found.ids)
    list(RecordReader(folder / "audio", audio).transcripts())
    schedule.crop_buckets(audio, 10_000, 768, 1, 1)
    schedule.padded_buckets(audio, found, 10_000, (128, 256), 1, 1)
    list(records.read_audio(folder / "audio"))
    list(records.read_labels(folder / "labels"))
    preflight.inspect(folder / "audio", audio, [(folder / "labels", labels)], lambda seconds: None)


def _record_seeds(folder: pathlib.Path) -> list[Files]:
    shards = {name: content for name, content in _prepared().items() if ".tfrecord" in name}
    return [{name.rpartition("/")[2]: content} for name, content in shards.items()]


def _read_records(folder: pathlib.Path) -> None:
    from hubert_jax.data import records

    for path in folder.iterdir():
        read = records.read_label_shard if path.name.startswith("labels-") else records.read_shard
        for _ in read(path):
            pass


_TABLES = {
    "1-2.trans.txt": "1-2-0001 HE SAID\n1-2-0002 NOTHING AT ALL\n",
    "transcripts.tsv": "a/1.wav\the said\na/2.wav\tnothing\n",
    "metadata.jsonl": '{"file_name": "a.wav", "text": "he said", "speaker_id": 3, "split": "'
    'train"}\n'
    '{"file_name": "b.wav", "text": "nothing", "split": "train"}\n',
}
_MORE_TABLES = {
    "metadata.csv": [
        'file_name,sentence,split\na.wav,"he ""said""",train\nb.wav,nothing,train\n',
        "LJ001-0001|He said 2|He said two\nLJ001-0002|Nothing|Nothing\n",
    ],
    "transcripts.tsv": ["utterance\tspeaker\ttext\n1\tanna\the said\n2\tben\tnothing\n"],
}


def _table_seeds(folder: pathlib.Path) -> list[Files]:
    found = [{name: text.encode()} for name, text in _TABLES.items()]
    return found + [{n: text.encode()} for n, texts in _MORE_TABLES.items() for text in texts]


def _read_tables(folder: pathlib.Path) -> None:
    from hubert_jax.corpus.sources.transcripts import read_table

    for path in folder.iterdir():
        for split in ("", "train"):
            table = read_table(path, split)
            table.find(folder / "a.wav")


def _corpus_seeds(folder: pathlib.Path) -> list[Files]:
    import pyarrow
    import pyarrow.parquet

    audio = [{"bytes": b"RIFF", "path": f"{number}.wav"} for number in range(5)]
    table = pyarrow.table({"audio": audio, "text": list("abcde"), "id": list("vwxyz")})
    stream = io.BytesIO()
    pyarrow.parquet.write_table(table, stream, row_group_size=3)
    wav = {f"kept/a/{number}.wav": b"RIFF" for number in range(2)}
    clips = {f"clips/{number}.mp3": b"RIFF" for number in range(2)}
    voice = b"client_id\tpath\tsentence\tup_votes\nx\t0.mp3\tHe said.\t2\ny\t1.mp3\tNo\t2\n"
    fairseq = {"train.tsv": b"kept\na/0.wav\t16000\na/1.wav\t32000\n"}
    return [
        wav | {"kept/a/0.json": b'{"speaker": "14", "book_meta": {"title": "x"}}'},
        wav | fairseq | {"train.wrd": b"HE SAID\nNOTHING\n"},
        wav | fairseq | {"train.ltr": b"H E | S A I D |\nN O |\n"},
        wav | {"kept/metadata.csv": b"file_name,text\na/0.wav,one\na/1.wav,two\n"},
        {"tables/part.parquet": stream.getvalue()},
        clips | {"validated.tsv": voice},
    ]


def _read_corpus(folder: pathlib.Path) -> None:
    from hubert_jax.corpus import sources

    path = next(iter(folder.glob("*.tsv")), None) or next(folder.iterdir())
    for utterance in sources.discover(path):
        if utterance.row is not None:
            utterance.load()


def _alignment_seeds(folder: pathlib.Path) -> list[Files]:
    text = "1-2-3 0.00 0.25 SIL\n1-2-3 0.25 0.40 AH0\n1-2-3 0.40 1.00 T\na b 0 2 SIL\n"
    ctm = ";; phones\n1-2-3 A 0.25 0.15 AH0 0.9\n1-2-3 A 0.40 0.60 T\n"
    intervals = '"IntervalTier"\n"phones"\n0\n1\n2\n0\n0.4\n"AH0"\n0.4\n1\n""\n'
    grid = f'File type = "ooTextFile"\nObject class = "TextGrid"\n\n0\n1\n<exists>\n1\n{intervals}'
    return [
        {"a.txt": text.encode(), "a.ctm": ctm.encode(), "a/1-2-3.TextGrid": grid.encode(encoding)}
        for encoding in ("utf-8", "utf-16")
    ]


def _read_alignments(folder: pathlib.Path) -> None:
    from hubert_jax.quality import counts as counts_lib
    from hubert_jax.units import alignments

    for name in ("a.txt", "a.ctm", "a"):
        read = alignments.read_alignments(folder / name)
        found, _ = alignments.fitted(read, {"1-2-3": 16_000}, 0.0, name)
        counts = counts_lib.JointCounts(found, 2, 50)
        counts.add("1-2-3", 16_000, np.zeros(100, np.uint16), 100)
        counts_lib.score(counts)


def _codebook_seeds(folder: pathlib.Path) -> list[Files]:
    import joblib
    import sklearn.cluster

    random = np.random.default_rng(0)
    frames = random.normal(size=(60, 5)).astype(np.float32)
    found = []
    for kind in (sklearn.cluster.KMeans, sklearn.cluster.MiniBatchKMeans):
        model = kind(3, n_init=1, max_iter=2, random_state=0).fit(frames)
        found += [pickle.dumps(model, protocol) for protocol in (2, 4, 5)]
        for compress in (0, 3, ("bz2", 3), ("xz", 1)):
            joblib.dump(model, folder / "a", compress)
            found.append((folder / "a").read_bytes())
    centroids = model.cluster_centers_
    np.save(folder / "a.npy", centroids)
    found.append((folder / "a.npy").read_bytes())
    import safetensors.numpy

    found.append(safetensors.numpy.save({"centroids": centroids}))
    header = struct.pack("<4siqqq?iQ", b"IxF2", 5, 3, 1 << 20, 1 << 20, True, 1, 15)
    return [{"a": content} for content in [*found, header + centroids.tobytes()]]


def _read_codebook(folder: pathlib.Path) -> None:
    from hubert_jax.convert.centroids import read_centroids

    centroids, _ = read_centroids(folder / "a")
    assert centroids.dtype == np.float32 and np.isfinite(centroids).all()


def _own_codebook_seeds(folder: pathlib.Path) -> list[Files]:
    from hubert_jax.units.kmeans import Codebook

    centroids = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    Codebook(centroids, {"kind": "mfcc"}, 0.5, 0, 0, 60).save(folder)
    return [_of(folder)]


def _read_own_codebook(folder: pathlib.Path) -> None:
    from hubert_jax.units import kmeans

    codebook = kmeans.Codebook.load(folder)
    kmeans.assign(codebook, np.zeros((3, 5), np.float32))


def _network(kind: str) -> Any:
    from flax import traverse_util

    from hubert_jax.convert import encoders
    from hubert_jax.convert.network import Network
    from hubert_jax.model.architecture import Architecture, Head
    from hubert_jax.vocabulary import Vocabulary

    sizes = dict(conv_channels=(8,) * 7, dim=16, num_layers=2, ffn_dim=32, num_heads=2)
    architecture = Architecture(**sizes, positional_kernel=16, positional_groups=4)
    head = Head((6,), projection_dim=8) if kind == "pretraining" else None
    vocabulary = Vocabulary(tuple("|ABC")) if kind == "ctc" else None
    shapes = encoders.shapes(architecture, head, vocabulary and vocabulary.size)
    random = np.random.default_rng(0)
    flat = {path: random.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
    params = traverse_util.unflatten_dict(flat, sep="/")
    return Network(params, architecture, head, vocabulary=vocabulary)


def _hugging_face_seeds(folder: pathlib.Path) -> list[Files]:
    import torch

    from hubert_jax.convert import formats
    from hubert_jax.convert.safetensors_files import read_tensors

    found = []
    for kind in ("ctc", "pretraining", "encoder"):
        formats.write(f"hf:{folder / kind}", _network(kind))
        found.append(_of(folder / kind))
    tensors, _, _ = read_tensors(folder / "ctc" / "model.safetensors")
    content = io.BytesIO()
    torch.save({name: torch.from_numpy(tensor) for name, tensor in tensors.items()}, content)
    old = {name: value for name, value in found[0].items() if not name.endswith("safetensors")}
    return [*found, old | {"pytorch_model.bin": content.getvalue()}]


def _tokenizer_seeds(folder: pathlib.Path) -> list[Files]:
    from hubert_jax.convert import formats

    formats.write(f"hf:{folder / 'ctc'}", _network("ctc"))
    found = _of(folder / "ctc")
    tokens = json.loads(found["vocab.json"])
    last = max(tokens, key=tokens.__getitem__)
    added = {"added_tokens.json": json.dumps({last: tokens.pop(last)}).encode()}
    return [found, found | added | {"vocab.json": json.dumps(tokens).encode()}]


def _read_hugging_face(folder: pathlib.Path) -> None:
    from hubert_jax.convert import formats

    formats.read(f"hf:{folder}")


def _torch_seeds(folder: pathlib.Path) -> list[Files]:
    from hubert_jax.convert import formats

    found = []
    for kind in ("ctc", "pretraining"):
        for scheme in ("fairseq", "torchaudio"):
            where = folder / f"{scheme}-{kind}"
            where.mkdir()
            formats.write(f"{scheme}:{where / scheme}.pt", _network(kind))
            found.append(_of(where))
    return found


def _read_torch(folder: pathlib.Path) -> None:
    from hubert_jax.convert import formats

    for scheme in ("fairseq", "torchaudio"):
        if (folder / f"{scheme}.pt").is_file():
            formats.read(f"{scheme}:{folder / scheme}.pt")


def _checkpoint_seeds(folder: pathlib.Path) -> list[Files]:
    from hubert_jax.convert import formats

    formats.write(f"orbax:{folder / 'a'}", _network("ctc"))
    return [_of(folder / "a")]


def _read_checkpoint(folder: pathlib.Path) -> None:
    """What is read has to be what was written."""
    import jax

    from hubert_jax.convert import formats

    found, expected = formats.read(f"orbax:{folder}").params, _network("ctc").params
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)


_CONFIGURATION = b"""from ml_collections import ConfigDict
PARTS = ("train", "prepare")
def get_config(part, rate=5e-4):
    return ConfigDict(dict(workdir="runs/x", audio="a", labels=("b",),
        architecture=dict(dim=48, num_layers=2), optimizer=dict(peak_learning_rate=rate),
        loop=dict(steps=12, log_every=1, save_every=1)))
"""
_OVERRIDES = (
    b"--config.loop.steps=40\n--config.labels=a,b\n--config.optimizer.peak_learning_rate=1e-3\n"
    b"--config.execution.dtype=bfloat16\n--config.architecture.conv_kernels=(10,3,3,3,3,2,2)\n"
    b"--config.rate=1\n--noconfig.keep_head\n--config.seed\n7\n"
)


def _configuration_seeds(folder: pathlib.Path) -> list[Files]:
    return [{"a.py": _CONFIGURATION, "overrides": _OVERRIDES}, {"a.py": _CONFIGURATION}]


_LONGEST_ARGUMENT = 2**17 - 1  # that Linux passes to a process


def _read_configuration(folder: pathlib.Path) -> None:
    from hubert_jax import command_line
    from hubert_jax.tasks.pretraining import TrainConfig

    overrides = folder / "overrides"
    lines = overrides.read_text(errors="surrogateescape").split("\n") if overrides.exists() else []
    path = f"--config={folder / 'a.py'}"
    arguments = [line[:_LONGEST_ARGUMENT] for line in lines if line]
    command_line.read([path, *arguments], "train", TrainConfig)


PARSERS = {
    "audio": Parser(_audio_seeds, _read_audio),
    "splits": Parser(_split_seeds, _read_split, bind=_bind_split),
    "records": Parser(_record_seeds, _read_records),
    "transcripts": Parser(_table_seeds, _read_tables),
    "corpora": Parser(_corpus_seeds, _read_corpus),
    "alignments": Parser(_alignment_seeds, _read_alignments),
    "codebooks": Parser(_codebook_seeds, _read_codebook),
    "own_codebooks": Parser(_own_codebook_seeds, _read_own_codebook),
    "hugging_face": Parser(_hugging_face_seeds, _read_hugging_face),
    "tokenizers": Parser(
        _tokenizer_seeds, _read_hugging_face, unchanged=("model.safetensors", "config.json")
    ),
    "torch": Parser(_torch_seeds, _read_torch),
    "checkpoints": Parser(_checkpoint_seeds, _read_checkpoint),
    "configurations": Parser(_configuration_seeds, _read_configuration),
}
