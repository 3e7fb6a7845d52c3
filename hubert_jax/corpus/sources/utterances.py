"""One utterance of a corpus, and what every kind of corpus needs to list them."""

import dataclasses
import os
import pathlib
import unicodedata
from typing import Protocol

from hubert_jax.corpus.audio_files import Samples
from hubert_jax.errors import InputError


class Row(Protocol):
    """Audio that is not a file of its own: a row of a table, a record of a data set."""

    def load(self) -> bytes | Samples:
        """The row's audio: an audio file's content, or samples; raises InputError."""
        ...


@dataclasses.dataclass(frozen=True)
class SourceUtterance:
    """One utterance as the corpus has it.

    Attributes:
      id: unique in the corpus; the file's name in LibriSpeech's layout, elsewhere its path below
        the folder; without the suffix.
      path: the audio file, or the file that holds it (for a transcript without audio: the file
        that holds the transcript).
      speaker: the speaker's name, "" if the corpus does not say.
      text: the transcript in upper case with single spaces, None if there is none.
      defect: why the utterance cannot be used, "" if nothing is known against it.
      row: where in `path` the audio is, None if the file is the audio.
    """

    id: str
    path: pathlib.Path
    speaker: str
    text: str | None
    defect: str = ""
    row: Row | None = None

    @property
    def name(self) -> str:
        """How messages call it: the path, and its id where the path is not its own."""
        return f"{self.path}" if self.row is None else f"{self.path}, {self.id}"

    def load(self) -> pathlib.Path | bytes | Samples:
        """What `audio_files.read_waveform` takes; raises InputError where a row is unreadable."""
        return self.path if self.row is None else self.row.load()


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


def normalised(text: str) -> str:
    """Upper case and single spaces: the case of LibriSpeech and of the letter vocabulary."""
    return " ".join(text.upper().split())


def composed(name: str) -> str:
    """A name as it is compared: file systems and tables may write accents differently."""
    return unicodedata.normalize("NFC", name)


def named_by_path(relative: pathlib.PurePath) -> tuple[str, str]:
    """(id, defect) of a file by its path below its corpus; the id has no suffix.

    File names are bytes: one that is not UTF-8 can neither be an id nor be printed.
    """
    name = relative.with_suffix("").as_posix()
    try:
        name.encode()
    except UnicodeEncodeError:
        raw = os.fsencode(name)
        return raw.decode("utf-8", "backslashreplace"), "its name is not UTF-8; rename the file"
    return name, ""


def is_librispeech(path: pathlib.PurePath) -> bool:
    """Whether a path is SPEAKER/CHAPTER/SPEAKER-CHAPTER-UTT.flac."""
    speaker, chapter = path.parent.parent.name, path.parent.name
    return bool(speaker) and path.stem.startswith(f"{speaker}-{chapter}-")


def read_lines(path: pathlib.Path) -> list[tuple[int, str]]:
    """Numbered lines (from 1) of a UTF-8 text that are not blank.

    Raises:
      InputError: the file cannot be read or is not UTF-8.
    """
    lines = enumerate(read_text(path).split("\n"), start=1)
    return [(number, line.rstrip("\r")) for number, line in lines if line.strip()]


def read_text(path: pathlib.Path) -> str:
    """A UTF-8 text, with or without a byte order mark; raises as `read_lines`."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: expected UTF-8 text, found byte 0x{error.object[error.start]:02x} "
            f"at position {error.start}"
        ) from None
