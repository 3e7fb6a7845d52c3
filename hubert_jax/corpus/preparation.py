"""From a corpus's utterances to a split's parts, by threads, resumable."""

import concurrent.futures
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import soundfile
import soxr

from hubert_jax import storage
from hubert_jax.corpus import assembly, cutting, parts
from hubert_jax.corpus.audio_files import read_waveform, waveform_blocks
from hubert_jax.corpus.sources.utterances import SourceUtterance
from hubert_jax.data.records import Utterance
from hubert_jax.errors import InputError

# Small parts lose little when they are interrupted, and keep all workers busy.
_PART_FILES, _PART_BYTES, _PART_ROWS = 64, 64 * 10**6, 512
_VERSION = 3  # of what this package makes of a file; another one makes older parts void


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What is done with every file; `encoding` is one of `encoding.ENCODINGS`."""

    convert: bool = False  # mix down several channels, resample other rates
    encoding: str = "pcm16"
    unchecked: bool = False  # take codings that nobody can check for completeness
    cut_seconds: float = 30.0  # longer recordings without transcript are cut at silences; 0: none


def write_parts(
    directory: pathlib.Path,
    planned: Mapping[str, list[SourceUtterance]],
    conversion: Conversion,
    workers: int,
    progress: Callable[[int], None] = lambda files: None,
) -> list[parts.Part]:
    """Writes the parts that are not there yet; returns all, in the order in which they are planned.

    Whatever else is in `directory` is removed. The parts are those of `divided`; `workers` are
    threads; `progress` is called with the number of files of every part that is complete. Raises
    InputError if a part cannot be written; those that are complete stay.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for path in directory.iterdir():
        if path.stem not in planned:
            path.unlink()
    stop = threading.Event()

    def write(name: str, part: list[SourceUtterance]) -> parts.Part:
        path = directory / f"{name}.tfrecord"
        if (done := parts.read(path)) is not None:
            return done
        return parts.write(path, _items(part, conversion, stop), conversion.encoding)

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        futures = {pool.submit(write, *part): len(part[1]) for part in planned.items()}
        try:
            for future in concurrent.futures.as_completed(futures):
                future.result()
                progress(futures[future])
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return [future.result() for future in futures]


def _items(
    part: list[SourceUtterance], conversion: Conversion, stop: threading.Event
) -> Iterator[parts.Item]:
    for source in part:
        if stop.is_set():
            raise InterruptedError
        remarks: list[str] = []
        ordered = (
            (assembly.shuffle_order(utterance.id), utterance)
            for utterance in utterances_of(source, conversion, remarks)
        )
        yield parts.Item(source.name, ordered, source.corpus, remarks)


def utterances_of(
    source: SourceUtterance, conversion: Conversion, remarks: list[str]
) -> Iterator[Utterance]:
    """What a file gives: one utterance, or pieces `ID:START-END` (samples) of a long recording.

    At its end what is odd about the file is added to `remarks`. Raises InputError if the file
    cannot be used; what came before is void.
    """
    if source.defect:
        raise InputError(f"{source.name}: {source.defect}")
    audio = source.load()
    how = (conversion.convert, source.name, conversion.unchecked, remarks, source.samples)
    if source.text is not None or not conversion.cut_seconds:
        waveform = read_waveform(audio, *how)
        yield Utterance(source.id, waveform, source.speaker, source.text or "")
        return
    blocks = waveform_blocks(audio, *how)
    pieces = cutting.pieces(blocks, conversion.cut_seconds)
    first, second = next(pieces), next(pieces, None)
    if second is None:
        yield Utterance(source.id, first[2], source.speaker)
        return
    for start, end, waveform in itertools.chain([first, second], pieces):
        yield Utterance(f"{source.id}:{start}-{end}", waveform, source.speaker)


def divided(
    sources: Sequence[SourceUtterance], conversion: Conversion
) -> dict[str, list[SourceUtterance]]:
    """Parts by their names, digests of all that their content depends on, so none is ever stale.

    They are consecutive sources, which are sorted by id.
    """
    stamp = _stamps(sources)
    return {_name(part, conversion, stamp): part for part in _divided(sources, stamp)}


def _divided(sources: Sequence[SourceUtterance], stamp: "_Stamps") -> Iterator[list]:
    """Up to a number of files, of bytes, or of rows of a table."""
    part: list[SourceUtterance] = []
    size = 0
    for source in sources:
        part.append(source)
        size += 0 if source.row else (stamp(source.path) or [0])[0]
        limit = _PART_ROWS if source.row else _PART_FILES
        if len(part) >= limit or size >= _PART_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _name(part: list[SourceUtterance], conversion: Conversion, stamp: "_Stamps") -> str:
    versions = [_VERSION, soundfile.__libsndfile_version__, soxr.__version__]
    rows = [
        [s.id, str(s.path), s.speaker, s.text, s.defect, repr(s.row), s.corpus, s.samples]
        for s in part
    ]
    stamps = [stamp(s.path) for s in part]
    content = json.dumps([versions, dataclasses.astuple(conversion), rows, stamps])
    return hashlib.sha256(content.encode()).hexdigest()[:32]


_Stamps = Callable[[pathlib.Path], list[Any] | None]


def _stamps(sources: Sequence[SourceUtterance]) -> _Stamps:
    """`_stamp`, but that files in buckets are listed together: one request a thousand."""
    folders = {s.folder for s in sources if isinstance(s.folder, storage.BucketPath)}
    listed: dict[str, list[Any]] = {}
    for bucket in {folder.parts[:2] for folder in folders}:
        within = [folder.parts for folder in folders if folder.parts[:2] == bucket]
        scheme, *names = os.path.commonprefix(within)
        top = storage.path(f"{scheme}//{'/'.join(names)}")
        assert isinstance(top, storage.BucketPath)
        listed |= {str(top / name): list(found) for name, found in top.find().items()}
    return lambda path: listed.get(str(path)) if storage.is_url(path) else _stamp(path)


def _stamp(path: pathlib.Path) -> list[int] | None:
    """What changes when a file does; None if it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]
