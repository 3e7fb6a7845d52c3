"""Batches as a function of (seed, step): crops, labels, epochs, hosts, padding, damage."""

import dataclasses
import errno
import os
import pathlib

import jax
import numpy as np
import pytest
import splits
from splits import TINY_BASE, TINY_LARGE

from hubert_jax.data import batches, buckets, manifests, records, schedule
from hubert_jax.data.index import read_index
from hubert_jax.data.inference_batches import padded_batches
from hubert_jax.data.waveform import normalize, to_float
from hubert_jax.errors import InputError
from hubert_jax.frames import num_frames
from hubert_jax.model.architecture import Architecture, Execution, Head
from hubert_jax.model.hubert import Hubert
from hubert_jax.model.kernels.choice import choose
from hubert_jax.tasks import pretraining
from hubert_jax.units.kmeans import Codebook

SEED = 5


@pytest.fixture(scope="module")
def split(speech_split, tmp_path_factory) -> pathlib.Path:
    """Shards of about two utterances: a third cut off at 2.2 s, three under 2 s."""
    directory = tmp_path_factory.mktemp("audio")
    speech = list(records.read_audio(speech_split))
    for number, utterance in enumerate(speech):
        length = 36_000 if number % 3 == 0 else 31_500 if number % 8 == 1 else 80_000
        speech[number] = dataclasses.replace(utterance, audio=utterance.audio[:length])
    splits.write_split(directory, "speech", speech, [], 0.16)
    return directory


@pytest.fixture(scope="module")
def utterances(split) -> list[records.Utterance]:
    return list(records.read_audio(split))


def _label_set(split: pathlib.Path, directory: pathlib.Path, rate: int, values):
    """Labels `values(number of the utterance, frames)`, as a label set of `split`."""
    rows = (
        (utterance.id, values(number, num_frames(len(utterance.audio), rate)))
        for number, utterance in enumerate(records.read_audio(split))
    )
    codebook = Codebook(np.zeros((1000, 1), np.float32), {}, 0.0, 0, 0, 0)
    manifest = splits.write_labels(split, directory, rows, codebook, rate)
    return batches.LabelSet(directory, manifest)


@pytest.fixture(scope="module")
def label_sets(split, tmp_path_factory) -> list[batches.LabelSet]:
    """Each frame's own index at 100 Hz and at 50 Hz, and the utterance's number."""
    directory = tmp_path_factory.mktemp("labels")
    return [
        _label_set(split, directory / "at_100", 100, lambda number, frames: np.arange(frames)),
        _label_set(split, directory / "at_50", 50, lambda number, frames: np.arange(frames)),
        _label_set(split, directory / "number", 50, lambda n, frames: np.full(frames, n)),
    ]


def _plan(split, seed=SEED):
    manifest = manifests.read_manifest(split)
    return schedule.BucketSchedule(schedule.crop_buckets(manifest, 400, 120, 1), seed)


def _pretraining(split, label_sets, first, last, normalize_waveform=False, seed=SEED):
    return batches.pretraining_batches(
        split,
        manifests.read_manifest(split),
        label_sets,
        _plan(split, seed),
        seed=seed,
        first_step=first,
        last_step=last,
        normalize_waveform=normalize_waveform,
    )


def _bytes(batch):
    """Comparable bit for bit."""
    return {
        name: value.tolist() if value.dtype == object else (value.shape, value.tobytes())
        for name, value in batch.items()
    }


def test_a_run_from_step_k_reads_what_a_run_from_0_reads_there(split, label_sets):
    files = [shard.bucket_frames for shard in manifests.read_manifest(split).shards]
    assert files.count(96) > 1 and files.count(128) > 3
    steps = 24  # three epochs and more
    whole = [_bytes(batch) for batch in _pretraining(split, label_sets, 0, steps)]
    assert len({batch["waveform"] for batch in whole}) == len(whole) == steps
    for first in (1, 13, 24):
        assert [_bytes(b) for b in _pretraining(split, label_sets, first, steps)] == whole[first:]
    other = [_bytes(batch) for batch in _pretraining(split, label_sets, 0, 3, seed=SEED + 1)]
    assert not any(batch in whole for batch in other)


def test_an_epoch_holds_every_utterance_once_in_a_new_order(split, utterances, label_sets):
    plan = _plan(split)
    rows = [[] for _ in plan.buckets]
    for index, batch in zip(plan.indices(40), _pretraining(split, label_sets, 0, 40), strict=True):
        rows[index] += batch["labels_2"][:, 0].tolist()
    for bucket, numbers in zip(plan.buckets, rows, strict=True):
        expected = [
            number
            for number, utterance in enumerate(utterances)
            if buckets.bucket_of(len(utterance.audio)) == bucket.frames
        ]
        size = len(expected)
        epochs = [numbers[i : i + size] for i in range(0, len(numbers) - size + 1, size)]
        assert len(epochs) > 3
        assert all(sorted(epoch) == expected for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 1


@pytest.mark.parametrize("normalized", [False, True])
def test_crops_are_slices_and_labels_are_cut_with_them(split, utterances, label_sets, normalized):
    starts = []
    for batch in _pretraining(split, label_sets, 0, 16, normalized):
        frames = batch["labels_0"].shape[1]
        assert batch["waveform"].shape[1] == 320 * frames + 80
        assert batch["waveform"].dtype == np.float32 and batch["labels_0"].dtype == np.int32
        for crop, at_100, at_50, numbers in zip(*batch.values(), strict=True):
            waveform = to_float(utterances[numbers[0]].audio)
            if normalized:
                waveform = normalize(waveform)
            start = _find(crop, waveform)
            starts.append(start)
            for labels, rate in ((at_100, 100), (at_50, 50)):
                count = num_frames(len(waveform), rate)
                expected = round(start * rate / 16_000) + np.arange(frames) * (rate // 50)
                np.testing.assert_array_equal(labels, np.minimum(expected, count - 1))
                assert (expected <= count).all()
    assert len(set(starts)) > 30


def _find(crop: np.ndarray, waveform: np.ndarray) -> int:
    """The only place of `crop` in `waveform`."""
    windows = np.lib.stride_tricks.sliding_window_view(waveform, len(crop))
    # Normalised in float32 by two libraries: sums are rounded differently.
    close = np.abs(windows[:, ::1000] - crop[::1000]).max(axis=1) < 1e-4
    places = [
        place
        for place in np.flatnonzero(close)
        if np.allclose(windows[place], crop, rtol=1e-5, atol=2e-6)
    ]
    assert len(places) == 1
    return int(places[0])


def _damaged_copy(directory: pathlib.Path, copy: pathlib.Path, damage):
    """A copy of a directory of shards, one of them damaged; returns that one."""
    copy.mkdir()
    for path in directory.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    several = [p for p in sorted(copy.glob("*b0128*")) if _first_record(p) < p.stat().st_size]
    path = several[-1]
    path.write_bytes(damage(path.read_bytes()))
    return path


def _first_record(shard: pathlib.Path | bytes) -> int:
    """Bytes of a shard's first record."""
    content = shard if isinstance(shard, bytes) else shard.read_bytes()
    return 16 + int.from_bytes(content[:8], "little")


DAMAGES = {
    "inside": lambda content: content[:-1000],
    "between": lambda content: content[: _first_record(content)],
    "header": lambda content: content[: _first_record(content) + 11],
    "empty": lambda content: b"",
    "flipped": lambda content: content[:-500] + bytes([content[-500] ^ 1]) + content[-499:],
    "swapped": lambda content: (
        content[_first_record(content) :] + content[: _first_record(content)]
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_labels_are_named(split, label_sets, tmp_path, name):
    path = _damaged_copy(label_sets[0].directory, tmp_path / "labels", DAMAGES[name])
    damaged = batches.LabelSet(path.parent, label_sets[0].manifest)
    with pytest.raises(InputError, match=rf"{path}[:,] .*; run|{path}.*run the job"):
        list(_pretraining(split, [label_sets[1], damaged], 0, 20))


@pytest.mark.parametrize("name", ["inside", "between", "header", "flipped"])
def test_damaged_audio_is_named(split, label_sets, tmp_path, name):
    path = _damaged_copy(split, tmp_path / "audio", DAMAGES[name])
    with pytest.raises(InputError, match=rf"{path}.*run the job that wrote it again"):
        list(_pretraining(path.parent, label_sets, 0, 20))


def test_a_disk_that_fails_is_named(split, label_sets, monkeypatch):
    def pread(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", pread)
    with pytest.raises(InputError, match=r", record \d+: cannot be read \(Input/output"):
        list(_pretraining(split, label_sets, 0, 2))


@pytest.mark.parametrize("kind", ["pretraining", "finetuning"])
def test_tensorflow_is_imported_in_the_call(split, label_sets, monkeypatch, kind):
    """Not as the first batch is read, whose time is told as waiting for data."""

    class Imported(Exception):
        pass

    class Late:
        def __getattr__(self, name):
            raise Imported

    plan = _plan(split)
    monkeypatch.setattr(batches, "tf", Late())
    given = (split, manifests.read_manifest(split), *([label_sets] * (kind == "pretraining")), plan)
    steps = dict(seed=SEED, first_step=0, last_step=1, normalize_waveform=False)
    with pytest.raises(Imported):
        getattr(batches, f"{kind}_batches")(*given, **steps)


def _finetuning(split, padded_frames, first, last, normalize_waveform=False):
    manifest = manifests.read_manifest(split)
    index = read_index(split, manifest)
    padded = schedule.padded_buckets(manifest, index, 1024, padded_frames, 1)
    plan = schedule.BucketSchedule(padded, SEED)
    return plan, batches.finetuning_batches(
        split,
        manifest,
        plan,
        seed=SEED,
        first_step=first,
        last_step=last,
        normalize_waveform=normalize_waveform,
    )


@pytest.mark.parametrize("normalized", [False, True])
def test_finetuning_pads_and_never_crops(split, utterances, normalized):
    by_id = {utterance.id: utterance for utterance in utterances}
    seen = set()
    plan, read = _finetuning(split, (128, 256), 0, 24, normalized)
    whole = []
    for index, batch in zip(plan.indices(24), read, strict=True):
        whole.append(_bytes(batch))
        assert batch["waveform"].shape[1] == 320 * plan.buckets[index].batch_frames + 80
        for row, name in enumerate(batch["id"]):
            utterance = by_id[name.decode()]
            assert batch["text"][row].decode() == utterance.text != ""
            count = batch["num_samples"][row]
            assert count == len(utterance.audio)
            expected = to_float(utterance.audio)
            if normalized:
                expected = normalize(expected)
            found = batch["waveform"][row]
            np.testing.assert_allclose(found[:count], expected, rtol=1e-5, atol=2e-6)
            assert not found[count:].any()
            seen.add(utterance.id)
    assert seen == set(by_id)
    _, resumed = _finetuning(split, (128, 256), 7, 24, normalized)
    assert [_bytes(batch) for batch in resumed] == whole[7:]


def test_utterances_longer_than_the_padding_are_never_read(split, utterances):
    plan, read = _finetuning(split, (100, 140), 0, 24)
    lengths = {utterance.id: len(utterance.audio) for utterance in utterances}
    fitting = {name for name, samples in lengths.items() if samples <= 320 * 140 + 80}
    seen = {name.decode() for batch in read for name in batch["id"]}
    assert seen == fitting and 0 < len(fitting) < len(lengths)


@pytest.mark.parametrize("row_multiple", [1, 8])
def test_padded_batches_hold_every_utterance_once(split, utterances, row_multiple):
    found = {}
    read = records.read_audio(split)
    for batch in padded_batches(read, 600, False, row_multiple):
        assert len(batch.waveform) % row_multiple == 0
        assert len(batch.windows) <= len(batch.waveform)
        for row, window in enumerate(batch.windows):
            utterance, count = window.utterance, batch.num_samples[row]
            assert utterance.id not in found and window.last and window.own.start == 0
            found[utterance.id] = (utterance.text, batch.waveform[row, :count].tobytes())
            assert not batch.waveform[row, count:].any()
        assert (batch.num_samples[len(batch.windows) :] == 400).all()
    expected = {u.id: (u.text, to_float(u.audio).tobytes()) for u in utterances}
    assert found == expected


@pytest.mark.parametrize("model", [TINY_BASE, TINY_LARGE], ids=["base", "large"])
def test_features_do_not_depend_on_the_batch(split, utterances, model):
    config = Architecture(**model["architecture"])
    init = pretraining.init(config, Head(**model["head"]))
    params = jax.jit(init)(jax.random.key(0))["hubert"]
    hubert = Hubert(config, choose(Execution(), config))
    network = jax.jit(
        lambda waveform, num_samples=None: hubert.apply(
            {"params": params}, waveform, num_samples, collect=True
        )["layers"]
    )
    audio = {utterance.id: utterance.audio for utterance in utterances}
    batch = next(padded_batches(records.read_audio(split), 8192, config.normalize_waveform))
    together = network(batch.waveform, batch.num_samples)
    # Every length compiles anew: the shortest and the longest will do.
    rows = np.argsort(batch.num_samples[: len(batch.windows)])[[0, -1]]
    assert batch.num_samples[rows[0]] < batch.num_samples[rows[1]]
    for row in rows:
        waveform = to_float(audio[batch.windows[row].utterance.id])
        if config.normalize_waveform:
            waveform = normalize(waveform)
        alone = network(waveform[None])[:, 0]
        frames = alone.shape[1]
        assert frames == num_frames(len(waveform))
        np.testing.assert_allclose(together[:, row, :frames], alone, rtol=1e-5, atol=1e-5)
