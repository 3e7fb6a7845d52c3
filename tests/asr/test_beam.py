"""Beam search against the enumeration of every alignment, and flashlight called directly."""

import collections
import gzip
import importlib.util
import itertools
import math
import pathlib
import sys
import types

import numpy as np
import pytest
import splits
from asr import kneser_ney
from lm_oracle import write

from hubert_jax import config
from hubert_jax.asr import decoding, emissions
from hubert_jax.asr.search import BeamSearch
from hubert_jax.convert import formats
from hubert_jax.convert.network import Network
from hubert_jax.errors import InputError
from hubert_jax.language import lexicon, ngram
from hubert_jax.language.tokens import Tokens
from hubert_jax.language.transformer import Scorer
from hubert_jax.model.architecture import Architecture, Regularization
from hubert_jax.networks import forward, trained
from hubert_jax.vocabulary import Vocabulary

pytest.importorskip("flashlight.lib.text")
from hubert_jax.asr import beam  # noqa: E402

SMALL = Vocabulary(("|", "A", "B"))
WIDE = dict(beam=10**6, beam_threshold=1e9, n_best=10**6)
SPOKEN = [text.split() for text in ("A AB A", "BA BA", "A B AB", "AB BA A", "B", "A AB")]


def searching(search, *made, **more):
    """What searches in one way."""
    return lambda log_probs: beam.Decoder(*made, **more)(log_probs, search)


@pytest.fixture(scope="module")
def trigram(tmp_path_factory):
    path = tmp_path_factory.mktemp("lm") / "lm.arpa"
    path.write_text(kneser_ney.arpa(SPOKEN, 3))
    return str(path)


def _log_probs(seed, frames, vocabulary=SMALL, sharpness=1.5):
    logits = sharpness * np.random.default_rng(seed).standard_normal((frames, vocabulary.size))
    normalised = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return normalised.astype(np.float32)


def _labellings(log_probs):
    """{labels: log probability}, summed over every alignment."""
    sums = collections.defaultdict(float)
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        labels = tuple(SMALL.collapse(path).tolist())
        sums[labels] += math.exp(sum(float(log_probs[t, c]) for t, c in enumerate(path)))
    return {labels: math.log(p) for labels, p in sums.items()}


def _back_off(path):
    """log10 p of a sentence, by the definition of ARPA files."""
    rows = (line.split("\t") for line in open(path) if "\t" in line)
    table = {tuple(gram.split()): (float(p), float(*rest or "0")) for p, gram, *rest in rows}

    def word(context, last):
        if (*context, last) in table:
            return table[*context, last][0]
        return table.get(context, (0, 0))[1] + word(context[1:], last)

    def sentence(words):
        known = ["<s>", *(w if (w,) in table else "<unk>" for w in words), "</s>"]
        return sum(word(tuple(known[max(0, i - 2) : i]), known[i]) for i in range(1, len(known)))

    return sentence


@pytest.fixture(scope="module")
def spoken_log_probs(held_out_split, tmp_path_factory):
    """Emissions of a network that nobody trained, of speech."""
    architecture = config.build(Architecture, splits.TINY_BASE["architecture"])
    params = splits.random_parameters(architecture, vocabulary_size=SMALL.size)
    where = f"orbax:{tmp_path_factory.mktemp('network')}/checkpoints"
    formats.write(where, Network(params, architecture, None, Regularization(), SMALL))
    found = emissions.emissions(trained.load(where), forward.utterances(held_out_split))
    return [emitted.log_probs for _, emitted in found]


@pytest.mark.parametrize("frames", [0, 1, 4, 6, "spoken", "spoken later"])
def test_a_lexicon_and_a_trigram_score_as_equation_4(trigram, frames, spoken_log_probs):
    if isinstance(frames, str):
        log_probs = spoken_log_probs["later" in frames][50:57]
    else:
        log_probs = _log_probs(frames, frames)
    sentence = _back_off(trigram)
    words = lexicon.of_words(ngram.words(trigram), SMALL, trigram)
    by_words = collections.defaultdict(float)
    for labels, log_p in _labellings(log_probs).items():
        by_words[tuple(SMALL.decode(labels).split())] += math.exp(log_p)
    expected = {
        " ".join(text): (math.log(p), sentence(text), len(text))
        for text, p in by_words.items()
        if set(text) <= set(words.words)
    }
    search = BeamSearch(**WIDE, lm_weight=1.3, word_score=-0.6)
    found = searching(search, SMALL, trigram, words)(log_probs)
    assert {hypothesis.text for hypothesis in found} == set(expected)
    for hypothesis in found:
        log_ctc, lm, length = expected[hypothesis.text]
        assert hypothesis.acoustic == pytest.approx(log_ctc, abs=1e-5)
        assert hypothesis.lm == pytest.approx(lm, abs=1e-5)
        assert hypothesis.score == pytest.approx(log_ctc + 1.3 * lm - 0.6 * length, abs=1e-5)
    assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)


def test_without_log_add_an_alignment_is_the_best_one(trigram):
    log_probs = _log_probs(3, 5)
    words = lexicon.of_words(ngram.words(trigram), SMALL, trigram)
    best = collections.defaultdict(lambda: -math.inf)
    for path in itertools.product(range(SMALL.size), repeat=len(log_probs)):
        text = " ".join(SMALL.decode(SMALL.collapse(path)).split())
        best[text] = max(best[text], sum(float(log_probs[t, c]) for t, c in enumerate(path)))
    for hypothesis in searching(BeamSearch(**WIDE, log_add=False), SMALL, trigram, words)(
        log_probs
    ):
        assert hypothesis.acoustic == pytest.approx(best[hypothesis.text], abs=1e-5)


@pytest.mark.parametrize("of", ["words", "letters", "nothing"])
def test_letter_by_letter_scores_as_equation_4(trigram, tmp_path, of):
    log_probs, lm, w1 = _log_probs(7, 5), "", 1.3
    if of == "words":
        lm, sentence = trigram, _back_off(trigram)
    elif of == "letters":
        lm = str(tmp_path / "letters.arpa")
        spelled = [list("|".join(text)) for text in SPOKEN]
        (tmp_path / "letters.arpa").write_text(kneser_ney.arpa(spelled, 3))
        sentence = _back_off(lm)
    best = {}
    for labels, log_ctc in _labellings(log_probs).items():
        text = SMALL.decode(labels)
        tokens = [SMALL.symbols[label - 1] for label in labels]
        log10 = sentence(tokens if of == "letters" else text.split()) if lm else 0.0
        score = log_ctc + w1 * log10 - 0.6 * len(text.split())
        best[text] = max(best.get(text, (-math.inf,)), (score, log_ctc, log10))
    search = BeamSearch(**WIDE, lm_weight=w1, word_score=-0.6)
    found = searching(search, SMALL, lm)(log_probs)
    assert [h.text for h in found] == sorted(best, key=lambda text: -best[text][0])
    for hypothesis in found:
        expected = pytest.approx(best[hypothesis.text], abs=1e-5)
        assert (hypothesis.score, hypothesis.acoustic, hypothesis.lm) == expected


@pytest.fixture(scope="module", params=["word", "letter"])
def foretelling(request, tmp_path_factory):
    """A Transformer that nobody trained, which knows two words of three, or letters; its log10."""
    tokens = {"word": Tokens("word", ("AB", "A")), "letter": Tokens("letter", spelling=SMALL)}
    where, log10 = write(tmp_path_factory.mktemp("lm") / "checkpoints", tokens[request.param])
    return Scorer(where), log10


def _equation_4(log_probs, log10, w1, w2, known=None):
    """{text: (score, log p_CTC, log10 p_LM)} of texts of the words `known`, or of all."""
    found = collections.defaultdict(float)
    for labels, log_p in _labellings(log_probs).items():
        text = SMALL.decode(labels)
        if known is None:  # those that differ in outer boundaries are searched apart
            found[text] = max(found[text], math.exp(log_p))
        elif {*text.split()} <= {*known}:
            found[" ".join(text.split())] += math.exp(log_p)
    scores = {text: (math.log(p), log10(text.split())) for text, p in found.items()}
    return {
        text: (log_ctc + w1 * lm + w2 * len(text.split()), log_ctc, lm)
        for text, (log_ctc, lm) in scores.items()
    }


@pytest.mark.parametrize("method", ["lexicon", "letters"])
def test_a_transformer_in_the_beam_scores_as_equation_4(foretelling, method):
    scorer, log10 = foretelling
    log_probs = _log_probs(5, 6)
    known = ("AB", "A", "BA") if method == "lexicon" else None
    words = known and lexicon.of_words(known, SMALL, "")
    expected = _equation_4(log_probs, log10, 1.3, -0.6, known)
    decoder = beam.Decoder(SMALL, scorer, words)
    for _ in range(2):  # another utterance changes nothing
        found = decoder(log_probs, BeamSearch(**WIDE, lm_weight=1.3, word_score=-0.6))
        assert {hypothesis.text for hypothesis in found} == set(expected)
        for hypothesis in found:
            scores = (hypothesis.score, hypothesis.acoustic, hypothesis.lm)
            assert scores == pytest.approx(expected[hypothesis.text], abs=1e-4)
        assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)


def test_a_narrow_beam_with_a_transformer_computes_few_states(foretelling):
    scorer, log10 = foretelling
    decoder = beam.Decoder(SMALL, scorer, lexicon.of_words(("AB", "A", "BA"), SMALL, ""))
    before = scorer.computed
    found = decoder(_log_probs(8, 120), BeamSearch(beam=20, lm_weight=1.3))
    for hypothesis in found:
        assert hypothesis.lm == pytest.approx(log10(hypothesis.text.split()), rel=1e-5)
    # Every word of every hypothesis that was ever in the beam would be 20 a frame.
    assert scorer.computed - before < 20 * 120


def test_n_best_texts_are_put_in_order_by_another_model(foretelling, trigram):
    scorer, log10 = foretelling
    words = lexicon.of_words(ngram.words(trigram), SMALL, trigram)
    log_probs = _log_probs(6, 6)
    search = BeamSearch(**WIDE | dict(n_best=40), lm_weight=2.5, word_score=-0.6)
    first = searching(search, SMALL, trigram, words)(log_probs)
    with decoding.Searchers(SMALL, trigram, words, 1, rescore=scorer) as searchers:
        ((found, _),) = searchers.search([log_probs], search)
    expected = {
        each.text: each.acoustic + 2.5 * log10(each.text.split()) - 0.6 * len(each.words)
        for each in first
    }
    assert [each.text for each in found] == sorted(expected, key=lambda text: -expected[text])
    assert [each.text for each in found] != [each.text for each in first]
    for each in found:
        assert each.score == pytest.approx(expected[each.text], abs=1e-4)
        assert each.lm == pytest.approx(log10(each.text.split()), abs=1e-5)


def test_processes_that_search_do_not_import_the_job(trigram, monkeypatch):
    """Which would take a second or two and, with JAX, 120 MB or more each."""
    job = types.ModuleType("__main__")
    job.__spec__ = importlib.util.find_spec("hubert_jax.decode")
    monkeypatch.setitem(sys.modules, "__main__", job)
    words = lexicon.of_words(ngram.words(trigram), SMALL, trigram)
    with decoding.Searchers(SMALL, trigram, words, 1) as searchers:
        imported = searchers._pool.submit(eval, "[*__import__('sys').modules]").result()
    assert "hubert_jax.asr.beam" in imported
    assert not {"jax", "tensorflow", "hubert_jax.decode"} & set(imported)
    assert sys.modules["__main__"] is job


@pytest.mark.parametrize("beam", [5, 100])
def test_a_narrow_beam_is_flashlights_own(trigram, beam):
    """The same decoder called as its documentation does, with a boundary behind the last word."""
    from flashlight.lib.text import decoder, dictionary
    from flashlight.lib.text.decoder.kenlm import KenLM

    log_probs = _log_probs(11, 60)
    words = ngram.words(trigram)
    lm = KenLM(trigram, dictionary.Dictionary(words))
    trie, start = decoder.Trie(SMALL.size, 1), lm.start(False)
    for number, word in enumerate(words):
        spelling = [*SMALL.encode(word).tolist(), 1]
        trie.insert(spelling, number, lm.score(start, number)[1])
    trie.smear(decoder.SmearingMode.MAX)
    numbers = (beam, 2, 8.0, 1.5, -0.5, -math.inf, -0.25, True, decoder.CriterionType.CTC)
    options = decoder.LexiconDecoderOptions(*numbers)
    end = np.array([[-1e30, 0, -1e30, -1e30]], np.float32)
    frames = np.concatenate([log_probs, end])
    own = decoder.LexiconDecoder(options, trie, lm, 1, 0, -1, [], False)
    expected = own.decode(frames.ctypes.data, *frames.shape)
    search = BeamSearch(beam, 2, 8.0, 1.5, -0.5, -0.25, n_best=beam)
    found = searching(search, SMALL, trigram, lexicon.of_words(words, SMALL, trigram))(log_probs)
    texts = [" ".join(words[n] for n in result.words if n >= 0) for result in expected]
    assert [hypothesis.text for hypothesis in found] == texts
    scores = [result.score + 0.25 for result in expected]  # the end is no silence of the speech
    assert [hypothesis.score for hypothesis in found] == pytest.approx(scores, abs=1e-9)


def _spoken(text, vocabulary=SMALL, frames_each=2):
    """Emissions that say a text clearly: each label, then a blank, for some frames."""
    labels = vocabulary.encode(text).tolist()
    path = [c for label in labels for c in (label, 0) for _ in range(frames_each)]
    logits = 12.0 * np.eye(vocabulary.size)[path]
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("words", [("A", "AB", "BA"), None])
def test_words_have_the_times_of_their_letters(words):
    known = lexicon.of_words(words, SMALL, "") if words else None
    # A from frame 0, B of AB at 12 and 13; then | at 16, BA from 20 to 25.
    found = searching(BeamSearch(beam=50), SMALL, lexicon=known)(
        _spoken("A|AB|BA".replace("|", " "))
    )
    times = [(word.text, word.start, word.end) for word in found[0].words]
    assert times == [("A", 0.0, 0.045), ("AB", 0.16, 0.285), ("BA", 0.4, 0.525)]
    assert found[0].text == "A AB BA"
    assert all(word.confidence > 0.99 for word in found[0].words)


def test_confidence_is_the_posterior_of_texts_that_agree():
    log_probs = np.log(np.array([[0.02, 0.02, 0.6, 0.36]]))  # blank, |, A, B
    found = searching(BeamSearch(n_best=3), SMALL)(log_probs)
    assert [h.text for h in found] == ["A", "B", ""]
    assert found[0].words[0].confidence == pytest.approx(0.6 / (0.6 + 0.36 + 0.04), abs=0.03)


def test_unknown_words_are_spelled_where_they_are_allowed():
    known, heard = lexicon.of_words(["A", "BBA"], SMALL, ""), _spoken("A BB A")
    strict = searching(BeamSearch(), SMALL, lexicon=known)(heard)
    assert strict[0].text.split()[0] == "A" and "BB" not in strict[0].text.split()
    open_to_all = BeamSearch(unknown_score=-1.0, word_score=-0.5)
    found = searching(open_to_all, SMALL, lexicon=known)(heard)[0]
    assert found.text == "A BB A"
    assert [word.text for word in found.words] == ["A", "BB", "A"]


def test_special_symbols_are_never_chosen():
    special = Vocabulary.from_symbols(("|", "<unk>", "A", "B"))
    frames = np.random.default_rng(3).normal(size=(7, special.size)).astype(np.float32)
    frames[:, 2] += 3  # the likeliest class of most frames
    for words in (None, ["A", "AB"]):
        found, expected = (
            searching(BeamSearch(**WIDE), v, lexicon=words and lexicon.of_words(words, v, ""))(f)
            for v, f in ((special, frames), (SMALL, np.delete(frames, 2, 1)))
        )
        assert [(h.text, h.score) for h in found] == [(h.text, h.score) for h in expected]


def test_a_beam_without_an_end_says_so():
    only = lexicon.of_words(["AB"], SMALL, "")
    narrow = BeamSearch(beam=1, beam_tokens=1, beam_threshold=1.0)
    (found,) = searching(narrow, SMALL, lexicon=only)(_spoken("AB A"))
    assert (found.text, found.complete) == ("AB", False)
    assert searching(narrow, SMALL, lexicon=only)(_spoken("AB AB"))[0].complete


def test_words_that_the_head_cannot_spell_are_dropped_and_counted(tmp_path):
    found = lexicon.of_words(["A", "C", "BA", "D"], SMALL, "lm.arpa")
    assert found.words == ("A", "BA")
    assert found.dropped.startswith("lm.arpa: 2 of 4 words left out") and "C, D" in found.dropped
    path = tmp_path / "lexicon.txt"
    path.write_text("zwei B A |\n\nzwei A B\neins A |\ndrei C |\n")
    read = lexicon.read(path, SMALL)
    assert read.words == ("zwei", "eins")
    assert read.spellings == ((0, (3, 2, 1)), (0, (2, 3, 1)), (1, (2, 1)))
    assert "1 of 4" in read.dropped
    heard = searching(BeamSearch(), SMALL, lexicon=read)(_spoken("A AB BA"))[0]
    assert heard.text == "eins zwei zwei"  # two spellings of one word
    assert not lexicon.of_words(["A"], SMALL, "").dropped


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "lexicon.txt: lexicon cannot be read"),
        (b"", "lexicon.txt: no word can be spelled with [|]AB, as there is none"),
        (
            b"a a |\n",
            "no word can be spelled with [|]AB, such as 'a'; expected words in the letter",
        ),
        (b"A A |\nAB\n", "line 2: 'AB' has no spelling; expected a word and its letters"),
        (b"A \xff |\n", "is not UTF-8"),
    ],
)
def test_bad_lexicons_are_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "lexicon.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        lexicon.read(tmp_path / "lexicon.txt", SMALL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: None, "language model cannot be read"),
        (lambda text: "", "cut off"),
        (lambda text: text[: len(text) // 2], "cut off"),
        (lambda text: text.replace("ngram 1=7", "ngram 1=8"), "7 unigrams, 8 announced"),
        (lambda text: "HELLO\n\\end\\\n", "0 unigrams, None announced"),
        (lambda text: text.replace("A AB", "A"), "KenLM: "),
        (lambda text: "mmap lm http://kheafield.com/code format version 5\n", "is cut off"),
    ],
)
def test_bad_ngrams_are_named(trigram, tmp_path, change, message):
    text = change(open(trigram).read())
    path = tmp_path / "lm.arpa"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=message):
        ngram.Scorer(path)


def test_perplexity_and_unknown_words(trigram):
    sentence, texts = _back_off(trigram), [["A", "AB"], ["X", "A"], []]
    found = ngram.measure(ngram.Scorer(trigram), texts)
    total = sum(map(sentence, texts))
    assert found["perplexity"] == pytest.approx(10 ** (-total / 7), rel=1e-5)
    assert (found["words"], found["unknown"], found["unknown_rate"]) == (4, 1, 0.25)
    assert found["perplexity_without_unknown"] < found["perplexity"]


def test_binaries_of_kenlm_are_read_and_cut_ones_named(tmp_path):
    """`trie.bin` is what KenLM's build_binary makes of the text below."""
    binary, arpa = pathlib.Path(__file__).with_name("trie.bin"), tmp_path / "lm.arpa"
    texts = ("A AB A", "BA BA", "É Straße x")
    arpa.write_text(kneser_ney.arpa([text.split() for text in texts], 3))
    assert (
        sorted(ngram.words(binary))
        == sorted(ngram.words(arpa))
        == sorted({word for text in texts for word in text.split()})
    )
    compressed = tmp_path / "lm.arpa.gz"
    compressed.write_bytes(gzip.compress(arpa.read_bytes()))
    scorers = [ngram.Scorer(path) for path in (binary, arpa, compressed)]
    for sentence in ("A AB", "É X A", ""):
        found = [scorer.sentence(sentence.split()) for scorer in scorers]
        assert found == pytest.approx([_back_off(arpa)(sentence.split())] * 3, abs=1e-5)
    content = binary.read_bytes()
    for length in (40, 100, 300, len(content) - 8, len(content) - 1):
        (tmp_path / "cut.bin").write_bytes(content[:length])
        with pytest.raises(InputError, match="cut.bin: (is cut off|KenLM: )"):
            ngram.Scorer(tmp_path / "cut.bin")
