"""The project goes by one name, and no instruction makes a user install what somebody else put on the index."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

import labelwright
from labelwright import cli

ROOT = Path(__file__).parents[2]
FORMER_NAME = "even" + "keel"
OTHERS = {"sentencepiece"}  # packages of others that a message may ask for, as themselves
JARGON = re.compile(  # for all of these the field has words: reported, estimated, annotations, continues
    r"\b(told|said|hangs on|is due|goes on from|put right|settled?|starved|revived|heaviest)\b", re.IGNORECASE
)
INSTALL = re.compile(r"pip install (?P<rest>[^`\n]*)")


def tracked() -> list[Path]:
    """Text files of the checkout, or of the unpacked archive it came as."""
    if (ROOT / ".git").exists():
        done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
        paths = [ROOT / name for name in done.stdout.split("\0") if name]
    else:
        paths = [p for p in ROOT.rglob("*") if p.is_file() and ".venv" not in p.parts]
    kinds = {".py", ".md", ".toml", ".txt", ".yml", ".cff", ".json", ".html", ""}
    return [p for p in paths if p.suffix in kinds and p.is_file()]


def installed_by(line: str) -> set[str]:
    """Names of the packages that a line with ``pip install`` fetches from an index.

    Example:
      >>> sorted(installed_by("pip install --constraint c.txt 'labelwright[llm]' torch==2.13.0"))
      ['labelwright', 'torch']
    """
    found: set[str] = set()
    for match in INSTALL.finditer(line):
        words = re.split(r"\s+#|;", match["rest"])[0].split()
        for before, word in zip(["", *words], words, strict=False):
            name = re.match(r"['\"]*([A-Za-z][\w.-]*)", word)
            if name and before not in ("--constraint", "--requirement", "--editable", "-c", "-r", "-e"):
                found.add(name[1].rstrip(".").lower())
    return found


def test_installed_by__names_and_not_options() -> None:
    assert installed_by("fix: pip install 'somebody[llm]'; then") == {"somebody"}
    assert installed_by("pip install --constraint constraints.txt --editable '.[dev]'") == set()


def test_instructions_install_nothing_that_is_not_ours() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"] == "labelwright"
    found = set()
    for path in tracked():
        if path != Path(__file__):
            for line in path.read_text(encoding="utf-8", errors="ignore").splitlines():
                found |= installed_by(line)
    assert "labelwright" in found, "the extras are named somewhere"
    assert found <= {"labelwright", *OTHERS}


def test_the_former_name_is_gone() -> None:
    named = [path for path in tracked() if FORMER_NAME in path.read_text(encoding="utf-8", errors="ignore").lower()]
    assert named == []
    assert len(tracked()) > 200


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"labelwright {labelwright.__version__}\n"


def test_words_are_those_of_the_field() -> None:
    paths = [p for p in tracked() if p.is_relative_to(ROOT / "src") or p.is_relative_to(ROOT / "docs")]
    paths = [p for p in [*paths, ROOT / "README.md"] if not p.is_relative_to(ROOT / "docs" / "results")]
    assert len(paths) > 200
    found = [
        f"{path.relative_to(ROOT)}:{n}: {match[0]}"
        for path in paths
        for n, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if (match := JARGON.search(line))
    ]
    assert found == []
