"""What fraction of what training draws comes from each of several corpora."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Corpora that are drawn more or less often than their size has it.

    Attributes:
      weights: by corpus, factors on top of the up-sampling; names are in their order.
      language_exponent, corpus_exponent: of the up-sampling, see `shares`.
    """

    weights: dict[str, float]
    language_exponent: float = 1.0
    corpus_exponent: float = 1.0

    @property
    def even(self) -> bool:
        """Whether everything is drawn equally often, so that the corpora are like one."""
        factors = {*self.weights.values(), self.language_exponent, self.corpus_exponent}
        return factors == {1.0}

    def shares(self, seconds: dict[str, float]) -> dict[str, float]:
        """What is drawn of each corpus, by its seconds of audio."""
        return shares(seconds, self.weights, self.language_exponent, self.corpus_exponent)


def shares(
    seconds: dict[str, float],
    weights: dict[str, float],
    language_exponent: float,
    corpus_exponent: float,
) -> dict[str, float]:
    """Shares of corpora, up-sampled at two levels as mHuBERT-147 does it.

    The language of a corpus is the first part of its name (`de` of `de/mls`). A language has the
    share (its seconds / all seconds) ** language_exponent, divided among its corpora by (corpus
    seconds / language seconds) ** corpus_exponent, each normalised. Exponents of 1 draw everything
    equally often, 0 makes languages (or a language's corpora) equal.

    Args:
      seconds: of audio, by corpus; all above 0.
      weights: by corpus, factors on top; 1 where there is none.
      language_exponent, corpus_exponent: between 0 and 1.

    Returns:
      By corpus, in the same order; they sum to 1.
    """
    languages: dict[str, list[str]] = {}
    for name in seconds:
        languages.setdefault(name.partition("/")[0], []).append(name)
    raw = {}
    of_language = _tempered(
        {language: sum(seconds[n] for n in names) for language, names in languages.items()},
        language_exponent,
    )
    for language, names in languages.items():
        of_corpus = _tempered({name: seconds[name] for name in names}, corpus_exponent)
        for name in names:
            raw[name] = of_language[language] * of_corpus[name] * weights.get(name, 1.0)
    total = sum(raw.values())
    return {name: raw[name] / total for name in seconds}


def _tempered(seconds: dict[str, float], exponent: float) -> dict[str, float]:
    total = sum(seconds.values())
    tempered = {name: (value / total) ** exponent for name, value in seconds.items()}
    normaliser = sum(tempered.values())
    return {name: value / normaliser for name, value in tempered.items()}
