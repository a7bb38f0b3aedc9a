"""The tables of LPS: novel classes on target pools through a model's image tower."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from labelwright.benchmarking.grid import BenchTable, Cell, Given

SEEN: Mapping[str, int] = {"cifar10": 5, "gtsrb": 21}
"""Classes with labels, the first ones."""

_TITLES: Mapping[str, str] = {"cifar10": "CIFAR-10, first 5 classes seen", "gtsrb": "GTSRB, first 21 classes seen"}
_BASELINES: Mapping[str, str] = {
    "ss_kmeans": "Semi-supervised k-means",
    "fixmatch_clusters": "FixMatch + clusters",
    "orca": "ORCA",
    "simgcd": "SimGCD",
}
_PARTS: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "lps": ("LPS", {}),
    "no_clustering": ("no pseudolabel contrastive clustering", {"clustering_weight": 0.0}),
    "no_contrastive": ("no unsupervised contrastive loss", {"contrastive_weight": 0.0}),
    "no_entropy": ("no entropy term", {"entropy_weight": 0.0}),
    "no_margin": ("no margin", {"margin": "none"}),
    "ldam": ("LDAM's margin", {"margin": "ldam"}),
    "la": ("logit adjustment", {"margin": "la"}),
    "cvs": ("offsets of CVS", {"margin": "cvs"}),
    "printed_kl": ("KL(estimate || prior), as printed", {"direction": "estimate_to_prior"}),
    "single": ("one positive: the other view", {"positives": "single"}),
}
_PAPER_PARTS: Mapping[str, object] = {"start": "none", "use_balance": "off", "lr": 0.1, "epochs": 20}
_PAPER_WORDS = "from random weights and not balanced, as in the paper, 20 epochs at lr 0.1"
_TUNED: Mapping[str, object] = {"start": "clusters", "epochs": 8, "batch_size": 64, "lr": 0.001}
"""Settings of LPS and its baselines where the image tower learns as well."""


def _given(name: str, *, frac: float = 0.5, novel: Literal["known", "auto"] = "known", ratio: float = 1.0) -> Given:
    return Given(labels="open_world", n_seen=SEEN[name], labelled_frac=frac, novel=novel, novel_ratio=ratio)


def _lps(title: str, given: Given, more: Mapping[str, object] | None = None) -> Cell:
    return Cell(title, "lps", more or {}, given=given)


def _table(name: str, title: str, cells: Mapping[str, Cell]) -> BenchTable:
    return BenchTable(
        f"{title}, {_TITLES[name]}",
        name,
        cells,
        is_pool=True,
        schedule=(
            "stored features of the un-augmented image and of 2 weak and 2 strong views, all methods at their defaults "
            "for these; half of the images of seen classes labelled where no row says otherwise; accuracy, seen and "
            "novel are of the test images, pool: of the unlabelled ones"
        ),
    )


def _main(name: str) -> BenchTable:
    cells: dict[str, Cell] = {}
    for frac, words in ((0.5, ""), (0.1, "10% labelled: ")):
        given, tag = _given(name, frac=frac), "" if frac == 0.5 else "-10"
        cells |= {f"{key}{tag}": Cell(f"{words}{title}", key, given=given) for key, title in _BASELINES.items()}
        cells[f"lps{tag}"] = _lps(f"{words}LPS", given)
        cells[f"lps-auto{tag}"] = _lps(
            f"{words}LPS, number of classes estimated", _given(name, frac=frac, novel="auto")
        )
    uneven = _given(name, ratio=10)
    cells["ss_kmeans-uneven"] = Cell("unlabelled images uneven, 10 to 1: k-means", "ss_kmeans", given=uneven)
    cells["lps-uneven"] = _lps("unlabelled images uneven, 10 to 1: LPS", uneven)
    return _table(name, "Seen and novel classes", cells)


def _parts(name: str) -> BenchTable:
    given = _given(name)
    cells = {key: _lps(title, given, more) for key, (title, more) in _PARTS.items()}
    cells["no_beliefs"] = _lps("starts from k-means as it is", given, {"start": "clusters"})
    cells["no_balance"] = _lps("targets not balanced", given, {"use_balance": "off"})
    for key, (title, more) in _PARTS.items():
        cells[f"plain-{key}"] = _lps(f"{_PAPER_WORDS}: {title}", given, {**_PAPER_PARTS, **more})
    return _table(name, "LPS without its parts and with other margins", cells)


def _sweeps(name: str) -> BenchTable:
    swept: dict[str, Mapping[str, object]] = {"defaults": {}}
    swept |= {f"temperature {value:g}": {"temperature": value} for value in (0.1, 0.2, 0.8)}
    swept |= {
        f"novel confidence {low:g} to {low + 0.4:g}": {"novel_confidence": (low, low + 0.4)} for low in (0.2, 0.6)
    }
    swept |= {f"seen confidence {value:g}": {"seen_confidence": value} for value in (0.5, 0.8)}
    swept |= {f"margin scale {value:g}": {"margin_scale": value} for value in (3.0, 30.0)}
    cells = {title.replace(" ", "-"): _lps(title, _given(name), more) for title, more in swept.items()}
    for title, more in swept.items():
        key = f"plain-{title.replace(' ', '-')}"
        cells[key] = _lps(f"{_PAPER_WORDS}: {title}", _given(name), {**_PAPER_PARTS, **more})
    return _table(name, "Temperature, thresholds and margin of LPS", cells)


def _tuned(name: str) -> BenchTable:
    stored = dataclasses.replace(_given(name), share=0.2)
    pixels = dataclasses.replace(stored, views="pixels")
    cells = {"frozen-ss_kmeans": Cell("frozen: semi-supervised k-means", "ss_kmeans", given=stored)}
    cells["frozen"] = _lps("frozen: LPS", stored)
    for layers, words, rates in (
        ("head", "frozen, from pixels", (0.001,)),
        ("last_stage", "last block tuned", (0.00001, 0.0001, 0.001, 0.01)),
        ("all", "all blocks tuned", (0.001,)),
    ):
        for lr in rates:
            more = {**_TUNED, "start": "beliefs", "train_layers": layers, "lr": lr}
            cells[f"{layers}-{lr:g}"] = _lps(f"{words}, lr {lr:g}: LPS", pixels, more)
    for key in ("simgcd", "orca"):
        cells[f"last_stage-{key}"] = Cell(f"last block tuned, lr 0.001: {_BASELINES[key]}", key, _TUNED, given=pixels)
    cells["last_stage-random"] = _lps(
        "last block tuned, lr 0.01, last layer from random weights: LPS",
        pixels,
        {**_TUNED, "start": "none", "lr": 0.01},
    )
    facts = ", ".join(f"{key} {value}" for key, value in _TUNED.items() if key != "lr")
    return dataclasses.replace(
        _table(name, "Image tower frozen or tuned", cells),
        schedule=(
            "a fifth of the pool, half of the images of seen classes labelled; frozen: stored features, defaults; "
            f"tuned, from pixels: {facts}; accuracy, seen, novel: test images, pool: unlabelled ones"
        ),
    )


LPS_TABLES: Mapping[str, BenchTable] = {
    "lps-cifar10": _main("cifar10"),
    "lps-gtsrb": _main("gtsrb"),
    "lps-parts-cifar10": _parts("cifar10"),
    "lps-parts-gtsrb": _parts("gtsrb"),
    "lps-sweeps-cifar10": _sweeps("cifar10"),
    "lps-tuned-cifar10": _tuned("cifar10"),
}
"""Name -> table; each needs ``--model``, whose image tower makes the features."""
