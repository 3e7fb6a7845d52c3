"""What a corpus is: a folder of audio files, in LibriSpeech's layout or in any other.

`discover` lists a folder's utterances; `hubert_jax.data.audio_files` reads their audio. A further
kind of corpus (a manifest, a TensorFlow Datasets builder) is another function that returns
`SourceUtterance`s: nothing downstream knows where they came from.
"""

import dataclasses
import os
import pathlib

from hubert_jax.errors import InputError

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus")
TRANSCRIPTS_TABLE = "transcripts.tsv"
_CHAPTER_TRANSCRIPTS = ".trans.txt"
_FILE_COLUMNS = ("file", "utterance", "id")


@dataclasses.dataclass(frozen=True)
class SourceUtterance:
    """One utterance as the corpus has it.

    Attributes:
      id: unique in the corpus; the file's name in LibriSpeech's layout, elsewhere its path below
        the folder; without the suffix.
      path: the audio file (for a transcript without audio: the file that holds the transcript).
      speaker: the speaker's name, "" if the corpus does not say.
      text: the transcript in upper case with single spaces, None if there is none.
      defect: why the utterance cannot be used, "" if nothing is known against it.
    """

    id: str
    path: pathlib.Path
    speaker: str
    text: str | None
    defect: str = ""


@dataclasses.dataclass(frozen=True)
class _Transcript:
    text: str
    speaker: str
    source: pathlib.Path


def discover(folder: str | os.PathLike) -> list[SourceUtterance]:
    """Lists a folder's utterances, sorted by id.

    Audio files (`AUDIO_SUFFIXES`, any case) are found at any depth; links to folders are followed,
    names that begin with a dot are skipped.

    LibriSpeech's layout is recognised file by file: `SPEAKER/CHAPTER/SPEAKER-CHAPTER-UTT.flac`,
    with transcripts in `SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt` (lines `UTT-ID TRANSCRIPT`).
    Elsewhere the speaker is the first folder below `folder`, and transcripts are in
    `transcripts.tsv` at its top: lines `FILE<TAB>TEXT`, FILE relative to `folder` with or without
    its suffix; a first line that names the columns (`file` or `utterance`, `text`, perhaps
    `speaker`) may put them in another order and add more.

    Where there are transcripts (a chapter folder with its file, a folder with `transcripts.tsv`),
    audio without one, transcripts without audio and empty transcripts are listed with a `defect`.

    Raises:
      InputError: the folder is missing or has no audio file, two utterances have the same id, a
        transcript file is not UTF-8, has a line without a text column or an id twice.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise InputError(f"{folder}: expected a folder of audio files, found {found} there")
    audio, chapters = _walk(folder)
    if not audio:
        raise InputError(f"{folder}: expected audio files ({_suffixes()}), found none in it")

    table = folder / TRANSCRIPTS_TABLE
    listed = _read_table(table) if table.is_file() else None
    by_chapter = {path.parent: (path, _read_chapter(path)) for path in chapters}
    utterances, used = [], set()
    for path in audio:
        utterance, transcript = _utterance(path, folder, by_chapter, listed)
        utterances.append(utterance)
        if transcript is not None:
            used.add(id(transcript))
    for transcripts in [*(chapter for _, chapter in by_chapter.values()), listed or {}]:
        for name, transcript in transcripts.items():
            if id(transcript) not in used:
                defect = f"transcript of {name} has no audio file; expected one beside it"
                if transcript.source == table:
                    defect = f"transcript of {name} has no audio file; expected {folder / name}"
                utterances.append(
                    SourceUtterance(
                        name, transcript.source, transcript.speaker, transcript.text, defect
                    )
                )
    utterances.sort(key=lambda utterance: (utterance.id, str(utterance.path)))
    refuse_duplicates(utterances)
    return utterances


def refuse_duplicates(utterances: list[SourceUtterance]) -> None:
    """Raises InputError, naming both files, if two utterances have the same id."""
    seen = {}
    for utterance in utterances:
        first = seen.setdefault(utterance.id, utterance)
        if first is not utterance:
            raise InputError(
                f"{utterance.path}: the utterance id {utterance.id!r} is also that of "
                f"{first.path}; expected every id once, rename or remove one of them"
            )


def _walk(folder: pathlib.Path) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    """Audio files and chapter transcripts below `folder`, sorted."""
    audio, chapters = [], []
    for directory, subfolders, names in os.walk(folder, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            if name.lower().endswith(AUDIO_SUFFIXES):
                audio.append(pathlib.Path(directory, name))
            elif name.endswith(_CHAPTER_TRANSCRIPTS):
                chapters.append(pathlib.Path(directory, name))
    return audio, chapters


def _utterance(
    path: pathlib.Path,
    folder: pathlib.Path,
    by_chapter: dict[pathlib.Path, tuple[pathlib.Path, dict[str, _Transcript]]],
    listed: dict[str, _Transcript] | None,
) -> tuple[SourceUtterance, _Transcript | None]:
    relative = path.relative_to(folder)
    name = relative.with_suffix("").as_posix()
    speaker = relative.parts[0] if len(relative.parts) > 1 else ""
    if _is_librispeech(path):
        name, speaker = path.stem, path.parent.parent.name
    if path.parent in by_chapter:
        expected, transcripts = by_chapter[path.parent]
        keys = [path.stem]
    elif listed is not None:
        expected, transcripts = folder / TRANSCRIPTS_TABLE, listed
        keys = [relative.as_posix(), relative.with_suffix("").as_posix()]
    else:
        return SourceUtterance(name, path, speaker, None), None
    transcript = next((transcripts[key] for key in keys if key in transcripts), None)
    if transcript is None:
        defect = f"no transcript; expected a line for it in {expected}"
        return SourceUtterance(name, path, speaker, None, defect), None
    defect = "" if transcript.text else f"empty transcript in {expected}; expected words"
    speaker = transcript.speaker or speaker
    return SourceUtterance(name, path, speaker, transcript.text, defect), transcript


def _is_librispeech(path: pathlib.Path) -> bool:
    chapter = path.parent
    return bool(chapter.parent.name) and path.stem.startswith(
        f"{chapter.parent.name}-{chapter.name}-"
    )


def _read_chapter(path: pathlib.Path) -> dict[str, _Transcript]:
    """Transcripts by utterance id."""
    transcripts = {}
    for number, line in _lines(path):
        name, _, text = line.strip().partition(" ")
        _add(transcripts, name, _Transcript(_normalised(text), "", path), path, number)
    return transcripts


def _read_table(path: pathlib.Path) -> dict[str, _Transcript]:
    """Transcripts by file, as the table writes it."""
    transcripts = {}
    columns = {"file": 0, "text": 1}
    for number, line in _lines(path):
        cells = line.split("\t")
        if number == 1 and "text" in cells and cells[0] in _FILE_COLUMNS:
            columns = {"file": 0} | {name: i for i, name in enumerate(cells) if i}
            continue
        if len(cells) <= columns["text"]:
            raise InputError(
                f"{path}, line {number}: expected FILE<TAB>TEXT, found {len(cells)} columns"
            )
        speaker = cells[columns["speaker"]].strip() if "speaker" in columns else ""
        text = _normalised(cells[columns["text"]])
        name = pathlib.PurePosixPath(cells[0].strip()).as_posix()
        _add(transcripts, name, _Transcript(text, speaker, path), path, number)
    return transcripts


def _add(
    transcripts: dict[str, _Transcript],
    name: str,
    transcript: _Transcript,
    path: pathlib.Path,
    number: int,
) -> None:
    if name in transcripts:
        raise InputError(f"{path}, line {number}: {name} has a transcript already; expected one")
    transcripts[name] = transcript


def _lines(path: pathlib.Path) -> list[tuple[int, str]]:
    """Numbered lines (from 1) that are not blank."""
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: expected UTF-8 text, found byte 0x{error.object[error.start]:02x} "
            f"at position {error.start}"
        ) from None
    lines = enumerate(content.split("\n"), start=1)
    return [(number, line.rstrip("\r")) for number, line in lines if line.strip()]


def _normalised(text: str) -> str:
    """Upper case and single spaces: the case of LibriSpeech and of the letter vocabulary."""
    return " ".join(text.upper().split())


def _suffixes() -> str:
    return ", ".join(f"*{suffix}" for suffix in AUDIO_SUFFIXES)
