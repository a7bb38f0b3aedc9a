"""What `labelwright audit` finds: labels made wrong on purpose, and copies of images made on purpose.

    python benchmarks/audit.py labels TRAIN.npz [MORE.npz ...] [--csv docs/results/audit.csv]
    python benchmarks/audit.py copies TRAIN.parquet [MORE.parquet ...] [--csv docs/results/audit.csv]
    python benchmarks/audit.py speed 100000x128 [MORE ...] [--csv docs/results/audit.csv]

`labels`: embeddings with labels, of which 8,000 rows are drawn (whole groups where there are any) and 10% made wrong:
`even`, another class drawn evenly; `one way`, the next class. Beside the audit stands confident learning on the same
features, as one does it with scikit-learn: five-fold logistic regression, rows ranked by the probability of their label
(`self_confidence`), by the margin, and by that probability less its class's mean (`adjusted`), with what cleanlab's
`find_label_issues` flags of the same probabilities; and ten neighbours.
`copies`: 500 images of up to 3,000 (one of each group, where there are any) are saved again. False are images joined to
another one of the set, so copies that the set holds already count as false.
`speed`: `labelwright.audit` of a file of so many made-up features (100 classes about centres of their own, a tenth of
the labels wrong, a thousandth of the rows copied), by wall clock and by the seconds that cores worked, which other work
on the machine changes less, and the most memory that the process has held.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from cleanlab.filter import find_label_issues
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.model_selection import GroupKFold, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import labelwright as lw
from labelwright.benchmarking.results import add_rows
from labelwright.data.looks import numbered, thumb
from labelwright.data.noise import symmetric
from labelwright.data.read import load
from labelwright.labels.audit import grey_feats, judge_labels, near_pairs, nearest
from labelwright.train.environment import peak_memory_mb, source_commit
from labelwright.train.scaling import centre_and_scale

N_ROWS, NOISE, SHOWN = 8000, 0.1, 0.08
Array = npt.NDArray[Any]


def draw_rows(n: int, groups: Array | None, rng: np.random.Generator) -> Array:
    """About `N_ROWS` of n rows, whole groups where there are any."""
    if groups is None:
        return np.sort(rng.permutation(n)[:N_ROWS])
    order = rng.permutation(np.unique(groups))
    size = {g: int(k) for g, k in zip(*np.unique(groups, return_counts=True), strict=True)}
    total = np.cumsum([size[g] for g in order])
    return np.flatnonzero(np.isin(groups, order[: int(np.searchsorted(total, N_ROWS)) + 1]))


def make_wrong(labels: Array, n_classes: int, kind: str, seed: int) -> Array:
    """Labels of which a tenth is wrong."""
    if kind == "even":
        return symmetric(labels, n_classes=n_classes, rate=NOISE, seed=seed)
    wrong = np.random.default_rng(seed).random(len(labels)) < NOISE
    return np.where(wrong, (labels + 1) % n_classes, labels)


def obvious(feats: Array, labels: Array, groups: Array | None, n_classes: int, seed: int) -> dict[str, Array]:
    """Score -> [n], low is suspected; and `suggested`."""
    folds = StratifiedKFold(5, shuffle=True, random_state=seed) if groups is None else GroupKFold(5)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    probs = np.zeros((len(labels), n_classes))
    seen = np.unique(labels)
    probs[:, seen] = cross_val_predict(model, feats, labels, cv=folds, groups=groups, method="predict_proba")
    rows = np.arange(len(labels))
    own, others = probs[rows, labels], probs.copy()
    others[rows, labels] = -1
    thresholds = np.array([own[labels == c].mean() if (labels == c).any() else 1.0 for c in range(n_classes)])
    return {
        "probs": probs,
        "self_confidence": own,
        "margin": own - others.max(1),
        "adjusted": own - thresholds[labels],
        "suggested": others.argmax(1),
    }


def flagged_by_cleanlab(labels: Array, probs: Array) -> Array:
    """[n] bool, of labels of the classes that there are."""
    seen, index = np.unique(labels, return_inverse=True)
    return np.asarray(find_label_issues(index, probs[:, seen] / probs[:, seen].sum(1, keepdims=True), n_jobs=1))


def label_rows(path: Path, seeds: int) -> Iterator[dict[str, str]]:
    """Rows of results for one file of embeddings."""
    with np.load(path) as file:
        every, truth_of = file["embeddings"], np.unique(file["labels"], return_inverse=True)[1]
        groups_of = file.get("groups")
    n_classes = int(truth_of.max()) + 1
    for kind in ("even", "one_way"):
        for seed in range(seeds):
            rows = draw_rows(len(truth_of), groups_of, np.random.default_rng(100 + seed))
            feats, truth = every[rows].astype(np.float32), truth_of[rows]
            groups = None if groups_of is None else groups_of[rows]
            labels = make_wrong(truth, n_classes, kind, seed)
            began = time.monotonic()
            x, y = torch.from_numpy(feats), torch.from_numpy(labels)
            mean, scale = centre_and_scale(x)
            near = nearest(F.normalize((x - mean) / scale, dim=1), k=10)
            of = None if groups is None else torch.from_numpy(np.unique(groups, return_inverse=True)[1])
            judged = judge_labels(x, y, near, n_classes=n_classes, groups=of, seed=seed)
            assert judged is not None
            seconds = time.monotonic() - began
            votes = np.stack([(labels[near.rows.numpy()] == c).mean(1) for c in range(n_classes)], 1)
            other = votes.copy()
            other[np.arange(len(labels)), labels] = -1
            beside = obvious(feats, labels, groups, n_classes, seed)
            ways = {
                "audit": (np.nan_to_num(judged.score.numpy(), nan=1.0), judged.suggested.numpy()),
                "neighbours": (votes[np.arange(len(labels)), labels], other.argmax(1)),
                **{key: (beside[key], beside["suggested"]) for key in ("self_confidence", "margin", "adjusted")},
            }
            is_wrong = labels != truth
            for cell, (score, suggested) in ways.items():
                worst = np.argsort(score, kind="stable")[: round(SHOWN * len(score))]
                found = {
                    "average_precision": average_precision_score(is_wrong, -score),
                    "precision_of_worst_8": is_wrong[worst].mean(),
                    "suggested_right": (suggested == truth)[is_wrong].mean(),
                }
                if cell in ("audit", "self_confidence"):
                    is_ours = cell == "audit"
                    marked = judged.is_suspected.numpy() if is_ours else flagged_by_cleanlab(labels, beside["probs"])
                    found |= {
                        "flagged": marked.mean(),
                        **({"estimated_wrong": judged.wrong_frac} if is_ours else {}),
                        **({"precision_of_flagged": is_wrong[marked].mean()} if marked.any() else {}),
                        "wrong_flagged": marked[is_wrong].mean(),
                    }
                for metric, value in found.items():
                    yield {
                        "table": f"audit.py labels {path.stem}",
                        "cell": f"{cell}-{kind}",
                        "title": f"{TITLES[cell]}, {kind.replace('_', ' ')}",
                        "metric": metric,
                        "value": f"{100 * value:.2f}",
                        "seed": str(seed),
                        "seconds": f"{seconds:.1f}" if cell == "audit" else "",
                    }


TITLES = {
    "audit": "audit",
    "self_confidence": "self-confidence, flagged by cleanlab",
    "margin": "margin",
    "adjusted": "self-confidence less its class's mean",
    "neighbours": "ten neighbours",
}


def saved(image: Image.Image, quality: int) -> Image.Image:
    """Through a JPEG file and back."""
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


def resized(image: Image.Image, factor: float) -> Image.Image:
    """To other sides."""
    width, height = image.size
    return image.resize((max(1, round(width * factor)), max(1, round(height * factor))), Image.Resampling.BICUBIC)


def cropped(image: Image.Image, frac: float, rng: np.random.Generator) -> Image.Image:
    """A cut of which each side is a share of the whole's."""
    width, height = image.size
    w, h = round(width * frac), round(height * frac)
    x, y = rng.integers(0, width - w + 1), rng.integers(0, height - h + 1)
    return image.crop((x, y, x + w, y + h))


WAYS: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "exact": lambda image, rng: image.copy(),
    "jpeg 90": lambda image, rng: saved(image, 90),
    "jpeg 75": lambda image, rng: saved(image, 75),
    "half": lambda image, rng: resized(image, 0.5),
    "double": lambda image, rng: resized(image, 2),
    "0.7, jpeg 85": lambda image, rng: saved(resized(image, 0.7), 85),
    "jpeg 40": lambda image, rng: saved(image, 40),
    "crop 95%": lambda image, rng: cropped(image, 0.95, rng),
    "crop 90%": lambda image, rng: cropped(image, 0.9, rng),
}


def copy_rows(path: Path, seeds: int) -> Iterator[dict[str, str]]:
    """Rows of results for one file of images, by small grey pictures alone."""
    table = load(path)
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        rows = rng.permutation(len(table))
        if table.groups is not None:
            rows = rows[np.unique(table.groups[rows], return_index=True)[1]]
        images = [table.image(int(row)) for row in rows[:3000]]
        n = len(images)
        given = np.stack([thumb(image) for image in images])
        content = numbered(image.tobytes() for image in images)
        first, second = near_pairs(given, [nearest(grey_feats(given), k=5)])
        other = content[first.numpy()] != content[second.numpy()]
        false = len(np.unique(np.concatenate([first.numpy()[other], second.numpy()[other]]))) / n
        yield _found(path, "none", "images with a false copy", false, seed)
        for way, change in WAYS.items():
            some = rng.permutation(n)[:500]
            copies = [change(images[row], rng) for row in some]
            thumbs = np.concatenate([given, np.stack([thumb(image) for image in copies])])
            first, second = near_pairs(thumbs, [nearest(grey_feats(thumbs), k=5)])
            pairs = set(zip(first.tolist(), second.tolist(), strict=True))
            right = np.mean([(int(row), n + i) in pairs for i, row in enumerate(some)])
            if way == "exact":
                all_of_them = numbered(image.tobytes() for image in [*images, *copies])
                right = np.mean(all_of_them[n:] == all_of_them[some])
            yield _found(path, way, way, float(right), seed)


def speed_rows(size: str) -> Iterator[dict[str, str]]:
    """Seconds and memory of one size, written ROWSxFEATURES."""
    n, width = (int(part) for part in size.split("x"))
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 100, n)
    feats = rng.normal(size=(100, width)).astype(np.float32)[truth] + rng.normal(0, 2, (n, width)).astype(np.float32)
    copied = rng.choice(n, 2 * (n // 1000), replace=False).reshape(2, -1)
    feats[copied[0]] = feats[copied[1]]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "feats.npz"
        np.savez(path, embeddings=feats.astype(np.float16), labels=make_wrong(truth, 100, "even", 0))
        del feats
        began, worked = time.monotonic(), time.process_time()
        found = lw.audit(path, device="cpu")
        seconds, cpu_seconds = time.monotonic() - began, time.process_time() - worked
    print({key: value for key, value in found.summary.items() if isinstance(value, int | float)}, flush=True)
    there = {"table": "audit.py speed", "cell": size, "title": f"{n:,} rows of {width} features", "seed": "0"}
    values = {"audit_s": seconds, "cpu_s": cpu_seconds, "peak_memory_mb": float(peak_memory_mb())}
    for metric, value in values.items():
        yield {**there, "metric": metric, "value": f"{value:.0f}", "seconds": f"{seconds:.0f}"}


def _found(path: Path, cell: str, title: str, share: float, seed: int) -> dict[str, str]:
    return {
        "table": f"audit.py copies {path.stem}",
        "cell": cell.replace(" ", "_").replace(",", "").replace("%", ""),
        "title": title,
        "metric": "found",
        "value": f"{100 * share:.2f}",
        "seed": str(seed),
    }


def main() -> None:
    """Measure, print, and add to a file of results in place of earlier rows of the same tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["labels", "copies", "speed"])
    parser.add_argument("files", nargs="+", help="files; of speed, sizes")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    commit = source_commit() or ""
    rows: list[dict[str, str]] = []
    hardware = f"cpu ({torch.get_num_threads()} threads), other work on the machine"
    for each in options.files:
        if options.what == "speed":
            found = speed_rows(each)
        else:
            found = (label_rows if options.what == "labels" else copy_rows)(Path(each), options.seeds)
        for row in found:
            rows.append({**row, "commit": commit, "hardware": hardware})
            print(row["table"], row["title"], row["seed"], row["metric"], row["value"], sep=" | ", flush=True)
    if options.csv is not None:
        add_rows(options.csv, rows)


if __name__ == "__main__":
    main()
