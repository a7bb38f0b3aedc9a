"""The report in headless Chromium: no errors, pictures, contrast, keyboard, print, no JavaScript, three sizes.

Skipped where Chromium or playwright is missing; .ci/run installs both.
"""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import labelwright as lw
from made_runs import EVIL, SITUATIONS, made_up_run

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed: apt-get install chromium")

READY_S = 0.5 if "CI_QUIET_MACHINE" in os.environ else 5.0  # of a page; a busy machine is slower

LOW_CONTRAST = """() => {
  const parse = c => (c.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const linear = v => v / 255 <= 0.03928 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4;
  const light = c => { const [r, g, b] = parse(c).map(linear); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = e => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0.99) return `rgb(${c.slice(0, 3)})`;
    }
    return "rgb(255, 255, 255)";
  };
  const bad = [];
  for (const e of document.querySelectorAll("body *")) {
    const has_text = [...e.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    if (!has_text || e.closest("script, style, title, desc, dialog:not([open]), .on") || e.disabled) continue;
    if (!e.getClientRects().length) continue;
    const style = getComputedStyle(e), ink = e instanceof SVGElement ? style.fill : style.color;
    const [a, b] = [light(ink), light(behind(e))].sort((x, y) => y - x), ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) bad.push(`${e.tagName} ${e.textContent.slice(0, 30)} ${ratio.toFixed(2)}`);
  }
  return bad;
}"""
"""Texts whose contrast with what is behind them is under 4.5 (WCAG AA); numbers on the cells of a matrix left out."""

NAMELESS = """() => [...document.querySelectorAll("button, select, input, a, img, svg[role=img], [role=region]")]
  .filter(e => !e.closest("[hidden], label") && !e.hasAttribute("alt") && !e.getAttribute("aria-label") &&
    !e.getAttribute("aria-labelledby") && !e.textContent.trim())
  .map(e => e.outerHTML.slice(0, 90))"""


class Opened:
    """Pages of one browser, and what their consoles said."""

    def __init__(self, browser: Any, folders: dict[str, Path]) -> None:
        self.browser, self.folders, self._said = browser, folders, list[str]()

    @property
    def said(self) -> list[str]:
        """Errors, warnings, and whatever was loaded but the pages themselves and what is in them."""
        return [words for words in self._said if " loads file:" not in words and " loads data:" not in words]

    def page(self, situation: str, *, width: int = 1440, **how: Any) -> Any:
        page = self.browser.new_context(viewport={"width": width, "height": 900}, **how).new_page()
        page.on("console", lambda message: self._said.append(f"{situation}: {message.text}"))
        page.on("pageerror", lambda error: self._said.append(f"{situation}: {error}"))
        page.on("request", lambda request: self._said.append(f"{situation} loads {request.url}"))
        page.goto(self.folders[situation].joinpath("report.html").as_uri())
        return page


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    root = tmp_path_factory.mktemp("browser")
    folders = {situation: made_up_run(root / situation, situation) for situation in SITUATIONS}
    for folder in folders.values():
        lw.report(folder)
    with sync_api.sync_playwright() as playwright:
        arguments = ["--headless", "--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield Opened(browser, folders)
        browser.close()


def test_browser__every_situation_at_three_sizes_light_and_dark(opened: Opened) -> None:
    for situation in SITUATIONS:
        page = opened.page(situation, width=390)
        assert page.title() != "owned"
        broken = "[...document.images].filter(i => !i.complete || !i.naturalWidth).length"
        page.wait_for_function(f"{broken} === 0")
        for width in (390, 768, 1440):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, (situation, width)
            captions = (
                "[...document.querySelectorAll('caption')].map(e => e.getBoundingClientRect().right - innerWidth)"
            )
            assert max(page.evaluate(captions), default=0) <= 0, (situation, width)
            rows = "[...document.querySelectorAll('.two')].map(e => e.scrollWidth - e.clientWidth)"
            assert max(page.evaluate(rows), default=0) <= 0, (situation, width)
            lines = "[...document.querySelectorAll('.two div')].map(e => e.clientHeight > 60)"
            assert not any(page.evaluate(lines)), (situation, width)
        for scheme in ("light", "dark") if situation in ("candidates", "open_world", "bare") else ():
            page.emulate_media(color_scheme=scheme)
            assert page.evaluate(LOW_CONTRAST) == [], (situation, scheme)
        assert page.evaluate(NAMELESS) == []
        timing = "performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd"
        assert page.evaluate(timing) < 1000 * READY_S
        page.context.close()
    assert opened.said == []


def test_browser__complete_without_javascript_and_in_print(opened: Opened) -> None:
    for situation, n in (("candidates", 4), ("open_world", 3)):
        page = opened.page(situation, java_script_enabled=False)
        charts = page.locator("main > section:not(#training) .plot > svg")
        assert charts.count() >= n
        assert all(chart.bounding_box()["height"] > 50 for chart in charts.all())
        assert page.locator(".js-only:visible").count() == 0
        assert page.locator(".card:visible").count() == page.locator(".card").count()
        assert page.locator(".card details").first.is_visible()
        page.context.close()
    page = opened.page("no_labels", color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("nav:visible, .tools:visible, .copy:visible").count() == 0
    assert page.evaluate(LOW_CONTRAST) == []
    assert len(page.pdf()) > 10_000
    page.context.close()


def test_browser__images_are_checked_by_keyboard(opened: Opened, tmp_path: Path) -> None:
    page = opened.page("no_labels")
    page.locator("#verdict-h").click()
    for _ in range(40):  # from the top to the images by Tab alone
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.classList.contains('look')"):
            break
    ids = page.locator(".card:visible").evaluate_all("cards => cards.map(card => card.dataset.id)")
    labels = page.locator(".card:visible").evaluate_all("cards => cards.map(card => card.dataset.label)")
    active = "document.activeElement.closest('.card').dataset.id"
    assert page.evaluate(active) == ids[0]
    page.keyboard.press("a")  # accepted; the next one is in focus
    assert page.evaluate(active) == ids[1]
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    assert page.locator("#dialog").is_visible()
    assert page.locator("#d-title").inner_text().startswith(labels[1].split()[0][:4])
    assert page.locator("#d-pic img").count() == 1
    assert "Who says what" in page.locator("#d-more").inner_text()
    page.keyboard.press("c")
    page.locator("#d-names").select_option(EVIL)
    assert EVIL in page.locator("#d-state").inner_text()
    page.keyboard.press("Escape")
    assert page.evaluate(active) == ids[1]
    page.keyboard.press("ArrowRight")
    page.keyboard.press("a")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("u")  # taken back
    page.reload()  # what was marked is kept
    assert page.locator(".card.marked:visible").count() == 2
    with page.expect_download() as download:
        page.locator("#export").click()
    assert download.value.suggested_filename == "corrections.csv"
    download.value.save_as(tmp_path / "corrections.csv")
    with (tmp_path / "corrections.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows == [{"id": ids[0], "label": labels[0]}, {"id": ids[1], "label": EVIL}]
    page.context.close()
    assert opened.said == []


def test_browser__tabs_filters_search_and_sorted_table(opened: Opened) -> None:
    page = opened.page("candidates")
    shown = page.locator(".card:visible")
    counts = {}
    for button in page.locator(".tabs button").all():
        button.click()
        *words, n = button.inner_text().split()
        counts[" ".join(words)] = int(n)
        assert shown.count() == int(n)
        assert button.get_attribute("aria-pressed") == "true"
    assert len(counts) == 5
    page.locator("#f-search").fill("img/7")
    assert 0 < shown.count() < counts["All"]
    page.locator("#f-search").fill("")
    page.locator("#f-class").select_option("bird")
    assert set(shown.evaluate_all("cards => cards.map(card => card.dataset.label)")) == {"bird"}
    page.locator("#f-class").select_option("")
    page.locator("#f-sort").select_option("trust")
    trusts = shown.evaluate_all("cards => cards.map(card => +(card.dataset.trust || 2))")
    assert trusts == sorted(trusts)
    head = page.locator(".sortable th", has_text="Labelled")
    column = head.evaluate("th => th.cellIndex") + 1
    cells = page.locator(f".sortable tbody tr > :nth-child({column})")
    head.locator("button").focus()
    for order in ("descending", "ascending"):
        page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == order
        values = [int(text.replace(",", "")) for text in cells.all_inner_texts()]
        assert values == sorted(values, reverse=order == "descending")
    test_image = page.locator(".card[data-fixed]").first
    test_image.locator(".look").click()
    page.keyboard.press("a")
    assert "test image" in page.locator("#d-state").inner_text()
    page.context.close()
