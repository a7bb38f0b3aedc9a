"""Seconds of whole runs on 25,000 stored features of 512 numbers and 100 classes, references included.

    python benchmarks/large_fits.py [--images 25000] [--features 512] [--classes 100]

The features are made up: a mean per class, noise in 64 directions of uneven size that all classes share. Every
situation that stored features can be in is run once with `labelwright fit` and the method that it chooses: printed are
the seconds by phase, and how right the answer is.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import labelwright as lw


def made_up(n: int, d: int, c: int, seed: int = 0) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], Any]:
    """Unit features [n, d], classes [n], and noisy texts [c, d] of the classes."""
    draw = np.random.default_rng(seed)
    means = draw.standard_normal((c, d))
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    directions = draw.standard_normal((64, d)) * np.linspace(0.6, 0.1, 64)[:, None] / np.sqrt(d)
    truth = draw.integers(c, size=n)
    feats = means[truth] + draw.standard_normal((n, 64)) @ directions + 0.8 * draw.standard_normal((n, d)) / np.sqrt(d)
    texts = means + 0.6 * draw.standard_normal((c, d)) / np.sqrt(d)
    feats, texts = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (feats, texts))
    return feats.astype(np.float32), truth, texts.astype(np.float32)


def write(folder: Path, situation: str, feats: Any, truth: Any, texts: Any) -> tuple[Path, dict[str, Any]]:
    """A file for the situation, and settings of `fit`."""
    n_classes = len(texts)
    names = np.array([f"class {c:03d}" for c in range(n_classes)])
    draw, path = np.random.default_rng(1), folder / "pool.npz"
    order = draw.permutation(len(truth))
    rank = np.zeros(len(truth), dtype=int)  # of each image among those of its class
    for c in range(n_classes):
        own = order[truth[order] == c]
        rank[own] = np.arange(len(own))
    content = {"embeddings": feats, "truth": names[truth], "class_names": names}
    if situation == "candidates":
        votes = np.where(
            draw.random((len(truth), 3)) < 0.6, truth[:, None], draw.integers(n_classes, size=(len(truth), 3))
        )
        sets = [[str(name) for name in np.unique(names[row])] for row in votes]
        weights = [[float((names[row] == name).mean()) for name in one] for row, one in zip(votes, sets, strict=True)]
        table = pa.table({"embedding": list(feats), "candidates": sets, "weights": weights, "truth": names[truth]})
        pq.write_table(table, folder / "pool.parquet")
        (folder / "names.txt").write_text("\n".join(names), encoding="utf-8")
        return folder / "pool.parquet", {"classes": str(folder / "names.txt")}
    if situation == "class names":
        content |= {"class_embeddings": texts, "logit_scale": np.float32(30.0)}
        np.savez(path, **content)
        return path, {}
    settings: dict[str, Any] = {}
    if situation == "few labels":
        labels = np.where(rank < 5, names[truth], "")
    elif situation == "long tail":
        wanted = 250 * 50.0 ** (-np.arange(n_classes) / (n_classes - 1))
        kept = rank < wanted[truth]
        content = {key: value[kept] if len(value) == len(truth) else value for key, value in content.items()}
        labels = content["truth"]
    elif situation == "open world":
        labels = np.where((truth < n_classes // 2) & (rank % 2 == 0), names[truth], "")
        content["class_names"] = names[: n_classes // 2]
        settings = {"novel": n_classes - n_classes // 2, "test_frac": 0}
    else:
        labels = names[truth]
    np.savez(path, labels=labels, **content)
    return path, settings


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=25_000)
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--classes", type=int, default=100)
    every = ["all labels", "long tail", "few labels", "class names", "candidates", "open world"]
    parser.add_argument("--situations", nargs="+", default=every)
    options = parser.parse_args()
    made = made_up(options.images, options.features, options.classes)
    print("| situation | method | seconds in all | by phase | answer | right |\n|---|---|---|---|---|---|")
    for situation in options.situations:
        with tempfile.TemporaryDirectory() as folder:
            data, settings = write(Path(folder), situation, *made)
            began = time.perf_counter()
            summary = lw.fit(data, out=f"{folder}/run", evaluations=0, **settings).summary
            seconds = time.perf_counter() - began
        phases = ", ".join(f"{name} {value:.0f}" for name, value in summary["seconds"].items() if value >= 1)
        own = summary["reference"][summary["answer"]["name"]]
        right = own["unlabelled"] if own["test"] is None else own["test"]["accuracy"]
        row = [situation, summary["method"], f"{seconds:.0f}", phases, summary["answer"]["name"], f"{right:.3f}"]
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
