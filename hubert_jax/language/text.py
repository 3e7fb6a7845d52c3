"""Sentences of prepared splits and of text files, as a vocabulary's policy has them."""

import collections
import gzip
import zlib
from collections.abc import Iterator, Sequence

from hubert_jax import files, storage
from hubert_jax.data.manifests import read_manifest
from hubert_jax.data.reading import RecordReader
from hubert_jax.errors import InputError
from hubert_jax.vocabulary import LIBRISPEECH

_NAMED = 5


class Text:
    """Sentences of `config.audio` and `config.texts`, in words, counted while they are read."""

    def __init__(self, audio: Sequence[str], texts: Sequence[str], checkpoint: str) -> None:
        """`checkpoint` is of a network with a CTC head, for its policy; "": LibriSpeech's.

        Raises InputError for what is missing.
        """
        for path in texts:
            if not storage.is_file(path):
                raise InputError(f"config.texts={path}: not found; expected a file of sentences")
        self._audio, self._texts = audio, texts
        self.audio_digests = [read_manifest(path).digest for path in audio]
        self.texts_digests = [files.sha256_file(path) for path in texts]
        self.vocabulary = LIBRISPEECH
        if checkpoint:
            from hubert_jax.networks import trained

            self.vocabulary = trained.require_ctc(trained.load(checkpoint))
        self.count = 0
        self._outside: collections.Counter[str] = collections.Counter()

    def sentences(self) -> Iterator[list[str]]:
        """All of them; InputError if there is none, or a file cannot be read."""
        self.count = 0
        self._outside.clear()
        for path in self._audio:
            yield from map(self._counted, self.of_split(path))
        for path in self._texts:
            try:
                file = storage.local(path)
                with gzip.open(file) if path.endswith(".gz") else open(file, "rb") as lines:
                    for line in lines:
                        if words := self._words(line.decode()):
                            yield self._counted(words)
            except UnicodeDecodeError:
                raise InputError(f"{path}: is not UTF-8; expected a sentence a line") from None
            except (OSError, EOFError, zlib.error) as error:
                raise InputError(f"{path}: cannot be read ({error})") from None
        if not self.count:
            raise InputError("config.audio, config.texts: no sentence in them, expected some")

    def of_split(self, path: str) -> Iterator[list[str]]:
        """Transcripts of a prepared split."""
        for text in RecordReader(storage.path(path), read_manifest(path)).transcripts():
            if words := self._words(text):
                yield words

    @property
    def outside(self) -> str:
        """One line on what the head cannot spell of the sentences so far; "" if it can."""
        if not self._outside:
            return ""
        listed = ", ".join(f"{c!r} {count}" for c, count in self._outside.most_common(_NAMED))
        return (
            f"the text has {self._outside.total():,} characters of {len(self._outside)} kinds that "
            f"the vocabulary lacks, whose words no lexicon will have: {listed}"
        )

    def _counted(self, words: list[str]) -> list[str]:
        self.count += 1
        self._outside.update(self.vocabulary.outside(" ".join(words)))
        return words

    def _words(self, text: str) -> list[str]:
        return self.vocabulary.normalised(text).split()
