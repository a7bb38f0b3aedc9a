"""Runs on answers and candidate sets: whose word decides a label, what is written and told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import labelwright as lw
from labelwright import cli
from labelwright.errors import ConfigError
from labelwright.reporting.verdict import verdict_of
from labelwright.run_folder import Run

NAMES = ("ant", "bee", "cow")
N = 240


def pool(seed: int = 0, shown: float = 1.2) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    draw = np.random.default_rng(seed)
    truth = draw.permutation(np.arange(N) % 3)
    return (shown * np.eye(8)[truth] + 0.7 * draw.standard_normal((N, 8))).astype(np.float32), truth


def answers(truth: np.ndarray[Any, Any], reliability: tuple[float, ...], seed: int = 1) -> dict[str, list[str | None]]:
    draw, found = np.random.default_rng(seed), {}
    for name, r in zip(("ann", "bob", "cyd"), reliability, strict=True):
        said = np.where(draw.random(N) < r, truth, (truth + 1) % 3)
        found[name] = [None if silent else NAMES[c] for c, silent in zip(said, draw.random(N) < 0.1, strict=True)]
    return found


def write(folder: Path, columns: dict[str, Any], x: np.ndarray[Any, Any], truth: np.ndarray[Any, Any]) -> Path:
    path = folder / "t.parquet"
    ids = [f"image {i}" for i in range(N)]
    pq.write_table(pa.table({"id": ids, "embedding": list(x), "truth": [NAMES[c] for c in truth], **columns}), path)
    return path


def right(run: Run, truth: np.ndarray[Any, Any]) -> float:
    assert run.labels is not None
    return float(np.mean([label == NAMES[c] for label, c in zip(run.labels["label"].to_pylist(), truth, strict=True)]))


def test_crowd__by_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, truth = pool()
    said = answers(truth, (0.9, 0.6, 0.3))
    table, run = write(tmp_path, said, x, truth), tmp_path / "run"
    flags = ["--annotator-columns", "ann,bob,cyd"]
    assert cli.run(["inspect", str(table), *flags]) == 0
    told = capsys.readouterr().out
    assert "fit would run: crowd" in told
    assert "annotator cyd: " in told
    assert cli.run(["fit", str(table), *flags, "--out", str(run)]) == 0
    told = capsys.readouterr().out
    assert "crowd on 240 images" in told
    assert "labels of training images: what the model and the candidates say together" in told
    summary = Run(run).summary
    each = summary["crowd"]["annotators"]
    assert [one["name"] for one in each] == ["ann", "bob", "cyd"]
    truly = [np.mean([v == NAMES[c] for v, c in zip(said[n], truth, strict=True) if v]) for n in said]
    assert np.allclose([one["reliability"] for one in each], truly, atol=0.12)
    assert summary["own_sets"]["rule"] == "auto"
    named = [[v for v in row if v] for row in zip(*said.values(), strict=True)]
    inside = np.mean([NAMES[c] in row for row, c in zip(named, truth, strict=True) if row])
    assert abs(summary["own_sets"]["truth_inside"] - inside) < 0.06
    assert right(Run(run), truth) > 0.9
    beside = summary["reference"]
    within = {name: each["within_sets"] for name, each in beside.items()}
    assert within["majority"] <= inside + 0.01  # the class is no candidate of more
    assert within["majority"] > beside["majority"]["unlabelled"] - 0.05
    assert within["majority"] < right(Run(run), truth)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Annotator ann" in page
    assert "Outside their candidates" in page
    assert "Unlabelled images within their candidates" in page
    rows = Run(run).labels
    assert rows is not None
    for row, votes in zip(rows.to_pylist(), named, strict=True):
        assert row["candidates"] == ("|".join(sorted(set(votes))) if votes else None)
        assert (row["outside_candidates"] is None) == (not votes)


@pytest.mark.parametrize("rule", ["no", "yes", "auto"])
def test_rule__who_decides(tmp_path: Path, rule: str) -> None:
    x, truth = pool(2, shown=2.5)
    drawn = np.random.default_rng(7).random((N, 3)) < np.where(np.eye(3)[truth] > 0, 0.75, 0.3)
    drawn[~drawn.any(1), 0] = True
    sets = [[NAMES[c] for c in np.flatnonzero(row)] for row in drawn]
    held = float(drawn[np.arange(N), truth][~drawn.all(1)].mean())
    table = write(tmp_path, {"candidates": sets}, x, truth)
    run = lw.fit(table, out=tmp_path / "run", method="crowd", outside_candidates=rule, seed=0)
    assert run.labels is not None
    rows = run.labels.to_pylist()
    rows = [row for row in rows if len(row["candidates"].split("|")) < 3]  # the others have said nothing
    inside = np.array([row["label"] in row["candidates"].split("|") for row in rows])
    own = np.array([not row["outside_candidates"] for row in rows])
    facts = run.summary["own_sets"]
    assert facts["rule"] == rule
    assert facts["outside_frac"] == pytest.approx(1 - own.mean(), abs=1e-3)
    assert facts["label_outside_frac"] == pytest.approx(1 - inside.mean(), abs=1e-3)
    if rule == "no":
        assert inside.all()
        assert not own.all()
    elif rule == "yes":
        assert (inside == own).all()
    else:
        assert 0.7 < facts["truth_inside"] <= 1  # of three classes, sets that miss and a model that errs look alike
        assert right(run, truth) > held


def test_verified_labels__are_judged_by_the_model_alone(tmp_path: Path) -> None:
    x, truth = pool(3)
    labels = [NAMES[c] if i < 60 else None for i, c in enumerate(truth)]
    labels[0] = NAMES[(truth[0] + 1) % 3]  # wrong: its probability must show it
    table = write(tmp_path, {**answers(truth, (0.8, 0.7, 0.6)), "label": labels}, x, truth)
    run = lw.fit(table, out=tmp_path / "run", annotator_columns="ann,bob,cyd", test_frac=0.0)
    assert run.labels is not None
    rows = {row["id"]: row for row in run.labels.to_pylist()}
    assert rows["image 0"]["source"] == "given"
    assert rows["image 0"]["probability"] < 0.9
    assert all(rows[f"image {i}"]["label"] == labels[i] for i in range(60))


def test_trust__the_interval_reaches_lower_where_answers_leave_names_in_doubt(tmp_path: Path) -> None:
    x, truth = pool(shown=2.5)
    lowest = []
    for name, reliability in (("good", (0.9, 0.8, 0.8)), ("weak", (0.65, 0.5, 0.45))):
        folder = tmp_path / name
        folder.mkdir()
        columns = answers(truth, reliability)
        run = lw.fit(write(folder, columns, x, truth), out=folder / "run", annotator_columns=list(columns))
        trust = run.summary["trust"]
        low, high = trust["interval"]
        assert trust["source"] == "candidates"
        assert low == pytest.approx(max(0.0, trust["estimated"] - 0.35 - trust["moved"]), abs=1e-4)
        assert low <= right(run, truth) <= high
        lowest.append(trust["estimated"] - low)
    assert lowest[0] < 0.4
    assert lowest[1] > lowest[0] + 0.2


def test_fit__poor_annotators_of_many_classes_with_few_images_each__an_answer_does_not_confirm_itself(
    tmp_path: Path,
) -> None:
    n_classes, per_class = 20, 30
    draw = np.random.default_rng(0)
    truth = draw.permutation(np.arange(n_classes * per_class) % n_classes)
    x = 0.4 * draw.standard_normal((n_classes, 64))[truth] + draw.standard_normal((len(truth), 64))
    names = [f"kind {c}" for c in range(n_classes)]
    columns = {}
    for name, reliability in (("ann", 0.6), ("bob", 0.5), ("cyd", 0.4)):
        said = np.where(
            draw.random(len(truth)) < reliability, truth, (truth + draw.integers(1, 4, len(truth))) % n_classes
        )
        columns[name] = [names[c] for c in said]
    ids = [str(i) for i in range(len(truth))]
    table = pa.table({"id": ids, "embedding": list(x.astype(np.float32)), **columns})
    pq.write_table(table, tmp_path / "t.parquet")
    run = lw.fit(tmp_path / "t.parquet", out=tmp_path / "run", classes=names, annotator_columns=list(columns))
    assert run.labels is not None
    found = np.array(run.labels["label"].to_pylist()) == np.array(names)[truth]
    assert found.mean() > 0.95
    assert abs(run.summary["trust"]["estimated"] - found.mean()) < 0.02


def test_annotator_columns__named_twice_or_not_at_all_are_refused(tmp_path: Path) -> None:
    x, truth = pool()
    table = write(tmp_path, answers(truth, (0.9, 0.6, 0.3)), x, truth)
    for columns in ("ann,ann", " , "):
        with pytest.raises(ConfigError, match="is not possible"):
            lw.fit(table, out=tmp_path / "run", annotator_columns=columns)
    assert not (tmp_path / "run").exists()


def test_probabilities_as_weights__are_a_models_and_go_to_coreg(tmp_path: Path) -> None:
    x, truth = pool(4)
    draw = np.random.default_rng(5)
    weights = draw.dirichlet(np.ones(3), N)
    table = write(tmp_path, {"candidates": [list(NAMES)] * N, "weights": weights.tolist()}, x, truth)
    assert lw.inspect(table).runs == "coreg_frozen"
    shares = write(tmp_path, {"candidates": [list(NAMES[:2])] * N, "weights": [[2.0, 1.0]] * N}, x, truth)
    assert lw.inspect(shares, classes=list(NAMES)).runs == "crowd"


@pytest.mark.parametrize("column", ["candidates", "answers"])
def test_fit__guesses_of_a_person(tmp_path: Path, column: str) -> None:
    """Slips do not show in the image: labels are right where guesses are wrong, and trust says how often."""
    x, truth = pool(shown=2.5)
    slips = np.random.default_rng(3).random(N) < 0.3
    guesses = [NAMES[(c + slip) % 3] for c, slip in zip(truth, slips, strict=True)]
    how = {"annotator_columns": "ann"} if column == "answers" else {"classes": NAMES}
    named = {"ann": guesses} if column == "answers" else {"candidates": [[guess] for guess in guesses]}
    run = lw.fit(write(tmp_path, named, x, truth), out=tmp_path / "run", **how)
    assert right(run, truth) > 0.95
    trust = run.summary["trust"]
    assert trust["repeated"] < 0.8
    assert abs(trust["estimated"] - right(run, truth)) < 0.05


def test_fit__guesses_of_a_model(tmp_path: Path) -> None:
    """It sees every cow as a bee: the classifier says the same, and cannot be sure of it."""
    x, truth = pool(shown=2.5)
    table = {"id": [str(i) for i in range(N)], "embedding": list(x), "candidates": [[NAMES[min(c, 1)]] for c in truth]}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    run = lw.fit(tmp_path / "t.parquet", out=tmp_path / "run", classes=NAMES)
    trust = run.summary["trust"]
    assert trust["repeated"] > 0.95
    assert trust["estimated"] < 0.8
    assert trust["interval"][0] < right(run, truth) < trust["interval"][1]
    assert "repeats nearly every guess" in verdict_of(run)["sentence"]
    assert "repeats nearly every guess" in (run.path / "report.html").read_text(encoding="utf-8")
