"""What a release rests on: one version everywhere, a lower bound for every dependency, a site with every page."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import labelwright

ROOT = Path(__file__).parents[2]
ONE_NOTEBOOK = "plain-loop"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts")
        spec.loader.exec_module(module)
    return module


def test_one_version_everywhere() -> None:
    assert set(script("check_version").versions().values()) == {labelwright.__version__}


def test_every_dependency_has_a_lower_bound_that_the_oldest_run_uses() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {*project["dependencies"], *(each for e in project["optional-dependencies"].values() for each in e)}
    ours = {each for each in wanted if each.startswith("labelwright[")}
    bound = {line.split("==")[0] for line in script("dependencies").oldest()}
    assert {re.split(r">=|\[", each)[0] for each in wanted - ours} - {"types-PyYAML"} == bound


def test_site__every_page_is_in_the_navigation_and_every_module_of_the_reference_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = script("build_site")
    run = build.notebooks.run  # test_tutorials.py runs them all: here one
    monkeypatch.setattr(
        build.notebooks,
        "run",
        lambda path: run(path) if path.stem == ONE_NOTEBOOK else [None] * len(build.notebooks.cells(path)),
    )
    config = yaml.safe_load(build.lay_out(tmp_path).read_text(encoding="utf-8"))
    listed = set(re.findall(r"[\w/-]+\.md", yaml.safe_dump(config["nav"])))
    pages = {page.relative_to(tmp_path / "docs").as_posix() for page in (tmp_path / "docs").rglob("*.md")}
    assert listed == pages
    assert "```text\n" in (tmp_path / "docs" / "notebooks" / f"{ONE_NOTEBOOK}.md").read_text(encoding="utf-8")
    for wanted in build.REFERENCE.values():
        for name in build.modules(wanted):
            assert (ROOT / "src" / Path(*name.split("."))).with_suffix(".py").is_file()
