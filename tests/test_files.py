"""Files and directories that are there completely or not at all."""

import json
import os
import pathlib

import pytest

from hubert_jax import files
from hubert_jax.errors import InputError


def test_a_failed_write_leaves_the_older_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "below" / "value.json"
    files.write_json(path, {"a": [1, 2]})
    assert files.read_json(path, "value") == {"a": [1, 2]}

    def full_disk(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="disk full"):
        files.write_text(path, "changed")
    assert files.read_json(path, "value") == {"a": [1, 2]}
    assert list(path.parent.iterdir()) == [path]


def test_read_json_names_the_file_and_what_to_do(tmp_path):
    with pytest.raises(InputError, match="m.json: manifest not found; run prepare first"):
        files.read_json(tmp_path / "m.json", "manifest", "prepare")
    (tmp_path / "cut.json").write_text('{"a": [1,')
    with pytest.raises(InputError, match="cut.json: manifest is not valid JSON"):
        files.read_json(tmp_path / "cut.json", "manifest")
    with pytest.raises(InputError, match="not found"):
        files.read_json(tmp_path / "cut.json" / "below", "manifest")


def test_numbers_of_a_json_file_are_on_one_line(tmp_path):
    value = {"pnmi": [0.1, -2e-05, 3], "text": "[1,   2]\n[\n 3,   4]", "of": [["a", 1], []]}
    files.write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == value and "[ 0.1, -2e-05, 3 ]" in text


def test_directory_appears_when_it_is_complete(tmp_path):
    target = tmp_path / "parent" / "split"
    with files.writing_directory(target) as aside:
        (aside / "shard").write_text("new")
        assert not target.exists()
    assert (target / "shard").read_text() == "new"
    with files.writing_directory(target) as aside:
        (aside / "other").write_text("newer")
    assert [path.name for path in target.iterdir()] == ["other"]
    assert [path.name for path in target.parent.iterdir()] == ["split"]


def test_directory_stays_as_it_was_after_an_error(tmp_path):
    target = tmp_path / "split"
    target.mkdir()
    (target / "shard").write_text("old")
    with pytest.raises(RuntimeError), files.writing_directory(target) as aside:
        (aside / "shard").write_text("half")
        raise RuntimeError
    assert (target / "shard").read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_what_a_killed_process_left_is_swept_away(tmp_path):
    leftover = tmp_path / "split.tmp-1"
    leftover.mkdir()
    (leftover / "half").write_text("x")
    with files.writing_directory(tmp_path / "split"):
        pass
    assert not leftover.exists()


def test_require_writable(tmp_path):
    assert files.require_writable(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert list((tmp_path / "a" / "b").iterdir()) == []
    file = tmp_path / "file"
    file.write_text("")
    for workdir in (file, file / "below", pathlib.Path("/dev/null/x")):
        with pytest.raises(InputError, match=f"config.workdir={workdir}: cannot be written"):
            files.require_writable(workdir)


def test_sha256_of_a_file(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")  # the test vector of FIPS 180-2
    assert files.sha256_file(tmp_path / "abc") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def test_kept_lines_outlive_a_killed_job(tmp_path):
    path = tmp_path / "below" / "kept"
    kept = files.KeptLines(path, "key")
    kept.add("a", [1])
    kept.add("é\n", {"b": 2})
    kept.add("a", [3])
    assert kept["a"] == [3] and kept["é\n"] == {"b": 2} and "c" not in kept
    with path.open("ab") as file:
        file.write(b'00c0ffee ["c", 4')  # as the job was killed
    again = files.KeptLines(path, "key")
    assert again["a"] == [3] and again["é\n"] == {"b": 2} and "c" not in again
    again.add("c", 5)
    assert files.KeptLines(path, "key")["c"] == 5
    content = path.read_bytes()
    # Damage, which leaves JSON: what follows is void.
    for damage in (b'"b": 3', b'"c": 2', b"[" * 100_000):
        path.write_bytes(content.replace(b'"b": 2', damage))
        damaged = files.KeptLines(path, "key")
        assert damaged["a"] == [1] and [*damaged] == ["a"]
    assert "a" not in files.KeptLines(path, "another key")
    assert "a" not in files.KeptLines(path, "key")
