"""Manifests as fairseq's recipes write them: train.tsv, and train.wrd or train.ltr beside it."""

import pathlib
import re
import sys

from hubert_jax import storage
from hubert_jax.corpus.sources.utterances import (
    SourceUtterance,
    identify,
    normalised,
    read_lines,
    read_text,
)
from hubert_jax.errors import InputError


def discover(manifest: pathlib.Path) -> list[SourceUtterance]:
    """The utterances of a manifest: line 1 is the folder of the audio, the others PATH<TAB>SAMPLES.

    The folder may be relative to the manifest's. Raises InputError, which names file and line, if
    it is missing, a line is not as expected, or there is another number of transcripts.
    """
    (_, first), *lines = read_lines(manifest) or [(1, "")]
    root = manifest.parent / first.strip()
    if not first.strip() or not storage.is_dir(root):
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
        if not tab or not re.fullmatch(r"[ \t]*[0-9]{1,18}[ \t\r]*", samples):
            raise InputError(
                f"{manifest}, line {number}: expected PATH<TAB>SAMPLES, found {line[:80]!r}"
            )
        relative = pathlib.PurePosixPath(name)
        if not relative.name or relative.is_absolute() or ".." in relative.parts:
            raise InputError(
                f"{manifest}, line {number}: expected a path below the folder of line 1, found "
                f"{name[:80]!r}"
            )
        name, speaker, defect = identify(root, relative)
        if text == "":
            defect = defect or f"empty transcript beside {manifest}, line {number}"
        folder = folders.setdefault(relative.parent, root / relative.parent)
        utterances.append(
            SourceUtterance(
                name, folder, relative.name, sys.intern(speaker), text, defect, samples=int(samples)
            )
        )
    return utterances


def _transcripts(manifest: pathlib.Path, expected: int) -> list[str | None]:
    """Of the .wrd file, or the .ltr file as letters `T H E | C A T |`; None where there is none."""
    words, letters = manifest.with_suffix(".wrd"), manifest.with_suffix(".ltr")
    path = words if words.is_file() else letters
    if not path.is_file():
        return [None] * expected
    lines = read_text(path).removesuffix("\n").split("\n")  # a blank one is an empty transcript
    if len(lines) != expected:
        raise InputError(
            f"{path}: {len(lines)} lines, but {manifest} has {expected} audio files; "
            "expected a line for each"
        )
    if path == letters:
        lines = [line.replace(" ", "").replace("|", " ") for line in lines]
    return [normalised(line) for line in lines]
