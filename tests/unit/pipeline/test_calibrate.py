"""What a calibration of a run is worth."""

from __future__ import annotations

import numpy as np

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


def test_fit__labels_of_a_class_that_is_rare_among_the_images_are_not_overrated(tmp_path):
    """Twenty labels of each of two classes; of the other images one in twenty is of the second."""
    g = np.random.default_rng(0)
    truth = np.repeat([0, 1, 0, 1], [20, 20, 1140, 60])
    feats = (g.normal(size=(1240, 8)) + (truth[:, None] - 0.5)).astype(np.float32)
    labels = np.where(np.arange(1240) < 40, np.array(["fine", "flaw"])[truth], "")
    run = lw.fit({"embeddings": feats, "labels": labels}, out=tmp_path, test_frac=0, device="cpu", evaluations=0)
    assert run.labels is not None
    rows = run.labels.slice(40).to_pydict()
    found, trust = np.array(rows["label"]), np.array(rows["trust"])
    right = found == np.array(["fine", "flaw"])[truth[40:]]
    flaws = found == "flaw"
    assert right[flaws].mean() < 0.6  # however well the two are told apart
    assert abs(trust[flaws].mean() - right[flaws].mean()) < 0.2
    assert abs(trust[~flaws].mean() - right[~flaws].mean()) < 0.05
