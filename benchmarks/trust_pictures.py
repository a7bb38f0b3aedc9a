"""The pictures of docs/trust.md, of runs that benchmarks/trust.py kept.

    python benchmarks/trust.py NAME=TRAIN.npz,TEST.npz [MORE …] digits --seeds 1 --keep kept.npz
    python benchmarks/trust_pictures.py kept.npz --out docs

`trust-reliability.png`: in ten bins of equal width, the share of labels that are right, of trust and of the softmax.
`trust-coverage.png`: of the labels with the most trust, as many as are accepted, the share that is right.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt

mpl.use("Agg")
import matplotlib.pyplot as plt

Array = npt.NDArray[Any]
N_BINS, LEAST = 10, 10  # bins with fewer labels are left out
COLOURS = {"trust": "#1b6ca8", "softmax": "#c05746"}


def bins(score: Array, right: Array) -> tuple[Array, Array, Array]:
    """Mean score, share that is right and number of labels of each bin that holds enough."""
    which = np.clip((score * N_BINS).astype(int), 0, N_BINS - 1)
    counts = np.bincount(which, minlength=N_BINS)
    kept = counts >= LEAST
    means = [np.bincount(which, values, N_BINS)[kept] / counts[kept] for values in (score, right)]
    return means[0], means[1], counts[kept]


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kept", type=Path)
    parser.add_argument("--runs", nargs="+", default=["digits-names", "cifar10-few-5", "gtsrb-few-5", "rsscn7-all"])
    parser.add_argument("--out", type=Path, default=Path("docs"))
    options = parser.parse_args()
    kept = dict(np.load(options.kept))
    plt.rcParams |= {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False}
    n = len(options.runs)
    figure, axes = plt.subplots(1, n, figsize=(2.3 * n, 2.5), sharey=True, constrained_layout=True)
    for axis, name in zip(np.atleast_1d(axes), options.runs, strict=True):
        right = kept[f"{name}-right"].astype(float)
        axis.plot([0, 1], [0, 1], color="#999999", linewidth=0.8)
        for key, colour in COLOURS.items():
            said, found, counts = bins(kept[f"{name}-{key}"], right)
            axis.plot(said, found, color=colour, linewidth=1, label=key)
            axis.scatter(said, found, s=4 + 60 * counts / counts.sum(), color=colour, zorder=3)
        axis.set(title=name, xlabel="trust, or softmax", xlim=(0, 1), ylim=(0, 1.02))
    np.atleast_1d(axes)[0].set_ylabel("share that is right")
    np.atleast_1d(axes)[0].legend(frameon=False, loc="upper left")
    figure.savefig(options.out / "trust-reliability.png", dpi=110)
    figure, axis = plt.subplots(figsize=(4.6, 2.8), constrained_layout=True)
    for name in options.runs:
        order = np.argsort(-kept[f"{name}-trust"], kind="stable")
        right = kept[f"{name}-right"][order]
        accepted = np.arange(1, len(right) + 1)
        start = len(right) // 50
        axis.plot((accepted / len(right))[start:], (right.cumsum() / accepted)[start:], linewidth=1.2, label=name)
    axis.set(xlabel="share of the labels that is accepted, the most trusted first", ylabel="share that is right")
    axis.set(xlim=(0, 1), ylim=(None, 1.005))
    axis.legend(frameon=False, loc="lower left")
    figure.savefig(options.out / "trust-coverage.png", dpi=110)


if __name__ == "__main__":
    main()
