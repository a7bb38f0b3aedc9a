"""The offline first run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

import labelwright as lw
from labelwright import cli, demo
from labelwright.assets import DIGITS_DESCRIPTIONS


def test_digits__unlabelled_and_no_image_on_both_sides() -> None:
    pool, test = demo.digits()
    assert (pool.labels == -1).all()
    assert bool((pool.task().labels == -1).all())
    rows = [[int(name) for name in table.ids.to_pylist()] for table in (pool, test)]
    assert sorted(rows[0] + rows[1]) == list(range(1797))
    digits = load_digits()
    assert pool.truth is not None
    assert pool.truth.tolist() == digits.target[rows[0]].tolist()
    assert test.labels.tolist() == digits.target[rows[1]].tolist()
    shown = np.asarray(test.image(0))
    assert shown.shape == (8, 8, 3)
    assert np.array_equal(shown[..., 0], (digits.images[rows[1][0]] * 255 / 16).astype(np.uint8))  # light on dark


def test_descriptions__are_of_the_names_and_some_are_no_use() -> None:
    texts = json.loads(DIGITS_DESCRIPTIONS.read_text(encoding="utf-8"))
    assert tuple(texts) == demo.NAMES
    assert "a digital clock" in texts["seven"]


def test_run__twice_in_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LABELWRIGHT_CACHE", str(tmp_path / "cache"))
    threads = torch.get_num_threads()
    for number, settings in (("1", {"epochs": 2}), ("2", {"epochs": 1, "steps_per_epoch": 1})):
        monkeypatch.setattr(demo, "SETTINGS", settings)
        assert cli.run(["demo", "--out", str(tmp_path / "demo-run")]) == 0
        told = capsys.readouterr().out
        folder = tmp_path / "demo-run" / number
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        assert summary["situation"] == "no_labels"
        assert summary["n_labelled"] == 0
        before, after = summary["zero_shot"]["accuracy"], summary["test"]["accuracy"]
        assert 0.6 < before < 0.72  # its names for zero and seven mean nothing
        assert after > 0.85  # 0.93 with all epochs; without the descriptions no more than before
        assert f"zero-shot -> adapted accuracy: {before:.4f} -> {after:.4f} on 539 test images\n" in told
        assert "'a round ring with nothing inside'" in told.split("descriptions refused")[0]
        refused = told.split("descriptions refused")[1]
        assert "'a digital clock'" in refused
        assert "a round ring" not in refused
        assert f"report: {folder / 'report.html'}\n" in told
        page = (folder / "report.html").read_text(encoding="utf-8")
        assert "labelwright.fit(data, config=" in page  # no command gives what was in memory
        assert "labelwright fit" not in page
    assert torch.get_num_threads() == threads

    # Pixels know of wrong digits what the network does not, in the run and in its saved model.
    pool, test = demo.digits()
    again = lw.label(folder.parent / "1", test, device="cpu")
    rows = pq.read_table(folder.parent / "1" / "labels.parquet")
    assert pool.truth is not None
    for found, truth in ((rows, pool.truth), (again, test.labels)):
        right = np.array(found["label"].to_pylist()) == np.array(demo.NAMES)[truth]
        assert roc_auc_score(right, found["trust"].to_numpy()) > 0.93
        assert roc_auc_score(right, found["softmax"].to_numpy()) < 0.9


def test_run__into_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken").touch()
    assert cli.run(["demo", "--out", str(tmp_path / "taken")]) == 2
    assert "taken is a file\n  fix: give --out a folder" in capsys.readouterr().err
