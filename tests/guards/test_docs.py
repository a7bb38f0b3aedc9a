"""The documents say what the code does: commands parse, links resolve, names, flags and defaults are the code's own."""

from __future__ import annotations

import ast
import contextlib
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from labelwright.benchmarking.tables import TABLES
from labelwright.cli import parse
from labelwright.data.cards import DATASETS
from labelwright.data.columns import ROLES
from labelwright.data.situation import (
    CANDIDATE_SHARE,
    LONG_TAILED_RATIO,
    METHODS_FROM_PIXELS,
    METHODS_WITHOUT_TEXT,
    NEARLY_ALL,
)
from labelwright.data.situation import METHODS as METHOD_OF_SITUATION
from labelwright.data.table import PROBLEM_KINDS, Images, LabelTable
from labelwright.labels.unlike import FAR
from labelwright.methods.families import candidates, labels, novel
from labelwright.methods.registry import METHODS, resolve_config
from labelwright.pipeline.label_rows import LABEL_COLUMNS
from labelwright.pipeline.settings import parse_assignments
from labelwright.pipeline.time_budget import MINUTES_CPU, MINUTES_GPU
from labelwright.train.settings import apply_overrides, setting_names
from labelwright.types import Candidates
from labelwright.verbs import SHOWN, VERBS, fields_of, is_positional

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")])
METHOD_PAGES = sorted((DOCS / "methods").glob("*.md"))
FEWEST_EPOCHS = (
    ("labels", labels.EPOCHS_MIN, "methods that learn from labels"),
    ("novel", novel.EPOCHS_MIN, "those that look for novel classes"),
    ("candidates", candidates.PIXEL_EPOCHS_MIN, "those that learn from candidates"),
)
MAIN_PAGES = ("beliefs", "cap", "coreg", "cvs", "lps", "pretraining")


@cache
def read(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def fenced(page: Path) -> Iterator[tuple[int, str, str]]:
    """(line, language, text) of each block of code."""
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"^```(\w*)[^\n]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        yield text.count("\n", 0, found.start()) + 2, found[1], found[2]


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def commands() -> list[Any]:
    """Every labelwright command line in a block of code, as the words after ``labelwright``."""
    found = []
    for page in PAGES:
        for line, language, text in fenced(page):
            if language == "python":
                continue
            for number, row in enumerate(text.replace("\\\n", "  ").splitlines(), start=line):
                match = re.match(
                    r"(?:\$ )?(?:\w+=\S+ )*(?:(?:accelerate launch|torchrun) .*-m labelwright\.cli|labelwright)(?= |$)",
                    row,
                )
                if match:
                    words = shlex.split(row[match.end() :], comments=True)
                    found.append(pytest.param(words, id=f"{page.name}:{number}"))
    for name, lines in ((name, lines) for verbs in SHOWN.values() for name, lines in verbs.items()):
        found += [pytest.param(shlex.split(line)[1:], id=f"help of {name}:{i}") for i, line in enumerate(lines)]
    return found


@pytest.mark.parametrize("words", commands())
def test_command_line_parses(words: list[str]) -> None:
    if words[-1:] in ([], ["--help"]):
        with pytest.raises(SystemExit) as stopped, contextlib.redirect_stdout(io.StringIO()):
            parse([*words[:-1], "--help"])
        assert stopped.value.code == 0
        return
    if any(word.startswith("--config") for word in words):  # of a run that is not there
        return
    _, values = parse(words)
    method = values.get("method", "auto")
    if values.get("set"):
        recipe = METHODS["cvs" if method == "auto" else method].recipe
        apply_overrides(recipe.Config(), parse_assignments(values["set"]))
    assert method in {"auto", *METHODS}
    assert values.get("table") in {None, *TABLES}


def test_commands_are_found() -> None:
    assert len(commands()) > 20
    assert "labelwright fit gtsrb-train.parquet --test gtsrb-test.parquet --method cvs --out run" in read(
        "quickstart.md"
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_text_exist(page: Path) -> None:
    for verb, rest in re.findall(r"`labelwright ([a-z-]+)([^`]*)`", prose(page)):
        assert verb in VERBS, f"{page.name}: no verb {verb}"
        unknown = set(re.findall(r"--[a-z-]+", rest)) - flags(verb)
        assert not unknown, f"{page.name}: labelwright {verb} has no {unknown}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(file), f"{page.name} links to {target}"


def anchors(page: Path) -> set[str]:
    """What the headings of a page are linked by."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def flags(verb: str) -> set[str]:
    """Every flag that a verb takes."""
    names = {"--help", "--config"} if verb == "fit" else {"--help"}
    for field in fields_of(verb):
        if not is_positional(field):
            name = field.name.replace("_", "-")
            names |= {f"--{name}", f"--no-{name}"} if isinstance(field.default, bool) else {f"--{name}"}
    return names


ALL_FLAGS = set().union(*(flags(verb) for verb in VERBS))


def section(text: str, heading: str) -> str:
    """What stands under a heading, up to the next of its level."""
    level = heading.split(" ")[0]
    found = re.search(rf"^{re.escape(heading)}\n(.*?)(?=^#{{1,{len(level)}}} |\Z)", text, re.DOTALL | re.MULTILINE)
    assert found, f"no heading {heading!r}"
    return found[1]


def table(text: str) -> dict[str, str]:
    """First column -> second column of the rows whose first two cells are code."""
    return dict(re.findall(r"^\| `([^`]+)` \| `([^`]+)` \|", text, re.MULTILINE))


@pytest.mark.parametrize("verb", VERBS)
def test_flags_of_verb(verb: str) -> None:
    shown = section(read("cli.md"), f"## {verb}")
    assert set(table(shown)) == {f for f in flags(verb) if not f.startswith("--no-")} - {"--help", "--config"}
    assert set(re.findall(r"--[a-z]+[a-z-]*", re.sub("<!--.*?-->", "", shown))) <= ALL_FLAGS


def test_generated_parts_are_up_to_date() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "scripts" / "generate_docs.py"), "--check"], capture_output=True)
    assert done.returncode == 0, f"{done.stdout.decode()}: run make docs"


def test_exit_codes() -> None:
    assert re.findall(r"^\| (\d+) \|", section(read("cli.md"), "## Exit codes"), re.MULTILINE) == ["0", "1", "2", "130"]


def generated_part(what: str, text: str) -> str:
    """What stands between the two comments of a generated part."""
    found = re.search(rf"<!-- generated: {what} -->\n(.*?)<!-- /generated -->", text, re.DOTALL)
    assert found, f"no part {what!r}"
    return found[1]


@pytest.mark.parametrize("name", METHODS)
def test_method_has_a_heading_and_its_settings(name: str) -> None:
    """One page explains it; its table and that of the shared settings are what runs by default."""
    texts = [page.read_text(encoding="utf-8") for page in METHOD_PAGES]
    (page,) = (text for text in texts if re.search(rf"^##? {name}$", text, re.MULTILINE))
    shown = table(generated_part(f"settings {name}", page))
    config, shared = METHODS[name].recipe.Config, table(generated_part("settings shared", read("methods/training.md")))
    values = {key: shown.get(key, shared.get(key)) for key in setting_names(config)}
    assert set(shown) <= set(values)
    assert apply_overrides(config(), values) == resolve_config(METHODS[name], {})
    assert re.search(rf"^\| .*`{name}`.* \|$", read("methods/README.md"), re.MULTILINE), "in the index"


def test_paper_preset_is_a_column() -> None:
    shown = generated_part("settings cap", read("methods/cap.md"))
    assert shown.startswith("| setting | practical | paper | what it is |\n")
    rows = re.findall(r"^\| `([^`]+)` \| `[^`]+` \| `([^`]+)` \|", shown, re.MULTILINE)
    assert apply_overrides(METHODS["cap"].recipe.Config(), dict(rows)) == resolve_config(
        METHODS["cap"], {}, preset="paper"
    )


@pytest.mark.parametrize("page", METHOD_PAGES, ids=lambda page: page.stem)
def test_page_of_a_method_is_short(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    written = re.sub(r"<!-- generated: .*?<!-- /generated -->\n", "", text, flags=re.DOTALL)
    assert len(written.splitlines()) <= 90
    if page.stem in MAIN_PAGES:
        assert re.findall(r"^## (.*)$", text, re.MULTILINE)[:4] == ["When", "Command", "Result", "What does not matter"]


def test_main_pages_are_there() -> None:
    assert {page.stem for page in METHOD_PAGES} >= {*MAIN_PAGES, "README", "training"}
    assert "`temperature`" in generated_part("settings simclr", read("methods/pretraining.md"))


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("data.md", PROBLEM_KINDS),
        ("data.md", DATASETS),
        ("data.md", METHOD_OF_SITUATION),
        ("data.md", [name for names in ROLES.values() for name in names]),
        ("data.md", ["LABELWRIGHT_DATA", "LABELWRIGHT_CACHE", "--on-bad skip"]),
        ("quickstart.md", LABEL_COLUMNS),
        ("cli.md", TABLES),
    ],
    ids=["problems", "data sets", "situations", "columns", "variables", "labels", "tables"],
)
def test_names_are_explained(page: str, names: Any) -> None:
    assert not [name for name in names if f"`{name}`" not in read(page)]


SETS = LabelTable(
    Images(pa.array(["a"])),
    pa.array(["a"]),
    np.array([-1]),
    ("cat", "dog"),
    Candidates(torch.tensor([0, 1]), torch.zeros(1)),
)


def test_situations_name_their_methods() -> None:
    """Method, and the other one without a text model or on frozen features; what decides is the code's own."""
    text = section(read("data.md"), "## Situations")
    other = r"(?:`(\w+)` [\w ]+)?"
    rows = re.findall(rf"^\| `(\w+)` \| .* \| `(\w+)` \| {other}(?:, {other})?\|$", text, re.MULTILINE)
    assert {name: method for name, method, *_ in rows} == METHOD_OF_SITUATION
    for name, method, other, from_pixels in rows:
        assert (from_pixels or method) == METHODS_FROM_PIXELS[name]
        without_text = METHODS_WITHOUT_TEXT[name] if METHODS_WITHOUT_TEXT[name] != method else None
        on_features = METHODS[method].on_embeddings
        assert (other or None) == (without_text or (on_features and on_features(SETS)))
    for words in (f"{NEARLY_ALL:.0%}", f"{CANDIDATE_SHARE:.0%}", f"{LONG_TAILED_RATIO:g} times", f"{FAR:.1%}"):
        assert words in text


def test_time_of_a_run() -> None:
    text = section(read("quickstart.md"), "## How long it trains")
    assert f"{MINUTES_CPU:g} minutes on a CPU, {MINUTES_GPU:g} on a GPU" in text
    fewest = {name: re.search(rf"{number} of {kind}", text) for name, number, kind in FEWEST_EPOCHS}
    assert all(fewest.values()), fewest


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_is_python(page: Path) -> None:
    for line, language, text in fenced(page):
        if language == "python":
            ast.parse(text, f"{page.name}:{line}")


def python_of_library() -> list[Any]:
    blocks = [block for block in fenced(DOCS / "library.md") if block[1] == "python"]
    return [pytest.param(text, id=f"line {line}") for line, _, text in blocks]


@pytest.mark.parametrize("text", python_of_library())
def test_library_example_runs(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block alone prints what the comments after its prints say."""
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(text, "library.md", "exec", dont_inherit=True), {"__name__": "library_example"})
    expected = re.findall(r"^print\(.*\)  # (.*)$", text, re.MULTILINE)
    assert printed.getvalue().splitlines() == expected
    assert expected, "an example that prints nothing shows nothing"


def test_troubleshooting_quotes_real_messages() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "src").rglob("*.py")))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # texts that go on in the next line
    quoted = re.findall(r"^\| `([^`]+)` \|", read("troubleshooting.md"), re.MULTILINE)
    assert len(quoted) >= 14
    parts = [part.strip() for message in quoted for part in message.split("…")]
    assert [part for part in parts if part not in source] == []
