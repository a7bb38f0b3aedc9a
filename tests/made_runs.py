"""Made-up run folders of every situation, with pictures and hostile names, for tests of the report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from PIL import Image

from labelwright.metrics.classification import score, top_confusions
from labelwright.reporting.gallery import picture, write_gallery

EVIL = '</script><script>document.title="owned"</script>'
QUOTES = "\"><img src=x onerror=\"document.title='owned'\"> 'q' {{ 7*7 }} [b]"
RTL = "‮بومة"
NAMES = ["airplane", QUOTES, "bird", EVIL, "deer", RTL]
COUNTS = [900, 310, 120, 40, 15, 6]
SITUATIONS = ("no_labels", "few_labels", "candidates", "long_tailed", "balanced", "open_world", "bare")
METHODS = {
    "no_labels": "cap",
    "few_labels": "beliefs",
    "candidates": "coreg",
    "long_tailed": "cross_validated",
    "balanced": "ce",
    "open_world": "lps",
    "bare": "ce",
}


def made_up_run(folder: Path, situation: str, **more: Any) -> Path:
    """A run folder of a situation: one of `SITUATIONS`; "bare" is one without test images, labels or pictures.

    Args: more: keys of summary.json on top.
    """
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    summary: dict[str, Any] = {
        **{"situation": situation, "method": METHODS[situation], "encoder": "tiny", "n_images": 1391, "n_classes": 6},
        **{"n_labelled": 0 if situation in ("no_labels", "candidates") else 1391, "seed": 0, "test": None},
        **{"seconds": {"train": 61.0, "label": 2.0}, "warnings": [], "trust": {"source": "none", "n": 0}},
    }
    summary["answer"] = {"name": METHODS[situation], "title": "Its own", "best": METHODS[situation], "why": "as asked"}
    data = {"class_names": NAMES, "train_counts": COUNTS, "fingerprint": situation, "test_is": "given"}
    records: list[dict[str, Any]] = []
    if situation != "bare":
        summary |= _scores(draw) | _of_situation(situation)
        records = _records(situation)
        labels, gallery = _labels(situation, draw), _gallery(situation, draw)
        pq.write_table(labels, folder / "labels.parquet")
        write_gallery(folder, gallery)
        data["quarantined"] = [{"where": f"photos/{EVIL}.jpg", "kind": "unreadable", "detail": "truncated file"}]
        summary["warnings"] = [f"accuracy has not moved {EVIL}"]
    _write(folder / "summary.json", summary | more)
    _write(folder / "data.json", data)
    config = {"data": f"photos/{QUOTES}", "method": METHODS[situation]}
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    _write(folder / "environment.json", {"python": "3.11.7", "packages": {"torch": "2.13.0"}})
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(lines, encoding="utf-8")
    return folder


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, allow_nan=False), encoding="utf-8")


def _scores(draw: np.random.Generator) -> dict[str, Any]:
    truth = torch.arange(6).repeat_interleave(50)
    hit = torch.from_numpy(draw.random(300)) < torch.linspace(0.98, 0.6, 6)[truth]
    predicted = torch.where(hit, truth, (truth + 1) % 6)
    confidence = torch.from_numpy(0.5 + 0.5 * draw.random(300))
    test = score(predicted, confidence, truth, n_classes=6, train_counts=COUNTS)
    test["confusions"] = top_confusions(predicted, truth, NAMES)
    own = {"title": "Its own", "left_out": 0.8, "test": {"balanced_accuracy": test["balanced_accuracy"]}}
    other = {"title": "Balanced logistic regression", "left_out": 0.7, "test": {"balanced_accuracy": 0.6}}
    rest = {"unlabelled": None, "seconds": 1.0}
    return {"test": test, "reference": {"own": own | rest, "class_balanced": other | rest}, "answer": {
        "name": "own", "title": "Its own", "best": "own", "why": "the best on labels that were left out"}}  # fmt: skip


def _of_situation(situation: str) -> dict[str, Any]:
    before = {"accuracy": 0.5, "per_class": [0.9, 0.1, 0.5, 0.5, 0.5, 0.0], "counts": [800, 0, 300, 200, 50, 41]}
    after = {"accuracy": 0.8, "per_class": [0.9, 0.8, 0.8, 0.8, 0.8, 0.7], "counts": [300, 250, 250, 250, 200, 141]}
    named = {"zero_shot": before, "pseudolabels": {**after, "zero_shot": before}}
    if situation == "no_labels":
        return named
    if situation == "candidates":
        sets = {"n_images": 1391, "mean_set_size": 2.4, "largest_set": 5, "n_empty": 3, "n_single": 90}
        guesses = {"named": [900, 0, 500, 400, 300, 200], "first": [900, 0, 200, 150, 100, 41], "is_ranked": True}
        annotator = {"name": "tiny-clip", "kind": "two towers", "rule": "top_k", "top_k": 3}
        own = {"rule": "auto", "truth_inside": 0.9, "outside_frac": 0.2, "label_outside_frac": 0.1}
        return {**named, "candidates": sets, "guesses": guesses, "annotator": annotator, "own_sets": own}
    if situation == "open_world":
        curve = [{"n_novel": n, "score": s} for n, s in ((1, 0.1), (2, 0.6), (3, 0.3))]
        evidence = {"n_novel": 2, "plausible": [2, 3], "curve": curve, "reason": f"a valley {EVIL}"}
        clusters = [
            {"name": "novel-1", "n_images": 40, "tightness": 0.8, "central": ["img/0", "img/1"],
             "taken_for": [[EVIL, 0.6]], "proposed": [[QUOTES, 0.2]]},
            {"name": "novel-2", "n_images": 0, "tightness": None, "central": [], "taken_for": []},
        ]  # fmt: skip
        scores = {
            "seen": 0.9,
            "novel": 0.7,
            "all": 0.8,
            "to_seen": 0.1,
            "to_novel": 0.1,
            "matched": [*NAMES, EVIL, None],
        }
        novel = {"evidence": evidence, "clusters": clusters}
        return {"n_seen": 6, "n_novel": 2, "novel": novel, "pseudolabels": scores}
    return {}


def _records(situation: str) -> list[dict[str, Any]]:
    begin: dict[str, Any] = {"kind": "begin"}
    if situation == "no_labels":
        begin |= {"class_names": NAMES, "mismatched": [EVIL], "evidence": [0.9, 0.8, 0.7, 0.1, 0.6, 0.5]}
        begin |= {"descriptions": {EVIL: QUOTES}, "rejected": {"bird": [EVIL]}}
    epochs = []
    for e in range(6):
        record: dict[str, Any] = {"kind": "epoch", "epoch": e, "loss": 2.0 * 0.8**e, "flat": 0.5}
        record["test"] = {"accuracy": 0.5 + 0.05 * e, "balanced_accuracy": 0.5, "seen": 0.9, "novel": 0.3 + 0.05 * e}
        record |= {"gini": 0.5 - 0.05 * e, "cluster_agreement": 0.6 + 0.02 * e, "kept_epoch": min(e, 3)}
        record |= {"reliable_frac": 0.5 + 0.05 * e}
        epochs.append(record)
    return [begin, *epochs]


def _labels(situation: str, draw: np.random.Generator) -> pa.Table:
    n = 60
    names = [*NAMES, "novel-1"] if situation == "open_world" else NAMES
    given = situation in ("long_tailed", "balanced")
    columns: dict[str, Any] = {
        "id": [f"img/{i}" for i in range(n - 2)] + [EVIL, QUOTES],
        "label": [names[i % len(names)] for i in range(n)],
        "trust": (0.2 + 0.8 * draw.random(n)).tolist(),
        "runner_up": [names[(i + 1) % len(names)] for i in range(n)],
        "source": ["given" if given else "predicted"] * n,
        "decision": ["review"] * n,
    }
    if situation == "candidates":
        columns["candidates"] = [f"airplane|{EVIL}"] * n
        columns["outside_candidates"] = [i % 3 == 0 for i in range(n)]
    return pa.table(columns)


def _gallery(situation: str, draw: np.random.Generator) -> dict[str, Any]:
    ids = [*(f"img/{i}" for i in range(58)), EVIL, QUOTES]
    url = [picture(Image.fromarray(draw.integers(0, 255, (s, s, 3)).astype(np.uint8))) for s in (8, 64)]
    facts = {
        "top": [[EVIL, 0.5], ["bird", 0.3]],
        "history": [["first guess", "deer"], ["Its own", QUOTES]],
        "neighbours": [["img/3", EVIL, "given"], ["img/4", RTL, "predicted"]],
    }
    items = {key: dict(facts) for key in ids}
    items |= {f"test/{i}": facts | {"label": "bird", "rather": EVIL, "probability": 0.9} for i in range(3)}
    matrix = [[40 if i == j else 2 if j == (i + 1) % 6 else 0 for j in range(6)] for i in range(6)]
    bins = [{"n": 30, "trust": t / 10 + 0.05, "right": round(30 * (t / 10))} for t in range(3, 10)]
    surest = [
        {"share": i / 10, "n": 30 * i, "right": min(30 * i, round(30 * i * (1.02 - 0.03 * i)))} for i in range(1, 11)
    ]
    return {
        "items": items,
        "samples": {name: ["img/1", "img/2"] for name in NAMES},
        "matrix": None if situation == "open_world" else matrix,
        "trust": {
            "basis": "test images",
            "bins": bins,
            "surest": [{**s, "right": min(s["n"], s["right"])} for s in surest],
        },
        "large": {key: url[i % 2] for i, key in enumerate(items)},
        "small": {f"img/{i}": url[i % 2] for i in range(12)},
    }
