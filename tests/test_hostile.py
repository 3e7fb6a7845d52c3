"""Files that somebody made to do harm: refused in one line, within bounds, nothing else touched."""

import io
import json
import os
import pathlib
import zipfile

import numpy as np
import pytest
import soundfile
import splits

from benchmarks import fuzz
from hubert_jax import command_line, files, job
from hubert_jax.corpus import audio_files, sources
from hubert_jax.data import index, manifests, records
from hubert_jax.errors import InputError, printable
from hubert_jax.stages import content
from hubert_jax.tasks.pretraining import TrainConfig
from hubert_jax.units.kmeans import Codebook


@pytest.fixture
def split(tmp_path) -> pathlib.Path:
    """Three utterances."""
    audio = np.full(20_000, 7, np.int16)
    utterances = [records.Utterance(f"id-{n}", audio, "", "WORDS") for n in range(3)]
    (tmp_path / "split").mkdir()
    splits.write_split(tmp_path / "split", "some", utterances, [], 0.2)
    return tmp_path / "split"


def _edit(folder: pathlib.Path, /, **values) -> None:
    path = folder / manifests.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("name", ["/x", "../x", "..", ".", "", "a/b", "a\\b", "a\0b"])
def test_a_split_has_a_plain_name(split, name):
    _edit(split, split=name)
    with pytest.raises(InputError, match="split: found .*expected a plain name; run"):
        manifests.read_manifest(split)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("utterances", value) for value in (-1, 2**70, 4)),
        *(("seconds", value) for value in (float("nan"), float("inf"), -1.0)),
        *(("speakers", -1), ("transcribed", 2**53), ("rejected", -3), ("sample_rate", -1)),
    ],
)
def test_counts_of_a_manifest_are_counts(split, field, value):
    _edit(split, **{field: value})
    with pytest.raises(
        InputError, match="manifest.json.*(run hubert_jax.prepare again|a finite number, found)"
    ):
        manifests.read_manifest(split)


def test_names_in_records_are_text(tmp_path):
    content = records.label_record("name", np.zeros(3, np.uint16)).replace(b"name", b"na\xffe")
    with records.RecordWriter(tmp_path / "labels-0") as writer:
        writer.write(content)
    with pytest.raises(InputError, match="labels-0, record 0: expected the fields id, labels"):
        list(records.read_label_shard(tmp_path / "labels-0"))


def test_a_shard_outside_the_split_is_refused(split):
    shards = json.loads((split / manifests.MANIFEST).read_text())["shards"]
    outside = files.sha256_file(split / shards[0]["file"])
    (split / shards[0]["file"]).rename(split.parent / "x.tfrecord")
    for name in ("../x.tfrecord", str(split.parent / "x.tfrecord")):
        _edit(split, shards=[shards[0] | {"file": name, "digest": outside}])
        with pytest.raises(InputError, match="listed in the audio manifest but not there"):
            manifests.read_manifest(split)


def test_an_index_claims_no_more_than_it_holds(split):
    path = split / index.INDEX
    with zipfile.ZipFile(path) as archive:
        columns = {name: archive.read(name) for name in archive.namelist()}
    lengths, ids = columns["lengths.npy"], columns["ids.npy"]
    header = lengths.replace(b"(3,)", b"(9999999999,)").replace(b" " * 9 + b"\n", b"\n")
    other = {
        "one more": {"lengths.npy": lengths + bytes(4)},
        "cut": {"samples.npy": columns["samples.npy"][:-1]},
        "none": {"lengths.npy": b""},
        "no ids": {"ids.npy": ids[:128]},
        "ids without ends": {"ids.npy": ids.replace(b"\0id", b"xid")},
        "not UTF-8": {"ids.npy": ids.replace(b"id-1", b"id\xff1")},
        "a header of billions": {"lengths.npy": header},
    }
    read = []
    for what, changed in other.items():
        with zipfile.ZipFile(path, "w") as archive:
            for name, column in (columns | changed).items():
                archive.writestr(name, column)
        _edit(split, index=files.sha256_file(path))
        try:
            list(index.read_index(split, manifests.read_manifest(split)).ids)
        except InputError as error:
            assert str(path) in str(error) and "run the job that wrote it again" in str(error)
        else:
            read.append(what)
    assert read == ["not UTF-8", "a header of billions"]  # the content itself was as it should
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("lengths.npy", bytes(10**6))
    _edit(split, index=files.sha256_file(path))
    with pytest.raises(InputError, match="it is compressed"):
        index.read_index(split, manifests.read_manifest(split))


def test_hours_of_silence_in_a_small_file(tmp_path):
    """What is in memory at once is bounded; a recording that is cut is not."""
    path = tmp_path / "a.flac"
    with soundfile.SoundFile(path, "w", 16_000, 1, "PCM_16") as file:
        for _ in range(4):
            file.write(np.zeros(16_000 * 2000, np.int16))
    assert path.stat().st_size < 1_000_000
    with pytest.raises(InputError, match="a.flac: an utterance of more than 2 hours; cut it"):
        audio_files.read_waveform(path)
    assert sum(map(len, audio_files.waveform_blocks(path))) == 4 * 16_000 * 2000


def test_a_list_of_fairseq_names_files_below_its_folder(tmp_path):
    (tmp_path / "audio").mkdir()
    (tmp_path / "x.tsv").write_text("a" * 9000 + "\na.wav\t16000\n")
    with pytest.raises(InputError, match="x.tsv, line 1: expected the folder"):
        sources.discover(tmp_path / "x.tsv")
    for name in ("../secret.wav", "/etc/passwd", "a/../../secret.wav", "", "..", "."):
        (tmp_path / "x.tsv").write_text(f"audio\na.wav\t16000\n{name}\t16000\n")
        with pytest.raises(InputError, match=r"x.tsv, line 3: expected a path below the folder"):
            sources.discover(tmp_path / "x.tsv")


def test_nested_json(tmp_path):
    deep = "[" * 100_000 + "]" * 100_000
    (tmp_path / "a.json").write_text(deep)
    with pytest.raises(InputError, match="a.json: manifest is not valid JSON .*recursion"):
        files.read_json(tmp_path / "a.json", "manifest")
    folder = tmp_path / "corpus"
    folder.mkdir()
    soundfile.write(folder / "a.wav", np.zeros(8000, np.int16), 16_000)
    (folder / "a.json").write_text(deep)  # merely lies beside the audio
    assert [utterance.speaker for utterance in sources.discover(folder)] == [""]
    (folder / "metadata.jsonl").write_text(f'{{"file_name": "a.wav", "text": {deep}}}\n')
    with pytest.raises(InputError, match="metadata.jsonl, line 1: not JSON"):
        sources.discover(folder)


def test_folders_in_folders(tmp_path):
    deep = tmp_path / "deep"
    pathlib.Path(deep, *["d"] * 150).mkdir(parents=True)
    doubled = tmp_path / "doubled"
    doubled.mkdir()
    for level in range(20):
        (doubled / f"{level}").mkdir()
        for link in "ab":
            (doubled / f"{level}" / link).symlink_to(doubled / f"{level + 1}")
    for top, why in ((deep, "in 100 other folders"), (doubled, "reached by more than 16 links")):
        for read in (sources.discover, content.ContentDigests(tmp_path / "known").of):
            with pytest.raises(InputError, match=why):
                read(top)


@pytest.mark.parametrize(
    "centroids",
    [
        *(np.zeros(shape, np.float32) for shape in ((0, 3), (3,), ())),
        *(np.zeros((2, 3), kind) for kind in ("float64", "int8", "S4")),
        *(np.full((2, 3), value, np.float32) for value in (np.nan, np.inf)),
        None,  # a header that claims 2^44 of them
    ],
)
def test_codebooks(tmp_path, centroids):
    Codebook(np.ones((2, 3), np.float32), {"kind": "mfcc"}, 0.5, 0, 0, 60).save(tmp_path)
    stream = io.BytesIO()
    np.save(stream, np.ones((2, 3), np.float32) if centroids is None else centroids)
    saved = stream.getvalue()
    if centroids is None:
        saved = saved.replace(b"(2, 3), }" + b" " * 20, b"(17592186044416, 1), }" + b" " * 7)
    with zipfile.ZipFile(tmp_path / "codebook.npz", "w") as archive:
        archive.writestr("centroids.npy", saved)
    with pytest.raises(InputError, match="codebook.npz: not a codebook .*run the label job again"):
        Codebook.load(tmp_path)


def test_a_codebook_without_its_digest(tmp_path):
    Codebook(np.ones((2, 3), np.float32), {"kind": "mfcc"}, 0.5, 0, 0, 60).save(tmp_path)
    (tmp_path / "codebook.json").write_text('{"format": 1, "feature": {"kind": "mfcc"}}')
    with pytest.raises(InputError, match="codebook"):
        Codebook.load(tmp_path)


def test_what_a_terminal_would_obey_is_shown(tmp_path, capsys):
    name = "red\x1b[31m  two\u202espaces\x07.wav"
    soundfile.write(tmp_path / "a.wav", np.zeros(8000, np.int16), 16_000)
    (tmp_path / "a.wav").rename(tmp_path / name)
    (utterance,) = sources.discover(tmp_path)
    assert utterance.id == "red\\x1b[31m  two\\u202espaces\\x07"
    assert "control characters" in utterance.defect
    with pytest.raises(SystemExit):
        job.guarded(lambda: audio_files.read_waveform(tmp_path / "none\x1b[2J  b"))
    shown = capsys.readouterr().err
    assert "none\\x1b[2J  b" in shown and shown.count("\n") == 1 and "\x1b" not in shown
    assert printable("Zoë  東京\n") == "Zoë  東京 "


def test_configurations_that_do_something_else(tmp_path):
    for body, said in {
        "import sys; sys.exit(3)": "SystemExit: 3",
        "def get_config(part): return None": "returned None, no ConfigDict",
        "def get_config(part): return dict": "returned <class 'dict'>, no ConfigDict",
        "def get_config(part): raise SystemExit": "SystemExit",
        "def get_config(part): return get_config(part)": "RecursionError",
    }.items():
        (tmp_path / "a.py").write_text(body)
        os.utime(tmp_path / "a.py", (1e9, 1e9))  # bytecode of the last one would seem to be its own
        with pytest.raises(InputError, match=f"a.py: cannot be loaded .*{said}"):
            command_line.read([f"--config={tmp_path / 'a.py'}"], "train", TrainConfig)


def test_links_in_a_folder_that_others_may_write(tmp_path, monkeypatch):
    """Neither a lock nor a temporary file is written through one."""
    mine = tmp_path / "mine"
    mine.write_text("mine")
    (tmp_path / ".lock").symlink_to(mine)
    with (
        pytest.raises(InputError, match=r"\.lock: cannot be opened"),
        files.locked(tmp_path / ".lock", "job"),
    ):
        pass
    (tmp_path / f"a.tmp-{os.getpid()}").symlink_to(mine)  # as it was named
    files.write_text(tmp_path / "a", "new")
    monkeypatch.chdir(tmp_path)
    with files.writing_file(".hidden") as aside:
        assert aside.parent == tmp_path and len(aside.name) >= len(".hidden.tmp-") + 16
        aside.write_text("")
    assert mine.read_text() == "mine" and (tmp_path / "a").read_text() == "new"


@pytest.mark.filterwarnings("ignore:Detected pickle protocol", "ignore:TypedStorage")
@pytest.mark.parametrize("name", fuzz.PARSERS)
def test_fuzzed(name, tmp_path):
    """Of `python -m benchmarks.fuzz`, which reads more for longer."""
    if name in ("hugging_face", "torch"):
        pytest.importorskip("torch")
    found = fuzz.fuzz(name, tmp_path / name, seed=1, seconds=0.4, numbers=range(80))
    assert not found["kept"] and found["inputs"] > 5 and found["refused"] and found["accepted"]
