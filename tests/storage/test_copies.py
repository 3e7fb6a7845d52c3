"""Copies on this host, and folders that appear when they are complete."""

import os
import pathlib

import pytest

from hubert_jax import storage
from hubert_jax.errors import InputError
from hubert_jax.storage import cache


def test_the_cache_is_bounded(memory, monkeypatch):
    monkeypatch.setattr(cache, "_YOUNG_SECONDS", 0.0)
    monkeypatch.setenv("HUBERT_JAX_CACHE_BYTES", "100000")
    for number in range(30):
        (memory / f"{number}").write_bytes(bytes(10_000))
        assert storage.local(memory / f"{number}").stat().st_size == 10_000
    kept = [each for each in (cache.folder() / "copies").rglob("*") if each.is_file()]
    assert 5 <= len(kept) <= 11 and "29" in {each.name for each in kept}
    # Another process, which has not fetched yet, keeps to it as well.
    monkeypatch.setattr(cache, "_fetched", float("inf"))
    monkeypatch.setenv("HUBERT_JAX_CACHE_BYTES", "30000")
    (memory / "more").write_bytes(bytes(10_000))
    storage.local(memory / "more")
    assert len([each for each in (cache.folder() / "copies").rglob("*") if each.is_file()]) <= 3
    # What was used just now can still be opened, whatever the bound.
    monkeypatch.setattr(cache, "_YOUNG_SECONDS", 60.0)
    found = [storage.local(memory / f"{number}") for number in range(9)]
    assert all(each.stat().st_size == 10_000 for each in found)
    monkeypatch.setenv("HUBERT_JAX_CACHE_BYTES", "50 GB")
    (memory / "other").write_bytes(b"1")
    with pytest.raises(InputError, match="HUBERT_JAX_CACHE_BYTES=50 GB: expected a number"):
        storage.local(memory / "other")


def test_a_folder_is_copied_for_libraries(memory):
    for name in ("config.json", "below/weights"):
        (memory / name).write_text(name)
    found = storage.local(memory)
    assert (found / "below" / "weights").read_text() == "below/weights"
    assert storage.local(memory) == found
    (memory / "config.json").write_text("another")
    assert (storage.local(memory) / "config.json").read_text() == "another"
    with pytest.raises(FileNotFoundError):
        storage.local(memory / "missing")


def test_a_file_that_fails_is_not_sent(memory):
    (memory / "a").write_text("old")
    with pytest.raises(ValueError), storage.sending_file(memory / "a") as aside:
        aside.write_text("new")
        raise ValueError
    assert (memory / "a").read_text() == "old"
    with storage.sending_file(memory / "a") as aside:
        aside.write_text("new")
    assert (memory / "a").read_text() == "new"
    assert list((cache.folder() / "aside").iterdir()) == []


def test_what_a_killed_process_left_is_swept_away(memory):
    left = cache.folder() / "aside" / "left"
    left.mkdir(parents=True)
    os.utime(left, (0, 0))
    with storage.sending_file(memory / "a") as aside:
        assert not left.exists()
        os.utime(aside.parent, (0, 0))
        with storage.sending_file(memory / "b") as other:
            other.write_text("2")
        aside.write_text("1")
    assert sorted(memory.find()) == ["a", "b"]


def test_a_folder_is_sent_with_its_marker_last(bucket, monkeypatch):
    for name in ("manifest.json", "old"):
        (bucket / name).write_text("before")
    sent = []
    send = storage.BucketPath.send

    def noting(self, file):
        assert (bucket / "manifest.json").exists() == ("manifest.json" in sent)
        send(self, file)
        sent.append(self.name)

    monkeypatch.setattr(storage.BucketPath, "send", noting)
    with storage.sending_directory(bucket, "manifest.json") as aside:
        for name in ("manifest.json", "b", "a"):
            (aside / name).write_text(name)
    assert sent[-1] == "manifest.json" and sorted(bucket.find()) == ["a", "b", "manifest.json"]


def test_a_working_copy_sends_what_changed(bucket, bucket_server):
    (bucket / "kept").write_text("1")
    (bucket / "large").write_text("not wanted")
    copy = storage.WorkingCopy(bucket, ["kept", "missing"])
    assert [each.name for each in copy.local.iterdir()] == ["kept"]
    (copy.local / "below").mkdir()
    (copy.local / "below" / "new").write_text("2")
    (copy.local / "unready").write_text("3")
    bucket_server.requests.clear()
    copy.push(ready=lambda name: name != "unready")
    copy.push(ready=lambda name: name != "unready")
    assert bucket_server.requests == {"PUT": 1}
    assert sorted(bucket.find()) == ["below/new", "kept", "large"]
    copy.close()
    assert not copy.local.exists()


def test_nothing_makes_a_local_folder_of_a_url(bucket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with storage.sending_file(bucket / "a") as aside:
        aside.write_text("1")
    (bucket / "b").mkdir(parents=True, exist_ok=True)
    storage.local(bucket)
    assert list(pathlib.Path().iterdir()) == []


def test_a_copy_is_of_one_version(memory, monkeypatch):
    path = memory / "a"
    path.write_text("old")
    fetch, fetched = storage.BucketPath.fetch, []

    def replaced(self, file):
        fetch(self, file)
        fetched.append(file)
        if len(fetched) == 1:
            path.write_text("another")

    monkeypatch.setattr(storage.BucketPath, "fetch", replaced)
    assert storage.local(path).read_text() == "another" and len(fetched) == 2
    assert storage.local(path).read_text() == "another" and len(fetched) == 2


def test_a_copy_that_was_cut_off_is_fetched_again(memory):
    for name in ("a", "below/b"):
        (memory / name).write_text("content")
    storage.local(memory / "a").write_text("con")
    assert storage.local(memory / "a").read_text() == "content"
    (storage.local(memory) / "below" / "b").unlink()
    assert (storage.local(memory) / "below" / "b").read_text() == "content"


def test_a_bucket_keeps_no_copies(monkeypatch):
    for place in ("s3://bucket/cache", "s3:/bucket/cache"):
        monkeypatch.setenv("HUBERT_JAX_CACHE", place)
        with pytest.raises(InputError, match=f"{place}: expected"):
            cache.folder()
