"""Estimates an n-gram language model with KenLM's lmplz (modified Kneser-Ney), and measures it.

Reads transcripts of prepared splits, text files with a sentence in each line, or both, in the case
of a network's vocabulary. Writes WORKDIR/lm/lm.arpa, the same as the binary lm.bin, and result.json
with the perplexity and the rate of unknown words on a split. launch/kenlm.sh builds lmplz.
"""

import collections
import dataclasses
import gzip
import pathlib
import time
from collections.abc import Iterator

from hubert_jax import files, job
from hubert_jax.asr.search import require_library
from hubert_jax.config import MayChange, Reads
from hubert_jax.errors import InputError
from hubert_jax.language import ngram
from hubert_jax.vocabulary import LIBRISPEECH, Vocabulary

_UNITS = ("word", "letter")
_NAMED = 5

VERSION = 1  # raise it when the same configuration and inputs give another output


@dataclasses.dataclass(frozen=True)
class LmConfig:
    """Configuration of language models."""

    workdir: MayChange[str]
    audio: Reads[tuple[str, ...]] = ()  # prepared splits, whose transcripts are taken
    texts: Reads[tuple[str, ...]] = ()  # files, a sentence in each line, .gz or plain UTF-8
    measured_on: Reads[str] = ""  # prepared split, of whose transcripts the perplexity is
    checkpoint: Reads[str] = ""  # network with a CTC head, for its letters; empty: LibriSpeech's
    unit: str = "word"  # or letter, with "|" for spaces: for decode --config.method=letters
    order: int = 4  # words of an n-gram; at most 6 unless KenLM was built for more
    prune: tuple[int, ...] = ()  # n-grams this rare are left out, by their length, as (0, 0, 1)
    memory: MayChange[str] = "50%"  # for lmplz's sorting, or 4G
    kenlm: MayChange[str] = ""  # folder of lmplz and build_binary; empty: they are on the PATH

    def __post_init__(self) -> None:
        if not self.audio and not self.texts:
            raise InputError("config.audio, config.texts: both empty, expected text from one")
        if self.unit not in _UNITS:
            raise InputError(f"config.unit={self.unit!r}: expected one of {_UNITS}")
        if self.order < 1:
            raise InputError(f"config.order={self.order}: expected at least 1")
        if min(self.prune, default=0) < 0 or list(self.prune) != sorted(self.prune):
            raise InputError(
                f"config.prune={self.prune}: expected counts from 0 on that do not fall, such as "
                "(0, 0, 1)"
            )


def run(config: LmConfig) -> dict:
    """Estimates and measures; returns the content of `WORKDIR/lm/result.json`.

    Raises InputError for text that is missing, and where lmplz is.
    """
    started = time.monotonic()
    workdir = files.require_writable(config.workdir)
    programs = ngram.require_programs(config.kenlm)
    if config.measured_on:
        require_library("flashlight", f"config.measured_on={config.measured_on}")
    for path in config.texts:
        if not pathlib.Path(path).is_file():
            raise InputError(f"config.texts={path}: not found; expected a file of sentences")
    from hubert_jax.data.manifests import read_manifest

    digests = [read_manifest(path).digest for path in config.audio]
    measured = read_manifest(config.measured_on).digest if config.measured_on else None
    vocabulary = LIBRISPEECH
    if config.checkpoint:
        from hubert_jax.networks import trained as trained_lib

        vocabulary = trained_lib.require_ctc(trained_lib.load(config.checkpoint))
    directory = workdir / "lm"
    directory.mkdir(exist_ok=True)
    with files.locked(workdir / ".lm.lock", "lm job"):
        (directory / "result.json").unlink(missing_ok=True)  # only a finished job has a result
        text = _Text(config, vocabulary)
        arpa, binary = ngram.estimate(
            text.sentences(), directory, config.order, config.prune, config.memory, programs
        )
        result = {
            "arpa": str(arpa),
            "binary": str(binary),
            "digest": files.sha256_file(binary),
            "unit": config.unit,
            "order": config.order,
            "sentences": text.count,
            "tokens": text.tokens,
            "audio_digests": digests,
            "texts_digests": [files.sha256_file(path) for path in config.texts],
            "measured_on": measured,
            "measured": None,
        }
        if config.measured_on:
            spoken = text.of_split(config.measured_on)
            result["measured"] = ngram.measure(ngram.Scorer(binary), spoken)
        result = job.finish(config.workdir, "lm", result, started)
    _show(result, text)
    return result


class _Text:
    """The sentences, counted while they are read."""

    def __init__(self, config: LmConfig, vocabulary: Vocabulary) -> None:
        self._config, self._vocabulary = config, vocabulary
        self.count = self.tokens = 0
        self.outside: collections.Counter[str] = collections.Counter()  # what no head spells

    def sentences(self) -> Iterator[list[str]]:
        """Of all that is read; InputError if that is nothing."""
        for path in self._config.audio:
            yield from map(self._counted, self.of_split(path))
        for path in self._config.texts:
            try:
                with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as lines:
                    for line in lines:
                        if tokens := self._tokens(line.decode()):
                            yield self._counted(tokens)
            except UnicodeDecodeError:
                raise InputError(f"{path}: is not UTF-8; expected a sentence a line") from None
            except (OSError, EOFError) as error:
                raise InputError(f"{path}: cannot be read ({error})") from None
        if not self.count:
            raise InputError("config.audio, config.texts: no sentence in them, expected some")

    def of_split(self, path: str) -> Iterator[list[str]]:
        """Transcripts of a prepared split."""
        from hubert_jax.data.manifests import read_manifest
        from hubert_jax.data.reading import RecordReader

        for text in RecordReader(pathlib.Path(path), read_manifest(path)).transcripts():
            if tokens := self._tokens(text):
                yield tokens

    def _counted(self, tokens: list[str]) -> list[str]:
        self.count, self.tokens = self.count + 1, self.tokens + len(tokens)
        self.outside.update(self._vocabulary.outside("".join(tokens).replace("|", " ")))
        return tokens

    def _tokens(self, text: str) -> list[str]:
        words = self._vocabulary.normalised(text).split()
        return list("|".join(words)) if self._config.unit == "letter" else words


def _show(result: dict, text: _Text) -> None:
    found = result["measured"]
    print(
        f"{result['order']}-gram of {result['tokens']:,} {result['unit']}s in "
        f"{result['sentences']:,} sentences: {result['arpa']}, {result['binary']}"
    )
    if text.outside:
        listed = ", ".join(f"{c!r} {count}" for c, count in text.outside.most_common(_NAMED))
        print(
            f"the text has {text.outside.total():,} characters of {len(text.outside)} kinds that "
            f"the vocabulary lacks, whose words no lexicon will have: {listed}"
        )
    if found:
        print(
            f"on {found['words']:,} {result['unit']}s of {found['sentences']:,} sentences: "
            f"perplexity {found['perplexity']:.2f}, {found['perplexity_without_unknown']:.2f} "
            f"without unknown ones; unknown {100 * found['unknown_rate']:.2f} %"
        )
    print(end="", flush=True)


if __name__ == "__main__":
    job.main("lm", LmConfig, run, computes=False)
