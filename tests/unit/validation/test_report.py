import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.speechlike import RATE_HZ, speechlike, with_noise
from tests.unit.validation.conftest import Write, good_rows, save
from vibevoice_finetune.data.rows import Columns
from vibevoice_finetune.validation.lines import report_lines
from vibevoice_finetune.validation.read import read_file
from vibevoice_finetune.validation.report import write_page
from vibevoice_finetune.validation.validate import Options, Validation, validate


@pytest.fixture
def found(speech: Path, write: Write, tmp_path: Path) -> Validation:
    rows = good_rows(speech)
    for place in range(4):
        rows[place]["audio"] = save(tmp_path, f"{place}.wav", with_noise(speechlike(60 + place), 10.0 + place))
    rows[5]["text"] = "Speaker 0: <script>alert(1)</script> and more of it."
    rows[6]["speaker"] = "Ben <b>& Co</b>"
    return validate(read_file(write("train.jsonl", rows), Columns()), None, Options(deep=True, num_threads=2))


class Page(HTMLParser):
    """Collects elements and checks that each is closed."""

    VOID = frozenset({"meta", "rect"})

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page_of(found: Validation, folder: Path) -> tuple[str, Page]:
    pytest.importorskip("jinja2")
    write_page(folder / "page.html", found, "train.jsonl")
    text = (folder / "page.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.open == []
    return text, page


def test_the_page_asks_nobody_for_anything(found: Validation, tmp_path: Path) -> None:
    text, page = page_of(found, tmp_path)
    assert "http" not in text.replace("http-equiv", "")
    addresses = [attributes.get("src") or attributes.get("href") for _, attributes in page.elements]
    assert all(address.startswith("data:") for address in addresses if address)
    assert not [tag for tag, _ in page.elements if tag in ("script", "link", "img", "iframe")]


def test_texts_of_the_data_are_text(found: Validation, tmp_path: Path) -> None:
    text, _ = page_of(found, tmp_path)
    assert "&lt;script&gt;" in text
    assert "Ben &lt;b&gt;&amp; Co&lt;/b&gt;" in text


def test_the_three_worst_rows_of_a_kind_can_be_heard(found: Validation, tmp_path: Path) -> None:
    _, page = page_of(found, tmp_path)
    players = [attributes for tag, attributes in page.elements if tag == "audio"]
    noisy = [attributes for attributes in players if (attributes["aria-label"] or "").startswith("noise")]
    assert [attributes["aria-label"] for attributes in noisy] == [f"noise, train.jsonl:{row}" for row in (1, 2, 3)]
    address = noisy[0]["src"]
    assert address is not None
    heard, rate = soundfile.read(io.BytesIO(base64.b64decode(address.split(",")[1])), dtype="float32")
    original = with_noise(speechlike(60), 10.0)
    assert rate == RATE_HZ
    assert len(heard) == len(original)
    assert np.corrcoef(heard, original)[0, 1] > 0.95


def test_long_recordings_are_shortened(speech: Path, write: Write, tmp_path: Path) -> None:
    rows = good_rows(speech)
    rows[0]["audio"] = save(tmp_path, "long.wav", np.tile(speechlike(), 16))
    found = validate(read_file(write("train.jsonl", rows), Columns()), None, Options(deep=True, num_threads=1))
    _, page = page_of(found, tmp_path)
    for address in {a["src"] for tag, a in page.elements if tag == "audio" and "train.jsonl:1" in str(a["aria-label"])}:
        assert address is not None
        assert soundfile.info(io.BytesIO(base64.b64decode(address.split(",")[1]))).duration == pytest.approx(15)


def test_the_terminal_says_it_by_kind(found: Validation) -> None:
    lines = list(report_lines(found, max_shown=2, deep=True))
    start = next(place for place, line in enumerate(lines) if line.startswith("warning: noise, 4 rows"))
    assert re.match(r"  train.jsonl:1: noise only 1\d dB", lines[start + 1])
    assert lines[start + 2].startswith("  train.jsonl:2: ")
    assert lines[start + 3] == "  … and 2 more (--max_shown 0 lists all)"
    assert lines[-1] == "12 rows: 0 errors, 6 warnings."
    assert any(line.startswith("training: 12 clips, ") for line in lines)
    everything = list(report_lines(found, max_shown=0, deep=True))
    assert not [line for line in everything if "more (" in line]


def test_nothing_usable_is_said(write: Write) -> None:
    path = write("train.jsonl", ["{", "["])  # type: ignore[list-item]
    lines = list(report_lines(validate(read_file(path, Columns()), None, Options()), 20, deep=False))
    assert "training: no usable clip" in lines
    assert lines[-1] == "2 rows: 2 errors, 0 warnings. Audio was not decoded; --deep looks into it."
