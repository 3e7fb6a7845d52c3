"""Checkpoints that are not whole: the damaged one is named, the last good one is used."""

import json
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hubert_jax.errors import InputError
from hubert_jax.training import checkpoint

STEPS = (2, 4, 6)


def _state(step: int) -> dict:
    random = np.random.default_rng(step)
    leaves = {name: jnp.asarray(random.normal(size=(40, 50)), jnp.float32) for name in "abc"}
    return {"params": leaves, "moments": {"a": leaves["a"] * 2}, "step": jnp.asarray(step)}


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> pathlib.Path:
    """Three checkpoints of one run; that of step 4 is its best."""
    folder = tmp_path_factory.mktemp("sound") / "checkpoints"
    checkpoints = checkpoint.Checkpoints(folder, keep=3)
    for step in STEPS:
        best = {"best": {"step": min(step, 4)}}
        checkpoints.save(step, _state(step), {"kind": "test", "of": step, "validation": best})
    checkpoints.close()
    return folder


@pytest.fixture
def folder(sound, tmp_path) -> pathlib.Path:
    return shutil.copytree(sound, tmp_path / "checkpoints")


def _largest(folder: pathlib.Path, step: int) -> pathlib.Path:
    paths = (path for path in (folder / str(step) / "state").rglob("*") if path.is_file())
    return max(paths, key=lambda path: path.stat().st_size)


def _change(path: pathlib.Path, begin: int, content: bytes) -> None:
    before = path.read_bytes()
    assert before[begin : begin + len(content)] != content
    path.write_bytes(before[:begin] + content + before[begin + len(content) :])


def _flip(folder: pathlib.Path) -> None:
    path = _largest(folder, 6)
    place = path.stat().st_size // 2
    _change(path, place, bytes([path.read_bytes()[place] ^ 1]))


def _empty(folder: pathlib.Path) -> None:
    shutil.rmtree(folder / "6")
    (folder / "6").mkdir()


def _file(folder: pathlib.Path) -> None:
    shutil.rmtree(folder / "6")
    (folder / "6").write_text("6")


def _lose_a_file(folder: pathlib.Path) -> None:
    _largest(folder, 6).unlink()


def _another_number(folder: pathlib.Path) -> None:
    path = folder / "6" / "metadata" / "metadata"
    path.write_text(path.read_text().replace('"of": 6', '"of": 7'))


def _a_folder_for_checksums(folder: pathlib.Path) -> None:
    (folder / "6/state/sha256.json").unlink()
    (folder / "6/state/sha256.json").mkdir()


def _unlisted(folder: pathlib.Path) -> None:
    path, largest = folder / "6/state/sha256.json", _largest(folder, 6)
    listed = json.loads(path.read_text())
    del listed[largest.relative_to(path.parent).as_posix()]
    path.write_text(json.dumps(listed))
    _flip(folder)


DAMAGES = {
    "changed and not in the checksums": _unlisted,
    "one bit": _flip,
    "zeroed in the middle": lambda folder: _change(_largest(folder, 6), 3000, bytes(64)),
    "cut off": lambda folder: os.truncate(_largest(folder, 6), 1000),
    "a file is missing": _lose_a_file,
    "state missing": lambda folder: shutil.rmtree(folder / "6" / "state"),
    "metadata missing": lambda folder: shutil.rmtree(folder / "6" / "metadata"),
    "another number in the metadata": _another_number,
    "no checksums": lambda folder: (folder / "6/state/sha256.json").unlink(),
    "broken checksums": lambda folder: (folder / "6/state/sha256.json").write_text("{]"),
    "no file in the checksums": lambda folder: (folder / "6/state/sha256.json").write_text("{}"),
    "a folder for checksums": _a_folder_for_checksums,
    "a dangling link": lambda folder: (folder / "6/state/link").symlink_to("/nowhere"),
    "other JSON for checksums": lambda folder: (folder / "6/state/sha256.json").write_text("7"),
    "an empty folder": _empty,
    "a file instead of a folder": _file,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_the_last_good_one_is_used_and_the_damaged_one_named(folder, capsys, damage):
    damage(folder)
    params, metadata = checkpoint.restore_parameters(folder)
    line = capsys.readouterr().out
    assert f"{folder}: checkpoint 6 cannot be read (" in line and line.count("\n") == 1
    assert metadata["step"] == metadata["of"] == 4
    np.testing.assert_array_equal(params["a"], _state(4)["params"]["a"])
    for which in ("6", "mean2"):
        with pytest.raises(InputError, match="checkpoint 6 cannot be read .* 2, 4 too: name one"):
            checkpoint.restore_parameters(f"{folder}@{which}")
        capsys.readouterr()
    assert checkpoint.restore_parameters(f"{folder}@best")[1]["step"] == 4

    # A run goes on from it, and saves that step again.
    checkpoints = checkpoint.Checkpoints(folder, keep=3)
    step, state, checked = checkpoints.restore_newest(_state(0), lambda metadata: metadata["of"])
    assert step == checked == 4 and int(state["step"]) == 4
    checkpoints.save(6, _state(6), {"kind": "test", "of": 6})
    checkpoints.close()
    assert checkpoint.restore_parameters(folder)[1]["step"] == 6


def test_every_changed_byte_is_seen_or_changes_nothing(folder):
    expected, described = checkpoint.restore_parameters(folder)
    random, refused = np.random.default_rng(0), 0
    paths = sorted(path for path in (folder / "6").rglob("*") if path.is_file())
    for number in range(60):
        path = paths[number % len(paths)]
        before = path.read_bytes()
        place = int(random.integers(len(before)))
        _change(path, place, bytes([before[place] ^ 1 << int(random.integers(8))]))
        found, metadata = checkpoint.restore_parameters(folder)
        if metadata["step"] == 6:
            assert metadata == described
            jax.tree.map(np.testing.assert_array_equal, found, expected)
        else:
            refused += 1
        path.write_bytes(before)
    assert refused > 40  # others say when it was saved


def test_what_others_leave_beside_its_files_changes_nothing(folder, capsys):
    state = folder / "6" / "state"
    for name in (".nfs0001", ".rsync-partial/a", ".AppleDouble/x", "d_.gstmp", "x~", "Thumbs.db"):
        path = state / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"left by a file system, a copying program or a desktop")
    (folder / "6" / "metadata" / ".#metadata").symlink_to("/nowhere")
    os.mkfifo(state / ".pipe")
    assert checkpoint.restore_parameters(folder)[1]["step"] == 6 and not capsys.readouterr().out
    os.mkfifo(state / "pipe")
    assert checkpoint.restore_parameters(folder)[1]["step"] == 4
    assert "pipe: not a regular file" in capsys.readouterr().out


def test_metadata_are_found_as_parameters_are(folder, capsys):
    for which in ("", "@2", "@best", "@mean2"):
        _, expected = checkpoint.restore_parameters(f"{folder}{which}")
        found = checkpoint.read_metadata(f"{folder}{which}")
        assert found == expected
    _another_number(folder)
    assert checkpoint.read_metadata(folder)["of"] == 4
    assert "checkpoint 6 cannot be read" in capsys.readouterr().out
    for which, message in (
        ("@6", "checkpoint 6 cannot be read"),
        ("@7", "no such checkpoint; there are steps 2, 4, 6"),
        ("@mean4", "expected 4 checkpoints, found 3 of the newest"),
    ):
        for read in (checkpoint.read_metadata, checkpoint.restore_parameters):
            with pytest.raises(InputError, match=message):
                read(f"{folder}{which}")
    # Of a mean all that it is of.
    (folder / "2/metadata/metadata").write_text("{")
    with pytest.raises(InputError, match="checkpoint 2 cannot be read"):
        checkpoint.read_metadata(f"{folder}@mean3")


def test_one_of_a_version_without_checksums_is_read_and_that_is_said(folder, capsys):
    for path in folder.rglob("sha256.json"):
        path.unlink()
    params, metadata = checkpoint.restore_parameters(folder)
    assert "6: written without checksums" in capsys.readouterr().out and metadata["step"] == 6
    np.testing.assert_array_equal(params["a"], _state(6)["params"]["a"])
    checkpoints = checkpoint.Checkpoints(folder)
    assert checkpoints.restore_newest(_state(0), dict)[0] == 6
    checkpoints.close()


def test_without_a_good_one_it_is_said_what_to_remove(folder):
    for step in STEPS:
        shutil.rmtree(folder / str(step) / "state")
    message = "checkpoint 2 cannot be read .*, nor any after it; restore one from a copy"
    with pytest.raises(InputError, match=message):
        checkpoint.restore_parameters(folder)
    checkpoints = checkpoint.Checkpoints(folder)
    with pytest.raises(InputError, match=f"or remove {folder.parent} to begin again"):
        checkpoints.restore_newest(_state(0), dict)
    checkpoints.close()


def test_what_is_no_folder_of_checkpoints_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path, why in (("file", "Not a directory"), ("none", "No such file"), ("", "found;")):
        with pytest.raises(InputError, match=f"no checkpoint found.*{why}|{why} expected"):
            checkpoint.restore_parameters(tmp_path / path)
    for path in ("file", "file/below"):
        with pytest.raises(InputError, match="a file is in the way"):
            checkpoint.Checkpoints(tmp_path / path)


def test_what_may_not_be_read_is_not_taken_for_damaged(folder, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(checkpoint.files, "sha256_file", refuse)  # root may read all
    with pytest.raises(InputError, match="checkpoint 6: .*cannot be read .Permission denied"):
        checkpoint.restore_parameters(folder)
    checkpoints = checkpoint.Checkpoints(folder)
    with pytest.raises(InputError, match="checkpoint 6: .*make it readable"):
        checkpoints.restore_newest(_state(0), dict)
    checkpoints.close()
    assert sorted(path.name for path in folder.iterdir()) == ["2", "4", "6"]
