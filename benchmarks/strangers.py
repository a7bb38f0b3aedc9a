"""Detection of images of no class: labelwright's score beside the obvious ones, on the same features.

    python benchmarks/strangers.py NAME=TRAIN.npz,TEST.npz [MORE …] [--photos IMAGES] [--csv FILE]

Files hold `embeddings` [N, D] and `labels` [N], as labelwright reads them, and perhaps `groups` [N]. The training
images of each set are the known ones; strange are the test images of every other set with the same D (far), and, of a
model that knows half of the classes only, those of the other half (near). With `--photos`, 300 images of any kind that
`labelwright label` takes are given to the model of the digits of `labelwright demo`, and to a ResNet-32 that has
learned the digits from pixels in 6 epochs (one seed).

Every score has its threshold from training images alone, such that 1% of them are above it, each scored as if it had
not been trained on: neighbours leave it (and its group) out, Mahalanobis distances and logistic regressions, on at most
5,000 images, are fitted on the other half. At most 5,000 new images of either kind are scored. Printed in percent:
AUROC, strangers accepted, true images refused.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.covariance import ledoit_wolf
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold
from torch import Tensor

import labelwright as lw
from choices import read
from labelwright import demo
from labelwright.benchmarking.results import Row, add_rows
from labelwright.data.prepare import open_source
from labelwright.labels.chunks import evenly_spread
from labelwright.pipeline.saved_model import load_model
from labelwright.pipeline.strange import looks_of
from labelwright.train.environment import source_commit
from labelwright.trust.strangers import distances, fit_strangers

LEVEL = 0.99
FITTED_ROWS = 5_000
TITLES = {
    "labelwright": "labelwright",
    "neighbours": "mean cosine to 5 of all training images",
    "mahalanobis": "Mahalanobis distance to the nearest class, shared covariance",
    "relative": "relative Mahalanobis distance",
    "energy": "energy of a logistic regression",
    "softmax": "largest softmax of a logistic regression",
}
Scored = tuple[Tensor, Tensor, Tensor]
"""Of one score: training images, left out of what judges them; true images; strangers. Larger is stranger."""


def neighbours(train: Tensor, true: Tensor, strange: Tensor, groups: Tensor) -> Scored:
    """By the nearest of all training images."""
    z, left_out = F.normalize(train, dim=1), []
    for rows in torch.split(evenly_spread(torch.arange(len(z)), FITTED_ROWS), 1_024):
        left_out.append(distances(z[rows], z, exclude=(groups[rows][:, None] == groups).nonzero(as_tuple=True)))
    others = (torch.cat([distances(some, z) for some in torch.split(new, 1_024)]) for new in (true, strange))
    return (torch.cat(left_out), *others)  # type: ignore[return-value]


def fitted_scores(z: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> Any:
    """What Mahalanobis distances and a logistic regression, fitted on features [n, D], say of others."""
    classes, own = np.unique(labels, return_inverse=True)
    means = np.stack([z[own == c].mean(0) for c in range(len(classes))])
    within = np.linalg.cholesky(np.linalg.inv(ledoit_wolf(z - means[own], assume_centered=True)[0]))
    centre = z.mean(0)
    overall = np.linalg.cholesky(np.linalg.inv(ledoit_wolf(z - centre, assume_centered=True)[0]))
    scale = (z - centre).std()
    regression = LogisticRegression(C=0.01, max_iter=100, tol=1e-3).fit((z - centre) / scale, labels)

    def scores(new: np.ndarray[Any, Any]) -> dict[str, Tensor]:
        near = torch.cdist(torch.from_numpy(new @ within), torch.from_numpy(means @ within)).square().amin(1)
        logits = torch.from_numpy(regression.decision_function((new - centre) / scale))
        logits = torch.stack([-logits / 2, logits / 2], 1) if logits.ndim == 1 else logits
        return {
            "mahalanobis": near,
            "relative": near - torch.from_numpy(((new - centre) @ overall) ** 2).sum(1),
            "energy": -logits.logsumexp(1),
            "softmax": -logits.softmax(1).amax(1),
        }

    return scores


def others(
    train: Tensor, labels: Tensor, true: Tensor, strange: Tensor, groups: Tensor, seed: int
) -> dict[str, Scored]:
    """Scores that are fitted: on one half for the other, and on both for new images."""
    rows = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:FITTED_ROWS]
    z, y, of_group = F.normalize(train[rows], dim=1).double().numpy(), labels[rows].numpy(), groups[rows].numpy()
    left_out: dict[str, Tensor] = {}
    for fit, judged in GroupKFold(2, shuffle=True, random_state=seed).split(z, y, of_group):
        for name, values in fitted_scores(z[fit], y[fit])(z[judged]).items():
            left_out.setdefault(name, torch.zeros(len(z), dtype=values.dtype))[judged] = values
    scores = fitted_scores(z, y)
    of_true, of_strange = (scores(F.normalize(new, dim=1).double().numpy()) for new in (true, strange))
    return {name: (left_out[name], of_true[name], of_strange[name]) for name in left_out}


def compared(
    train: tuple[Tensor, ...],
    labels: Tensor,
    predicted: Tensor,
    true: tuple[Tensor, ...],
    strange: tuple[Tensor, ...],
    *,
    groups: Tensor | None,
    seed: int,
) -> Iterator[tuple[str, str, float, float]]:
    """(score, metric, percent, seconds) of every score; looks at images are features [N, D] and perhaps pixels."""
    true, strange = (tuple(_some(look) for look in looks) for looks in (true, strange))
    began = time.monotonic()
    found = fit_strangers(
        lambda rows: tuple(look[rows] for look in train),
        *(labels, predicted),
        n_classes=int(predicted.max()) + 1,
        groups=groups,
        seed=seed,
    )
    assert found is not None
    ours = (found[1], found[0].score(true), found[0].score(strange))
    seconds = {"labelwright": time.monotonic() - began}
    alone = torch.arange(len(labels)) if groups is None else groups
    scored: dict[str, Scored] = {"labelwright": ours}
    scored["neighbours"] = neighbours(train[0], true[0], strange[0], alone)
    scored |= others(train[0], predicted, true[0], strange[0], alone, seed=seed)
    for name, (own, of_true, of_strange) in scored.items():
        bar = 1.0 if name == "labelwright" else float(np.quantile(own.numpy(), LEVEL))
        is_strange = np.repeat([0, 1], [len(of_true), len(of_strange)])
        auroc = roc_auc_score(is_strange, torch.cat([of_true, of_strange]).numpy())
        for metric, share in (
            ("auroc", auroc),
            ("strangers_accepted", (of_strange <= bar).double().mean()),
            ("true_refused", (of_true > bar).double().mean()),
        ):
            yield name, metric, 100 * float(share), seconds.get(name, 0.0)


def _some(look: Tensor) -> Tensor:
    return evenly_spread(look, FITTED_ROWS)


def set_of(path: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """Features [N, D], labels [N] and groups [N] or None of a file."""
    file = read(Path(path))
    labels = np.unique(file["labels"], return_inverse=True)[1]
    groups = torch.from_numpy(file["groups"]) if "groups" in file else None
    return torch.from_numpy(np.asarray(file["embeddings"])).float(), torch.from_numpy(labels), groups


def pairs(sets: dict[str, Any], seeds: int) -> Iterator[tuple[str, int, Any]]:
    """(what, seed, comparison) of known images and of strange ones."""
    for name, ((train, labels, groups), (true, true_labels, _)) in sets.items():
        for other, (_, (strange, *_)) in sets.items():
            for seed in range(seeds if other != name and strange.shape[1] == train.shape[1] else 0):
                found = compared((train,), labels, labels, (true,), (strange,), groups=groups, seed=seed)
                yield f"{name}, strangers {other}", seed, found
        for seed in range(seeds):
            classes = torch.randperm(int(labels.max()) + 1, generator=torch.Generator().manual_seed(seed))
            known = classes[: (len(classes) + 1) // 2]
            kept, is_true = torch.isin(labels, known), torch.isin(true_labels, known)
            own = torch.searchsorted(known.sort().values, labels[kept])
            some = None if groups is None else groups[kept]
            found = compared((train[kept],), own, own, (true[is_true],), (true[~is_true],), groups=some, seed=seed)
            yield f"half of {name}, strangers the other half", seed, found


def digits(photos: Path, seeds: int) -> Iterator[tuple[str, int, Any]]:
    """Models of the demo's digits, and photographs."""
    pool, test = demo.digits()
    labelled = dataclasses.replace(pool, labels=pool.truth)
    for what, table, settings in (
        ("digits by their names", pool, {"method": "cap", "model": demo.MODEL}),
        ("digits from pixels", labelled, {"method": "ce", "model": "resnet32", "epochs": 6}),
    ):
        for seed in range(seeds if table is pool else 1):
            with tempfile.TemporaryDirectory() as folder:
                run = lw.fit(table, test=test, out=folder, seed=seed, evaluations=0, **settings)
                saved = load_model(run.path / "model", device=torch.device("cpu"))
                predicted = torch.tensor([saved.class_names.index(name) for name in run.labels["label"].to_pylist()])
            looks = []
            for data in (table, test, photos):
                source = open_source(data, classes=None, size_px=saved.size_px, on_bad="stop")
                rows = torch.arange(len(source.table))
                if data is photos:
                    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:300]]
                looks.append(looks_of(saved.net, source, saved.view, torch.device("cpu"), "fp32")(rows))
            train, true, strange = looks
            given = torch.from_numpy(table.labels).long()
            yield (
                f"{what}, strangers photographs",
                seed,
                compared(train, given, predicted, true, strange, groups=None, seed=seed),
            )


def main() -> None:
    """Measure, print, and add to a file of results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", help="NAME=TRAIN.npz,TEST.npz")
    parser.add_argument("--photos", type=Path, help="images that are no digits")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--csv", type=Path, help="file of results to add rows to")
    options = parser.parse_args()
    commit = source_commit() or ""
    sets = {}
    for each in options.sets:
        name, _, paths = each.partition("=")
        sets[name] = tuple(set_of(path) for path in paths.split(","))
    found = [pairs(sets, options.seeds)]
    if options.photos is not None:
        found.append(digits(options.photos, options.seeds))
    for what, seed, values in (each for some in found for each in some):
        rows: list[Row] = []
        for name, metric, value, seconds in values:
            row = {"table": f"strangers.py {what}", "cell": name, "title": TITLES[name], "metric": metric}
            row |= {"model": "", "value": f"{value:.2f}", "seed": str(seed), "commit": commit}
            rows.append(row | {"hardware": "cpu (1 thread), other work on the machine"})
            print(
                what, seed, name, metric, f"{value:.2f}", f"{seconds:.1f} s" if seconds else "", sep=" | ", flush=True
            )
        if options.csv:
            add_rows(options.csv, rows)


if __name__ == "__main__":
    main()
