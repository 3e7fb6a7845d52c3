"""Folders of audio files: LibriSpeech's and Libri-light's trees, and any other."""

import itertools
import json
import os
import pathlib
import re
import sys
from collections.abc import Iterator
from typing import NamedTuple

from hubert_jax import files
from hubert_jax.corpus.sources import splits, transcripts
from hubert_jax.corpus.sources.transcripts import Table, Transcript
from hubert_jax.corpus.sources.utterances import SourceUtterance, identify
from hubert_jax.errors import InputError, printable

_AUDIO_SUFFIXES = (
    *(".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".caf"),
    *(".w64", ".rf64", ".bw64", ".sph", ".nist", ".wave", ".snd"),
)
# Audio that is not read: to be listed as refused, not to be overlooked.
_OTHER_AUDIO = (
    *(".m4a", ".m4b", ".aac", ".wma", ".amr", ".ape", ".wv", ".mp2", ".mka", ".weba", ".spx"),
    *(".gsm", ".voc", ".ac3", ".tta", ".shn", ".mp1", ".mpga", ".m4r", ".adts", ".ra", ".ogx"),
    *(".dsf", ".dff", ".sf", ".wav.gz", ".flac.gz"),
)
# Corpora have them beside the recordings that they are of.
_VIDEO = (
    *(".webm", ".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".ogv", ".avi", ".flv", ".mpeg", ".mpg"),
)
# Texts that lie beside audio under other names than those that are read.
_OTHER_TABLES = (".tsv", ".csv", ".jsonl")
# What may hold more of a corpus.
_ARCHIVES = (
    *(".tar", ".tgz", ".zip", ".7z", ".rar", ".gz", ".bz2", ".xz", ".zst", ".tfrecord"),
    *(".arrow", ".feather", ".pq", ".h5", ".hdf5"),
)
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")  # behind the suffix of TensorFlow's


class Listed(NamedTuple):
    """What a folder itself holds: paths, sorted names of audio files, names of JSON files."""

    path: pathlib.Path
    audio: list[str]
    json: set[str]
    chapters: list[pathlib.Path]  # transcripts of this folder
    tables: list[pathlib.Path]  # transcripts of this folder and those below
    parquet: list[pathlib.Path]
    unread: list[pathlib.Path]  # tables of other names, and copies that cannot be read


def walk(top: pathlib.Path) -> list[Listed]:
    """What is in a folder and below it; leaves out names that begin with a dot.

    Raises as `files.folders_below`: what a folder that vanishes holds is unknown.
    """
    found = (_listed(*folder, top) for folder in files.folders_below(top))
    return [listed for listed in found if listed is not None]


def _listed(folder: pathlib.Path, entries: list[os.DirEntry], top: pathlib.Path) -> Listed | None:
    """None where nothing in the folder itself counts."""
    listed = Listed(folder, [], set(), [], [], [], [])
    for entry in entries:
        name, lower = entry.name, entry.name.lower()
        if name.startswith(".") or files.is_folder(entry):
            continue
        if lower.endswith(_AUDIO_SUFFIXES + _OTHER_AUDIO + _VIDEO):
            listed.audio.append(name)
        elif name.endswith(transcripts.CHAPTER_SUFFIX):
            listed.chapters.append(folder / name)
        elif name in transcripts.METADATA or (name == transcripts.TABLE and folder == top):
            listed.tables.append(folder / name)
        elif lower.endswith(".parquet"):
            listed.parquet.append(folder / name)
        elif lower.endswith(".json"):
            listed.json.add(name)
        elif _SHARD.sub("", lower).endswith(_OTHER_TABLES + _ARCHIVES):
            listed.unread.append(folder / name)
    if not listed.audio:
        listed.json.clear()
    found = listed.audio or listed.chapters or listed.tables or listed.parquet or listed.unread
    return listed if found else None


def _leave_copies(found: list[Listed]) -> None:
    """Moves to `unread` videos, and audio that cannot be read, of recordings that can be."""
    others = [name for listed in found for name in listed.audio if not _is_readable(name)]
    if not others:
        return
    wanted = set(map(_stem, others))
    there = {_stem(n) for listed in found for n in listed.audio if _is_readable(n)} & wanted
    for listed in found:
        copies = {n for n in listed.audio if not _is_readable(n) and _stem(n) in there}
        listed.audio[:] = [name for name in listed.audio if name not in copies]
        listed.unread.extend(listed.path / name for name in sorted(copies))


def _is_readable(name: str) -> bool:
    return name.lower().endswith(_AUDIO_SUFFIXES)


def _stem(name: str) -> str:
    return pathlib.PurePosixPath(name.lower().removesuffix(".gz")).stem


def discover(folder: pathlib.Path, found: list[Listed], chosen: str = "") -> list[SourceUtterance]:
    """The utterances of a folder of audio files; empties `found`, which is `walk(folder)`.

    With the name of a `chosen` split, those of which a table says that they are of it.

    A speaker is the transcript's, else Libri-light's, LibriSpeech's or the first folder. Where
    there are transcripts, audio without one and transcripts without audio have a `defect`.

    Raises InputError if there is no audio, or a table cannot be read.
    """
    _leave_copies(found)
    unread = sorted(path for listed in found for path in listed.unread)
    known = ", ".join((f"{folder}/{transcripts.TABLE}", *transcripts.METADATA))
    for suffixes, advice in (
        (_OTHER_TABLES, f"transcripts are in {known} or *{transcripts.CHAPTER_SUFFIX}"),
        (_OTHER_AUDIO + _VIDEO, "recordings of these names are read"),
        (_ARCHIVES, "unpack archives; tables are read as .parquet"),
    ):
        if left := [p for p in unread if _SHARD.sub("", p.name.lower()).endswith(suffixes)]:
            unread = sorted({*unread} - {*left})
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            where = printable(str(left[0]))
            print(f"{folder}: warning: {where}{more} not read; {advice}", flush=True)
    if not any(listed.audio for listed in found):
        expected = ", ".join(f"*{suffix}" for suffix in _AUDIO_SUFFIXES)
        raise InputError(f"{folder}: expected audio files ({expected}), found none in it")
    split = splits.split_of(chosen)
    deep = {
        listed.path: [transcripts.read_table(path, split) for path in listed.tables]
        for listed in found
        if listed.tables
    }
    if not chosen and sum(map(len, deep.values())) > 1:
        tables = itertools.chain.from_iterable(deep.values())
        splits.refuse_several(folder, (s.split for t in tables for s in t.entries.values()))
    used: set[Transcript] = set()
    utterances: list[SourceUtterance] = []
    # Folder by folder: a corpus's chapters are too many to have all of their tables at once.
    while found:
        listed = found.pop()
        # LibriSpeech's tables know no splits.
        chapters = [transcripts.read_table(path) for path in listed.chapters if not chosen]
        above = (deep.get(parent, []) for parent in (listed.path, *listed.path.parents))
        table = next(itertools.chain(chapters, *above), None)
        of_folder: set[Transcript] = set()
        if not chosen or (table is not None and table.chosen):
            utterances += _utterances(listed, folder, table, of_folder)
        for chapter in chapters:
            utterances += _without_audio(chapter, folder, of_folder)
        if table is not None and table.deep:
            used |= of_folder
    if chosen and not utterances:
        raise InputError(
            f"{folder / chosen}: expected a folder of audio files, or a table in {folder} that has "
            "this split; found neither"
        )
    for table in itertools.chain.from_iterable(deep.values()):
        if not chosen or table.chosen:
            utterances += _without_audio(table, folder, used)
    return utterances


def _without_audio(
    table: Table, folder: pathlib.Path, used: set[Transcript]
) -> Iterator[SourceUtterance]:
    """What a table says about files that are not there."""
    parent, file = table.path.parent, table.path.name
    below = pathlib.PurePosixPath(parent.relative_to(folder).as_posix())
    for name, said in table.entries.items():
        if said in used:
            continue
        entry, where = name, "one beside it"
        if table.deep:  # several may have the name
            entry, where = str(below / name), str(parent / name)
        defect = f"transcript of {name} has no audio file; expected {where}"
        yield SourceUtterance(entry, parent, file, said.speaker, said.text, defect)


def _utterances(
    listed: Listed, folder: pathlib.Path, table: Table | None, used: set[Transcript]
) -> Iterator[SourceUtterance]:
    """Of one folder; adds to `used` what the table says about its files."""
    for file in listed.audio:
        path = listed.path / file
        name, speaker, defect = identify(folder, path.relative_to(folder))
        if (sidecar := path.with_suffix(".json")).name in listed.json:
            speaker = _librilight_speaker(sidecar) or speaker
        other = next((end for end in _OTHER_AUDIO + _VIDEO if file.lower().endswith(end)), "")
        if not defect and other:
            readable = ", ".join(_AUDIO_SUFFIXES)
            defect = f"{other} cannot be read; convert it to one of {readable}"
        text = None
        transcript = table.find(path) if table is not None else None
        if transcript is None and table is not None and table.chosen:
            continue
        if transcript is not None:
            used.add(transcript)
            speaker = transcript.speaker or speaker
            text = transcript.text
        if defect or table is None:
            pass
        elif transcript is None and table.transcribes:
            defect = f"no transcript; expected a line for it in {table.path}"
            if alike := table.alike(path):
                defect += f", which has {alike!r}"
        elif text == "":
            defect = f"empty transcript in {table.path}; expected words"
        yield SourceUtterance(name, listed.path, file, sys.intern(speaker), text, defect)


def _librilight_speaker(path: pathlib.Path) -> str:
    """The speaker in Libri-light's description of a file; "" in any other JSON file."""
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return ""
    speaker = values.get("speaker", "") if isinstance(values, dict) else ""
    return speaker if isinstance(speaker, str) else ""
