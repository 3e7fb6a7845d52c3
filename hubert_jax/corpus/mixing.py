"""What fraction of what training draws comes from each of several corpora."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Corpora in their order, with the weights that multiply their up-sampled shares."""

    weights: dict[str, float]
    language_exponent: float = 1.0
    corpus_exponent: float = 1.0

    @property
    def even(self) -> bool:
        """Whether everything is drawn equally often, so that the corpora are like one."""
        return {*self.weights.values(), self.language_exponent, self.corpus_exponent} == {1.0}

    def shares(self, seconds: dict[str, float]) -> dict[str, float]:
        """Shares by corpus, which sum to 1, from seconds of audio (all above 0) by corpus.

        As in mHuBERT-147, a language (`de` of `de/mls`) has (its seconds / all seconds) **
        language_exponent, divided among its corpora by (corpus seconds / language seconds) **
        corpus_exponent, each normalised. Exponents of 1 keep the natural shares, 0 makes all equal.
        """
        languages: dict[str, dict[str, float]] = {}
        for name, value in seconds.items():
            languages.setdefault(name.partition("/")[0], {})[name] = value
        of_language = _tempered(
            {language: sum(corpora.values()) for language, corpora in languages.items()},
            self.language_exponent,
        )
        raw = {}
        for language, corpora in languages.items():
            for name, share in _tempered(corpora, self.corpus_exponent).items():
                raw[name] = of_language[language] * share * self.weights[name]
        total = sum(raw.values())
        return {name: raw[name] / total for name in seconds}


def _tempered(seconds: dict[str, float], exponent: float) -> dict[str, float]:
    total = sum(seconds.values())
    tempered = {name: (value / total) ** exponent for name, value in seconds.items()}
    normaliser = sum(tempered.values())
    return {name: value / normaliser for name, value in tempered.items()}
