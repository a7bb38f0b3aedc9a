"""estimators.py: what scikit-learn asks of a classifier, unlabelled rows in all forms, and the recipes' answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_wine
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import labelwright as lw
from labelwright.errors import ConfigError
from labelwright.estimators import BeliefClassifier, LogitAdjustedClassifier, NovelClassifier, PartialLabelClassifier

# With a penalty nothing is cross-validated: the checks fit hundreds of times.
ESTIMATORS = [LogitAdjustedClassifier(penalty=10.0), BeliefClassifier(), PartialLabelClassifier(), NovelClassifier()]


def blobs(n: int = 60, n_classes: int = 3, *, seed: int = 0) -> tuple[Any, Any]:
    draws = np.random.default_rng(seed)
    truth = np.arange(n) % n_classes
    return 3 * np.eye(n_classes, 8)[truth] + 0.6 * draws.normal(size=(n, 8)), truth


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of the checks themselves
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: type(e).__name__)
def test_check_estimator(estimator: Any) -> None:
    results = check_estimator(estimator, on_skip=None, on_fail=None)
    assert len(results) > 40
    assert [r["check_name"] for r in results if r["status"] not in ("passed", "skipped")] == []


def test_unlabelled_rows__three_ways_to_say_so() -> None:
    X, truth = blobs()
    labels = np.full(60, -1)
    labels[:6] = truth[:6]
    marked = BeliefClassifier().fit(X, labels).predict_proba(X)
    apart = BeliefClassifier().fit(X[:6], truth[:6], X_unlabelled=X[6:]).predict_proba(X)
    names = np.array(["ant", "bee", "cow"], dtype=object)
    words = np.where(labels >= 0, names[labels], None)
    named = BeliefClassifier().fit(X, words)
    assert np.array_equal(marked, apart)
    assert np.array_equal(marked, named.predict_proba(X))
    assert named.classes_.tolist() == ["ant", "bee", "cow"]
    assert (named.predict(X) == names[truth]).mean() > 0.9
    # and the unlabelled rows are used
    assert not np.allclose(marked, BeliefClassifier().fit(X[:6], truth[:6]).predict_proba(X), atol=1e-3)
    # -1 and one other are two classes, as scikit-learn has them
    two = np.where(truth == 0, -1, 1)
    assert BeliefClassifier().fit(X, two).classes_.tolist() == [-1, 1]
    with pytest.raises(ValueError, match="no row has a label"):
        BeliefClassifier().fit(X, np.full(60, ""))


@pytest.mark.parametrize(
    ("name", "model", "unit"),
    [("beliefs", BeliefClassifier(), 1), ("beliefs", BeliefClassifier(), 1000), ("la", LogitAdjustedClassifier(), 1)],
)
def test_answers__are_those_of_fit(name: str, model: Any, unit: int, tmp_path: Path) -> None:
    X, truth = blobs(90)
    X[:, 7] *= unit
    X = X.astype(np.float32)
    labels = truth.copy()
    labels[30:60] = -1 if name == "beliefs" else labels[30:60]
    words = np.where(labels >= 0, np.array(["ant", "bee", "cow"])[labels], "")
    np.savez(tmp_path / "train.npz", embeddings=X[:60], labels=words[:60])
    np.savez(tmp_path / "new.npz", embeddings=X[60:])
    lw.fit(tmp_path / "train.npz", out=tmp_path / "run", method=name, test_frac=0, device="cpu", answer="trained")
    rows = lw.label(tmp_path / "run", tmp_path / "new.npz", device="cpu", precision="fp32")
    probs = model.fit(X[:60], words[:60].astype(object)).predict_proba(X[60:])
    assert model.classes_[probs.argmax(1)].tolist() == rows["label"].to_pylist()
    assert probs.max(1) == pytest.approx(rows["softmax"].to_pylist(), abs=1e-3)


@pytest.mark.parametrize("model", [LogitAdjustedClassifier(), *ESTIMATORS[1:]], ids=lambda e: type(e).__name__)
def test_columns__in_units_of_their_own_are_divided(model: Any) -> None:
    X, y = load_wine(return_X_y=True)
    kept = np.arange(len(X)) % 9 == 0
    labels = y if isinstance(model, LogitAdjustedClassifier) else np.where(kept, y, -1)
    wanted = model.fit(X / X.std(0), labels).predict_proba(X / X.std(0))
    assert model.fit(X, labels).predict_proba(X) == pytest.approx(wanted, abs=0.02)  # rounding, passed on by clusters


def test_logit_adjusted__losses_and_pipelines() -> None:
    X, truth = blobs(80)
    kept = np.flatnonzero((truth > 0) | (np.arange(80) < 9))  # few of class 0
    adjusted = LogitAdjustedClassifier(penalty=30.0).fit(X[kept], truth[kept]).predict_proba(X)[:, 0].mean()
    plain = LogitAdjustedClassifier(loss="ce", penalty=30.0).fit(X[kept], truth[kept]).predict_proba(X)[:, 0].mean()
    assert adjusted > plain + 0.02  # the rare class gets more
    model = make_pipeline(StandardScaler(), LogitAdjustedClassifier(tau=0.5))
    assert cross_val_score(model, X, truth, cv=3).mean() > 0.9


def test_partial_labels__weights_and_wrong_ones() -> None:
    X, truth = blobs(90)
    draws = np.random.default_rng(1)
    weights = np.eye(3)[truth] + 0.5 * np.eye(3)[draws.integers(0, 3, 90)]
    weights[:5] = 0  # nothing known
    model = PartialLabelClassifier().fit(X, weights)
    assert (model.predict(X) == truth).mean() > 0.95
    with pytest.raises(ValueError, match="0 or more"):
        PartialLabelClassifier().fit(X, -weights)


def test_novel__numbers_and_names_of_what_was_found() -> None:
    X, truth = blobs(160, 4)
    labels = np.where((truth < 2) & (np.arange(160) < 80), truth, -1)
    numbered = NovelClassifier(n_novel=2).fit(X, labels)
    assert numbered.classes_.tolist() == [0, 1, 2, 3]
    assert (numbered.predict(X)[truth < 2] == truth[truth < 2]).mean() > 0.9
    words = np.where(labels >= 0, np.array(["ant", "bee"], dtype=object)[labels], None)
    assert NovelClassifier(n_novel=2).fit(X, words).classes_.tolist() == ["ant", "bee", "novel-1", "novel-2"]
    estimated = NovelClassifier().fit(X, labels)
    assert 1 <= estimated.n_novel_ <= 4
    assert NovelClassifier().fit(X, truth).n_novel_ == 0


@pytest.mark.parametrize(
    "y", [[0, -1, -1, -1], [0.0, np.nan, np.nan, np.nan], pd.array([0, None, None, None], "Int64")]
)
def test_novel__one_labelled_class_and_rows_without_a_label(y: Any) -> None:
    X, truth = blobs(160, 4)
    rows = np.argsort(truth, kind="stable")
    model = NovelClassifier(n_novel=3).fit(X[rows], np.repeat(np.asarray(y), 40))
    assert model.classes_.tolist() == [0, 1, 2, 3]
    assert (model.predict(X[truth == 0]) == 0).mean() > 0.9


def test_novel__new_classes_have_labels_of_their_own() -> None:
    X, truth = blobs(160, 4)
    taken = np.where(truth < 2, np.array(["novel-1", "bee", "", ""])[truth], "")
    assert NovelClassifier(n_novel=2).fit(X, taken).classes_.tolist() == ["bee", "novel-1", "novel-2", "novel-3"]
    floats = NovelClassifier(n_novel=2).fit(X, np.where(truth < 2, truth, -1.0))
    assert floats.classes_.tolist() == [0.0, 1.0, 2.0, 3.0]
    largest = NovelClassifier(n_novel=2).fit(X, np.where(truth < 2, 126 + truth, -1).astype(np.int8))
    assert largest.classes_.tolist() == [126, 127, 128, 129]
    with pytest.raises(ConfigError, match="n_novel=-1 is not possible"):
        NovelClassifier(n_novel=-1).fit(X, truth)


def test_beliefs__the_scale_of_features_changes_nothing() -> None:
    X, truth = blobs(90, 3)
    y = np.where(np.arange(90) < 30, truth, -1)
    wanted = BeliefClassifier().fit(X, y).predict_proba(X)
    assert np.abs(BeliefClassifier().fit(1e-10 * X, y).predict_proba(1e-10 * X) - wanted).max() < 1e-3


def test_unlabelled_rows__nan_and_na_of_pandas() -> None:
    X = np.random.default_rng(0).normal(size=(12, 3))
    wanted = BeliefClassifier().fit(X, np.array([0, 1, -1, -1] * 3)).predict(X)
    for y in ([0, 1, np.nan, None] * 3, pd.Series([0, 1, None, None] * 3, dtype="Int64")):
        assert BeliefClassifier().fit(X, pd.Series(y)).predict(X).tolist() == wanted.tolist()
    for dtype in (None, "category", object):
        model = BeliefClassifier().fit(X, pd.Series(["a", "b", None, np.nan] * 3, dtype=dtype))
        assert (model.predict(X) == np.array(["a", "b"])[wanted]).all()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (BeliefClassifier(prior="evn"), "prior must be estimated or even"),  # type: ignore[arg-type]
        (LogitAdjustedClassifier(loss="focl"), "loss must be la or ce or"),  # type: ignore[arg-type]
        (LogitAdjustedClassifier(tau="1"), "tau must be a number"),  # type: ignore[arg-type]
        (NovelClassifier(n_novel=2.5), "n_novel must be a whole number or auto"),  # type: ignore[arg-type]
    ],
)
def test_settings__of_another_type_or_none_of_the_choices_are_named(model: Any, message: str) -> None:
    with pytest.raises(ConfigError, match="is not possible") as raised:
        model.fit(np.eye(4), [0, 0, 1, 1])
    assert message in raised.value.fix
