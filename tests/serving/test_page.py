"""The page in headless Chromium: pick, run, see; refuse in words; keyboard and phone."""

import io
import re
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.serving.conftest import Server, noise

pytestmark = pytest.mark.slow
CHROMIUM = "/usr/bin/chromium"
DONE = re.compile("64 of 64 tokens")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    """The page after it has loaded; nothing may come from another server."""
    requested: list[str] = []
    found = browser.new_page()
    found.on("request", lambda request: requested.append(request.url))
    load(found, server)
    yield found
    found.close()
    outside = [url for url in requested if not url.startswith((server.url, "data:", "blob:"))]
    assert not outside


def load(page: Page, server: Server) -> None:
    page.set_default_timeout(20_000)
    expect.set_options(timeout=20_000)
    page.goto(server.url)
    expect(page.locator("#query img")).to_be_visible()  # of the first task


def run(page: Page) -> None:
    page.get_by_role("button", name="Answer", exact=True).click()
    expect(page.locator("#status p").last).to_contain_text(DONE)
    expect(page.locator("#download")).to_be_enabled()


def image_of(page: Page, box: str) -> np.ndarray:
    """The image that a box shows, as its file."""
    found = page.request.get(page.locator(f"{box} img").get_attribute("src"))
    assert found.ok
    return np.asarray(Image.open(io.BytesIO(found.body())).convert("RGB"))


def test_a_task_is_picked_and_answered_by_two_students(page):
    page.get_by_label("derain").check()
    expect(page.locator("#input-3 img")).to_be_visible()
    query = page.locator("#query img")
    expect(query).to_have_attribute("src", re.compile("derain_query"))
    run(page)
    lines = page.locator("#status").inner_text()
    assert "shapes: 64 of 64 tokens" in lines and "again: 64 of 64 tokens" in lines
    assert re.search(r"\d s \(\d+ tokens/s\). Tokenizer's round trip: \d+\.\d dB", lines)
    first, second = image_of(page, "#answer-0"), image_of(page, "#answer-1")
    assert first.shape == (512, 512, 3) and (first == second).all()  # the same weights
    assert image_of(page, "#round-trip").shape == (512, 512, 3)
    expect(page.locator("#download")).to_be_enabled()
    with page.expect_download() as download:
        page.locator("#download").click()
    assert Image.open(download.value.path()).size == (128, 64)


def test_rows_appear_while_the_answer_is_generated(page):
    page.evaluate(
        """() => {
            window.seen = [];
            const status = document.querySelector('#status');
            const note = () => window.seen.push(status.innerText);
            const changes = {subtree: true, childList: true, characterData: true};
            new MutationObserver(note).observe(status, changes);
        }"""
    )
    run(page)
    seen = page.evaluate("window.seen.join(' ')")
    counts = {int(each) for each in re.findall(r"(\d+) of 64 tokens", seen)}
    assert 64 in counts and len(counts) >= 3


def test_an_upload_other_than_an_image_is_refused_in_words(page, tmp_path):
    (tmp_path / "notes.png").write_text("not an image")
    page.get_by_label("your own").check()
    expect(page.locator("#query img")).to_have_count(0)
    page.locator("#query input[type=file]").set_input_files(tmp_path / "notes.png")
    words = "the file cannot be read as an image: send PNG, JPEG, WebP, GIF or BMP"
    expect(page.get_by_text(words)).to_be_visible()
    expect(page.locator("#query img")).to_have_count(0)


def test_a_question_that_is_incomplete_is_refused_in_words(page, tmp_path):
    noise(0).save(tmp_path / "a.png")
    page.get_by_label("your own").check()
    expect(page.locator("#query img")).to_have_count(0)
    page.get_by_role("button", name="Answer", exact=True).click()
    expect(page.get_by_text("no query: upload an image, or pick a task")).to_be_visible()
    page.locator("#query input[type=file]").set_input_files(tmp_path / "a.png")
    page.locator("#input-1 input[type=file]").set_input_files(tmp_path / "a.png")
    expect(page.locator("#input-1 img")).to_be_visible()
    page.get_by_role("button", name="Answer", exact=True).click()
    expect(page.get_by_text("pair 1 has no target: add it")).to_be_visible()


def test_uploaded_pairs_and_query_are_answered(page, tmp_path):
    page.get_by_label("your own").check()
    expect(page.locator("#query img")).to_have_count(0)
    for number, box in enumerate(("#input-1", "#target-1", "#query")):
        noise(number, (50, 40)).save(tmp_path / f"{number}.jpg")
        page.locator(f"{box} input[type=file]").set_input_files(tmp_path / f"{number}.jpg")
        expect(page.locator(f"{box} img")).to_be_visible()
    run(page)
    page.locator("#input-1").get_by_label("Remove Image").click()
    expect(page.locator("#input-1 img")).to_have_count(0)


def test_a_query_is_painted(page):
    page.get_by_role("tab", name="Query: draw it").click()
    sheet = page.locator("#drawing canvas").first
    expect(sheet).to_be_visible()
    page.locator("#drawing").get_by_label("Brush", exact=False).first.click()
    box = sheet.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 60, y)
    page.mouse.down()
    for step in range(12):
        page.mouse.move(x - 60 + 10 * step, y + 20 * (step % 2))
    page.mouse.up()
    run(page)
    painted = image_of(page, "#round-trip")
    assert painted[:40].mean() > 200  # the sheet is white
    assert painted[200:300].min() < 120  # and the stroke is dark


def test_everything_is_reached_by_keyboard(page):
    page.get_by_label("segmentation").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    expect(page.locator("#query img")).to_have_attribute("src", re.compile("pose_query"))
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.innerText || ''").strip())
        if reached[-1] == "Answer":
            break
    assert reached[-1] == "Answer" and "Query: draw it" in reached
    page.keyboard.press("Enter")
    expect(page.locator("#status p").last).to_contain_text(DONE)


def test_sampling_settings_appear_when_they_count(page):
    page.get_by_role("button", name="Sampling").click()
    expect(page.get_by_label("Guidance").first).to_be_visible()
    expect(page.get_by_label("Temperature").first).not_to_be_visible()
    page.get_by_label("sample (a different").check()
    expect(page.get_by_label("Temperature").first).to_be_visible()
    run(page)
    first = image_of(page, "#answer-0")
    shown = page.locator("#answer-1 img").get_attribute("src")
    page.get_by_label("Seed", exact=True).fill("7")
    page.get_by_role("button", name="Answer", exact=True).click()
    expect(page.locator("#answer-1 img")).not_to_have_attribute("src", shown)
    assert (image_of(page, "#answer-0") != first).any()


def test_a_phone_shows_it_without_scrolling_sideways(browser, server):
    page = browser.new_page(viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True)
    load(page, server)
    widths = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    for open_it in (None, "Query: draw it"):
        if open_it:
            page.get_by_role("tab", name=open_it).tap()
            page.wait_for_timeout(300)
        scroll, client = page.evaluate(widths)
        assert scroll <= client == 360
    page.get_by_role("tab", name="Query: an image").tap()
    page.get_by_role("button", name="Answer", exact=True).tap()
    expect(page.locator("#status p").last).to_contain_text(DONE)
    expect(page.locator("#answer-0 img")).to_be_visible()
    scroll, client = page.evaluate(widths)
    assert scroll <= client
    page.close()
