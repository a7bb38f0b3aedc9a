"""What a calibration of a run is worth."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import labelwright as lw


def test_fit__images_of_one_group_are_right_and_wrong_together(tmp_path):
    """Six copies of an image say as much of new images as one."""
    g = np.random.default_rng(0)
    truth = np.repeat(np.arange(3), 24)
    centres = 0.8 * g.normal(size=(3, 8))
    feats = np.repeat(centres[truth] + g.normal(size=(72, 8)), 6, axis=0) + 0.01 * g.normal(size=(432, 8))
    truth, group = np.repeat(truth, 6), np.repeat(np.arange(72), 6)
    labels = np.where(group % 3 > 0, np.array(["cat", "dog", "owl"])[truth], "")
    counted = []
    for name, groups in (("alone", {}), ("grouped", {"groups": group})):
        data = {"embeddings": feats.astype(np.float32), "labels": labels, **groups}
        run = lw.fit(data, out=tmp_path / name, test_frac=0, device="cpu", evaluations=0)
        trust = run.summary["trust"]
        assert trust["source"] == "left-out labels"
        counted.append(trust["n"])
    n_alone, n_grouped = counted
    assert n_alone == 288
    assert 12 <= n_grouped <= 48  # groups, and fewer as there are but 24 others to speak for


def with_a_rare_class() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Twenty labels of each of two classes; of the 1,200 other images one in twenty is of the second. Data, classes."""
    g = np.random.default_rng(0)
    truth = np.repeat([0, 1, 0, 1], [20, 20, 1140, 60])
    feats = (g.normal(size=(1240, 8)) + (truth[:, None] - 0.5)).astype(np.float32)
    names = np.array(["fine", "flaw"])[truth]
    return {"embeddings": feats, "labels": np.where(np.arange(1240) < 40, names, "")}, names


def test_fit__labels_of_a_class_that_is_rare_among_the_images_are_not_overrated(tmp_path):
    data, names = with_a_rare_class()
    run = lw.fit(data, out=tmp_path, test_frac=0, device="cpu", evaluations=0)
    assert run.labels is not None
    rows = run.labels.slice(40).to_pydict()
    found, trust = np.array(rows["label"]), np.array(rows["trust"])
    right = found == names[40:]
    flaws = found == "flaw"
    assert right[flaws].mean() < 0.6  # precision: the common class has nineteen times as many images to mistake
    assert abs(trust[flaws].mean() - right[flaws].mean()) < 0.2
    assert abs(trust[~flaws].mean() - right[~flaws].mean()) < 0.05


def test_label__verified_images_are_taken_to_be_as_rare_as_in_the_run(tmp_path):
    """A run whose labels were verified and one that has its labels verified later accept the same."""
    data, names = with_a_rare_class()
    unlabelled = {"embeddings": data["embeddings"][40:]}
    settings = {"test_frac": 0, "device": "cpu", "evaluations": 0}
    rows = [f"{i},{names[i]}" for i in range(40, 160)]
    (tmp_path / "verified.csv").write_text("\n".join(["id,verified", *rows]), encoding="utf-8")
    (tmp_path / "later.csv").write_text("\n".join(["id,verified", *(f"{i},{names[i + 40]}" for i in range(120))]))
    before = lw.fit(data, out=tmp_path / "before", **settings)
    after = lw.fit(data, out=tmp_path / "after", verified=tmp_path / "verified.csv", error=0.1, **settings)
    assert after.labels is not None
    shown = after.labels.slice(40).to_pydict()
    n_accepted = sum(word == "accept" for word in shown["decision"])
    assert n_accepted > 600
    by_thresholds = lw.label(after.path, unlabelled, error=0.1, device="cpu").to_pydict()
    n_above = sum(word == "accept" for word in by_thresholds["decision"])
    assert n_accepted - 120 <= n_above <= n_accepted  # the verified ones that are right are accepted wherever they lie
    alike = [a == pytest.approx(b, abs=1e-5) for a, b in zip(by_thresholds["trust"], shown["trust"], strict=True)]
    assert sum(alike) >= 1080  # the others were verified
    later = lw.label(before.path, unlabelled, verified=tmp_path / "later.csv", error=0.1, device="cpu")
    assert abs(sum(word == "accept" for word in later["decision"].to_pylist()) - n_accepted) < 0.05 * n_accepted


def test_label__trust_of_answers_is_that_of_new_groups(tmp_path):
    """Images of a group share an offset, by which a head that saw others of the group knows them."""
    g = np.random.default_rng(0)
    centres = 0.5 * g.normal(size=(4, 60))
    group = np.repeat(np.arange(240), 8)
    truth = g.integers(0, 4, 240)[group]
    feats = centres[truth] + g.normal(size=(240, 60))[group] + 0.2 * g.normal(size=(1920, 60))
    names = np.array(["ant", "bee", "cat", "dog"])
    known = group < 120
    answers = {
        name: np.where(g.random(1920) < 0.75, names[truth], names[g.integers(0, 4, 1920)])[known].tolist()
        for name in ("ann", "bob", "cyd")
    }
    columns = {"embedding": list(feats[known].astype(np.float32)), "group": group[known].tolist(), **answers}
    pq.write_table(pa.table(columns), tmp_path / "seen.parquet")
    settings = {"annotator_columns": "ann,bob,cyd", "test_frac": 0, "device": "cpu", "evaluations": 0}
    run = lw.fit(tmp_path / "seen.parquet", out=tmp_path / "run", **settings)
    new = lw.label(run.path, {"embeddings": feats[~known].astype(np.float32)}, device="cpu").to_pydict()
    right = (np.array(new["label"]) == names[truth[~known]]).mean()
    assert right > 0.9
    assert abs(np.mean(new["trust"]) - right) < 0.04
