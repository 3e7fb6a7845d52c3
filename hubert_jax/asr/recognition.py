"""What a search needs beside emissions, as configurations ask for it: models, words, processes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hubert_jax import distributed, files, storage
from hubert_jax.asr.search import BeamSearch, require_library
from hubert_jax.errors import InputError

if TYPE_CHECKING:
    from hubert_jax.asr.decoding import Searchers
    from hubert_jax.language.lexicon import Lexicon
    from hubert_jax.vocabulary import Vocabulary

_METHODS = ("greedy", "lexicon", "letters")


def require_usable(config: Any, unused: Mapping[str, Any] | None = None) -> None:
    """Raises InputError for keys of decoding that contradict each other or have no effect.

    They are `method`, `lm`, `lexicon`, `rescore`, `search` and `processes`; `unused` are more that
    have none where they have a value.
    """
    method = config.method
    if method not in _METHODS:
        raise InputError(f"config.method={method!r}: expected one of {_METHODS}")
    if config.processes < 0:
        raise InputError(f"config.processes={config.processes}: expected 0 or more")
    if method == "lexicon" and not (config.lm or config.lexicon):
        raise InputError("config.method=lexicon: needs config.lm or config.lexicon; pass one")
    found = {
        "lm": method == "greedy" and config.lm,
        "rescore": method == "greedy" and config.rescore,
        "lexicon": method != "lexicon" and config.lexicon,
        "search": method == "greedy" and config.search != BeamSearch() and "...",
        "search.unknown_score": method == "letters" and config.search.unknown_score,
        **(unused or {}),
    }
    for key, value in found.items():
        if value:
            raise InputError(
                f"config.{key}={value}: has no effect with config.method={method}; leave it out, "
                "or pass --config.method=lexicon"
            )


def is_transformer(where: str) -> bool:
    """Whether a language model is a checkpoint of train_lm, not the file of an n-gram."""
    return where.startswith("orbax:") or storage.is_dir(where)


class SearchParts:
    """Language models and lexicon of a configuration; `fit`, then `begin`.

    The cheap checks come first, before a network is loaded. Raises InputError for a library that is
    missing, and for a language model that cannot be used.
    """

    def __init__(self, config: Any) -> None:
        self._config = config
        self._lexicon: Lexicon | None = None
        if config.method != "greedy":
            require_library("flashlight", f"config.method={config.method}")
        self._models: dict[str, Any] = {}
        for key in ("lm", "rescore"):
            where = getattr(config, key)
            if where and (key == "rescore" or is_transformer(where)):
                # It imports orbax.
                from hubert_jax.language.transformer import Scorer

                self._models[key] = Scorer(where, f"config.{key}", config.execution)
        self._words = self._known_words()

    def fit(self, vocabulary: "Vocabulary") -> dict[str, str]:
        """Digests of what is read, by keys; tells what of a lexicon cannot be spelt.

        Raises InputError where it does not fit the vocabulary of the network.
        """
        config, self._vocabulary = self._config, vocabulary
        self._lexicon = self._spelled()
        found = {}
        for key in ("lm", "lexicon", "rescore"):
            if key in self._models:
                model = self._models[key]
                words = self._lexicon.words if self._lexicon else ()
                model.tokens.require_fits(vocabulary, words, f"config.{key}={model.where}")
                found[f"config.{key}"] = model.fingerprint
            elif where := getattr(config, key):
                if key == "lm" and self._words:
                    self._require_meant(f"config.lm={where}")
                found[f"config.{key}"] = files.sha256_file(where)
        if self._lexicon and self._lexicon.dropped:
            distributed.announce(self._lexicon.dropped)
        return found

    def begin(self) -> "Searchers | None":
        """What searches, to be used by `with`; None where each frame's likeliest class is taken."""
        config = self._config
        if config.method == "greedy":
            return None
        from hubert_jax.asr.decoding import Searchers

        lm = self._models.get("lm", config.lm)
        rescore = self._models.get("rescore")
        return Searchers(self._vocabulary, lm, self._lexicon, config.processes, rescore)

    @property
    def word_score(self) -> float:
        """w2 of the configuration, or what it is where it is unset."""
        from hubert_jax.language import ngram

        config = self._config
        of_words = bool(config.lm)
        if config.method == "letters" and "lm" not in self._models:
            of_words = of_words and not ngram.are_characters(self._words)
        return config.search.weight_of_words(of_words)

    def _require_meant(self, where: str) -> None:
        """Raises InputError for an n-gram of another alphabet or case; tells what it lacks."""
        from hubert_jax.language import ngram
        from hubert_jax.language.tokens import COMPARED, require_meant

        known = frozenset(self._words)
        words = self._lexicon.words if self._lexicon else ()
        several = [symbol for symbol in self._vocabulary.characters if len(symbol) > 1]
        if not words and several and ngram.are_characters(self._words):
            raise InputError(
                f"{where}: an n-gram of letters, which does not know the symbol {several[0]!r} of "
                "the network's vocabulary; expected one of words"
            )
        require_meant(known.__contains__, self._words[:COMPARED], self._vocabulary, words, where)
        if lacking := [word for word in words if word not in known]:
            distributed.announce(
                f"{where}: lacks {len(lacking)} of {len(words)} words of the lexicon, "
                f"{lacking[0]!r} for one, which are all unknown to it"
            )

    @property
    def lexicon_words(self) -> Sequence[str] | None:
        """The words that can be found, None where there is no lexicon."""
        return self._lexicon.words if self._lexicon else None

    def _known_words(self) -> Sequence[str]:
        """What the language model knows, if there is one."""
        from hubert_jax.language import ngram

        config = self._config
        if "lm" in self._models:
            tokens = self._models["lm"].tokens
            if config.method == "lexicon" and not (config.lexicon or tokens.words):
                raise InputError(
                    f"config.lm={config.lm}: a language model of {tokens.unit}s, which tells no "
                    "words; pass --config.lexicon, or --config.method=letters"
                )
            return tokens.words
        words = ngram.words(config.lm) if config.lm else []
        if config.method == "lexicon" and not (config.lexicon or words):
            raise InputError(
                f"config.lm={config.lm}: a binary without its words; pass --config.lexicon, or an "
                "n-gram with them"
            )
        if config.method == "lexicon" and ngram.are_characters(words):
            raise InputError(
                f"config.lm={config.lm}: an n-gram of letters; expected one of words, or pass "
                "--config.method=letters"
            )
        return words

    def _spelled(self) -> "Lexicon | None":
        from hubert_jax.language import lexicon

        config, vocabulary = self._config, self._vocabulary
        if config.method != "greedy" and (vocabulary.boundary < 0 or vocabulary.separated):
            raise InputError(
                f"config.method={config.method}: {config.checkpoint} has no word boundary, by "
                "which words are told apart; expected a vocabulary with '|', or pass "
                "--config.method=greedy"
            )
        if config.lexicon:
            return lexicon.read(config.lexicon, vocabulary)
        if config.method == "lexicon":
            return lexicon.of_words(self._words, vocabulary, config.lm)
        return None
