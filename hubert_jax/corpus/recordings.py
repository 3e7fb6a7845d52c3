"""Audio files that a user names, of any length and rate, as utterances without a corpus."""

import collections
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from hubert_jax import files, storage
from hubert_jax.corpus import audio_files
from hubert_jax.corpus.sources import folders
from hubert_jax.data.records import Utterance
from hubert_jax.errors import InputError, printable
from hubert_jax.frames import SAMPLE_RATE

_TOGETHER_SECONDS = 1800.0  # of audio that are read before any of it is given out


class Recordings:
    """Files, and those in folders, by the names that results have: below the folder, or as given.

    Also as given are files of one name in several folders. Raises InputError for what is not there,
    for a folder without audio, and for files that are given twice.
    """

    def __init__(self, paths: Sequence[str], unchecked: bool = False) -> None:
        self.paths: dict[str, pathlib.Path] = {}
        self.refused: dict[str, str] = {}  # why some could not be read
        self.remarks: dict[str, list[str]] = {}  # what is odd about others
        self._unchecked = unchecked
        given: list[tuple[str, pathlib.Path]] = []
        for path in map(storage.path, paths):
            found = {path.as_posix(): path}
            if path.is_dir():
                listed = [each.path / name for each in folders.walk(path) for name in each.audio]
                found = {each.relative_to(path).as_posix(): each for each in sorted(listed)}
            elif not path.exists():
                raise InputError(f"{path}: no such file or folder; expected audio")
            if not found:
                raise InputError(
                    f"{path}: no audio in it; expected audio files, or a folder of them"
                )
            given += found.items()
        named = collections.Counter(name for name, _ in given)
        for name, path in given:
            name = name if named[name] == 1 else path.as_posix()
            if name in self.paths:
                raise InputError(f"{path}: is given twice; pass each recording once")
            self.paths[name] = path
        if not self.paths:
            raise InputError("config.files: found none, expected audio files or folders of them")

    def content(self) -> dict[str, str]:
        """SHA-256 of every file, by name; what cannot be read is `refused`, and printed."""
        found = {}
        for name, path in self.paths.items():
            try:
                if not path.is_file():  # a pipe would be waited for
                    raise InputError(f"{path}: not a regular file; expected audio")
                found[name] = files.sha256_file(path)
            except InputError as error:
                self._refuse(name, str(error))
            except OSError as error:
                self._refuse(name, f"{path}: cannot be read ({error.strerror})")
        return found

    def groups(self, wanted: Callable[[str], bool]) -> Iterator[tuple[int, list[Utterance]]]:
        """Groups of half an hour or one recording, read as they are asked for.

        What cannot be read is `refused`, and printed.
        """
        names = [name for name in self.paths if name not in self.refused and wanted(name)]
        group: list[Utterance] = []
        seconds, number = 0.0, 0
        for name in names:
            remarks: list[str] = []
            try:
                blocks = audio_files.waveform_blocks(
                    self.paths[name], True, str(self.paths[name]), self._unchecked, remarks
                )
                waveform = np.concatenate(list(blocks))
            except InputError as error:
                self._refuse(name, str(error))
                continue
            if remarks:
                self.remarks[name] = remarks
                print(f"{self.paths[name]}: {'; '.join(remarks)}", flush=True)
            if group and seconds + len(waveform) / SAMPLE_RATE > _TOGETHER_SECONDS:
                yield number, group
                group, seconds, number = [], 0.0, number + 1
            group.append(Utterance(name, waveform))
            seconds += len(waveform) / SAMPLE_RATE
        if group:
            yield number, group

    def _refuse(self, name: str, reason: str) -> None:
        self.refused[name] = reason
        print(printable(f"refused: {reason}"), flush=True)
