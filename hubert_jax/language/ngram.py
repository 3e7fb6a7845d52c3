"""n-gram language models in the files of KenLM; log probabilities are to base 10."""

import contextlib
import gzip
import mmap
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from hubert_jax import files, storage
from hubert_jax.errors import InputError
from hubert_jax.vocabulary import WORD_BOUNDARY

_BINARY = b"mmap lm http://kheafield.com/code"
_COUNTS = struct.Struct("<B3xfiB3xI")  # order, of hash tables, kind, whether words are there, -
_COUNTS_AT = 88
_NOT_WORDS = frozenset(("<s>", "</s>", "<unk>"))
_EXPECTED = "expected an n-gram as hubert_jax.lm or KenLM writes it, ARPA or binary"


def words(path: str | os.PathLike) -> list[str]:
    """What an n-gram's unigrams are, sentence marks and the unknown word left out.

    None of a binary that was built without them. Raises InputError for a file that is missing, cut
    off or no n-gram.
    """
    try:
        path = storage.local(path)
        with open(path, "rb") as file:
            binary = file.read(len(_BINARY)) == _BINARY
            found = _words_of_binary(path, file) if binary else _words_of_arpa(path)
        return [word for word in found if word not in _NOT_WORDS]
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path}: language model cannot be read ({reason}); {_EXPECTED}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not UTF-8; {_EXPECTED}") from None


def _words_of_arpa(path: str | os.PathLike) -> list[str]:
    compressed = str(path).endswith(".gz")
    if not compressed:
        with open(path, "rb") as file:
            file.seek(max(0, os.path.getsize(path) - 64))
            if not file.read().rstrip().endswith(b"\\end\\"):
                raise InputError(f"{path}: does not end with \\end\\, cut off; {_EXPECTED}")
    found, counted, within = [], None, False
    with gzip.open(path) if compressed else open(path, "rb") as lines:
        for line in lines:
            if line.startswith(b"ngram 1=") and line[8:].strip().isdigit():
                counted = int(line[8:])
            elif line.startswith(b"\\1-grams:"):
                within = True
            elif within and line.startswith(b"\\"):
                break
            elif within and line.strip():
                found.append(line.split()[1].decode() if len(line.split()) > 1 else "")
    if counted is None or counted != len(found) or "" in found:
        raise InputError(f"{path}: {len(found)} unigrams, {counted} announced; {_EXPECTED}")
    return found


def _words_of_binary(path: str | os.PathLike, file: Any) -> list[str]:
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        cut_off = InputError(f"{path}: is cut off; {_EXPECTED}")
        if len(content) < _COUNTS_AT + _COUNTS.size + 8:
            raise cut_off
        *_, has_words, _ = _COUNTS.unpack_from(content, _COUNTS_AT)
        (unigrams,) = struct.unpack_from("<Q", content, _COUNTS_AT + _COUNTS.size)
        if not has_words:
            return []
        at = content.rfind(b"<unk>\0")
        found = content[at:].split(b"\0") if at >= 0 else []
        if len(found) <= unigrams or found[-1]:
            raise cut_off
        return [word.decode() for word in found[:-1]]


def is_of_characters(path: str | os.PathLike) -> bool:
    """Whether an n-gram's tokens are letters and "|", for spaces. Raises as `words`."""
    return are_characters(words(path))


def are_characters(tokens: Sequence[str]) -> bool:
    """The same, of its tokens; one of words may have a "|" among them."""
    return WORD_BOUNDARY in tokens and all(len(token) == 1 for token in tokens)


def load(path: str | os.PathLike, tokens: Sequence[str]) -> Any:
    """flashlight's KenLM, which knows the tokens by their places; those it lacks are `<unk>`.

    Raises InputError where KenLM refuses the file.
    """
    from flashlight.lib.text.decoder.kenlm import KenLM
    from flashlight.lib.text.dictionary import Dictionary

    try:
        with _quiet():
            return KenLM(str(storage.local(path)), Dictionary(list(tokens)))
    except RuntimeError as error:
        raise InputError(f"{path}: KenLM: {' '.join(str(error).split())}; {_EXPECTED}") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """KenLM draws how far it has come on standard error, in every process."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


class Scorer:
    """log10 probabilities of words in their place; states are flashlight's."""

    def __init__(self, path: str | os.PathLike) -> None:
        """Raises as `words` and `load`."""
        known = words(path)
        if not known:
            raise InputError(f"{path}: a binary without its words; build it anew, with them")
        self._numbers = {word: number for number, word in enumerate(known)}
        self._model = load(path, [*known, "<unk>"])

    def __contains__(self, word: str) -> bool:
        return word in self._numbers

    def start(self) -> Any:
        """The state in which a sentence begins."""
        return self._model.start(False)

    def score(self, state: Any, word: str) -> tuple[Any, float]:
        """The state after a word, and its log10 probability."""
        return self._model.score(state, self._numbers.get(word, len(self._numbers)))

    def finish(self, state: Any) -> float:
        """log10 probability that the sentence ends."""
        return self._model.finish(state)[1]

    def sentence(self, spoken: Iterable[str]) -> float:
        """log10 probability of a sentence, its end included."""
        state, total = self.start(), 0.0
        for word in spoken:
            state, log10 = self.score(state, word)
            total += log10
        return total + self.finish(state)


def measure(scorer: Scorer, sentences: Iterable[Sequence[str]]) -> dict[str, Any]:
    """How well an n-gram foretells sentences: perplexities and the rate of words it lacks.

    Ends of sentences count as tokens. Unknown words have the probability of `<unk>`, and are left
    out of `perplexity_without_unknown`.
    """
    count = tokens = unknown = 0
    total = of_unknown = 0.0
    for sentence in sentences:
        state = scorer.start()
        for word in sentence:
            state, log10 = scorer.score(state, word)
            total += log10
            if word not in scorer:
                unknown, of_unknown = unknown + 1, of_unknown + log10
        total += scorer.finish(state)
        count, tokens = count + 1, tokens + len(sentence) + 1
    known = tokens - unknown
    return {
        "sentences": count,
        "words": tokens - count,
        "unknown": unknown,
        "unknown_rate": unknown / max(tokens - count, 1),
        "perplexity": 10 ** (-total / tokens) if tokens else None,
        "perplexity_without_unknown": 10 ** (-(total - of_unknown) / known) if known else None,
    }


def require_programs(folder: str) -> tuple[str, str]:
    """The paths of KenLM's lmplz and build_binary, in `folder` or, if that is "", on the PATH.

    Raises InputError, which names the script that builds them, where one is missing.
    """
    found = [shutil.which(name, path=folder or None) for name in ("lmplz", "build_binary")]
    if None in found:
        where = f"config.kenlm={folder}" if folder else "PATH"
        raise InputError(
            f"{where}: found no lmplz or no build_binary of KenLM; build them by launch/kenlm.sh "
            "FOLDER, and pass --config.kenlm=FOLDER"
        )
    return str(found[0]), str(found[1])


def estimate(
    sentences: Iterable[Sequence[str]],
    directory: pathlib.Path,
    order: int,
    prune: Sequence[int],
    memory: str,
    programs: tuple[str, str],
) -> tuple[pathlib.Path, pathlib.Path]:
    """Writes lm.arpa and lm.bin, estimated by lmplz with modified Kneser-Ney smoothing.

    Discounts that a small text does not give are KenLM's own. Raises InputError with what lmplz or
    build_binary says last.
    """
    lmplz, build_binary = programs
    arpa, binary = directory / "lm.arpa", directory / "lm.bin"
    near = storage.scratch(directory)
    near.mkdir(exist_ok=True)
    with files.writing_file(arpa) as aside, tempfile.TemporaryDirectory(dir=near) as scratch:
        command = [
            lmplz,
            "--order",
            str(order),
            "--memory",
            memory,
            "--discount_fallback",
            "--skip_symbols",
        ]
        command += ["--temp_prefix", f"{scratch}/", "--arpa", str(aside)]
        command += ["--prune", *map(str, prune)] if prune else []
        _run(command, (" ".join(sentence) + "\n" for sentence in sentences))
        with files.writing_file(binary) as compiled:
            _run([build_binary, str(aside), str(compiled)], ())
    return arpa, binary


def _run(command: list[str], lines: Iterable[str]) -> None:
    with tempfile.TemporaryFile() as said:  # a pipe that nobody reads would fill
        try:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=said, stderr=said)
        except OSError as error:  # of another machine, or of an interpreter that is not here
            raise InputError(f"{command[0]}: cannot be started: {error.strerror}") from error
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin as text:
            for line in lines:
                text.write(line.encode())
        if process.wait():
            said.seek(0)
            last = " ".join(said.read().decode(errors="replace").split())[-300:]
            raise InputError(f"{command[0]}: ended with status {process.returncode}: {last}")
