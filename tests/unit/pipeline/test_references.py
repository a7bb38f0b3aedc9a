"""The obvious answers beside a run's own, and which one is kept."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import labelwright as lw
from labelwright.errors import ConfigError
from labelwright.methods.frozen_heads import FrozenRecipe
from labelwright.pipeline import references
from labelwright.pipeline.report import content_of
from labelwright.train import cross_validation
from labelwright.types import Task

NAMES = np.array(["cat", "dog", "owl"])


def blobs(path: Path, per_class: int = 30, *, n_labelled: int | None = None, spread: float = 0.6, seed: int = 0) -> str:
    """Three round clusters in 8 numbers; labels of the first images of each class, or of all."""
    draw = np.random.default_rng(seed)
    truth = np.tile(np.arange(3), per_class)
    feats = np.eye(8)[truth] + spread * draw.standard_normal((len(truth), 8))
    names = NAMES[truth]
    labels = names if n_labelled is None else np.where(np.arange(len(truth)) < 3 * n_labelled, names, "")
    np.savez(path, embeddings=feats.astype(np.float32), labels=labels, truth=names, class_names=NAMES)
    return str(path)


def summary_of(tmp_path: Path, data: str, **settings: Any) -> dict[str, Any]:
    run = lw.fit(data, out=tmp_path / "run", device="cpu", **settings)
    return run.summary


def test_fit__few_labels__what_applies_is_computed_and_judged(tmp_path: Path) -> None:
    data = blobs(tmp_path / "train.npz", n_labelled=5)
    summary = summary_of(tmp_path, data, test=blobs(tmp_path / "test.npz", seed=1))
    beside = summary["reference"]
    assert list(beside) == ["beliefs", "class_balanced", "nearest_mean"]
    for each in beside.values():
        assert 0.3 < each["left_out"] <= 1
        assert each["test"]["balanced_accuracy"] > 0.5
        assert each["unlabelled"] > 0.5
    assert summary["answer"]["criterion"] == "balanced accuracy on labelled images that were left out"
    assert summary["test"]["accuracy"] == beside[summary["answer"]["name"]]["test"]["accuracy"]


def test_fit__even_labels__balanced_regression_is_not_fitted_again(tmp_path: Path) -> None:
    beside = summary_of(tmp_path, blobs(tmp_path / "train.npz"), test_frac=0)["reference"]
    assert list(beside) == ["ce", "class_balanced", "nearest_mean", "kernel"]
    assert beside["class_balanced"]["seconds"] == 0
    alone = lw.fit(tmp_path / "train.npz", out=tmp_path / "alone", method="class_balanced", device="cpu", test_frac=0)
    assert alone.summary["reference"]["class_balanced"]["left_out"] == beside["class_balanced"]["left_out"]


def test_fit__heads_of_the_cross_validation_move_as_fits_that_did_not_see_a_fold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = blobs(tmp_path / "train.npz", 200, n_labelled=20, spread=1.2)
    found = list[dict[str, Any]]()
    for name in ("on the way", "anew"):
        monkeypatch.setattr(FrozenRecipe, "has_own_inputs", name == "anew")
        run = lw.fit(data, out=tmp_path / name, method="class_balanced", device="cpu", test_frac=0)
        found.append(run.summary)
    on_the_way, anew = found
    assert on_the_way["reference"]["class_balanced"]["left_out"] == pytest.approx(
        anew["reference"]["class_balanced"]["left_out"], abs=0.04
    )
    assert on_the_way["trust"]["moved"] == pytest.approx(anew["trust"]["moved"], abs=0.03)
    assert on_the_way["trust"]["moved"] > 0.05
    labels = [lw.Run(tmp_path / name).labels["label"].to_pylist() for name in ("on the way", "anew")]
    assert labels[0] == labels[1]  # the head of the answer is back in its place


def test_fit__a_better_reference_becomes_the_answer_everywhere(tmp_path: Path) -> None:
    """A method that is made to fail: it sees one of eight numbers."""
    data, test = blobs(tmp_path / "train.npz", 60, n_labelled=20), blobs(tmp_path / "test.npz", 40, seed=1)
    bad: dict[str, Any] = {"method": "beliefs", "set": {"n_dims": 1}}
    best = lw.fit(data, test=test, out=tmp_path / "best", device="cpu", **bad)
    kept = best.summary["answer"]
    assert kept["name"] in ("class_balanced", "nearest_mean", "kernel")
    assert "Beliefs on" in kept["why"]
    assert best.summary["test"]["accuracy"] == best.summary["reference"][kept["name"]]["test"]["accuracy"]
    assert lw.evaluate(best.path, test)["accuracy"] == pytest.approx(best.summary["test"]["accuracy"])
    assert json.loads((best.path / "model" / "config.json").read_text())["answer"] == kept["name"]
    rows = pq.read_table(best.path / "labels.parquet")
    right = np.array(rows["label"].to_pylist()) == NAMES[np.tile(np.arange(3), 60)]
    predicted = np.array(rows["source"].to_pylist()) == "predicted"
    assert right[predicted].mean() == pytest.approx(best.summary["reference"][kept["name"]]["unlabelled"])
    page = (best.path / "report.html").read_text()
    assert "The answer beside the obvious ones" in page
    assert f"Training added nothing: the answer is that of {kept['title']}" in page

    trained = lw.fit(data, test=test, out=tmp_path / "trained", device="cpu", answer="trained", **bad)
    assert trained.summary["answer"]["name"] == "beliefs"
    assert any("--answer best keeps it" in warning for warning in trained.summary["warnings"])
    assert trained.summary["test"]["accuracy"] < best.summary["test"]["accuracy"]


def without_owl(path: Path, per_class: int = 40, **more: Any) -> str:
    """The blobs with labels of cats and dogs alone."""
    with np.load(blobs(path, per_class, n_labelled=10, spread=0.3)) as file:
        content = dict(file) | more
    np.savez(path, **(content | {"labels": np.where(content["labels"] == "owl", "", content["labels"])}))
    return str(path)


def test_fit__a_class_without_labels__compared_on_the_others_and_chosen_by_them(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, without_owl(tmp_path / "train.npz"), method="la", test_frac=0)
    assert list(summary["reference"]) == ["la", "class_balanced", "nearest_mean"]
    assert all(each["left_out"] > 0.8 for each in summary["reference"].values())
    assert "of labelled images that were left out" in summary["answer"]["why"]


def test_fit__a_class_that_its_name_alone_tells_of__is_not_given_up_for_the_others(tmp_path: Path) -> None:
    """By their name cats are owls, and labels would choose a regression that never names an owl."""
    names = np.eye(8)[[3, 1, 2]] + 0.4 * np.eye(8)[[3, 1, 0]]
    data = without_owl(tmp_path / "train.npz", class_embeddings=names.astype(np.float32), logit_scale=10.0)
    run = lw.fit(data, out=tmp_path / "run", device="cpu", method="zero_shot", test_frac=0)
    beside, answer = run.summary["reference"], run.summary["answer"]
    assert beside["class_balanced"]["left_out"] > beside["zero_shot"]["left_out"] + 0.1
    assert (answer["name"], answer["best"]) == ("zero_shot", "zero_shot")
    assert answer["why"] == "Zero-shot stands: 1 class has no label, and the others may know nothing of it"
    words = dict(content_of(run)["verdict"]["facts"])["behind"]
    assert "(mean over the 2 classes that have labels)" in words
    assert words.endswith("Give images of owl labels, and the better one is taken.")


def test_fit__a_baseline_is_its_own_answer(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, blobs(tmp_path / "train.npz"), method="nearest_mean", test_frac=0)
    assert summary["answer"]["name"] == "nearest_mean"
    assert list(summary["reference"]) == ["nearest_mean", "class_balanced", "kernel"]


def test_fit__many_classes_that_are_hardly_told_apart__trust_stays_low(tmp_path: Path) -> None:
    """Fits that hide labels answer two images in five otherwise, and are as wrong on these as the whole fit."""
    draw, truth = np.random.default_rng(0), np.arange(800) % 40
    feats = 0.3 * draw.standard_normal((40, 64))[truth] + draw.standard_normal((800, 64))
    names = np.array([f"c{c:02}" for c in range(40)])[truth]
    is_given = np.arange(800) < 200
    np.savez(tmp_path / "t.npz", embeddings=feats.astype(np.float32), labels=np.where(is_given, names, ""))
    run = lw.fit(tmp_path / "t.npz", out=tmp_path / "run", device="cpu", test_frac=0, evaluations=0)
    trust, labels = run.summary["trust"], run.labels
    assert labels is not None
    right = float((np.array(labels["label"].to_pylist()) == names)[~is_given].mean())
    assert 0.15 < right < 0.25
    assert trust["moved"] > 0.3
    assert abs(trust["estimated"] - right) < 0.1
    assert trust["interval"][0] < right < trust["interval"][1]


@pytest.mark.parametrize("share", [0.0, 0.12])
def test_fit__trust_is_of_the_truth_where_given_labels_are_wrong(tmp_path: Path, share: float) -> None:
    draw, truth = np.random.default_rng(0), np.arange(1_000) % 5
    feats = 1.5 * np.eye(5, 16)[truth] + 0.6 * draw.standard_normal((1_000, 16))
    names, is_given = np.array([f"c{c}" for c in range(5)]), np.arange(1_000) < 500
    labels = np.where(draw.random(1_000) < share, (truth + draw.integers(1, 5, 1_000)) % 5, truth)
    np.savez(tmp_path / "t.npz", embeddings=feats.astype(np.float32), labels=np.where(is_given, names[labels], ""))
    run = lw.fit(tmp_path / "t.npz", out=tmp_path / "run", device="cpu", test_frac=0, evaluations=0)
    trust, rows = run.summary["trust"], run.labels
    assert rows is not None
    right = float((np.array(rows["label"].to_pylist()) == names[truth])[~is_given].mean())
    assert 0.85 < right < 0.97
    assert trust["wrong"] == pytest.approx(share, abs=0.05)
    assert trust["estimated"] == pytest.approx(right, abs=0.05)
    assert trust["interval"][0] < right < trust["interval"][1]
    chart = content_of(run)["reliability"]["charts"][0]
    assert ("of these labels are taken for wrong" in chart.finding) == (share > 0)


def test_fit__open_world__k_means_is_beside(tmp_path: Path) -> None:
    data = blobs(tmp_path / "train.npz", 40, spread=0.2)
    with np.load(data) as file:
        content = dict(file)
    is_seen = content["truth"] != "owl"
    labels = np.where(is_seen & (np.arange(len(is_seen)) % 2 == 0), content["truth"], "")
    np.savez(data, **(content | {"labels": labels, "class_names": NAMES[:2]}))
    summary = summary_of(tmp_path, data, novel=1, test_frac=0, epochs=2)
    assert list(summary["reference"]) == ["simgcd", "start", "ss_kmeans"]
    assert summary["reference"]["ss_kmeans"]["unlabelled"] > 0.9
    assert summary["answer"]["name"] == "simgcd"


def test_fit__open_world__a_training_that_loses_its_start_is_not_kept(tmp_path: Path) -> None:
    """What images of one class share is little beside what they do not: the beliefs see it, and cosines do not."""
    draw, n_classes = np.random.default_rng(0), 20
    truth = draw.integers(n_classes, size=1200)
    means = draw.standard_normal((n_classes, 128))
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    directions = draw.standard_normal((64, 128)) * np.linspace(0.6, 0.1, 64)[:, None] / np.sqrt(128)
    feats = means[truth] + draw.standard_normal((1200, 64)) @ directions
    feats += 0.8 * draw.standard_normal((1200, 128)) / np.sqrt(128)
    names = np.array([f"c{c:02d}" for c in range(n_classes)])
    labels = np.where((truth < 10) & (np.arange(1200) % 2 == 0), names[truth], "")
    data = tmp_path / "t.npz"
    np.savez(data, embeddings=feats.astype(np.float32), labels=labels, truth=names[truth], class_names=names[:10])
    summary = summary_of(tmp_path, str(data), novel=10, test_frac=0, evaluations=0)
    reference = summary["reference"]
    assert reference["simgcd"]["unlabelled"] < reference["start"]["unlabelled"] - 0.1
    assert summary["answer"]["name"] == "start"
    assert summary["pseudolabels"]["all"] == pytest.approx(reference["start"]["unlabelled"])


def test_fit__open_world__clusters_are_trusted_as_classes_that_were_hidden_are_found(tmp_path: Path) -> None:
    """Classes come in pairs that nothing tells apart, named ones and new ones; half of the named images have labels."""
    draw, truth = np.random.default_rng(1), np.arange(240) % 8
    feats = np.eye(8)[truth % 2 + truth // 4 * 2] + 0.15 * draw.standard_normal(
        (240, 8)
    )  # 0 and 2, 1 and 3, 4 and 6, …
    names = np.array([f"c{c}" for c in range(8)])[truth]
    labels = np.where((truth < 4) & (np.arange(240) < 120), names, "")
    data = tmp_path / "t.npz"
    np.savez(
        data, embeddings=feats.astype(np.float32), labels=labels, truth=names, class_names=["c0", "c1", "c2", "c3"]
    )
    summary = summary_of(tmp_path, str(data), novel=4, test_frac=0, epochs=1, evaluations=0)
    trust, right = summary["trust"], summary["pseudolabels"]["all"]
    assert 0.4 < right < 0.8
    assert trust["moved"] < 0.35  # clusters of another fit are matched, not taken by their numbers
    assert abs(trust["estimated"] - right) < 0.2
    assert trust["interval"][0] < right < trust["interval"][1]


def test_fit__open_world__images_of_new_classes_that_are_called_named_are_not_trusted(tmp_path: Path) -> None:
    """Five classes are new and one is looked for: most of their images go to the four that are named."""
    draw, truth = np.random.default_rng(0), np.arange(900) % 9
    feats = np.eye(12)[truth] + 0.25 * draw.standard_normal((900, 12))
    names = np.array([f"c{c}" for c in range(9)])[truth]
    labels = np.where((truth < 4) & (np.arange(900) < 450), names, "")
    data, named = tmp_path / "t.npz", ["c0", "c1", "c2", "c3"]
    np.savez(data, embeddings=feats.astype(np.float32), labels=labels, truth=names, class_names=named)
    run = lw.fit(str(data), out=tmp_path / "run", device="cpu", novel=1, test_frac=0, epochs=1, evaluations=0)
    trust, right = run.summary["trust"], run.summary["pseudolabels"]["all"]
    assert right < 0.6
    assert abs(trust["estimated"] - right) < 0.1
    assert trust["interval"][0] < right < trust["interval"][1]
    rows = run.labels.append_column("truth", pa.array(names)).to_pylist()
    called = [row for row in rows if row["source"] == "predicted" and row["label"] in named]
    share = np.mean([row["label"] == row["truth"] for row in called])
    assert abs(np.mean([row["trust"] for row in called]) - share) < 0.1
    assert any("perhaps more than 1 class is new (--novel N)" in words for words in run.summary["warnings"])


def test_fit__candidates__regression_on_the_majority_vote(tmp_path: Path) -> None:
    with np.load(blobs(tmp_path / "train.npz", 40)) as file:
        feats, truth = file["embeddings"], file["truth"]
    draw = np.random.default_rng(0)
    others = NAMES[(np.searchsorted(NAMES, truth) + draw.integers(1, 3, size=len(truth))) % 3]
    table = pa.table(
        {
            "embedding": list(feats),
            "candidates": [[str(name), str(other)] for name, other in zip(truth, others, strict=True)],
            "weights": [[0.7, 0.3]] * len(truth),
            "truth": truth,
        }
    )
    pq.write_table(table, tmp_path / "crowd.parquet")
    summary = summary_of(tmp_path, str(tmp_path / "crowd.parquet"), epochs=3, test_frac=0)
    assert "majority" in summary["reference"]
    assert summary["reference"]["majority"]["unlabelled"] > 0.8


def test_fit__annotators_and_some_labels__votes_are_beside_and_held_out_images_join(tmp_path: Path) -> None:
    with np.load(blobs(tmp_path / "train.npz", 60)) as file:
        feats, truth = file["embeddings"], file["truth"]
    draw = np.random.default_rng(0)
    answers = {
        f"a{k}": np.where(draw.random(len(truth)) < 0.7, truth, NAMES[draw.integers(3, size=len(truth))])
        for k in range(3)
    }
    labels = [str(name) if row < 45 else None for row, name in enumerate(truth)]
    pq.write_table(
        pa.table({"embedding": list(feats), "label": labels, "truth": truth, **answers}), tmp_path / "crowd.parquet"
    )
    summary = summary_of(tmp_path, str(tmp_path / "crowd.parquet"), annotator_columns="a0,a1,a2")
    assert list(summary["reference"]) == ["crowd", "class_balanced", "nearest_mean", "kernel", "majority"]
    assert summary["n_fitted"] == len(truth)
    assert all(each["left_out"] > 0.5 for each in summary["reference"].values())


def test_fit__an_answer_that_is_not_known_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="answer"):
        lw.fit(blobs(tmp_path / "train.npz"), out=tmp_path / "run", answer="worst")


def test_fit__k_means_beside_an_open_world_is_what_it_is_alone(tmp_path: Path) -> None:
    """It has as many starts as the method that began with it, and is not searched for again."""
    draw, truth = np.random.default_rng(4), np.arange(120) % 6
    feats = (np.eye(6)[truth] + 0.45 * draw.standard_normal((120, 6))).astype(np.float32)
    names = np.array([f"c{c}" for c in range(6)])[truth]
    labels = np.where((truth < 3) & (np.arange(120) < 60), names, "")
    np.savez(tmp_path / "t.npz", embeddings=feats, labels=labels, truth=names, class_names=["c0", "c1", "c2"])
    how: dict[str, Any] = {"novel": 3, "test_frac": 0, "device": "cpu", "evaluations": 0}
    beside = lw.fit(tmp_path / "t.npz", out=tmp_path / "a", epochs=1, **how).summary["reference"]["ss_kmeans"]
    alone = lw.fit(tmp_path / "t.npz", out=tmp_path / "b", method="ss_kmeans", **how).summary["reference"]["ss_kmeans"]
    assert 0.3 < alone["unlabelled"] < 1
    assert beside["unlabelled"] == alone["unlabelled"]
    assert beside["seconds"] == 0


def rings(path: Path, *, seed: int = 0) -> str:
    """A class inside another, in two numbers: no line parts them."""
    draw = np.random.default_rng(seed)
    truth = np.arange(200) % 2
    angle, radius = draw.uniform(0, 2 * np.pi, 200), 1 + 2 * truth + 0.2 * draw.standard_normal(200)
    feats = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    np.savez(path, embeddings=feats.astype(np.float32), labels=np.array(["inner", "outer"])[truth])
    return str(path)


def test_fit__a_border_that_bends__the_kernel_is_the_answer(tmp_path: Path) -> None:
    """Of a method that nobody named; the saved model says the same."""
    run = lw.fit(rings(tmp_path / "a.npz"), test=rings(tmp_path / "b.npz", seed=1), out=tmp_path / "run", device="cpu")
    assert run.summary["answer"]["name"] == "kernel"
    assert run.summary["reference"]["ce"]["test"]["accuracy"] < 0.8
    assert run.summary["test"]["accuracy"] > 0.97
    again = lw.evaluate(run.path, tmp_path / "b.npz")["accuracy"]
    assert again == pytest.approx(run.summary["test"]["accuracy"])


def test_fit__columns_in_units_of_their_own__as_on_one_scale(tmp_path: Path) -> None:
    """Grams beside kilometres: the classifier, its trust and what it says of new images."""
    units = np.array([5000.0, 1, 0.01, 1, 1, 20, 1, 1], np.float32)
    for name, seed in (("train", 0), ("test", 1)):
        with np.load(blobs(tmp_path / f"{name}.npz", spread=0.4, seed=seed)) as file:
            np.savez(tmp_path / f"{name}-units.npz", **{**file, "embeddings": units * file["embeddings"]})
    plain, own = (
        lw.fit(tmp_path / f"train{of}.npz", test=tmp_path / f"test{of}.npz", out=tmp_path / f"run{of}", device="cpu")
        for of in ("", "-units")
    )
    assert not any("deviate" in warning for warning in plain.summary["warnings"])
    assert any("each is divided by its own deviation" in warning for warning in own.summary["warnings"])
    assert own.summary["test"]["accuracy"] > plain.summary["test"]["accuracy"] - 0.05
    again = lw.evaluate(own.path, tmp_path / "test-units.npz")
    assert again["accuracy"] == pytest.approx(own.summary["test"]["accuracy"])
    told = lw.label(own.path, tmp_path / "test-units.npz")
    assert np.mean(told["trust"].to_pylist()) == pytest.approx(own.summary["test"]["accuracy"], abs=0.1)


def test_without__neither_frames_beside_a_hidden_one_nor_labels_that_other_fits_lack() -> None:
    labels = torch.tensor([0, 0, 1, 1, 0, 1, -1])
    hidden, sample = torch.tensor([1]), torch.tensor([1, 2, 4])
    task = Task(labels, ("cat", "dog"))
    assert references._without(hidden, task, sample).tolist() == [-1, -1, 1, -1, 0, -1, -1]
    tracks = torch.tensor([7, 8, 7, 9, 8, 9, 9])
    task = Task(labels, ("cat", "dog"), groups=tracks)
    assert references._without(hidden, task, sample).tolist() == [-1, -1, 1, -1, -1, -1, -1]
    task = Task(labels, ("cat", "dog"), n_novel=1, groups=tracks)
    assert references._without(hidden, task, sample).tolist() == [0, -1, 1, 1, -1, 1, -1]


def test_fit__nearest_class_mean_knows_no_frame_of_the_tracks_it_is_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_validation, "MAX_TRIED_ROWS", 100)
    draw = np.random.default_rng(0)
    tracks = np.arange(600) // 30  # each a place of its own, under a class that has nothing to do with it
    feats = 3.0 * draw.standard_normal((20, 40))[tracks] + draw.standard_normal((600, 40))
    labels = np.array(["cat", "dog"])[(tracks % 4) // 2]
    np.savez(tmp_path / "pool.npz", embeddings=feats.astype(np.float32), labels=labels, groups=tracks)
    summary = lw.fit(tmp_path / "pool.npz", out=tmp_path / "run", device="cpu", test_frac=0).summary
    assert summary["reference"]["nearest_mean"]["left_out"] < 0.75


def test_fit__a_class_that_is_one_group_is_left_out_of_what_is_judged(tmp_path: Path) -> None:
    data = dict(np.load(blobs(tmp_path / "train.npz", 20, spread=0.2)))
    own = np.arange(60) // 3
    np.savez(tmp_path / "train.npz", **data, groups=np.where(data["labels"] == "owl", 100, own))
    mixed = lw.fit(tmp_path / "train.npz", out=tmp_path / "mixed", device="cpu", test_frac=0)
    assert mixed.summary["trust"]["n"] == 40
    assert {each["left_out"] for each in mixed.summary["reference"].values()} == {1.0}
    np.savez(tmp_path / "train.npz", **data, groups=data["labels"])
    alone = lw.fit(tmp_path / "train.npz", out=tmp_path / "alone", device="cpu", test_frac=0)
    assert alone.summary["trust"]["source"] == "none"
    assert alone.summary["audit"]["n_suspected"] is None
    assert "no labels could be left out" in alone.summary["answer"]["why"]


def test_may_hide__leaves_every_class_a_group_with_a_label() -> None:
    """Of the second class both groups are in the fold, and of the third one, which it has to itself."""
    labels = torch.tensor([0, 1, 0, 1, 0, 2, 2, -1])
    task = Task(labels, ("a", "b", "c"), groups=torch.tensor([0, 0, 1, 1, 2, 3, 4, 0]))
    rows = torch.arange(7)
    hidden = references._may_hide(torch.tensor([0, 1, 2, 3, 5]), task, rows)
    assert hidden.tolist() == [2, 3, 5]
    left = references._without(hidden, task, rows)
    assert set(left.tolist()) == {0, 1, 2, -1}
