"""Open world on stored features: every method with the same split, start and budget; the number of classes estimated.

    python benchmarks/open_world.py TRAIN.npz [MORE.npz …] [--csv docs/results/open_world.csv]

TRAIN.npz holds embeddings and a label for each, as `benchmarks/n_novel.py` reads them (`pool_features.py` writes those
of the target pools); --images of them are drawn, and --dims principal components of unit-norm features kept. The
first half of the classes are seen (--seen: another number). Cells: half or a tenth of the images of seen classes
labelled, the true number of classes given or (`auto`) estimated; and, with half of them labelled, unlabelled images
thinned until 70% of them are of the largest hidden class. The seed draws the labelled images and begins the run;
accuracy is that of the unlabelled images, in percent, named classes by name.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from sklearn.decomposition import PCA

import labelwright as lw
from labelwright.benchmarking.results import add_rows
from labelwright.data.splits import seen_novel
from n_novel import read

TITLES = {
    "ss_kmeans": "k-means",
    "fixmatch_clusters": "FixMatch, then k-means",
    "novel_beliefs": "start alone",
    "lps": "LPS",
    "orca": "ORCA",
    "simgcd": "SimGCD",
    "protogcd": "ProtoGCD",
}
ESTIMATING = ("novel_beliefs", "lps", "simgcd")  # methods that are given no number of classes, too
LARGEST = 0.7  # share of the unlabelled images
HARDWARE = "cpu (1 thread), float32"


def cells() -> list[tuple[str, str, float, bool, bool]]:
    """(cell, method, share labelled, whether one hidden class holds most, whether the number is estimated)."""
    found = []
    for frac in (0.5, 0.1):
        tag = f"{round(100 * frac)}"
        found += [(f"{method}-{tag}", method, frac, False, False) for method in TITLES]
        found += [(f"{method}-auto-{tag}", method, frac, False, True) for method in ESTIMATING]
    found += [(f"{method}-most", method, 0.5, True, False) for method in ("ss_kmeans", *ESTIMATING)]
    return [*found, *((f"{m}-auto-most", m, 0.5, True, True) for m in ESTIMATING)]


def thinned(truth: np.ndarray, free: np.ndarray, n_seen: int, seed: int) -> np.ndarray:
    """Unlabelled rows of which the largest hidden class makes up `LARGEST`, at least five of each other class."""
    counts = np.bincount(truth[free])
    counts[:n_seen] = 0
    most, draw = int(counts.argmax()), np.random.default_rng(seed)
    others = free[truth[free] != most]
    keep = counts[most] * (1 - LARGEST) / LARGEST / len(others)
    kept = [free[truth[free] == most]]
    for c in np.unique(truth[others]):
        rows = draw.permutation(others[truth[others] == c])
        kept.append(rows[: max(5, round(keep * len(rows)))])
    return np.concatenate(kept)


def measure(feats: np.ndarray, truth: np.ndarray, cell: tuple, n_seen: int, seed: int) -> dict[str, float]:
    """Scores and seconds of one run."""
    _, method, frac, has_most, is_auto = cell
    labelled, free = seen_novel(truth, seen=n_seen, labelled_frac=frac, seed=seed)
    free = thinned(truth, free, n_seen, seed) if has_most else free
    rows, names = (
        np.sort(np.concatenate([labelled, free])),
        np.array([f"class {c:03d}" for c in range(truth.max() + 1)]),
    )
    given = np.where(np.isin(rows, labelled), names[truth[rows]], "")
    novel = "auto" if is_auto else len(names) - n_seen
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        data = Path(folder) / "pool.npz"
        np.savez(data, embeddings=feats[rows], labels=given, truth=names[truth[rows]], class_names=names[:n_seen])
        settings = {"novel": novel, "test_frac": 0, "seed": seed, "evaluations": 0, "device": "cpu"}
        settings["answer"] = "trained"  # and not what is beside it
        summary = lw.fit(data, out=Path(folder) / "run", method=method, **settings).summary
    scores = {f"pool_{key}": 100 * summary["pseudolabels"][key] for key in ("all", "seen", "novel")}
    return scores | {"n_classes": n_seen + summary["n_novel"], "seconds": summary["seconds"]["train"]}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pools", nargs="+", type=Path, help=".npz of embeddings with labels")
    parser.add_argument("--seen", type=int, help="seen classes, the first ones; half of the classes by default")
    parser.add_argument("--images", type=int, default=4000, help="at most, drawn at random")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--dims", type=int, default=128, help="principal components of the features, at most")
    parser.add_argument("--cells", nargs="+", help="keys such as lps-50 or lps-auto-most; all of them by default")
    parser.add_argument("--model", default="efficientnet-lite0", help="what made the features, for the file")
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    for path in options.pools:
        embeddings, labels = read(path)
        feats, truth = F.normalize(embeddings, dim=1).numpy(), labels.numpy()
        some = np.random.default_rng(0).permutation(len(truth))[: options.images]
        feats, truth = feats[some], truth[some]
        n_seen, name = options.seen or (int(truth.max()) + 2) // 2, path.stem.split("-")[0]
        feats = PCA(min(options.dims, *feats.shape), random_state=0).fit_transform(feats)
        for cell in cells():
            if options.cells and cell[0] not in options.cells:
                continue
            key, method, frac, has_most, is_auto = cell
            words = "one class holds 70%" if has_most else f"{frac:.0%} labelled"
            title = f"{words}: {TITLES[method]}{', number of classes estimated' if is_auto else ''}"
            found = [measure(feats, truth, cell, n_seen, seed) for seed in range(options.seeds)]
            mean = np.array([[each[k] for k in ("pool_all", "pool_seen", "pool_novel")] for each in found]).mean(0)
            print(name, title, mean.round(1), [each["n_classes"] for each in found], flush=True)
            if options.csv is not None:
                shared = {"table": f"open_world.py {name}", "model": options.model, "cell": key, "title": title}
                shared |= {"commit": commit, "hardware": HARDWARE}
                add_rows(
                    options.csv,
                    [
                        shared
                        | {
                            "metric": m,
                            "value": f"{each[m]:g}" if m == "n_classes" else f"{each[m]:.2f}",
                            "seed": seed,
                            "seconds": f"{each['seconds']:.1f}",
                        }
                        for seed, each in enumerate(found)
                        for m in each
                        if m != "seconds" and (m != "n_classes" or is_auto)
                    ],
                )


if __name__ == "__main__":
    main()
