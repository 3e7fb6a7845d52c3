"""The page as a browser would meet it: well-formed, self-contained, escaped, complete."""

import base64
import html.parser
import io
import re

import numpy as np
import pytest
import soundfile
from results import stages

from hubert_jax.data import records
from hubert_jax.report.assemble import ReportConfig, assemble

CONFIG = ReportConfig("<Run>", iterations=("it1", "it2"), recognisers=("pretrained", "scratch"))
MORE = {"<stage>": {"seconds": 1.0, "versions": {}}}
VOID = {"meta", "image", "use", "path"}


class Reader(html.parser.HTMLParser):
    """Checks nesting; gathers tags, attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.words, self.tags = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture
def text(workdir):
    assemble(workdir, CONFIG, stages(workdir) | MORE, [])
    return (workdir / "report.html").read_text()


def test_page(text, workdir):
    page = Reader(text)
    _is_self_contained(page, text)
    _has_unique_ids(page, text)
    # The parser gives back as text what the page escaped.
    for given in ("<Run>", "<stage>", "train & more", "<u1>", "IT'S <HERE>", "<AA>", "<SCRIPT>"):
        assert given in page.text
    assert not {"run", "stage", "u1", "here", "aa", "script"} & set(page.tags)
    # Two losses, two accuracies, PNMI, the heat map and two rows of speech.
    assert page.tags.count("svg") == 8
    for figure in ("0.330", "0.336", "0.341", "0.238", "0.212", "2.4e-06", "81.2 %", "7,123,456"):
        assert figure in page.text
    assert "NO it2: masked accuracy 0.030 <= majority baseline 0.041" in page.text
    assert 'class="NO"' in text and 'class="yes"' in text
    assert "majority baseline" in text and "commonest unit's share" not in text
    assert "MFCC clusters" in page.words  # the line over the bars
    _marks_errors(page, text)
    assemble(workdir, CONFIG, stages(workdir) | MORE, [])
    assert (workdir / "report.html").read_text() == text


def _is_self_contained(page, text):
    for name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            kept = "#", "data:image/png;base64,", "data:audio/flac;base64,"
            assert value.startswith(kept), value[:80]
        assert not name.startswith("on")
    assert not {"script", "link", "iframe", "object", "img"} & set(page.tags)
    assert "@import" not in text and "://" not in text
    assert not re.search(r"url\((?!#)", text)
    # Figures take the page's colours, so no stand-in is left.
    assert "#01020" not in text and "var(--ink)" in text


def _has_unique_ids(page, text):
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([^)"]+)', text)) <= set(ids)


def _marks_errors(page, text):
    assert '<b class="right">THE</b> C<mark>U</mark>T<mark>S</mark>' in text
    assert "28.6 %" in page.text  # two of seven characters
    assert "50 %" in page.text  # one of two words
    assert '<del title="missing: THE CAT">' in text
    assert '<b class="right">&lt;SCRIPT&gt;</b>' in text


def test_without_alignments_an_utterance_is_drawn_with_its_units_alone(workdir):
    for name in CONFIG.iterations:
        (workdir / name / "evaluate/result.json").unlink()
    assemble(workdir, CONFIG, stages(workdir), [])
    page = Reader((workdir / "report.html").read_text())
    assert "units, it2" in page.words and "SIL" not in page.words


def test_the_shown_utterance_can_be_heard(text, speech):
    (value,) = re.findall(
        r'<audio controls preload="none" src="data:audio/flac;base64,([^"]+)"', text
    )
    heard, rate = soundfile.read(io.BytesIO(base64.b64decode(value)), dtype="int16")
    (utterance,) = records.read_audio(speech["audio"])
    assert rate == 16_000
    np.testing.assert_array_equal(heard, utterance.audio)


def test_units_of_all_iterations_are_shown_over_the_phones(text):
    page = Reader(text)
    # On each of the two rows of speech.
    assert page.words.count("units, it1") == page.words.count("units, it2") == 2


def test_every_part_is_in_the_table_of_contents(text):
    page = Reader(text)
    links = [value for name, value in page.attributes if name == "href" and value.startswith("#")]
    parts = re.findall(r'<h2 id="([^"]+)">([^<]+)</h2>', text)
    assert len(parts) == 7
    for name, heading in parts:
        assert f"#{name}" in links and text.count(heading) == 2
