"""Folders of audio files: LibriSpeech's and Libri-light's trees, and any other.

Audio files (`AUDIO_SUFFIXES`, any case) are found at any depth; links to folders are followed, but
not back into a folder that they are in; names that begin with a dot are skipped.

LibriSpeech's layout is recognised file by file: `SPEAKER/CHAPTER/SPEAKER-CHAPTER-UTT.flac`, with
transcripts in `SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt`. Libri-light's files have the speaker in
a JSON file of the same name beside them. Elsewhere the speaker is what the table of transcripts
says, or else the first folder. `sources.transcripts` has the forms of these tables; the nearest
one above a file is its own.
"""

import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import NamedTuple

from hubert_jax.corpus.sources import transcripts
from hubert_jax.corpus.sources.transcripts import Table, Transcript
from hubert_jax.corpus.sources.utterances import SourceUtterance, is_librispeech, named_by_path
from hubert_jax.errors import InputError

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")
# Audio that libsndfile does not read: to be listed as refused, not to be overlooked.
_OTHER_AUDIO = (".m4a", ".m4b", ".aac", ".wma", ".amr", ".ape", ".wv")


class Listed(NamedTuple):
    """What a folder itself holds.

    Attributes:
      path: the folder.
      audio: names of its audio files, sorted.
      json: names of its JSON files, none where it has no audio.
      tables: paths of its tables of transcripts.
    """

    path: pathlib.Path
    audio: list[str]
    json: set[str]
    tables: list[pathlib.Path]


@dataclasses.dataclass
class Found:
    """What is below a folder, sorted by folder and name.

    Attributes:
      folders: those with audio or transcripts.
      parquet: tables of audio.
    """

    folders: list[Listed] = dataclasses.field(default_factory=list)
    parquet: list[pathlib.Path] = dataclasses.field(default_factory=list)

    @property
    def audio(self) -> bool:
        """Whether there are audio files."""
        return any(folder.audio for folder in self.folders)


def walk(folder: pathlib.Path) -> Found:
    """Lists what is below `folder`.

    Raises:
      InputError: a folder cannot be listed, or vanishes meanwhile: what it holds is unknown.
    """
    found = Found()
    _list(folder, (), folder, found)
    return found


def _list(
    folder: pathlib.Path, above: tuple[tuple[int, int], ...], top: pathlib.Path, found: Found
) -> None:
    try:
        status = folder.stat()
        here = (status.st_dev, status.st_ino)
        if here in above:  # a link back to a folder that it is in
            return
        with os.scandir(folder) as entries:
            listed = sorted((entry.name, _is_folder(entry)) for entry in entries)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be listed ({error.strerror}); nothing may change in {top} "
            "while it is prepared"
        ) from None
    audio, sidecars, tables = [], set(), []
    for name, is_folder in listed:
        if name.startswith("."):
            continue
        lower = name.lower()
        if is_folder:
            _list(folder / name, (*above, here), top, found)
        elif lower.endswith(AUDIO_SUFFIXES + _OTHER_AUDIO):
            audio.append(name)
        elif name.endswith(transcripts.CHAPTER_SUFFIX) or name in transcripts.METADATA:
            tables.append(folder / name)
        elif name == transcripts.TABLE and folder == top:
            tables.append(folder / name)
        elif lower.endswith(".parquet"):
            found.parquet.append(folder / name)
        elif lower.endswith(".json"):
            sidecars.add(name)
    if audio or tables:
        found.folders.append(Listed(folder, audio, sidecars if audio else set(), tables))


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: reading it will say so
        return False


def discover(folder: pathlib.Path, found: Found) -> list[SourceUtterance]:
    """The utterances of a folder of audio files.

    Where there are transcripts, audio without one, transcripts without audio and empty
    transcripts are listed with a `defect`.

    Raises:
      InputError: no audio file, or a table of transcripts that cannot be used.
    """
    if not found.audio:
        expected = ", ".join(f"*{suffix}" for suffix in AUDIO_SUFFIXES)
        raise InputError(f"{folder}: expected audio files ({expected}), found none in it")
    deep: dict[pathlib.Path, list[Table]] = {}
    for listed in found.folders:
        for path in listed.tables:
            if not path.name.endswith(transcripts.CHAPTER_SUFFIX):
                deep.setdefault(listed.path, []).append(transcripts.read_table(path))
    used: set[Transcript] = set()
    utterances: list[SourceUtterance] = []
    # Folder by folder: a corpus's chapters are too many to have all of their tables at once.
    while found.folders:
        listed = found.folders.pop()
        chapters = [
            transcripts.read_table(path)
            for path in listed.tables
            if path.name.endswith(transcripts.CHAPTER_SUFFIX)
        ]
        # A chapter's own file counts before a table for everything.
        table = next(iter([*chapters, *_above(listed.path, folder, deep)]), None)
        of_folder: set[Transcript] = set()
        utterances += _utterances(listed, folder, table, of_folder)
        for chapter in chapters:
            utterances += _without_audio(chapter, folder, of_folder)
        if table is not None and table.deep:
            used |= of_folder
    for tables in deep.values():
        for table in tables:
            utterances += _without_audio(table, folder, used)
    return utterances


def _above(
    path: pathlib.Path, top: pathlib.Path, deep: dict[pathlib.Path, list[Table]]
) -> Iterator[Table]:
    """The tables that speak for a folder, the nearest first."""
    for parent in (path, *path.parents):
        yield from deep.get(parent, ())
        if parent == top:
            return


def _without_audio(
    table: Table, folder: pathlib.Path, used: set[Transcript]
) -> Iterator[SourceUtterance]:
    """What a table says about files that are not there."""
    for name, transcript in table.entries.items():
        if transcript not in used:
            where = "one beside it" if not table.deep else table.path.parent / name
            defect = f"transcript of {name} has no audio file; expected {where}"
            # Below the folder such a name may occur in several tables.
            below = pathlib.PurePosixPath(table.path.parent.relative_to(folder).as_posix())
            entry = name if not table.deep else below / name
            yield SourceUtterance(
                str(entry),
                table.path.parent,
                table.path.name,
                transcript.speaker,
                transcript.text,
                defect,
            )


def _utterances(
    listed: Listed, folder: pathlib.Path, table: Table | None, used: set[Transcript]
) -> Iterator[SourceUtterance]:
    """The audio files of one folder; adds to `used` what the table says about them."""
    for file in listed.audio:
        path = listed.path / file
        relative = path.relative_to(folder)
        name, defect = named_by_path(relative)
        speaker = relative.parts[0] if len(relative.parts) > 1 else ""
        if not defect and is_librispeech(path):
            name, speaker = path.stem, path.parent.parent.name
        if (sidecar := path.with_suffix(".json").name) in listed.json:
            speaker = _librilight_speaker(listed.path / sidecar) or speaker
        if not defect and path.suffix.lower() in _OTHER_AUDIO:
            readable = ", ".join(AUDIO_SUFFIXES)
            defect = f"{path.suffix} cannot be read; convert it to one of {readable}"
        text = None
        transcript = table.find(path) if table is not None else None
        if transcript is not None:
            used.add(transcript)
            speaker = transcript.speaker or speaker
            text = transcript.text
        if defect or table is None:
            pass
        elif transcript is None and table.transcribes:
            defect = f"no transcript; expected a line for it in {table.path}"
        elif text == "":
            defect = f"empty transcript in {table.path}; expected words"
        # Names of speakers are shared, however many utterances they have.
        yield SourceUtterance(name, listed.path, file, sys.intern(speaker), text, defect)


def _librilight_speaker(path: pathlib.Path) -> str:
    """The speaker in Libri-light's description of a file; "" in any other JSON file."""
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return ""
    speaker = values.get("speaker", "") if isinstance(values, dict) else ""
    return speaker if isinstance(speaker, str) else ""
