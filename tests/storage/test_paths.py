"""Paths of this host and in buckets."""

import errno
import os
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest

from hubert_jax import storage
from hubert_jax.errors import InputError, Unavailable


def test_a_local_path_is_pathlibs(tmp_path):
    for parts in (("a",), (tmp_path, "a"), ("a", "/b"), (pathlib.Path("a"), "b", "c"), ("a:b//c",)):
        found = storage.path(*parts)
        assert type(found) is type(pathlib.Path()) and found == pathlib.Path(*parts)
    assert storage.absolute("a/../b") == pathlib.Path.cwd() / "b"
    assert storage.local("a") == pathlib.Path("a")


def test_names_of_urls():
    place = storage.path("s3://bkt/runs", "it1/train")
    assert str(place) == f"{place}" == place.as_posix() == "s3://bkt/runs/it1/train"
    assert str(place.parent) == "s3://bkt/runs/it1" and place.name == "train"
    assert str(place / "a" / "b.json") == "s3://bkt/runs/it1/train/a/b.json"
    assert str(place.with_name("x").with_suffix(".npz")) == "s3://bkt/runs/it1/x.npz"
    assert str(place.joinpath("a", "b")) == "s3://bkt/runs/it1/train/a/b"
    assert place / "/etc" == pathlib.Path("/etc")
    assert str(place / "gs://other/x") == "gs://other/x" == str(storage.path("a", "gs://other/x"))
    assert place.relative_to("s3://bkt/runs").as_posix() == "it1/train"
    assert place.is_relative_to(storage.path("s3://bkt")) and place.absolute() == place.resolve()
    assert str(storage.absolute("s3://bkt/a/../b/./c")) == "s3://bkt/b/c"
    assert (
        pickle.loads(pickle.dumps(place)) == place and len({place, storage.path(str(place))}) == 1
    )
    assert storage.is_url(place) and storage.is_url("gs://b/x") and not storage.is_url("a://"[:1])


def test_other_urls_are_refused_by_name():
    with pytest.raises(InputError, match=r"http://host/a: a URL of kind http://; expected a local"):
        storage.path("http://host/a")
    with pytest.raises(InputError, match="s3://: names no bucket"):
        storage.path("s3://")
    for almost in ("s3:/bucket/a", "gs:bucket", "s3:"):  # would be a local folder
        with pytest.raises(InputError, match=f"{almost}: expected ..://BUCKET/NAME, with two"):
            storage.path(almost)
    assert str(storage.absolute("s3://bucket")) == "s3://bucket"


def test_objects_are_read_as_files_are(memory):
    file = memory / "folder" / "a.txt"
    assert not file.exists() and not memory.is_dir() and list(memory.iterdir()) == []
    file.write_text("one\ntwo\n")
    assert file.exists() and file.is_file() and not file.is_dir()
    assert memory.is_dir() and not memory.is_file() and storage.is_dir(str(memory))
    assert file.stat().st_size == 8 and file.read_text() == "one\ntwo\n"
    assert file.read_range(2, 3) == b"e\nt" and file.read_range(6, 100) == b"o\n"
    with open(file) as lines:
        assert list(lines) == ["one\n", "two\n"]
    with file.open("rb") as lines:
        assert lines.read() == b"one\ntwo\n"
    np.save(storage.cache.folder() / "x.npy", np.arange(3))
    (memory / "x.npy").send(storage.cache.folder() / "x.npy")
    assert np.load(memory / "x.npy").tolist() == [0, 1, 2]
    assert storage.names_in(memory) == ["folder", "x.npy"]
    assert [each.name for each in memory.glob("*/*.txt")] == ["a.txt"]
    assert [each.name for each in memory.rglob("*.npy")] == ["x.npy"]
    assert sorted(memory.find()) == ["folder/a.txt", "x.npy"]
    for name in ("folder/deep/er/b", "folder/.hidden/c"):
        (memory / name).write_text("")
    below = [(str(f), [e.name for e in found]) for f, found in memory.folders()]
    top = str(memory)
    assert below == [
        (top, ["folder", "x.npy"]),
        (f"{top}/folder", [".hidden", "a.txt", "deep"]),
        (f"{top}/folder/deep", ["er"]),
        (f"{top}/folder/deep/er", ["b"]),
    ]
    before = file.stat().st_mtime_ns
    file.write_text("one\nten\n")
    assert file.stat().st_mtime_ns != before and open(file).read() == "one\nten\n"


def test_failures_are_those_of_local_files(memory):
    memory.joinpath("folder/a").write_text("")
    for fail in (memory.joinpath("b").read_bytes, memory.joinpath("b").unlink):
        with pytest.raises(FileNotFoundError) as caught:
            fail()
        assert caught.value.filename == str(memory / "b") and caught.value.strerror
    with pytest.raises(FileNotFoundError):
        open(memory / "b")
    with pytest.raises(NotADirectoryError):
        storage.names_in(memory / "folder" / "a")
    for change in (
        lambda: memory.joinpath("folder/a").open("w"),
        lambda: memory.joinpath("folder/a").touch(),
        lambda: memory.joinpath("folder/a").chmod(0o600),
    ):
        with pytest.raises(OSError, match="not changed in place") as refused:
            change()
        assert refused.value.errno == errno.EROFS
    memory.joinpath("b").unlink(missing_ok=True)


def test_an_object_is_created_once_and_replaced_by_its_version(bucket):
    lock = bucket / "lock"
    lock.create(b"one")
    with pytest.raises(FileExistsError):
        lock.create(b"two")
    first = lock.found().version
    second = lock.replace_version(b"three", first)
    assert second == lock.found().version != first
    with pytest.raises(FileExistsError):
        lock.replace_version(b"four", first)
    assert lock.read_bytes() == b"three"
    lock.unlink()
    with pytest.raises(FileNotFoundError):
        lock.replace_version(b"five", second)


def test_folders_are_moved_and_removed(bucket):
    for name in ("run/manifest.json", "run/a", "run/below/b"):
        (bucket / name).write_text(name)
    assert (bucket / "run").rename(bucket / "aside") == bucket / "aside"
    assert sorted(bucket.find()) == ["aside/a", "aside/below/b", "aside/manifest.json"]
    assert not (bucket / "run").exists()
    storage.remove_tree(bucket / "aside")
    assert not bucket.exists() and list(bucket.find()) == []
    with pytest.raises(FileNotFoundError):
        storage.names_in(bucket)


def test_names_that_would_be_other_places_are_not_seen(bucket, tmp_path):
    import boto3

    name, victim = str(bucket).removeprefix("s3://bucket/"), tmp_path / "victim"
    victim.write_text("kept")
    keys = ("a", "below/", f"/{victim}", "../b", "below/../../c", "below//d", "./e")
    for key in keys:
        boto3.client("s3").put_object(Bucket="bucket", Key=f"{name}/{key}", Body=b"x")
    assert [*bucket.find()] == ["a"] and storage.names_in(bucket) == ["a", "below"]
    assert [entry.name for _, listed in bucket.folders() for entry in listed] == ["a"]
    assert [path.name for path in storage.local(bucket).rglob("*")] == ["a"]
    storage.remove_tree(bucket)
    assert victim.read_text() == "kept"
    listed = boto3.client("s3").list_objects_v2(Bucket="bucket", Prefix=f"{name}/")
    assert listed["KeyCount"] == 0


def test_requests_are_few(bucket, bucket_server):
    (bucket / "shard").write_bytes(bytes(range(256)) * 100)
    for asked, work in (
        ({"GET": 1}, lambda: (bucket / "shard").read_range(1000, 50)),
        ({"GET": 1}, (bucket / "shard").read_bytes),
        ({"LIST": 1}, bucket.find),
        ({"HEAD": 2, "GET": 1}, lambda: open(bucket / "shard").close()),
        ({"HEAD": 1}, lambda: open(bucket / "shard").close()),
        ({"PUT": 1}, lambda: (bucket / "new").create(b"")),
    ):
        bucket_server.requests.clear()
        work()
        assert bucket_server.requests == asked


def test_passing_errors_are_waited_out(bucket, bucket_server):
    bucket_server.failing = 0.2
    for number in range(20):
        (bucket / f"{number}").write_bytes(b"content")
        assert (bucket / f"{number}").read_range(3, 4) == b"tent"
        assert (bucket / f"{number}").stat().st_size == 7
    assert len(bucket.find()) == 20


def test_missing_credentials_are_one_line(bucket_server, tmp_path, repository):
    script = "from hubert_jax import storage; storage.path('s3://bucket/a').read_bytes()"
    environment = {**os.environ, "AWS_EC2_METADATA_DISABLED": "true", "HOME": str(tmp_path)}
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        del environment[name]
    command = [sys.executable, "-c", script]
    found = subprocess.run(command, cwd=repository, env=environment, stderr=subprocess.PIPE)
    assert b"InputError: s3://bucket/a: no credentials found (" in found.stderr


def test_errors_that_stay_name_the_object(bucket, bucket_server, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    bucket_server.failing = 1.0
    with pytest.raises(Unavailable, match=f"{bucket / 'a'}: .*; the service did not do what"):
        (bucket / "a").read_bytes()
    bucket_server.failing = 0.0
    with pytest.raises(FileNotFoundError):
        storage.path("s3://no-such-bucket/a").read_bytes()
