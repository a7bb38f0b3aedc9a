"""The tutorials and the notebooks do what they say: every command, file and cell, on scikit-learn's digits."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from transformers import CLIPImageProcessor, CLIPVisionModel

import labelwright.assets

ROOT = Path(__file__).parents[2]
PAGES = sorted(path for path in (ROOT / "docs" / "tutorials").glob("*.md") if path.name != "README.md")
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
LONGEST_PAGE, LARGEST_PICTURE = 110, 150_000
CLIP = "openai/clip-vit-base-patch32"
FLOWERS = ("bluebell", "buttercup", "colts-foot")
LAND = ("grass", "field", "industry", "forest")
THINGS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
OF_PAGE = {
    "own-folder": (FLOWERS, 9),
    "class-names": (THINGS, 6),
    "few-labels": (LAND, 14),
    "several-answers": (FLOWERS, 10),
    "long-tail": (LAND, 12),
    "new-classes": (LAND, 12),
    "correct-and-repeat": (FLOWERS, 12),
}
"""Page -> classes and images of each."""
QUICKLY = ("--epochs", "1", "--no-refit", "--answer", "trained")
"""What `fit` gets on top: less work of the same kind."""


def module_at(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


tutorials = module_at(ROOT / "benchmarks" / "tutorials.py")
notebooks = module_at(ROOT / "scripts" / "notebooks.py")


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What stands for the models that the pages name: the two sides of the CLIP inside the package."""
    folder, clip = tmp_path_factory.mktemp("eyes"), Path(labelwright.assets.__file__).parent / "digits-clip"
    CLIPVisionModel.from_pretrained(clip).save_pretrained(folder)
    CLIPImageProcessor.from_pretrained(clip).save_pretrained(folder)
    return {"efficientnet_lite0": str(folder), CLIP: "labelwright/digits-clip"}


def digits(names: tuple[str, ...], n: int) -> dict[str, list[bytes]]:
    """n images of each of the first digits, under the names of a page."""
    found, images = load_digits(), {}
    for c, name in enumerate(names):
        images[name] = []
        for row in np.flatnonzero(found.target == c)[:n]:
            file = io.BytesIO()
            Image.fromarray((found.images[row] * (255 / 16)).astype(np.uint8)).save(file, "png")
            images[name].append(file.getvalue())
    return images


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_tutorial_runs(page: Path, models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lay_out, *_ = tutorials.LAYOUTS[page.stem]
    printed = tutorials.run_page(page, lay_out(digits(*OF_PAGE[page.stem])), models, QUICKLY)
    assert (tmp_path / "run" / "report.html").is_file()
    wanted = {title.removeprefix("printed by ") for _, title, _ in tutorials.blocks(page) if "printed by" in title}
    assert wanted <= set(printed)
    assert all(printed[verb].strip() for verb in wanted)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_tutorial_is_short_and_shows_its_report(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    own = re.sub(r'^```text title="printed.*?^```', "", text, flags=re.DOTALL | re.MULTILINE)
    assert len(own.splitlines()) <= LONGEST_PAGE
    shown = re.findall(r"\]\(([\w-]+\.webp)\)", text)
    assert f"{page.stem}.webp" in shown
    assert all((page.parent / name).stat().st_size < LARGEST_PICTURE for name in shown)
    assert all(text.strip() for _, title, text in tutorials.blocks(page) if title), "python benchmarks/tutorials.py"


def test_every_layout_has_its_page() -> None:
    assert set(tutorials.LAYOUTS) == {page.stem for page in PAGES} == set(OF_PAGE)
    pictures = {path.name for path in (ROOT / "docs" / "tutorials").glob("*.webp")}
    assert pictures == set(re.findall(r"\(([\w-]+\.webp)\)", "".join(page.read_text("utf-8") for page in PAGES)))


@pytest.mark.filterwarnings("ignore")  # as in a notebook: what other libraries warn of ends no cell
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path) -> None:
    shown = [each for each in notebooks.run(path) if each is not None]
    assert len(shown) >= 3
    assert any(each.printed.strip() for each in shown)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_whole_and_holds_no_output(path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    assert content["metadata"]["kernelspec"]["language"] == "python"
    assert len({cell["id"] for cell in content["cells"]}) == len(content["cells"])
    for cell in content["cells"]:
        own = {"execution_count", "outputs"} if cell["cell_type"] == "code" else set()
        assert set(cell) == {"cell_type", "id", "metadata", "source", *own}
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
    for target in re.findall(r"\]\(([\w./-]+)", "".join(text for _, text in notebooks.cells(path))):
        assert (path.parent / target).exists(), target
