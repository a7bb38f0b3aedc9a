"""Runs that learn from candidate labels: those of a table, and those that an annotator guesses at the door."""

from __future__ import annotations

import csv
import dataclasses
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits

import clip_folders
import from_candidates
import labelwright as lw
import tiny
from chat_stub import ChatStub, Seen
from labelwright.annotators import training_candidates
from labelwright.annotators.annotator import Annotator, match_names
from labelwright.annotators.candidate_rules import mean_probs
from labelwright.data.read import load
from labelwright.data.stored import EmbeddingStore, EmbeddingViews
from labelwright.data.table import LabelTable
from labelwright.encoders.clip import load_two_tower
from labelwright.encoders.templates import TEMPLATES, fill
from labelwright.errors import ConfigError, LabelwrightError
from labelwright.methods.method import Budget
from labelwright.methods.registry import METHODS
from labelwright.reporting.lines import lines_of_run
from labelwright.types import Candidates

NAMES = ["zero", "one", "two", "three"]
CLIP = "labelwright/digits-clip"
QUICK: dict[str, Any] = {"device": "cpu", "precision": "fp32", "evaluations": 0, "method": "guessed", "epochs": 2}
HOW: dict[str, Any] = {"classes": NAMES, "annotator": CLIP, "size": 8, **QUICK}


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABELWRIGHT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(autouse=True)
def recipe(monkeypatch: pytest.MonkeyPatch) -> from_candidates.Guessed:
    method, recipe = from_candidates.method()
    monkeypatch.setitem(METHODS, "guessed", method)
    return recipe


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 of scikit-learn's digits in one folder, named by their class and number."""
    root = tmp_path_factory.mktemp("digits") / "photos"
    root.mkdir()
    found = load_digits()
    for i in np.flatnonzero(found.target < 4)[:48]:
        pixels = (found.images[i] * 255 / 16).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"{NAMES[found.target[i]]}-{i}.png")
    return root


def write_table(path: Path, photos: Path, **columns: Any) -> Path:
    """A CSV of the photos, in the order of their names, with columns made of the name."""
    rows = [{"image": str(p), **{key: make(p.name) for key, make in columns.items()}} for p in sorted(photos.iterdir())]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def truth_in(name: str) -> str:
    return name.partition("-")[0]


def same_sets(a: Candidates | None, b: Candidates | None) -> bool:
    assert a is not None
    assert b is not None
    assert a.weights is not None
    assert b.weights is not None
    same = torch.equal(a.offsets, b.offsets) and torch.equal(a.classes, b.classes)
    return same and torch.allclose(a.weights, b.weights, rtol=1e-5)  # a table of the user's is brought to sum 1 again


# ---- from names alone ------------------------------------------------------------------------------------------------


def test_fit__from_names_it_learns_what_annotate_writes(
    digits: Path, tmp_path: Path, recipe: from_candidates.Guessed
) -> None:
    verb = lw.annotate(digits, classes=NAMES, model=CLIP, out=tmp_path / "c.parquet", device="cpu", precision="fp32")
    done = lw.fit(digits, out=tmp_path / "run", **HOW)
    (task,) = recipe.tasks
    assert same_sets(task.candidates, load(verb.path).candidates)
    assert same_sets(task.candidates, load(done.path / "candidates.parquet").candidates)
    assert (task.labels < 0).all()
    assert task.concepts is None  # the features of a small network are not in the space of any text
    of_verb = ("left_out", "n_labelled", "notices", "knowledge")
    told = {key: value for key, value in verb.counts.items() if key not in of_verb}
    assert done.summary["candidates"] == told
    assert done.summary["situation"] == "no_labels"
    annotator = done.summary["annotator"]
    assert {key: annotator[key] for key in ("name", "kind", "rule", "templates", "n_templates")} == {
        "name": CLIP,
        "kind": "two towers",
        "rule": "top_k",
        "templates": "photo27",
        "n_templates": 27,
    }
    assert done.summary["zero_shot"] is None
    assert sum(done.summary["pseudolabels"]["counts"]) == sum(done.summary["pseudolabels"]["zero_shot"]["counts"]) == 48
    assert f"candidates from {CLIP}: 48 images, " in lines_of_run(done)[0]
    assert done.summary["encoder"] == "resnet32"
    assert len(done.labels) == 48


def test_fit__heads_on_the_annotator_see_its_words(
    digits: Path, tmp_path: Path, recipe: from_candidates.Guessed, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = lw.fit(digits, out=tmp_path / "run", model=CLIP, classes=NAMES, rule="top_k", top_k=2, **QUICK)
    (task,) = recipe.tasks
    assert task.concepts is not None
    assert task.candidates is not None
    assert task.candidates.offsets.diff().tolist() == [2] * 48
    tower = load_two_tower(CLIP, device=tiny.CPU, precision="fp32")
    text = torch.stack([tower.text_feats([fill(t, name) for name in NAMES]) for t in TEMPLATES["photo27"]])
    assert torch.allclose(task.concepts.feats, F.normalize(text.mean(0), dim=1), atol=1e-5)
    assert task.concepts.logit_scale == pytest.approx(tower.logit_scale)
    config = (done.path / "config.yaml").read_text(encoding="utf-8")
    assert "views: embeddings" in config
    assert "templates: photo27" in config
    again = lw.label(done.path, digits, device="cpu", precision="fp32")
    assert again["label"].equals(done.labels["label"])


def test_fit__scores_of_the_annotator_for_a_student_that_sees_pixels(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    load_matching = training_candidates.load_matching
    monkeypatch.setattr(
        training_candidates, "load_matching", lambda name, **how: loaded.append(name) or load_matching(name, **how)
    )
    test = write_table(tmp_path / "test.csv", digits, label=truth_in)
    pool = write_table(tmp_path / "pool.csv", digits, truth=truth_in)
    done = lw.fit(pool, out=tmp_path / "run", test=test, **HOW)
    assert loaded == [CLIP]
    tower = load_two_tower(CLIP, device=tiny.CPU, precision="fp32")
    table = load(test, classes=NAMES)
    text = torch.stack([tower.text_feats([fill(t, name) for name in NAMES]) for t in TEMPLATES["photo27"]]).double()
    size_px, mean, std = tower.stats.size_px, np.array(tower.stats.mean), np.array(tower.stats.std)
    right = 0
    for row, y in enumerate(table.labels):
        picture = table.image(row).resize((size_px, size_px), Image.Resampling.BICUBIC)
        x = torch.from_numpy((np.asarray(picture) / 255 - mean) / std).permute(2, 0, 1)[None].float()
        z = tower.image_feats(x)[0].double()
        probs = torch.stack([torch.exp(tower.logit_scale * (t @ z)) for t in text])
        right += int((probs / probs.sum(1, keepdim=True)).mean(0).argmax()) == y
    assert done.summary["zero_shot"]["accuracy"] == pytest.approx(right / 48, abs=1.5 / 48)  # resized another way
    assert done.summary["zero_shot"]["accuracy"] > 0.5
    found = done.summary["pseudolabels"]
    assert found["zero_shot"]["accuracy"] == pytest.approx(done.summary["zero_shot"]["accuracy"])  # the same images
    assert 0 <= found["accuracy"] <= 1
    counts = done.summary["candidates"]
    assert counts["n_scored"] == 48
    assert counts["truth_inside"] >= counts["top1_accuracy"] > 0.5


def test_mean_probs__is_the_mean_over_prompts_in_any_precision() -> None:
    g = torch.Generator().manual_seed(0)
    z, prompts = (F.normalize(torch.randn(*shape, 6, generator=g), dim=-1) for shape in ((5,), (3, 4)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = mean_probs(z, prompts, 30.0)
    for b in range(5):
        per_prompt = []
        for text in prompts.double():
            e = [float(torch.exp(30.0 * (t @ z[b].double()))) for t in text]
            per_prompt.append([value / sum(e) for value in e])
        assert found[b].tolist() == pytest.approx(np.mean(per_prompt, axis=0).tolist(), abs=1e-5)


# ---- candidates that the data have -----------------------------------------------------------------------------------


def test_fit__candidates_of_a_table_are_used_as_they_are(
    digits: Path, tmp_path: Path, recipe: from_candidates.Guessed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("nobody has to be asked")

    monkeypatch.setattr("labelwright.annotators.annotator.embed", ask)
    monkeypatch.setattr("labelwright.annotators.annotator.OpenAIChat", ask)
    data = write_table(
        tmp_path / "t.csv",
        digits,
        label=lambda name: truth_in(name) if name.endswith("0.png") else "",
        candidates=lambda name: f"{truth_in(name)}|{NAMES[len(name) % 4]}",
        weights=lambda name: "0.75|0.25",
        truth=truth_in,
    )
    out = tmp_path / "run"
    done = lw.fit(data, out=out, size=8, test_frac=0.0, **{**QUICK, "classes": NAMES})
    (task,) = recipe.tasks
    table = load(data, classes=NAMES)
    assert same_sets(task.candidates, table.candidates)
    assert 0 < (task.labels >= 0).sum() < 48
    assert task.labels.tolist() == table.labels.tolist()
    assert not (out / "candidates.parquet").exists()
    assert (done.summary["annotator"], done.summary["zero_shot"]) == (None, None)
    assert done.summary["candidates"]["truth_inside"] == 1.0
    assert "zero_shot" not in done.summary["pseudolabels"]
    assert "accuracy" in done.summary["pseudolabels"]
    lines = lines_of_run(done)
    assert lines[0].startswith("candidates of the data: 48 images, ")
    assert lines[-1] == f"pseudolabels that are right: {done.summary['pseudolabels']['accuracy']:.4f}"
    given = [row for row in done.labels.to_pylist() if row["source"] == "given"]
    assert len(given) == int((task.labels >= 0).sum())
    assert all(row["label"] == truth_in(Path(row["id"]).name) for row in given)


def test_fit__resume_refuses_other_candidates(digits: Path, tmp_path: Path) -> None:
    how: dict[str, Any] = {"size": 8, **QUICK, "classes": NAMES}
    first = write_table(tmp_path / "t.csv", digits, candidates=lambda name: f"{truth_in(name)}|one")
    done = lw.fit(first, out=tmp_path / "run", **how)
    (done.path / "summary.json").unlink()
    write_table(tmp_path / "t.csv", digits, candidates=lambda name: f"{truth_in(name)}|two")
    with pytest.raises(LabelwrightError, match="the candidates changed since this run began"):
        lw.fit(first, out=tmp_path / "run", resume=True, **how)


# ---- names repaired before annotating --------------------------------------------------------------------------------


def world(n_each: int = 20) -> tuple[LabelTable, EmbeddingViews, Any]:
    """Images around three corners; the text "a photo of a dog" points nowhere, and a good description to the third."""
    corners = torch.eye(4)[:3]
    g = torch.Generator().manual_seed(0)
    z = F.normalize(corners.repeat_interleave(n_each, 0) + 0.1 * torch.randn(3 * n_each, 4, generator=g), dim=1)
    views = EmbeddingViews(EmbeddingStore(z.half().numpy()[None]))

    class Words:
        logit_scale, n_features, identity = 20.0, 4, "made up"

        def text_feats(self, texts: Any) -> torch.Tensor:
            known = {"cat": [1.0, 0, 0, 0], "owl": [0, 1.0, 0, 0], "dog": [-1.0, -1, -1, 1], "spots": [0, 0, 1.0, 0.2]}
            rows = [next((v for k, v in known.items() if k in text), [0, 0, 0, -1.0]) for text in texts]
            return F.normalize(torch.tensor(rows), dim=1)

    import pyarrow as pa

    from labelwright.data.table import Images

    ids = pa.array([f"{i}" for i in range(3 * n_each)], pa.large_string())
    table = LabelTable(Images(ids), ids, np.full(3 * n_each, -1, np.int32), ("cat", "owl", "dog"))
    return table, views, Words()


def test_match_names__a_good_description_takes_the_place_of_the_name() -> None:
    table, views, words = world()
    by_name = match_names(Annotator("m", is_chat=False, rule="mean"), table, views, words)
    assert 2 not in by_name.candidates.classes.tolist()
    assert "descriptions" not in by_name.counts
    texts = {"dog": ["the dog itself", "something with spots"]}
    told = match_names(Annotator("m", is_chat=False, rule="mean", descriptions=texts), table, views, words)
    assert told.counts["mismatched"] == ["dog"]
    assert told.counts["descriptions"] == {"dog": "something with spots"}
    assert told.counts["rejected"] == {"dog": ["the dog itself"]}
    assert told.candidates.classes.tolist() == [0] * 20 + [1] * 20 + [2] * 20
    assert told.info["offered_descriptions"] == texts


def test_match_names__only_unlabelled_images_judge_a_name() -> None:
    table, views, words = world()
    labels = np.full(60, -1, np.int32)
    labels[40:] = 2  # the images that would bear the description out are labelled
    texts = {"dog": ["something with spots"]}
    who = Annotator("m", is_chat=False, rule="mean", descriptions=texts)
    told = match_names(who, dataclasses.replace(table, labels=labels), views, words)
    assert told.counts["descriptions"] == {}


def test_fit_and_annotate__descriptions_reach_sets_concepts_and_what_is_told(
    digits: Path, tmp_path: Path, recipe: from_candidates.Guessed
) -> None:
    # No image of the data shows a seven: the name explains the images of twos far worse than their own.
    names, looks = ["zero", "one", "seven", "three"], {"seven": ["two"]}
    common: dict[str, Any] = {"classes": names, "descriptions": looks}
    verb = lw.annotate(digits, model=CLIP, out=tmp_path / "c.parquet", device="cpu", precision="fp32", **common)
    done = lw.fit(digits, out=tmp_path / "run", model=CLIP, **common, **QUICK)
    assert verb.counts["descriptions"] == {"seven": "two"}
    (task,) = recipe.tasks
    assert same_sets(task.candidates, load(verb.path).candidates)
    renamed = lw.annotate(digits, classes=NAMES, model=CLIP, out=tmp_path / "z.parquet", device="cpu", precision="fp32")
    assert same_sets(task.candidates, load(renamed.path).candidates)  # the prompts are those of the name "two"
    assert task.concepts is not None
    plain = load_two_tower(CLIP, device=tiny.CPU, precision="fp32")
    two = torch.stack([plain.text_feats([fill(t, "two")])[0] for t in TEMPLATES["photo27"]]).mean(0)
    assert torch.allclose(task.concepts.feats[2], F.normalize(two, dim=0), atol=1e-5)
    annotator = done.summary["annotator"]
    assert annotator["descriptions"] == {"seven": "two"}
    assert annotator["rejected"] == verb.counts["rejected"]
    for path in (verb.path, done.path / "candidates.parquet"):
        info = json.loads(pq.read_schema(path).metadata[b"labelwright"])["annotator"]
        assert info["counts"]["descriptions"] == {"seven": "two"}
    lines = lines_of_run(done)
    assert "described in the prompts instead of named: 1 class" in lines
    assert "  'seven': 'two'" in lines


# ---- chat annotators, kills and resumes ------------------------------------------------------------------------------


def says_truth(seen: Seen) -> str:
    """The same answer to the same image, whatever the phrasing."""
    assert seen.image is not None
    return NAMES[int(np.asarray(seen.image.convert("L"), np.int64).sum()) % 4]


def tree_of(run: lw.Run) -> tuple[bytes, bytes]:
    return (run.path / "labels.parquet").read_bytes(), (run.path / "model" / "model.safetensors").read_bytes()


def test_fit__a_chat_annotator_killed_while_asking_loses_nothing(digits: Path, tmp_path: Path) -> None:
    how: dict[str, Any] = {**HOW, "annotator": "m", "phrasings": 1}
    with ChatStub(says_truth) as stub:
        whole = lw.fit(digits, out=tmp_path / "whole", chat_url=stub.url, **how)
        assert len(stub.seen) == 48
    assert whole.summary["annotator"]["n_calls"] == 48
    assert whole.summary["candidates"]["mean_set_size"] == 1.0
    assert whole.summary["zero_shot"] is None

    out, journal = tmp_path / "cut", tmp_path / "cut" / "candidates.answers.jsonl"

    def slowly(seen: Seen) -> str:
        if len(stub.seen) > 12:
            time.sleep(0.3)
        return says_truth(seen)

    with ChatStub(slowly) as stub:
        code = (
            "import sys, torch; sys.path.insert(0, sys.argv[1]); torch.set_num_threads(1)\n"
            "import json, labelwright as lw, from_candidates\n"
            "from labelwright.methods.registry import METHODS\n"
            "METHODS['guessed'] = from_candidates.method()[0]\n"
            "lw.fit(sys.argv[2], out=sys.argv[3], chat_url=sys.argv[4], **json.loads(sys.argv[5]))\n"
        )
        words = [str(Path(__file__).parents[2]), str(digits), str(out), stub.url, json.dumps(how)]
        child = subprocess.Popen([sys.executable, "-c", code, *words], stderr=subprocess.DEVNULL)
        end = time.monotonic() + 60
        while not (journal.exists() and journal.read_bytes().count(b"\n") > 10):
            assert child.poll() is None
            assert time.monotonic() < end
            time.sleep(0.02)
        child.send_signal(signal.SIGKILL)
        assert child.wait(30) == -signal.SIGKILL
    n_kept = journal.read_bytes().count(b"\n") - 1
    assert 10 <= n_kept < 48
    assert not (out / "candidates.parquet").exists()
    with ChatStub(says_truth) as stub:
        again = lw.fit(digits, out=out, chat_url=stub.url, resume=True, **how)
        assert len(stub.seen) == 48 - n_kept
    assert tree_of(again) == tree_of(whole)
    assert again.summary["annotator"]["n_from_journal"] == n_kept
    assert not list(out.rglob("*.tmp"))


class Killed(BaseException):
    """Nothing catches this: the folder stays as it is at that moment."""


def test_fit__killed_while_training_asks_nothing_again(
    digits: Path, tmp_path: Path, recipe: from_candidates.Guessed, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = lw.fit(digits, out=tmp_path / "whole", **HOW)
    step, n_steps = recipe.step, 0

    def dies(*args: Any) -> Any:
        nonlocal n_steps
        n_steps += 1
        if n_steps == 5:  # of 6, in the second epoch
            raise Killed
        return step(*args)

    monkeypatch.setattr(recipe, "step", dies)
    with pytest.raises(Killed):
        lw.fit(digits, out=tmp_path / "cut", **HOW)
    monkeypatch.setattr(recipe, "step", step)
    before = (tmp_path / "cut" / "candidates.parquet").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("labelwright.annotators.training_candidates.match_names", None)  # asking again would fail
        again = lw.fit(digits, out=tmp_path / "cut", resume=True, **HOW)
    assert (again.path / "candidates.parquet").read_bytes() == before
    assert tree_of(again) == tree_of(whole)
    assert again.summary["candidates"] == whole.summary["candidates"]
    assert again.summary["annotator"] == whole.summary["annotator"]


def test_fit__a_run_that_only_asked_so_far_takes_other_settings_but_no_other_annotator(
    digits: Path, tmp_path: Path, recipe: from_candidates.Guessed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*args: Any) -> Any:
        raise Killed

    out = tmp_path / "run"
    monkeypatch.setattr(recipe, "setup", dies)
    with pytest.raises(Killed):
        lw.fit(digits, out=out, **HOW)
    monkeypatch.undo()
    method, _ = from_candidates.method()
    monkeypatch.setitem(METHODS, "guessed", method)
    (out / ".candidates.parquet.1.tmp").write_bytes(b"half")
    config = (out / "config.yaml").read_bytes()
    with pytest.raises(ConfigError, match="made with rule 'top_k', and 'mean' is asked for now"):
        lw.fit(digits, out=out, resume=True, **{**HOW, "rule": "mean"})
    with pytest.raises(LabelwrightError, match="the training images changed"):
        lw.fit(digits, out=out, resume=True, **{**HOW, "classes": NAMES[::-1]})
    done = lw.fit(digits, out=out, resume=True, **{**HOW, "epochs": 1})
    assert (out / "config.yaml").read_bytes() != config
    assert len(done.labels) == 48


def test_fit__a_refusal_after_the_questions_keeps_the_answers(digits: Path, tmp_path: Path) -> None:
    how: dict[str, Any] = {**HOW, "annotator": "m", "phrasings": 1}
    out = tmp_path / "run"
    with ChatStub(says_truth) as stub:
        with pytest.raises(ConfigError, match="stopped before anything was asked"):
            lw.fit(digits, out=out, chat_url=stub.url, approve=lambda estimate: estimate.n_calls != 48, **how)
        assert stub.seen == []
        assert not out.exists()
        with pytest.raises(ConfigError, match="leaves nothing to train"):
            lw.fit(digits, out=out, chat_url=stub.url, freeze=("*",), **how)
        assert len(stub.seen) == 48
        done = lw.fit(digits, out=out, chat_url=stub.url, resume=True, **how)
        assert len(stub.seen) == 48
    assert len(done.labels) == 48
    with pytest.raises(ConfigError, match="leaves nothing to train"):
        lw.fit(digits, out=tmp_path / "two towers", **{**HOW, "freeze": ("*",)})
    assert not (tmp_path / "two towers").exists()  # that costs nothing to do again


# ---- hidden truth ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sees", ["embeddings", "pixels"])
def test_hidden_truth__decides_nothing_but_the_scores(sees: str, digits: Path, tmp_path: Path) -> None:
    names = [p.name for p in sorted(digits.iterdir())]
    shuffled = dict(zip(names, np.random.default_rng(0).permutation(names), strict=True))
    who = {"model": CLIP} if sees == "embeddings" else {"annotator": CLIP, "size": 8}
    how: dict[str, Any] = {"classes": NAMES, "descriptions": {"one": ["two", "a thing"]}, **who, **QUICK}
    runs = []
    for truth in (truth_in, lambda name: truth_in(shuffled[name])):
        data = write_table(tmp_path / "pool.csv", digits, truth=truth)
        runs.append(lw.fit(data, out=tmp_path / str(len(runs)), **how))
    first, second = (run.path for run in runs)
    for name in ("labels.parquet", "config.yaml", "data.json", "model/model.safetensors", "model/config.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    columns = ["id", "label", "candidates", "weights"]
    kept = [pq.read_table(path / "candidates.parquet", columns=columns) for path in (first, second)]
    assert kept[0].equals(kept[1])
    scored = ("candidates", "pseudolabels", "reference", "seconds", "images_per_second", "input_frac", "peak_memory_mb")
    rest = [{key: value for key, value in run.summary.items() if key not in (*scored, "guesses")} for run in runs]
    assert rest[0] == rest[1]
    counts = [{key: run.summary["guesses"][key] for key in ("named", "first", "is_ranked", "sizes")} for run in runs]
    assert counts[0] == counts[1]
    assert runs[0].summary["guesses"]["accuracy"] > runs[1].summary["guesses"]["accuracy"] + 0.2
    accuracies = [run.summary["pseudolabels"]["zero_shot"]["accuracy"] for run in runs]
    assert accuracies[0] > accuracies[1] + 0.2  # the truth was there, and was scored against
    inside = [run.summary["candidates"]["truth_inside"] for run in runs]
    assert inside[0] > inside[1]


# ---- what cannot be, and how long ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said", "fix"),
    [
        ({"annotator": None}, "the data have none, and no model is named", "--annotator, e.g. openai/clip"),
        ({"annotator": None, "model": "resnet18"}, "the data have none, and no model is named", "--annotator"),
        (
            {"annotator": None, "model": CLIP, "pretrained": False},
            "no model is named that could give them",
            "--annotator",
        ),
        ({"annotator": "VIT"}, "images or texts but not both", "two-tower"),
        ({"annotator": None, "model": "VIT"}, "no model is named that could give them", "--annotator"),
        ({"annotator": "./nowhere"}, "no such model folder: ./nowhere", "check the path"),
        ({"rule": "most"}, "rule='most' is not possible", "union"),
        ({"ratio": 0.0, "rule": "ratio"}, "ratio=0.0 is not possible", "above 0"),
        ({"templates": "phot27"}, "no templates 'phot27'", "did you mean photo27?"),
        ({"phrasings": 0}, "phrasings=0 is not possible", "at least 1"),
        ({"method": "ce"}, "ce asks no annotator", "leave --annotator out"),
        (
            {"annotator": "m", "chat_url": "http://localhost:9", "descriptions": {"one": ["x"]}},
            "no descriptions",
            "CLIP",
        ),
        ({"descriptions": {"yak": ["a big dog"]}}, "descriptions of unknown classes: yak", "class names"),
        ({"describe_with": "m"}, "guessed reads no descriptions", "leave them out"),
    ],
)
def test_fit__what_cannot_be(change: dict[str, Any], said: str, fix: str, digits: Path, tmp_path: Path) -> None:
    vit = str(clip_folders.save_vision(tmp_path / "vit", size_px=16))
    data = digits
    if change.get("method") == "ce":
        data = write_table(tmp_path / "t.csv", digits, label=truth_in)
    wanted = {**HOW, **{key: vit if value == "VIT" else value for key, value in change.items()}}
    with pytest.raises(LabelwrightError) as caught:
        lw.fit(data, out=tmp_path / "run", **wanted)
    assert said in str(caught.value)
    assert fix in (caught.value.fix or "")
    assert caught.value.exit_code == 2
    assert not (tmp_path / "run").exists()


def test_fit__candidates_and_who_would_make_others(digits: Path, tmp_path: Path) -> None:
    data = write_table(tmp_path / "t.csv", digits, candidates=lambda name: f"{truth_in(name)}|one")
    for change, said in (
        ({}, "the data have candidates, and --annotator would make others"),
        ({"annotator": None, "descriptions": {"one": ["x"]}}, "descriptions would not be used"),
    ):
        with pytest.raises(ConfigError, match=said):
            lw.fit(data, out=tmp_path / "run", **{**HOW, **change})
        assert not (tmp_path / "run").exists()


def test_fit__embeddings_learn_from_their_candidates_and_cannot_be_annotated(
    tmp_path: Path, recipe: from_candidates.Guessed
) -> None:
    import pyarrow as pa

    truth = tiny.classes_of((16, 10, 8))
    columns = {"embedding": tiny.TinyFeats(truth).x.tolist(), "id": [str(i) for i in range(34)]}
    sets = [[NAMES[c], NAMES[(c + 1) % 3]] for c in truth]
    pq.write_table(pa.table({**columns, "candidates": sets}), tmp_path / "with.parquet")
    pq.write_table(pa.table(columns), tmp_path / "without.parquet")
    done = lw.fit(tmp_path / "with.parquet", out=tmp_path / "run", classes=NAMES[:3], **QUICK)
    assert done.summary["candidates"]["mean_set_size"] == 2.0
    assert recipe.tasks[0].concepts is None
    with pytest.raises(ConfigError, match="these embeddings have none"):
        lw.fit(tmp_path / "without.parquet", out=tmp_path / "no", classes=NAMES[:3], **QUICK)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("n_images", "sees", "is_set", "epochs"),
    [
        (1000, "pixels", False, 75),  # two networks see four views of an image
        (100_000, "pixels", False, 15),
        (10, "pixels", False, 400),  # never more than the method's own
        (1000, "pixels", True, 400),
        (100_000, "embeddings", False, 20),
        (10, "embeddings", False, 400),
        (100_000, "embeddings", True, 400),
    ],
)
def test_schedule__epochs(n_images: int, sees: str, is_set: bool, epochs: int) -> None:
    method, _ = from_candidates.method()
    given = ("epochs",) if is_set else ()
    for is_cpu in (True, False):
        n_passes = 600_000.0 if is_cpu else None
        budget = Budget(n_images, 0, is_stored=sees == "embeddings", is_cpu=is_cpu, n_passes=n_passes)
        wanted = epochs if is_cpu or sees == "embeddings" else 400
        assert method.schedule(from_candidates.Config(), budget, given).epochs == wanted
