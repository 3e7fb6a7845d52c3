"""The page as a browser would meet it: well-formed, self-contained, escaped, complete."""

import dataclasses
import html.parser
import re

import numpy as np
import pytest

from hubert_jax.report.contents import Example, JointCounts, ReportData
from hubert_jax.report.html import page, render

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Reader(html.parser.HTMLParser):
    """Checks nesting; gathers attributes and text."""

    def __init__(self):
        super().__init__()
        self.open, self.attributes, self.words, self.tags = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def read(text):
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


def _data():
    rng = np.random.default_rng(0)
    steps = np.arange(1, 301)
    iteration = {
        "best_layer": 1,
        "pnmi_by_layer": {"0": 0.2113, "1": 0.3417},
        "untrained_pnmi_by_layer": {"0": 0.2011, "1": 0.2222},
        "masked_accuracy": 0.2345,
        "commonest_unit_share": 0.0456,
    }
    curve = {"step": steps, "loss": 5 - steps / 100, "masked_accuracy": steps / 1000}
    return ReportData(
        report={
            "mfcc": {"k": 100, "pnmi": 0.3301},
            "iterations": [iteration, iteration | {"best_layer": 0}],
            "wer": {"pretrained": 0.8123, "scratch": 0.9711},
            "cer": {"pretrained": 0.3812, "scratch": 0.6123},
            "export": {"max_abs_difference": 2.4e-6},
            "seconds": {"prepare": 20.14, "pretrain": 1400.0},
            "skipped": ["prepare"],
            "corpus": {"name": "a <corpus> & more", "train": {"hours": 3.78, "speakers": 18}},
            "model": {"parameters": 7_123_456},
            "versions": {"jax": "0.10.2"},
        },
        pretraining=[curve, curve],
        finetuning={"pretrained": curve, "scratch": curve},
        joint=JointCounts(["AA", "S", "SIL"], rng.integers(0, 9, (3, 7)), "layer <1>"),
        example=Example(
            "utt-<7>",
            rng.integers(-999, 999, 5 * 16_000).astype(np.int16),
            rng.integers(0, 7, 249),
            [(0.0, 1.5, "SIL"), (1.5, 5.0, "a<b")],
            "IT'S <HERE>",
        ),
        hypotheses=[
            {"id": "u1", "reference": "THE CAT", "pretrained": "THE CUT", "scratch": ""},
            {"id": "u2", "reference": "<SCRIPT>", "pretrained": "<SCRIPT>", "scratch": None},
        ],
    )


@pytest.fixture(scope="module")
def text():
    return page(_data())


@pytest.fixture(scope="module")
def full(text):
    return read(text)


def test_nothing_is_fetched_and_nothing_runs(full, text):
    for name, value in full.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert value.startswith(("#", "data:image/png;base64,")), value[:80]
        assert not name.startswith("on")
    assert not {"script", "link", "iframe", "object", "img"} & set(full.tags)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert "://" not in text


def test_ids_are_unique_and_references_resolve(full, text):
    ids = [value for name, value in full.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([^)"]+)', text)) <= set(ids)


def test_every_number_is_there(full):
    for number in (
        *("0.330", "0.342", "0.211", "0.222", "0.201", "0.234", "0.046", "2.4e-06"),
        *("81.2 %", "97.1 %", "38.1 %", "61.2 %", "1,400.0", "1,420.1"),
        *("3.78", "18", "7,123,456", "0.10.2"),
    ):
        assert number in full.text, number
    assert "Best layer 1 of iteration 1: PNMI 0.342 > MFCC 0.330." in full.text


def test_texts_are_escaped(full):
    # The parser gives back as text what the page escaped.
    for given in ("a <corpus> & more", "layer <1>", "utt-<7>", "IT'S <HERE>", "a<b", "<SCRIPT>"):
        assert given in full.text
    assert not {"corpus", "here", "script"} & set(full.tags)


def test_pictures(full, text):
    # Loss, two of accuracy, fine-tuning, two of PNMI, the heat map and two rows of speech.
    assert full.tags.count("svg") == 9
    labels = [value for name, value in full.attributes if name == "aria-label"]
    assert "Heat map of the probability of 3 phones given each of 7 units" in labels
    assert "Spectrogram, units and phones of utt-<7> from 4 s" in labels
    # Text takes the page's colours, so no stand-in is left.
    assert "#0102" not in text


def test_sentences(full, text):
    assert "THE C<mark>U</mark>T" in text
    assert "14.3 %" in full.text
    assert "100.0 %" in full.text
    assert "not decoded" in full.text


def test_missing_parts_are_said_to_be_missing():
    reader = read(page(ReportData(_data().report)))
    for said in (
        "No alignments",
        "No utterance was given",
        "Nothing was decoded",
        "No curves of pre-training",
        "No curves of fine-tuning",
    ):
        assert said in reader.text
    assert reader.tags.count("svg") == 2  # PNMI by layer


def test_an_utterance_without_alignment_and_units_without_phones():
    example = dataclasses.replace(_data().example, phones=())
    reader = read(page(ReportData({}, example=example)))
    assert "There is no alignment of this utterance" in reader.text
    assert "Each colour is a unit." in reader.text


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        ("export", {"max_abs_difference": None}, "No export difference"),
        ("wer", {"pretrained": None, "scratch": None}, "38.1 %"),
        ("iterations", [], "No iteration of pre-training"),
        ("iterations", [{"masked_accuracy": 0.1}], "PNMI by layer was not measured"),
        ("seconds", None, "What was run"),
    ],
)
def test_missing_numbers(part, value, said):
    report = {**_data().report, part: value}
    assert said in read(page(ReportData(report))).text


def test_one_iteration_is_said():
    report = {"iterations": _data().report["iterations"][:1]}
    assert "This run has one iteration" in read(page(ReportData(report))).text


def test_an_empty_report_renders(tmp_path):
    render(ReportData({}), tmp_path / "report.html")
    assert "PNMI was not measured" in (tmp_path / "report.html").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_same_data_same_bytes(text):
    assert page(_data()) == text
