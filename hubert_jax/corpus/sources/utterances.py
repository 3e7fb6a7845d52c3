"""One utterance of a corpus, and what every kind of corpus needs to list them."""

import dataclasses
import itertools
import os
import pathlib
import unicodedata
from collections.abc import Iterable
from typing import Protocol

from hubert_jax.corpus.audio_files import Samples
from hubert_jax.errors import InputError


class Row(Protocol):
    """Audio that is not a file of its own: a row of a table, a record of a data set."""

    def load(self) -> bytes | Samples:
        """An audio file's content, or samples; raises InputError."""


@dataclasses.dataclass(frozen=True, slots=True)
class SourceUtterance:
    """One utterance as the corpus has it; slim, since there may be ten million.

    Attributes:
      id: unique in the corpus, without suffix; the file's name in LibriSpeech's layout, elsewhere
        its path below the corpus.
      folder: of the file; shared between utterances.
      file: that holds the audio, or a transcript whose audio is missing.
      speaker: "" if the corpus does not say.
      text: in upper case with single spaces, None if there is none.
      defect: why the utterance cannot be used, "" if nothing is known against it.
      row: where in the file the audio is, None if the file is the audio.
      corpus: its number where a split mixes several.
    """

    id: str
    folder: pathlib.Path
    file: str
    speaker: str
    text: str | None
    defect: str = ""
    row: Row | None = None
    corpus: int = 0

    @property
    def path(self) -> pathlib.Path:
        """Of the file."""
        return self.folder / self.file

    @property
    def name(self) -> str:
        """How messages call it: the path, and the id of a row."""
        return f"{self.path}" if self.row is None else f"{self.path}, {self.id}"

    def load(self) -> pathlib.Path | bytes | Samples:
        """What `audio_files.read_waveform` takes; raises InputError where a row is unreadable."""
        return self.path if self.row is None else self.row.load()


def refuse_duplicates(utterances: Iterable[SourceUtterance]) -> None:
    """Raises InputError if two utterances, sorted by id, have the same; names both files."""
    for one, other in itertools.pairwise(utterances):
        if one.id == other.id:
            first, second = sorted(str(utterance.path) for utterance in (one, other))
            raise InputError(
                f"{second}: the utterance id {one.id!r} is also that of {first}; expected every id "
                "once, rename or remove one of them"
            )


def normalised(text: str) -> str:
    """Upper case and single spaces: the case of LibriSpeech and of the letter vocabulary."""
    return " ".join(text.upper().split())


def composed(name: str) -> str:
    """A name to compare: file systems and tables may write accents differently."""
    return unicodedata.normalize("NFC", name)


def named_by_path(relative: pathlib.PurePath) -> tuple[str, str]:
    """(id, defect) of a file by its path below its corpus.

    A name that is not UTF-8 can neither be an id nor be printed.
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
    """Numbered lines (from 1) that are not blank, of a UTF-8 text; raises as `read_text`."""
    lines = enumerate(read_text(path).split("\n"), start=1)
    return [(number, line.rstrip("\r")) for number, line in lines if line.strip()]


def read_text(path: pathlib.Path) -> str:
    """A UTF-8 text, with or without a byte order mark; raises InputError if it is none."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: expected UTF-8 text, found byte 0x{error.object[error.start]:02x} "
            f"at position {error.start}"
        ) from None
