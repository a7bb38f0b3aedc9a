"""How often a run's choice among its own answer, its start and the obvious ones is right.

    python benchmarks/choices.py NAME=TRAIN.npz,TEST.npz [MORE …] [--seeds 3] [--situations few-5 long] [--csv F]

Files hold `embeddings` [N, D] and `labels` [N], as labelwright reads them; `pool_features.py` writes those of the
target pools, `labelwright embed` those of any images and network. From each, by seed: `few-K`, K labels a
class and the other images unlabelled; `long`, a long tail of the labels (see long_tailed_features.py); `all`, every
label; `open-P`, half of the classes named, the share P of their images labelled; `open-auto`, the same of a half. Every
run is `labelwright fit` without a method (`open-P`: told the true number of classes). Printed, a row per run: the
answer, its score, what was trained, the best reference, and what was lost to the best of all; scores are balanced
accuracy on TEST in percent, for `open` the accuracy on the unlabelled images.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import labelwright as lw
from beliefs import with_few
from labelwright.benchmarking.results import Row, add_rows
from labelwright.data.splits import seen_novel
from long_tailed_features import long_tail

SITUATIONS = ("few-1", "few-2", "few-5", "few-20", "rare-2", "rare-5", "rare-20", "long", "all", "open-0.1", "open-0.5")
RARE, RARE_TIMES = 0.05, 2  # share of the rare one of two classes, and its images for each label where that is more
COLUMNS = (
    "pool",
    "situation",
    "seed",
    "answer",
    "score",
    "own",
    "best_reference",
    "reference_score",
    "lost",
    "seconds",
)


def read(path: Path) -> dict[str, Any]:
    """Embeddings and labels as class names."""
    with np.load(path) as file:
        feats, labels = file["embeddings"], file["labels"]
        names = file["class_names"] if "class_names" in file else np.unique(labels).astype(str)
        groups = {"groups": file["groups"]} if "groups" in file else {}
    names = np.array([str(name) for name in names])
    is_index = labels.dtype.kind in "iu"
    return {"embeddings": feats, "labels": names[labels] if is_index else labels.astype(names.dtype), **groups}


def two_of(train: dict[str, Any], seed: int, *, least: int) -> dict[str, Any]:
    """Images of two classes, of the first a twentieth of all, but `least` of them where it has as many."""
    draw = np.random.default_rng(seed)
    rare, usual = (np.flatnonzero(train["labels"] == c) for c in draw.choice(np.unique(train["labels"]), 2, False))
    some = draw.permutation(rare)[: max(least, round(RARE * len(usual) / (1 - RARE)))]
    rows = np.sort(np.concatenate([some, usual]))
    return {key: value[rows] for key, value in train.items()}


def of_classes(images: dict[str, Any], labels: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Images of the classes that these labels name."""
    shown = np.isin(images["labels"], labels)
    return {key: value[shown] for key, value in images.items()}


def arranged(train: dict[str, Any], situation: str, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The training file of a situation, and settings of `fit`."""
    kind, _, amount = situation.partition("-")
    classes = np.unique(train["labels"])
    if kind == "rare":
        train, kind = two_of(train, seed, least=RARE_TIMES * int(amount)), "few"
    if kind == "few":
        kept = with_few(train["labels"], int(amount), seed)
        return train | {"labels": np.where(kept, train["labels"], ""), "truth": train["labels"]}, {}
    if kind == "long":
        rows = long_tail(train["labels"], 300, 60.0, seed)
        return {key: value[rows] for key, value in train.items()}, {}
    if kind == "open":
        index = np.searchsorted(classes, train["labels"])
        order = np.random.default_rng(seed).permutation(len(classes))
        n_seen = (len(classes) + 1) // 2
        frac = 0.5 if amount == "auto" else float(amount)
        labelled, _ = seen_novel(np.argsort(order)[index], seen=n_seen, labelled_frac=frac, seed=seed)
        given = np.full(len(index), "", dtype=classes.dtype)
        given[labelled] = train["labels"][labelled]
        names = np.sort(classes[order[:n_seen]])
        changed = {"labels": given, "truth": train["labels"], "class_names": names}
        return train | changed, {"novel": "auto" if amount == "auto" else len(classes) - n_seen, "test_frac": 0}
    return train, {}


def rows_of(pools: dict[str, tuple[Path, Path]], situations: list[str], seeds: int) -> Iterator[dict[str, Any]]:
    """A row for every run."""
    for pool, (train_path, test_path) in pools.items():
        train, test = read(train_path), read(test_path)
        for situation in situations:
            for seed in range(seeds):
                file, settings = arranged(train, situation, seed)
                with tempfile.TemporaryDirectory() as folder:
                    np.savez(f"{folder}/train.npz", **file)
                    np.savez(f"{folder}/test.npz", **of_classes(test, file.get("truth", file["labels"])))
                    if not situation.startswith("open"):
                        settings |= {"test": f"{folder}/test.npz"}
                    run = lw.fit(f"{folder}/train.npz", out=f"{folder}/run", seed=seed, evaluations=0, **settings)
                    summary, environment = run.summary, run.environment  # read while they are there
                beside, own = summary["reference"], summary["method"]
                scores = {
                    name: 100 * (each["test"]["balanced_accuracy"] if each["test"] else each["unlabelled"])
                    for name, each in beside.items()
                }
                obvious = {name: score for name, score in scores.items() if name not in (own, "start")}
                best, answer = max(obvious, key=lambda name: obvious[name]), summary["answer"]["name"]
                yield {
                    "pool": pool,
                    "situation": situation,
                    "seed": seed,
                    "answer": answer,
                    "score": round(scores[answer], 2),
                    "own": round(scores[own], 2),
                    "best_reference": best,
                    "reference_score": round(obvious[best], 2),
                    "lost": round(max(scores.values()) - scores[answer], 2),
                    "seconds": round(sum(summary["seconds"].values()), 1),
                    "environment": environment,
                }


def results_of(script: str, row: dict[str, Any], model: str, shown: dict[str, tuple[str, str, float]]) -> list[Row]:
    """Rows for docs/results of a run: cell -> (title, metric, value)."""
    there = row["environment"]
    machine = f"{there['device']} ({there['processor']}, {there['n_threads']} threads), {there['precision_used']}"
    return [
        {
            "table": f"{script} {row['pool']}",
            "model": model,
            "cell": f"{row['situation']}-{cell}",
            "title": f"{row['situation']}: {title}",
            "metric": metric,
            "value": f"{value:.2f}",
            "seed": str(row["seed"]),
            "seconds": f"{row['seconds']:.0f}",
            "commit": str(there["commit"]),
            "hardware": machine,
        }
        for cell, (title, metric, value) in shown.items()
    ]


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pools", nargs="+", help="NAME=TRAIN.npz,TEST.npz")
    parser.add_argument("--situations", nargs="+", default=list(SITUATIONS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--model", default="", help="what the features are of, for the file of results")
    parser.add_argument("--csv", type=Path, help="file of results to add rows to")
    options = parser.parse_args()
    pools = {}
    for each in options.pools:
        name, _, paths = each.partition("=")
        first, _, second = paths.partition(",")
        pools[name] = (Path(first), Path(second))
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for row in rows_of(pools, options.situations, options.seeds):
        print(f"| {' | '.join(str(row[column]) for column in COLUMNS)} |", flush=True)
        if options.csv:
            metric = "pool_all" if row["situation"].startswith("open") else "balanced_accuracy"
            shown = {
                "answer": ("the answer", metric, row["score"]),
                "trained": ("what was trained", metric, row["own"]),
                "reference": ("the best of the obvious ones", metric, row["reference_score"]),
            }
            add_rows(options.csv, results_of("choices.py", row, options.model, shown))


if __name__ == "__main__":
    main()
