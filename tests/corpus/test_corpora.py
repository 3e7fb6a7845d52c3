"""Corpora of other makers: Hugging Face, fairseq, LJSpeech, Libri-light, TensorFlow Datasets."""

import importlib
import io
import json
import pathlib

import numpy as np
import pytest
import soundfile

from hubert_jax.corpus import preparation
from hubert_jax.corpus.audio_files import read_waveform
from hubert_jax.corpus.sources import discover, splits
from hubert_jax.errors import InputError

CORPUS = pathlib.Path(__file__).parents[2] / "examples" / "minilibri"
CHAPTER = CORPUS / "dev-mini" / "1898" / "145715"


def _audio(path: pathlib.Path) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros(400, np.int16), 16_000)
    return path


def _rows(location, **more) -> list[tuple]:
    return [(u.id, u.speaker, u.text, u.defect) for u in discover(location, **more)]


@pytest.fixture(scope="module")
def speech() -> list[tuple[str, bytes, str]]:
    """(id, Opus file, transcript) of three real utterances."""
    lines = (CHAPTER / "1898-145715.trans.txt").read_text().splitlines()
    texts = dict(line.split(" ", 1) for line in lines)
    paths = sorted(CHAPTER.glob("*.opus"), key=lambda path: path.stat().st_size)[:3]
    return sorted((path.stem, path.read_bytes(), texts[path.stem]) for path in paths)


def test_hugging_face_audio_folder(tmp_path):
    for name in ("train/a.wav", "train/deep/b.flac", "train/c.wav"):
        _audio(tmp_path / name)
    (tmp_path / "train" / "metadata.csv").write_text(
        'file_name,transcription,speaker_id\na.wav,"One,\nand ""two""",7\ndeep/b.flac,three,8\n'
    )
    assert _rows(tmp_path) == [
        ("train/a", "7", 'One, and "two"', ""),
        (
            "train/c",
            "train",
            None,
            f"no transcript; expected a line for it in {tmp_path / 'train' / 'metadata.csv'}",
        ),
        ("train/deep/b", "8", "three", ""),
    ]


def test_hugging_face_metadata_as_json_lines_and_without_transcripts(tmp_path):
    for name in ("a.wav", "b.wav"):
        _audio(tmp_path / name)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.wav", "client_id": "x"}\n')
    assert _rows(tmp_path) == [("a", "x", None, ""), ("b", "", None, "")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.csv", "path,text\na,b\n", "line 2: expected the column file_name, found path"),
        ("metadata.csv", 'file_name,text\n"a.wav', "line 2: not comma-separated values"),
        ("metadata.csv", "a|b\nc\n", r"line 2: expected ID\|TEXT, found 'c'"),
        ("metadata.jsonl", "{}\n", "line 1: expected the column file_name"),
        ("metadata.jsonl", "[1]\n", r"line 1: expected an object, found '\[1\]'"),
        ("metadata.jsonl", "{\n", "line 1: not JSON"),
    ],
)
def test_bad_metadata_is_refused(tmp_path, name, content, message):
    _audio(tmp_path / "a.wav")
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        discover(tmp_path)


def test_ljspeech(tmp_path):
    folder = tmp_path / "LJSpeech-1.1"
    _audio(folder / "wavs" / "LJ001-0001.wav")
    (folder / "metadata.csv").write_text("LJ001-0001|Dr. A, 2|Doctor A, two\n")
    assert _rows(folder) == [("wavs/LJ001-0001", "LJSpeech-1.1", "Doctor A, two", "")]
    for lines, expected in (
        ("a|ONE\nb|THIS IS ONE OR|TWO\n", r"line 2: expected ID\|TEXT, found 'b"),
        ("a|1|ONE\nb|TWO\n", r"line 2: expected ID\|TEXT\|TEXT WITHOUT NUMBERS, found 'b"),
        ("a|1|ONE|x\n", r"line 1: expected ID\|TEXT\|TEXT WITHOUT NUMBERS, found 'a"),
    ):
        (folder / "metadata.csv").write_text(lines)
        with pytest.raises(InputError, match=expected):
            discover(folder)


def test_librilight_speakers_are_in_files_beside_the_audio(tmp_path):
    book = tmp_path / "small" / "100" / "sea_64kb_mp3"
    _audio(book / "01_sea.flac")
    (book / "01_sea.json").write_text(json.dumps({"speaker": "100", "snr": 7.5}))
    assert _rows(tmp_path) == [("small/100/sea_64kb_mp3/01_sea", "100", None, "")]
    assert _rows(tmp_path / "small")[0][1] == "100"


def test_what_a_row_has_twice_or_as_no_text_is_refused(tmp_path):
    _audio(tmp_path / "a.wav")
    for name, content, message in (
        (
            "metadata.csv",
            "file_name,text,text\na.wav,one,two\n",
            "line 1: the column 'text' is there",
        ),
        (
            "metadata.jsonl",
            '{"file_name": "a.wav", "text": "a", "text": "b"}',
            "'text' is there twice",
        ),
        (
            "metadata.jsonl",
            '{"file_name": "a.wav", "text": ["A", "B"]}',
            "text is .*expected a text",
        ),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match=message):
            discover(tmp_path)
        (tmp_path / name).unlink()
    for header in ("file_name,text", "file_name,text,,"):  # spreadsheets do so
        (tmp_path / "metadata.csv").write_text(f"{header}\na.wav,one,,\n")
        assert [u.text for u in discover(tmp_path)] == ["one"]
    (tmp_path / "metadata.csv").unlink()
    row = '{"file_name": "a.wav", "transcription": "one", "text": ["A"], "speaker": "s"}'
    (tmp_path / "metadata.jsonl").write_text(row)
    assert [u.text for u in discover(tmp_path)] == ["one"]
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "transcripts.tsv").write_text("file\ttext\ttext\na.wav\tone\ttwo\n")
    with pytest.raises(InputError, match="line 1: the column 'text' is there twice"):
        discover(tmp_path)


def test_a_manifest_that_is_no_text_is_told_by_a_plan(tmp_path):
    from hubert_jax.prepare import PrepareConfig

    config = PrepareConfig(str(tmp_path / "work"), str(tmp_path), splits=("a=train.tsv",))
    manifest = tmp_path / "train.tsv"
    for content, message in (
        (b"\xe9t\xe9\n", "train.tsv: expected UTF-8 text"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
    ):
        manifest.write_bytes(content)
        with pytest.raises(InputError, match=message):
            config.reads()
    manifest.write_text("/\nx/a.wav\t400\n")
    assert config.reads() == [manifest, pathlib.Path("/x/a.wav")]


def test_fairseq_manifest(tmp_path, speech):
    (name, content, text), *_ = speech
    path = tmp_path / "audio" / "1898" / "145715" / f"{name}.opus"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    _audio(tmp_path / "audio" / "x" / "b.wav")
    manifest = tmp_path / "lists" / "train.tsv"
    manifest.parent.mkdir()
    lines = [str(tmp_path / "audio"), f"1898/145715/{name}.opus\t1", "x/b.wav\t400", "x/c.wav\t9"]
    manifest.write_text("\n".join(lines) + "\n")
    expected = [(name, "1898", None, ""), ("x/b", "x", None, ""), ("x/c", "x", None, "")]
    assert _rows(manifest) == expected
    # The folder may be relative to the manifest; letters spell the transcripts.
    manifest.write_text("\n".join(["../audio", *lines[1:]]) + "\n")
    letters = " ".join(text.replace(" ", "|")) + " |"
    manifest.with_suffix(".ltr").write_text(f"{letters}\n\nC |\n")
    found = _rows(manifest)
    assert [row[2] for row in found] == [text, "", "C"]
    assert "empty transcript" in found[1][3]
    manifest.with_suffix(".wrd").write_text("one\ntwo\nthree\n")
    assert [row[2] for row in _rows(manifest)] == ["one", "two", "three"]


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_samples_that_a_fairseq_manifest_counts_are_compared(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, np.zeros((30_000, 2), np.int16), 22_050)
    there = soundfile.info(path).frames  # as fairseq counts them
    remark = "its list of files counts {} samples, {} are there"
    for listed, remarks in ((there, []), (there + 1, None), (9999, None), (0, None)):
        (tmp_path / "train.tsv").write_text(f".\n{path.name}\t{listed}\n")
        (source,) = discover(tmp_path / "train.tsv")
        found: list[str] = []
        list(preparation.utterances_of(source, preparation.Conversion(convert=True), found))
        assert found == ([remark.format(listed, there)] if remarks is None else remarks)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "train.tsv, line 1: expected the folder"),
        ("nowhere\na.wav\t1\n", "train.tsv, line 1: expected the folder .* found 'nowhere'"),
        (".\n", "train.tsv: expected lines PATH<TAB>SAMPLES, found none"),
        (".\na.wav 400\n", "train.tsv, line 2: expected PATH<TAB>SAMPLES, found 'a.wav 400'"),
        (".\na.wav\t\x1e400\n", "train.tsv, line 2: expected PATH<TAB>SAMPLES, found 'a.wav"),
        (".\na.wav\t" + "9" * 5000, "train.tsv, line 2: expected PATH<TAB>SAMPLES, found 'a.wav"),
        (".\na.wav\t1\na.wav\t1\n", "the utterance id 'a' is also that of"),
    ],
)
def test_bad_fairseq_manifests_are_refused(tmp_path, content, message):
    (tmp_path / "train.tsv").write_text(content)
    with pytest.raises(InputError, match=message):
        discover(tmp_path / "train.tsv")


def test_fairseq_transcripts_of_another_number(tmp_path):
    (tmp_path / "train.tsv").write_text(".\na.wav\t1\n")
    (tmp_path / "train.wrd").write_text("one\ntwo\n")
    with pytest.raises(InputError, match="train.wrd: 2 lines, but .* has 1 audio files"):
        discover(tmp_path / "train.tsv")


def _parquet(path: pathlib.Path, speech, **columns) -> pathlib.Path:
    pyarrow = pytest.importorskip("pyarrow")
    write_table = importlib.import_module("pyarrow.parquet").write_table
    audio = [{"bytes": content, "path": f"{name}.opus"} for name, content, _ in speech]
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table({"audio": audio, "text": [text for *_, text in speech], **columns})
    write_table(table, path, row_group_size=2)
    return path


def test_parquet(tmp_path, speech):
    speakers = [1898, 1898, 7]
    ids = [name for name, *_ in speech]
    _parquet(tmp_path / "data" / "train-0.parquet", speech, id=ids, speaker_id=speakers)
    found = discover(tmp_path)
    assert [(u.id, u.text) for u in found] == [(name, text) for name, _, text in speech]
    assert [u.speaker for u in found] == ["1898", "1898", "7"]
    for utterance in reversed(found):  # any order, over both row groups
        expected = read_waveform(CHAPTER / f"{utterance.id}.opus")
        np.testing.assert_array_equal(read_waveform(utterance.load()), expected)


@pytest.mark.parametrize(
    "column", ["split", "Split", " SPLIT", "subset", "partition", "set", "Fold", "dataset", "usage"]
)
def test_rows_and_names_of_every_spelling_of_a_split_are_not_mixed(tmp_path, speech, column):
    said = dict(split=["train", None, "train"], dataset=["libri"] * 3)
    path = _parquet(tmp_path / "none" / "rows.parquet", speech, **said)
    with pytest.raises(InputError, match=r"several splits: none \(1\), train \(2\)"):
        discover(path.parent)
    rows = {column: ["trainset", "Test-Set", "training_set"]}
    path = _parquet(tmp_path / "one" / "rows.parquet", speech, **rows)
    with pytest.raises(InputError, match=r"several splits: test \(1\), train \(2\)"):
        discover(path.parent)
    for one, other in (
        ("trainset", "testset"),
        ("traindata", "test-split"),
        ("mytrain", "tst"),
        ("train数据", "test데이터"),
    ):
        for name in (one, other):
            _parquet(tmp_path / one / f"{name}.parquet", speech)
        with pytest.raises(InputError, match=r"several splits: test \(1\), train \(1\)"):
            discover(tmp_path / one)
    for number, row in enumerate(  # of no split that has a name
        (
            dict(subset=["clean", "test phrases", ""]),
            dict(fold=[0, 1, 2]),
            dict(split=["train"] * 3, dataset=["a", "b", "test phrases"]),
            dict(split=[0] * 3),
            dict(split=[0, None, 0]),
            dict(usage=["train", "bus", "metro"]),
            dict(split=["chéval", "traın", "Träin"]),
            dict(split=["test"] * 3, fold=["train", "dev", "train"]),
        )
    ):
        path = _parquet(tmp_path / f"{number}" / "contest.parquet", speech, **row)
        assert len(discover(path.parent)) == len(speech)


def test_what_a_column_of_splits_says_otherwise(tmp_path, speech, capsys):
    """Numbers stand for names, where a data set of Hugging Face says for which."""
    pyarrow = pytest.importorskip("pyarrow")
    path = _parquet(tmp_path / "rows.parquet", speech, split=[2, 0, 0])
    with pytest.raises(
        InputError, match=r"rows of several splits: 0 \(2\), 2 \(1\); expected their"
    ):
        discover(tmp_path)
    names = {"split": {"names": ["train", "validation", "test"], "_type": "ClassLabel"}}
    table = pyarrow.parquet.read_table(path)
    for features in (names, {"split": {"names": 3}}, {"split": []}, [], None):
        described = json.dumps({"info": {"features": features}})
        pyarrow.parquet.write_table(table.replace_schema_metadata({"huggingface": described}), path)
        message = r"test \(1\), train \(2\); take" if features is names else "instead of numbers"
        with pytest.raises(InputError, match=message):
            discover(tmp_path)
        if features is names:
            found = discover(tmp_path / "train")
            assert [u.load() for u in found] == [content for _, content, _ in speech[1:]]
    # A table's own name says it, unless rows say otherwise.
    for name, column in (
        ("train", dict(split=["clean", "other", "clean"])),
        ("validation", dict(split=[1, 1, 1])),
        ("test", dict(usage=["train", "metro", "bus"])),
    ):
        _parquet(tmp_path / "two" / f"{name}-0.parquet", speech, **column)
        assert len(discover(tmp_path / "two" / name)) == 3
    path.unlink()
    (tmp_path / "two" / "train-0.parquet").rename(path)
    capsys.readouterr()
    assert len(discover(path)) == 3
    assert (
        "warning: rows of several splits: clean (2), other (1); all are" in capsys.readouterr().out
    )
    _audio(tmp_path / "audio" / "a.wav")
    table = tmp_path / "audio" / "metadata.csv"
    table.write_text("file_name,split,subset\na.wav,train,dev\n")
    assert len(discover(table.parent)) == 1  # the surest column decides
    table.write_text("file_name,fold,subset\na.wav,train,dev\n")
    with pytest.raises(InputError, match="line 2: fold names train, subset names validation"):
        discover(tmp_path / "audio")


def test_folders_that_are_splits_together(tmp_path):
    for names, expected in (
        (("tr", "cv"), ["cv", "tr"]),
        (("tr", "de"), []),
        (("mytrain", "x/testdata"), ["test", "train"]),
    ):
        for name in names:
            _audio(tmp_path / names[1] / name / "a.wav")
        folder = tmp_path / names[1]
        assert splits.splits_of_folders(folder, discover(folder)) == expected


def test_common_voice(tmp_path):
    """A table a split; the folder as a whole would mix them."""
    for name in "abc":
        _audio(tmp_path / "en" / "clips" / f"{name}.wav")
    header = "client_id\tpath\tsentence\tup_votes"
    rows = {"train": ["x\ta.wav\tIt’s one.\t2", "y\tnone.wav\ttwo\t2"], "test": ["z\tb.wav\t\t0"]}
    for split, lines in rows.items():
        (tmp_path / "en" / f"{split}.tsv").write_text("\n".join([header, *lines]) + "\n")
    found = _rows(tmp_path / "en" / "train.tsv")
    assert found[0] == ("a", "x", "It’s one.", "")
    assert found[1][3].startswith("no such file in")
    assert "empty transcript" in _rows(tmp_path / "en" / "test.tsv")[0][3]
    assert _rows(tmp_path / "en" / "train") == found
    for folder, such in (
        (tmp_path / "en", "en/train.tsv"),
        (tmp_path, f"{tmp_path.name}/en/train"),
    ):
        message = f"tables of Common Voice, .*; take one by its name, such as NAME={such}"
        with pytest.raises(InputError, match=message):
            discover(folder)
    for content, message in (
        (f"{header}\nx\ta.wav\n", "line 2: expected 4 columns, found 2"),
        (f"{header}\n", "found none after line 1"),
        (
            f"{header}\nx\ta.wav\tone\t1\ny\tb.wav\ttwo\t1\nx\tclips/a.wav\t\t1\n",
            "line 4: a.wav is in",
        ),
        (f"{header}\tpath\nx\ta.wav\tone\t1\tb.wav\n", "the columns path and sentence once"),
        *(
            (f"{header}\nx\t{p}\tone\t1\n", "line 2: expected a path below")
            for p in ("", "../a", "/a")
        ),
    ):
        (tmp_path / "en" / "dev.tsv").write_text(content)
        with pytest.raises(InputError, match=f"dev.tsv.*{message}"):
            discover(tmp_path / "en" / "dev.tsv")
    (tmp_path / "en" / "dev.tsv").write_bytes(b"\xe9")  # of somebody else
    (tmp_path / "en" / "transcripts.tsv").write_text("clips/a.wav\tone\n")
    assert {u.id for u in discover(tmp_path / "en")} >= {"clips/a", "clips/b", "clips/c"}


def test_common_voice_as_others_leave_it(tmp_path, capsys):
    """Without splits, with paths as other tools write them, and its recordings alone."""
    _audio(tmp_path / "cv" / "clips" / "a.wav")
    (tmp_path / "cv" / "clips" / "a.wav").rename(tmp_path / "cv" / "clips" / "b.mp3")
    _audio(tmp_path / "cv" / "clips" / "a.wav")
    rows = [
        "client_id\tpath\tsentence",
        "x\tclips/a.wav\tone",
        "y\tb\ttwo",
        "z\tclips//etc/passwd\tx",
        f"z\t{'d' * 300}\tx",
    ]
    (tmp_path / "cv" / "validated.tsv").write_text("\n".join(rows))
    with pytest.raises(InputError, match="such as NAME=cv/validated.tsv"):
        discover(tmp_path / "cv")
    found = discover(tmp_path / "cv" / "validated")
    assert [(u.id, u.file, u.defect[:12]) for u in found] == [
        ("a", "a.wav", ""),
        ("b", "b.mp3", ""),
        ("clips/etc/passwd", "clips//etc/passwd", "no such file"),
        ("d" * 300, "d" * 300, "no such file"),
    ]
    assert not capsys.readouterr().out
    assert [u.id for u in discover(tmp_path / "cv" / "clips")] == ["a", "b"]
    assert "these are the recordings of" in capsys.readouterr().out
    (tmp_path / "cv" / "clips").rename(tmp_path / "clips")
    assert [u.id for u in discover(tmp_path / "clips")] == ["a", "b"]
    assert not capsys.readouterr().out


def test_parquet_beside_audio_files_is_not_left_without_a_word(tmp_path, speech):
    _parquet(tmp_path / "data" / "train-0.parquet", speech)
    _audio(tmp_path / "sample.wav")
    message = "holds data/train-0.parquet and audio files, such as sample.wav; expected tables or"
    with pytest.raises(InputError, match=message):
        discover(tmp_path)
    assert len(discover(tmp_path / "data")) == len(speech)


def test_parquet_without_ids_counts_rows(tmp_path, speech):
    for name in ("a/x.parquet", "a/y.parquet"):
        _parquet(tmp_path / name, speech)
    assert [u.id for u in discover(tmp_path)] == [f"{f}:{i}" for f in ("x", "y") for i in range(3)]
    assert discover(tmp_path / "a" / "x.parquet")[2].id == "x:2"


def test_parquet_that_cannot_be_used(tmp_path, speech):
    path = _parquet(tmp_path / "a.parquet", [("x", None, "X"), *speech])
    first = discover(path)[0]
    with pytest.raises(InputError, match="a.parquet: no audio in row 0 of row group 0"):
        first.load()
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="a.parquet: damaged or not Parquet"):
        discover(path)
    pyarrow = importlib.import_module("pyarrow")
    importlib.import_module("pyarrow.parquet").write_table(pyarrow.table({"text": ["a"]}), path)
    with pytest.raises(InputError, match="expected a column of audio.* found the columns text"):
        discover(path)


@pytest.fixture(scope="module")
def tfds_data_dir(tmp_path_factory, speech) -> pathlib.Path:
    """A small data set with the features of TensorFlow Datasets' librispeech, prepared."""
    import tensorflow_datasets as tfds

    class Tiny(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        code_path = None  # no folder of checksums beside this test

        def _info(self):
            features = {
                "speech": tfds.features.Audio(sample_rate=16_000),
                "text": tfds.features.Text(),
                "speaker_id": np.int64,
                "id": np.str_,
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for name, content, text in speech:
                audio, _ = soundfile.read(io.BytesIO(content), dtype="int16")
                yield name, {"speech": audio, "text": text, "speaker_id": 1898, "id": name}

    data_dir = tmp_path_factory.mktemp("tfds")
    Tiny(data_dir=data_dir).download_and_prepare()
    return data_dir


def test_tensorflow_datasets_by_name(tfds_data_dir, speech):
    found = discover("tfds:tiny/train", data_dir=str(tfds_data_dir))
    assert [(u.id, u.text, u.speaker) for u in found] == [(n, t, "1898") for n, _, t in speech]
    for utterance in (*found, *reversed(found)):
        expected = read_waveform(CHAPTER / f"{utterance.id}.opus")
        np.testing.assert_array_equal(read_waveform(utterance.load(), name="x"), expected)


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("tfds:tiny/test", "no split 'test'; there are train"),
        ("tfds:tiny", "expected tfds:NAME/SPLIT"),
        ("tfds:teeny/train", "tfds:teeny: no such data set in"),
        ("tfds:librispeech/train_clean100", "librispeech.*: not prepared in .*build it first"),
    ],
)
def test_tensorflow_datasets_that_are_not_there(tfds_data_dir, location, message):
    with pytest.raises(InputError, match=message):
        discover(location, data_dir=str(tfds_data_dir))


SPLITS = ("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001")


@pytest.mark.parametrize(
    "names",
    [
        SPLITS,
        ("train/0", "dev/0"),
        ("train.clean.100", "test.other"),
        ("train-0", "holdout-0"),
        ("train/0", "unsplit"),
    ],
)
def test_parquet_of_several_splits_is_not_mixed(tmp_path, speech, names):
    for name in names:
        _parquet(tmp_path / "hub" / "data" / f"{name}.parquet", speech)
    with pytest.raises(InputError, match=r"tables or rows of several splits: .*, such as hub/"):
        discover(tmp_path / "hub")
    train = [name for name in names if name.startswith("train")]
    chosen = discover(tmp_path / "hub" / "train")
    assert len(chosen) == 3 * len(train)
    assert {u.file for u in chosen} <= {f"{name.split('/')[-1]}.parquet" for name in train}
    # Rows without ids are not called alike in two splits.
    rest = {"test.other": "test", "holdout-0": "", "unsplit": ""}.get(names[-1], "dev")
    other = {u.id for u in discover(tmp_path / "hub" / (rest or f"data/{names[-1]}.parquet"))}
    assert len(other) == 3 and not other & {u.id for u in chosen}
    with pytest.raises(InputError, match="hub/nothing: expected a folder"):
        discover(tmp_path / "hub" / "nothing")


@pytest.mark.parametrize(
    ("other", "said"), [("test", "test"), ("holdout", "holdout"), (None, "none")]
)
def test_rows_of_several_splits_are_not_mixed(tmp_path, speech, other, said):
    _parquet(tmp_path / "hub" / "a.parquet", speech, split=["train", other, "train"])
    for location in ("hub", "hub/a.parquet"):
        with pytest.raises(InputError, match=rf"a.parquet: .* {said} \(1\), train \(2\); .*/train"):
            discover(tmp_path / location)
    assert [u.id for u in discover(tmp_path / "hub" / "train")] == ["a:0", "a:2"]
    with pytest.raises(InputError, match="hub/validation: no tables or rows of this split"):
        discover(tmp_path / "hub" / "validation")


@pytest.mark.parametrize("table", ["metadata.csv", "transcripts.tsv"])
def test_metadata_of_several_splits_is_not_mixed(tmp_path, table):
    folder = _folder(tmp_path / "audio")
    names = sorted(path.name for path in folder.iterdir())
    rows = [f"{name},A B,{split}\n" for name, split in zip(names, ("train", "test"), strict=True)]
    text = "file_name,text,split\n" + "".join(rows)
    if table == "transcripts.tsv":
        text = text.replace("file_name", "file").replace(",", "\t")
    (folder / table).write_text(text)
    with pytest.raises(InputError, match=rf"{table}: .* splits: test \(1\), train \(1\)"):
        discover(folder)
    (found,) = discover(folder / "test")
    assert found.file == names[1] and not found.defect
    with pytest.raises(InputError, match="expected a folder of audio files, or a table in"):
        discover(folder / "dev")


@pytest.mark.parametrize(
    "second", ["file_name,text,split\nb.wav,B,test\n", "file_name,text\nb.wav,B\n"]
)
def test_tables_of_several_splits_are_not_mixed(tmp_path, second):
    for name in ("x/a.wav", "y/b.wav"):
        _audio(tmp_path / name)
    (tmp_path / "x" / "metadata.csv").write_text("file_name,text,split\na.wav,A,train\n")
    (tmp_path / "y" / "metadata.csv").write_text(second)
    with pytest.raises(InputError, match=rf"{tmp_path}: .* splits: .* \(1\), train \(1\)"):
        discover(tmp_path)
    assert [(u.id, u.defect) for u in discover(tmp_path / "train")] == [("x/a", "")]


def test_joined_tables_are_read(tmp_path):
    folder = _folder(tmp_path / "audio")
    first, second = sorted(path.name for path in folder.iterdir())
    table = folder / "transcripts.tsv"
    table.write_text(f"\ufeff{first}\tA\n\ufeff{second}\tB\n", encoding="utf-8")
    assert [(u.text, u.defect) for u in discover(folder)] == [("A", ""), ("B", "")]
    table.write_text(f"{first}\tA\n{second}\tB\ufeff{second}\tB\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"transcripts.tsv, line 2: .*\(U\+FEFF\) within the line"):
        discover(folder)


def test_an_open_quotation_mark_is_reported_where_its_row_begins(tmp_path):
    folder = _folder(tmp_path / "audio")
    rows = ("0.opus,zero", "", '1.opus,"two\nlines"', '2.opus,"he said', '3.opus,no "quote', "")
    for line_break in ("\n", "\r\n"):
        text = line_break.join(("file_name,sentence", *rows))
        (folder / "metadata.csv").write_bytes(text.encode())
        with pytest.raises(InputError, match="metadata.csv, line 6: not comma-separated"):
            discover(folder)
    (folder / "metadata.csv").write_text('file_name,text\n0.opus,"a\nb"\n\n ,c\n')
    with pytest.raises(InputError, match="metadata.csv, line 5: expected the column file_name"):
        discover(folder)


def _folder(path: pathlib.Path) -> pathlib.Path:
    """Two audio files."""
    _audio(path / "0.wav")
    return _audio(path / "1.wav").parent
