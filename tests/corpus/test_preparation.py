"""Preparation is a function of its input: however many workers, killed or not, disk full or not."""

import collections
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time
import unittest.mock

import numpy as np
import pytest
import soundfile

from hubert_jax import config as config_lib
from hubert_jax import prepare
from hubert_jax.corpus import assembly, parts, preparation
from hubert_jax.corpus.audio_files import read_waveform
from hubert_jax.data import waveform
from hubert_jax.data.manifests import read_manifest
from hubert_jax.data.records import Utterance, read_audio
from hubert_jax.errors import InputError

CORPUS = pathlib.Path(__file__).parents[2] / "examples" / "minilibri"


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Several parts even of a small corpus."""
    monkeypatch.setattr(preparation, "_PART_FILES", 5)


def _prepare(workdir, **values) -> dict:
    values = {"corpus": str(CORPUS), "splits": ("dev-mini",), "workers": 2} | values
    return prepare.run(config_lib.build(prepare.PrepareConfig, {"workdir": str(workdir), **values}))


def _everything(workdir: pathlib.Path) -> set[str]:
    return {path.name for path in (workdir / "prepare").iterdir()}


def _bytes(directory: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> pathlib.Path:
    """The development set by one worker, in parts of the usual size."""
    workdir = tmp_path_factory.mktemp("prepared")
    _prepare(workdir, workers=1, shard_megabytes=2)
    return workdir / "prepare" / "dev-mini"


def test_parts_and_workers_do_not_show(prepared, tmp_path):
    _prepare(tmp_path, workers=3, shard_megabytes=2)
    assert _bytes(tmp_path / "prepare" / "dev-mini") == _bytes(prepared)
    assert _everything(tmp_path) == {".dev-mini.made", "dev-mini", "result.json"}


def test_flac_holds_the_same_in_fewer_bytes(prepared, tmp_path):
    result = _prepare(tmp_path, encoding="flac", shard_megabytes=2)
    directory = tmp_path / "prepare" / "dev-mini"
    manifest, raw = read_manifest(directory), read_manifest(prepared)
    assert (manifest.encoding, raw.encoding) == ("flac", "pcm16")
    assert [(s.file, s.samples) for s in manifest.shards] == [
        (s.file, s.samples) for s in raw.shards
    ]
    for found, expected in zip(read_audio(directory), read_audio(prepared), strict=True):
        assert (found.id, found.text) == (expected.id, expected.text)
        np.testing.assert_array_equal(found.audio, expected.audio)
    sizes = [
        sum(path.stat().st_size for path in folder.glob("*.tfrecord"))
        for folder in (directory, prepared)
    ]
    assert sizes[0] < 0.7 * sizes[1]
    assert result["splits"]["dev-mini"]["digest"] != raw.digest


def test_a_refused_preparation_goes_on_where_it_was(tmp_path, monkeypatch):
    """Files that changed are read again, no others."""
    folder = tmp_path / "corpus" / "speech"
    shutil.copytree(CORPUS / "dev-mini" / "3664", folder)
    (folder / "zzz.wav").touch()
    arguments = {"corpus": str(folder.parent), "splits": ("speech",), "workdir": tmp_path / "work"}
    with pytest.raises(InputError, match="zzz.wav: empty file"):
        _prepare(**arguments)
    assert [path.name for path in (tmp_path / "work" / "prepare").iterdir()] == [".speech.parts"]

    read = []

    def recorded(audio, *rest):
        read.append(pathlib.Path(audio).name)
        return read_waveform(audio, *rest)

    monkeypatch.setattr(preparation, "read_waveform", recorded)
    first = sorted(folder.rglob("*.opus"))[0]
    soundfile.write(folder / "zzz.wav", np.zeros(16_000, np.int16), 16_000)
    first.touch()
    result = _prepare(**arguments, max_rejected_fraction=0.5)
    assert first.name in read and len(read) <= 2 * 5
    # The new file has no transcript, but neither has its folder.
    assert result["splits"]["speech"]["flagged"] == 1
    flagged = (tmp_path / "work" / "prepare" / "speech" / "flagged.tsv").read_text()
    assert flagged == "zzz\tsilent: no sample beyond 0 of 32768\n"


@pytest.fixture
def two(tmp_path, monkeypatch):
    """Arguments for the splits `a` and `b`, of three files each, and the names of files read."""
    paths = sorted((CORPUS / "dev-mini" / "3664").rglob("*.opus"))[:6]
    for folder, chosen in (("a", paths[:3]), ("b", paths[3:])):
        (tmp_path / "corpus" / folder).mkdir(parents=True)
        for path in chosen:
            shutil.copy(path, tmp_path / "corpus" / folder)
    read, utterances_of = [], preparation.utterances_of

    def recorded(source, *rest):
        read.append(f"{source.folder.name}/{source.file}")
        return utterances_of(source, *rest)

    monkeypatch.setattr(preparation, "utterances_of", recorded)
    corpus, workdir = str(tmp_path / "corpus"), str(tmp_path / "work")
    return {"corpus": corpus, "splits": ("a", "b"), "workdir": workdir}, read


def test_a_finished_split_is_kept_when_a_later_one_is_refused(two, tmp_path, capsys):
    arguments, read = two
    (tmp_path / "corpus" / "b" / "bad.wav").touch()
    with pytest.raises(InputError, match="split b: 1 of 4 files"):
        _prepare(**arguments)
    split = tmp_path / "work" / "prepare" / "a"
    before = split.stat().st_ino
    soundfile.write(tmp_path / "corpus" / "b" / "bad.wav", np.zeros(16_000), 16_000)
    read.clear()
    capsys.readouterr()
    result = _prepare(**arguments)
    assert {path[0] for path in read} == {"b"} and split.stat().st_ino == before
    said = [line for line in capsys.readouterr().out.splitlines() if "kept" in line]
    assert len(said) == 1 and said[0].startswith("prepare a: kept from an earlier call")
    anew = _prepare(**arguments | {"workdir": str(tmp_path / "anew")})
    assert result["splits"] == anew["splits"]
    assert _everything(tmp_path / "work") == _everything(tmp_path / "anew")


def test_a_kept_split_has_to_be_allowed(two, tmp_path):
    arguments, read = two
    (tmp_path / "corpus" / "a" / "bad.wav").touch()
    _prepare(**arguments, max_rejected_fraction=0.25)
    read.clear()
    with pytest.raises(InputError, match="split a: 1 of 4 files .* is .*/bad.wav: empty"):
        _prepare(**arguments)
    assert not read


def _flip(path: pathlib.Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])


def _of(split: pathlib.Path, pattern: str) -> pathlib.Path:
    return next(split.glob(pattern))


_OTHERWISE = {
    "a file is touched": lambda corpus, split: _of(corpus, "*.opus").touch(),
    "a file is gone": lambda corpus, split: _of(corpus, "*.opus").unlink(),
    "there are transcripts": lambda corpus, split: (corpus / "transcripts.tsv").write_text(
        "".join(f"{path.name}\tWORDS\n" for path in corpus.glob("*.opus"))
    ),
    "a shard is damaged": lambda corpus, split: _flip(_of(split, "*.tfrecord")),
    "a shard is gone": lambda corpus, split: _of(split, "*.tfrecord").unlink(),
    "the manifest is damaged": lambda corpus, split: _flip(split / "manifest.json"),
    "the index is damaged": lambda corpus, split: _flip(split / "index.npz"),
    "a table is gone": lambda corpus, split: (split / "flagged.tsv").unlink(),
    "the mark is damaged": lambda corpus, split: _flip(split.with_name(".a.made")),
    "the mark is no text": lambda corpus, split: split.with_name(".a.made").write_bytes(b"\xff"),
    "the split is gone": lambda corpus, split: shutil.rmtree(split),
    "it is another's split": lambda corpus, split: (
        shutil.rmtree(split),
        shutil.copytree(split.with_name("b"), split),
    ),
}


@pytest.mark.parametrize("change", [*_OTHERWISE, "shards are larger", "it mixes", "it is flac"])
def test_a_split_is_made_again_unless_it_is_the_same_and_whole(two, tmp_path, change):
    arguments, read = two
    _prepare(**arguments)
    if act := _OTHERWISE.get(change):
        act(tmp_path / "corpus" / "a", tmp_path / "work" / "prepare" / "a")
    values = {
        "shards are larger": {"shard_megabytes": 65},
        "it mixes": {"splits": ("a=a*2", "b")},
        "it is flac": {"encoding": "flac"},
    }.get(change, {})
    read.clear()
    _prepare(**arguments | values)
    paths = [f"a/{path.name}" for path in (tmp_path / "corpus" / "a").glob("*.opus")]
    assert sorted(path for path in read if path[0] == "a") == sorted(paths)
    _prepare(**arguments | values | {"workdir": str(tmp_path / "anew")})
    for split in "ab":
        found, expected = (tmp_path / where / "prepare" / split for where in ("work", "anew"))
        assert _bytes(found) == _bytes(expected)


def test_a_split_without_its_mark_is_made_of_its_parts(two, tmp_path, monkeypatch):
    arguments, read = two
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "_mark", unittest.mock.Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            _prepare(**arguments)
    assert (tmp_path / "work" / "prepare" / "a").exists()
    read.clear()
    _prepare(**arguments)
    assert {path[0] for path in read} == {"b"}


def _command(tmp_path: pathlib.Path, **values) -> list[str]:
    values = {"corpus": str(CORPUS), "splits": ("dev-mini",), "workers": 1} | values
    config = tmp_path / "config.py"
    config.write_text(
        "import ml_collections\n"
        f"def get_config(job=''):\n    return ml_collections.ConfigDict({values!r})\n"
    )
    small = "import runpy; from hubert_jax.corpus import preparation as p; p._PART_FILES = 5; "
    run = "runpy.run_module('hubert_jax.prepare', run_name='__main__')"
    return [sys.executable, "-c", small + run, f"--config={config}"]


def _finished_parts(workdir: pathlib.Path) -> int:
    return len(list((workdir / "prepare").glob(".*.parts/*.json")))


def test_killed_and_run_again_gives_the_same(prepared, repository, tmp_path):
    expected = read_manifest(prepared).digest
    workdir = tmp_path / "killed"
    command = _command(tmp_path, workdir=str(workdir), shard_megabytes=2)
    with subprocess.Popen(command, cwd=repository, stdout=subprocess.DEVNULL) as process:
        while _finished_parts(workdir) < 3 and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (workdir / "prepare" / "dev-mini").exists()
    assert not (workdir / "prepare" / "result.json").exists()
    assert _finished_parts(workdir) >= 3
    result = _prepare(workdir, shard_megabytes=2)
    assert result["splits"]["dev-mini"]["digest"] == expected
    assert _everything(workdir) == {".dev-mini.made", "dev-mini", "result.json"}


def test_a_part_that_is_damaged_is_named(tmp_path):
    path = tmp_path / "part.tfrecord"
    audio = np.zeros(400, np.int16)
    items = [parts.Item("a.wav", [((1, 1), Utterance("a", audio))])]
    part = parts.write(path, items, "pcm16")
    content = bytearray(path.read_bytes())
    content[-40:] = b"\xff" * 40
    path.write_bytes(content)
    with pytest.raises(InputError, match="part.tfrecord: damaged at byte 0; remove .* and run"):
        assembly.assemble(tmp_path, "train", [part], 1)


def test_a_full_disk_leaves_nothing_that_looks_finished(repository, tmp_path):
    """Files may not grow beyond a limit: the system's refusal is that of a full disk."""
    workdir = tmp_path / "work"

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

    ran = subprocess.run(
        _command(tmp_path, workdir=str(workdir)),
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limited,
    )
    assert ran.returncode == 1
    (line,) = ran.stderr.splitlines()
    assert line.startswith("error: ") and "cannot be written (File too large)" in line
    assert not (workdir / "prepare" / "dev-mini").exists()
    assert not (workdir / "prepare" / "result.json").exists()


def test_long_recordings_are_cut_and_transcribed_ones_are_not(tmp_path):
    paths = sorted((CORPUS / "dev-mini" / "1898").rglob("*.opus"))[:5]
    recording = np.concatenate([read_waveform(path) for path in paths])
    for name in ("plain", "read"):
        (tmp_path / "corpus" / name).mkdir(parents=True)
        soundfile.write(tmp_path / "corpus" / name / "book.flac", recording, 16_000)
    (tmp_path / "corpus" / "read" / "transcripts.tsv").write_text("book\tA WHOLE BOOK\n")
    result = _prepare(tmp_path, corpus=str(tmp_path / "corpus"), splits=("plain", "read"))
    (whole,) = read_audio(tmp_path / "prepare" / "read")
    np.testing.assert_array_equal(whole.audio, recording)
    pieces = {u.id: u.audio for u in read_audio(tmp_path / "prepare" / "plain")}
    assert len(pieces) > 1 and result["splits"]["plain"]["files"] == 1
    covered = 0
    for name, start, end, audio in sorted((*_place(name), audio) for name, audio in pieces.items()):
        assert name == "book" and start == covered and 32_000 <= end - start <= 480_000
        np.testing.assert_array_equal(audio, recording[start:end])
        covered = end
    assert covered == len(recording)


def _place(name: str) -> tuple[str, int, int]:
    recording, _, place = name.partition(":")
    start, end = map(int, place.split("-"))
    return recording, start, end


def test_a_recording_with_a_damaged_end_is_not_there_at_all(tmp_path):
    (tmp_path / "corpus").mkdir()
    recording = np.random.default_rng(0).integers(-999, 999, 80 * 16_000).astype(np.int16)
    soundfile.write(tmp_path / "corpus" / "bad.flac", recording, 16_000)
    content = (tmp_path / "corpus" / "bad.flac").read_bytes()
    (tmp_path / "corpus" / "bad.flac").write_bytes(content[: len(content) * 9 // 10])
    soundfile.write(tmp_path / "corpus" / "good.flac", recording, 16_000)
    arguments = {"corpus": str(tmp_path), "splits": ("corpus",), "max_rejected_fraction": 0.5}
    result = _prepare(tmp_path, **arguments)["splits"]["corpus"]
    assert (result["rejected"], result["seconds"]) == (1, 80.0)
    assert {u.id.split(":")[0] for u in read_audio(tmp_path / "prepare" / "corpus")} == {"good"}


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (np.zeros(400), "silent: no sample beyond 0 of 32768"),
        (np.full(400, -32), "silent: no sample beyond 32 of 32768"),
        (np.full(400, 33), ""),
        (np.where(np.arange(1000) < 1, 32767, 99), "clipped: 0.10% of the samples at full scale"),
        (np.where(np.arange(400) < 4, -32768, 99), "clipped: 1.00% of the samples at full scale"),
        (np.where(np.arange(1001) < 1, 32767, 99), ""),
    ],
)
def test_silent_and_clipped_utterances_are_flagged(samples, expected):
    assert waveform.flag(samples.astype(np.int16)) == expected


def test_what_no_record_holds_is_refused(tmp_path):
    """Twenty hours in one piece, beside an utterance that is kept."""
    endless = np.broadcast_to(np.int16(0), (20 * 3600 * 16_000,))
    items = [
        parts.Item(name, [((0, number), Utterance(name, audio))])
        for number, (name, audio) in enumerate({"day": endless, "second": endless[:16_000]}.items())
    ]
    part = parts.write(tmp_path / "part.tfrecord", items, "pcm16")
    assert len(part.read_index()) == 1
    ((name, reason),) = part.notes.rejected
    assert name == "day"
    assert reason.startswith("an utterance of 20.0 hours; expected at most 18.6: cut it")


def test_corpora_that_mix_have_shards_of_their_own(tmp_path):
    """Every shard is of one corpus, and the manifest says how much of each is to be drawn."""
    folders = ("dev-mini/1898", "dev-mini/3664", "train-clean-100/78")
    splits = (f"mixed={folders[0]}*2+{folders[1]}+{folders[2]}",)
    _prepare(tmp_path, splits=splits, language_exponent=0.5, shard_megabytes=1)
    directory = tmp_path / "prepare" / "mixed"
    manifest = read_manifest(directory)
    assert [group.name for group in manifest.groups] == list(folders)
    assert sum(group.share for group in manifest.groups) == pytest.approx(1)
    natural = {group.name: group.seconds / manifest.seconds for group in manifest.groups}
    share = {group.name: group.share for group in manifest.groups}
    assert share[folders[2]] > 2 * natural[folders[2]]
    ratio = natural[folders[0]] / natural[folders[1]]
    assert share[folders[0]] / share[folders[1]] == pytest.approx(2 * ratio)
    speakers = collections.defaultdict(set)
    utterances = iter(read_audio(directory))
    for shard in manifest.shards:
        speakers[shard.group] |= {next(utterances).speaker for _ in range(shard.utterances)}
    assert speakers == {folder: {folder.split("/")[1]} for folder in folders}
    counts = collections.Counter()
    for shard in manifest.shards:
        counts[shard.group] += shard.utterances
    assert counts == {group.name: group.utterances for group in manifest.groups}
    # Without weights or exponents they are one corpus.
    _prepare(tmp_path, splits=(f"mixed={'+'.join(folders)}",))
    assert read_manifest(directory).groups == ()
