"""The page in a real browser: Debian's Chromium, driven by playwright, as a person would."""

import json
import os
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.web.server import Server, bundled_recordings, serving

CHROMIUM = "/usr/bin/chromium"
WAIT_MS = 120_000
JOB_MS = 900_000
"""A job takes a minute on two idle cores."""

pytestmark = pytest.mark.slow

TABS = ("Data", "Train", "Listen", "Result")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("web") / "voices", "--port", "7871") as server:
        yield server


def open_page(browser: Browser, address: str, width: int = 1280) -> Page:
    page = browser.new_context(viewport={"width": width, "height": 900}, accept_downloads=True).new_page()
    page.set_default_timeout(WAIT_MS)
    expect.set_options(timeout=WAIT_MS)
    page.goto(address)
    page.get_by_role("button", name="Create the project").wait_for()
    return page


def picture(page: Page, name: str) -> None:
    """A picture to look at, if WEB_PICTURES names a folder."""
    folder = os.environ.get("WEB_PICTURES")
    if folder:
        for width in (1280, 390):
            page.set_viewport_size({"width": width, "height": 900})
            page.wait_for_timeout(1500)
            page.screenshot(path=str(Path(folder) / f"{name}_{width}.png"), full_page=True)
        page.set_viewport_size({"width": 1280, "height": 900})


def tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def test_from_recordings_to_a_voice(browser: Browser, server: Server, tmp_path: Path) -> None:
    page = open_page(browser, server.address)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    make_clips(page, tmp_path)
    correct_a_clip(page, server)
    picture(page, "data")
    train_stop_and_go_on(page, browser, server)
    picture(page, "train")
    let_it_speak(page)
    picture(page, "listen")
    download_the_zip(page)
    picture(page, "result")
    assert [url for url in asked if not url.startswith((server.address, "data:", "blob:"))] == []


def make_clips(page: Page, folder: Path) -> None:
    page.get_by_label("Name of a new project").fill("anna")
    page.get_by_role("button", name="Create the project").click()
    expect(page.locator("#status")).to_contain_text("First step")
    wrong = folder / "notes.pdf"
    wrong.write_bytes(b"%PDF")
    page.locator("input[type=file]").first.set_input_files([*bundled_recordings(folder / "speech"), wrong])
    expect(page.get_by_text("notes.pdf: neither audio, video nor text")).to_be_visible()
    expect(page.get_by_text("12 files added")).to_be_visible()
    page.get_by_label("Who writes down").click()
    page.get_by_role("option", name="none").click()
    page.get_by_role("button", name="Make clips").click()
    expect(page.locator("#status")).to_contain_text("The clips are made", timeout=JOB_MS)
    expect(page.locator("table.clips audio").first).to_be_visible()
    assert page.locator("table.clips").first.locator("tbody tr").count() == 6


def train_stop_and_go_on(page: Page, browser: Browser, server: Server) -> None:
    tab(page, "Train")
    page.get_by_label("Model", exact=True).click()
    page.get_by_role("option", name="Small").click()
    page.get_by_label("Steps").fill("6")
    page.get_by_role("button", name="Start the training").click()
    expect(page.locator("#status")).to_contain_text("Training")
    other_tab_does_not_start_it_twice(browser, server)
    expect(page.locator("#status")).to_contain_text(" of 6", timeout=JOB_MS)
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#status")).to_contain_text("was stopped", timeout=JOB_MS)
    page.get_by_role("button", name="Go on with the training").click()
    expect(page.locator("#status")).to_contain_text("The training is done", timeout=JOB_MS)
    expect(page.locator(".chart").first).to_be_visible()


def let_it_speak(page: Page) -> None:
    tab(page, "Listen")
    page.get_by_role("textbox", name="Text", exact=False).first.fill("Hello there.")
    page.get_by_role("button", name="Speak").click()
    expect(page.locator("#status")).to_contain_text("Spoken", timeout=JOB_MS)
    for player in ("#take-one", "#take-two"):
        expect(page.locator(player).get_by_role("button", name="Play")).to_be_visible()


def download_the_zip(page: Page) -> None:
    tab(page, "Result")
    page.get_by_role("button", name="Make a zip").click()
    link = page.get_by_role("link", name="Download the zip")
    with page.expect_download() as download:
        link.or_(page.get_by_role("button", name="Download the zip")).first.click()
    names = zipfile.ZipFile(download.value.path()).namelist()
    assert "anna/adapter_model.safetensors" in names


def correct_a_clip(page: Page, server: Server) -> None:
    page.get_by_role("button", name="Correct a clip").click()
    page.get_by_role("textbox", name="What is said").fill("Quite another text.")
    page.get_by_role("button", name="Save the text").click()
    expect(page.locator("table.clips").first).to_contain_text("Quite another text.")
    rows = (server.workspace / "anna" / "data" / "train.jsonl").read_text()
    assert json.loads(rows.splitlines()[0])["text"] == "Speaker 0: Quite another text."


def other_tab_does_not_start_it_twice(browser: Browser, server: Server) -> None:
    other = open_page(browser, server.address)
    tab(other, "Train")
    expect(other.locator("#status")).to_contain_text("Training")
    expect(other.get_by_role("button", name="Stop")).to_be_enabled()
    expect(other.get_by_role("button", name="training")).to_be_disabled()
    other.context.close()


def test_screens_are_accessible(browser: Browser, server: Server) -> None:
    page = open_page(browser, server.address)
    for name in TABS:
        tab(page, name)
        page.wait_for_timeout(3000)
        found = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa"]})
        assert found.violations_count == 0, found.generate_report()


def test_the_keyboard_reaches_everything(browser: Browser, server: Server) -> None:
    page = open_page(browser, server.address)
    tab(page, "Train")
    page.wait_for_timeout(2000)
    reached: set[str] = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate("(document.activeElement.ariaLabel || document.activeElement.innerText || '').trim()")
        )
    for wanted in ("Create the project", "What fits this machine?"):
        assert wanted in reached, reached


def test_nothing_lies_outside_the_width_of_a_phone(browser: Browser, server: Server) -> None:
    page = open_page(browser, server.address, width=390)
    for name in TABS:
        tab(page, name)
        page.wait_for_timeout(1500)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name


@pytest.mark.parametrize("path", ["/etc/passwd", "../../../etc/passwd", "{workspace}/../../etc/passwd"])
def test_files_outside_the_workspace_are_not_given_out(server: Server, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(f"{server.address}/gradio_api/file={path.format(workspace=server.workspace)}")
    assert error.value.code in (403, 404)


def test_an_upload_cannot_choose_its_place(server: Server) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="../../../evil.wav"\r\n\r\nRIFF\r\n--x--\r\n'
    request = urllib.request.Request(
        f"{server.address}/gradio_api/upload", body, {"Content-Type": "multipart/form-data; boundary=x"}
    )
    with urllib.request.urlopen(request) as answer:
        kept = [Path(path).resolve() for path in json.load(answer)]
    assert all(path.is_relative_to(server.workspace.resolve()) for path in kept)
    assert not list(server.workspace.parent.glob("evil.wav"))
