"""The page of a run: one file that loads nothing, made of what `collect` found in the run folder.

template.html lays it out, style.css and page.js go into the page. Text of the
user (class names, ids, paths) is escaped by the template, in charts by svg.py; a content security policy allows the
page its own style and script, by their hashes, and nothing else.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from labelwright.reporting.words import plain
from labelwright.wording import number, percent

HERE = Path(__file__).parent


def page_of(content: Mapping[str, Any]) -> str:
    """The page of what `collect` found: at most 150 KB, and its pictures.

    Example:
      >>> from labelwright.reporting.collect import collect; from labelwright.run_folder import Run
      >>> run = Run("run", summary={"test": {"accuracy": 0.5, "n_scored": 8}}, data={}, config={}, environment={},
      ...           records=[], labels=None)
      >>> "About 50 of 100 labels are right (22 to 78)" in page_of(collect(run))
      True
    """
    style, script = (HERE / "style.css").read_text("utf-8"), (HERE / "page.js").read_text("utf-8")
    return _template().render(
        **content,
        is_page=True,
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        todo=_list_to_check(content["check"]["items"]),
    )


def fragment_of(content: Mapping[str, Any]) -> str:
    """Verdict, what to do next and the images to check, for a notebook: without script or style of the page's own.

    Example:
      >>> from labelwright.reporting.collect import collect; from labelwright.run_folder import Run
      >>> run = Run("run", summary={}, data={}, config={}, environment={}, records=[], labels=None)
      >>> "What to do next" in fragment_of(collect(run))
      True
    """
    few = dict(content["check"], items=content["check"]["items"][:24])
    inner = _template().render(**{**content, "check": few}, is_page=False)
    page = _framed(inner).replace("&", "&amp;").replace('"', "&quot;")
    return f'<iframe srcdoc="{page}" width="100%" height="560" title="labelwright report"></iframe>'


def _framed(inner: str) -> str:
    style = (HERE / "style.css").read_text("utf-8")
    policy = f"default-src 'none'; img-src data:; style-src '{_hash(style)}'"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" '
        f'content="{policy}"><style>{style}</style></head><body>{inner}</body></html>'
    )


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
    environment.filters.update(
        pct=percent, number=number, exact=escape, capfirst=lambda text: text[:1].upper() + text[1:]
    )
    return environment.get_template("template.html")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _list_to_check(items: list[dict[str, Any]]) -> str:
    """The images to check as a CSV file, in base64; empty without any."""
    if not items:
        return ""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("id", "label", "trust", "rather", "why"))
    for item in items:
        trust = "" if item["trust"] is None else f"{item['trust']:.4f}"
        writer.writerow((item["id"], item["label"], trust, item["rather"], "; ".join(item["why"])))
    return base64.b64encode(out.getvalue().encode()).decode()
