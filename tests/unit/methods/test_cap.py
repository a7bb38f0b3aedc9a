"""CAP on small unit features: what it may look at, what comes back, and what it says when things go wrong."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tiny
from labelwright.errors import ConfigError
from labelwright.methods import cap
from labelwright.methods.registry import METHODS
from labelwright.metrics.agreement import Watch, warnings_of
from labelwright.run_folder import Run
from labelwright.train.loop import Trained, train
from labelwright.train.settings import apply_overrides
from labelwright.types import Concepts, State, Task

COUNTS = (20, 12, 8, 8)
TRUTH = torch.tensor(tiny.classes_of(COUNTS))
UNKNOWN = torch.full_like(TRUTH, -1)
SMALL: dict[str, object] = {"epochs": 4, "steps_per_epoch": 4, "batch_size": 8, "start_size": 3, "patience_epochs": 0}


def first_of(*classes: int, n: int = 3) -> Tensor:
    """Labels of the first images of some classes."""
    labels = UNKNOWN.clone()
    for c in classes:
        labels[(c == TRUTH).nonzero().flatten()[:n]] = c
    return labels


def task_of(labels: Tensor = UNKNOWN, concepts: Concepts | None = None) -> Task:
    return Task(labels, ("ant", "bee", "cat", "dog"), concepts=concepts or tiny.concepts_of(4))


def run(
    labels: Tensor = UNKNOWN, *, concepts: Concepts | None = None, seed: int = 0, folder: Path | None = None, **own: Any
) -> Trained:
    task, cfg = task_of(labels, concepts), apply_overrides(cap.Config(), {**SMALL, **own})
    assert task.concepts is not None
    build, kept = tiny.BuildTowers(task.concepts), None if folder is None else Run(folder)
    views = tiny.TinyFeats(TRUTH.tolist())
    trained = train(METHODS["cap"].recipe, cfg, task, views, build, options=tiny.options_of(seed), run=kept)
    if kept is not None:
        kept.close()
    return trained


@torch.no_grad()
def predicted(trained: Trained, **own: Any) -> Tensor:
    cfg = apply_overrides(cap.Config(), {**SMALL, **own})
    return cap.predict(cfg, trained.state, tiny.TinyFeats(TRUTH.tolist()).x).logits.argmax(1)


def accuracy(answers: Tensor) -> float:
    return float((answers == TRUTH).float().mean())


def records(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


# ---- alignment and the main set --------------------------------------------------------------------------------------


def test_begin__repairs_the_name_that_fits_no_image_and_says_so(tmp_path: Path) -> None:
    concepts = tiny.concepts_of(4, mismatched=[1])
    concepts.feats[1] = -F.normalize(tiny.centres_of(4).sum(0), dim=0)
    x = tiny.TinyFeats(TRUTH.tolist()).x
    assert accuracy((x @ concepts.feats.T).argmax(1)) < 0.8  # 12 bees of 48 images are lost
    trained = run(concepts=concepts, folder=tmp_path)
    assert accuracy(predicted(trained)) > 0.97
    (begun,) = records(tmp_path, "begin")
    assert (begun["mismatched"], begun["guessed"]) == (["bee"], ["bee"])
    assert begun["zero_shot_counts"][1] <= 1
    assert begun["aligned_counts"][1] == 12
    assert trained.warnings == ()
    plain = run(concepts=concepts, alignment="none")
    assert accuracy(predicted(plain)) < 0.9


def test_begin__a_description_takes_the_place_of_a_name_and_a_useless_one_does_not(tmp_path: Path) -> None:
    concepts = tiny.concepts_of(4, mismatched=[1])
    none, useless = torch.zeros(0, tiny.N_FEATURES), -tiny.centres_of(4).sum(0, keepdim=True) / 2
    good = F.normalize(tiny.centres_of(4)[1:2] + 0.1, dim=1)
    texts = ((), ("a poem", "striped, with wings"), (), ())
    feats = (none, torch.cat([useless, good]), none, none)
    described = dataclasses.replace(concepts, descriptions=texts, description_feats=feats)
    trained = run(concepts=described, folder=tmp_path)
    (begun,) = records(tmp_path, "begin")
    assert begun["descriptions"] == {"bee": "striped, with wings"}
    assert begun["rejected"] == {"bee": ["a poem"]}
    assert begun["unrepaired"] == []
    assert accuracy(predicted(trained)) > 0.97
    assert trained.warnings == ()


def test_main_set__starts_sure_grows_and_keeps_its_first_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cap, "GROW_EVERY_EPOCHS", 2)
    trained = run(folder=tmp_path, epochs=5)
    memory = trained.state.memory
    first, rows = memory["first_rows"].tolist(), memory["main_rows"].tolist()
    halfway = sum(int(3 + (0.8 * n - 3) * 2 / (0.7 * 5)) for n in COUNTS)
    assert [record["main_set"] for record in records(tmp_path, "epoch")] == [12, 12, halfway, halfway, len(rows)]
    assert (memory["first_labels"] == TRUTH[memory["first_rows"]]).all()
    assert torch.bincount(memory["first_labels"]).tolist() == [3, 3, 3, 3]
    assert rows[: len(first)] == first
    assert len(set(rows)) == len(rows)
    sizes = torch.bincount(memory["main_labels"]).tolist()
    assert all(0.8 * n - 1.1 < size <= 0.8 * n for size, n in zip(sizes, COUNTS, strict=True))  # of each, not of N / C


def test_main_set__equal_shares_fill_every_class_and_images_compete_for_their_next() -> None:
    concepts = tiny.concepts_of(4, mismatched=[1])
    assert ((tiny.TinyFeats(TRUTH.tolist()).x @ concepts.feats.T).argmax(1) == 1).sum() < 3
    how: dict[str, Any] = {"concepts": concepts, "alignment": "none", "epochs": 1}
    uniform, beliefs = (run(share_from=shares, **how).state.memory for shares in ("uniform", "beliefs"))
    assert torch.bincount(uniform["main_labels"], minlength=4).tolist() == [3, 3, 3, 3]
    assert int((beliefs["main_labels"] == 1).sum()) < 3
    grown = run(epochs=6, share_from="uniform").state.memory["main_labels"]
    assert torch.bincount(grown, minlength=4).tolist() == [9, 9, 8, 8]  # 0.8 x 48 / 4, as far as there are images


def test_main_set__never_holds_a_labelled_image() -> None:
    labels = first_of(0, 1, 2, 3)
    memory = run(labels, epochs=5).state.memory
    assert (labels[memory["main_rows"]] < 0).all()


# ---- TRZSL -----------------------------------------------------------------------------------------------------------


def test_pool_unseen__no_seen_class_is_ever_a_pseudolabel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = first_of(0, 2)  # images of ants and cats are among the unlabelled ones: they may not be called so
    given: list[Tensor] = []
    inner = cap.adjusted_cross_entropy

    def spying(f: Tensor, y: Tensor, *rest: Any, **how: Any) -> Tensor:
        if "where" in how:  # of the self-training loss alone
            given.append(y)
        return inner(f, y, *rest, **how)

    monkeypatch.setattr(cap, "adjusted_cross_entropy", spying)
    trained = run(labels, pool="unseen", folder=tmp_path, confidence=0.0)
    assert set(torch.cat(given).tolist()) == {1, 3}
    assert set(trained.state.memory["main_labels"].tolist()) == {1, 3}
    for record in records(tmp_path, "epoch"):
        assert record["pseudo_counts"][0] == 3  # the three labelled ones, and no more
        assert record["pseudo_counts"][2] == 3
    margin = trained.state.adjust["margin"]
    assert margin[[0, 2]].abs().max() == 0  # nothing is expected of a seen class
    given.clear()
    run(labels, pool="any", confidence=0.0)
    assert set(torch.cat(given).tolist()) == {0, 1, 2, 3}


def test_pool_unseen__with_equal_shares_classes_are_compared_with_labelled_only_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found: list[Tensor] = []
    inner = cap.confusion.pace

    def spying(*counts_and_expected: Tensor, **rest: Any) -> Tensor:
        found.append(inner(*counts_and_expected, **rest))
        return found[-1]

    monkeypatch.setattr(cap.confusion, "pace", spying)
    labels = torch.where(TRUTH == 0, TRUTH, UNKNOWN)  # all twenty ants, and no other image; the classifier is right
    margin = run(labels, pool="unseen", share_from="uniform").state.adjust["margin"]
    assert found[-1].tolist() == pytest.approx([1.0, 12 / 20, 8 / 20, 8 / 20])  # over twelve, bees would be at 1
    assert margin[0].abs().max() == 0
    assert margin[1:].amax(1).min() > 0
    run(labels, pool="unseen")  # shares of unlabelled images, of which no ant is expected: each class has its own
    assert found[-1].tolist() == pytest.approx([1.0] * 4, abs=0.1)


def test_pool_unseen__without_an_unseen_class_is_any() -> None:
    labels = first_of(0, 1, 2, 3)
    first, second = (run(labels, pool=pool) for pool in ("unseen", "any"))
    assert tiny.differing(first.state, second.state) == []


# ---- losses, adapters, prediction ------------------------------------------------------------------------------------


def test_setup__tensors_are_where_the_labels_are() -> None:
    """The first epoch's margins are those of setup, and are looked up by labels on the training device."""
    task = task_of(UNKNOWN.to("meta"))
    assert task.concepts is not None
    state = cap.setup(cap.Config(), task, tiny.BuildTowers(task.concepts))
    assert {tensor.device.type for tensor in (*state.adjust.values(), *state.memory.values())} == {"meta"}


def test_step__a_wrong_label_is_learned_for_it_stays_what_was_given() -> None:
    labels = UNKNOWN.clone()
    labels[(TRUTH == 0).nonzero().flatten()] = 1  # all twenty ants are called bees
    trained = run(labels, epochs=6, steps_per_epoch=8, lr=1.0, residual_weight=0.5, shape_strength=0.2)
    assert (predicted(trained)[TRUTH == 0] == 1).float().mean() > 0.9
    assert (predicted(run())[TRUTH == 0] == 0).float().mean() > 0.9


def test_shared_adapter__there_is_no_pseudo_adapter_and_every_loss_moves_the_main_one() -> None:
    own, shared = run(), run(shared_adapter=True)
    assert set(own.state.nets) == {"main", "pseudo"}
    assert set(shared.state.nets) == {"main"}
    a, b = (trained.state.nets["main"].state_dict() for trained in (own, shared))
    assert any(not torch.equal(a[key], b[key]) for key in a)


def test_confidence__at_1_the_pseudo_adapter_stays_as_it_was() -> None:
    def moved(**own: Any) -> float:
        start, end = (run(weight_decay=0.0, epochs=n, **own).state for n in (1, 4))
        pairs = zip(start.nets["pseudo"].parameters(), end.nets["pseudo"].parameters(), strict=True)
        return max(float((p - q).detach().abs().max()) for p, q in pairs)

    assert moved(confidence=1.0) == 0
    assert moved(confidence=0.0) > 1e-4


def test_shape_strength__moves_the_logits_of_the_classes_and_0_leaves_them_alone() -> None:
    with_shape, without = (run(shape_strength=strength).state.nets["main"] for strength in (0.2, 0.0))
    assert with_shape.linear_weight.abs().max() > 0.1  # type: ignore[operator, union-attr]
    assert without.linear_weight.abs().max() == 0  # type: ignore[operator, union-attr]


# ---- the best state --------------------------------------------------------------------------------------------------


def agreement_of(state: State) -> float:
    return Watch.from_dict(state.memory["watch"]).agreement(predicted(Trained(state, 0.0, 0.0, 0.0, ())))


def test_patience__puts_the_best_state_back(tmp_path: Path) -> None:
    # Ants are called each of the others in turn, which spoils what the class names knew.
    wrong = torch.where(TRUTH == 0, 1 + torch.arange(len(TRUTH)) % 3, UNKNOWN)
    wild: dict[str, Any] = {"lr": 1.0, "residual_weight": 0.5, "shape_strength": 0.0, "alignment": "none"}
    last = run(wrong, folder=tmp_path / "last", **wild)
    best = run(wrong, folder=tmp_path / "best", patience_epochs=4, **wild)
    epochs = records(tmp_path / "best", "epoch")
    (begun,) = records(tmp_path / "best", "begin")
    seen = [begun["cluster_agreement"], *(record["cluster_agreement"] for record in epochs)]
    kept = epochs[-1]["kept_agreement"]
    assert max(seen) - cap.GAIN <= kept <= max(seen)
    assert kept == seen[epochs[-1]["kept_epoch"] + 1]  # -1: before the first
    assert agreement_of(best.state) == pytest.approx(kept)
    assert agreement_of(last.state) == pytest.approx(seen[-1])
    assert agreement_of(last.state) < agreement_of(best.state) - 0.05
    for name, tensors in best.state.memory["best"]["nets"].items():
        mine = best.state.nets[name].state_dict()
        assert all(torch.equal(mine[key], value) for key, value in tensors.items())
    assert "kept_epoch" not in records(tmp_path / "last", "epoch")[-1]


def scripted_agreement(monkeypatch: pytest.MonkeyPatch, *values: float) -> None:
    """Agreement of the class names, of the start and of each epoch, in place of what the clusters say."""
    script = iter([values[0], *values])
    monkeypatch.setattr(Watch, "agreement", lambda *_: next(script))


@pytest.mark.parametrize(
    ("agreements", "n_epochs", "kept"),
    [
        ((0.5, 0.5, 0.5), 2, -1),
        ((0.5, 0.503, 0.504), 2, -1),  # rises that do not count
        ((0.5, 0.6, 0.6, 0.6), 3, 0),
        ((0.5, 0.4, 0.6, 0.7, 0.8, 0.9), 5, 4),  # the whole schedule
    ],
)
def test_patience__ends_training_where_the_agreement_rises_no_more(
    agreements: tuple[float, ...],
    n_epochs: int,
    kept: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scripted_agreement(monkeypatch, *agreements)
    run(folder=tmp_path, epochs=5, patience_epochs=2)
    epochs = records(tmp_path, "epoch")
    assert len(epochs) == n_epochs
    assert [record["stop"] for record in epochs] == [False] * (n_epochs - 1) + [True]
    assert epochs[-1]["kept_epoch"] == kept
    assert epochs[-1]["margin_pairs"]


def test_patience__a_resumed_run_that_has_ended_stays_as_it_was(tmp_path: Path) -> None:
    whole = run(folder=tmp_path, epochs=9, patience_epochs=1)
    lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8")
    assert len(records(tmp_path, "epoch")) < 9
    resumed = run(folder=tmp_path, epochs=9, patience_epochs=1)
    assert tiny.differing(whole.state, resumed.state) == []
    assert (tmp_path / "metrics.jsonl").read_text(encoding="utf-8") == lines


# ---- the published recipe --------------------------------------------------------------------------------------------


def test_preset_paper__every_setting_differs_from_the_defaults_and_is_one() -> None:
    preset, default = cap.PRESETS["paper"], cap.Config()
    paper = apply_overrides(default, preset)
    assert all(getattr(paper, key) != getattr(default, key) for key in preset)
    published = {"epochs": 50, "steps_per_epoch": 50, "batch_size": 32, "lr": 0.01, "weight_decay": 0.1}
    published |= {
        "optimizer": "sgd",
        "schedule": "cosine",
        "warmup_epochs": 1.0,
        "start_size": 16,
        "margin_scale": 12.0,
    }
    published |= {"confidence": 0.85, "residual_weight": 0.01}
    assert {key: getattr(paper, key) for key in published} == published


def test_preset_paper__one_epoch_of_it_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels for ants alone, so that the pool holds the others; bee is not known by name, and is described."""
    monkeypatch.setattr(cap, "GROW_EVERY_EPOCHS", 2)
    labels = torch.where(TRUTH == 0, TRUTH, UNKNOWN)
    good = F.normalize(tiny.centres_of(4)[1:2] + 0.1, dim=1)
    none = torch.zeros(0, tiny.N_FEATURES)
    concepts = dataclasses.replace(
        tiny.concepts_of(4, mismatched=[1]),
        descriptions=((), ("striped, with wings",), (), ()),
        description_feats=(none, good, none, none),
    )
    own = {**cap.PRESETS["paper"], "tune": "adapters", "epochs": 3}  # these features have no encoder to tune
    trained = run(labels, concepts=concepts, folder=tmp_path, **own)
    (begun,) = records(tmp_path, "begin")
    assert (begun["mismatched"], begun["descriptions"]) == (["bee"], {"bee": "striped, with wings"})
    memory, main = trained.state.memory, trained.state.nets["main"]
    assert torch.bincount(memory["first_labels"], minlength=4).tolist() == [0, 3, 3, 3]  # no ant is in the pool
    assert (TRUTH[memory["first_rows"]] == memory["first_labels"]).all()
    assert main.offset.abs().max() == 0  # type: ignore[operator, union-attr]  # the description chooses images alone
    assert main.linear_weight.abs().max() == 0  # type: ignore[operator, union-attr]
    assert trained.state.adjust["prior"].tolist() == [0.25] * 4
    assert trained.state.adjust["margin"][0].abs().max() == 0  # labelled-only classes have no margin of their own
    assert [record["epoch"] for record in records(tmp_path, "epoch")] == [0, 1, 2]
    assert all("margin_max" in record for record in records(tmp_path, "epoch"))  # anew after every epoch
    assert "kept_epoch" not in records(tmp_path, "epoch")[-1]


# ---- hidden truth, seeds, resuming -----------------------------------------------------------------------------------


class CrashError(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("dies_in", ["begin", "plan", "end_epoch"])
def test_resume__from_anywhere_is_the_whole_run(dies_in: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels, concepts = first_of(0, 1), tiny.concepts_of(4, mismatched=[3])
    whole = run(labels, concepts=concepts, folder=tmp_path / "whole")
    inner: Callable[..., Any] = getattr(cap, dies_in)
    calls: list[int] = []

    def dying(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == (1 if dies_in == "begin" else 3):
            raise CrashError
        return inner(*args)

    with monkeypatch.context() as patched:
        patched.setattr(cap, dies_in, dying)
        with pytest.raises(CrashError):
            run(labels, concepts=concepts, folder=tmp_path / "cut")
    resumed = run(labels, concepts=concepts, folder=tmp_path / "cut")
    assert tiny.differing(whole.state, resumed.state) == []
    assert whole.warnings == resumed.warnings
    for kind in ("begin", "epoch"):
        first, second = (
            [{**record, "images_per_second": 0} for record in records(tmp_path / name, kind)]
            for name in ("whole", "cut")
        )
        assert first == second
        assert len(first) == (1 if kind == "begin" else 4)


# ---- odd pools -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "streams"),
    [
        (UNKNOWN, {"main", "unlabelled"}),
        (first_of(1), {"main", "labelled", "unlabelled"}),
        (TRUTH, {"labelled"}),
    ],
    ids=["no label", "labels of one class", "every image labelled"],
)
def test_plan__has_the_streams_there_are_images_for(labels: Tensor, streams: set[str]) -> None:
    trained = run(labels)
    plan = cap.plan(apply_overrides(cap.Config(), SMALL), task_of(labels), trained.state, 0)
    assert set(plan.streams) == streams
    assert accuracy(predicted(trained)) > 0.9
    assert all(tensor.isfinite().all() for tensor in tiny.tensors_of(trained.state).values())


def test_run__a_class_without_an_image_takes_none() -> None:
    names = ("ant", "bee", "cat", "dog", "elk")
    task = Task(UNKNOWN, names, concepts=tiny.concepts_of(5))
    assert task.concepts is not None
    views = tiny.TinyFeats(TRUTH.tolist(), n_classes=5)
    cfg = apply_overrides(cap.Config(), SMALL)
    build, options = tiny.BuildTowers(task.concepts), tiny.options_of()
    trained = train(METHODS["cap"].recipe, cfg, task, views, build, options=options)
    with torch.no_grad():
        answers = cap.predict(cfg, trained.state, views.x).logits.argmax(1)
    assert (answers == TRUTH).float().mean() > 0.9
    assert float(trained.state.adjust["prior"][4]) < 0.1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("steps_per_epoch", 0),
        ("start_size", 0),
        ("patience_epochs", -1),
        ("confidence", 1.1),
        ("shape_strength", -0.1),
        ("margin_scale", -1.0),
        ("residual_weight", 0.0),
    ],
)
def test_config__refuses(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{key}={value}"):
        apply_overrides(cap.Config(), {key: value})


def test_config__margin_scale_is_a_number_or_auto() -> None:
    assert apply_overrides(cap.Config(), {"margin_scale": "auto"}).margin_scale == "auto"
    assert apply_overrides(cap.Config(), {"margin_scale": "9"}).margin_scale == 9.0
    with pytest.raises(ConfigError, match="margin_scale=lots"):
        apply_overrides(cap.Config(), {"margin_scale": "lots"})


# ---- failure signs ---------------------------------------------------------------------------------------------------


def test_warnings__stagnation_when_nothing_is_sure_enough() -> None:
    flat = dataclasses.replace(tiny.concepts_of(4), logit_scale=2.0)
    stuck = run(concepts=flat, residual_weight=0.01, shape_strength=0.0)
    assert any("not one image is classified with enough confidence" in warning for warning in stuck.warnings)
    assert not any("enough confidence" in warning for warning in run().warnings)
    assert not any("enough confidence" in warning for warning in run(confidence=1.0).warnings)  # as it was asked for


FINE: dict[str, Any] = {
    "class_similarity": 0.3,
    "sure_frac": 0.4,
    "largest_share": 0.3,
    "largest_expected": 0.25,
    "largest_class": 2,
}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"class_similarity": 0.99}, "collapse to the mean"),
        ({"sure_frac": 0.0}, "self-training stands still"),
        ({"largest_share": 0.8}, "'cat' takes 80% of the pseudolabels"),
        ({}, None),
        ({"class_similarity": 0.97}, None),
        ({"sure_frac": 0.01}, None),
        ({"largest_share": 0.8, "largest_expected": 0.75}, None),  # a class that is as large as this
    ],
)
def test_warnings_of(changed: dict[str, Any], said: str | None) -> None:
    found = warnings_of({**FINE, **changed}, ("ant", "bee", "cat", "dog"), 0)
    assert len(found) == (said is not None)
    assert said is None or said in found[0]
