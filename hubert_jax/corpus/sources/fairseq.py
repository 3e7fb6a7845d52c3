"""Manifests as fairseq's recipes write them.

train.tsv   line 1: the folder of the audio; then lines `PATH<TAB>SAMPLES`
train.wrd   optional: line n is the transcript of the n-th audio file
train.ltr   optional, where there is no .wrd: the same as letters, `T H E | C A T |`
"""

import pathlib
import sys

from hubert_jax.corpus.sources.utterances import (
    SourceUtterance,
    is_librispeech,
    named_by_path,
    normalised,
    read_lines,
    read_text,
)
from hubert_jax.errors import InputError


def discover(manifest: pathlib.Path) -> list[SourceUtterance]:
    """The utterances of a manifest, whose folder may be relative to its own.

    Raises:
      InputError: the folder is missing, a line is not `PATH<TAB>SAMPLES`, or there is another
        number of transcripts; names file and line.
    """
    (_, first), *lines = read_lines(manifest) or [(1, "")]
    root = manifest.parent / first.strip()
    if not first.strip() or not root.is_dir():
        raise InputError(
            f"{manifest}, line 1: expected the folder of the audio files, found {first[:80]!r}"
        )
    if not lines:
        raise InputError(f"{manifest}: expected lines PATH<TAB>SAMPLES, found none after line 1")
    texts = _transcripts(manifest, len(lines))
    utterances: list[SourceUtterance] = []
    folders: dict[pathlib.PurePosixPath, pathlib.Path] = {}
    for (number, line), text in zip(lines, texts, strict=True):
        name, tab, samples = line.partition("\t")
        if not tab or not samples.strip().isdecimal():
            raise InputError(
                f"{manifest}, line {number}: expected PATH<TAB>SAMPLES, found {line[:80]!r}"
            )
        relative = pathlib.PurePosixPath(name)
        utterance_id, defect = named_by_path(relative)
        speaker = sys.intern(relative.parts[0]) if len(relative.parts) > 1 else ""
        if is_librispeech(root / relative):
            utterance_id, speaker = relative.stem, sys.intern((root / relative).parent.parent.name)
        if text == "":
            defect = defect or f"empty transcript beside {manifest}, line {number}"
        folder = folders.setdefault(relative.parent, root / relative.parent)
        utterances.append(
            SourceUtterance(utterance_id, folder, relative.name, speaker, text, defect)
        )
    return utterances


def _transcripts(manifest: pathlib.Path, expected: int) -> list[str | None]:
    words, letters = manifest.with_suffix(".wrd"), manifest.with_suffix(".ltr")
    path = words if words.is_file() else letters
    if not path.is_file():
        return [None] * expected
    # A blank line is an empty transcript here, not nothing.
    lines = read_text(path).removesuffix("\n").split("\n")
    if len(lines) != expected:
        raise InputError(
            f"{path}: {len(lines)} lines, but {manifest} has {expected} audio files; "
            "expected a line for each"
        )
    if path == letters:
        lines = [line.replace(" ", "").replace("|", " ") for line in lines]
    return [normalised(line) for line in lines]
