"""Beam search over many utterances, in processes of their own, and what of it is kept."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import types
from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from hubert_jax.asr.search import BeamSearch, Hypothesis
from hubert_jax.errors import InputError
from hubert_jax.language.lexicon import Lexicon
from hubert_jax.vocabulary import Vocabulary

if TYPE_CHECKING:
    from hubert_jax.asr.beam import Decoder
    from hubert_jax.language.transformer import Scorer as Transformer

_AHEAD = 4  # utterances that wait for a process each


class Searchers:
    """Processes that search; leave the `with` block to end them."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        lm: "str | Transformer" = "",
        lexicon: Lexicon | None = None,
        processes: int = 0,
        rescore: "Transformer | None" = None,
    ) -> None:
        """As `beam.Decoder`, in as many processes as there are cores, or in `processes`.

        A Transformer as the `lm` searches in this one, where the devices are. That to `rescore`
        with scores the n-best texts again. Returns when the n-gram is loaded. Raises InputError
        where KenLM refuses it.
        """
        self._lm, self._count = lm, processes or len(os.sched_getaffinity(0))
        self._rescore, self._rescored = rescore, dict[str, float]()
        self._decoder: Decoder | None = None
        if not isinstance(lm, str):
            from hubert_jax.asr import beam

            self._decoder = beam.Decoder(vocabulary, lm, lexicon)
            return
        # In a file: a lexicon does not fit a pipe, and who starts a process would wait for it to
        # have read its own, one after the other.
        self._given = tempfile.NamedTemporaryFile(prefix="decoder-")
        pickle.dump((vocabulary, lm, lexicon), self._given)
        self._given.flush()
        self._pool = concurrent.futures.ProcessPoolExecutor(
            self._count,
            multiprocessing.get_context("spawn"),  # JAX's threads forbid to fork
            _begin,
            (self._given.name,),
        )
        try:
            with self._named():
                with _without_main():
                    first = self._pool.submit(_decoder)  # which starts all processes
                first.result()
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._decoder is None:
            self._end()

    def _end(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._given.close()

    def search(
        self, emitted: Iterable[np.ndarray], search: BeamSearch
    ) -> Iterator[tuple[list[Hypothesis], float]]:
        """The n-best texts of emissions (T, V), in order, and the seconds that each took."""
        for hypotheses, seconds in self._searched(emitted, search):
            if self._rescore:
                begun = time.monotonic()
                hypotheses = self._by_transformer(hypotheses, search.lm_weight)
                seconds += time.monotonic() - begun
            yield hypotheses, seconds

    def _by_transformer(self, found: list[Hypothesis], lm_weight: float) -> list[Hypothesis]:
        """Scored with the Transformer's probability in the place of the search's, and in order."""
        assert self._rescore is not None
        new = [each.text for each in found if each.text not in self._rescored]
        log10 = self._rescore.sentences([text.split() for text in new])
        self._rescored |= dict(zip(new, log10.tolist(), strict=True))
        scored = []
        for each in found:
            lm = self._rescored[each.text]
            score = each.score + lm_weight * (lm - each.lm)
            scored.append(dataclasses.replace(each, score=score, lm=lm))
        return Hypothesis.ranked(scored)

    def _searched(
        self, emitted: Iterable[np.ndarray], search: BeamSearch
    ) -> Iterator[tuple[list[Hypothesis], float]]:
        if self._decoder is not None:
            for log_probs in emitted:
                begun = time.monotonic()
                yield self._decoder(log_probs, search), time.monotonic() - begun
            return
        with self._named():
            waiting: collections.deque[concurrent.futures.Future] = collections.deque()
            for log_probs in emitted:
                waiting.append(self._pool.submit(_search, log_probs, search))
                if len(waiting) == _AHEAD * self._count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except BrokenProcessPool:
            raise InputError(
                f"config.lm={self._lm}: a process that searches has died; expected an undamaged "
                "n-gram, and memory for it: pass a binary, which processes share, or lower "
                "config.processes or config.search.beam"
            ) from None


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Processes that start meanwhile do not import the job's module, with JAX and more, to search.

    They would do so for functions of it, at 120 to 180 MB and 0.6 to 1.7 seconds each.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


_made_of = ""  # the file of what a decoder is made of
_made: list[Any] = []


def _begin(path: str) -> None:
    global _made_of
    _made_of = path
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends them
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:  # a killed parent takes none along
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _decoder() -> None:
    from hubert_jax.asr.beam import Decoder

    if not _made:
        with open(_made_of, "rb") as file:
            _made.append(Decoder(*pickle.load(file)))


def _search(log_probs: np.ndarray, search: BeamSearch) -> tuple[list[Hypothesis], float]:
    _decoder()
    begun = time.monotonic()
    return _made[0](log_probs, search), time.monotonic() - begun
