"""What a run notices of the labels that it was given."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import labelwright as lw
from labelwright.errors import ConfigError
from labelwright.pipeline import run_audit
from labelwright.pipeline.report import content_of
from pictures import write_folders

NAMES = np.array(["ant", "bee", "cow"])
N_WRONG = 12


def embedded(path: Path, seed: int, *, labelled: bool = True) -> dict[str, Any]:
    """150 rows around three centres, the first twelve under another label; rows 140 and 141 are copies."""
    draw = np.random.default_rng(seed)
    truth = np.arange(150) % 3
    feats = np.eye(3, 16)[truth] * 4 + draw.normal(size=(150, 16))
    feats[141] = feats[140] = feats[60]
    truth[140:142] = truth[60]
    labels = np.where(np.arange(150) < N_WRONG, (truth + 1) % 3, truth)
    named = NAMES[labels] if labelled else np.full(150, "")
    ids = np.array([f"{path.stem}-{i}" for i in range(150)])
    np.savez(path, embeddings=feats.astype(np.float32), labels=named, ids=ids, class_names=NAMES)
    return {f"{path.stem}-{i}": str(NAMES[truth[i]]) for i in range(N_WRONG)}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run on labels of which some are wrong, in the training images and in those to score on."""
    folder = tmp_path_factory.mktemp("noisy")
    wrong = embedded(folder / "train.npz", 0) | embedded(folder / "test.npz", 1)
    settings = {"test": folder / "test.npz", "method": "nearest_mean", "device": "cpu"}
    return lw.fit(folder / "train.npz", out=folder / "run", **settings), wrong


def test_fit__wrong_labels_are_suspected_with_the_class_suggested(run: Any) -> None:
    done, wrong = run
    found = done.summary["audit"]
    named = {each["id"]: each for each in found["suspected"]}
    assert found["n_suspected"] == len(named)
    assert len(set(named) & set(wrong)) >= 0.9 * len(wrong)
    assert len(set(named) - set(wrong)) <= 3
    assert np.mean([named[i]["suggested"] == truth for i, truth in wrong.items() if i in named]) > 0.9
    scores = [each["score"] for each in found["suspected"]]
    assert scores == sorted(scores)
    assert found["estimated_wrong"] == pytest.approx(2 * N_WRONG / 300, abs=0.03)
    of_test = found["test_noise"]["n"]
    assert f"{found['n_suspected'] - of_test} given labels and {of_test} test labels look wrong" in found["says"]
    assert found["agreement"] > 0.7
    assert "may be right" not in found["says"]


def test_fit__wrong_given_labels_have_little_trust_and_right_ones_much(run: Any) -> None:
    done, wrong = run
    trust = dict(zip(done.labels["id"].to_pylist(), done.labels["trust"].to_pylist(), strict=True))
    assert set(done.labels["source"].to_pylist()) == {"given"}
    assert np.mean([trust[i] < 0.5 for i in wrong if i in trust]) > 0.9
    assert np.median([value for i, value in trust.items() if i not in wrong]) > 0.95


def test_fit__test_labels_that_look_wrong_are_flagged_and_what_they_do_to_the_score(run: Any) -> None:
    done, wrong = run
    noise = done.summary["audit"]["test_noise"]
    assert noise["n"] == len(noise["ids"])
    assert set(noise["ids"]) <= {f"test-{i}" for i in range(150)}
    assert len(set(noise["ids"]) & set(wrong)) >= N_WRONG - 2
    assert noise["accuracy"] == pytest.approx(done.summary["test"]["accuracy"], abs=1e-4)
    assert noise["accuracy"] + 0.05 < noise["corrected"] <= 1
    assert "the accuracy on the 150 test images looked at would be at most" in done.summary["audit"]["says"]


@pytest.mark.parametrize("seed", [0, 1])
def test_fit__names_of_classes_that_look_like_mistakes_are_one_finding(seed: int, tmp_path: Path) -> None:
    draw = np.random.default_rng(seed)
    truth = np.arange(150) % 3
    feats = np.eye(3, 16)[truth] * 4 + draw.normal(size=(150, 16))
    names = np.array(["forest", "meadow", "river"], dtype="U7")[truth]
    for few in (3, 15):  # of three images nothing is known
        names[: 3 * few : 3] = "forrest"
        np.savez(tmp_path / "train.npz", embeddings=feats.astype(np.float32), labels=names)
        done = lw.fit(tmp_path / "train.npz", out=tmp_path / f"run-{few}", method="nearest_mean", device="cpu")
        says = "Names of classes: 'forrest' for 'forest' is perhaps misspelled: then mend it in the data"
        twins = "; images do not tell forest and forrest apart: if they are one class, write one name."
        says += twins if few == 15 else "."
        assert done.summary["names"]["says"] == says
        assert ("names", says) in content_of(done)["verdict"]["facts"]
    embedded(tmp_path / "right.npz", 0)
    assert "names" not in lw.fit(tmp_path / "right.npz", out=tmp_path / "right", method="la", device="cpu").summary


def test_noise_in_test__suggestions_that_make_it_worse_are_not_offered() -> None:
    facts = dict.fromkeys(("n_suspected", "n_duplicates"), 0)
    noise = {"n": 6, "ids": [], "n_judged": 20, "accuracy": 0.45, "corrected": 0.3}
    has = {"has_labels": True, "has_feats": True}
    assert run_audit._says({**facts, "test_noise": noise}, "given label", **has) == "No given label looks wrong."
    assert run_audit._says({**facts, "test_noise": noise}, "test label", **has) == "No test label looks wrong."
    better = run_audit._says({**facts, "test_noise": noise | {"corrected": 0.6}}, "given label", **has)
    assert "on the 20 test images looked at would be at most 60.0% in place of 45.0%" in better


def test_fit__copies(run: Any) -> None:
    found = run[0].summary["audit"]
    assert {tuple(each) for each in found["duplicates"]} == {
        (f"{part}-60", f"{part}-{i}", "exact") for part in ("train", "test") for i in (140, 141)
    }
    assert (found["n_duplicates"], found["n_across_test"], found["n_two_labels"]) == (4, 0, 0)


@pytest.mark.parametrize("test_frac", [0, 0.2], ids=["all learned", "held out"])
def test_audit_of_run__large_data_are_looked_at_in_part(
    test_frac: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_audit, "AUDITED_ROWS", 90)
    embedded(tmp_path / "train.npz", 0)
    done = lw.fit(
        tmp_path / "train.npz", out=tmp_path / "run", method="nearest_mean", test_frac=test_frac, device="cpu"
    )
    assert done.summary["audit"]["n_audited"] == 90
    assert (done.summary["audit"]["test_noise"] is None) == (test_frac == 0)
    assert not done.labels["trust"].null_count


def test_audit__with_the_model_of_a_run(tmp_path: Path) -> None:
    photos = write_folders(tmp_path / "photos", {"ant": 6, "bee": 6})
    model = "labelwright/digits-clip"
    done = lw.fit(photos, out=tmp_path / "run", model=model, method="nearest_mean", test_frac=0, device="cpu")
    assert lw.audit(photos, run=done.path, device="cpu").summary["features"] == model
    assert done.summary["audit"]["n_duplicates"] == 0
    with pytest.raises(ConfigError, match="both name a model"):
        lw.audit(photos, run=done.path, model=model)


def test_audit__a_run_without_a_pretrained_model(run: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no pretrained model"):
        lw.audit(write_folders(tmp_path / "photos", {"ant": 2, "bee": 2}), run=run[0].path)


def test_fit__weak_features_accuse_right_labels_and_the_words_say_so(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    truth = np.arange(240) % 24
    feats = 1.2 * draw.normal(size=(24, 12))[truth] + draw.standard_t(3, size=(240, 12))
    data = {"embeddings": feats.astype(np.float32), "labels": [f"kind {c}" for c in truth]}
    found = lw.fit(data, out=tmp_path / "run", test_frac=0, device="cpu", evaluations=0).summary["audit"]
    assert found["n_suspected"] > 5
    assert 0.3 < found["agreement"] < 0.7
    assert "so that many of these may be right" in found["says"]
