"""The page of made-up runs of every situation: what it says, that it is small, and that text of the user stays text."""

from __future__ import annotations

import base64
import csv
import hashlib
import html.parser
import io
import re
from pathlib import Path

import pytest

import labelwright as lw
from labelwright.pipeline.report import notebook_html
from labelwright.run_folder import Run
from made_runs import EVIL, QUOTES, RTL, SITUATIONS, made_up_run

PAGE_MAX = 150_000
VOID = {"meta", "img", "input", "link", "br"}


class Page(html.parser.HTMLParser):
    """Tags with attributes, text outside of scripts and styles, scripts, and whether tags close as they open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.open: list[str] = []
        self.inside: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.end_option(tag == "option")
        if tag not in VOID:
            self.open.append(tag)

    def end_option(self, is_over: bool) -> None:
        """The end tag of an option may be left out."""
        if is_over and self.open[-1] == "option":
            self.open.pop()

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        self.end_option(tag != "option")
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        inside = self.open[-1] if self.open else ""
        self.inside.append((inside, data))
        (self.scripts if inside == "script" else self.styles if inside == "style" else self.text).append(data)

    @property
    def words(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.text))


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, Page]]:
    root = tmp_path_factory.mktemp("pages")
    found = {}
    for situation in SITUATIONS:
        text = lw.report(made_up_run(root / situation, situation)).read_text(encoding="utf-8")
        found[situation] = text, Page(text)
    return found


@pytest.mark.parametrize("situation", SITUATIONS)
def test_page__is_one_small_file_that_loads_nothing(pages: dict[str, tuple[str, Page]], situation: str) -> None:
    text, page = pages[situation]
    assert page.open == []
    pictures = re.findall(r'"(data:image/[^"]*)"', text)
    assert len(text.encode()) - sum(map(len, pictures)) < PAGE_MAX
    sources = [attrs[key] or "" for _, attrs in page.tags for key in ("src", "href") if key in attrs]
    assert all(source.startswith(("data:", "#")) for source in sources)
    policy = next(a["content"] or "" for tag, a in page.tags if tag == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'; img-src data:;")
    for kind, (content,) in (("script", page.scripts), ("style", page.styles)):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert not any(key in ("style", "onclick", "onerror") for _, attrs in page.tags for key in attrs)


@pytest.mark.parametrize("situation", [name for name in SITUATIONS if name != "bare"])
def test_page__text_of_the_user_is_text(pages: dict[str, tuple[str, Page]], situation: str) -> None:
    text, page = pages[situation]
    assert text.count("<script") == 1
    assert EVIL in page.words
    assert QUOTES in page.words
    assert RTL[1:] in page.words  # the mark that turns what follows stays where a correction is made of it, only
    exact = {a.get("data-id") for _, a in page.tags} | {text for tag, text in page.inside if tag in ("b", "option")}
    assert RTL in exact
    assert not any(RTL in text for tag, text in page.inside if tag not in ("b", "option"))
    assert "49" not in re.findall(r"\{\{ 7\*7 \}\}|\b49\b(?= \}\})", text)
    assert not any(attrs.get("src") == "x" for _, attrs in page.tags)


@pytest.mark.parametrize("situation", SITUATIONS)
def test_page__parts_in_their_order(pages: dict[str, tuple[str, Page]], situation: str) -> None:
    ids = [attrs["id"] for tag, attrs in pages[situation][1].tags if tag == "section"]
    order = ["verdict", "next", "check", "classes", "confused", "situation", "trust", "training"]
    assert ids == [name for name in order if name in ids]
    every = {"no_labels": 8, "candidates": 8, "open_world": 8, "long_tailed": 8, "balanced": 8, "few_labels": 8}
    assert len(ids) == every.get(situation, 4)
    links = [attrs["href"] for tag, attrs in pages[situation][1].tags if tag == "a" and "download" not in attrs]
    assert {f"#{name}" for name in ids} == set(links)


def test_page__of_a_bare_run_says_that_nothing_is_known(pages: dict[str, tuple[str, Page]]) -> None:
    words = pages["bare"][1].words
    assert "Not measured" in words
    assert "How many labels are right is not known" in words
    assert not [attrs for tag, attrs in pages["bare"][1].tags if tag in ("img", "figure")]


def test_page__list_to_check_is_a_csv_file(pages: dict[str, tuple[str, Page]]) -> None:
    link = next(a for tag, a in pages["no_labels"][1].tags if tag == "a" and "download" in a)
    text = base64.b64decode((link["href"] or "").partition("base64,")[2]).decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert list(rows[0]) == ["id", "label", "trust", "rather", "why"]
    assert len(rows) == len([1 for tag, a in pages["no_labels"][1].tags if tag == "li" and "data-id" in a])


def test_page__every_chart_has_a_title_a_description_and_a_finding(pages: dict[str, tuple[str, Page]]) -> None:
    for text, _ in pages.values():
        charts = re.findall(r"<figure.*?</figure>", text, re.S)
        for chart in charts:
            assert re.search(r"<figcaption>[^<]{12,}</figcaption>", chart)
            svg = re.search(r'<svg [^>]*role="img" aria-labelledby="(c\w+t) (c\w+d)"', chart)
            assert svg
            assert f'<title id="{svg[1]}">' in chart
            assert f'<desc id="{svg[2]}">' in chart
        assert "Flat" not in text
    assert len(re.findall("<figure", pages["long_tailed"][0])) >= 5


def test_notebook__shows_verdict_next_and_images_and_runs_nothing(tmp_path: Path) -> None:
    run = Run(made_up_run(tmp_path / "run", "no_labels"))
    frame = Page(run._repr_html_())
    assert frame.tags[0][0] == "iframe"
    inner = frame.tags[0][1]["srcdoc"] or ""
    page = Page(inner)
    assert page.scripts == []
    assert [attrs["id"] for tag, attrs in page.tags if tag == "section"] == ["verdict", "next", "check"]
    assert "</iframe" not in inner.replace("&lt;", "<").split(EVIL)[0]
    assert notebook_html(run) == run._repr_html_()


def test_report__title_is_kept_and_open_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr("webbrowser.open", shown.append)
    run = made_up_run(tmp_path / "run", "balanced")
    page = lw.report(run, title="Birds <of> May", open=True)
    assert "<h1>Birds &lt;of&gt; May</h1>" in page.read_text(encoding="utf-8")
    assert shown == [page.resolve().as_uri()]
    assert "<h1>Birds &lt;of&gt; May</h1>" in lw.report(run).read_text(encoding="utf-8")
