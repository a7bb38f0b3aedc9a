"""What every source file keeps to: it parses, is documented, and imports no more than it must."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from labelwright.data.views import ViewSettings
from labelwright.methods import simclr
from labelwright.methods.registry import METHODS
from labelwright.train.settings import TrainSettings

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src" / "labelwright").rglob("*.py"))
BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.py"))
ABSENT_ON_WINDOWS = {
    "resource",
    "fcntl",
    "pwd",
    "grp",
    "termios",
    "tty",
    "pty",
    "syslog",
}  # imported where they are used
UNDOCUMENTED = {"Recipe.Config"}  # a comment says what it is


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_source_file(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text, str(path))
    assert ast.get_docstring(tree), "a module begins with what it is for"
    assert not re.search(r"\.cuda\(", text), "use the device that the caller names"
    assert "torchvision" not in modules_imported(tree)
    assert set(undocumented(tree)) <= UNDOCUMENTED
    at_the_top = [node for node in tree.body if not isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert not ABSENT_ON_WINDOWS & modules_imported(ast.Module(at_the_top, []))


def modules_imported(tree: ast.AST) -> set[str]:
    """First parts of the names of all modules imported, at the top or inside functions."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            found.add(ast.unparse(node.args[0]).strip("'").split(".")[0])
    return found


def undocumented(tree: ast.Module | ast.ClassDef, prefix: str = "") -> list[str]:
    """Public functions, classes and methods without a docstring."""
    found = []
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            if not ast.get_docstring(node):
                found.append(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                found += undocumented(node, f"{prefix}{node.name}.")
    return found


def test_sources_are_found() -> None:
    assert len(SOURCES) > 40
    assert len(BENCHMARKS) >= 5


def settings_classes() -> list[Any]:
    recipes = [recipe for method in METHODS.values() for recipe in (method.recipe, method.frozen) if recipe is not None]
    owners = [owner for recipe in recipes for owner in recipe.Config.__mro__ if dataclasses.is_dataclass(owner)]
    return list(dict.fromkeys([TrainSettings, ViewSettings, simclr.Config, *owners]))


@pytest.mark.parametrize("config", settings_classes(), ids=lambda config: f"{config.__module__}.{config.__name__}")
def test_every_field_has_a_comment(config: type[Any]) -> None:
    own = [field.name for field in dataclasses.fields(config) if field.name in vars(config).get("__annotations__", {})]
    lines = inspect.getsource(config).splitlines()
    bare = []
    for name in own:
        (at,) = (i for i, line in enumerate(lines) if re.match(rf"    {name}: ", line))
        if not re.search(r"  # \S", lines[at]) and not re.match(r"    # \S", lines[at - 1]):
            bare.append(name)
    assert bare == []


def imported_by(statement: str) -> set[str]:
    """Which of the heavy packages a fresh Python holds after a statement."""
    heavy = ("torch", "torchvision", "transformers", "datasets", "accelerate", "sklearn", "scipy")
    heavy += ("torch._dynamo", "tensorboard", "peft")
    code = f"import sys\n{statement}\nprint(*[name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def test_import_of_the_package_and_the_command_is_light() -> None:
    assert imported_by("import labelwright; import labelwright.cli; import labelwright.errors") == set()


def test_import_of_the_pieces_needs_torch_alone() -> None:
    pieces = (
        "losses.classification losses.mixup adjust.fixed adjust.slopes metrics.classification data.splits "
        "data.noise data.augment data.views train.optim train.settings encoders.backbones types"
    )
    assert imported_by("\n".join(f"import labelwright.{piece}" for piece in pieces.split())) == {"torch"}


@pytest.mark.parametrize("is_few", [True, False], ids=["colours and edges", "a network, timed"])
def test_inspect_loads_what_it_uses_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_few: bool
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none"))
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.linear_gradient("L").rotate(10 * i).resize((12, 12)).save(tmp_path / name / f"{i}.png")
    statement = "import labelwright as lw; from labelwright.encoders import descriptor, efficientnet; "
    statement += f"efficientnet.weights_file = lambda: None; descriptor.FEW_IMAGES *= {int(is_few)}; "
    statement += f"assert bool(lw.inspect({str(tmp_path)!r}).time) is {not is_few}"
    assert imported_by(statement) == {"torch"}  # not the time of scikit-learn, accelerate, an optimizer of torch


def test_import_of_everything_needs_no_torchvision() -> None:
    names = [".".join(path.relative_to(ROOT / "src").with_suffix("").parts) for path in SOURCES]
    assert "torchvision" not in imported_by("\n".join(f"import {name}" for name in names))


@pytest.mark.parametrize("path", BENCHMARKS, ids=name_of)
def test_benchmark_is_a_command(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    guards = [ast.unparse(node.test) for node in tree.body if isinstance(node, ast.If)]
    assert "__name__ == '__main__'" in guards
    assert "argparse" in modules_imported(tree), "it has --help"
    assert ast.get_docstring(tree)
