"""The vocabulary of a fine-tuning: learnt from transcripts, of a file, or of another network."""

import dataclasses
import pathlib
import unicodedata
from collections.abc import Callable, Iterable

from hubert_jax import distributed, files, storage
from hubert_jax.data.manifests import AudioManifest
from hubert_jax.data.reading import RecordReader
from hubert_jax.errors import InputError, printable
from hubert_jax.vocabulary import LIBRISPEECH, WORD_BOUNDARY, TextPolicy, Vocabulary

_SOURCES = ("", "transcripts", "pieces", "init_from")
_LISTED = 60  # symbols of a message


@dataclasses.dataclass(frozen=True)
class VocabularyConfig:
    """What the head spells, and what is done to transcripts; the checkpoint keeps both."""

    source: str = ""  # transcripts, pieces, init_from; "": config.vocabulary_file, or else A to Z
    pieces: int = 1_000  # classes of source=pieces, word pieces learnt by sentencepiece
    separated: bool = False  # symbols stand between spaces in transcripts, as phones do
    replace: tuple[str, ...] = ()  # FROM=TO,... in transcripts, in this order
    case: str = ""  # keep, upper or lower; empty: as the symbols are, keep where they are learnt
    punctuation: str = ""  # keep, or drop: a space instead, but for apostrophes within words
    outside: str = ""  # what no symbol spells: fail, or drop; empty: fail

    def __post_init__(self) -> None:
        try:
            TextPolicy(**self.given())
        except InputError as error:
            raise InputError(f"config.{error}") from None
        if self.source not in _SOURCES:
            raise InputError(
                f"config.vocabulary.source={self.source!r}: expected "
                f"{' or '.join(_SOURCES[1:])}, or empty for config.vocabulary_file or A to Z"
            )
        if self.pieces < 2:
            raise InputError(f"config.vocabulary.pieces={self.pieces}: expected at least 2")

    def require_meant(self, file: str, init_from: str) -> None:
        """Raises InputError where it asks for another source than `file`, or for none there is.

        Both are the configuration's.
        """
        if file and self.source:
            raise InputError(
                f"config.vocabulary_file={file}: found with config.vocabulary.source="
                f"{self.source}; give one of them"
            )
        if file and not storage.is_file(file):
            raise InputError(f"config.vocabulary_file={file}: no such file")
        if self.source == "init_from" and not init_from:
            raise InputError("config.vocabulary.source=init_from: found without config.init_from")
        if self.separated and not file and self.source != "transcripts":
            raise InputError(
                "config.vocabulary.separated=True: expected with config.vocabulary_file or "
                "config.vocabulary.source=transcripts alone"
            )

    def given(self) -> dict:
        """The part of the policy that it says itself."""
        names = (field.name for field in dataclasses.fields(TextPolicy))
        return {name: value for name in names if (value := getattr(self, name))}


def choose(
    config: VocabularyConfig, file: str, init_from: str, directory: str, audio: AudioManifest
) -> Vocabulary:
    """The vocabulary of a run on the split `directory`; the first process finds and announces it.

    `file` and `init_from` are the configuration's. Raises InputError for a file that is no
    vocabulary, a network without one, and transcripts of which no symbols come.
    """

    def found() -> dict:
        policy = TextPolicy(**config.given())

        def texts() -> Iterable[str]:
            return map(policy.apply, RecordReader(storage.path(directory), audio).transcripts())

        if config.source == "transcripts":
            vocabulary = _learnt(texts(), config.separated, directory)
        elif config.source == "pieces":
            vocabulary = Vocabulary.learnt_pieces(
                texts(), config.pieces, "config.vocabulary.pieces"
            )
        elif config.source == "init_from":
            vocabulary = _of_network(init_from)
        else:
            vocabulary = _of_file(storage.path(file), config.separated) if file else LIBRISPEECH
        of_symbols = (
            TextPolicy() if config.source in ("transcripts", "pieces") else vocabulary.policy
        )
        vocabulary = dataclasses.replace(
            vocabulary, policy=dataclasses.replace(of_symbols, **config.given())
        )
        _announce(vocabulary)
        return vocabulary.to_dict()

    return Vocabulary.from_dict(distributed.from_first(found))


def _announce(vocabulary: Vocabulary) -> None:
    kind = "word pieces" if vocabulary.model else "symbols"
    between = " " if max(map(len, vocabulary.characters)) > 1 else ""
    listed = between.join(vocabulary.characters[:_LISTED]).strip()
    more = " ..." if len(vocabulary.characters) > _LISTED else ""
    policy = vocabulary.policy
    replaced = f", replaced {' '.join(policy.replace)}" if policy.replace else ""
    print(
        printable(
            f"vocabulary of {len(vocabulary.characters)} {kind}: {listed}{more}; case "
            f"{policy.case}, punctuation {policy.punctuation}, outside {policy.outside}{replaced}"
        ),
        flush=True,
    )


def _learnt(texts: Iterable[str], separated: bool, directory: str) -> Vocabulary:
    symbols: set[str] = set()
    for text in texts:
        symbols.update(text.split() if separated else text)
    if not symbols - {" "}:
        raise InputError(
            f"config.audio={directory}: no symbols in its transcripts; see config.vocabulary"
        )
    if separated:
        return Vocabulary.from_symbols(sorted(symbols), separated=True)
    first = [WORD_BOUNDARY] * (" " in symbols)
    return Vocabulary.from_symbols([*first, *sorted(symbols - {" ", WORD_BOUNDARY})])


def _of_network(where: str) -> Vocabulary:
    from hubert_jax.convert import formats

    vocabulary = formats.read(where, "config.init_from").vocabulary
    if vocabulary is None:
        raise InputError(
            f"config.init_from={where}: has no CTC head, whose vocabulary "
            "config.vocabulary.source=init_from asks for; learn it from transcripts"
        )
    return vocabulary


def _of_file(path: pathlib.Path, separated: bool) -> Vocabulary:
    """Of a symbol a line, a vocab.json with what lies beside it, or a sentencepiece .model."""
    from hubert_jax.convert.tokenizer import BLANK_TOKEN

    key = f"config.vocabulary_file={path}"
    read: dict[str, Callable[[], Vocabulary]] = {
        ".json": lambda: _of_json(path),
        ".model": lambda: Vocabulary.from_pieces(path.read_bytes()),
    }
    try:
        if path.suffix in read:
            return read[path.suffix]()
        lines = path.read_text("utf-8-sig").split("\n")
        symbols = [
            unicodedata.normalize("NFC", symbol) for line in lines if (symbol := line.strip())
        ]
        if BLANK_TOKEN in symbols:
            raise InputError(
                f"found {BLANK_TOKEN}, by which transformers means the blank; leave it out, the "
                "blank is class 0 by itself"
            )
        return Vocabulary.from_symbols(symbols, separated)
    except OSError as error:
        raise InputError(f"{key}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(f"{key}: expected UTF-8 text, a symbol a line") from None
    except InputError as error:
        raise InputError(f"{key}: {error}") from None


def _of_json(path: pathlib.Path) -> Vocabulary:
    from hubert_jax.convert.tokenizer import TOKENIZER_FILES, read_vocabulary

    beside = {
        name: files.read_json(path.with_name(name), "a file of transformers")
        for name in TOKENIZER_FILES
        if path.with_name(name).is_file()
    }
    beside |= {TOKENIZER_FILES[0]: files.read_json(path, "vocabulary"), "config.json": {}}
    if not all(isinstance(content, dict) for content in beside.values()):
        raise InputError('expected {"SYMBOL": CLASS, ...}')
    vocabulary, _, notes = read_vocabulary(path.parent, beside)
    for note in notes:
        distributed.announce(f"{path}: {note}")
    return vocabulary
