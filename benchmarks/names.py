"""CAP against zero-shot on pools of any size, of all classes and of some, with names in several prompts, and its shots.

    python benchmarks/names.py MODEL DATA [--parts pools closed shots described] [--seeds 3] [--csv FILE]

MODEL is a vision-language model by folder or id, DATA the folder of `labelwright bench`. Pools are drawn from the
target pools of the tables of CAP: so many images of all classes, or all images of some; the seed draws which. `closed`
gives the names of some classes alone, in the prompts that `fit` takes, and images of these. Scored is
what CAP believes before it trains (`labels.alignment.align`), on the pool, beside zero-shot with the same texts; names
of `made-up words` mean nothing. With labels, so many a class, the whole commands run and are scored on the test images.
With descriptions (descriptions.json beside MODEL's folder) zero-shot gets them too, their mean in place of the name.
The truth of unlabelled images is used for scoring only.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegressionCV
from torch import Tensor

import labelwright as lw
from labelwright.benchmarking.pools import descriptions_of, with_nonsense
from labelwright.benchmarking.results import add_rows
from labelwright.data.splits import few_shot
from labelwright.encoders.embed import concepts_of, load_encoder
from labelwright.labels.alignment import KNOWN_FROM, align
from labelwright.types import Concepts, Task
from mismatch import pool_feats

PROMPTS = {"one": "one prompt", "photo27": "27 prompts", "{}": "the bare name"}
SIZES = (500, 2000, 6250, 0)  # 0 = all
SOME = {"cifar10": (2, 5, 9), "gtsrb": (5, 15, 30)}  # classes that are there
CLOSED = {"cifar10": (3, 5, 8), "gtsrb": (5, 8, 20)}  # classes that are named, all of them there
SHOTS = (1, 2, 4, 8, 16)


def pools(labels: Tensor, some: tuple[int, ...], seed: int) -> Iterator[tuple[str, Tensor]]:
    """(what it is, its rows) of the pools that a seed draws."""
    draw = np.random.default_rng(seed)
    order = torch.from_numpy(draw.permutation(len(labels)))
    for size in SIZES:
        if size or seed == 0:
            yield (f"{size:,} images" if size else "all images"), order[: size or len(order)]
    n_classes = int(labels.max()) + 1
    for n in some:
        there = torch.from_numpy(np.random.default_rng(seed).permutation(n_classes)[:n])
        yield f"{n} of {n_classes} classes", torch.isin(labels, there).nonzero().flatten()


def closed(labels: Tensor, texts: Tensor, some: tuple[int, ...], seed: int) -> Iterator[tuple[str, list[int], Tensor]]:
    """(what it is, classes that are named, rows): pools of their images alone, of classes by chance and with a pair
    of names that are nearest to each other of all that a class has.

    Args: texts [C, D] of all names, unit norm.
    """
    nearest = (texts @ texts.T).fill_diagonal_(-2).argmax(1)
    for n in some:
        draw = np.random.default_rng([seed, n])
        order = draw.permutation(len(texts)).tolist()
        pair = list(dict.fromkeys([order[0], int(nearest[order[0]]), *order]))
        for named, words in ((order[:n], ""), (pair[:n], ", two of them alike")):
            rows = torch.isin(labels, torch.tensor(named)).nonzero().flatten()
            rows = rows[torch.from_numpy(draw.permutation(len(rows)))]
            for size in SIZES[:2]:
                yield f"{size:,} images of {n} classes, no other named{words}", sorted(named), rows[:size]


def right(answers: Tensor, labels: Tensor) -> float:
    """Accuracy in percent."""
    return 100 * float((answers == labels).double().mean())


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or hub id of a vision-language model")
    parser.add_argument("data", help="folder with the data sets' Parquet files")
    parser.add_argument("--datasets", nargs="+", default=["cifar10", "gtsrb"], choices=["cifar10", "gtsrb"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--parts", nargs="+", default=["pools", "closed", "shots", "described"])
    parser.add_argument("--csv", type=Path, help="file of results, written anew")
    parser.add_argument("--commit", default="")
    options = parser.parse_args()
    encoder = load_encoder(options.model, device=torch.device("cpu"), precision="auto")
    if encoder.tower is None:
        parser.error(f"{options.model} has no text side")
    scores: dict[tuple[str, str, str, str], list[float]] = {}
    for dataset in options.datasets:
        feats, labels, names = pool_feats(dataset, options.data, encoder)
        test, test_labels, _ = pool_feats(dataset, options.data, encoder, is_test=True)

        def note(table: str, cell: str, title: str, metric: str, value: float, dataset: str = dataset) -> None:
            scores.setdefault((f"names.py {table}{dataset}", cell, title, metric), []).append(value)

        for seed in range(options.seeds):
            words = {t: (names, t, title) for t, title in PROMPTS.items()}
            words["made-up"] = (with_nonsense(names, len(names), seed=seed), "{}", "made-up words")
            for key, (given, template, title) in words.items() if "pools" in options.parts else ():
                concepts = concepts_of(encoder.tower, given, templates=template)
                for what, rows in pools(labels, SOME[dataset], seed):
                    if key == "made-up" and what != "2,000 images":
                        continue
                    z, truth = feats[rows], labels[rows]
                    task = Task(torch.full((len(z),), -1), tuple(given))
                    found, logs = align(z, task, concepts.feats, logit_scale=concepts.logit_scale)
                    cell = f"{key} {what}".replace(" ", "_").replace(",", "")
                    note("", cell, f"{title}, {what}", "zero_shot", right(found.zero_shot, truth))
                    note("", cell, f"{title}, {what}", "pseudolabels", right(found.predicted, truth))
                    note("", cell, f"{title}, {what}", "known", float(logs["knowledge"] >= KNOWN_FROM))
                    note("", cell, f"{title}, {what}", "n_guessed", float(len(logs["guessed"])))
            texts = concepts_of(encoder.tower, names, templates="{}").feats.float()
            for what, named, rows in closed(labels, texts, CLOSED[dataset], seed) if "closed" in options.parts else ():
                given = [names[c] for c in named]
                concepts = concepts_of(encoder.tower, given, templates="mixed")
                truth = torch.searchsorted(torch.tensor(named), labels[rows])
                task = Task(torch.full((len(rows),), -1), tuple(given))
                found, logs = align(feats[rows], task, concepts.feats, logit_scale=concepts.logit_scale)
                cell = what.replace(" ", "_").replace(",", "")
                before, after = right(found.zero_shot, truth), right(found.predicted, truth)
                note("closed-", cell, what, "zero_shot", before)
                note("closed-", cell, what, "pseudolabels", after)
                note("closed-", cell, what, "largest_loss", max(0.0, before - after))
                note("closed-", cell, what, "n_guessed", float(len(logs["guessed"])))
            concepts = concepts_of(encoder.tower, names, templates="{}")
            arrays = {"class_names": np.array(names), "logit_scale": concepts.logit_scale}
            arrays["class_embeddings"] = concepts.feats.float().numpy()
            for per_class in SHOTS if "shots" in options.parts else ():
                kept, _ = few_shot(labels.numpy(), per_class=per_class, n_classes=len(names), seed=seed)
                for method, value in shots(feats, labels, kept, test, test_labels, arrays, seed=seed).items():
                    title = f"{per_class} a class: {method}"
                    note("shots-", title.replace(" ", "_").replace(":", ""), title, "accuracy", value)
            print(f"{dataset}, seed {seed}", flush=True)
        if "described" in options.parts:
            looks = descriptions_of(None, options.model, dataset, names, names)
            concepts = concepts_of(encoder.tower, names, templates="{}", descriptions=looks)
            texts = [F.normalize(t.mean(0), dim=0) if len(t) else n for t, n in described_classes(concepts)]
            task = Task(torch.full((len(labels),), -1), tuple(names), concepts=concepts)
            found, _ = align(feats, task, concepts.feats, logit_scale=concepts.logit_scale)
            linear = concepts.logit_scale * found.class_feats + found.weight
            z = test.float()
            for title, logits in {
                "zero-shot, names": z @ concepts.feats.float().T,
                "zero-shot, descriptions in place of names": z @ torch.stack(texts).T,
                "CAP, names and descriptions": z @ linear.T + found.bias,
            }.items():
                cell = title.replace(" ", "_").replace(",", "")
                note("described-", cell, title, "accuracy", right(logits.argmax(1), test_labels))
    rows = []
    for (table, cell, title, metric), found in scores.items():
        spread = f"{statistics.stdev(found):.1f}" if len(found) > 1 else "0.0"
        value = statistics.mean(found)
        if metric.startswith("largest"):
            value, spread = max(found), ""
        values = {"value": f"{value:.1f}", "sd": spread, "n_seeds": str(len(found))}
        fixed = {"model": Path(options.model).name, "commit": options.commit, "hardware": "cpu (1 thread), bfloat16"}
        rows.append({"table": table, "cell": cell, "title": title, "metric": metric, **values, **fixed})
        print(f"{table} | {title} | {metric} | {values['value']}" + (f" ± {spread}" if spread else ""))
    if options.csv:
        add_rows(Path(options.csv), rows)


def described_classes(concepts: Concepts) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each class: its descriptions [k, D] and its name [D]."""
    return zip((t.float() for t in concepts.description_feats), concepts.feats.float(), strict=True)


def shots(
    feats: Tensor,
    labels: Tensor,
    kept: NDArray[np.int64],
    test: Tensor,
    test_labels: Tensor,
    arrays: dict[str, Any],
    *,
    seed: int,
) -> dict[str, float]:
    """Test accuracy in percent of what can be made of the labels of the rows kept."""
    x, y = feats[kept].float().numpy(), labels[kept].numpy()
    zero_shot = (test.float() @ torch.from_numpy(arrays["class_embeddings"]).T).argmax(1)
    per_class = int(np.bincount(y).min())
    regression = LogisticRegressionCV(Cs=5, cv=min(5, per_class), max_iter=500) if per_class > 1 else None
    if regression is None:
        found = {}
    else:
        found = {"logistic regression": 100 * float(regression.fit(x, y).score(test.float().numpy(), test_labels))}
    given = np.full(len(labels), -1)
    given[kept] = y
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        few, plain, held_out = folder / "few.npz", folder / "plain.npz", folder / "test.npz"
        np.savez(few, embeddings=feats.float().numpy(), labels=given, **arrays)
        np.savez(plain, embeddings=feats.float().numpy(), labels=given, class_names=arrays["class_names"])
        np.savez(held_out, embeddings=test.float().numpy(), labels=test_labels.numpy())
        for method, source in (("beliefs", plain), ("cap", few)):
            run = lw.fit(source, out=folder / method, test=held_out, method=method, seed=seed)
            found[{"beliefs": "beliefs, without names", "cap": "CAP"}[method]] = 100 * run.summary["test"]["accuracy"]
    return {"zero-shot": right(zero_shot, test_labels), **found}


if __name__ == "__main__":
    main()
