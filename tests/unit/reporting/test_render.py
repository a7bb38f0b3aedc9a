"""Reports of made-up runs: what is there is shown, what is not is left out, and nothing of the user's text is run."""

import html.parser
import json
import math
import re
from types import SimpleNamespace

import plotly.graph_objects as go
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from labelwright.errors import DataError
from labelwright.metrics.classification import score, top_confusions
from labelwright.reporting.render import _how_good
from labelwright.reporting.sections import Sections
from rendered import render

EVIL = '<script>alert("x")</script>'
NAMES = ["airplane", "automobile", "bird", EVIL, "deer", "dog", "frog", "horse", "ship", "truck"]
COUNTS = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 15]


def made_up_run(folder):
    """A long-tailed run with everything a run folder may hold."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(10).repeat_interleave(200)
    hit = torch.rand(2000, generator=generator) < torch.linspace(0.95, 0.45, 10)[truth]
    predicted = torch.where(hit, truth, torch.randint(10, (2000,), generator=generator))
    confidence = 0.55 + 0.45 * torch.rand(2000, generator=generator)
    test = score(predicted, confidence, truth, n_classes=10, train_counts=COUNTS)
    test["confusions"] = top_confusions(predicted, truth, NAMES)
    summary = {
        "situation": "long_tailed",
        "method": "cvs",
        "encoder": "resnet32",
        "n_images": sum(COUNTS),
        "n_labelled": sum(COUNTS),
        "n_classes": 10,
        "seed": 7,
        "test": test,
        "seconds": {"read": 1.5, "train": 310.2, "label": 4.0},
        "warnings": [f"accuracy of the few has not moved since epoch 3 {EVIL}"],
    }
    data = {
        "class_names": NAMES,
        "train_counts": COUNTS,
        "n_images": sum(COUNTS),
        "fingerprint": "0123456789abcdef",
        "situation": {"name": "long_tailed", "reason": "every image is labelled; largest class 333 times the smallest"},
        "splits": {"train": sum(COUNTS), "test": 2000},
        "test_is": "given",
        "quarantined": [{"where": f"photos/{EVIL}.jpg", "kind": "unreadable", "detail": "truncated file", "row": 3}],
    }
    config = {"data": "my photos", "method": "cvs", "model": "resnet32", "seed": 7, "flip": True}
    config["settings"] = {"lr": 0.1, "step_at_frac": [0.8, 0.9], "kappa_shrink": None}
    environment = {"python": "3.11.7", "device": "cpu", "commit": None, "packages": {"torch": "2.13.0"}}
    lines = []
    for epoch in range(12):
        lines.append({"kind": "step", "epoch": epoch, "step": 0, "loss": 2.3 * 0.8**epoch})
        record = {"kind": "epoch", "epoch": epoch, "loss": 2.2 * 0.8**epoch, "lr": 0.1 * (1 - epoch / 12)}
        record["train_accuracy"] = 1 - 0.8 ** (epoch + 1)
        record["kappa_additive"] = [1 + 0.05 * c * (1 - 0.9**epoch) for c in range(10)]
        record["kappa_multiplicative"] = [1 - 0.03 * c * (1 - 0.9**epoch) for c in range(10)]
        if epoch % 3 == 2:
            accuracy = 0.7 - 0.5 * 0.8**epoch
            record["test"] = {"accuracy": accuracy, "balanced_accuracy": accuracy, "many": accuracy + 0.1, "few": 0.2}
        lines.append(record)
    lines[5]["loss"] = math.nan
    rows = 300
    labels = {
        "id": [f"img/{i:04d}.png" for i in range(rows)],
        "label": [NAMES[i % 10] for i in range(rows)],
        "probability": [(i + 1) / rows for i in range(rows)],
        "runner_up": [NAMES[(i + 1) % 10] for i in range(rows)],
        "source": ["given"] * rows,
        "trust": [((i * 7) % rows) / rows for i in range(rows)],
    }
    folder.mkdir(exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(summary, allow_nan=False))
    (folder / "data.json").write_text(json.dumps(data))
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / "environment.json").write_text(json.dumps(environment))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "epo')
    pq.write_table(pa.table(labels), folder / "labels.parquet")
    return folder


class Page(html.parser.HTMLParser):
    """Tags, text outside scripts, and the scripts themselves."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.text, self.inside = [], [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag if tag in ("script", "style") else None
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts[-1] += data
        elif self.inside is None:
            self.text.append(data)

    def named(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    @property
    def words(self):
        return re.sub(r"\s+", " ", " ".join(self.text))

    @property
    def figures(self):
        line = next(line for line in self.scripts[1].splitlines() if line.startswith("const figures = "))
        return json.loads(line.removeprefix("const figures = ").removesuffix(";"))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = made_up_run(tmp_path_factory.mktemp("runs") / "made-up")
    path = render(folder, command="labelwright fit 'my photos' --method cvs")
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def test_render__says_what_the_files_say(page):
    for words in (
        "12,371 training images of 10 classes, all labelled.",
        "largest class 333 times the smallest",
        "1 unusable image was left out",
        "Method cvs on resnet32, 12 epochs, 5 min 16 s in all, seed 7, on cpu.",
        "too sure of itself",
        "Medium (20 to 100) 1",
        "accuracy of the few has not moved since epoch 3",
        "truncated file",
        "labelwright fit 'my photos' --method cvs",
        "0123456789abcdef",
        "2.13.0",
    ):
        assert words in page.words, words
    headings = [attrs["id"] for attrs in page.named("h2")]
    assert headings == ["short", "data", "training", "classes", "confused", "calibration", "slopes", "trust", "again"]


def test_render__numbers_are_the_scores(page):
    truth = torch.arange(10).repeat_interleave(200)
    match = re.search(r"Right for ([\d.]+)% of 2,000 test images \(95% interval ([\d.]+)% to ([\d.]+)%", page.words)
    reliability = [f for f in page.figures if len(f["data"]) == 2 and f["data"][1].get("name") == "perfect"]
    assert len(reliability) == 4
    bins = reliability[0]["data"][0]
    n = [count for count, _ in bins["customdata"]]
    accuracy = sum(a * b for a, b in zip(bins["y"], n, strict=True)) / sum(n)
    assert sum(n) == len(truth)
    assert float(match[1]) == pytest.approx(100 * accuracy, abs=0.051)
    half = (float(match[3]) - float(match[2])) / 2  # so many images that Wilson's interval is the normal one
    assert half == pytest.approx(196 * math.sqrt(accuracy * (1 - accuracy) / 2000), abs=0.051)


def test_how_good__few_images_tell_little():
    test = {"accuracy": 0.0, "n_scored": 4}
    words = _how_good(SimpleNamespace(test=test, zero_shot={}, data={}, has_groups=False, class_names=[]), Sections())
    high = 1.96**2 / (4 + 1.96**2)  # none of n right: Wilson's upper end is z^2 / (n + z^2)
    assert f"Right for 0.0% of 4 test images (95% interval 0.0% to {100 * high:.1f}%:" in words


def test_render__charts_are_valid_plotly_and_numbered(page):
    assert [a["id"] for a in page.named("div") if "chart" in a.get("class", "").split()] == [
        f"chart-{i}" for i in range(len(page.figures))
    ]
    assert len(page.figures) == 2 + 3 + 1 + 4 + 2
    for figure in page.figures:
        assert go.Figure(figure).data  # raises on what plotly does not know
    loss = page.figures[2]["data"][0]["y"]
    assert loss[2] is None  # the loss that was not a number is a gap
    assert loss[0] == pytest.approx(2.2)


def test_render__user_text_is_inert(page):
    assert len(page.scripts) == 2  # plotly.js once, and the page's own
    assert page.words.count(EVIL) >= 4  # shown as text: warning, quarantined path, tables
    assert "alert(" not in page.scripts[0][-1000:]
    texts = json.dumps(page.figures)
    assert "alert(" in texts
    assert "<script" not in texts  # plotly reads tags in its texts, so they come escaped twice
    assert "&lt;script&gt;" in texts


def test_render__loads_nothing(page):
    assert not any(a.get("src") or a.get("href") for _, a in page.tags)
    policy = next(a["content"] for a in page.named("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy


def test_render__accessible(page):
    assert page.named("html")[0]["lang"] == "en"
    assert "labelwright report: made-up" in page.words
    assert any(a.get("name") == "viewport" for a in page.named("meta"))
    charts = [a for a in page.named("div") if "chart" in a.get("class", "").split()]
    assert all(a["role"] == "img" and len(a["aria-label"]) > 20 for a in charts)
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["aria-labelledby"] for a in page.named("section")} <= set(ids)
    assert len(page.named("table")) == len(page.named("thead")) == 7
    assert all(a.get("scope") in ("col", "row") for a in page.named("th"))


def test_render__least_trusted_first(page):
    section = page.words.split("Labels to look at first")[1].split("Make it again")[0]
    shown = [int(i) for i in re.findall(r"img/(\d+)\.png", section)]
    assert shown == sorted(range(300), key=lambda i: (i * 7) % 300)[:25]


def test_render__only_what_is_there(tmp_path):
    (tmp_path / "summary.json").write_text('{"situation": "long_tailed", "method": "ce", "test": null}')
    page = Page(render(tmp_path).read_text())
    assert [a["id"] for a in page.named("h2")] == ["short", "again"]
    assert "Unknown: there were no labelled test images." in page.words
    assert page.scripts == []
    assert "%" not in page.words
    assert "None" not in page.words


def test_render__many_classes_stay_readable(tmp_path):
    n = 1203
    data = {
        "class_names": [f"species {c}" for c in range(n)],
        "train_counts": [max(1, 3000 // (c + 1)) for c in range(n)],
    }
    every = torch.arange(n)
    test = score(every, torch.full((n,), 0.9), every, n_classes=n, train_counts=data["train_counts"])
    epochs = [{"kind": "epoch", "epoch": e, "loss": 1.0, "kappa_additive": [c / n for c in range(n)]} for e in range(2)]
    (tmp_path / "summary.json").write_text(json.dumps({"test": test}))
    (tmp_path / "data.json").write_text(json.dumps(data))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in epochs))
    page = Page(render(tmp_path).read_text())
    slopes = page.figures[-1]["data"]
    assert [line["name"] for line in slopes] == ["lowest", "lower quarter", "median", "upper quarter", "highest"]
    assert slopes[2]["y"] == [601 / n] * 2
    assert "203 more are in summary.json." in page.words


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("summary.json", None, "no summary.json"),
        ("summary.json", "{", r"summary\.json cannot be read"),
        ("summary.json", "[]", r"summary\.json holds no keys and values"),
        ("config.yaml", "a: [", r"config\.yaml cannot be read"),
        ("metrics.jsonl", '{"kind": "epoch"}\nbroken\n{"kind": "epoch"}\n', r"metrics\.jsonl line 2 is not JSON"),
        ("labels.parquet", "not parquet", r"labels\.parquet cannot be read"),
    ],
)
def test_render__broken_files(name, content, message, tmp_path):
    (tmp_path / "summary.json").write_text("{}")
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        render(tmp_path)
    assert not (tmp_path / "report.html").exists()


# ---- runs that began with class names -------------------------------------------------------------------------------

SIGNS = ["Speed limit (20km/h)", "No passing for vehicles over 3.5 metric tons", EVIL, "Stop"]


def made_up_names_run(folder, *, labels=(0, 0, 0, 0)):
    """A run of a vision-language model with everything that CAP writes."""
    truth = torch.arange(4).repeat_interleave(50)
    before, after = truth.clone(), truth.clone()
    before[0:40], before[50:70], after[50:55] = 3, 0, 0
    sure = torch.full((200,), 0.9)
    scores = [score(each, sure, truth, n_classes=4, train_counts=labels) for each in (after, before)]
    for each, harmonic in zip(scores, (0.9, 0.4), strict=True):
        each |= {"seen": 0.95, "unseen": 0.85, "harmonic": harmonic} if any(labels) else {}
    pseudo = {"counts": [55, 45, 50, 50], "accuracy": 0.975, "per_class": [1.0, 0.9, 1.0, 1.0]}
    pseudo["zero_shot"] = {"counts": [30, 30, 50, 90], "accuracy": 0.7, "per_class": [0.2, 0.6, 1.0, 1.0]}
    summary = {"situation": "no_labels", "method": "cap", "n_images": 200, "n_labelled": sum(labels), "n_classes": 4}
    summary |= {"test": scores[0], "zero_shot": scores[1], "pseudolabels": pseudo, "warnings": []}
    begin = {"kind": "begin", "class_names": SIGNS, "mismatched": [*SIGNS[:2], EVIL], "evidence": [0.1, 0.2, 0.3, 0.9]}
    begin |= {"unrepaired": SIGNS[:1], "guessed": SIGNS[:1], "contradicted": [EVIL]}
    begin |= {"descriptions": {SIGNS[1]: "a red ring, two cars", EVIL: f"a sign {EVIL}"}}
    begin |= {"rejected": {SIGNS[1]: ["an ode to lorries"]}, "aligned_counts": [54, 46, 50, 50]}
    begin |= {"cluster_agreement": 0.7, "main_set": 64}
    epoch = {"kind": "epoch", "loss": 1.0, "pseudo_counts": pseudo["counts"], "imbalance_ratio": 55 / 45, "gini": 0.04}
    epoch |= {"cluster_agreement": 0.8, "sure_frac": 0.9, "main_set": 64}
    last = {"kept_epoch": 1, "margin_pairs": [[EVIL, "Stop", 0.7], ["Stop", SIGNS[0], 0.2]], "margin_max": 0.7}
    lines = [begin, *({**epoch, "epoch": e} for e in range(3)), {**epoch, "epoch": 3, **last}]
    config = {"data": "signs", "method": "cap", "model": "a/clip", "views": "embeddings", "n_views": 2}
    config |= {"templates": "a photo of a {}", "descriptions": "looks.json", "settings": {}}
    folder.mkdir(exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(summary, allow_nan=False))
    (folder / "data.json").write_text(json.dumps({"class_names": SIGNS, "train_counts": list(labels)}))
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def names_page(tmp_path_factory):
    folder = made_up_names_run(tmp_path_factory.mktemp("runs") / "names")
    command = "labelwright fit signs --templates 'a photo of a {}'"
    return Page(render(folder, command=command).read_text(encoding="utf-8"))


def test_render__zero_shot_beside_adapted(names_page):
    # 60 of 200 test images wrong by the names alone, 5 by the model.
    assert "Score on the test images Zero-shot This model Change, points Accuracy 70.0% 97.5% +27.5" in names_page.words
    assert "Accuracy on classes with labels" not in names_page.words
    assert "Right, where the truth is known 70.0% 97.5%" in names_page.words
    assert "Largest to smallest class 3.0 to 1 1.2 to 1" in names_page.words
    assert "labelwright fit signs --templates 'a photo of a {}'" in names_page.words


def test_render__seen_unseen_and_their_harmonic_mean(tmp_path):
    page = Page(render(made_up_names_run(tmp_path, labels=(50, 50, 50, 0))).read_text())
    assert "Accuracy on classes with labels 95.0% 95.0% +0.0" in page.words
    assert "Harmonic mean of classes with and without labels 40.0% 90.0% +50.0" in page.words
    assert "Few (under 20) 1" in page.words  # the class without labels; groups that tell classes apart are shown


def test_render__names_that_fit_no_image(names_page):
    section = names_page.words.split("What was found")[1]
    assert "3 of 4 class names fit no image: see below." in section
    section = names_page.words.split("Evidence: the probability")[1].split("Pseudolabels before and after")[0]
    rows = [f"{SIGNS[0]} 10.0% The images left over, which are a class of their own"]
    rows += [f"{SIGNS[1]} 20.0% “a red ring, two cars” an ode to lorries"]
    rows += [f"{EVIL} 30.0% “a sign {EVIL}” its labelled images contradict the text"]
    rows += ["Names left as they are: 1 Class Evidence of the name Stop 90.0%"]
    places = [section.find(row) for row in rows]
    assert -1 not in places, (rows, section)
    assert places == sorted(places)
    assert "A name fits no image if it finds none" in section


def test_render__sections_and_charts_of_a_run_with_names(names_page):
    headings = [attrs["id"] for attrs in names_page.named("h2")]
    wanted = ["short", "names", "pseudolabels", "training", "watch", "margins", "classes", "calibration", "again"]
    assert headings == wanted
    charts = [a for a in names_page.named("div") if "chart" in a.get("class", "").split()]
    assert len(charts) == len(names_page.figures) == 2 + 1 + 5 + 1 + 1 + 1
    assert all(len(a["aria-label"]) > 20 for a in charts)
    for figure in names_page.figures:
        assert go.Figure(figure).data
    assert sum(bool(f["layout"].get("shapes")) for f in names_page.figures) == 5  # the kept epoch, in each curve
    assert "that after epoch 2 (dashed)" in names_page.words
    ids = [a["id"] for _, a in names_page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert len(names_page.named("table")) == len(names_page.named("thead"))


def test_render__names_run_is_inert_and_has_no_empty_group(names_page):
    assert "<script" not in json.dumps(names_page.figures)
    assert len(names_page.scripts) == 2
    assert names_page.words.count(EVIL) >= 5
    for words in ("Few (under 20)", "fewest training images", "Training images", "None"):
        assert words not in names_page.words, words
    bars = [a["style"] for tag, a in names_page.tags if tag == "span" and "style" in a]
    assert bars == ["width: 10.0%", "width: 20.0%", "width: 30.0%", "width: 90.0%"]


def test_render__names_that_all_fit(tmp_path):
    made_up_names_run(tmp_path)
    begin = {"kind": "begin", "mismatched": [], "evidence": [0.9] * 4}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(begin) + "\n")
    page = Page(render(tmp_path).read_text())
    assert "None: every class name finds some of the images." in page.words
    section = page.words.split("Class names that fit no image")[1].split("Pseudolabels before and after")[0]
    assert section.count("90.0%") == 4
    assert "dashed" not in section  # there is no threshold
    assert not any(tag == "i" for tag, _ in page.tags)
    assert not {"watch", "margins"} & {attrs["id"] for attrs in page.named("h2")}


def test_render__names_without_alignment_or_test_images(tmp_path):
    made_up_names_run(tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    (tmp_path / "summary.json").write_text(json.dumps({**summary, "test": None, "zero_shot": None}))
    (tmp_path / "metrics.jsonl").write_text('{"kind": "epoch", "epoch": 0, "loss": 0.0}\n')
    page = Page(render(tmp_path).read_text())
    assert [attrs["id"] for attrs in page.named("h2")] == ["short", "pseudolabels", "again"]
    assert "Unknown: there were no labelled test images." in page.words
    assert "Score on" not in page.words
