"""Time of linear heads on stored features: ours against scikit-learn's, to the same minima, and of a whole small `fit`.

Command: python benchmarks/convex_heads.py FEATURES.npz [--rows 1000] [--csv FILE]

The penalties that `fit` tries, each from the end of the last one, as scikit-learn does with ``warm_start``: L-BFGS of
scikit-learn to a gradient of 1e-4 times the mean loss against ``train.convex.solve`` to the same. Both see centred and
scaled features in float32, in one process, one after the other; processor seconds, so that other work on the machine
counts little. How much higher the worse minimum is, summed over penalties, is printed beside. Then `fit` on these rows.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

import labelwright as lw
from labelwright.benchmarking.results import add_rows
from labelwright.train.convex import Problem, solve
from labelwright.train.cross_validation import PENALTIES
from labelwright.train.scaling import scaled

LEAST_GRADIENT = 1e-4


def objective(z: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, penalty: float) -> float:
    """Mean loss with its penalty, in float64."""
    logits = z.double() @ weight.double().T + bias.double()
    loss = torch.nn.functional.cross_entropy(logits, labels)
    return float(loss + penalty / (2 * len(z)) * weight.double().square().sum())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with np.load(args.file) as file:
        feats, names = file["embeddings"].astype(np.float32), file["labels"]
    chosen = np.random.default_rng(0).permutation(len(feats))[: args.rows]
    feats, y = feats[chosen], np.unique(names[chosen], return_inverse=True)[1]
    n_classes, labels = int(y.max()) + 1, torch.from_numpy(y)
    began = time.process_time()
    given, head, found = scaled(torch.from_numpy(feats)), None, []
    for penalty in PENALTIES:
        head = solve(
            given.z, labels, Problem(), n_classes=n_classes, penalty=penalty, start=head, least_gradient=LEAST_GRADIENT
        )
        found.append(head)
    ours_s = time.process_time() - began
    ours = [objective(given.z, labels, h.weight, h.bias, penalty) for h, penalty in zip(found, PENALTIES, strict=True)]
    x = ((torch.from_numpy(feats) - given.mean) / given.scale).numpy()
    model, theirs = LogisticRegression(warm_start=True, tol=LEAST_GRADIENT, max_iter=2000), []
    began = time.process_time()
    heads = []
    for penalty in PENALTIES:
        model.set_params(C=1 / penalty).fit(x, y)
        heads.append((torch.from_numpy(model.coef_.copy()), torch.from_numpy(model.intercept_.copy())))
    theirs_s = time.process_time() - began
    theirs = [
        objective(torch.from_numpy(x), labels, weight, bias, penalty)
        for (weight, bias), penalty in zip(heads, PENALTIES, strict=True)
    ]
    higher = max(a - min(a, b) for a, b in zip(ours, theirs, strict=True))
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/pool.npz", embeddings=feats, labels=names[chosen].astype(str))
        began = time.process_time()
        run = lw.fit(f"{folder}/pool.npz", out=f"{folder}/run", device="cpu")
        fit_s = time.process_time() - began
        method = run.summary["method"]
    title = f"{args.file.stem}, {args.rows} rows, {n_classes} classes, {feats.shape[1]} features"
    values = {
        "seconds": ours_s,
        "reference_seconds": theirs_s,
        "ratio": theirs_s / ours_s,
        "largest_gap_nats": higher,
        "fit_seconds": fit_s,
    }
    print(title, method, {name: round(value, 6) for name, value in values.items()}, flush=True)
    if args.csv is not None:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
        rows = [
            {
                "table": "convex_heads.py",
                "cell": args.file.stem,
                "title": title,
                "metric": name,
                "value": f"{value:.3g}" if value >= 1e-4 else f"{value:.6f}",
                "commit": commit,
                "hardware": "cpu (1 thread), processor seconds",
            }
            for name, value in values.items()
        ]
        add_rows(args.csv, rows)


if __name__ == "__main__":
    main()
