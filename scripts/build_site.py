"""Build the documentation as a site, from the pages of the repository and the docstrings of the package.

    python scripts/build_site.py [--out site]

README.md is the start page, CONTRIBUTING.md and CHANGELOG.md are pages, notebooks are run and become pages with what
they print, and the reference is made of docstrings. Needs the extra `docs` and no network. Exits with 1 for a link that
leads nowhere.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import notebooks
import yaml

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "labelwright"
REFERENCE = {
    "The verbs": ("pipeline", "annotators/annotate.py", "annotators/describe.py", "data/read.py", "run_folder.py"),
    "scikit-learn": ("estimators.py",),
    "Losses": ("losses",),
    "Logit adjustments": ("adjust",),
    "Labels": ("labels",),
    "Trust": ("trust",),
    "Metrics": ("metrics",),
    "Views and splits": ("data/views.py", "data/augment.py", "data/splits.py", "data/noise.py"),
    "Convex heads and the loop": (
        "train/convex.py",
        "train/cross_validation.py",
        "train/scaling.py",
        "train/loop.py",
        "train/settings.py",
    ),
    "Types and errors": ("types.py", "errors.py"),
}
"""Heading of the reference -> the modules under it: files, or folders with all of theirs."""

AT_ROOT = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Pages at the root of the repository -> their names on the site."""

VERBS = ("audit", "classes", "embed", "evaluate", "export", "fit", "inspect", "label", "pretrain", "report")
"""Files of pipeline/ that hold a verb; the others are its phases."""


def main() -> None:
    """Lay the pages out and run mkdocs over them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("site"))
    out = parser.parse_args().out.resolve()
    with tempfile.TemporaryDirectory() as scratch:
        config = lay_out(Path(scratch))
        done = subprocess.run(  # not --quiet: it would hide warnings from the strictness of mkdocs.yml, too
            [sys.executable, "-m", "mkdocs", "build", "--config-file", str(config), "--site-dir", str(out)],
            env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        print(*(line for line in done.stderr.splitlines() if not line.startswith("INFO")), sep="\n", end="")
    if done.returncode:
        sys.exit(done.returncode)
    print(f"{out}: {len(list(out.rglob('*.html')))} pages")


def lay_out(folder: Path) -> Path:
    """Write pages and mkdocs.yml into a folder; the path of the latter."""
    pages = folder / "docs"
    shutil.copytree(ROOT / "docs", pages)
    for source, name in (
        ("README.md", "index.md"),
        ("CONTRIBUTING.md", "contributing.md"),
        ("CHANGELOG.md", "changelog.md"),
    ):
        text = (ROOT / source).read_text(encoding="utf-8")
        (pages / name).write_text(relinked(text, here="", root=""), encoding="utf-8")
    for path in sorted((pages / "notebooks").glob("*.ipynb")):
        path.with_suffix(".md").write_text(notebooks.page_of(path), encoding="utf-8")
        path.unlink()
    for page in pages.rglob("*.md"):
        if page.parent != pages or page.name not in AT_ROOT.values():
            here = page.relative_to(pages).parent.as_posix().removeprefix(".")
            text = page.read_text(encoding="utf-8")
            page.write_text(relinked(text, here=here, root="../" * (here.count("/") + bool(here))), encoding="utf-8")
    nav = []
    for title, wanted in REFERENCE.items():
        name = f"reference/{re.sub('[^a-z]+', '-', title.lower())}.md"
        (pages / "reference").mkdir(exist_ok=True)
        blocks = [f"# {title}", *(f"::: {module}" for module in modules(wanted))]
        (pages / name).write_text("\n\n".join(blocks) + "\n", encoding="utf-8")
        nav.append({title: name})
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    config["nav"] += [{"Reference": nav}, {"Contributing": "contributing.md"}, {"Changelog": "changelog.md"}]
    config["docs_dir"] = str(pages)
    handlers = config["plugins"][1]["mkdocstrings"]["handlers"]
    handlers["python"]["paths"] = [str(folder / "src")]
    for source in PACKAGE.rglob("*.py"):
        copied = folder / "src" / source.relative_to(PACKAGE.parent)
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_text(with_fences(with_field_texts(source.read_text(encoding="utf-8"))), encoding="utf-8")
    path = folder / "mkdocs.yml"
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path


def with_field_texts(source: str) -> str:
    """Python whose comments beside the fields of classes, or above them, are their docstrings, for the reference.

    Example:
      >>> print(with_field_texts("class A:\\n    x: int = 1  # how many"))
      class A:
          x: int = 1  # how many
          \"\"\"how many\"\"\"
    """
    lines = source.split("\n")
    classes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]
    fields = [node for each in classes for node in each.body if isinstance(node, ast.AnnAssign)]
    for node in sorted(fields, key=lambda node: -node.lineno):
        own, first = " " * node.col_offset, node.lineno - 1
        _, _, beside = lines[node.end_lineno - 1][node.end_col_offset :].partition("# ")
        above: list[str] = []
        while not beside and lines[first - 1].startswith(f"{own}# "):
            first -= 1
            above.insert(0, lines[first].removeprefix(f"{own}# "))
        if text := (beside or " ".join(above)).replace("\\", "\\\\"):
            lines.insert(node.end_lineno, f'{own}"""{text}"""' if text[-1] != '"' else f"{own}'''{text}'''")
    return "\n".join(lines)


def with_fences(source: str) -> str:
    """Python whose examples in docstrings are fenced as code: as they are, Markdown takes >>> for quotations.

    Example:
      >>> print(with_fences("  >>> [1]\\n  [1]\\n"))
        ```pycon
        >>> [1]
        [1]
        ```
    """
    lines, indent = [], None
    for line in source.split("\n"):
        own = line[: len(line) - len(line.lstrip())]
        if indent is not None and (not line.strip() or '"""' in line or len(own) < len(indent)):
            lines.append(f"{indent}```")
            indent = None
        if indent is None and line.strip().startswith(">>> "):
            indent = own
            lines.append(f"{indent}```pycon")
        lines.append(line)
    return "\n".join(lines)


def relinked(text: str, *, here: str, root: str) -> str:
    """Links of a page of the repository as the site has them.

    Args:
      text: of the page.
      here: its folder within docs, "" = docs itself, or the root of the repository.
      root: what leads from there to docs.

    Example:
      >>> relinked("[a](docs/data.md#x) [b](LICENSE) [c](../../CONTRIBUTING.md)", here="", root="")
      '[a](data.md#x) b [c](contributing.md)'
    """

    def changed(match: re.Match[str]) -> str:
        words, target = match[1], match[2]
        path, mark, anchor = target.partition("#")
        name = path.rsplit("/", 1)[-1]
        if re.match("[a-z]+:", target) or not path:
            return match[0]
        if name in ("CONTRIBUTING.md", "CHANGELOG.md"):
            return f"[{words}]({root}{name.lower()}{mark}{anchor})"
        if path.startswith("docs/"):
            return f"[{words}]({target.removeprefix('docs/')})"
        if name.endswith(".ipynb"):
            return f"[{words}]({path.removesuffix('.ipynb')}.md{mark}{anchor})"
        if name.endswith((".md", ".png", ".svg", ".webp", ".csv", ".yaml")):
            return match[0]
        return words  # a file of the repository that the site does not have

    return re.sub(r"\[([^\]]*)\]\(([^)\s]+)\)", changed, text)


def modules(wanted: tuple[str, ...]) -> list[str]:
    """Dotted names of files, and of the public files of folders.

    Example:
      >>> modules(("errors.py",))
      ['labelwright.errors']
    """
    found = []
    for name in wanted:
        path = PACKAGE / name
        files = [path] if path.is_file() else sorted(file for file in path.glob("*.py") if file.stem[0] != "_")
        if name == "pipeline":
            files = [file for file in files if file.stem in VERBS]
        found += [
            "labelwright." + file.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".") for file in files
        ]
    return found


if __name__ == "__main__":
    main()
