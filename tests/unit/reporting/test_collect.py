"""What a report says, read as a dict: verdict, what to do next, images to check, classes, panels."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from labelwright.pipeline.report import content_of
from labelwright.pipeline.run_config import command_of
from labelwright.reporting.checks import PER_TAB
from labelwright.reporting.collect import collect
from labelwright.reporting.gallery import read_gallery, write_gallery
from labelwright.reporting.render import page_of
from labelwright.reporting.sections import curve
from labelwright.reporting.verdict import never_recognised, share_right, verdict_of
from labelwright.run_folder import Run
from made_runs import EVIL, NAMES, made_up_run


def run_of(summary: dict[str, Any], **contents: Any) -> Run:
    empty: dict[str, Any] = {"data": {}, "config": {}, "environment": {}, "records": [], "labels": None}
    return Run("run", summary=summary, **(empty | contents))


@pytest.mark.parametrize(("accuracy", "level"), [(0.95, "good"), (0.8, "fair"), (0.5, "poor"), (None, "unknown")])
def test_verdict__level_follows_the_share_that_is_right(accuracy: float | None, level: str) -> None:
    test = None if accuracy is None else {"accuracy": accuracy, "n_scored": 400}
    verdict = collect(run_of({"test": test}))["verdict"]
    assert verdict["level"] == level
    assert verdict["sign"]


def test_verdict__without_test_images_rests_on_trust_and_says_on_what() -> None:
    trust = {"source": "text model", "n": 0, "estimated": 0.72, "interval": [0.45, 0.85]}
    sentence = collect(run_of({"trust": trust}))["verdict"]["sentence"]
    assert sentence.startswith("About 72 of 100 labels are right (45 to 85); no label confirms this")
    trust = {"source": "left-out labels", "n": 120, "estimated": 0.9, "interval": [0.85, 0.94]}
    assert (
        "judged by 120 labels that the classifier had not seen"
        in collect(run_of({"trust": trust}))["verdict"]["sentence"]
    )


@pytest.mark.parametrize(("claimed", "right"), [(0.88, 0.98), (0.99, 0.85)], ids=["borne out", "claims too much"])
def test_verdict__labels_by_answers_are_not_judged_by_test_images_without(claimed: float, right: float) -> None:
    bins = [{"count": 200, "confidence": claimed, "accuracy": 0.85}]
    test = {"accuracy": 0.85, "n_scored": 200, "reliability": {"all": bins}}
    trust = {"source": "candidates", "n": 0, "estimated": 0.98, "interval": [0.5, 1.0]}
    found = share_right(run_of({"test": test, "trust": trust, "crowd": {"annotators": []}}))
    assert found.span is not None
    assert (found.right, *found.span) == pytest.approx((right, 0.794, 1.0 if right == 0.98 else 0.893), abs=1e-3)
    assert ("of new images, which have no answers, about 85" in found.sentence) is (right == 0.98)
    assert share_right(run_of({"test": test, "trust": trust})).right == 0.85
    sets = {"has_weights": False, "largest_set": 3}
    of_sets = share_right(run_of({"test": test, "trust": trust, "candidates": sets}))
    assert of_sets.right == found.right
    assert ("of new images, which have no candidates, about 85" in of_sets.sentence) is (right == 0.98)
    for none in ({"has_weights": True, "largest_set": 3}, {"has_weights": False, "largest_set": 1}):
        assert share_right(run_of({"test": test, "trust": trust, "candidates": none})).right == 0.85


def test_verdict__labels_by_answers_are_worse_by_what_the_classifier_claims_too_much() -> None:
    bins = [{"count": 200, "confidence": 0.83, "accuracy": 0.7}]
    test = {"accuracy": 0.7, "n_scored": 200, "reliability": {"all": bins}}
    trust = {"source": "candidates", "n": 0, "estimated": 0.95, "interval": [0.5, 1.0]}
    found = share_right(run_of({"test": test, "trust": trust, "crowd": {"annotators": []}}))
    assert found.right == pytest.approx(0.82)


def test_share_right__lies_between_the_test_labels_as_they_are_and_set_right() -> None:
    test, noise = {"accuracy": 0.6, "n_scored": 200}, {"n": 60, "n_judged": 200, "accuracy": 0.6, "corrected": 0.84}
    found = share_right(run_of({"test": test, "audit": {"test_noise": noise}}))
    assert found.right == pytest.approx(0.72)
    assert found.span == pytest.approx((0.531, 0.884), abs=1e-3)
    assert found.sentence.endswith("60 by their labels as they are, 84 with those that look wrong (30.0%) set right.")
    few = {"n": 4, "n_judged": 200, "accuracy": 0.6, "corrected": 0.61}
    assert share_right(run_of({"test": test, "audit": {"test_noise": few}})).right == 0.6
    open_world = share_right(run_of({"test": test | {"novel": 0.4}, "audit": {"test_noise": noise}, "n_novel": 3}))
    assert open_world.right == 0.6


@pytest.mark.parametrize(
    ("trust", "level"),
    [
        ({"source": "candidates", "n": 0, "estimated": 0.99, "interval": [0.9, 1.0]}, "unconfirmed"),
        ({"source": "text model", "n": 0, "estimated": 0.6, "interval": [0.4, 0.9]}, "poor"),
        ({"source": "left-out labels", "n": 9, "estimated": 0.97, "interval": [0.55, 1.0]}, "fair"),
        ({"source": "left-out labels", "n": 90, "estimated": 0.97, "interval": [0.9, 1.0]}, "good"),
    ],
)
def test_verdict__is_good_only_where_labels_confirm_it(trust: dict[str, Any], level: str) -> None:
    content = collect(run_of({"trust": trust}))
    assert content["verdict"]["level"] == level
    assert (content["next"][0]["title"] == "Measure it") is (trust["n"] == 0)


def test_verdict__test_images_of_named_classes_alone_do_not_confirm_new_ones() -> None:
    test = {"accuracy": 1.0, "n_scored": 42, "seen": 1.0, "novel": None}
    trust = {"source": "left-out labels", "n": 34, "estimated": 0.91, "interval": [0.5, 1.0]}
    verdict = collect(run_of({"test": test, "trust": trust, "n_novel": 5}))["verdict"]
    assert verdict["level"] == "unconfirmed"
    assert verdict["sentence"].startswith("About 91 of 100 labels are right (50 to 100); labels confirm the named")
    named = "About 100 of 100 test images of the named classes are labelled right (92 to 100)."
    assert dict(verdict["facts"])["named"] == named
    assert collect(run_of({"test": test, "n_novel": 5}))["verdict"]["level"] == "unknown"
    assert (
        collect(run_of({"test": test | {"novel": 0.9, "accuracy": 0.95}, "n_novel": 5}))["verdict"]["level"] == "good"
    )


def test_verdict__copies_of_labelled_training_images_measure_nothing() -> None:
    test = {"accuracy": 1.0, "n_scored": 100, "n_copied": 90}
    trust = {"source": "left-out labels", "n": 100, "estimated": 0.92, "interval": [0.84, 0.97]}
    summary: dict[str, Any] = {"n_images": 300, "n_labelled": 100}
    verdict = verdict_of(run_of(summary | {"test": test, "trust": trust}))
    assert verdict["sentence"].startswith("About 92 of 100 labels are right (84 to 97); judged by 100 labels")
    verdict = verdict_of(run_of(summary | {"test": test}))
    assert verdict["level"] == "unknown"
    assert verdict["sentence"].endswith("the test images are copies of labelled training images.")
    few = verdict_of(run_of(summary | {"test": test | {"n_copied": 4}, "trust": trust}))
    assert few["sentence"] == "About 100 of 100 labels are right (96 to 100), measured on 100 test images."


def test_verdict__speaks_of_new_images_where_every_label_was_given() -> None:
    summary = {"test": {"accuracy": 0.95, "n_scored": 400}, "n_images": 90, "n_labelled": 90}
    assert collect(run_of(summary))["verdict"]["sentence"].startswith("About 95 of 100 new images are labelled right")


@pytest.mark.parametrize(("n_own", "is_new"), [(1, True), (9, True), (10, False)])
def test_verdict__speaks_of_new_images_where_nearly_every_label_was_given(n_own: int, is_new: bool) -> None:
    trust = {"source": "left-out labels", "n": 277, "estimated": 0.42, "interval": [0.41, 0.43], "unlike": 0.5}
    summary: dict[str, Any] = {"trust": trust, "n_images": 1000, "n_labelled": 1000 - n_own}
    summary |= {"test": {"accuracy": 0.75, "n_scored": 40}}
    sentence = share_right(run_of(summary, data={"test_is": "held out"})).sentence
    begin = "About 75 of 100 new images are labelled right" if is_new else "About 42 of 100 labels are right"
    assert sentence.startswith(begin)
    summary |= {"n_images": 50, "n_labelled": 50 - n_own}  # not so few beside the others, but for one
    assert ("new images" in share_right(run_of(summary)).sentence) is (n_own == 1)


@pytest.mark.parametrize(
    ("n_own", "words"),
    [
        (1, "The one label that it gave is right with a chance of 42.0%"),
        (5, "Of the 5 labels that it gave about 2 are"),
    ],
)
def test_verdict__a_few_labels_of_its_own_are_no_measure_of_new_images(n_own: int, words: str) -> None:
    trust = {"source": "left-out labels", "n": 277, "estimated": 0.42, "interval": [0.3, 0.5]}
    verdict = verdict_of(run_of({"trust": trust, "n_images": 278, "n_labelled": 278 - n_own}))
    assert verdict["sentence"].startswith(words)
    assert verdict["sentence"].endswith("; how it labels new images was not measured.")
    assert verdict["level"] == "unknown"


@pytest.mark.parametrize("n", [1, 2])
def test_verdict__one_label_of_its_own_is_no_number_to_divide(n: int) -> None:
    labels = pa.table(
        {"id": ["a", "b", "c"], "label": ["x", "y", "x"], "source": ["predicted"] * n + ["given"] * (3 - n)}
    )
    trust = {"source": "left-out labels", "n": 90, "estimated": 0.5, "interval": [0.4, 0.6]}
    kinds = [kind for kind, _ in verdict_of(run_of({"trust": trust}, labels=labels))["facts"]]
    assert ("wrong" in kinds) is (n > 1)


def test_verdict__a_handful_of_test_images_gives_way_to_more_labels_that_were_left_out() -> None:
    trust = {"source": "left-out labels", "n": 300, "estimated": 0.8, "interval": [0.75, 0.84]}
    few, many = {"accuracy": 0.5, "n_scored": 10}, {"accuracy": 0.5, "n_scored": 4000}
    assert "judged by 300 labels" in collect(run_of({"trust": trust, "test": few}))["verdict"]["sentence"]
    assert "measured on 4,000 test images" in collect(run_of({"trust": trust, "test": many}))["verdict"]["sentence"]


def beside(own: float, other: float) -> dict[str, Any]:
    rest = {"left_out": None, "unlabelled": None, "seconds": 1.0}
    return {
        "cvs": {"title": "CVS", "test": {"balanced_accuracy": own}, **rest},
        "class_balanced": {"title": "Balanced logistic regression", "test": {"balanced_accuracy": other}, **rest},
    }


def test_verdict__behind_the_obvious_is_never_good() -> None:
    summary: dict[str, Any] = {"test": {"accuracy": 0.95, "n_scored": 400}, "method": "cvs"}
    summary |= {"reference": beside(0.9, 0.94), "answer": {"name": "cvs", "title": "CVS", "best": "cvs"}}
    verdict = collect(run_of(summary))["verdict"]
    assert (verdict["level"], verdict["is_behind"]) == ("fair", True)
    words = dict(verdict["facts"])["behind"]
    assert "Balanced logistic regression, gets 94.0% of the test images right" in words
    assert words.endswith("this answer 90.0%: worse.")
    summary["reference"] = beside(0.94, 0.9)
    verdict = collect(run_of(summary))["verdict"]
    assert (verdict["level"], verdict["is_behind"]) == ("good", False)


@pytest.mark.parametrize("answer", ["start", "class_balanced"])
def test_verdict__the_trained_method_is_no_obvious_alternative(answer: str) -> None:
    reference = beside(0.95, 0.9)
    reference["start"] = reference["cvs"] | {"title": "CVS, as it starts"}
    title = reference[answer]["title"]
    summary: dict[str, Any] = {"test": {"accuracy": 0.9, "n_scored": 400}, "method": "cvs", "reference": reference}
    facts = dict(
        collect(run_of(summary | {"answer": {"name": answer, "title": title, "best": answer}}))["verdict"]["facts"]
    )
    words = facts.get("obvious", facts.get("behind", ""))
    assert "alternative, CVS" not in words
    assert ("alternative, Balanced logistic regression" in words) is (answer == "start")


def test_verdict__a_difference_within_chance_is_called_about_the_same() -> None:
    summary: dict[str, Any] = {"test": {"accuracy": 0.9, "n_scored": 400}, "method": "cvs"}
    summary |= {"reference": beside(0.9, 0.91), "answer": {"name": "cvs", "title": "CVS", "best": "cvs"}}
    verdict = collect(run_of(summary))["verdict"]
    assert dict(verdict["facts"])["obvious"].endswith("this answer 90.0%: about the same.")
    assert verdict["is_behind"] is False


@pytest.mark.parametrize(("other", "is_better"), [(0.91, False), (0.96, True)])
def test_next__a_better_answer_is_offered_where_the_verdict_calls_this_one_worse(other: float, is_better: bool) -> None:
    summary: dict[str, Any] = {"test": {"accuracy": 0.9, "n_scored": 400}, "method": "cvs"}
    summary |= {"reference": beside(0.9, other), "answer": {"name": "cvs", "title": "CVS", "best": "class_balanced"}}
    config = {"data": "photos", "answer": "trained"}
    content = collect(run_of(summary, config=config), command=command_of(config))
    assert content["verdict"]["is_behind"] is is_better
    cards = {card["title"]: card for card in content["next"]}
    assert ("Take the better answer" in cards) is is_better
    if is_better:
        card = cards["Take the better answer"]
        assert card["why"] == "Balanced logistic regression gets 96.0% of the test images right, this answer 90.0%."
        assert card["command"] == "labelwright fit photos --out run-again --answer best"
        in_python = {card["title"]: card["command"] for card in collect(run_of(summary))["next"]}
        wanted = 'labelwright.fit(data, config="run/config.yaml", answer="best", out="again")'
        assert in_python["Take the better answer"] == wanted


def test_verdict__training_added_nothing_where_another_answer_was_kept() -> None:
    summary = {"method": "cvs", "answer": {"name": "start", "title": "Start of CVS", "best": "start"}}
    facts = dict(collect(run_of(summary))["verdict"]["facts"])
    assert facts["training"].startswith("Training added nothing: the answer is that of Start of CVS")
    assert "training" not in dict(collect(run_of({"method": "cvs"}))["verdict"]["facts"])


def test_never_recognised__needs_a_few_test_images_or_no_label_at_all() -> None:
    test = {"per_class": [0.0, 0.0, 1.0], "n_per_class": [2, 9, 9]}
    data = {"class_names": ["ant", "bee", "cow"]}
    assert never_recognised(run_of({"test": test}, data=data)) == ["bee"]
    labels = pa.table({"id": ["1"], "label": ["cow"], "source": ["predicted"]})
    assert never_recognised(run_of({"test": test}, data=data, labels=labels)) == ["bee", "ant"]


def test_verdict__what_was_never_recognised_and_of_how_many() -> None:
    test = {"accuracy": 0.5, "n_scored": 20, "per_class": [0.0, 0.0, 1.0], "n_per_class": [2, 9, 9]}
    facts = dict(collect(run_of({"test": test}, data={"class_names": ["ant", "bee", "cow"]}))["verdict"]["facts"])
    assert facts["never"] == "Never recognised: bee (0 of 9)."


@pytest.mark.parametrize(("counts", "expected"), [([4, 0, 2], ["ant"]), ([0, 0, 0], ["ant", "bee"])])
def test_never_recognised__but_for_a_class_of_which_there_is_no_image(counts: list[int], expected: list[str]) -> None:
    data = {"class_names": ["ant", "bee", "cow"], "train_counts": counts}
    labels = pa.table({"id": ["1"], "label": ["cow"], "source": ["predicted"]})
    assert never_recognised(run_of({"test": {"per_class": [1.0, None, 1.0]}}, data=data, labels=labels)) == expected
    tested = {"per_class": [1.0, 0.5, 1.0]}
    assert never_recognised(run_of({"test": tested}, data=data, labels=labels)) == ["ant", "bee"]


def test_verdict__blocks_of_others_are_said_where_they_are(tmp_path: Path) -> None:
    more = {
        "promise": {"says": "Of the accepted labels at most 5 in 100 are wrong."},
        "strangers": {"says": "12 images are of no class.", "rows": ["img/7", "img/8"], "n": 2, "share": 0.1},
        "audit": {
            "says": "Two labels look wrong.",
            "suspected": [{"id": "img/5", "given": "deer", "suggested": "bird", "score": 0.1}],
            "duplicates": [["img/9", "img/10", "exact"]],
        },
    }
    run = Run(made_up_run(tmp_path / "run", "balanced", **more))
    content = content_of(run)
    said = [words for _, words in content["verdict"]["facts"]]
    assert [block["says"] for block in more.values()] == [words for words in said if words in str(more)]
    tabs = {key: n for key, _, n in content["check"]["tabs"]}
    assert (tabs["stranger"], tabs["suspect"], tabs["copy"]) == (2, 1, 2)
    items = {item["id"]: item for item in content["check"]["items"]}
    assert (items["img/5"]["label"], items["img/5"]["rather"]) == ("deer", "bird")
    assert "copy of img/10" in items["img/9"]["why"]


def test_next__at_most_three_with_commands(tmp_path: Path) -> None:
    for situation in ("no_labels", "long_tailed", "open_world", "bare"):
        cards = content_of(Run(made_up_run(tmp_path / situation, situation)))["next"]
        assert 1 <= len(cards) <= 3
        assert all(card["command"].startswith("labelwright ") for card in cards)
    cards = content_of(Run(tmp_path / "no_labels"))["next"]
    assert "--corrections corrections.csv --out" in cards[0]["command"]
    assert "rename novel-1 NAME" in content_of(Run(tmp_path / "open_world"))["next"][0]["command"]
    data = Run(tmp_path / "no_labels").config["data"]
    assert shlex.split(cards[0]["command"])[:3] == ["labelwright", "fit", data]


def test_next__nothing_measured_and_strangers() -> None:
    config, trust = {"data": "photos"}, {"source": "candidates", "n": 0, "estimated": 0.7, "interval": [0.5, 0.8]}
    content = collect(run_of({"trust": trust, "strangers": {"share": 0.2}}, config=config), command="labelwright fit a")
    assert "how sure those were who named the candidates" in content["verdict"]["sentence"]
    commands = {card["title"]: card["command"] for card in content["next"]}
    assert commands["Measure it"] == "labelwright verify-sample run --n 200 --out to-verify.csv"
    assert commands["Look for new classes"] == "labelwright fit a --novel auto"
    measured = collect(run_of({"trust": trust, "test": {"accuracy": 0.9, "n_scored": 90}}, config=config))
    assert "Measure it" not in [card["title"] for card in measured["next"]]


def test_next__a_model_that_does_not_know_the_classes_wants_labels_first() -> None:
    trust = {"source": "text model", "n": 0, "n_classes": 7, "estimated": 0.15, "lowered": 0.5, "interval": [0.0, 0.8]}
    content = collect(run_of({"trust": trust}, config={"data": "photos"}))
    assert "does not seem to know these classes" in content["verdict"]["sentence"]
    first = content["next"][0]
    assert (first["title"], first["command"]) == ("Label some images", "labelwright review run")
    assert "Measure it" not in [card["title"] for card in content["next"]]


def test_next__corrections_of_before_stay() -> None:
    config = {"data": "photos", "corrections": ["/a b/corrections.csv"]}
    command = command_of(config, path=Path("run"))
    assert command == "labelwright fit photos --corrections '/a b/corrections.csv' --out run-again"
    items = pa.table({"id": ["1"], "label": ["cow"], "source": ["predicted"], "trust": [0.5]})
    [card] = [
        c for c in collect(run_of({}, config=config, labels=items), command=command)["next"] if "learn" in c["title"]
    ]
    wanted = "labelwright fit photos --corrections '/a b/corrections.csv' corrections-2.csv --out run-again"
    assert card["command"] == wanted


def test_next__a_network_of_random_weights_that_is_poor() -> None:
    summary = {"encoder": "resnet18", "n_labelled": 9, "test": {"accuracy": 0.3, "n_scored": 40}}
    labels = pa.table({"id": ["1"], "label": ["cow"], "source": ["predicted"], "trust": [0.5]})
    content = collect(run_of(summary, config={"data": "photos"}, labels=labels), command="labelwright fit a")
    assert content["next"][0]["command"] == "labelwright fit a --model descriptor"
    compared = run_of(summary | {"reference": {"descriptor": {}}}, config={"data": "photos"}, labels=labels)
    assert collect(compared, command="fit a")["next"][0]["command"] == "pip install 'labelwright[imagenet]'"
    colours = run_of(summary | {"encoder": "descriptor"}, config={"data": "photos"}, labels=labels)
    assert ("Model", "none: colours and edges") in collect(colours)["facts"]
    assert collect(colours, command="fit a")["next"][0]["command"] == "pip install 'labelwright[imagenet]'"
    assert "Use it" not in [card["title"] for card in content["next"]]
    asked = collect(run_of(summary, config={"data": "photos", "model": "resnet18"}, labels=labels), command="fit a")
    assert "descriptor" not in asked["next"][0]["command"]  # the network was asked for


def test_next__embeddings_are_labelled_as_embeddings() -> None:
    card = collect(run_of({"encoder": "none"}, config={"data": "feats.npz"}), command="labelwright fit a")["next"][-1]
    assert card["command"] == "labelwright label run new-embeddings.npz --out labels.csv"


def test_check__given_labels_that_were_not_judged_are_not_suspected() -> None:
    rows = pa.table({"id": ["1"], "label": ["cow"], "source": ["given"], "trust": [0.1], "runner_up": ["ant"]})
    tabs = collect(run_of({"audit": {"n_suspected": None}}, labels=rows))["check"]["tabs"]
    assert tabs == []
    assert collect(run_of({}, labels=rows))["check"]["tabs"] == [("suspect", "Suspected wrong labels", 1)]


def test_check__an_image_is_listed_once_with_every_reason(tmp_path: Path) -> None:
    check = content_of(Run(made_up_run(tmp_path / "run", "candidates")))["check"]
    keys = [(item["id"], item["may_correct"]) for item in check["items"]]
    assert len(keys) == len(set(keys))
    assert {tab for item in check["items"] for tab in item["tabs"]} == {"doubt", "changed", "outside", "mistake"}
    assert sum("doubt" in item["tabs"] for item in check["items"]) == PER_TAB
    mistake = next(item for item in check["items"] if "mistake" in item["tabs"])
    assert (mistake["label"], mistake["rather"], mistake["may_correct"]) == ("bird", EVIL, False)
    outside = next(item for item in check["items"] if "outside" in item["tabs"])
    assert outside["label"] not in outside["candidates"]
    assert check["items"][0]["neighbours"][0]["picture"]


def test_check__a_copy_is_named_once_and_no_other_class_for_it() -> None:
    sure = {"source": ["given"] * 2, "trust": [0.9] * 2, "runner_up": ["ant"] * 2}
    rows = pa.table({"id": ["a", "b"], "label": ["cow"] * 2, **sure})
    items = collect(run_of({"audit": {"duplicates": [["a", "b", "exact"]]}}, labels=rows))["check"]["items"]
    assert [item["why"] for item in items] == [["copy of b"], ["copy of a"]]
    assert [item["rather"] for item in items] == ["", ""]


def test_verdict__warnings_of_every_epoch_are_one() -> None:
    warnings = [f"answers leave the candidates in epoch {epoch}" for epoch in range(17)]
    found = collect(run_of({"warnings": warnings}))["verdict"]["warnings"]
    assert found == ["answers leave the candidates in epoch 16 (17 such warnings)"]


def test_panels__given_labels_that_the_network_learned_are_not_held_against_it() -> None:
    rows = {"id": ["1", "2", "3"], "label": ["a"] * 3, "trust": [0.1, 0.9, 0.2], "runner_up": ["b"] * 3}
    labels = pa.table(rows | {"source": ["given"] * 3})
    assert [panel.title for panel in collect(run_of({}, labels=labels))["panels"]] == ["Given labels against the model"]
    assert collect(run_of({"audit": {"n_suspected": None}}, labels=labels))["panels"] == []


def test_panels__new_classes_of_which_no_image_is_known_fit_no_true_class(tmp_path: Path) -> None:
    run = Run(made_up_run(tmp_path / "run", "open_world"))
    whole = [words for card in content_of(run)["panels"][0].cards for words in card.words]
    assert any(words.startswith("True class it fits best") for words in whole)
    for key in ("pseudolabels", "test"):
        run.summary[key] = {**(run.summary.get(key) or {}), "novel": None}
    panel = content_of(run)["panels"][0]
    assert not any("True class" in words for card in panel.cards for words in card.words)
    assert not any("There could be none" in words for words in panel.words[1:])


def test_page__no_sentence_twice_and_no_arrow_to_nothing(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    for situation in ("balanced", "long_tailed", "no_labels"):
        content = content_of(Run(made_up_run(tmp_path / situation, situation)))
        trust, confused = content["reliability"], content["confusions"]
        assert trust["charts"]
        assert confused["matrix"]
        assert not {chart.finding for chart in trust["charts"]} & set(trust["words"])
        assert confused["matrix"].finding != confused["finding"]
    pair = {"truth": "a", "predicted": "b", "words": "2", "shown": [("1", "data:image/webp;base64,")], "like": []}
    for like in ([], [("2", "data:image/webp;base64,")]):
        content["confusions"] = {"pairs": [pair | {"like": like}], "finding": "Most often.", "matrix": None}
        assert ("→</span><div>" in page_of(content)) is bool(like)


def test_classes__before_and_after_weakest_first(tmp_path: Path) -> None:
    classes = content_of(Run(made_up_run(tmp_path / "run", "no_labels")))["classes"]
    keys = [key for key, *_ in classes["head"]]
    assert keys == ["labelled", "was", "given", "expected", "before", "recall", "precision", "confused", "evidence"]
    recalls = [row["recall"] for row in classes["rows"]]
    assert recalls == sorted(recalls)
    row = next(row for row in classes["rows"] if row["name"] == EVIL)
    assert (row["labelled"], row["was"], row["before"], row["evidence"]) == (40, 200, 0.5, 0.1)
    assert row["confused"] == "deer (2 of 42)"
    assert len(row["pictures"]) == 2


def test_panels__of_each_situation(tmp_path: Path) -> None:
    titles = {}
    for situation in ("no_labels", "candidates", "open_world", "long_tailed"):
        titles[situation] = [p.title for p in content_of(Run(made_up_run(tmp_path / situation, situation)))["panels"]]
    assert titles["no_labels"][:2] == ["Class names and descriptions", "Before and after"]
    assert titles["candidates"][0] == "Candidate labels"
    assert titles["open_world"][0] == "Classes beyond the named ones"
    assert titles["long_tailed"] == ["Accuracy against class size", "Given labels against the model"]
    novel = content_of(Run(tmp_path / "open_world"))["panels"][0]
    assert novel.words[0] == "2 new classes found; 2 to 3 are plausible."
    assert [card.title for card in novel.cards] == ["novel-1", "novel-2"]
    assert f"True class it fits best: {EVIL}." in novel.cards[0].words
    names = content_of(Run(tmp_path / "no_labels"))["panels"][0].tables[0]
    assert names.rows[0][0] == EVIL
    guesses = content_of(Run(tmp_path / "candidates"))["panels"][0]
    assert any(words.startswith("tiny-clip compared each image") for words in guesses.words)
    assert ("Never guessed", NAMES[1]) in guesses.tables[0].rows


def test_curve__flat_or_short_is_not_drawn(tmp_path: Path) -> None:
    run = Run(made_up_run(tmp_path / "run", "balanced"))
    assert curve(run, "Flat", {"flat": "flat"}) == []
    assert curve(run, "Missing", {"missing": "not.there"}) == []
    assert len(curve(run, "Loss", {"loss": "loss"})) == 1


def test_reliability__how_many_of_the_surest(tmp_path: Path) -> None:
    found = content_of(Run(made_up_run(tmp_path / "run", "balanced")))["reliability"]
    assert (
        found["words"][0] == "Accept the surest 50%: 86.7% of them are right (80 to 91). All of them: 72.0% (67 to 77)."
    )
    assert found["rows"][-1][:3] == ("100%", "300", "72.0%")


def test_reliability__a_handful_of_images_is_not_drawn(tmp_path: Path) -> None:
    run = Run(made_up_run(tmp_path / "run", "balanced"))
    gallery = read_gallery(run.path)
    bins, surest = [{"n": 12, "trust": 0.8, "right": 9}], [{"share": 1.0, "n": 12, "right": 9}]
    write_gallery(run.path, gallery | {"trust": {"basis": "test images", "bins": bins, "surest": surest}})
    found = content_of(run)["reliability"]
    assert found["words"] == ["Only 12 test images are there to hold it against: too few to tell."]
    assert (found["charts"], found["rows"]) == ([], [])
