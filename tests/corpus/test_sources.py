"""Corpora: the embedded one, other layouts, and transcripts that do not fit their audio."""

import os
import pathlib
import shutil

import numpy as np
import pytest
import soundfile

from hubert_jax.corpus.audio_files import read_waveform
from hubert_jax.corpus.sources import discover
from hubert_jax.errors import InputError

CORPUS = pathlib.Path(__file__).parents[2] / "examples" / "minilibri"


def _audio(path: pathlib.Path) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros(400, np.int16), 16_000)
    return path


@pytest.mark.parametrize(
    ("split", "utterances", "speakers", "transcribed"),
    [("train-clean-5", 260, 17, 260), ("train-clean-100", 181, 181, 0), ("dev-mini", 46, 3, 46)],
)
def test_embedded_corpus_is_what_its_readme_says(split, utterances, speakers, transcribed):
    found = discover(CORPUS / split)
    assert len(found) == utterances
    assert len({utterance.speaker for utterance in found}) == speakers
    assert sum(bool(utterance.text) for utterance in found) == transcribed
    assert not any(utterance.defect for utterance in found)
    assert [utterance.id for utterance in found] == sorted(utterance.id for utterance in found)


def test_embedded_alignments_cover_every_transcribed_utterance():
    for split in ("train-clean-5", "dev-mini"):
        lines = (CORPUS / "alignments" / f"{split}.phones.txt").read_text().splitlines()
        aligned = {line.split(" ", 1)[0] for line in lines}
        assert aligned == {utterance.id for utterance in discover(CORPUS / split)}


def test_no_speaker_of_dev_mini_is_in_training_and_no_utterance_is_there_twice():
    dev, train, more = (
        discover(CORPUS / split) for split in ("dev-mini", "train-clean-5", "train-clean-100")
    )
    assert not {u.speaker for u in dev} & {u.speaker for u in train + more}
    assert not {u.id for u in train} & {u.id for u in more}


def test_librispeech_ids_speakers_and_texts():
    chapter = CORPUS / "dev-mini" / "1898" / "145715"
    lines = (chapter / "1898-145715.trans.txt").read_text().splitlines()
    expected = dict(line.split(" ", 1) for line in lines)
    found = {u.id: u for u in discover(CORPUS / "dev-mini") if u.path.parent == chapter}
    assert {name: utterance.text for name, utterance in found.items()} == expected
    assert {utterance.speaker for utterance in found.values()} == {"1898"}
    # One level up, the speaker is still the speaker and not the subset.
    assert {u.speaker for u in discover(CORPUS / "dev-mini" / "1898")} == {"1898"}


def test_any_folder_with_a_plain_table(tmp_path):
    for name in ("x/one.wav", "x/deep/two.FLAC", "three.ogg"):
        _audio(tmp_path / name)
    (tmp_path / "x" / ".hidden.wav").write_bytes(b"")
    (tmp_path / "transcripts.tsv").write_text(
        "x/one.wav\tIt's  one\nx/deep/two\ttwo\nthree.ogg\tthree\r\n\n"
    )
    found = [(u.id, u.speaker, u.text, u.defect) for u in discover(tmp_path)]
    assert found == [
        ("three", "", "three", ""),
        ("x/deep/two", "x", "two", ""),
        ("x/one", "x", "It's one", ""),
    ]


def test_table_with_named_columns(tmp_path):
    _audio(tmp_path / "a.wav")
    (tmp_path / "transcripts.tsv").write_text("utterance\tspeaker\tage\ttext\na\tann\t7\thello\n")
    (only,) = discover(tmp_path)
    assert (only.speaker, only.text) == ("ann", "hello")


def test_links_to_folders_are_followed(tmp_path):
    _audio(tmp_path / "elsewhere" / "a.wav")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "linked").symlink_to(tmp_path / "elsewhere")
    assert [utterance.id for utterance in discover(corpus)] == ["linked/a"]


def test_links_that_lead_back_are_followed_once(tmp_path):
    _audio(tmp_path / "a" / "one.wav")
    _audio(tmp_path / "b" / "two.wav")
    # To itself, to a folder above, and two folders into one another.
    (tmp_path / "a" / "self").symlink_to(tmp_path / "a")
    (tmp_path / "b" / "top").symlink_to(tmp_path)
    (tmp_path / "a" / "b").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "a").symlink_to(tmp_path / "a")
    ids = [utterance.id for utterance in discover(tmp_path)]
    assert ids == ["a/b/two", "a/one", "b/a/one", "b/two"]


def test_a_link_to_itself_is_a_file_that_cannot_be_read(tmp_path):
    _audio(tmp_path / "a.wav")
    (tmp_path / "b.wav").symlink_to(tmp_path / "b.wav")
    assert [utterance.id for utterance in discover(tmp_path)] == ["a", "b"]
    with pytest.raises(InputError, match="b.wav: cannot be read .Too many levels"):
        read_waveform(tmp_path / "b.wav")


def test_a_folder_that_vanishes_is_named(tmp_path, monkeypatch):
    _audio(tmp_path / "a" / "one.wav")
    scandir = os.scandir

    def vanishing(folder):
        if folder == tmp_path / "a":
            monkeypatch.undo()
            shutil.rmtree(folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", vanishing)
    with pytest.raises(InputError, match="a: cannot be listed .No such file.*nothing may change"):
        discover(tmp_path)


def test_names_with_spaces_and_of_other_alphabets(tmp_path):
    # The table writes the accent as part of the letter, the file system as a letter of its own.
    _audio(tmp_path / "une e\u0301tude.wav")
    _audio(tmp_path / "語り 手" / "第一 章.wav")
    (tmp_path / "transcripts.tsv").write_text(
        "une \u00e9tude.wav\tune e\u0301tude\n語り 手/第一 章.wav\tdeux\n"
    )
    found = [(u.id, u.speaker, u.text, u.defect) for u in discover(tmp_path)]
    assert found == [
        ("une e\u0301tude", "", "une \u00e9tude", ""),
        ("語り 手/第一 章", "語り 手", "deux", ""),
    ]


def test_names_that_are_not_utf_8_are_refused_in_ascii(tmp_path):
    os.rename(_audio(tmp_path / "a.wav"), os.fsencode(tmp_path) + b"/\xff.wav")
    (only,) = discover(tmp_path)
    assert (only.id, only.defect) == ("\\xff", "its name is not UTF-8; rename the file")


def test_audio_that_cannot_be_read_is_not_overlooked(tmp_path):
    _audio(tmp_path / "a.wav")
    (tmp_path / "a.m4a").write_bytes(b"x")  # from which a.wav was made
    (tmp_path / "b.m4a").write_bytes(b"x")
    (tmp_path / "c.wma").write_bytes(b"x")
    (tmp_path / "e.wav.gz").write_bytes(b"x")
    _audio(tmp_path / "d.wav")
    (tmp_path / "d.wav").rename(tmp_path / "d.wave")
    defects = {u.id: u.defect for u in discover(tmp_path)}
    assert set(defects) == {"a", "b", "c", "d", "e.wav"}
    assert defects["a"] == "" and defects["b"].startswith(".m4a cannot be read; convert it")
    assert defects["d"] == "" and defects["c"].startswith(".wma cannot be read")
    assert defects["e.wav"].startswith(".wav.gz cannot be read")


def test_videos_beside_recordings_are_named_and_left(tmp_path, capsys):
    _audio(tmp_path / "sound" / "a.wav")
    for name in ("sound/a.mp4", "video/a.flv", "video/b.flv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (kept, other) = discover(tmp_path)
    assert (kept.id, kept.defect) == ("sound/a", "")
    assert other.id == "video/b" and other.defect.startswith(".flv cannot be read")
    assert f"warning: {tmp_path}/sound/a.mp4 and 1 more not read" in capsys.readouterr().out


def test_a_row_with_more_cells_than_columns_is_refused(tmp_path):
    _audio(tmp_path / "a.wav")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.wav,yes, I said no\n")
    with pytest.raises(InputError, match="csv, line 2: more cells than columns, ' I said no'"):
        discover(tmp_path)


def test_tables_that_are_not_read_are_named(tmp_path, capsys):
    _audio(tmp_path / "clips" / "a.wav")
    for split in ("train", "dev"):
        (tmp_path / f"{split}.tsv").write_text("speaker\tname\tsaid\nx\ta.wav\tone\n")
    (found,) = discover(tmp_path)
    assert found.text is None
    assert f"warning: {tmp_path}/dev.tsv and 1 more not read" in capsys.readouterr().out


def test_what_may_hold_more_of_a_corpus_is_named(tmp_path, capsys):
    names = ("b.tar", "c.zip", "d.arrow", "e.h5", "f.tfrecord-00000-of-00002", "g.PQ", "h.tar.gz")
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "README.md", "a.json", "a.flac.gz"):
        (tmp_path / name).write_bytes(b"x")
    soundfile.write(tmp_path / "a.wav", np.zeros(400, np.int16), 16_000)
    discover(tmp_path)
    said = f"{tmp_path}: warning: {tmp_path}/"
    assert (
        capsys.readouterr().out == f"{said}a.flac.gz not read; recordings of these names are read\n"
    )
    (tmp_path / "a.flac.gz").unlink()
    for name in names:
        (tmp_path / name).write_bytes(b"x")
        assert [u.id for u in discover(tmp_path)] == ["a"]
        assert f"{said}{name} not read; unpack archives; tables" in capsys.readouterr().out
        (tmp_path / name).unlink()
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "a.wav").unlink()
    with pytest.raises(InputError, match="expected audio files"):
        discover(tmp_path)
    assert f"{said}b.tar and 6 more not read" in capsys.readouterr().out


def test_chapter_transcripts_that_do_not_fit_the_audio(tmp_path):
    source = CORPUS / "dev-mini" / "1898" / "145715"
    chapter = tmp_path / "1898" / "145715"
    shutil.copytree(source, chapter)
    first, second, third = sorted(chapter.glob("*.opus"))[:3]
    table = chapter / "1898-145715.trans.txt"
    lines = [line for line in table.read_text().splitlines() if second.stem not in line]
    lines = [third.stem if third.stem in line else line for line in lines]
    table.write_text("\n".join(lines) + "\n")
    first.unlink()
    defects = {u.id: u.defect for u in discover(tmp_path) if u.defect}
    assert set(defects) == {first.stem, second.stem, third.stem}
    assert "has no audio file" in defects[first.stem]
    assert "no transcript" in defects[second.stem]
    assert "empty transcript" in defects[third.stem]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("\u200bone two.wav", r"'\u200bone two.wav'"),
        ("one\u00a0two.wav", r"'one\xa0two.wav'"),
        ("ONE\u00adTWO.flac", r"'ONE\xadTWO.flac'"),
        ("\uff4fne two", "'\uff4fne two'"),
        ("two.wav", ""),
    ],
)
def test_a_name_that_looks_like_the_missing_one_is_shown(tmp_path, name, shown):
    _audio(tmp_path / "x" / "one two.wav")
    table = tmp_path / "transcripts.tsv"
    table.write_text(f"x/{name}\tbee\n", encoding="utf-8")
    (defect,) = (u.defect for u in discover(tmp_path) if u.id == "x/one two")
    more = shown.replace("'", ", which has 'x/", 1)
    assert defect == f"no transcript; expected a line for it in {table}{more}"


def test_table_entries_that_do_not_fit_the_audio(tmp_path):
    _audio(tmp_path / "a.wav")
    (tmp_path / "transcripts.tsv").write_text("b.wav\tbee\n")
    defects = {u.id: u.defect for u in discover(tmp_path)}
    assert "no transcript" in defects["a"]
    assert f"expected {tmp_path / 'b.wav'}" in defects["b.wav"]


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(InputError, match="nowhere: expected a folder .*, found nothing there"):
        discover(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("no audio")
    with pytest.raises(InputError, match=r"expected audio files \(\*\.wav, .*found none"):
        discover(tmp_path)
    with pytest.raises(InputError, match="found a file there"):
        discover(tmp_path / "notes.txt")


def test_same_id_twice_names_both_files(tmp_path):
    _audio(tmp_path / "a.wav")
    _audio(tmp_path / "a.flac")
    with pytest.raises(InputError, match=r"a\.wav: the utterance id 'a' is also that of .*a\.flac"):
        discover(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a.wav\tone\na.wav\ttwo\n", "line 2: a.wav has a transcript already"),
        (b"a.wav\tone\nb.wav two\n", "line 2: expected FILE<TAB>TEXT, found 1 columns"),
        (b"a.wav\tone\ttwo\n", "line 1: expected FILE<TAB>TEXT, found 3 columns"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "tsv: a pointer of Git LFS"),
        (b"a.wav\tcaf\xe9\n", "expected UTF-8 text, found byte 0xe9 at position 9"),
    ],
)
def test_bad_tables_are_refused(tmp_path, content, message):
    _audio(tmp_path / "a.wav")
    (tmp_path / "transcripts.tsv").write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        discover(tmp_path)
    assert "\n" not in str(error.value)
