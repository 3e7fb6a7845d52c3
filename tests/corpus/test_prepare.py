"""The prepare job: real speech in, shards out; bad input ends in one line and no remains."""

import itertools
import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from hubert_jax import config as config_lib
from hubert_jax import files, prepare
from hubert_jax.corpus.assembly import shuffle_order
from hubert_jax.corpus.audio_files import read_waveform
from hubert_jax.corpus.sources import discover
from hubert_jax.data.buckets import bucket_of
from hubert_jax.data.manifests import read_manifest
from hubert_jax.data.records import read_audio
from hubert_jax.errors import InputError

ROOT = pathlib.Path(__file__).parents[2]
CORPUS = ROOT / "examples" / "minilibri"
SPEAKER = "dev-mini/3664"


def _prepare(workdir, **values) -> dict:
    return prepare.run(config_lib.build(prepare.PrepareConfig, {"workdir": str(workdir), **values}))


def _bytes(directory: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def _visible(directory: pathlib.Path) -> list[str]:
    """What looks like a result; what the next run can go on with is hidden."""
    return [path.name for path in directory.iterdir() if not path.name.startswith(".")]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> pathlib.Path:
    """One speaker, prepared by one thread."""
    workdir = tmp_path_factory.mktemp("prepared")
    _prepare(workdir, corpus=str(CORPUS), splits=(f"some={SPEAKER}",), workers=1)
    return workdir / "prepare"


@pytest.fixture
def corpus(tmp_path) -> pathlib.Path:
    """A folder `speech` with four good files."""
    folder = tmp_path / "corpus" / "speech"
    folder.mkdir(parents=True)
    for path in sorted((CORPUS / SPEAKER).rglob("*.opus"))[:4]:
        shutil.copy(path, folder)
    return folder.parent


def test_shards_hold_the_corpus(prepared):
    sources = {source.id: source for source in discover(CORPUS / SPEAKER)}
    found = list(read_audio(prepared / "some"))
    assert {utterance.id for utterance in found} == set(sources) and len(found) == len(sources)
    for utterance in found[:5]:
        source = sources[utterance.id]
        np.testing.assert_array_equal(utterance.audio, read_waveform(source.path))
        assert (utterance.speaker, utterance.text) == ("3664", source.text)
    order = [(bucket_of(len(u.audio)), shuffle_order(u.id)) for u in found]
    assert order == sorted(order)


def test_result_agrees_with_the_manifest(prepared):
    result = json.loads((prepared / "result.json").read_text())
    manifest = read_manifest(prepared / "some")
    split = result["splits"]["some"]
    assert split["digest"] == manifest.digest
    assert split["utterances"] == manifest.utterances == sum(split["utterances_by_bucket"].values())
    assert split["seconds"] == manifest.seconds
    assert (split["transcribed"], split["rejected"]) == (manifest.utterances, 0)
    assert result["seconds"] > 0


def test_output_is_the_same_bytes_for_two_workers(prepared, tmp_path):
    _prepare(tmp_path, corpus=str(CORPUS), splits=(f"some={SPEAKER}",), workers=2)
    assert _bytes(tmp_path / "prepare" / "some") == _bytes(prepared / "some")


def test_a_split_of_two_folders_is_their_union(tmp_path):
    splits = (f"both={SPEAKER}+train-clean-100/78",)
    result = _prepare(tmp_path, corpus=str(CORPUS), splits=splits)
    ids = {u.id for u in read_audio(tmp_path / "prepare" / "both")}
    assert ids == {u.id for f in (SPEAKER, "train-clean-100/78") for u in discover(CORPUS / f)}
    assert result["splits"]["both"]["speakers"] == 2
    assert result["splits"]["both"]["transcribed"] == len(ids) - 1


def _write(name: str, samples, rate: int = 16_000, **more):
    return lambda folder: soundfile.write(folder / name, samples, rate, **more)


def _cut_off(folder: pathlib.Path) -> None:
    content = next(folder.glob("*.opus")).read_bytes()
    (folder / "bad.opus").write_bytes(content[: len(content) // 2])


def _without_transcript(folder: pathlib.Path) -> None:
    paths = sorted(folder.glob("*.opus"))
    (folder / "transcripts.tsv").write_text("".join(f"{path.name}\tWORDS\n" for path in paths))
    shutil.copy(paths[0], folder / "bad.opus")


def _without_audio(folder: pathlib.Path) -> None:
    _without_transcript(folder)
    (folder / "bad.opus").unlink()
    with open(folder / "transcripts.tsv", "a") as file:
        file.write("bad.wav\tWORDS\n")


_BAD = {
    "corrupt": (
        lambda folder: (folder / "bad.flac").write_bytes(b"fLaC" * 99),
        "bad.flac: corrupt",
    ),
    "cut off": (_cut_off, "bad.opus: cut off"),
    "0 bytes": (lambda folder: (folder / "bad.wav").touch(), "bad.wav: empty file (0 bytes)"),
    "0 samples": (_write("bad.wav", np.zeros(0)), "bad.wav: 0 samples"),
    "too short": (_write("bad.wav", np.zeros(399)), "bad.wav: 399 samples"),
    "stereo": (_write("bad.wav", np.zeros((9000, 2))), "bad.wav: found stereo, expected mono"),
    "rate": (_write("bad.wav", np.zeros(9000), 44_100), "bad.wav: found 44100 Hz, expected mono"),
    "NaN": (_write("bad.wav", np.full(9000, np.nan), subtype="FLOAT"), "bad.wav: NaN or infinite"),
    "no transcript": (_without_transcript, "bad.opus: no transcript"),
    "no audio": (_without_audio, "transcript of bad.wav has no audio file"),
}


@pytest.mark.parametrize("kind", _BAD)
def test_a_bad_file_stops_the_job_or_is_listed(corpus, tmp_path, kind):
    spoil, expected = _BAD[kind]
    spoil(corpus / "speech")
    workdir = tmp_path / "work"
    arguments = {"corpus": str(corpus), "splits": ("speech",)}
    with pytest.raises(InputError) as error:
        _prepare(workdir, **arguments)
    message = str(error.value)
    assert message.startswith("split speech: 1 of 5 files (20.00%, allowed are 0.00%) cannot be")
    assert expected in message and "--config.max_rejected_fraction=0.2000" in message
    assert "\n" not in message
    assert not _visible(workdir / "prepare")

    result = _prepare(workdir, **arguments, max_rejected_fraction=0.2)
    assert result["splits"]["speech"]["utterances"] == 4
    assert result["splits"]["speech"]["rejected"] == 1
    (line,) = (workdir / "prepare" / "speech" / "rejected.tsv").read_text().splitlines()
    path, reason = line.split("\t")
    assert expected in f"{path}: {reason}"


def test_conversion_makes_stereo_at_44100_hz_usable(corpus, tmp_path):
    _write("bad.wav", np.zeros((44_100, 2)), 44_100)(corpus / "speech")
    _prepare(tmp_path, corpus=str(corpus), splits=("speech",), convert=True)
    lengths = {u.id: len(u.audio) for u in read_audio(tmp_path / "prepare" / "speech")}
    assert lengths["bad"] == 16_000


def test_a_failed_run_leaves_the_older_split_but_no_result(corpus, tmp_path):
    arguments = {"corpus": str(corpus), "splits": ("speech",)}
    _prepare(tmp_path, **arguments)
    before = _bytes(tmp_path / "prepare" / "speech")
    (corpus / "speech" / "bad.wav").touch()
    with pytest.raises(InputError, match="1 of 5 files"):
        _prepare(tmp_path, **arguments)
    assert _bytes(tmp_path / "prepare" / "speech") == before
    assert _visible(tmp_path / "prepare") == ["speech"]


def test_a_second_preparation_in_one_directory_is_refused(corpus, tmp_path):
    with files.locked(tmp_path / ".prepare.lock", "preparation"):
        with pytest.raises(InputError, match="another preparation is running there"):
            _prepare(tmp_path, corpus=str(corpus), splits=("speech",))
    assert not (tmp_path / "prepare").exists()


def test_nothing_usable_is_refused_whatever_is_allowed(tmp_path):
    (tmp_path / "speech").mkdir()
    (tmp_path / "speech" / "a.wav").touch()
    with pytest.raises(InputError, match="none of 1 files can be used, the first is .*a.wav"):
        _prepare(tmp_path, corpus=str(tmp_path), splits=("speech",), max_rejected_fraction=0.99)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"splits": ()}, "at least one split"),
        ({"splits": ("a/b",)}, "'a/b' cannot name a split; pass NAME=a/b"),
        ({"splits": ("x=a+a",)}, "folders that differ"),
        ({"splits": ("a", "a=b")}, "'a' is there twice"),
        ({"workers": -1}, "config.workers=-1: expected at least 0"),
        ({"encoding": "mp3"}, "config.encoding='mp3': expected pcm16 or flac"),
        ({"cut_seconds": 3.0}, "config.cut_seconds=3.0: expected at least 4, or 0"),
        ({"corpus_exponent": 1.5}, "config.corpus_exponent=1.5: expected between 0 and 1"),
        ({"splits": ("x=a*0+b",)}, r"expected a weight above 0 after \*, found 'a\*0'"),
        ({"shard_megabytes": 0}, "config.shard_megabytes=0: expected at least 1"),
        (
            {"max_rejected_fraction": 1.0},
            "config.max_rejected_fraction=1.0: expected at least 0, less",
        ),
        ({"corpus": "nowhere"}, "config.corpus=nowhere: no such directory"),
        ({"corpus": str(CORPUS), "splits": ("dev-clean",)}, "dev-clean: expected a folder"),
        (
            {"corpus": str(CORPUS), "splits": ("x=dev-mini+dev-mini/1898",)},
            "the utterance id '1898-145715-.*' is also that of",
        ),
    ],
)
def test_bad_configuration_is_refused(tmp_path, values, message):
    with pytest.raises(InputError, match=message):
        _prepare(tmp_path, **values)


def test_command_prints_one_line_and_fails(corpus, tmp_path):
    (corpus / "speech" / "bad.wav").touch()
    workdir = tmp_path / "work"
    values = {"workdir": str(workdir), "corpus": str(corpus), "splits": ("speech",), "workers": 1}
    config = tmp_path / "config.py"
    config.write_text(
        "import ml_collections\n"
        f"def get_config(job=''):\n    return ml_collections.ConfigDict({values!r})\n"
    )
    command = [sys.executable, "-m", "hubert_jax.prepare", f"--config={config}"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    (line,) = ran.stderr.splitlines()
    assert line.startswith("error: split speech: 1 of 5 files")
    assert not _visible(workdir / "prepare")


def test_what_is_odd_about_a_file_is_listed(corpus, tmp_path):
    folder = corpus / "speech"
    first, second, third, _ = sorted(folder.iterdir())
    first.write_bytes(first.read_bytes() + second.read_bytes())
    soundfile.write(folder / "coded.wav", read_waveform(third), 16_000, subtype="IMA_ADPCM")
    values = dict(corpus=str(corpus), splits=("speech",), cut_seconds=4.0)
    with pytest.raises(InputError, match="coded.wav: WAV of IMA_ADPCM: nobody can tell"):
        _prepare(tmp_path / "work", **values)
    result = _prepare(tmp_path / "work", unchecked=True, **values)
    assert result["splits"]["speech"]["flagged"] == 2
    listed = (tmp_path / "work" / "prepare" / "speech" / "flagged.tsv").read_text()
    assert f"{first}\t2 streams, read one after the other\n" in listed
    assert f"{folder / 'coded.wav'}\tWAV of IMA_ADPCM: not known to be complete\n" in listed


def test_folders_of_several_splits_are_warned_of(corpus, tmp_path, capsys):
    (corpus / "speech").rename(corpus / "train-a")
    shutil.copytree(corpus / "train-a", corpus / "dev")
    _prepare(tmp_path / "work", corpus=str(corpus), splits=("all=.",))
    assert "warning: " in (found := capsys.readouterr().out) and "train, validation;" in found
    _prepare(tmp_path / "work", corpus=str(corpus), splits=("train-a", "dev"))
    assert "warning" not in capsys.readouterr().out
    _prepare(tmp_path / "work", corpus=str(corpus), splits=("all=.", "dev"))
    assert "prepare dev: warning: " in capsys.readouterr().out  # it is in both, by other ids


def test_a_split_of_tables_reads_their_folder(tmp_path):
    (tmp_path / "hub").mkdir()
    values = dict(workdir="w", corpus=str(tmp_path), splits=("a=hub/train", "b=hub"))
    config = config_lib.build(prepare.PrepareConfig, values)
    assert config.reads() == [tmp_path / "hub/train", tmp_path / "hub"]  # the first is missing
    (tmp_path / "hub/train.tsv").touch()
    assert config.reads() == [tmp_path / "hub"]


def test_librilights_transcribed_splits_from_the_published_layout(tmp_path):
    """The README's command: 10 min, 1 h and 10 h of `librispeech_finetuning`."""
    corpus, expected = tmp_path / "librispeech_finetuning", {}
    parts = [*(f"1h/{part}" for part in range(6)), "9h"]
    for number, (part, kind) in enumerate(itertools.product(parts, ("clean", "other"))):
        speaker, chapter = 100 + number // 2, 7000 + number
        folder = corpus / part / kind / str(speaker) / str(chapter)
        folder.mkdir(parents=True)
        names = [f"{speaker}-{chapter}-{utterance:04d}" for utterance in range(2)]
        for name in names:
            soundfile.write(folder / f"{name}.flac", np.arange(4000, dtype=np.int16), 16_000)
            expected[name] = (part, str(speaker), f"SAID IN {name[:3]}")
        lines = [f"{name} {expected[name][2]}\n" for name in names]
        (folder / f"{speaker}-{chapter}.trans.txt").write_text("".join(lines))
    _prepare(tmp_path, corpus=str(corpus), splits=("10min=1h/0", "1h=1h", "10h=1h+9h"))
    for split, size in (("10min", 4), ("1h", 24), ("10h", 28)):
        found = {u.id: (u.speaker, u.text) for u in read_audio(tmp_path / "prepare" / split)}
        folder = {"10min": "1h/0", "1h": "1h", "10h": ""}[split]
        assert len(found) == size and found == {
            name: said for name, (part, *rest) in expected.items()
            if part.startswith(folder) and (said := tuple(rest))
        }  # fmt: skip
