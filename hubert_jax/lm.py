"""Estimates an n-gram language model with KenLM's lmplz (modified Kneser-Ney), and measures it.

Reads transcripts of prepared splits, text files with a sentence in each line, or both, in the case
of a network's vocabulary. Writes WORKDIR/lm/lm.arpa, the same as the binary lm.bin, and result.json
with the perplexity and the rate of unknown words on a split. launch/kenlm.sh builds lmplz.
"""

import dataclasses
import time

from hubert_jax import files, job
from hubert_jax.asr.search import require_library
from hubert_jax.config import MayChange, Reads
from hubert_jax.errors import InputError
from hubert_jax.language import ngram

_UNITS = ("word", "letter")

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
    from hubert_jax.data.manifests import read_manifest
    from hubert_jax.language.text import Text

    text = Text(config.audio, config.texts, config.checkpoint)
    measured = read_manifest(config.measured_on).digest if config.measured_on else None
    tokens = 0

    def units(words: list[str]) -> list[str]:
        nonlocal tokens
        found = list("|".join(words)) if config.unit == "letter" else words
        tokens += len(found)
        return found

    directory = workdir / "lm"
    directory.mkdir(exist_ok=True)
    with files.locked(workdir / ".lm.lock", "lm job"):
        (directory / "result.json").unlink(missing_ok=True)  # only a finished job has a result
        sentences = map(units, text.sentences())
        arpa, binary = ngram.estimate(
            sentences, directory, config.order, config.prune, config.memory, programs
        )
        result = {
            "arpa": str(arpa),
            "binary": str(binary),
            "digest": files.sha256_file(binary),
            "unit": config.unit,
            "order": config.order,
            "sentences": text.count,
            "tokens": tokens,
            "audio_digests": text.audio_digests,
            "texts_digests": text.texts_digests,
            "measured_on": measured,
            "measured": None,
        }
        if config.measured_on:
            spoken = map(units, text.of_split(config.measured_on))
            result["measured"] = ngram.measure(ngram.Scorer(binary), spoken)
        result = job.finish(config.workdir, "lm", result, started)
    _show(result, text.outside)
    return result


def _show(result: dict, outside: str) -> None:
    found = result["measured"]
    print(
        f"{result['order']}-gram of {result['tokens']:,} {result['unit']}s in "
        f"{result['sentences']:,} sentences: {result['arpa']}, {result['binary']}"
    )
    if outside:
        print(outside)
    if found:
        print(
            f"on {found['words']:,} {result['unit']}s of {found['sentences']:,} sentences: "
            f"perplexity {found['perplexity']:.2f}, {found['perplexity_without_unknown']:.2f} "
            f"without unknown ones; unknown {100 * found['unknown_rate']:.2f} %"
        )
    print(end="", flush=True)


if __name__ == "__main__":
    job.main("lm", LmConfig, run, computes=False)
