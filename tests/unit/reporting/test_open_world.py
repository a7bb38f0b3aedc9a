"""The section on classes nobody named: scores, their number, pace, a card per class, and nothing unsaid."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from labelwright.data.read import load
from labelwright.errors import DataError
from labelwright.reporting.open_world import evidence_figures, found_words, open_world_section, pace_figures
from labelwright.reporting.thumbnails import EDGE_PX, THUMBNAILS_FILE, read_thumbnails, thumbnail, write_thumbnails
from labelwright.run_folder import Run
from plotted import valid
from rendered import render

EVIL = '<script>alert("x")</script>'
PICTURE = thumbnail(Image.new("RGB", (8, 8), "red"))
SCORES = {"accuracy": 0.6, "seen": 0.9, "novel": 0.5, "all": 0.6, "to_seen": 0.25, "to_novel": 0.125}
SCORES |= {"n_seen_images": 1200, "n_novel_images": 40, "matched": ["cat", EVIL, "owl", None, "gnu"]}
CURVE = [{"n_novel": n, "score": s} for n, s in ((0, 0.2), (1, 0.5), (2, 0.8), (3, 0.79), (4, 0.6))]
EVIDENCE = {"n_novel": 3, "n_seen": 2, "fewest": 0, "most": 4, "plausible": [2, 3], "is_edge": False, "curve": CURVE}
EVIDENCE |= {"reason": "3 novel classes beside 2 seen: so it is."}


def cluster(name, n=10, tightness=0.8, **more):
    found = {"name": name, "n_images": n, "tightness": tightness if n else None, "central": [], "taken_for": []}
    return {**found, **more}


CLUSTERS = [
    cluster("novel-1", 1500, 0.9, central=[f"a/{EVIL}.jpg", "a/2.jpg"], taken_for=[[EVIL, 0.4], ["novel-2", 0.25]]),
    cluster("novel-2", 1, 0.8, central=["gone.jpg"], taken_for=[["cat", 1.0]]),
    cluster("novel-3", 0),
]


def run_of(*, evidence=EVIDENCE, clusters=CLUSTERS, epochs=(), begin=None, **summary):
    novel = {"evidence": evidence, "clusters": clusters}
    summary = {"n_seen": 2, "n_novel": len(clusters), "novel": novel, "pseudolabels": None, "test": None, **summary}
    return Run("run", summary=summary, data={"class_names": ["cat", EVIL]}, epochs=list(epochs), begun=begin or {})


def test_open_world_section__other_runs_have_none():
    other = Run("run", summary={"test": SCORES}, data={}, epochs=[{"epoch": 0, "novel_frac": 0.5}] * 3)
    assert open_world_section(other) is None
    assert evidence_figures(other) == pace_figures(other) == []
    assert found_words(other) == ""


# ---- how good -------------------------------------------------------------------------------------------------------


def test_open_world_section__scores_of_test_and_of_training_images():
    said = open_world_section(run_of(test=SCORES, pseudolabels={**SCORES, "seen": None, "novel": 0.75}))
    assert said["columns"] == ["Test images", "Unlabelled training images"]
    assert said["scores"] == [
        ("Right, of images of named classes", ["90.0%", "–"]),
        ("Right, of images of new classes", ["50.0%", "75.0%"]),
        ("Right, of all images", ["60.0%", "60.0%"]),
        ("Images of new classes taken for a named one", ["25.0%", "25.0%"]),
        ("Images of named classes taken for a new one", ["12.5%", "12.5%"]),
        ("Images of named classes that were scored", ["1,200", "1,200"]),
        ("Images of new classes that were scored", ["40", "40"]),
    ]
    assert said["unscored"] == ""


def test_open_world_section__only_named_classes_can_be_scored():
    held_out = {**SCORES, "novel": None, "to_seen": None, "n_novel_images": 0}
    said = open_world_section(run_of(test=held_out))
    assert said["columns"] == ["Test images"]
    assert "Right, of images of new classes" not in [what for what, _ in said["scores"]]
    assert said["unscored"].startswith("How good the new classes are is not known")


def test_open_world_section__neither_test_images_nor_truth():
    said = open_world_section(run_of())
    assert said["columns"] == said["scores"] == []
    assert said["unscored"]
    assert [card["name"] for card in said["cards"]] == ["novel-1", "novel-2", "novel-3"]


# ---- how many -------------------------------------------------------------------------------------------------------


def test_open_world_section__the_reason_is_told():
    said = open_world_section(run_of())
    assert said["counting"] == ["3 novel classes beside 2 seen: so it is."]
    assert "how often each number of new classes came out" in said["chart_note"]
    assert "novel-1 to novel-3" in said["intro"]
    edge = open_world_section(run_of(evidence={**EVIDENCE, "is_edge": True, "most": 20}))
    assert edge["counting"][-1] == "To look further, run it again with a wider range, as --novel 0-40."


@pytest.mark.parametrize(
    ("n", "words"),
    [
        (0, "You gave the number: none."),
        (1, "You gave the number: 1 new class."),
        (3, "You gave the number: 3 new classes."),
    ],
)
def test_open_world_section__the_user_said_how_many(n, words):
    run = run_of(evidence=None, clusters=[cluster(f"novel-{i + 1}") for i in range(n)])
    said = open_world_section(run)
    assert said["counting"] == [words]
    assert said["chart_note"] == ""
    assert evidence_figures(run) == []
    assert "found" not in found_words(run)


def test_open_world_section__no_new_class_was_found():
    run = run_of(evidence={**EVIDENCE, "n_novel": 0, "plausible": [0, 0]}, clusters=[])
    said = open_world_section(run)
    assert said["cards"] == []
    assert said["unscored"] == ""
    assert said["intro"].endswith("The model has no class beyond these.")
    assert found_words(run) == "No class beyond the named ones was found."
    (figure,) = valid(evidence_figures(run)).values()
    assert "0 is used" in figure.alt


def test_found_words__could_be_none():
    run = run_of(evidence={**EVIDENCE, "plausible": [0, 4], "could_be_none": True})
    assert found_words(run).endswith("found: see below. There could be none.")


def test_evidence_figures__curve_estimate_and_range():
    (figure,) = valid(evidence_figures(run_of())).values()
    assert [trace["name"] for trace in figure.data] == ["share"]
    assert figure.data[0]["x"] == [0, 1, 2, 3, 4]
    assert figure.data[0]["y"] == [row["score"] for row in CURVE]
    span, mark = figure.layout["shapes"]
    assert span["x0"] < 2 < 3 < span["x1"]
    assert mark["x0"] == mark["x1"] == 3
    assert figure.alt.endswith("the share is highest at 2 (0.8); 3 is used, 2 to 3 are plausible.")


def test_evidence_figures__one_number_alone_is_no_curve():
    assert evidence_figures(run_of(evidence={**EVIDENCE, "curve": CURVE[:1]})) == []


# ---- pace -----------------------------------------------------------------------------------------------------------


def epochs_of(*, test=True):
    own = {"confidence_seen": 0.9, "confidence_novel": 0.6, "novel_expected": 0.5}
    epochs = [{"epoch": e, **own, "novel_frac": 0.4 + e / 10, "divergence": 0.3 / (e + 1)} for e in range(4)]
    for record in epochs[1::2] if test else ():
        record["test"] = {"seen": 0.8, "novel": 0.5, "confidence_seen": 0.9, "confidence_novel": 0.7}
        record["test"] |= {"pool_seen": 0.7, "pool_novel": 0.4, "pool_confidence_seen": 0.8}
    return epochs


def test_pace_figures__by_truth():
    figures = valid(pace_figures(run_of(epochs=epochs_of(), begin={"novel_frac": 0.9, "novel_expected": 0.5})))
    right, sure, shares, apart = figures.values()
    assert [trace["name"] for trace in right.data] == ["named, test", "new, test", "named, training", "new, training"]
    assert [trace["x"] for trace in right.data] == [[2, 4]] * 4
    assert [trace["y"][0] for trace in right.data] == [0.8, 0.5, 0.7, 0.4]
    colours = [trace["line"]["color"] for trace in right.data]
    assert colours[0] == colours[2] != colours[1] == colours[3]
    assert len(sure.data) == 3  # the training images of new classes have no confidence here
    assert (shares.data[0]["x"][0], shares.data[0]["y"][0]) == (0, 0.9)  # from before the first epoch on
    assert apart.data[0]["y"] == [0.3, 0.15, pytest.approx(0.1), 0.075]
    note = open_world_section(run_of(epochs=epochs_of()))["pace_note"]
    assert "Kullback-Leibler" in note
    assert "Training: unlabelled" in note


def test_pace_figures__without_truth_what_the_model_says_of_itself():
    run = run_of(epochs=epochs_of(test=False))
    figures = valid(pace_figures(run))
    assert next(iter(figures)) == "Confidence while training"
    assert [trace["name"] for trace in figures["Confidence while training"].data] == [
        "taken for named",
        "taken for new",
    ]
    assert "Training: unlabelled" not in open_world_section(run)["pace_note"]


def test_pace_figures__a_method_that_logs_nothing():
    run = run_of(epochs=[{"epoch": e, "loss": 1.0} for e in range(3)])
    assert pace_figures(run) == []
    assert open_world_section(run)["pace_note"] == ""


def test_pace_figures__none_and_small_differences():
    epochs = [{"epoch": e, "confidence_seen": None, "confidence_novel": 0.5 + e / 1000} for e in range(3)]
    (figure,) = valid(pace_figures(run_of(epochs=epochs))).values()
    assert [trace["name"] for trace in figure.data] == ["taken for new"]
    low, high = figure.layout["yaxis"]["range"]
    assert high - low == pytest.approx(0.1)


# ---- what they are --------------------------------------------------------------------------------------------------


def test_open_world_section__cards():
    said = open_world_section(run_of(test=SCORES), {f"a/{EVIL}.jpg": PICTURE, "other.jpg": PICTURE})
    first, second, empty = said["cards"]
    assert (first["size"], second["size"], empty["size"]) == ("1,500 images", "1 image", "no image")
    assert first["images"] == [(f"a/{EVIL}.jpg", PICTURE)]
    assert dict(first["facts"]) == {
        "How alike its images are": "0.90 of 1",  # two classes with images: none is like most
        "True class it fits best": "owl",
        "If it were not novel-1, it would be": f"{EVIL} (40.0% of its images), novel-2 (25.0%)",
    }
    assert first["rename"] == "labelwright classes RUN rename novel-1 NAME"
    assert dict(second["facts"])["True class it fits best"] == "none: others fit each class better"
    assert second["images"] == []
    assert [what for what, _ in empty["facts"]] == ["Left empty"]
    assert empty["rename"] == ""


def test_open_world_section__the_truth_of_the_training_images_goes_first():
    said = open_world_section(run_of(test=SCORES, pseudolabels={**SCORES, "matched": ["cat", "dog", "emu"]}))
    fits = [dict(card["facts"]).get("True class it fits best") for card in said["cards"][:2]]
    assert fits == ["emu", "none: others fit each class better"]  # the second is not listed there


def test_open_world_section__tightness_against_the_others():
    clusters = [cluster(f"novel-{i}", 5, t) for i, t in enumerate((0.95, 0.85, 0.84, 0.86, 0.6))]
    cards = open_world_section(run_of(clusters=clusters))["cards"]
    words = [dict(card["facts"])["How alike its images are"] for card in cards]
    assert words[0] == "0.95 of 1, more than in most new classes"
    assert words[1] == "0.85 of 1, about as in most new classes"
    assert words[4] == "0.60 of 1, less than in most new classes: it may hold several classes"


def test_open_world_section__proposed_names():
    words = [[["ship", 0.4], ["boat", 0.3], ["snake", 0.1]], [["dog", -0.1]], []]
    clusters = [cluster(f"novel-{i}", 5, proposed=each) for i, each in enumerate(words)]
    cards = open_world_section(run_of(clusters=clusters))["cards"]
    assert [dict(card["facts"]).get("Names from your vocabulary") for card in cards] == ["ship, boat", None, None]


# ---- pictures -------------------------------------------------------------------------------------------------------


def opened(url):
    return Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))


def test_thumbnail__small_images_stay_and_large_ones_shrink():
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(opened(thumbnail(Image.fromarray(pixels)))), pixels)
    large = Image.new("RGB", (4 * EDGE_PX, 2 * EDGE_PX))
    assert opened(thumbnail(large)).size == (EDGE_PX, EDGE_PX // 2)
    assert large.size == (4 * EDGE_PX, 2 * EDGE_PX)


def test_write_thumbnails__an_image_that_is_gone_has_none(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (8, 8), "red").save(tmp_path / "photos" / name / f"{i}.png")
    table = load(tmp_path / "photos")
    (tmp_path / "photos" / "a" / "1.png").unlink()
    write_thumbnails(tmp_path, table, [3, 1, 0])
    assert list(read_thumbnails(tmp_path)) == ["b/1.png", "a/0.png"]
    assert set(read_thumbnails(tmp_path).values()) == {PICTURE}


def test_read_thumbnails__none_broken_and_foreign(tmp_path):
    assert read_thumbnails(tmp_path) == {}
    (tmp_path / THUMBNAILS_FILE).write_text('{"a": "https://elsewhere.org/a.png", "b": "data:image/png;base64,"}')
    assert list(read_thumbnails(tmp_path)) == ["b"]
    (tmp_path / THUMBNAILS_FILE).write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        read_thumbnails(tmp_path)


# ---- the page -------------------------------------------------------------------------------------------------------


def page_of(folder, run, pictures=None):
    folder.mkdir(exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(run.summary))
    (folder / "data.json").write_text(json.dumps(run.data))
    records = [{"kind": "begin", **run.begun}, *({"kind": "epoch", **record} for record in run.epochs)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if pictures:
        (folder / THUMBNAILS_FILE).write_text(json.dumps(pictures))
    return render(folder).read_text(encoding="utf-8")


def section_of(page):
    return re.search(r'<section aria-labelledby="novel">.*?</section>', page, re.DOTALL)[0]


def test_render__shows_the_section(tmp_path):
    scores = {**SCORES, "per_class": [1.0, 0.9, 0.0], "class_names": ["cat", "dog", "owl"]}
    page = page_of(tmp_path, run_of(test=scores, epochs=epochs_of(), n_images=50), {f"a/{EVIL}.jpg": PICTURE})
    section = section_of(page)
    headings = re.findall(r"<h3>(.*?)</h3>", section)
    assert headings == ["How many classes?", "Pace: do new classes keep up with named ones?", "What are they?"]
    assert section.count("<article") == 3
    assert section.count("<img") == section.count(f'src="{PICTURE}"') == 1
    assert section.count('class="chart"') == 5
    assert "labelwright classes RUN rename novel-2 NAME" in section
    assert "<script" not in section
    assert "&lt;script&gt;" in section
    assert "None" not in section
    assert "3 classes beyond the named ones were found: see below." in page
    assert "Weakest class: owl, 0.0%" in page  # a class that nobody named


@pytest.mark.parametrize(
    "run",
    [
        run_of(evidence=None),
        run_of(evidence=None, clusters=[]),
        run_of(clusters=[], evidence={**EVIDENCE, "n_novel": 0}),
        run_of(clusters=[cluster("novel-1", 0)]),
        Run("run", summary={"n_novel": 2}, data={}),
    ],
    ids=["given", "none asked for", "none found", "all empty", "nothing else written"],
)
def test_render__says_nothing_of_what_is_not_there(run, tmp_path):
    section = section_of(page_of(tmp_path, run))
    assert "<img" not in section
    assert "Pictures:" not in section
    assert "None" not in section
    assert "Pace" not in section
    assert "<table" not in section
