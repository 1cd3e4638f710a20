"""The HTML report in a real browser: quiet, offline, readable in the light, the dark and the hand.

Needs Debian's packages chromium and chromium-driver; without them it is skipped, unless
PRECHECK_BROWSER=1 asks for it, as continuous integration does.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import time
from typing import TYPE_CHECKING, Any

import pytest
from selenium import webdriver
from selenium.common.exceptions import NoAlertPresentException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from precheck.judge import judge
from precheck.render import RENDERERS, Format
from tests import hand_made
from tests.judge import stories
from tests.render.evil import evil_report

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from selenium.webdriver import Chrome

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
IS_REQUIRED = os.environ.get("PRECHECK_BROWSER") == "1"
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER) and not IS_REQUIRED, reason="no chromium and chromium-driver"
)

STORIES = {
    "qwen2-eager": judge(hand_made.qwen2_eager(), version="0.1.0"),
    "all-safe": judge(hand_made.measurements(), version="0.1.0"),
    "qwen2-on-four": judge(
        stories.qwen2(), gpus=("T4", "V100", "A100 80GB", "Apple M2 Max"), version="0.1.0"
    ),
    "static-on-t4": judge(stories.static(), gpus=("T4",), version="0.1.0"),
    "evil": evil_report(),
}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER or "chromium"
    for flag in (
        "--headless=new",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
        *(["--no-sandbox"] if os.geteuid() == 0 else []),
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    for name, report in STORIES.items():
        page = RENDERERS[Format.HTML].render(report)
        (folder / f"{name}.html").write_text(page, encoding="utf-8")
    return folder


def opened(browser: Chrome, pages: Path, name: str, *, width: int = 1200) -> Chrome:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    browser.get((pages / f"{name}.html").as_uri())
    return browser


def prefer(browser: Chrome, *, scheme: str = "light", media: str = "screen") -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})


def script(browser: Chrome, text: str) -> Any:
    return browser.execute_script(text)


@pytest.mark.parametrize("name", list(STORIES))
def test_it_opens_without_network_and_without_a_word_on_the_console(
    browser: Chrome, pages: Path, name: str
) -> None:
    browser.get_log("browser")  # type: ignore[no-untyped-call]  # what an earlier page said
    browser.get_log("performance")  # type: ignore[no-untyped-call]
    opened(browser, pages, name)
    assert browser.get_log("browser") == []  # type: ignore[no-untyped-call]
    events = [
        json.loads(each["message"])["message"]
        for each in browser.get_log("performance")  # type: ignore[no-untyped-call]
    ]
    asked = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert {url.partition(":")[0] for url in asked} <= {"file", "data"}
    assert any(url.startswith("file:") for url in asked), "or nothing was listened to"


def test_the_verdict_stands_first_and_the_charts_are_drawn(browser: Chrome, pages: Path) -> None:
    opened(browser, pages, "qwen2-eager")
    heading = browser.find_element(By.TAG_NAME, "h1")
    assert "float16 + eager overflows in layer 3" in heading.text
    assert heading.location["y"] < 100
    drawings = browser.find_elements(By.TAG_NAME, "svg")
    assert len(drawings) == 3
    assert all(drawing.size["width"] > 500 and drawing.size["height"] > 100 for drawing in drawings)


@pytest.mark.parametrize("name", ["qwen2-eager", "qwen2-on-four", "all-safe"])
def test_no_label_of_a_chart_is_cut_off(browser: Chrome, pages: Path, name: str) -> None:
    opened(browser, pages, name)
    outside = script(
        browser,
        """
        const found = [];
        for (const svg of document.querySelectorAll("svg")) {
            const frame = svg.getBoundingClientRect();
            for (const text of svg.querySelectorAll("text")) {
                const box = text.getBoundingClientRect();
                const fits = box.left >= frame.left - 1 && box.right <= frame.right + 1
                    && box.top >= frame.top - 1 && box.bottom <= frame.bottom + 1;
                if (box.width && !fits) found.push(text.textContent);
            }
        }
        return found;
        """,
    )
    assert outside == []


_CONTRASTS = """
const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
function luminance(colour) {
    canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    const rgb = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map(each => {
        each /= 255;
        return each <= 0.03928 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * rgb[0] + 0.7152 * rgb[1] + 0.0722 * rgb[2];
}
function background(element) {
    for (let each = element; each; each = each.parentElement) {
        const colour = getComputedStyle(each).backgroundColor;
        if (colour !== "rgba(0, 0, 0, 0)") return colour;
    }
    return "white";
}
const low = {};
const selector = "p, h1 span, h2, td, th, dd, dt, summary, a, code, figcaption, caption, strong";
for (const element of document.querySelectorAll(selector)) {
    if (!element.textContent.trim() || element.className === "skip") continue;
    const pair = [luminance(getComputedStyle(element).color), luminance(background(element))];
    const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    if (ratio < 4.5) low[element.tagName + "." + element.className] = ratio;
}
return low;
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_the_light_and_in_the_dark(
    browser: Chrome, pages: Path, scheme: str
) -> None:
    """The contrast that WCAG 2.2 asks of text (success criterion 1.4.3)."""
    opened(browser, pages, "qwen2-on-four")
    prefer(browser, scheme=scheme)
    page = script(browser, "return getComputedStyle(document.body).backgroundColor")
    assert (page == "rgb(255, 255, 255)") == (scheme == "light")
    assert script(browser, _CONTRASTS) == {}
    lines = "return getComputedStyle(document.querySelector('svg path[stroke^=var]')).stroke"
    assert script(browser, lines).startswith("rgb")


@pytest.mark.parametrize("name", list(STORIES))
def test_a_phone_scrolls_down_and_never_sideways(browser: Chrome, pages: Path, name: str) -> None:
    opened(browser, pages, name, width=360)
    assert script(browser, "return document.documentElement.scrollWidth") <= 360
    size = script(browser, "return parseFloat(getComputedStyle(document.body).fontSize)")
    assert size >= 15


def test_everything_is_reached_by_the_keyboard(browser: Chrome, pages: Path) -> None:
    opened(browser, pages, "qwen2-eager")
    browser.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    assert browser.switch_to.active_element.text == "Skip to the report"
    scrolling = browser.find_elements(By.CSS_SELECTOR, ".scroll")
    assert scrolling
    assert all(each.get_attribute("tabindex") == "0" for each in scrolling)
    assert all(each.get_attribute("aria-label") for each in scrolling)
    summary = browser.find_element(By.CSS_SELECTOR, "ul.findings summary")
    details = browser.find_element(By.CSS_SELECTOR, "ul.findings details")
    assert details.get_attribute("open") is None
    summary.send_keys(Keys.ENTER)
    assert details.get_attribute("open") is not None


def _accessibility(browser: Chrome) -> list[Any]:
    """What a screen reader is given; the browser makes it a moment after the page."""
    for _ in range(100):
        nodes: list[Any] = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
        if len(nodes) > 1:
            break
        time.sleep(0.1)
    return nodes


def test_a_screen_reader_is_told_what_each_part_is(browser: Chrome, pages: Path) -> None:
    opened(browser, pages, "qwen2-eager")
    tree = _accessibility(browser)
    roles = {
        (each["role"]["value"], each.get("name", {}).get("value", ""))
        for each in tree
        if "role" in each
    }
    kinds = {role for role, _ in roles}
    assert {"main", "banner", "contentinfo", "heading", "table", "image", "region"} <= kinds
    images = {name for role, name in roles if role == "image"}
    assert "Largest value after each decoder layer" in images
    assert "" not in {name for role, name in roles if role in {"image", "table", "region"}}


def test_it_prints_what_is_folded_too(browser: Chrome, pages: Path) -> None:
    opened(browser, pages, "qwen2-eager")
    script(browser, "document.querySelectorAll('details').forEach(each => each.open = false)")
    closed = script(browser, "return document.body.scrollHeight")
    prefer(browser, media="print", scheme="dark")
    try:
        page = script(browser, "return getComputedStyle(document.body).backgroundColor")
        assert page == "rgb(255, 255, 255)", "paper is white"
        assert script(browser, "return document.body.scrollHeight") > closed * 1.1
    finally:
        prefer(browser)
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert base64.b64decode(printed["data"]).startswith(b"%PDF-")


_NOTEBOOK = """<!doctype html>
<title>A notebook</title>
<style>table, svg, h1 {{ display: none }} p {{ color: rgb(1, 2, 3) }}</style>
<p id="before">before</p>
<table id="own"><tr><td>a table of the notebook</td></tr></table>
{report}
"""


@pytest.mark.parametrize("name", ["qwen2-eager", "evil"])
def test_in_a_notebook_neither_page_touches_the_other(
    browser: Chrome, tmp_path: Path, name: str
) -> None:
    fragment = STORIES[name]._repr_html_()
    page = tmp_path / "notebook.html"
    page.write_text(_NOTEBOOK.format(report=fragment), encoding="utf-8")
    opened(browser, tmp_path, "notebook")
    prefer(browser)
    own = "return getComputedStyle(document.getElementById(arguments[0])).{}"
    assert browser.execute_script(own.format("color"), "before") == "rgb(1, 2, 3)"
    assert browser.execute_script(own.format("display"), "own") == "none"
    assert script(browser, "return document.scripts.length") == 0
    frame = browser.find_element(By.TAG_NAME, "iframe")
    assert frame.size["height"] > 600
    assert frame.size["width"] > 1100
    browser.switch_to.frame(frame)
    try:
        heading = browser.find_element(By.TAG_NAME, "h1")
        assert heading.text.startswith("✗ ")
        assert heading.is_displayed()
        assert all(each.is_displayed() for each in browser.find_elements(By.TAG_NAME, "svg"))
        assert browser.find_element(By.CSS_SELECTOR, "main table").is_displayed()
    finally:
        browser.switch_to.default_content()
    with pytest.raises(NoAlertPresentException):
        browser.switch_to.alert.accept()


def test_in_a_notebook_the_report_is_made_higher_at_its_corner(
    browser: Chrome, tmp_path: Path
) -> None:
    page = tmp_path / "notebook.html"
    page.write_text(_NOTEBOOK.format(report=STORIES["all-safe"]._repr_html_()), encoding="utf-8")
    opened(browser, tmp_path, "notebook")
    box = browser.find_element(By.TAG_NAME, "iframe").find_element(By.XPATH, "..")
    before, half = box.size["height"], (box.size["width"] // 2, box.size["height"] // 2)
    dragged = ActionChains(browser).move_to_element_with_offset(box, half[0] - 4, half[1] - 4)
    dragged.click_and_hold().pause(0.1).move_by_offset(0, 100).pause(0.1).release().perform()
    assert box.size["height"] == before + 100
    frame = browser.find_element(By.TAG_NAME, "iframe")
    assert box.size["height"] - 20 < frame.size["height"] < box.size["height"]


def test_what_a_report_holds_runs_nothing(browser: Chrome, pages: Path) -> None:
    opened(browser, pages, "evil")
    assert script(browser, "return document.scripts.length") == 0
    assert "<script>alert(1)</script>" in browser.find_element(By.TAG_NAME, "h1").text
