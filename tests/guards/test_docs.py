"""The documents say what the code does: commands parse, links resolve, names, flags and defaults are the code's own."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from labelwright.benchmarking.tables import TABLES
from labelwright.cli import VERBS, fields_of, is_positional, parse
from labelwright.data.cards import DATASETS
from labelwright.data.columns import ROLES
from labelwright.data.situation import METHODS as METHOD_OF_SITUATION
from labelwright.data.table import PROBLEM_KINDS
from labelwright.methods import coreg_frozen, lps, simclr
from labelwright.methods.baselines import candidate_labels, dividemix, open_world, pico, vision_language
from labelwright.methods.baselines.labelled import LabelledRecipe
from labelwright.methods.cap import Config as CapConfig
from labelwright.methods.coreg import Config as CoregConfig
from labelwright.methods.cvs import Config as CvsConfig
from labelwright.methods.registry import METHODS
from labelwright.pipeline.label import LABEL_COLUMNS
from labelwright.pipeline.resolve import CPU_IMAGES
from labelwright.pipeline.settings import parse_assignments
from labelwright.train.settings import apply_overrides

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", *DOCS.rglob("*.md")])


@cache
def read(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def fenced(page: Path) -> Iterator[tuple[int, str, str]]:
    """(line, language, text) of each block of code."""
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
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
                    r"(?:\$ )?(?:\w+=\S+ )*(?:accelerate launch .*-m labelwright\.cli|labelwright)(?= |$)", row
                )
                if match:
                    words = shlex.split(row[match.end() :], comments=True)
                    found.append(pytest.param(words, id=f"{page.name}:{number}"))
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
    for verb, rest in re.findall(r"`labelwright ([a-z]+)([^`]*)`", prose(page)):
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


@pytest.mark.parametrize("name", METHODS)
def test_method_is_explained(name: str) -> None:
    page = read("methods.md")
    assert re.search(rf"^\| `{name}` \|", page, re.MULTILINE), "in the table of losses"
    assert re.search(rf"^##+ {name}$", page, re.MULTILINE), "with a section of its own"


@pytest.mark.parametrize(
    ("config", "heading"),
    [
        (CvsConfig, "## cvs"),
        (CapConfig, "## cap"),
        (vision_language.Config, "### Settings of these baselines"),
        (CoregConfig, "### Settings of coreg"),
        (coreg_frozen.Config, "### Settings of coreg_frozen"),
        (candidate_labels.Config, "### Settings of kd, top1, cc, proden and crdpll"),
        (pico.Config, "### Settings of pico"),
        (dividemix.Config, "### Settings of dividemix"),
        (simclr.Config, "### Settings of simclr"),
        (lps.Config, "### Settings of lps"),
        (open_world.Config, "### Settings of ss_kmeans, orca, simgcd and fixmatch_clusters"),
    ],
    ids=[
        "cvs",
        "cap",
        "vision-language baselines",
        "coreg",
        "coreg_frozen",
        "candidate labels",
        "pico",
        "dividemix",
        "simclr",
        "lps",
        "open world",
    ],
)
def test_settings_and_defaults(config: Any, heading: str) -> None:
    page = read("methods.md")
    told = table(section(page, "## Settings that all methods share")) | table(section(page, heading))
    assert set(told) == {field.name for field in dataclasses.fields(config)}
    assert apply_overrides(config(), told) == config()


def test_settings_and_defaults_of_the_labelled_baselines() -> None:
    """One table for them all; each has some of its settings."""
    page = read("methods.md")
    told = table(section(page, "## Settings that all methods share")) | table(section(page, "### Their settings"))
    configs = [method.recipe.Config for method in METHODS.values() if isinstance(method.recipe, LabelledRecipe)]
    assert len(configs) == 9
    fields = [{field.name for field in dataclasses.fields(config)} for config in configs]
    assert set(told) == set().union(*fields)
    for config, names in zip(configs, fields, strict=True):
        assert apply_overrides(config(), {name: told[name] for name in names}) == config()


def test_preset_of_ldam_drw() -> None:
    assert f"drw_from_frac={METHODS['ldam_drw'].preset['drw_from_frac']}" in section(read("methods.md"), "### ldam_drw")


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


def test_situations_name_their_methods() -> None:
    told = dict(re.findall(r"^\| `(\w+)` \| [^|`]*(?:`[^|`]*` [^|`]*)?\| `(\w+)`", read("data.md"), re.MULTILINE))
    assert told == METHOD_OF_SITUATION


def test_images_of_a_cpu_run() -> None:
    assert f"{CPU_IMAGES:,} images" in read("quickstart.md")
    assert f"make up {CPU_IMAGES // 2:,} images, at least" in read("quickstart.md")  # two views of each


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
