"""What a release rests on: one version everywhere, a lower bound for every dependency."""

from __future__ import annotations

import importlib.util
import tomllib
from pathlib import Path
from types import ModuleType

import labelwright

ROOT = Path(__file__).parents[2]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_one_version_everywhere() -> None:
    assert set(script("check_version").versions().values()) == {labelwright.__version__}


def test_every_dependency_has_a_lower_bound_that_the_oldest_run_uses() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {*project["dependencies"], *(each for e in project["optional-dependencies"].values() for each in e)}
    ours = {each for each in wanted if each.startswith("labelwright[")}
    bound = {line.split("==")[0] for line in script("dependencies").oldest()}
    assert {each.split(">=")[0] for each in wanted - ours} - {"types-PyYAML"} == bound
