"""Labels of held-out images, and the saved model fitted on them as well."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import labelwright as lw
from labelwright.methods import frozen_heads
from labelwright.pipeline.refit import JoinedViews, joined_task
from labelwright.train.cross_validation import cross_validate
from labelwright.types import Candidates, Task
from tiny import CPU, TinyFeats


def pool(path: Path, n: int = 90) -> str:
    draw = np.random.default_rng(0)
    truth = np.arange(n) % 3
    feats = np.eye(6)[truth] + 0.4 * draw.standard_normal((n, 6))
    names = np.array(["cat", "dog", "owl"])
    ids = np.array([f"image-{i:03d}" for i in range(n)])
    np.savez(path, embeddings=feats.astype(np.float32), labels=names[truth], ids=ids, class_names=names)
    return str(path)


def test_fit__every_image_has_a_row_in_the_order_of_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: dict[int, set[float]] = {}  # number of rows -> penalties

    def watched(*args: Any, **settings: Any) -> Any:
        tried.setdefault(len(settings["rows"]), set()).update(settings["penalties"])
        return cross_validate(*args, **settings)

    monkeypatch.setattr(frozen_heads, "cross_validate", watched)
    run = lw.fit(pool(tmp_path / "pool.npz"), out=tmp_path / "run", method="ce", device="cpu")
    assert len(tried[72]) > 2  # searched where it is scored,
    assert len(tried[90]) == 1  # and kept where all images are learned from
    rows = pq.read_table(run.path / "labels.parquet")
    assert rows["id"].to_pylist() == [f"image-{i:03d}" for i in range(90)]
    assert set(rows["source"].to_pylist()) == {"given"}
    assert run.data["splits"] == {"train": 72, "test": 18}
    # What is said of a held-out image comes from the model that has not seen it: that of a run without refitting.
    plain = lw.fit(pool(tmp_path / "pool.npz"), out=tmp_path / "plain", method="ce", device="cpu", refit=False)
    assert pq.read_table(plain.path / "labels.parquet").equals(rows)
    assert plain.summary["test"] == run.summary["test"]


def test_fit__the_saved_model_has_learned_from_the_held_out_images(tmp_path: Path) -> None:
    data = pool(tmp_path / "pool.npz")
    settings: dict[str, Any] = {"device": "cpu", "set": {"penalty": 10.0}}
    refitted = lw.fit(data, out=tmp_path / "refitted", **settings)
    scored = lw.fit(data, out=tmp_path / "scored", refit=False, **settings)
    whole = lw.fit(data, out=tmp_path / "whole", test_frac=0, **settings)
    assert (refitted.summary["n_fitted"], scored.summary["n_fitted"], whole.summary["n_fitted"]) == (90, 72, 90)
    said = {run.path.name: np.array(lw.label(run.path, data)["softmax"]) for run in (refitted, scored, whole)}
    assert np.allclose(said["refitted"], said["whole"], atol=2e-3)
    assert not np.allclose(said["scored"], said["whole"], atol=2e-2)
    assert "fitted anew with the 18 embeddings" in (refitted.path / "model" / "README.md").read_text()
    assert json.loads((refitted.path / "model" / "config.json").read_text())["n_fitted"] == 90


def test_fit__images_without_a_label_are_labelled_by_what_was_fitted_on_all(tmp_path: Path) -> None:
    with np.load(pool(tmp_path / "whole.npz")) as file:
        content = dict(file)
    content["labels"] = np.where(np.arange(90) < 24, content["labels"], "")
    np.savez(tmp_path / "pool.npz", **content)
    data, settings = str(tmp_path / "pool.npz"), {"method": "beliefs", "device": "cpu", "set": {"n_dims": 2}}
    runs = {
        name: lw.fit(data, out=tmp_path / name, **{**settings, **more})
        for name, more in {"run": {}, "scored": {"refit": False}, "promised": {"error": 0.2}}.items()
    }
    rows = {name: pq.read_table(run.path / "labels.parquet").to_pylist() for name, run in runs.items()}
    of_model = lw.label(runs["run"].path, data, device="cpu").to_pylist()
    assert [row["source"] for row in rows["run"]].count("given") == 24
    for mine, new, scored, promised in zip(rows["run"], of_model, rows["scored"], rows["promised"], strict=True):
        if mine["source"] == "predicted":
            assert (mine["label"], mine["softmax"]) == (new["label"], pytest.approx(new["softmax"], abs=1e-5))
        else:  # by a model that has not seen it, or as it was learned from
            assert mine["softmax"] == scored["softmax"]
        assert promised["softmax"] == scored["softmax"]  # a promise rests on one model's answers to both kinds
    softmax = {name: [row["softmax"] for row in of if row["source"] == "predicted"] for name, of in rows.items()}
    assert not np.allclose(softmax["run"], softmax["scored"], atol=1e-3)
    assert runs["run"].summary["test"] == runs["scored"].summary["test"]


def test_fit__given_test_images_are_never_learned_from(tmp_path: Path) -> None:
    data = pool(tmp_path / "pool.npz")
    run = lw.fit(data, test=pool(tmp_path / "test.npz", 30), out=tmp_path / "run", device="cpu")
    assert run.summary["n_fitted"] == 90
    assert pq.read_table(run.path / "labels.parquet").num_rows == 90
    assert lw.evaluate(run.path, tmp_path / "test.npz")["accuracy"] == pytest.approx(run.summary["test"]["accuracy"])


def test_joined_views__rows_of_both_in_the_order_asked_for() -> None:
    first, second = TinyFeats([0, 1, 2]), TinyFeats([1, 1])
    both = JoinedViews(first, second)
    rows = torch.tensor([4, 0, 3, 2])
    found = both.batch(rows, "clean", seed=0, device=CPU)
    assert both.n_rows == 5
    whole = torch.cat([each.batch(torch.arange(each.n_rows), "clean", seed=0, device=CPU) for each in (first, second)])
    assert torch.equal(found, whole[rows])


def test_joined_task__sets_without_weights_share_evenly() -> None:
    weighted = Candidates(torch.tensor([0, 2]), torch.tensor([0, 1], dtype=torch.int32), torch.tensor([0.9, 0.1]))
    plain = Candidates(torch.tensor([0, 0, 2]), torch.tensor([1, 2], dtype=torch.int32))
    names = ("a", "b", "c")
    first = Task(torch.tensor([-1]), names, weighted, groups=torch.tensor([4]), clusters=torch.tensor([7]))
    both = joined_task(first, Task(torch.tensor([2, -1]), names, plain))
    assert both.labels.tolist() == [-1, 2, -1]
    assert both.candidates is not None
    assert both.candidates.shares(torch.arange(3), 3).tolist() == [
        [pytest.approx(0.9), pytest.approx(0.1), 0.0],
        [0.0, 0.0, 0.0],
        [0.0, 0.5, 0.5],
    ]
    assert both.groups is not None
    assert both.groups.tolist() == [4, 5, 6]
    assert both.clusters is not None
    assert both.clusters.tolist() == [7, -1, -1]


def test_joined_task__images_without_answers_have_none() -> None:
    first = Task(torch.tensor([-1]), ("a", "b"), votes=torch.tensor([[0, 1]]))
    both = joined_task(first, Task(torch.tensor([1]), ("a", "b")))
    assert both.votes is not None
    assert both.votes.tolist() == [[0, 1], [-1, -1]]
