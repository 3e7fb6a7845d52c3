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

from hubert_jax.corpus.sources import transcripts
from hubert_jax.corpus.sources.transcripts import Table, Transcript
from hubert_jax.corpus.sources.utterances import SourceUtterance, is_librispeech, named_by_path
from hubert_jax.errors import InputError

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")
# Audio that libsndfile does not read: to be listed as refused, not to be overlooked.
_OTHER_AUDIO = (".m4a", ".m4b", ".aac", ".wma", ".amr", ".ape", ".wv")


@dataclasses.dataclass
class Found:
    """Files below a folder, each list sorted by folder and name."""

    audio: list[pathlib.Path] = dataclasses.field(default_factory=list)
    tables: list[pathlib.Path] = dataclasses.field(default_factory=list)
    parquet: list[pathlib.Path] = dataclasses.field(default_factory=list)
    json: set[pathlib.Path] = dataclasses.field(default_factory=set)


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
    for name, is_folder in listed:
        if name.startswith("."):
            continue
        path = folder / name
        lower = name.lower()
        if is_folder:
            _list(path, (*above, here), top, found)
        elif lower.endswith(AUDIO_SUFFIXES + _OTHER_AUDIO):
            found.audio.append(path)
        elif name.endswith(transcripts.CHAPTER_SUFFIX) or name in transcripts.METADATA:
            found.tables.append(path)
        elif name == transcripts.TABLE and folder == top:
            found.tables.append(path)
        elif lower.endswith(".parquet"):
            found.parquet.append(path)
        elif lower.endswith(".json"):
            found.json.add(path)


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
    tables = _Tables(folder, [transcripts.read_table(path) for path in found.tables])
    utterances = [_utterance(path, folder, tables, found.json) for path in found.audio]
    for table in tables.all:
        for name, transcript in table.entries.items():
            if transcript not in tables.used:
                where = "one beside it" if not table.deep else table.path.parent / name
                defect = f"transcript of {name} has no audio file; expected {where}"
                # Below the folder such a name may occur in several tables.
                entry = name if not table.deep else _below(table.path.parent, folder) / name
                utterances.append(
                    SourceUtterance(
                        str(entry), table.path, transcript.speaker, transcript.text, defect
                    )
                )
    return utterances


def _below(path: pathlib.Path, folder: pathlib.Path) -> pathlib.PurePosixPath:
    return pathlib.PurePosixPath(path.relative_to(folder).as_posix())


class _Tables:
    """The tables of a folder, and which of their entries have audio."""

    def __init__(self, folder: pathlib.Path, tables: list[Table]):
        self.all = tables
        self.used: set[Transcript] = set()
        self._folder = folder
        self._by_folder: dict[pathlib.Path, list[Table]] = {}
        # A chapter's own file counts before a table for everything.
        for table in sorted(tables, key=lambda table: table.deep):
            self._by_folder.setdefault(table.path.parent, []).append(table)

    def find(self, audio: pathlib.Path) -> tuple[Table | None, Transcript | None]:
        """The nearest table that speaks for an audio file, and what it says."""
        for parent in audio.parents:
            for table in self._by_folder.get(parent, ()):
                if table.deep or parent == audio.parent:
                    transcript = table.find(audio)
                    if transcript is not None:
                        self.used.add(transcript)
                    return table, transcript
            if parent == self._folder:
                break
        return None, None


def _utterance(
    path: pathlib.Path, folder: pathlib.Path, tables: _Tables, sidecars: set[pathlib.Path]
) -> SourceUtterance:
    relative = path.relative_to(folder)
    name, defect = named_by_path(relative)
    speaker = relative.parts[0] if len(relative.parts) > 1 else ""
    if not defect and is_librispeech(path):
        name, speaker = path.stem, path.parent.parent.name
    sidecar = path.with_suffix(".json")
    if sidecar in sidecars:
        speaker = _librilight_speaker(sidecar) or speaker
    if not defect and path.suffix.lower() in _OTHER_AUDIO:
        defect = f"{path.suffix} cannot be read; convert it to one of {', '.join(AUDIO_SUFFIXES)}"
    table, transcript = tables.find(path)
    if transcript is not None:
        speaker = transcript.speaker or speaker
    text = transcript.text if transcript is not None else None
    if defect or table is None:
        pass
    elif transcript is None and table.transcribes:
        defect = f"no transcript; expected a line for it in {table.path}"
    elif text == "":
        defect = f"empty transcript in {table.path}; expected words"
    return SourceUtterance(name, path, speaker, text, defect)


def _librilight_speaker(path: pathlib.Path) -> str:
    """The speaker in Libri-light's description of a file; "" in any other JSON file."""
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return ""
    speaker = values.get("speaker", "") if isinstance(values, dict) else ""
    return speaker if isinstance(speaker, str) else ""
