"""Where LPS starts from on stored features, and where it ends: k-means, Gaussians, a regression on what they say, LPS.

    python benchmarks/lps_start.py POOL.npz [MORE.npz …] [--seen 5 21] [--labelled-frac 0.5 0.1] [--seeds 3]

Files, seen classes and labelled images are those of `n_novel.py`; the true number of classes is given. Each row is a
last layer without any training: nearest centroids of semi-supervised k-means; `labels.gaussians` with the clusters as
evidence, on 128 principal components, at several strengths and shrinkages; and these with a softmax regression on their
answers, `methods.cluster_start.beliefs_from`, which is what LPS does. The last row is a whole run of LPS, told the true
number of classes. Printed is the accuracy on the unlabelled images,
mean and sample deviation over the seeds, and the seconds that a start takes after k-means.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import labelwright as lw
from labelwright.data.splits import seen_novel
from labelwright.labels.gaussians import gaussian_beliefs, principal
from labelwright.labels.kmeans import KMeans, semi_supervised_kmeans
from labelwright.labels.self_training import labelled_weight
from labelwright.methods.cluster_start import START_SCALE, beliefs_from
from labelwright.methods.open_world import OpenWorldSettings, balance, expected_unlabelled, prior_of
from labelwright.metrics.open_world import seen_novel_all
from labelwright.types import Task
from n_novel import read

N_DIMS = 128  # principal components for the Gaussians
DOUBT = 0.1  # share of the evidence that is spread over all classes, whatever the cluster
GAUSSIANS = [(strength, shrinkage) for strength in (0.3, 1.0) for shrinkage in (0.1, 0.5)]


def gaussian_start(z: Tensor, task: Task, found: KMeans, prior: Tensor, strength: float, shrinkage: float) -> Tensor:
    """Logits [N, C] of one Gaussian per class whose evidence is the cluster of each image."""
    labels, n_classes = task.labels, task.n_classes
    mean, directions = principal(z, min(N_DIMS, z.shape[1]))
    u = (z - mean) @ directions.T
    label_weight = labelled_weight(int((labels >= 0).sum()), int((labels < 0).sum()))
    n_hidden = int((labels < 0).sum())
    wanted = expected_unlabelled(prior, task.counts, len(labels)) * n_hidden + label_weight * task.counts
    beliefs = gaussian_beliefs(
        u,
        lambda rows: ((1 - DOUBT) * F.one_hot(found.assigned[rows], n_classes) + DOUBT / n_classes).log(),
        labels,
        strength=strength,
        shrinkage=shrinkage,
        n_iter=20,
        prior=wanted / wanted.sum(),
        label_weight=label_weight,
    )
    return F.linear(u, strength * beliefs.weight, strength * beliefs.bias)


def starts(z: Tensor, task: Task, found: KMeans) -> Mapping[str, Callable[[], Tensor]]:
    """Name -> what gives the logits [N, C] of a start."""
    prior = prior_of(OpenWorldSettings(), task, found.sizes)
    weight, bias = START_SCALE * found.centroids, -START_SCALE / 2 * found.centroids.square().sum(1)

    def by_gaussians(strength: float, shrinkage: float) -> Callable[[], Tensor]:
        return lambda: gaussian_start(z, task, found, prior, strength, shrinkage)

    return {
        "k-means": lambda: F.linear(z, weight, bias),
        "Gaussians and regression": lambda: F.linear(z, *beliefs_from(z, task, found.assigned, prior)),
        **{f"Gaussians, strength {s:g}, shrinkage {c:g}": by_gaussians(s, c) for s, c in GAUSSIANS},
    }


def whole_run(path: Path, labels: Tensor, truth: Tensor, n_seen: int, n_novel: int, seed: int) -> list[float]:
    """Accuracies and seconds of training of `labelwright fit --method lps`."""
    with np.load(path) as file:
        feats = file["feats" if "feats" in file else "embeddings"]
    names = np.array([f"class {c:03d}" for c in range(int(truth.max()) + 1)])
    given = np.where(labels.numpy() >= 0, names[labels.numpy()], "")
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "pool.npz"
        np.savez(data, embeddings=feats, labels=given, truth=names[truth.numpy()], class_names=names[:n_seen])
        run = lw.fit(data, out=Path(folder) / "run", method="lps", novel=n_novel, test_frac=0, seed=seed, evaluations=0)
        scores = run.summary["pseudolabels"]
        return [*(100 * scores[key] for key in ("all", "seen", "novel")), run.summary["seconds"]["train"]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pools", nargs="+", type=Path, help=".npz files of embeddings and labels")
    parser.add_argument("--seen", nargs="+", type=int, help="seen classes: one number for all files, or one per file")
    parser.add_argument("--labelled-frac", nargs="+", type=float, default=[0.5, 0.1])
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    print("| pool | labelled | start | all | seen | novel | all, by seed | s |\n|---|---|---|---|---|---|---|---|")
    for i, path in enumerate(options.pools):
        feats, truth = read(path)
        feats, n_classes = F.normalize(feats, dim=1), int(truth.max()) + 1
        given = options.seen or [(n_classes + 1) // 2]
        n_seen = given[i % len(given)]
        for frac in options.labelled_frac:
            scores: dict[str, list[list[float]]] = defaultdict(list)
            for seed in range(options.seeds):
                labelled, _ = seen_novel(truth.numpy(), seen=n_seen, labelled_frac=frac, seed=seed)
                labels = torch.full_like(truth, -1)
                labels[labelled] = truth[labelled]
                hidden = labels < 0
                task = Task(labels, tuple(map(str, range(n_seen))), n_novel=n_classes - n_seen)
                found = semi_supervised_kmeans(feats, labels, n_classes=n_classes, n_seen=n_seen, n_init=20, seed=seed)
                expected = expected_unlabelled(
                    prior_of(OpenWorldSettings(), task, found.sizes), task.counts, len(labels)
                )
                for name, logits_of in starts(feats, task, found).items():
                    began = time.perf_counter()
                    logits = logits_of()[hidden]
                    seconds = time.perf_counter() - began
                    answers = (logits + balance(logits, expected)).argmax(1) if name != "k-means" else logits.argmax(1)
                    score = seen_novel_all(answers, truth[hidden], n_seen=n_seen)
                    scores[name].append([*(100 * score[key] for key in ("all", "seen", "novel")), seconds])
                last = whole_run(path, labels, truth, n_seen, n_classes - n_seen, seed)
                scores["LPS"].append(last)
            for name, rows in scores.items():
                table = np.array(rows)
                mean, sd = table.mean(0), table.std(0, ddof=1)
                each = " | ".join(f"{m:.1f} ± {s:.1f}" for m, s in zip(mean[:3], sd[:3], strict=True))
                by_seed = " ".join(f"{score:.2f}" for score in table[:, 0])
                print(f"| {path.stem} | {frac:g} | {name} | {each} | {by_seed} | {mean[3]:.1f} |", flush=True)


if __name__ == "__main__":
    main()
