"""Write the parts of docs/ that the code defines: the flags of every verb, the settings of every method.

    python scripts/generate_docs.py [--check]

A generated part stands between two comments, ``<!-- generated: WHAT -->`` and ``<!-- /generated -->``; the rest of a
page is written by hand. With --check nothing is written, and the exit code is 1 if a page is out of date.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from labelwright.methods import simclr
from labelwright.methods.registry import METHODS, resolve_config
from labelwright.pipeline.settings import GROUPS, default_words
from labelwright.train.settings import TrainSettings, described
from labelwright.verbs import fields_of, is_positional

DOCS = Path(__file__).parents[1] / "docs"
BAR = "\\|"
PART = re.compile(r"(<!-- generated: (?P<what>[^>]*?) -->\n).*?(<!-- /generated -->)", re.DOTALL)


def flags(verb: str) -> str:
    """Table of the flags of a verb; of `fit` a table per group."""
    if verb != "fit":
        return flag_table(fields_of(verb))
    tables = [
        f"**{title}**: {group.__doc__}\n\n{flag_table(dataclasses.fields(group))}" for title, group in GROUPS.items()
    ]
    return "`--config run/config.yaml` repeats a run; other flags change its settings.\n\n" + "\n".join(tables)


def flag_table(fields: Sequence[dataclasses.Field[Any]]) -> str:
    """Rows of flags: name, default, what it does, an example."""
    rows = ["| flag | default | what it does | example |", "|---|---|---|---|"]
    for field in fields:
        if is_positional(field):
            continue
        note = field.metadata
        text = note["text"].replace("|", BAR).replace("{", "`{").replace("}", "}`")
        example = f"`{note['example']}`" if note["example"] else ""
        rows.append(f"| `--{field.name.replace('_', '-')}` | `{default_words(field.default)}` | {text} | {example} |")
    return "\n".join(rows) + "\n" if len(rows) > 2 else "It has no flags.\n"


def settings(name: str) -> str:
    """Table of the settings of a method, of `simclr`, or of what all methods share (`shared`).

    A setting of `TrainSettings` that keeps its value there is in the table of the shared ones alone.
    """
    if name == "shared":
        return setting_table(TrainSettings, {"default": TrainSettings()})
    if name not in METHODS:
        return setting_table(simclr.Config, {"default": simclr.Config()})
    method = METHODS[name]
    presets = ["practical", *(preset for preset in method.presets if preset != "practical")]
    return setting_table(
        method.recipe.Config, {preset: resolve_config(method, {}, preset=preset) for preset in presets}
    )


def setting_table(config: type[Any], values: Mapping[str, TrainSettings]) -> str:
    """Rows of settings: name, a value per preset, what it is."""
    shared = {} if config is TrainSettings else dataclasses.asdict(TrainSettings())
    rows = [f"| setting | {' | '.join(values)} | what it is |", "|---" * (len(values) + 2) + "|"]
    for name, text in described(config).items():
        found = [getattr(cfg, name) for cfg in values.values()]
        if name in shared and all(value == shared[name] for value in found):
            continue
        cells = " | ".join(f"`{value_words(value)}`" for value in found)
        rows.append(f"| `{name}` | {cells} | {text.replace('|', BAR)} |")
    return "\n".join(rows) + "\n"


def value_words(value: Any) -> str:
    """A value as `--set` takes it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


MAKERS: Mapping[str, Callable[[str], str]] = {"flags": flags, "settings": settings}


def generated(page: str) -> str:
    """The page with every generated part made anew."""

    def made(found: re.Match[str]) -> str:
        kind, _, name = found["what"].partition(" ")
        return f"{found[1]}{MAKERS[kind](name)}{found[3]}"

    return PART.sub(made, page)


def main() -> int:
    """Write the pages, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is out of date")
    check = parser.parse_args().check
    stale = []
    for path in sorted(DOCS.rglob("*.md")):
        text = path.read_text(encoding="utf-8")
        if (new := generated(text)) != text:
            stale.append(path)
            if not check:
                path.write_text(new, encoding="utf-8")
    for path in stale:
        print(f"{'out of date' if check else 'written'}: {path.relative_to(DOCS.parent)}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
