"""Pseudolabels and accuracy per class, before and after: every class beside its own numbers, under its full name."""

import plotly.graph_objects as go
import pytest

from labelwright.reporting.before_after import (
    _pair_figure,
    compared_class_figures,
    labelled_figures,
    pseudolabel_figures,
    pseudolabel_rows,
    pseudolabel_summary,
)
from labelwright.reporting.charts import count_figures, wrapped_text
from labelwright.reporting.class_rows import class_rows
from labelwright.run_folder import Run

NAMES = ["cat", "dog", "owl"]


def run_of(*, names=NAMES, counts=None, **summary):
    return Run("run", summary=summary, data={"class_names": names, "train_counts": counts or []})


def shown(figure):
    """{class: (before, after)} as a reader sees it: by the name at the place of the bar."""
    names = figure.layout["yaxis"]["ticktext"]
    before, after = figure.data
    assert (before["name"], after["name"]) == ("zero-shot", "this model")
    assert before["y"] == after["y"] == figure.layout["yaxis"]["tickvals"] == list(range(len(names)))
    return dict(zip(names, zip(before["x"], after["x"], strict=True), strict=True))


def test_pseudolabels__every_class_has_its_own_numbers():
    found = {"counts": [30, 50, 20], "per_class": [0.9, 0.8, None], "accuracy": 0.85}
    found["zero_shot"] = {"counts": [99, 1, 0], "per_class": [0.7, 0.0, None], "accuracy": 0.4}
    run = run_of(pseudolabels=found)
    counts, right = pseudolabel_figures(run)
    assert shown(counts) == {"dog": (1, 50), "cat": (99, 30), "owl": (0, 20)}
    assert list(shown(counts)) == ["dog", "cat", "owl"]  # most pseudolabels first
    assert shown(right) == {"dog": (0.0, 0.8), "cat": (0.7, 0.9)}  # of owls there is no known image
    low, high = counts.layout["yaxis"]["range"]
    assert low > high  # the first is on top
    for figure in (counts, right):
        assert go.Figure({"data": figure.data, "layout": figure.layout}).data
    assert [row["right_after"] for row in pseudolabel_rows(run)] == [0.8, 0.9, None]


def test_pseudolabel_summary__imbalance_is_that_of_the_counts():
    found = {"counts": [300, 50, 20], "zero_shot": {"counts": [370, 0, 0]}}
    ratio, gini = pseudolabel_summary(run_of(pseudolabels=found))
    assert ratio[1:] == ("2 classes are empty", "15 to 1")
    # Mean absolute difference of two counts over twice their mean: 2 * (250 + 280 + 30) / 9 / (2 * 370 / 3).
    assert gini[1:] == (f"{2 / 3:.2f}", f"{2 * (250 + 280 + 30) / 9 / (2 * 370 / 3):.2f}")


@pytest.mark.parametrize(
    "summary",
    [
        {},
        {"pseudolabels": None},
        {"pseudolabels": {"counts": [1, 2, 3]}},
        {"pseudolabels": {"counts": [1, 2], "zero_shot": {"counts": [1, 2]}}},  # two counts, three classes
    ],
)
def test_pseudolabels__nothing_to_compare(summary):
    assert pseudolabel_rows(run_of(**summary)) == []
    assert pseudolabel_figures(run_of(**summary)) == []


def test_compared_class_figures__most_labelled_first():
    test, zero_shot = {"per_class": [0.5, 0.6, 0.7]}, {"per_class": [0.1, 0.2, None]}
    (figure,) = compared_class_figures(run_of(test=test, zero_shot=zero_shot, counts=[2, 0, 9]))
    assert list(shown(figure).items()) == [("owl", (None, 0.7)), ("cat", (0.1, 0.5)), ("dog", (0.2, 0.6))]
    assert figure.title.endswith("most labelled training images first")
    (figure,) = compared_class_figures(run_of(test=test, zero_shot=zero_shot, counts=[0, 0, 0]))
    assert list(shown(figure)) == NAMES
    assert "most" not in figure.title
    assert compared_class_figures(run_of(test=test, counts=[2, 0, 9])) == []


def test_class_rows__no_labels_is_not_zero_training_images():
    test = {"per_class": [0.5, 0.6, 0.7]}
    assert [row["count"] for row in class_rows(run_of(test=test, zero_shot=None, counts=[0, 0, 0]))] == [None] * 3
    assert [row["count"] for row in class_rows(run_of(test=test, counts=[0, 0, 0]))] == [0] * 3


def test_pair_figure__43_long_names_in_full():
    names = [f"no passing for vehicles over {c}.5 metric tons at night" for c in range(43)]
    figure = _pair_figure("Right", names, [0.5] * 43, [1.0] * 43, what="share", is_share=True)
    assert figure.layout["yaxis"]["ticktext"] == names
    assert figure.layout["height"] >= 43 * 20  # px: two bars and a line of text per class
    assert figure.is_wide
    narrow = figure.layout["meta"]["narrow"]
    assert [text.replace("<br>", " ") for text in narrow["yaxis"]["ticktext"]] == names
    assert max(len(line) for text in narrow["yaxis"]["ticktext"] for line in text.split("<br>")) <= 22
    assert narrow["height"] >= 43 * 3 * 13  # px: three lines of 11 px


def test_pair_figure__many_classes_have_their_names_on_hover():
    names = [f"species {c}" for c in range(61)]
    figure = _pair_figure("Right", names, [1] * 61, [2] * 61, what="images")
    assert figure.layout["xaxis"]["showticklabels"] is False
    assert figure.data[1]["y"] == [2] * 61
    assert figure.data[0]["customdata"] == names
    assert "%{customdata}" in figure.data[0]["hovertemplate"]
    assert go.Figure({"data": figure.data, "layout": figure.layout}).data


def test_pair_figure__names_are_inert():
    figure = _pair_figure("Right", ["<b>bold</b>"], [1], [2], what="images")
    texts = [figure.layout["yaxis"]["ticktext"], figure.data[0]["customdata"]]
    texts += [figure.layout["meta"]["narrow"]["yaxis"]["ticktext"]]
    assert texts == [["&lt;b&gt;bold&lt;/b&gt;"]] * 3


def test_wrapped_text__three_lines_at_most():
    assert wrapped_text("owl") == "owl"
    assert wrapped_text("") == ""
    text = wrapped_text("one two three four five six seven eight nine ten eleven twelve thirteen fourteen")
    assert text.count("<br>") == 2
    assert text.endswith("…")
    assert text.startswith("one two three four<br>five six seven eight<br>nine")


def test_labelled_figures__in_full_where_they_differ():
    names = [f"sign number {c}, with a rather long name" for c in range(43)]
    counts = [c % 5 for c in range(43)]
    bars, profile = labelled_figures(run_of(names=names, counts=counts, zero_shot=None))
    assert bars.layout["yaxis"]["ticktext"] == names
    assert bars.data[0]["x"] == counts
    assert profile == count_figures(run_of(names=names, counts=counts))[1]
    assert labelled_figures(run_of(names=names, counts=[2] * 43, zero_shot=None)) == []


@pytest.mark.parametrize("counts", [[2, 2, 2], [5, 1, 0]])
def test_labelled_figures__other_methods_as_ever(counts):
    figures = labelled_figures(run_of(counts=counts))
    assert figures == count_figures(run_of(counts=counts))
    assert len(figures) == 2
