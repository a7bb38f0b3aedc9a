"""The section on guessed labels: what they were, what training changed, what was deployed, and nothing unsaid."""

import json
import re

import numpy as np
import pytest
import torch

from labelwright.metrics.scores import guess_counts
from labelwright.reporting.candidate_training import division_figures
from labelwright.reporting.candidates import (
    change_figures,
    change_rows,
    guess_figures,
    guessed_section,
    is_below_annotator,
)
from labelwright.run_folder import Run
from labelwright.types import Candidates
from plotted import valid
from rendered import render

EVIL = '<script>alert("x")</script>'
NAMES = ["cat", "dog", EVIL, "gnu"]
SETS = {"n_images": 40, "mean_set_size": 1.75, "largest_set": 3, "n_empty": 2, "n_single": 15}
TRUE = {"n_scored": 30, "truth_inside": 0.9, "top1_accuracy": 0.6}
GUESSES = {"named": [30, 20, 16, 0], "first": [25.0, 12.5, 0.5, 0.0], "sizes": [2, 15, 20, 3]}
SCORED = {"n_scored": 30, "accuracy": 0.6, "per_class": [0.9, 0.5, 0.0, None]}
TOWERS = {"name": "a/clip", "kind": "two towers", "rule": "union", "templates": "photo27", "n_templates": 27}
CHAT = {"name": "llava", "kind": "chat", "phrasings": 3, "n_answers": 110, "n_unparseable": 7, "n_failed": 10}
TEST = {"accuracy": 0.7, "n_scored": 50, "per_class": [0.8, 0.75, 0.5, 0.75]}
ASKED = {"accuracy": 0.6, "n_scored": 50, "per_class": [0.9, 0.73, 0.0, 0.77]}


def run_of(*, epochs=(), begin=None, names=NAMES, **summary):
    summary = {"candidates": SETS, "annotator": None, "guesses": GUESSES, **summary}
    return Run("run", summary=summary, data={"class_names": names}, epochs=list(epochs), begun=begin or {})


# ---- the counts -----------------------------------------------------------------------------------------------------


def random_sets(n=60, n_classes=5, seed=0, weighted=True):
    generator = np.random.default_rng(seed)
    members = [sorted(generator.permutation(n_classes)[: generator.integers(0, n_classes)].tolist()) for _ in range(n)]
    # Few values, so that many sets have ties and weights of nothing.
    weights = [generator.choice([0.0, 0.25, 0.5], len(each)).tolist() for each in members]
    offsets = torch.tensor([0, *np.cumsum([len(each) for each in members])])
    classes = torch.tensor([c for each in members for c in each], dtype=torch.int32)
    values = torch.tensor([w for each in weights for w in each])
    truth = generator.integers(-1, n_classes + 1, n)  # unknown, and a class that is not in the list
    weights = weights if weighted else [[1.0] * len(each) for each in members]
    return Candidates(offsets, classes, values if weighted else None), members, weights, truth


@pytest.mark.parametrize("weighted", [True, False])
def test_guess_counts__a_slow_loop_counts_the_same(weighted):
    sets, members, weights, truth = random_sets(weighted=weighted)
    named, first, sizes, right, of = np.zeros(5, int), np.zeros(5), np.zeros(5, int), np.zeros(5), np.zeros(5, int)
    for own, heavy, true in zip(members, weights, truth, strict=True):
        kept = [(c, w) for c, w in zip(own, heavy, strict=True) if w > 0]
        sizes[len(kept)] += 1
        top = [c for c, w in kept if w == max(w for _, w in kept)]
        for c, _ in kept:
            named[c] += 1
        for c in top:
            first[c] += 1 / len(top)
        if 0 <= true < 5:
            of[true] += 1
            right[true] += (true in top) / max(1, len(top))
    told = guess_counts(sets, n_classes=5, truth=truth)
    assert told["named"] == named.tolist()
    assert told["first"] == pytest.approx(first.tolist(), abs=1e-4)
    assert told["sizes"] == np.trim_zeros(sizes, "b").tolist()
    assert told["per_class"] == pytest.approx((right / of).tolist(), abs=1e-4)
    assert told["accuracy"] == pytest.approx(right.sum() / of.sum(), abs=1e-4)
    assert told["n_scored"] == of.sum() < len(truth)
    assert told["is_ranked"] is weighted
    json.dumps(told, allow_nan=False)


def test_guess_counts__nothing_known_and_nothing_guessed():
    sets = Candidates(torch.zeros(4, dtype=torch.int64), torch.zeros(0, dtype=torch.int32))
    told = guess_counts(sets, n_classes=2, truth=np.array([-1, -1, -1]))
    assert told == {"named": [0, 0], "first": [0.0, 0.0], "is_ranked": False, "sizes": [3]}
    assert guess_counts(sets, n_classes=2, truth=np.array([0, -1, 0]))["per_class"] == [0.0, None]
    assert guess_counts(sets, n_classes=2, truth=np.array([7, -1, -1]))["accuracy"] is None  # of no listed class


# ---- words ----------------------------------------------------------------------------------------------------------


def test_guessed_section__two_towers_that_training_bettered():
    summary = {"annotator": TOWERS, "candidates": {**SETS, **TRUE}, "guesses": {**GUESSES, **SCORED}}
    said = guessed_section(run_of(**summary, test=TEST, zero_shot=ASKED))
    assert said["origin"] == (
        "a/clip compared each image with the class names, in 27 wordings; its guesses are every class that one of the "
        "wordings puts first."
    )
    assert said["facts"] == [
        ("Images", "40"),
        ("Guesses per image", "1.75 on average, at most 3"),
        ("Images with a single guess", "15"),
        ("Images without any", "2"),
        ("Truth among the guesses, where it is known", "90.0% of 30 images"),
        ("First guess, right", "60.0%"),
        ("Never guessed", "gnu"),
        ("Hardly ever the first guess", f"{EVIL} (0)"),  # 0.5 is under a tenth of 38 / 4, and rounds to 0
    ]
    assert said["verdict"] == [
        "On 50 test images the annotator alone is right for 60.0%, the model that learned from it for 70.0% "
        "(+10.0 points)."
    ]
    assert not said["is_worse"]
    # 2 points, up or down, are too few to be called a change.
    assert [row["name"] for row in said["corrected"]] == [EVIL]
    assert [row["name"] for row in said["lost"]] == ["cat"]
    assert said["scored_on"] == "test images"


def test_guessed_section__below_the_annotator_it_says_so():
    said = guessed_section(run_of(annotator=TOWERS, test={**TEST, "accuracy": 0.5}, zero_shot=ASKED))
    assert said["is_worse"]
    assert said["verdict"][1].startswith("It is worse than its annotator")
    equal = guessed_section(run_of(annotator=TOWERS, test={**TEST, "accuracy": 0.6}, zero_shot=ASKED))
    assert (equal["is_worse"], len(equal["verdict"])) == (False, 1)


@pytest.mark.parametrize("annotator", [CHAT, None])
def test_guessed_section__class_names_read_by_another_are_not_the_annotator(annotator):
    run = run_of(annotator=annotator, test={**TEST, "accuracy": 0.5}, zero_shot=ASKED)
    said = guessed_section(run)
    assert not is_below_annotator(run.summary)
    assert (said["verdict"], said["corrected"], said["lost"], change_figures(run)) == ([], [], [], [])


def test_guessed_section__a_chat_model_and_its_answers():
    said = guessed_section(run_of(annotator=CHAT))
    assert said["origin"] == (
        "The chat model llava was asked about each image, in 3 wordings; 7 of 110 answers named no class of the list; "
        "10 questions failed."
    )
    without = guessed_section(run_of(annotator={**CHAT, "n_unparseable": 0, "n_failed": 0}))
    assert without["origin"].endswith("3 wordings.")


def test_guessed_section__a_table_of_the_user_scored_by_its_first_guesses():
    pseudo = {"counts": [10, 10, 10, 10], "accuracy": 0.8, "per_class": [0.8, 0.75, 0.5, None]}
    said = guessed_section(run_of(guesses={**GUESSES, **SCORED}, pseudolabels=pseudo))
    assert said["origin"] == "They came with the data."
    assert said["scored_on"] == "training images whose truth is known"
    (words,) = said["verdict"]
    assert words.endswith("the first guess is right for 60.0%, the model's answers for 80.0%.")
    assert [(row["name"], round(row["change"], 2)) for row in said["corrected"]] == [(EVIL, 0.5), ("dog", 0.25)]
    assert [(row["name"], round(row["change"], 2)) for row in said["lost"]] == [("cat", -0.1)]


def test_guessed_section__guesses_without_weights_have_no_first():
    counts = {**GUESSES, **SCORED, "is_ranked": False}
    pseudo = {"accuracy": 0.8, "per_class": [0.8, 0.75, 0.5, None]}
    run = run_of(guesses=counts, pseudolabels=pseudo)
    said = guessed_section(run)
    assert ("Guess drawn by chance, right", "60.0%") in said["facts"]
    assert ("Hardly ever guessed", f"{EVIL} (0)") in said["facts"]
    names = {
        trace["name"]
        for figure in [*guess_figures(run), *change_figures(run)]
        for trace in figure.data
        if "name" in trace
    }
    assert "guess drawn by chance" in names
    assert not any("first" in name for name in names)


def test_guessed_section__names_that_gave_way_to_descriptions():
    said = guessed_section(run_of(annotator={**TOWERS, "descriptions": {"gnu": "a horned animal"}, "rule": "top_k"}))
    assert said["replaced"] == [("gnu", "a horned animal")]


def test_guessed_section__other_runs_have_none():
    run = Run("run", summary={"zero_shot": ASKED, "test": TEST}, data={"class_names": NAMES})
    assert (guessed_section(run), division_figures(run), change_rows(run, "test")) == (None, [], [])


def test_guessed_section__a_run_of_an_older_version_and_one_class():
    assert guessed_section(run_of(guesses=None))["facts"][-1] == ("Images without any", "2")
    one = run_of(names=["cat"], guesses={"named": [3], "first": [3.0], "sizes": [0, 3]})
    assert not [what for what, _ in guessed_section(one)["facts"] if "uess" in what and "ever" in what]
    assert list(valid(guess_figures(one))) == ["How often each class is guessed"]


# ---- charts ---------------------------------------------------------------------------------------------------------


def test_guess_figures__classes_by_first_guess_and_sizes():
    figures = valid(guess_figures(run_of()))
    bars = figures["How often each class is guessed"].data
    assert [(trace["name"], trace["x"]) for trace in bars] == [
        ("among the guesses", [30, 20, 16, 0]),
        ("first guess", [25.0, 12.5, 0.5, 0.0]),
    ]
    sizes = figures["Guesses per image"].data[0]
    assert (sizes["x"], sizes["y"]) == ([0, 1, 2, 3], [2, 15, 20, 3])
    even = {**GUESSES, "sizes": [0, 0, 40]}
    assert list(valid(guess_figures(run_of(guesses=even)))) == ["How often each class is guessed"]


def test_guess_figures__many_classes_stand_and_are_named_on_hover():
    names = [f"class {c}" for c in range(200)]
    counts = {"named": list(range(200)), "first": list(range(200)), "sizes": [0, 200]}
    per_class = [c / 199 for c in range(200)]
    summary = {"annotator": TOWERS, "zero_shot": {"per_class": per_class}, "test": {"per_class": per_class[::-1]}}
    run = run_of(names=names, guesses=counts, **summary)
    (bars,) = valid(guess_figures(run)).values()
    assert (bars.is_wide, bars.data[1]["y"][:2]) == (True, [199, 198])
    (changes,) = valid(change_figures(run)).values()
    assert changes.layout["yaxis"]["showticklabels"] is False
    assert changes.layout["height"] == 600


def test_change_figures__a_line_from_before_to_after_on_test_and_training_images():
    pseudo = {"per_class": [0.5, 0.5, None, 0.5], "zero_shot": {"per_class": [0.5, 0.25, 0.0, 0.75]}}
    figures = valid(change_figures(run_of(annotator=TOWERS, test=TEST, zero_shot=ASKED, pseudolabels=pseudo)))
    assert list(figures) == [
        "Right in each class, test images",
        "Right in each class, training images whose truth is known",
    ]
    traces = {trace["name"]: trace for trace in figures["Right in each class, test images"].data}
    assert list(traces) == ["corrected", "lost", "annotator", "this model"]
    assert traces["annotator"]["x"] == [0.0, 0.73, 0.77, 0.9]  # the largest gain first
    assert traces["this model"]["x"] == [0.5, 0.75, 0.75, 0.8]
    assert traces["corrected"]["x"] == [0.0, 0.5, None, 0.73, 0.75, None]
    assert traces["lost"]["y"] == [2, 2, None, 3, 3, None]
    second = list(figures.values())[1]
    assert [trace["x"] for trace in second.data if trace["mode"] == "markers"] == [[0.25, 0.5, 0.75], [0.5, 0.5, 0.5]]


# ---- the page -------------------------------------------------------------------------------------------------------


def page_of(folder, *, epochs=(), config=None, **summary):
    whole = {"method": "coreg", "n_images": 40, "n_labelled": 0, "n_classes": 4, "warnings": []}
    whole |= {"candidates": SETS, "annotator": TOWERS, "guesses": GUESSES, "test": None, "zero_shot": None, **summary}
    (folder / "summary.json").write_text(json.dumps(whole, allow_nan=False))
    (folder / "data.json").write_text(json.dumps({"class_names": NAMES, "train_counts": [0, 0, 0, 0]}))
    (folder / "config.yaml").write_text(json.dumps(config or {}))  # JSON is YAML
    lines = [{"kind": "epoch", "epoch": e, **record} for e, record in enumerate(epochs)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = render(folder).read_text(encoding="utf-8")
    head, figures = text.split("<script>", 1)[0], re.findall(r"const figures = (.*);\n", text)
    return re.sub(r"\s+", " ", head), json.loads(figures[0])


def test_page__charts_are_shown_once_and_warnings_folded(tmp_path):
    pseudo = {"counts": [10] * 4, "accuracy": 0.5, "per_class": [0.5] * 4}
    pseudo["zero_shot"] = {"counts": [20, 10, 10, 0], "accuracy": 0.25, "per_class": [0.25] * 4}
    warnings = ["label collapse: all in epoch 1", "label collapse: all in epoch 2"]
    page, figures = page_of(tmp_path, test=TEST, zero_shot=ASKED, pseudolabels=pseudo, warnings=warnings)
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert captions == [
        "How often each class is guessed",
        "Guesses per image",
        "Right in each class, test images",
        "Right in each class, training images whose truth is known",
        "Pseudolabels per class, most first",
    ]
    assert len(figures) == len(captions)
    assert page.count("label collapse") == 1
    assert "all in epoch 2 (2 such warnings)" in page
    assert "1 failure sign was seen" in page
    assert "its annotator alone is right for 60.0%." in page
    assert "what the annotator answers alone" in page
    assert EVIL not in page
    assert 'id="classes"' in page  # its table stays


def test_page__a_student_below_its_annotator_says_so_twice(tmp_path):
    page, _ = page_of(tmp_path, test={**TEST, "accuracy": 0.5}, zero_shot=ASKED)
    assert "its annotator alone is right for 60.0%, more than this model" in page
    assert '<p class="sign">On 50 test images the annotator alone' in page


def test_page__no_truth_no_test_no_annotator(tmp_path):
    page, figures = page_of(tmp_path, annotator=None, epochs=[{"loss": 1.0}, {"loss": 0.5}])
    assert 'id="guessed"' in page
    assert "They came with the data." in page
    assert "What training changed" not in page
    assert "While training" not in page
    assert "None" not in page
    assert len(figures) == 3  # guesses, sizes, loss
