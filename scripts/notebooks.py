"""Run the notebooks of docs/notebooks without Jupyter, and make a page of each for the site.

    python scripts/notebooks.py [--out FOLDER]

The code cells of a notebook run in order in one namespace, in a working folder of its own. A page shows every cell with
what it printed and, as Jupyter does, the value of its last line.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import html
import io
import json
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NOTEBOOKS = Path(__file__).parents[1] / "docs" / "notebooks"


@dataclass(frozen=True)
class Shown:
    """What a cell shows: printed lines, and the value of its last line, None if it has none."""

    printed: str
    value: Any


def cells(path: Path) -> list[tuple[str, str]]:
    """("code" or "markdown", text) of each cell."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return [(cell["cell_type"], "".join(cell["source"])) for cell in content["cells"]]


def run(path: Path) -> list[Shown | None]:
    """Run a notebook in a temporary folder; what each cell shows, None for text."""
    names: dict[str, Any] = {"__name__": path.stem}
    with tempfile.TemporaryDirectory() as scratch, working_in(Path(scratch)):
        return [shown(text, names, path.name) if kind == "code" else None for kind, text in cells(path)]


def shown(text: str, names: dict[str, Any], where: str) -> Shown:
    """Run one cell."""
    tree, last = ast.parse(text), None
    if tree.body and isinstance(tree.body[-1], ast.Expr):
        last = ast.Expression(tree.body.pop().value)  # type: ignore[attr-defined]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        exec(compile(tree, where, "exec", dont_inherit=True), names)
        value = None if last is None else eval(compile(last, where, "eval", dont_inherit=True), names)
        if hasattr(value, "_repr_html_"):
            value = Html(value._repr_html_())  # now: the folder it reads goes
    return Shown(printed.getvalue(), value)


class Html(str):
    """What a value shows of itself in a notebook."""


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Work in a folder for a while."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def page_of(path: Path) -> str:
    """A notebook as Markdown, with what its cells show."""
    parts = []
    for (kind, text), found in zip(cells(path), run(path), strict=True):
        parts.append(text if kind == "markdown" else f"```python\n{text}\n```")
        if found and found.printed.strip() and not isinstance(found.value, Html):
            parts.append(f"```text\n{found.printed.strip()}\n```")
        if found and isinstance(found.value, Html):
            framed = re.sub(r'srcdoc="[^"]*"', lambda each: each[0].replace("\n", "&#10;"), found.value)  # as it is
            parts.append(re.sub(r"\n\s*", " ", framed))  # one block of HTML
        elif found and found.value is not None:
            parts.append(f"<pre>{html.escape(repr(found.value))}</pre>")
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Write all pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("notebook-pages"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        (out / f"{path.stem}.md").write_text(page_of(path), encoding="utf-8")


if __name__ == "__main__":
    main()
