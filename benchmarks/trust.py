"""How far trust is from the chance that a label is right, beside other scores of the same classifier.

    python benchmarks/trust.py NAME=TRAIN.npz,TEST.npz [MORE …] digits [--situations few-5 long open-0.5 sets] [--csv F]

Files and situations are those of choices.py, and four with candidates alone: `crowd`, the first three voters of
crowds.py; `crowd-weak`, the others; `sets`, the true class in nine sets of ten and any other with a chance that makes
two of them on average; `sets-near`, three classes a set, the true one in nine of ten and others the more often the
nearer their mean is. Of sets also the share of the run's labels that is right, beside the best within the set by
logistic regression (every candidate a label of equal weight, in five folds, of four strengths the one that is right
most often). Of TRAIN at most --images are drawn, whole groups where there are any. `digits` is the demo. Every run is
`labelwright fit`; its saved model labels the images of TEST. Rows, all of that one model: our trust; our
trust with 100 images of TEST verified (mean of five draws by `verify-sample`, scored on the others; of 200 and more);
the largest probability; margin; negative entropy; temperature scaling, fitted on the same 100; agreement with ten
neighbours among the training images, as labelled by the run, in features and, of the demo, in small pixels; and, with
labels, five logistic regressions on bootstrap samples. Calibration error and AUROC in percent; `sure_right`: of labels
with 0.95 or more, where there are 50; `interval_holds`: whether the interval for the predicted training labels holds
the share that is right. Of these labels also trust and softmax alone; clusters of an open world are the classes that
they match best. With --keep FILE trust and truth are kept for the pictures of docs/trust.md.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import labelwright as lw
from choices import arranged, of_classes, read, results_of
from crowds import CROWDS, voters
from labelwright import demo
from labelwright.benchmarking.results import add_rows
from labelwright.data.prepare import open_source
from labelwright.metrics.classification import calibration_error
from labelwright.metrics.open_world import open_match
from labelwright.pipeline.saved_model import SavedModel, answers_for, load_model
from labelwright.run_folder import Run
from labelwright.train.predict import odds_of
from labelwright.trust.calibration import from_verified, levelled
from labelwright.trust.guarantee import draw
from labelwright.trust.strangers import small_pixels

Array = npt.NDArray[Any]
N_VERIFIED, N_DRAWS, N_NEIGHBOURS, N_BOOTSTRAP = 100, 5, 10, 5
SURE, LEAST_SURE = 0.95, 50
TITLES = {
    "own": "trust of the run's own labels",
    "own-softmax": "softmax of the run's own labels",
    "trust": "trust",
    "verified": "trust, 100 verified",
    "softmax": "largest probability",
    "margin": "margin",
    "entropy": "negative entropy",
    "temperature": "temperature scaling, 100 verified",
    "neighbours": "agreement with ten neighbours",
    "pixels": "agreement with ten neighbours in 8 x 8 pixels",
    "ensemble": "five bootstrap logistic regressions",
    "in-set": "best within the set, by logistic regression",
}


def drawn(train: dict[str, Any], n: int, seed: int) -> dict[str, Any]:
    """At most about n rows, whole groups where there are any."""
    total, rng = len(train["labels"]), np.random.default_rng(seed)
    if total <= n:
        return train
    groups = train.get("groups", np.arange(total))
    order = rng.permutation(np.unique(groups))
    kept = np.isin(groups, order[: round(len(order) * n / total)])
    return {key: value[kept] for key, value in train.items()}


@dataclass(frozen=True)
class Arranged:
    """A run to be made.

    Attributes:
      columns: of the file to learn from; `embeddings` [N, D] and what is known of them.
      settings: of `fit`.
      truth: [N] class names, or None where all of them are known.
    """

    columns: dict[str, Any]
    settings: dict[str, Any]
    truth: Array | None

    def write(self, folder: str) -> str:
        """The path of the file, .parquet where there are columns that .npz files do not have."""
        if "embeddings" in self.columns:
            np.savez(f"{folder}/train.npz", **self.columns)
            return f"{folder}/train.npz"
        pq.write_table(pa.table(self.columns), f"{folder}/train.parquet")
        return f"{folder}/train.parquet"


def situated(train: dict[str, Any], situation: str, seed: int) -> Arranged:
    """What is known of images in a situation."""
    if situation not in ("crowd", "crowd-weak", "sets", "sets-near"):
        file, settings = arranged(train, situation, seed)
        return Arranged(file, settings, file.get("truth"))
    names, truth = np.unique(train["labels"], return_inverse=True)
    columns = {"id": [str(i) for i in range(len(truth))], "embedding": list(train["embeddings"].astype(np.float32))}
    columns |= {"group": [str(g) for g in train["groups"]]} if "groups" in train else {}
    settings: dict[str, Any] = {"classes": list(names)}
    if situation == "sets":
        draw, n_classes = np.random.default_rng(seed + 200), len(names)
        named = draw.random((len(truth), n_classes)) < 2 / (n_classes - 1)
        named[np.arange(len(truth)), truth] = draw.random(len(truth)) < 0.9
        columns["candidates"] = [list(names[some]) for some in named]
    elif situation == "sets-near":
        named = near_sets(train["embeddings"], truth, len(names), seed)
        columns["candidates"] = [list(names[some]) for some in named]
    else:
        reliability = list(CROWDS.values())[situation == "crowd-weak"]
        votes = voters(truth, len(names), reliability, seed)
        said = {f"voter{a}": [None if c < 0 else names[c] for c in column] for a, column in enumerate(votes.T)}
        columns, settings = columns | said, settings | {"annotator_columns": ",".join(said)}
    return Arranged(columns, settings, train["labels"])


def near_sets(feats: Array, truth: Array, n_classes: int, seed: int) -> Array:
    """[N, C] bool: three classes a set, see above; a class is drawn with e^(-rank / 2) by the distance of the means."""
    rng = np.random.default_rng(seed + 300)
    means = np.stack([feats[truth == c].astype(np.float64).mean(0) for c in range(n_classes)])
    rank = ((means[:, None] - means) ** 2).sum(-1).argsort(1).argsort(1)
    named = np.zeros((len(truth), n_classes), bool)
    for row, c in enumerate(truth):
        chance = np.exp(-rank[c] / 2) * (np.arange(n_classes) != c)
        is_missed = rng.random() >= 0.9
        named[row, rng.choice(n_classes, 2 + is_missed, replace=False, p=chance / chance.sum())] = True
        named[row, c] = not is_missed
    return named


def best_in_set(feats: Array, sets: list[list[str]], truth: Array) -> float:
    """Share of the sets of which logistic regression on the other folds picks the right member; the best strength's."""
    sizes, shares = np.array([len(each) for each in sets]), []
    of, labels = np.repeat(np.arange(len(sets)), sizes), np.array([name for each in sets for name in each])
    for strength in (1e-4, 1e-3, 1e-2, 1e-1):
        found = np.full(len(sets), "", dtype=object)
        for k in range(5):
            seen = of % 5 != k
            model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=200))
            model.fit(feats[of[seen]], labels[seen], logisticregression__sample_weight=1 / sizes[of[seen]])
            column = {name: i for i, name in enumerate(model.classes_)}
            rows = np.flatnonzero((np.arange(len(sets)) % 5 == k) & (sizes > 0))
            for row, probs in zip(rows, model.predict_proba(feats[rows]), strict=True):
                found[row] = max(sets[row], key=lambda name: probs[column[name]] if name in column else 0.0)
        shares.append(float((found == truth).mean()))
    return max(shares)


def score_rows(values: dict[str, Array], right: Array) -> Iterator[tuple[str, str, float]]:
    """(cell, metric, value in percent) of scores of the same labels; those of NaN are left out."""
    for cell, value in values.items():
        known = ~np.isnan(value)
        v, r = torch.from_numpy(value[known]), torch.from_numpy(right[known])
        if r.any() and not r.all():
            yield cell, "auroc", 100 * float(roc_auc_score(r, v))
        if cell not in ("margin", "entropy"):
            yield cell, "ece", 100 * calibration_error(v.clamp(0, 1), r)
            sure = v >= SURE
            if int(sure.sum()) >= LEAST_SURE:
                yield cell, "sure_right", 100 * float(r[sure].double().mean())


def beside(
    probs: torch.Tensor, odds: torch.Tensor, saved: SavedModel, right: Array, seed: int
) -> Iterator[tuple[str, str, float]]:
    """Trust and the scores that need nothing but probabilities [N, C] and log-odds of the images to score on."""
    top, trust = probs.double().topk(2, 1).values, saved.calibration.chance(odds)
    yield from score_rows(
        {
            "trust": trust.numpy(),
            "softmax": top[:, 0].numpy(),
            "margin": (top[:, 0] - top[:, 1]).numpy(),
            "entropy": (probs.double() * probs.double().clamp(min=1e-38).log()).sum(1).numpy(),
        },
        right,
    )
    found: dict[tuple[str, str], list[float]] = {}
    logs = probs.double().clamp(min=1e-38).log()
    for i in range(N_DRAWS if len(right) >= 2 * N_VERIFIED else 0):
        some = draw(trust.double().numpy(), N_VERIFIED, seed=N_DRAWS * seed + i).rows
        rest = np.setdiff1d(np.arange(len(right)), some)
        verified, sign = torch.from_numpy(right[some]), 2.0 * right[some] - 1
        map_of = levelled(from_verified(saved.calibration, odds, torch.from_numpy(some), verified), odds)

        def misfit(log_t: float, some: Array = some, sign: Array = sign) -> float:
            best = (logs[some] / np.exp(log_t)).softmax(1).amax(1).clamp(1e-9, 1 - 1e-9).logit().numpy()
            return float(np.logaddexp(0, -sign * best).mean())

        t = float(np.exp(minimize_scalar(misfit, bounds=(-2, 4), method="bounded").x))
        scaled = (logs[rest] / t).softmax(1).amax(1)
        values = {"verified": map_of.chance(odds[rest]).numpy(), "temperature": scaled.numpy()}
        for cell, metric, value in score_rows(values, right[rest]):
            found.setdefault((cell, metric), []).append(value)
    for (cell, metric), each in found.items():
        yield cell, metric, float(np.mean(each))


def neighbours(train: Array, labels: Array, test: Array, predicted: Array) -> Array:
    """Share of the nearest training images, by cosine of centred features, that the run gave the same label."""
    mean = train.mean(0)
    z = F.normalize(torch.from_numpy(train - mean).float(), dim=1)
    asked = F.normalize(torch.from_numpy(test - mean).float(), dim=1)
    near = torch.cat([(some @ z.T).topk(N_NEIGHBOURS, 1).indices for some in asked.split(1000)])
    return np.asarray((labels[near.numpy()] == predicted[:, None]).mean(1))


def ensemble(train: Array, labels: Array, test: Array, predicted: Array, seed: int) -> Array:
    """Mean probability of the predicted class; NaN of a class that a sample lacks."""
    rng, total = np.random.default_rng(seed), np.zeros(len(test))
    known = np.flatnonzero(labels != "")[:2000]
    for _ in range(N_BOOTSTRAP):
        some = rng.choice(known, len(known))
        while len(np.unique(labels[some])) < 2:
            some = rng.choice(known, len(known))
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200)).fit(train[some], labels[some])
        column = {name: i for i, name in enumerate(model.classes_)}
        probs = np.column_stack([model.predict_proba(test), np.full(len(test), np.nan)])
        total += probs[np.arange(len(test)), [column.get(name, -1) for name in predicted]]
    return np.asarray(total / N_BOOTSTRAP)


def of_features(
    train: dict[str, Any], situation: str, test: dict[str, Any], seed: int, kept: dict[str, Any]
) -> tuple[Run, list[tuple[str, str, float]]]:
    """A run on stored features, scored."""
    asked = situated(train, situation, seed)
    with tempfile.TemporaryDirectory() as folder:
        settings = asked.settings | {"test_frac": 0, "seed": seed, "evaluations": 0, "device": "cpu"}
        if "classes" in settings:
            settings["classes"] = f"{folder}/classes.txt"
            Path(settings["classes"]).write_text("\n".join(asked.settings["classes"]), encoding="utf-8")
        run = lw.fit(asked.write(folder), out=f"{folder}/run", **settings)
        saved = load_model(run.path / "model", device=torch.device("cpu"))
        summary, labels, _ = run.summary, run.labels, run.environment  # read while they are there
        assert labels is not None
    test = test if asked.truth is None else of_classes(test, asked.truth)
    feats = test["embeddings"].astype(np.float32)
    with torch.no_grad():
        probs = torch.cat([saved.probs(some) for some in torch.from_numpy(feats).split(1000)])
    own = np.array(labels["label"].to_pylist())
    named = matched(np.array(saved.class_names), own, asked)
    names = np.array([named[name] for name in saved.class_names])
    predicted = names[probs.argmax(1)]
    right = predicted == test["labels"]
    found = list(beside(probs, odds_of(probs), saved, right, seed))
    own = np.array([named[name] for name in own])
    learned = asked.columns.get("embeddings", train["embeddings"]).astype(np.float32)
    others = {"neighbours": neighbours(learned, own, feats, predicted)}
    given = asked.columns.get("labels", np.array(""))
    if (given != "").any():
        others["ensemble"] = ensemble(learned, given, feats, predicted, seed)
    found += score_rows(others, right)
    if asked.truth is not None:
        open_rows = np.array(labels["source"].to_pylist()) == "predicted"
        is_right = (own == asked.truth)[open_rows]
        found += held(summary["trust"], float(is_right.mean()))
        values = {
            cell: np.asarray(labels[key])[open_rows] for cell, key in (("own", "trust"), ("own-softmax", "softmax"))
        }
        found += score_rows(values, is_right)
        if "candidates" in asked.columns:
            sets = [list(each) for each in asked.columns["candidates"]]
            found += [("own", "right", 100 * float(is_right.mean()))]
            found += [("in-set", "right", 100 * best_in_set(learned, sets, asked.truth))]
    kept |= {
        "trust": saved.calibration.chance(odds_of(probs)).numpy(),
        "softmax": probs.amax(1).numpy(),
        "right": right,
    }
    return run, found


def matched(names: Array, own: Array, asked: Arranged) -> dict[str, str]:
    """What each class of a model stands for: itself, and a cluster the class that it matches best."""
    if "novel" not in asked.settings:
        return {name: name for name in names}
    assert asked.truth is not None
    known = list(asked.columns["class_names"])
    all_true = np.array([*known, *sorted(set(asked.truth) - set(known))])
    number = {name: i for i, name in enumerate(names)}
    places = {name: i for i, name in enumerate(all_true)}
    predicted, truth = torch.tensor([number[n] for n in own]), torch.tensor([places[n] for n in asked.truth])
    match = open_match(predicted, truth, n_seen=len(known)).tolist()
    match += [-1] * (len(names) - len(match))
    return {name: all_true[c] if c >= 0 else "" for name, c in zip(names, match, strict=True)}


def held(trust: dict[str, Any], share_right: float) -> list[tuple[str, str, float]]:
    """Whether the interval holds the truth, and how far the estimate is off."""
    low, high = trust["interval"]
    off = 100 * abs(trust["estimated"] - share_right)
    return [("trust", "interval_holds", 100.0 * (low <= share_right <= high)), ("trust", "estimate_off", off)]


def of_digits(seed: int, kept: dict[str, Any]) -> tuple[Run, list[tuple[str, str, float]]]:
    """The demo, scored: on its held-out digits and, for the interval, on those without labels."""
    pool, test = demo.digits()
    with tempfile.TemporaryDirectory() as folder:
        how = {"method": "cap", "model": demo.MODEL, "descriptions": demo.DIGITS_DESCRIPTIONS, "device": "cpu"}
        run = lw.fit(pool, test=test, out=f"{folder}/run", seed=seed, **how)
        saved = load_model(run.path / "model", device=torch.device("cpu"))
        summary, labels, _ = run.summary, run.labels, run.environment
        assert labels is not None
        asked: dict[str, Any] = {
            "on_bad": "stop",
            "device": "cpu",
            "precision": "fp32",
            "classes": None,
            "only_images": True,
        }
        odds = answers_for(saved, test, **asked)[1].odds
    views = [open_source(t, classes=None, size_px=saved.size_px).views(saved.view) for t in (pool, test)]
    seen = [v.batch(torch.arange(v.n_rows), "clean", seed=0, device=torch.device("cpu")) for v in views]
    with torch.no_grad():
        probs, net = saved.probs(seen[1]), saved.net
        feats = [net.features(x).float().numpy() for x in seen]  # type: ignore[operator]
        pixels = [small_pixels(x).numpy() for x in seen]
    predicted = np.array(saved.class_names)[probs.argmax(1)]
    right = predicted == np.array(test.class_names)[test.labels]
    own = np.array(labels["label"].to_pylist())
    found = list(beside(probs, odds, saved, right, seed))
    agree = {"neighbours": feats, "pixels": pixels}
    found += score_rows({key: neighbours(a, own, b, predicted) for key, (a, b) in agree.items()}, right)
    assert pool.truth is not None
    found += held(summary["trust"], float((own == np.array(demo.NAMES)[pool.truth]).mean()))
    kept |= {
        "trust": saved.calibration.chance(odds).numpy(),
        "softmax": probs.amax(1).numpy(),
        "right": right,
    }
    return run, found


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pools", nargs="+", help="NAME=TRAIN.npz,TEST.npz, or digits")
    parser.add_argument("--situations", nargs="+", default=["few-5", "all"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=6000, help="of TRAIN, at most")
    parser.add_argument("--model", default="", help="what the features are of, for the file of results")
    parser.add_argument("--csv", type=Path, help="file of results to add rows to")
    parser.add_argument("--keep", type=Path, help=".npz for trust and truth of the first seed")
    options = parser.parse_args()
    for each in options.pools:
        pool, _, paths = each.partition("=")
        train, test = (read(Path(path)) for path in paths.split(",")) if paths else ({}, {})
        for situation in options.situations if paths else ["names"]:
            for seed in range(options.seeds):
                kept: dict[str, Any] = {}
                if not paths:
                    run, found = of_digits(seed, kept)
                else:
                    run, found = of_features(drawn(train, options.images, seed), situation, test, seed, kept)
                for cell, metric, value in found:
                    print(pool, situation, seed, TITLES[cell], metric, f"{value:.2f}", sep=" | ", flush=True)
                if options.csv:
                    shown = {f"{cell}-{metric}": (TITLES[cell], metric, value) for cell, metric, value in found}
                    row = {"pool": pool, "situation": situation, "seed": seed, "environment": run.environment}
                    row["seconds"] = sum(run.summary["seconds"].values())
                    rows = results_of("trust.py", row, options.model, shown)
                    for each_row, (cell, _, _) in zip(rows, found, strict=True):
                        each_row["cell"] = f"{situation}-{cell}"
                    add_rows(options.csv, rows)
                if options.keep and not seed:
                    there = dict(np.load(options.keep)) if options.keep.exists() else {}
                    there |= {f"{pool}-{situation}-{key}": value for key, value in kept.items()}
                    np.savez_compressed(options.keep, **there)


if __name__ == "__main__":
    main()
