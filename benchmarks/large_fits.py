"""Time and memory of whole runs on 25,000 stored features of 512 numbers and 100 classes, references included.

    python benchmarks/large_fits.py [--images 25000 100000] [--features 512] [--classes 100] [--csv FILE]

The features are made up: a mean per class, noise in 64 directions of uneven size that all classes share. Every
situation that stored features can be in is run once with `labelwright fit` and the method that it chooses, as a process
of its own: printed are its CPU seconds (user and system), which depend little on what else the machine does, its wall
seconds, the most memory it held, and how right the answer is. The exponent is that of the CPU seconds between two
numbers of images. The tail is of 250 to 5 images a class at 25,000 images, and grows with them.
A run that is in --csv, a file of results, already is not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from labelwright.benchmarking.results import Row, add_rows, read_rows
from scale import measured

TABLE = "large_fits.py"
SITUATIONS = ("all labels", "long tail", "few labels", "class names", "candidates", "annotators", "open world")
RELIABILITY = {"ann": 0.6, "bob": 0.5, "cyd": 0.4}  # whose mistakes are the next four classes


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


def write(folder: Path, situation: str, feats: Any, truth: Any, texts: Any) -> list[str]:
    """A file for the situation; what follows `labelwright fit`."""
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
        return [f"{folder}/pool.parquet", "--classes", f"{folder}/names.txt"]
    if situation == "annotators":
        answers = {
            name: names[
                np.where(draw.random(len(truth)) < right, truth, (truth + draw.integers(1, 5, len(truth))) % n_classes)
            ]
            for name, right in RELIABILITY.items()
        }
        pq.write_table(pa.table({"embedding": list(feats), **answers, "truth": names[truth]}), folder / "pool.parquet")
        return [f"{folder}/pool.parquet", "--annotator-columns", ",".join(answers)]
    if situation == "class names":
        content |= {"class_embeddings": texts, "logit_scale": np.float32(30.0)}
        np.savez(path, **content)
        return [str(path)]
    options: list[str] = []
    if situation == "few labels":
        labels = np.where(rank < 5, names[truth], "")
    elif situation == "long tail":
        wanted = len(truth) / n_classes * 50.0 ** (-np.arange(n_classes) / (n_classes - 1))
        kept = rank < wanted[truth]
        content = {key: value[kept] if len(value) == len(truth) else value for key, value in content.items()}
        labels = content["truth"]
    elif situation == "open world":
        labels = np.where((truth < n_classes // 2) & (rank % 2 == 0), names[truth], "")
        content["class_names"] = names[: n_classes // 2]
        options = ["--novel", str(n_classes - n_classes // 2), "--test-frac", "0"]
    else:
        labels = names[truth]
    np.savez(path, labels=labels, **content)
    return [str(path), *options]


def main() -> None:
    """Run, print, and add to the file of results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[25_000])
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--situations", nargs="+", choices=SITUATIONS, default=SITUATIONS)
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    note = f"{args.features} features, {args.classes:,} classes"
    cpu_of: dict[tuple[str, int], float] = {}
    for row in read_rows(args.csv) if args.csv is not None and args.csv.is_file() else []:
        if row["table"] == TABLE and row["note"] == note and row["metric"] == "cpu_s":
            situation, n = row["cell"].split("-")
            cpu_of[situation, int(n)] = float(row["value"])
    for n in args.images:
        made = made_up(n, args.features, args.classes)
        for situation in args.situations:
            if (situation, n) in cpu_of:
                continue
            with tempfile.TemporaryDirectory() as folder:
                words = ["fit", *write(Path(folder), situation, *made), "--out", f"{folder}/run", "--evaluations", "0"]
                cpu, wall, peak = measured([sys.executable, "-m", "labelwright", *words])
                summary = json.loads(Path(folder, "run/summary.json").read_text(encoding="utf-8"))
            own = summary["reference"][summary["answer"]["name"]]
            right = own["unlabelled"] if own["test"] is None else own["test"]["accuracy"]
            facts = {"cpu_s": cpu, "wall_s": wall, "peak_gb": peak, "accuracy": 100 * right}
            if smaller := [m for each, m in cpu_of if each == situation and m < n]:
                ratio = cpu / cpu_of[situation, max(smaller)]
                facts["exponent"] = math.log(ratio) / math.log(n / max(smaller))
            cpu_of[situation, n] = cpu
            title = f"{situation}, {n:,} images ({summary['method']})"
            print(f"{title}:", *(f"{key} {value:.3g}" for key, value in facts.items()), flush=True)
            shared = {"table": TABLE, "cell": f"{situation}-{n}", "title": title, "n_seeds": "1", "note": note}
            rows: list[Row] = [shared | {"metric": key, "value": f"{value:.3g}"} for key, value in facts.items()]
            if args.csv is not None:
                add_rows(args.csv, rows)


if __name__ == "__main__":
    main()
