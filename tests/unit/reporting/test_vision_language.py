"""Names that fit no image, curves with the kept epoch, margins: what the records say, and nothing they do not."""

import math

import plotly.graph_objects as go
import pytest

from labelwright.reporting.vision_language import kept_epoch, margin_figures, margin_rows, name_fit, watch_figures
from labelwright.run_folder import Run

NAMES = ["cat", "dog", "owl", "gnu"]


def run_of(*, begin=None, epochs=(), names=NAMES):
    return Run("run", summary={}, data={"class_names": names}, epochs=list(epochs), begun=begin or {})


# ---- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "used"),
    [
        ({"unrepaired": ["owl"], "guessed": ["owl"]}, "The images left over, which are a class of their own"),
        ({"unrepaired": ["owl"], "placed": ["owl"]}, "Its labelled images"),
        ({"unrepaired": [], "descriptions": {"owl": "a bird, round eyes"}}, "“a bird, round eyes”"),
        # A description that the labelled images contradict gave way to them.
        (
            {"unrepaired": ["owl"], "placed": ["owl"], "contradicted": ["owl"], "descriptions": {"owl": "a poem"}},
            "Its labelled images",
        ),
        ({"unrepaired": ["owl"], "placed": [], "guessed": []}, "Nothing: the name stays, though it fits no image"),
        ({"unrepaired": []}, "Nothing: the name stays; after the other repairs it was no mismatch"),
    ],
)
def test_name_fit__says_what_took_the_place_of_a_name(record, used):
    begin = {"mismatched": ["owl"], "evidence": [0.9, 0.8, 0.1, 0.7], **record}
    fit = name_fit(run_of(begin=begin))
    (row,) = fit.changed
    assert (row["name"], row["evidence"], row["used"]) == ("owl", 0.1, used)
    assert row["is_guess"] == (record.get("guessed") == ["owl"])
    assert row["is_contradicted"] == ("contradicted" in record)
    assert fit.n_mismatched == 1
    assert [(r["name"], r["evidence"]) for r in fit.kept] == [("gnu", 0.7), ("dog", 0.8), ("cat", 0.9)]


def test_name_fit__a_name_that_fits_may_still_give_way_to_a_description_or_refuse_one():
    begin = {"mismatched": [], "evidence": [0.9, 0.8, 0.7, 0.6], "descriptions": {"dog": "a barking animal"}}
    fit = name_fit(run_of(begin=begin | {"rejected": {"cat": ["a sign", "a poem"]}}))
    assert fit.n_mismatched == 0
    assert [(r["name"], r["used"], r["refused"]) for r in fit.changed] == [
        ("dog", "“a barking animal”", []),
        ("cat", "Nothing: the name stays", ["a sign", "a poem"]),
    ]
    assert [r["name"] for r in fit.kept] == ["gnu", "owl"]


def test_name_fit__only_of_a_run_that_looked():
    assert name_fit(run_of(begin={"zero_shot_counts": [1, 2, 3, 4]})) is None  # use_alignment off, another method
    fit = name_fit(run_of(begin={"mismatched": [], "evidence": [0.9] * 4}))
    assert (fit.changed, len(fit.kept), fit.n_mismatched) == ([], 4, 0)


def test_name_fit__evidence_of_other_classes_is_not_shown():
    fit = name_fit(run_of(begin={"mismatched": ["dog"], "evidence": [0.1, 0.2]}))  # two numbers for four names
    assert [row["evidence"] for row in (*fit.changed, *fit.kept)] == [None] * 4


# ---- curves ---------------------------------------------------------------------------------------------------------


def epochs_of(n=4, **values):
    return [{"epoch": e, **{key: series[e] for key, series in values.items()}} for e in range(n)]


def test_watch_figures__five_curves_from_before_training_on():
    counts = [4, 4, 1, 1]
    epochs = epochs_of(
        pseudo_counts=[[4, 2, 2, 2]] * 4,
        imbalance_ratio=[2.0] * 4,
        gini=[0.15] * 4,
        cluster_agreement=[0.5, 0.6, 0.7, 0.65],
        sure_frac=[0.5, 0.6, 0.7, 0.8],
        main_set=[4, 4, 8, 8],
    )
    epochs[-1]["kept_epoch"] = 2
    begin = {"aligned_counts": counts, "cluster_agreement": 0.4, "main_set": 3}
    figures = {figure.data[0]["name"]: figure for figure in watch_figures(run_of(begin=begin, epochs=epochs))}
    gini_before = sum(abs(a - b) for a in counts for b in counts) / (2 * 4 * sum(counts))
    assert {name: (f.data[0]["x"][0], f.data[0]["y"][0]) for name, f in figures.items()} == {
        "Pseudolabels, largest to smallest class": (0, 4.0),
        "Pseudolabels, Gini coefficient": (0, pytest.approx(gini_before)),
        "Agreement with clusters of the images": (0, 0.4),
        "Images classified with enough confidence": (1, 0.5),
        "Main set": (0, 3.0),
    }
    for figure in figures.values():
        assert go.Figure({"data": figure.data, "layout": figure.layout}).data  # raises on what plotly does not know
        assert figure.data[0]["x"][-1] == 4
        assert [shape["x0"] for shape in figure.layout["shapes"]] == [3]  # the third epoch has the number 2
        assert figure.alt.endswith("The state after epoch 3 was kept.")


def test_watch_figures__counts_of_other_images_are_not_joined():
    epochs = epochs_of(pseudo_counts=[[5, 3, 2, 2]] * 4, gini=[0.2] * 4)  # 2 labelled images are in these
    (figure,) = watch_figures(run_of(begin={"aligned_counts": [4, 2, 2, 2]}, epochs=epochs))
    assert figure.data[0]["x"] == [1, 2, 3, 4]


def test_watch_figures__kept_from_before_training():
    epochs = epochs_of(gini=[0.1, 0.2, 0.3, 0.4])
    assert kept_epoch(run_of(epochs=epochs)) is None
    (plain,) = watch_figures(run_of(epochs=epochs))
    assert "shapes" not in plain.layout
    epochs[-1]["kept_epoch"] = -1
    assert kept_epoch(run_of(epochs=epochs)) == 0
    (marked,) = watch_figures(run_of(epochs=epochs))
    assert marked.layout["shapes"][0]["x0"] == 0
    assert marked.alt.endswith("The state from before training was kept.")


def test_watch_figures__noise_is_not_blown_up_and_gaps_stay_gaps():
    flat, wide = [0.9001, 0.9002, 0.9001, 0.9003], [0.3, 0.5, 0.7, 0.9]
    (figure,) = watch_figures(run_of(epochs=epochs_of(cluster_agreement=flat)))
    low, high = figure.layout["yaxis"]["range"]
    assert high - low == pytest.approx(0.03)
    assert low < min(flat) < max(flat) < high
    (figure,) = watch_figures(run_of(epochs=epochs_of(cluster_agreement=wide)))
    assert "range" not in figure.layout["yaxis"]
    (figure,) = watch_figures(run_of(epochs=epochs_of(imbalance_ratio=[None, 3000.0, math.nan, 1.5])))
    assert figure.data[0]["y"] == [None, 3000.0, None, 1.5]  # with a class empty there is no ratio
    assert figure.layout["yaxis"]["type"] == "log"
    (figure,) = watch_figures(run_of(epochs=epochs_of(imbalance_ratio=[14.9, 3.0, 2.0, 1.5])))
    assert "type" not in figure.layout["yaxis"]


@pytest.mark.parametrize(
    "epochs", [[], [{"epoch": 0, "gini": 0.1}], epochs_of(loss=[1.0] * 4), epochs_of(imbalance_ratio=[None] * 4)]
)
def test_watch_figures__nothing_to_show(epochs):
    assert watch_figures(run_of(epochs=epochs)) == []


# ---- margins --------------------------------------------------------------------------------------------------------


def test_margins__largest_first_in_the_cell_of_their_pair():
    pairs = [["owl", "cat", 0.25], ["owl", "dog", 1.0], ["gnu", "cat", 0.5], ["cat", "owl", 0.0]]
    run = run_of(epochs=[{"margin_max": 9.0}, {"margin_pairs": pairs}])
    rows = margin_rows(run)
    assert [(r["rare"], r["resembled"], r["margin"]) for r in rows] == [
        ("owl", "dog", 1.0),
        ("gnu", "cat", 0.5),
        ("owl", "cat", 0.25),
    ]
    assert rows[0]["odds"] == pytest.approx(2.718281828)
    (figure,) = margin_figures(run)
    (heat,) = figure.data
    columns, lines = figure.layout["xaxis"]["ticktext"], figure.layout["yaxis"]["ticktext"]
    cells = {(i, j): heat["z"][r][c] for r, i in enumerate(lines) for c, j in enumerate(columns)}
    assert cells == {("owl", "dog"): 1.0, ("owl", "cat"): 0.25, ("gnu", "cat"): 0.5, ("gnu", "dog"): None}
    assert (heat["zmin"], heat["zmax"]) == (0, 1.0)
    assert go.Figure({"data": figure.data, "layout": figure.layout}).data


def test_margins__at_most_30_classes_in_the_chart():
    pairs = [[f"class {2 * i}", f"class {2 * i + 1}", 1 - i / 100] for i in range(20)]  # of 40 classes
    run = run_of(epochs=[{"margin_pairs": pairs}])
    (figure,) = margin_figures(run)
    shown = {*figure.layout["xaxis"]["ticktext"], *figure.layout["yaxis"]["ticktext"]}
    assert shown == {f"class {c}" for c in range(30)}  # those of the 15 largest
    assert len(margin_rows(run)) == 20  # the table has them all


@pytest.mark.parametrize("epochs", [[], [{"epoch": 0}], [{"margin_pairs": []}], [{"margin_pairs": [["a", "b", 0.0]]}]])
def test_margins__none(epochs):
    assert margin_rows(run_of(epochs=epochs)) == []
    assert margin_figures(run_of(epochs=epochs)) == []
