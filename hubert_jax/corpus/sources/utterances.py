"""One utterance of a corpus, and what every kind of corpus needs to list them."""

import dataclasses
import itertools
import os
import pathlib
import re
import unicodedata
from collections.abc import Iterable
from typing import Protocol

from hubert_jax import files, storage
from hubert_jax.corpus.audio_files import Samples
from hubert_jax.errors import InputError, printable

_MARK = "\ufeff"
# A terminal obeys some of them; tables and indices take others for the end of a name.
_CONTROL = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029]")


class Row(Protocol):
    """Audio that is not a file of its own: a row of a table, a record of a data set."""

    def load(self) -> bytes | Samples:
        """An audio file's content, or samples; raises InputError."""


@dataclasses.dataclass(frozen=True, slots=True)
class SourceUtterance:
    """One utterance as the corpus has it; slim, since there may be ten million."""

    id: str  # as `identify` gives it, or a row's
    folder: pathlib.Path  # shared between utterances
    file: str  # with the audio, or with a transcript whose audio is missing
    speaker: str  # "" if unknown
    text: str | None  # of Unicode's NFC, with single spaces
    defect: str = ""  # why it cannot be used
    row: Row | None = None  # where in the file the audio is; None: the file is the audio
    corpus: int = 0  # its number where a split mixes several
    samples: int | None = None  # as the corpus counts them, at the file's rate

    @property
    def path(self) -> pathlib.Path:
        """Of the file."""
        return self.folder / self.file

    @property
    def name(self) -> str:
        """How messages call it: the path, and the id of a row."""
        return f"{self.path}" if self.row is None else f"{self.path}, {self.id}"

    @staticmethod
    def defect_of_names(*names: str) -> str:
        """Why an id or a speaker cannot be used; "" if all can."""
        found = any(map(_CONTROL.search, names))
        return "its name or speaker has control characters; rename it" if found else ""

    def load(self) -> pathlib.Path | bytes | Samples:
        """What `audio_files.read_waveform` takes; raises InputError where it is unreadable."""
        path = self.path
        if self.row is not None:
            return self.row.load()
        if not isinstance(path, storage.BucketPath):
            return path
        try:
            return path.read_bytes()  # one request, and nothing is kept that is read once
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from None


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
    """A transcript as it stands, but for Unicode's NFC and single spaces."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def composed(name: str) -> str:
    """A name to compare: file systems and tables may write accents differently."""
    return unicodedata.normalize("NFC", name)


def identify(corpus: pathlib.Path, relative: pathlib.PurePath) -> tuple[str, str, str]:
    """(id, speaker, defect) of a file by its path below its corpus.

    LibriSpeech's SPEAKER/CHAPTER/SPEAKER-CHAPTER-UTT.flac says both; elsewhere the id is the path
    without suffix, the speaker the first folder.
    """
    speaker = relative.parts[0] if len(relative.parts) > 1 else ""
    name = relative.with_suffix("").as_posix()
    try:
        name.encode()
    except UnicodeEncodeError:  # can neither be an id nor be printed
        raw = os.fsencode(name).decode("utf-8", "backslashreplace")
        return raw, speaker, "its name is not UTF-8; rename the file"
    if defect := SourceUtterance.defect_of_names(name):
        return printable(name), printable(speaker), defect
    chapter = (corpus / relative).parent
    reader = chapter.parent.name
    if reader and relative.stem.startswith(f"{reader}-{chapter.name}-"):
        return relative.stem, reader, ""
    return name, speaker, ""


def read_lines(path: pathlib.Path) -> list[tuple[int, str]]:
    """Numbered lines (from 1) that are not blank, of a UTF-8 text; raises as `read_text`."""
    lines = enumerate(read_text(path).split("\n"), start=1)
    return [(number, line.rstrip("\r")) for number, line in lines if line.strip()]


def read_text(path: pathlib.Path) -> str:
    """A UTF-8 text, without the byte order marks that begin it, or lines where texts were joined.

    Raises InputError if it cannot be read, or has such a mark elsewhere.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig").replace(f"\n{_MARK}", "\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: expected UTF-8 text, found byte 0x{error.object[error.start]:02x} "
            f"at position {error.start}"
        ) from None
    if found := files.pretence(text[:512].encode()):
        raise InputError(f"{path}: {found}")
    if _MARK in text:
        number = text.count("\n", 0, text.index(_MARK)) + 1
        raise InputError(
            f"{path}, line {number}: a byte order mark (U+FEFF) within the line; expected it at a "
            "line's beginning at most, where tables were joined"
        )
    return text
