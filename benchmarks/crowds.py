"""Three voters of different reliability on stored features: `crowd` and others against regression on their votes.

    python benchmarks/crowds.py NAME TRAIN.npz TEST.npz [--images 0] [--seeds 3] [--csv docs/results/crowds.csv]

Both files hold `embeddings` [N, D], `labels` [N] and `class_names` [C], as labelwright reads them; `pool_features.py`
writes those of the target pools, `labelwright embed` those of any images and network. The seed draws which
--images of TRAIN are used (0: all) and what the voters say. A voter of reliability r is right on a class with a
probability drawn from Beta(4 r, 4 (1 - r)), its mistakes on a class are spread over the others by a Dirichlet draw of
concentration 0.3, and it answers nine images of ten. Two crowds: three voters of 0.75, 0.55 and 0.35, and of 0.5, 0.4
and 0.3. Labels of the training images are scored by accuracy against a truth that no method sees, the classifier by
balanced accuracy on TEST, in percent; seconds are of one fit, of labelwright of the whole run.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from sklearn.linear_model import LogisticRegressionCV
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import labelwright as lw
from labelwright.benchmarking.results import add_rows
from labelwright.labels.candidate_beliefs import candidate_beliefs, candidate_evidence
from labelwright.labels.dawid_skene import dawid_skene, vote_shares
from labelwright.types import Candidates, Task

Numbers = np.ndarray[Any, Any]
CROWDS = {"0.75, 0.55, 0.35": (0.75, 0.55, 0.35), "0.5, 0.4, 0.3": (0.5, 0.4, 0.3)}
ANSWERED = 0.9
CPU = torch.cpu.get_capabilities().get("cpu_name", "unknown")
HARDWARE = f"cpu ({CPU}, {torch.get_num_threads()} thread(s)), float32"
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "coreg_frozen": ("Co-Reg on frozen features, candidates weighted by Dawid-Skene", {"method": "coreg_frozen"}),
    "crowd-inside": ("crowd, labels within the candidates", {"method": "crowd", "outside_candidates": "no"}),
    "crowd-shares": ("crowd, told shares of votes, not who said what", {"method": "crowd"}),
    "crowd": ("crowd", {"method": "crowd"}),
}


def voters(labels: Numbers, n_classes: int, reliability: Sequence[float], seed: int) -> Numbers:
    """[N, A] int64 classes answered, -1 = no answer."""
    draw, votes = np.random.default_rng(seed + 100), []
    for mean in reliability:
        right = draw.beta(4 * mean, 4 * (1 - mean), size=n_classes).clip(0.02, 0.98)
        confusion = np.zeros((n_classes, n_classes))
        for c in range(n_classes):
            confusion[c] = np.insert(draw.dirichlet(np.full(n_classes - 1, 0.3)) * (1 - right[c]), c, right[c])
        said = (confusion[labels].cumsum(1) < draw.random((len(labels), 1))).sum(1).clip(max=n_classes - 1)
        votes.append(np.where(draw.random(len(labels)) < ANSWERED, said, -1))
    return np.stack(votes, axis=1)


def regression(x: Numbers, y: Numbers) -> Any:
    """Class-balanced logistic regression, its penalty by cross-validation of balanced accuracy."""
    found = LogisticRegressionCV(
        Cs=[1e-4, 1e-3, 1e-2, 1e-1, 1], cv=5, class_weight="balanced", max_iter=500, scoring="balanced_accuracy"
    )
    return make_pipeline(StandardScaler(), found).fit(x, y)


def gaussians(x: Numbers, x_test: Numbers, probs: Numbers, named: Numbers) -> tuple[Numbers, Numbers]:
    """The start of Co-Reg, Gaussians with the candidates as evidence: labels of the training and the test images."""
    z, z_test = (torch.from_numpy(v / np.linalg.norm(v, axis=1, keepdims=True)) for v in (x, x_test))
    offsets = torch.from_numpy(np.pad(named.sum(1).cumsum(), (1, 0)))
    sets = Candidates(offsets, torch.from_numpy(named.nonzero()[1]).int(), torch.from_numpy(probs[named]).float())
    task = Task(torch.full((len(x),), -1), tuple(map(str, range(named.shape[1]))), sets)
    start = candidate_beliefs(z, task)
    evidence = candidate_evidence(task.guesses(torch.arange(len(x))), start.miss)
    alone = torch.zeros(len(z_test), named.shape[1])
    return start.beliefs.probs(z, evidence).argmax(1).numpy(), start.beliefs.probs(z_test, alone).argmax(1).numpy()


def measured(
    x: Numbers, y: Numbers, x_test: Numbers, y_test: Numbers, names: Sequence[str], votes: Numbers, runs: Sequence[str]
) -> dict[str, tuple[str, float | None, float | None, float]]:
    """Cell -> its title, accuracy of the labels, balanced accuracy on the test images, seconds."""
    found, n_classes, asked = {}, len(names), torch.from_numpy(votes)
    named = np.zeros((len(y), n_classes), dtype=bool)
    rows, annotator = np.nonzero(votes >= 0)
    named[rows, votes[rows, annotator]] = True
    named[~named.any(1)] = True
    for cell, title, probs_of in (
        ("majority", "majority vote", lambda: vote_shares(asked, n_classes).numpy()),
        ("dawid-skene", "Dawid-Skene", lambda: dawid_skene(asked, n_classes).probs.numpy()),
    ):
        began = time.perf_counter()
        probs = probs_of() + 1e-6 * np.random.default_rng(0).random((len(y), n_classes))  # ties by chance
        labels = probs.argmax(1)
        found[cell] = (title, float((labels == y).mean()), None, time.perf_counter() - began)
        began = time.perf_counter()
        model = regression(x, labels)
        seconds = time.perf_counter() - began
        scores = np.zeros((len(y), n_classes))
        scores[:, model.classes_] = model.predict_proba(x)
        test = float(balanced_accuracy_score(y_test, model.predict(x_test)))
        found[f"regression-{cell}"] = (f"regression on {title}", float((scores.argmax(1) == y).mean()), test, seconds)
        inside = np.where(named, scores, -1).argmax(1)
        found[f"inside-{cell}"] = ("- the best of each image's candidates", float((inside == y).mean()), None, seconds)
    began = time.perf_counter()
    labels, predicted = gaussians(x, x_test, dawid_skene(asked, n_classes).probs.numpy(), named)
    test = float(balanced_accuracy_score(y_test, predicted))
    title = "Gaussians, candidates weighted by Dawid-Skene"
    found["gaussians"] = (title, float((labels == y).mean()), test, time.perf_counter() - began)
    with tempfile.TemporaryDirectory() as folder:
        test_file, classes = Path(folder) / "test.npz", Path(folder) / "names.txt"
        np.savez(test_file, embeddings=x_test, labels=np.array(names)[y_test])
        classes.write_text("\n".join(names), encoding="utf-8")
        said = {f"voter{a}": [None if c < 0 else names[c] for c in column] for a, column in enumerate(votes.T)}
        plain = {"id": [str(i) for i in range(len(y))], "embedding": list(x)}
        pq.write_table(pa.table({**plain, **said}), Path(folder) / "answers.parquet")
        sets = [sorted({c for c in row if c >= 0}) for row in votes.tolist()]
        weights = [[row.count(c) for c in some] for row, some in zip(votes.tolist(), sets, strict=True)]
        shares = {"candidates": [[names[c] for c in some] for some in sets], "weights": weights}
        pq.write_table(pa.table({**plain, **shares}), Path(folder) / "shares.parquet")
        for cell in runs:
            title, settings = RUNS[cell]
            is_anonymous = cell == "crowd-shares"
            file = Path(folder) / ("shares.parquet" if is_anonymous else "answers.parquet")
            columns = None if is_anonymous else ",".join(said)
            began, out = time.perf_counter(), Path(folder) / cell
            run = lw.fit(file, out=out, test=test_file, classes=classes, annotator_columns=columns, **settings)
            seconds = time.perf_counter() - began
            labels = np.array([names.index(name) for name in run.labels["label"].to_pylist()])
            test = float(run.summary["test"]["balanced_accuracy"])
            found[cell] = (title, float((labels == y).mean()), test, seconds)
    return found


def main() -> None:
    """Measure, print, and write."""
    warnings.simplefilter("ignore")  # scikit-learn's, of folds without a rare class
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the data, for the table")
    parser.add_argument("train", type=Path, help=".npz of embeddings with labels")
    parser.add_argument("test", type=Path, help="the same, to score on")
    parser.add_argument("--images", type=int, default=0, help="training images drawn; 0: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", nargs="+", default=list(RUNS))
    parser.add_argument("--csv", type=Path, help="file that rows are added to")
    options = parser.parse_args()
    with np.load(options.train) as file:
        train = dict(file)
    with np.load(options.test) as file:
        test = dict(file)
    names = [str(name) for name in train["class_names"]]
    place = {name: c for c, name in enumerate(names)}

    def classes_of(labels: Numbers) -> Numbers:
        return labels.astype(int) if labels.dtype.kind in "iu" else np.array([place[str(v)] for v in labels])

    number_of: Callable[[Numbers], Numbers] = classes_of
    y_all, y_test = number_of(train["labels"]), number_of(test["labels"])
    x_test = test["embeddings"].astype(np.float32)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    lines: list[dict[str, str]] = []
    for crowd, reliability in CROWDS.items():
        print(f"{options.name}, voters of {crowd}\n| | labels | test | s |\n|---|---|---|---|")
        every = []
        for seed in range(options.seeds):
            chosen = np.random.default_rng(seed).permutation(len(y_all))[: options.images or None]
            x, y = train["embeddings"][chosen].astype(np.float32), y_all[chosen]
            votes = voters(y, len(names), reliability, seed)
            every.append(measured(x, y, x_test, y_test, names, votes, options.runs))
            for cell, (title, labels, balanced, seconds) in every[-1].items():
                for metric, value in (("pseudolabels", labels), ("balanced_accuracy", balanced)):
                    if value is not None:
                        row = {"table": f"crowds.py {options.name} {crowd}", "cell": cell, "title": title}
                        row |= {"metric": metric, "value": f"{100 * value:.2f}", "seed": str(seed)}
                        lines.append(row | {"seconds": f"{seconds:.1f}", "commit": commit, "hardware": HARDWARE})
        for cell, (title, *_) in every[0].items():
            shown = []
            for k in (1, 2):
                values = [100 * found[cell][k] for found in every if found[cell][k] is not None]  # type: ignore[operator]
                spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
                shown.append(f"{np.mean(values):.1f}{spread}" if values else "")
            print(f"| {title} | {' | '.join(shown)} | {np.mean([found[cell][3] for found in every]):.1f} |", flush=True)
    if options.csv is not None:
        add_rows(options.csv, lines)


if __name__ == "__main__":
    main()
