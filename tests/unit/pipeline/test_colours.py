"""A network from random weights against colours and edges, on the images that were held out."""

from pathlib import Path
from typing import Any

import pytest

import labelwright as lw
from labelwright.metrics.choice import Choice
from labelwright.pipeline.held_against import NETWORK, Verdict, with_descriptor
from labelwright.pipeline.resolve import resolve
from labelwright.pipeline.settings import FitSettings
from pictures import write_folders

pytestmark = pytest.mark.usefixtures("own_cache")
COUNTS = {"ant": 25, "bee": 25, "cow": 25}  # 15 of them are held out
FAST: dict[str, Any] = {"device": "cpu", "size": 8, "epochs": 1, "evaluations": 0}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folders(tmp_path_factory.mktemp("photos") / "photos", COUNTS, size_px=12)


def test_network__loses_to_colours(photos: Path, tmp_path: Path) -> None:
    """One epoch teaches it nothing, and the classes differ in brightness."""
    run = lw.fit(photos, out=tmp_path / "run", **FAST)
    summary = run.summary
    assert (summary["encoder"], summary["answer"]["name"]) == ("descriptor", summary["method"])
    network = summary["reference"]["network"]
    assert network["title"] == "Resnet32 from random weights"
    assert network["test"]["balanced_accuracy"] == pytest.approx(network["left_out"], abs=1e-5)
    assert network["left_out"] < summary["test"]["balanced_accuracy"] == 1
    assert summary["answer"]["why"].startswith("a head on colours and edges is right on 100.0% of labelled images")
    assert lw.load_model(run.path / "model").predict([str(photos / "cow" / "0.png")])["label"].to_pylist() == ["cow"]
    assert "Resnet32 from random weights" in run.report.read_text(encoding="utf-8")
    assert summary["n_fitted"] == 75  # those held out are learned from at the end


def test_network__wins(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "labelwright.pipeline.held_against.choose",
        lambda own, *rest: Choice(own, "so", dict.fromkeys((NETWORK, "descriptor"), 0.5)),
    )
    summary = lw.fit(photos, out=tmp_path / "run", **FAST).summary
    assert (summary["encoder"], summary["answer"]["why"]) == ("resnet32", "so")
    assert summary["reference"]["descriptor"]["test"]["balanced_accuracy"] == 1
    assert summary["reference"][summary["answer"]["name"]]["left_out"] == 0.5


def test_network__given_test_images_show_and_do_not_choose(photos: Path, tmp_path: Path) -> None:
    test = write_folders(tmp_path / "test", COUNTS, size_px=12, seed=1)
    summary = lw.fit(photos, test=test, out=tmp_path / "run", **FAST).summary
    assert summary["encoder"] == "resnet32"
    assert summary["reference"]["descriptor"]["test"]["balanced_accuracy"] == 1
    assert [words for words in summary["warnings"] if words.endswith("--model descriptor makes it the answer")]


@pytest.mark.parametrize(
    "how",
    [{"model": "resnet32"}, {"method": "ce"}, {"views": "pixels"}, {"answer": "trained"}, {"test_frac": 0.0}],
    ids=lambda how: next(iter(how)),
)
def test_network__asked_for_or_not_judged(photos: Path, tmp_path: Path, how: dict[str, Any]) -> None:
    given = {"data": str(photos), "out": str(tmp_path / "run"), "device": "cpu", "size": 8, "epochs": 1}
    assert with_descriptor(resolve(FitSettings(**given))) is not None
    assert with_descriptor(resolve(FitSettings(**given | how))) is None


def test_verdict__is_told_before_what_follows() -> None:
    better: Any = None
    scores = {NETWORK: 0.4, "descriptor": 0.6}
    plain = Verdict(better, Choice("descriptor", "colours win", scores), {})
    assert plain.over(Choice("ce", "ce stands", {"ce": 0.7})) == Choice("ce", "colours win; ce stands", {"ce": 0.7})
    network = Verdict(better, Choice(NETWORK, "it stands", scores), {})
    assert network.over(Choice("ce", "nothing", {})) == Choice("ce", "it stands", {"ce": 0.4, "descriptor": 0.6})
