"""Uneven labels on stored embeddings, from the file to the labels: what `auto` and `inspect` say and do."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import labelwright as lw
from labelwright.errors import ConfigError

QUICK: dict[str, Any] = {"device": "cpu", "precision": "fp32"}


def a_file(path: Path, *, factor: float = 1.0, counts: tuple[int, ...] = (60, 20, 6)) -> Path:
    """Embeddings [N, 8] of uneven classes that overlap; the same ones whatever the factor."""
    draw = np.random.default_rng(0)
    labels = np.repeat(np.arange(len(counts)), counts)
    feats = draw.normal(size=(len(counts), 8))[labels] + 0.9 * draw.normal(size=(len(labels), 8))
    np.savez(path, embeddings=(factor * (feats + 3)).astype(np.float32), labels=np.array(["ant", "bee", "cow"])[labels])
    return path


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("uneven")
    return lw.fit(a_file(folder / "uneven.npz"), out=folder / "run", **QUICK)


def test_auto__takes_the_best_of_the_family_and_says_so(done: Any, tmp_path: Path) -> None:
    assert done.summary["method"] == "cross_validated"
    assert lw.inspect(a_file(tmp_path / "uneven.npz")).runs == "cross_validated"
    begun = next(row for row in done.records if row["kind"] == "begin")
    scores = begun["left_out_scores"]
    assert begun["chosen"] in scores
    assert begun["left_out_balanced_accuracy"] == max(scores.values()) > 0.6


@pytest.mark.parametrize("factor", [0.03, 37.0])
def test_auto__scale_of_the_embeddings_changes_nothing(done: Any, factor: float, tmp_path: Path) -> None:
    other = lw.fit(a_file(tmp_path / "scaled.npz", factor=factor), out=tmp_path / "run", **QUICK)
    ours, theirs = (lw.label(run.path, data, **QUICK) for run, data in (
        (done, a_file(tmp_path / "plain.npz")),
        (other, tmp_path / "scaled.npz"),
    ))  # fmt: skip
    assert ours["label"].equals(theirs["label"])
    assert np.allclose(ours["probability"], theirs["probability"], atol=1e-3)


def test_settings__on_features_have_no_steps() -> None:
    on_features = {each.name for each in lw.settings("la", views="embeddings")}
    from_pixels = {each.name for each in lw.settings("la")}
    assert "penalty" in on_features - from_pixels
    assert "lr" in from_pixels - on_features
    with pytest.raises(ConfigError, match="CVS has no preset 'paper'"):
        lw.settings("cvs", preset="paper", views="embeddings")


def test_fit__a_setting_about_steps_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lr is about training steps"):
        lw.fit(a_file(tmp_path / "uneven.npz"), out=tmp_path / "run", method="la", set={"lr": 0.1}, **QUICK)
    assert not (tmp_path / "run").exists()


def test_fit__few_rows_of_two_classes(tmp_path: Path) -> None:
    """Nothing can be left out of one image a class: the usual penalty, and no score."""
    data = a_file(tmp_path / "tiny.npz", counts=(1, 1, 1))
    done = lw.fit(data, out=tmp_path / "run", method="la", test_frac=0.0, **QUICK)
    begun = next(row for row in done.records if row["kind"] == "begin")
    assert begun["penalty"] == 30
    assert "left_out_loss" not in begun


def test_report__says_what_was_tried_and_that_there_were_no_epochs(done: Any) -> None:
    page = (done.path / "report.html").read_text(encoding="utf-8")
    assert "Right on labelled images that were left out, as a mean over the classes: la " in page
    answer = done.summary["answer"]
    before = "" if answer["name"] == "cross_validated" else "cross_validated, answer of "
    assert f"<dd>{before}{answer['title']}</dd>" in page
    assert "1 epoch" not in page
