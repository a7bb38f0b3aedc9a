"""What a run found, in lines for a terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from labelwright.reporting import lines as telling
from labelwright.reporting import terminal
from labelwright.run_folder import Run
from labelwright.scale.work import Sharded

BEGIN: dict[str, Any] = {
    "kind": "begin",
    "class_names": ["ant", "bee", "cow", "dog"],
    "mismatched": ["ant", "dog"],
    "descriptions": {"ant": "six legs", "cow": "large and patchy"},
    "rejected": {"ant": ["a friend", "a poem"]},
    "unrepaired": ["dog"],
}


def write_run(folder: Path, summary: dict[str, Any], *records: dict[str, Any]) -> Run:
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return Run(folder)


def test_name_lines__each_name_with_what_took_its_place() -> None:
    assert telling._name_lines(BEGIN) == [
        "class names that fit no image: 2 of 4",
        "  'ant': described as 'six legs'",
        "  'dog': not repaired",
        "described better than named: 1 of 4",
        "  'cow': 'large and patchy'",
        "descriptions refused, as they explain the images worse than the names:",
        "  'ant': 'a friend', 'a poem'",
    ]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"guessed": ["dog"]}, "'dog': given the images left over, which are a class of their own"),
        ({"placed": ["dog"]}, "'dog': placed by its labelled images"),
        ({"unrepaired": []}, "'dog': its labelled images bear the name out"),
        ({"descriptions": {"dog": "it barks"}, "unrepaired": []}, "'dog': described as 'it barks'"),
        ({"mismatched": [], "contradicted": ["dog"], "placed": ["dog"]}, "'dog': placed by its labelled images"),
    ],
)
def test_name_lines__repairs(more: dict[str, Any], said: str) -> None:
    assert f"  {said}" in telling._name_lines({**BEGIN, **more})


def test_name_lines__many_are_cut_and_none_is_said() -> None:
    names = [f"n{i}" for i in range(30)]
    lines = telling._name_lines({"class_names": names, "mismatched": names[:25], "unrepaired": names[:25]})
    assert lines[0] == "class names that fit no image: 25 of 30"
    assert lines[-1] == "  and 5 more, see the report"
    assert len(lines) == 1 + telling.LINES_MAX + 1
    none_found = telling._name_lines({"class_names": names, "mismatched": []})
    assert none_found == ["class names that fit no image: none found"]
    assert telling._name_lines({"kind": "begin", "main_set": 3}) == []


def test_accuracy_line__equal_is_no_help() -> None:
    scores = {"accuracy": 0.5, "n_scored": 4}
    assert telling._accuracy_line(scores, scores).endswith("it did not help")
    assert "not" not in telling._accuracy_line(scores, {**scores, "accuracy": 0.75})


def test_pseudolabel_lines__without_truth_or_images() -> None:
    one = {"imbalance_ratio": None, "gini": None, "counts": [0, 0]}
    assert telling._pseudolabel_lines({**one, "zero_shot": one}) == [
        "pseudolabels, largest class over smallest: 2 classes empty -> 2 classes empty (Gini none -> none)"
    ]


def test_pseudolabel_lines__before_and_after() -> None:
    before = {"imbalance_ratio": None, "gini": 0.5, "counts": [4, 0], "accuracy": 0.5}
    after = {"imbalance_ratio": 1.0, "gini": 0.0, "counts": [2, 2], "accuracy": 1.0}
    assert telling._pseudolabel_lines({**after, "zero_shot": before}) == [
        "pseudolabels, largest class over smallest: 1 class empty -> 1.0 (Gini 0.50 -> 0.00)",
        "pseudolabels that are right: 0.5000 -> 1.0000",
    ]


def test_lines_of_run__what_there_is(tmp_path: Path) -> None:
    spread = {"imbalance_ratio": 2.0, "gini": 0.2, "counts": [2, 1]}
    summary = {
        "method": "cap",
        "test": {"accuracy": 0.75, "n_scored": 4},
        "zero_shot": {"accuracy": 0.5, "n_scored": 4},
        "pseudolabels": {**spread, "zero_shot": spread},
    }
    epoch = {"kind": "epoch", "mismatched": ["never"]}
    whole = telling.lines_of_run(write_run(tmp_path / "a", summary, BEGIN, epoch))
    assert whole[0] == "zero-shot -> adapted accuracy: 0.5000 -> 0.7500 on 4 test images"
    assert whole[1].startswith("pseudolabels, largest class over smallest: 2.0 -> 2.0")
    assert whole[2:] == telling._name_lines(BEGIN)
    untested = {**summary, "test": None, "zero_shot": None, "pseudolabels": None}
    assert telling.lines_of_run(write_run(tmp_path / "b", untested, epoch)) == []
    assert telling.lines_of_run(write_run(tmp_path / "c", {**summary, "method": "zero_shot"}, BEGIN)) == []
    assert telling.lines_of_run(write_run(tmp_path / "d", {"method": "ce", "test": {"accuracy": 1.0}}, epoch)) == []


def test_novel_lines__what_was_found_and_how_right_it_is() -> None:
    clusters = [
        {"name": "okapi", "n_images": 1200, "proposed": [["zebra", 0.2]]},
        {"name": "novel-2", "n_images": 1, "proposed": [["dik-dik", 0.1], ["gnu", -0.1]]},
        {"name": "novel-3", "n_images": 0, "proposed": []},
    ]
    summary: dict[str, Any] = {
        "n_novel": 3,
        "novel": {"evidence": {"plausible": [2, 4]}, "clusters": clusters},
        "pseudolabels": {"seen": 0.9, "novel": None, "all": 0.75},
    }
    assert telling.novel_lines(summary) == [
        "3 classes beyond the named ones (2 to 4 are likely): okapi (1,200 images, perhaps zebra), "
        "novel-2 (1 image, perhaps dik-dik); 1 more has no image",
        "to name one: labelwright classes RUN rename novel-2 NAME (or merge, drop)",
        "unlabelled images right: of named classes 90.0%, all in all 75.0%",
    ]
    doubted = summary | {"novel": {"evidence": {"plausible": [0, 4], "could_be_none": True}, "clusters": clusters}}
    assert telling.novel_lines(doubted)[0].startswith(
        "3 classes beyond the named ones (could be none; at most 4 likely)"
    )
    of_many = summary | {"n_novel": 61, "novel": {"evidence": {"plausible": [40, 80]}, "clusters": clusters}}
    assert telling.novel_lines(of_many)[0].startswith(
        "61 classes beyond the named ones (40 to 80, or more: classes that look alike are found as one)"
    )
    many = [{"name": f"novel-{i}", "n_images": 5} for i in range(1, telling.LINES_MAX + 3)]
    line = telling.novel_lines({"n_novel": len(many), "novel": {"evidence": None, "clusters": many}})[0]
    assert line.endswith(f"novel-{telling.LINES_MAX} (5 images) and 2 more")
    assert telling.novel_lines({"n_novel": 0, "novel": None}) == ["no class beyond the named ones"]
    sizes = [{"name": f"novel-{i}", "n_images": n} for i, n in enumerate((4, 0, 0), 1)]
    empty = telling.novel_lines({"n_novel": 3, "novel": {"evidence": None, "clusters": sizes}})[0]
    assert empty == "3 classes beyond the named ones: novel-1 (4 images); 2 more have no image"


TOWERS = {"name": "a/clip", "kind": "two towers"}
SETS = {"n_images": 3, "mean_set_size": 1.5, "largest_set": 2, "n_empty": 0, "n_classes_never_named": 0}


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (0.75, "0.5000 -> 0.7500 on 4 test images"),
        (0.5, "0.5000 -> 0.5000 on 4 test images: the student is no better than its annotator"),
        (0.25, "0.5000 -> 0.2500 on 4 test images: the student is WORSE than its annotator"),
    ],
)
def test_student_line__says_when_it_is_worse(after: float, said: str) -> None:
    summary = {"candidates": SETS, "annotator": TOWERS, "zero_shot": {"accuracy": 0.5, "n_scored": 4}}
    summary["test"] = {"accuracy": after, "n_scored": 4}
    assert telling._student_line(summary) == f"annotator -> student accuracy: {said}"


def test_lines_of_run__candidates_and_what_was_deployed(tmp_path: Path) -> None:
    summary: dict[str, Any] = {"method": "coreg", "candidates": SETS, "annotator": TOWERS, "pseudolabels": None}
    summary |= {"zero_shot": {"accuracy": 0.5, "n_scored": 4}, "test": {"accuracy": 0.25, "n_scored": 4}}
    step = {"kind": "step", "epoch": 1, "deployed": "never"}
    epochs: list[dict[str, Any]] = [{"kind": "epoch", "epoch": e} for e in range(2)]
    epochs[1] |= {"deployed": "sum"}
    lines = telling.lines_of_run(write_run(tmp_path / "a", summary, *epochs, step))
    assert lines == [
        "candidates from a/clip: 3 images, 1.50 candidates each on average, at most 2",
        "Two networks were trained; both were saved, and their answers are summed.",
        "annotator -> student accuracy: 0.5000 -> 0.2500 on 4 test images: the student is WORSE than its annotator",
    ]
    # What another model reads out of the class names is not what the student learned from.
    other = {**summary, "annotator": {**TOWERS, "kind": "chat"}}
    lines = telling.lines_of_run(write_run(tmp_path / "b", other, *epochs[:1]))
    assert lines[1:] == ["zero-shot -> adapted accuracy: 0.5000 -> 0.2500 on 4 test images; this time it did not help"]


def test_epoch_records__an_epoch_done_twice_counts_once(tmp_path: Path) -> None:
    records = [{"kind": "epoch", "epoch": 0, "loss": 2.0}, {"kind": "epoch", "epoch": 1, "loss": 1.0}]
    run = write_run(tmp_path / "a", {}, *records, {"kind": "step"}, {"kind": "epoch", "epoch": 1, "loss": 0.5})
    assert [record["loss"] for record in Run(run.path).epochs] == [2.0, 0.5]
    assert Run(tmp_path / "none").epochs == []


def test_pseudolabel_lines__first_guesses_of_a_table() -> None:
    found = {"imbalance_ratio": 2.0, "gini": 0.2, "counts": [2, 1], "accuracy": 0.75}
    assert telling._pseudolabel_lines(found, {"accuracy": 0.5})[1:] == [
        "first guesses that are right: 0.5000",
        "pseudolabels that are right: 0.7500",
    ]
    assert telling._pseudolabel_lines(found, {"accuracy": 0.5, "is_ranked": False})[1] == (
        "guesses drawn by chance that are right: 0.5000"
    )
    assert telling._pseudolabel_lines(found, {"named": [1, 1]})[1] == "pseudolabels that are right: 0.7500"


def test_folded_warnings__other_words_stay_apart() -> None:
    many = [f"'ant' takes {60 + e}% in epoch {e}: lower lr" for e in range(5)]
    assert telling.folded_warnings([*many, "'bee' takes 60% in epoch 1: lower lr"]) == [
        "'ant' takes 64% in epoch 4: lower lr (5 such warnings)",
        "'bee' takes 60% in epoch 1: lower lr",
    ]
    assert telling.folded_warnings([]) == []


def test_annotated_lines__two_towers_say_nothing_of_questions() -> None:
    counts = {"n_images": 2, "mean_set_size": 2.0, "largest_set": 2, "n_empty": 0, "n_classes_never_named": 3}
    lines = telling.annotated_lines({**counts, "n_scored": 2, "truth_inside": 1.0, "top1_accuracy": 0.5})
    assert lines == [
        "2 images, 2.00 candidates each on average, at most 2",
        "classes that no image has among its candidates: 3",
        "truth inside the candidates: 1.0000 of 2 images whose label is known; on top of them: 0.5000",
    ]


def test_print_verdict__as_the_report_says_it(capsys: pytest.CaptureFixture[str]) -> None:
    content = {
        "verdict": {
            **{"sign": "!", "words": "Usable after a look", "sentence": "About 80 of 100 labels are right."},
            "facts": [("never", "Never recognised: [b]owl.")],
        },
        "next": [{"title": "Use it", "why": "", "command": "labelwright label run new/"}],
    }
    terminal.print_verdict(content)
    assert capsys.readouterr().out.splitlines() == [
        "",
        "! Usable after a look: About 80 of 100 labels are right.",
        "  Never recognised: [b]owl.",
        "next: use it:",
        "  labelwright label run new/",
    ]


def test_print_sharded__accepted_labels_only_where_a_share_of_wrong_ones_was_given(
    capsys: pytest.CaptureFixture[str],
) -> None:
    done = Sharded("out", n_shards=2, n_images=5, n_before=0, left_out=[], counts={"n_accept": 0, "n_unknown": 1})
    for error, is_shown in ((None, False), (0.05, True)):
        terminal.print_sharded(done, {"error": error})
        found = capsys.readouterr().out
        assert ("0 labels may be accepted" in found) is is_shown
        assert "1 look like no class" in found
