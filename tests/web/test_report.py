"""The report of `evaluate` in a real browser: it plays, takes votes, asks for nothing, and can be used by everybody."""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from tests.unit.evaluation.test_compare import takes
from tests.unit.evaluation.test_report import evaluation, rows
from vibevoice_finetune.audio.source import SAMPLING_RATE_HZ, load_audio
from vibevoice_finetune.evaluation.compare import compare
from vibevoice_finetune.evaluation.evaluate import BASE, Forgetting
from vibevoice_finetune.evaluation.report import write_report

WAIT_MS = 120_000
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
PLAYERS = 3 * 4
"""Three rows: the real clip, the base, the recommended checkpoint and the last one."""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on made figures with real audio: base and two checkpoints."""
    folder = tmp_path_factory.mktemp("report")
    for number, row in enumerate(rows(3)):
        soundfile.write(folder / f"{number}.wav", load_audio(row.audio), SAMPLING_RATE_HZ)
    judged = [*takes(BASE, 0.7, 1), *takes("checkpoint-1", 0.8, 1, seed=1), *takes("checkpoint-2", 0.81, 1, seed=2)]
    judged = [replace(j, said=replace(j.said, audio=folder / f"{j.said.row % 3}.wav")) for j in judged]
    found = evaluation(judged, "checkpoint-1", "checkpoint-2", output=folder)
    forgetting = Forgetting(tuple(judged), compare(judged, BASE), found.reference, 24)
    return write_report(replace(found, forgetting=forgetting), folder)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    assert chromium is not None, "Chromium is missing; run: make browser"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page(browser: Browser, report: Path) -> Iterator[tuple[Page, list[str]]]:
    """The report opened, and what it asked for or complained of."""
    context = browser.new_context(viewport=DESK, accept_downloads=True)
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url[:80]) if request.url.startswith("http") else None)
    page.goto(report.as_uri())
    yield page, said
    context.close()


def test_players_play_votes_are_kept_and_nothing_is_asked_for(page: tuple[Page, list[str]], report: Path) -> None:
    view, said = page
    view.wait_for_function(
        "count => [...document.querySelectorAll('.row audio')].filter(a => a.duration > 1).length === count",
        arg=PLAYERS,
    )
    longest = view.evaluate("Math.max(...[...document.querySelectorAll('.row audio')].map(a => a.duration))")
    assert longest == pytest.approx(max(len(load_audio(row.audio)) for row in rows(3)) / SAMPLING_RATE_HZ, abs=0.1)

    view.get_by_role("button", name="Begin").click()
    for vote in ("A is better", "No difference"):
        view.get_by_role("button", name=vote).click()
    assert view.locator("#progress").inner_text() == "pair 3 of 3"
    view.reload()
    assert view.locator("#progress").inner_text() == "pair 3 of 3", "the votes are still there"
    assert view.evaluate("document.querySelectorAll('#pair h3').length") == 2
    assert BASE not in view.locator("#pair").inner_text(), "the order is hidden"
    view.get_by_role("button", name="B is better").click()
    result = view.locator("#progress").inner_text()
    assert "checkpoint-1 was preferred in" in result
    assert "95 % interval); 1 without a difference" in result
    with view.expect_download() as download:
        view.get_by_role("button", name="Save the votes").click()
    saved = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    assert saved["result"] == result
    assert [vote["choice"] is None for vote in saved["votes"]] == [False, True, False]
    assert said == []


def test_votes_count_for_the_model_that_was_played(browser: Browser, report: Path) -> None:
    """In both orders: A is swapped in the second pair only, and the fine-tune is chosen both times."""
    view = browser.new_page()
    view.set_default_timeout(WAIT_MS)
    view.goto(report.as_uri())
    view.get_by_role("button", name="Begin").click()
    for _ in range(3):
        played = view.evaluate("pairs[order[votes.length].pair].audio.indexOf(element('first').src)")
        first_is_tuned = view.evaluate("order[votes.length].swapped")
        assert played in (0, 1)
        view.get_by_role("button", name="A is better" if first_is_tuned else "B is better").click()
    assert "preferred in 3 of 3 decided pairs (44 to 100 %" in view.locator("#progress").inner_text()  # Wilson: 0.438
    view.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_use_it(browser: Browser, report: Path, scheme: str) -> None:
    """axe-core finds no fault: names of players, contrast, headings, what the keyboard reaches; nothing is too wide."""
    context = browser.new_context(viewport=PHONE, color_scheme=scheme, bypass_csp=True)  # type: ignore[arg-type]
    view = context.new_page()
    view.set_default_timeout(WAIT_MS)
    view.goto(report.as_uri())
    assert view.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    found = Axe().run(view)
    assert [(one["id"], one["nodes"][0]["html"]) for one in found.response["violations"]] == []
    if folder := os.environ.get("REPORT_PICTURES"):
        for name, size in (("phone", PHONE), ("desk", DESK)):
            view.set_viewport_size(size)  # type: ignore[arg-type]
            view.screenshot(path=str(Path(folder) / f"report-{name}-{scheme}.png"), full_page=True)
    context.close()
