"""How much may be accepted with a promise, and how often the promise is broken, over redraws of the verified labels.

    python benchmarks/promises.py demo NAME=TRAIN.npz [MORE …] [--situation few-20] [--n 200] [--redraws 200] [--csv F]

Files and situations are those of choices.py; `demo` is `labelwright demo`. Of a run, --seeds times a pool, the
unlabelled images are labelled, and 200 times, by seed, --n of these labels are looked at. Rules, each for an error of
5% and of 2% at a confidence of 95%:

promise: `labelwright verify-sample` and `labelwright label --error`.
cp-softmax, cp-trust: as many as Clopper and Pearson's bound allows, of labels by softmax or trust, from a sample at
    random; the best of 200 thresholds is taken, without a correction for that.
crc-trust: conformal risk control on the share of all labels that are accepted and wrong (Angelopoulos et al. 2022,
    arXiv 2208.02814, Eq. (4)): in the mean over redraws, and not the share of the accepted labels.
crepes-trust: the labels whose conformal p-value of being wrong, among the wrong ones of a sample at random, is at most
    the error, by the library crepes: of the wrong labels, and not of the accepted ones, so many are accepted.

Printed: the share of the labels that is accepted, and of the redraws in which a larger share of these than the error is
wrong; and the calibration error of trust before and after 100 verified labels (mean of 50 redraws, over the others).
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from crepes import ConformalClassifier
from numpy.typing import NDArray
from scipy.stats import beta

import labelwright as lw
from choices import arranged, read, results_of
from labelwright import demo
from labelwright.assets import DIGITS_DESCRIPTIONS
from labelwright.benchmarking.results import add_rows
from labelwright.metrics.classification import calibration_error
from labelwright.pipeline.saved_model import answers_for, load_model
from labelwright.trust.calibration import Calibration, from_verified, levelled
from labelwright.trust.guarantee import draw, promise

CONFIDENCE, ERRORS, N_THRESHOLDS = 0.95, (0.05, 0.02), 200
TITLES = {
    "promise": "verify-sample, label --error",
    "cp-trust": "Clopper-Pearson on trust",
    "cp-softmax": "Clopper-Pearson on softmax",
    "crc-trust": "conformal risk control on trust",
    "crepes-trust": "crepes, p-values of trust",
}


@dataclasses.dataclass(frozen=True)
class Pool:
    """Predicted labels of a run."""

    trust: NDArray[np.float64]
    softmax: NDArray[np.float64]
    labels: NDArray[np.int64]
    wrong: NDArray[np.bool_]
    odds: torch.Tensor
    calibration: Calibration
    summary: dict[str, Any]
    environment: dict[str, Any]


def pool_of(name: str, path: str, situation: str, seed: int) -> Pool:
    """One run."""
    with tempfile.TemporaryDirectory() as folder:
        if name == "demo":
            images, test = demo.digits()
            truth = np.array(demo.NAMES)[images.truth]
            settings: dict[str, Any] = {"method": "cap", "model": demo.MODEL, "descriptions": DIGITS_DESCRIPTIONS}
            run = lw.fit(images, test=test, out=f"{folder}/run", seed=seed, **settings)
            data: Any = images
        else:
            train = read(Path(path))
            file, settings = arranged(train, situation, seed)
            file.pop("groups", None)
            truth = train["labels"]
            np.savez(f"{folder}/train.npz", **file)
            data = f"{folder}/train.npz"
            run = lw.fit(data, out=f"{folder}/run", test_frac=0, evaluations=0, seed=seed, **settings)
        rows, summary, environment = run.labels, run.summary, run.environment  # read while they are there
        saved = load_model(run.path / "model", device=torch.device("cpu"))
        how: dict[str, Any] = {"on_bad": "stop", "device": "cpu", "precision": "auto", "classes": None}
        odds = answers_for(saved, data, **how, only_images=True)[1].odds
    assert rows is not None
    label, source = (np.array(rows[key].to_pylist()) for key in ("label", "source"))
    is_open = source == "predicted"
    trust, softmax = (np.asarray(rows[key]).astype(np.float64)[is_open] for key in ("trust", "softmax"))
    index = np.unique(label, return_inverse=True)[1]
    wrong, odds = (label != truth)[is_open], odds[torch.from_numpy(is_open)]
    return Pool(trust, softmax, index[is_open], wrong, odds, saved.calibration, summary, environment)


def promised(pool: Pool, error: float, n: int, seed: int) -> NDArray[np.bool_]:
    """[N] accepted by ours."""
    sample = draw(pool.trust, n, error=error, confidence=CONFIDENCE, seed=seed)
    seen = np.zeros(len(pool.trust), bool)
    seen[sample.rows] = True
    found = promise(pool.trust, pool.labels, sample.stratum, seen, pool.wrong, error=error, confidence=CONFIDENCE)
    return found.accepted


def by_threshold(
    pool: Pool, score: NDArray[np.float64], n: int, seed: int, is_within: Callable[[Any, Any], Any]
) -> NDArray[np.bool_]:
    """[N] accepted: the lowest threshold at which (labels verified above it, wrong ones of them) is within a bound."""
    rows = np.random.default_rng(seed).choice(len(score), n, replace=False)
    thresholds = np.quantile(score, np.linspace(0, 1, N_THRESHOLDS, endpoint=False))
    above = score[rows] >= thresholds[:, None]
    good = is_within(above.sum(1), (above & pool.wrong[rows]).sum(1))
    return score >= thresholds[np.argmax(good)] if good.any() else np.zeros(len(score), bool)


def by_crepes(pool: Pool, error: float, n: int, seed: int) -> NDArray[np.bool_]:
    """[N] accepted: labels with more trust than all but a share of the wrong verified ones."""
    rows = np.random.default_rng(seed).choice(len(pool.trust), n, replace=False)
    wrong = rows[pool.wrong[rows]]
    if not len(wrong):
        return np.zeros(len(pool.trust), bool)
    conformal = ConformalClassifier()
    conformal.fit(pool.trust[wrong])
    accepted: NDArray[np.bool_] = conformal.predict_p(pool.trust[:, None], smoothing=False)[:, 0] <= error
    return accepted


def rules(pool: Pool, error: float, n: int) -> dict[str, Callable[[int], NDArray[np.bool_]]]:
    """Rule -> what it accepts, by seed."""

    def clopper_pearson(m: Any, k: Any) -> Any:
        return (m > k) & (beta.ppf(CONFIDENCE, k + 1, np.maximum(m - k, 1)) <= error)

    def risk_control(m: Any, k: Any) -> Any:
        return (k + 1) / (n + 1) <= error

    return {
        "promise": lambda seed: promised(pool, error, n, seed),
        "cp-trust": lambda seed: by_threshold(pool, pool.trust, n, seed, clopper_pearson),
        "cp-softmax": lambda seed: by_threshold(pool, pool.softmax, n, seed, clopper_pearson),
        "crc-trust": lambda seed: by_threshold(pool, pool.trust, n, seed, risk_control),
        "crepes-trust": lambda seed: by_crepes(pool, error, n, seed),
    }


def ece_after(pool: Pool, n: int, redraws: int) -> float:
    """Calibration error of trust by n verified labels, over the others."""
    right = torch.from_numpy(~pool.wrong)
    found = []
    for seed in range(redraws):
        rows = torch.from_numpy(draw(pool.trust, n, seed=seed).rows)
        rest = torch.ones(len(right), dtype=torch.bool)
        rest[rows] = False
        calibration = levelled(from_verified(pool.calibration, pool.odds, rows, right[rows]), pool.odds)
        found.append(calibration_error(calibration.chance(pool.odds[rest]), right[rest]))
    return float(np.mean(found))


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pools", nargs="+", help="demo, or NAME=TRAIN.npz")
    parser.add_argument("--situation", default="few-20")
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3, help="runs a pool")
    parser.add_argument("--redraws", type=int, default=200)
    parser.add_argument("--model", default="", help="what the features are of, for the file of results")
    parser.add_argument("--csv", type=Path, help="file of results to add rows to")
    options = parser.parse_args()
    print("| pool | right | error | rule | accepted | broken |\n|---|---|---|---|---|---|")
    for each, run_seed in itertools.product(options.pools, range(options.seeds)):
        name, _, path = each.partition("=")
        situation = "names" if name == "demo" else options.situation
        pool = pool_of(name, path, situation, run_seed)
        row = {"pool": name, "situation": situation, "seed": run_seed, "environment": pool.environment}
        row["seconds"] = sum(pool.summary["seconds"].values())
        right = 100 * float(1 - pool.wrong.mean())
        shown: dict[str, dict[str, tuple[str, str, float]]] = {"accepted": {}, "broken": {}}
        for error in ERRORS:
            for rule, accept in rules(pool, error, options.n).items():
                sets = [accept(seed) for seed in range(options.redraws)]
                accepted = 100 * float(np.mean([found.mean() for found in sets]))
                broken = 100 * float(np.mean([found.any() and pool.wrong[found].mean() > error for found in sets]))
                print(f"| {name} | {right:.1f} | {error:.0%} | {rule} | {accepted:.1f} | {broken:.1f} |", flush=True)
                for metric, value in (("accepted", accepted), ("broken", broken)):
                    shown[metric][f"{error:.0%}-{rule}"] = (f"error {error:.0%}, {TITLES[rule]}", metric, value)
        before = 100 * calibration_error(torch.from_numpy(pool.trust), torch.from_numpy(~pool.wrong))
        ece = 100 * ece_after(pool, 100, 50)
        print(f"{name}: ece of trust {before:.1f}, after 100 verified labels {ece:.1f}", flush=True)
        other = {
            "right": ("labels that are right", "accuracy", right),
            "before": ("calibration error of trust before", "ece_trust", before),
            "after": ("calibration error of trust, 100 verified labels", "ece_trust", ece),
        }
        if options.csv:
            for cells in (*shown.values(), other):
                add_rows(options.csv, results_of("promises.py", row, options.model, cells))


if __name__ == "__main__":
    main()
