"""Whether a vision-language model knows the classes, without a label: `labelwright.labels.concepts.knowledge`.

    python benchmarks/knowledge.py MODEL [MODEL …] --data FILE.parquet [FILE.parquet …] [--fit] [--csv FILE.csv]

MODEL is a vision-language model by folder or id, FILE.parquet holds labelled images as `fit` reads them, of which up to
--size are looked at. Pools of each: all classes; 5, 6, 8, 15 or 25 classes, the others neither shown nor named; and as
many shown of all that are named; four draws each. Labels serve for the score alone.

`claimed` is the mean probability of the model's own answers, `estimated` what remains of it by `chance_known`; `error`
and `error claimed` are how far these are from the share that is right, in root mean square over the pools. --fit also
prints the steepness of `chance_known` that makes `error` smallest over all of these pools.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import expit
from torch import Tensor

from labelwright.benchmarking.results import add_rows
from labelwright.data.prepare import prepare
from labelwright.data.stored import EmbeddingViews
from labelwright.encoders.embed import Encoder, concepts_of, embed, load_encoder
from labelwright.encoders.pretrained import image_stats
from labelwright.labels.concepts import KNOWN_FROM, chance_known, knowledge
from labelwright.train.environment import source_commit
from labelwright.types import Concepts

SHOWN, DRAWS = (5, 6, 8, 15, 25), 4
CPU = torch.device("cpu")


class Pool(NamedTuple):
    """What was measured of some images."""

    n_named: int
    ratio: float
    right: float
    claimed: float

    @property
    def estimated(self) -> float:
        """The share that is right, by what `chance_known` leaves of the claimed one."""
        chance = 1 / self.n_named
        return chance + chance_known(self.ratio) * (self.claimed - chance)


def read(path: str, encoder: Encoder, size: int) -> tuple[Tensor, Tensor, Concepts]:
    """Features [N, D], labels [N] and texts of up to ``size`` images."""
    assert encoder.tower is not None
    stats = image_stats(encoder.name)
    source = prepare(path, test_frac=0, size_px=stats.size_px, stats=(stats.mean, stats.std))
    rows = np.sort(np.random.default_rng(0).permutation(len(source.train.table))[:size])
    found = embed(source.train.take(rows), encoder, source.view, n_views=0, device=CPU)
    assert found.stored is not None
    feats = torch.cat(list(EmbeddingViews(found.stored, rows=found.rows).feats()))
    names = source.train.table.class_names
    return (
        feats.float(),
        torch.from_numpy(found.table.labels).long(),
        concepts_of(encoder.tower, names, templates="mixed"),
    )


def pools(feats: Tensor, labels: Tensor, texts: Concepts) -> Iterator[Pool]:
    """Of all classes, and of some."""
    n_classes = len(texts.feats)
    every = torch.arange(n_classes)
    yield measured(feats, labels, texts, every)
    for n in SHOWN:
        for seed in range(DRAWS if n < n_classes else 0):
            classes = torch.from_numpy(np.sort(np.random.default_rng(100 * seed + n).permutation(n_classes)[:n]))
            rows = torch.isin(labels, classes)
            yield measured(feats[rows], labels[rows], texts, classes)
            yield measured(feats[rows], labels[rows], texts, every)


def measured(feats: Tensor, labels: Tensor, texts: Concepts, named: Tensor) -> Pool:
    """Images whose class is one of those ``named`` [n]."""
    t = texts.feats[named].float()
    best = (texts.logit_scale * feats @ t.T).softmax(1).max(1)
    right = float((named[best.indices] == labels).float().mean())
    return Pool(len(named), knowledge(feats, t), right, float(best.values.mean()))


def steepness(found: list[Pool]) -> float:
    """Of `chance_known`, the one that makes `estimated` nearest to `right`."""
    ratio, right, claimed = (np.array([getattr(pool, key) for pool in found]) for key in ("ratio", "right", "claimed"))
    chance = 1 / np.array([pool.n_named for pool in found])

    def loss(steep: float) -> float:
        return float(np.mean((chance + expit(steep * (ratio - KNOWN_FROM)) * (claimed - chance) - right) ** 2))

    return float(minimize_scalar(loss, bounds=(1, 500), method="bounded").x)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="folder or hub id of a vision-language model")
    parser.add_argument("--data", nargs="+", required=True, help="tables of labelled images")
    parser.add_argument("--size", type=int, default=3000, help="images of a table, at most")
    parser.add_argument("--fit", action="store_true", help="the best steepness on these pools")
    parser.add_argument("--csv", type=Path, help="file of results to add rows to")
    parser.add_argument("--hardware", default="cpu", help="what to write there")
    options = parser.parse_args()
    every, rows = [], []
    print(
        "| | pools | right | claimed | estimated | ratio | error claimed | error |\n|---|---|---|---|---|---|---|---|"
    )
    for name in options.models:
        encoder = load_encoder(name, device=CPU, precision="auto")
        for path in options.data:
            found = list(pools(*read(path, encoder, options.size)))
            every += found
            right, claimed, estimated = (
                np.array([getattr(pool, key) for pool in found]) for key in ("right", "claimed", "estimated")
            )
            ratio = np.array([pool.ratio for pool in found])
            columns = {"n_pools": str(len(found))}
            columns |= {"right": f"{100 * right.mean():.1f}", "claimed": f"{100 * claimed.mean():.1f}"}
            columns |= {"estimated": f"{100 * estimated.mean():.1f}", "ratio": f"{ratio.mean():.3f}"}
            columns |= {"error_claimed": f"{100 * np.mean((claimed - right) ** 2) ** 0.5:.1f}"}
            columns |= {"error": f"{100 * np.mean((estimated - right) ** 2) ** 0.5:.1f}"}
            title = f"{Path(name).name}, {Path(path).stem}"
            print(f"| {title} | {' | '.join(columns.values())} |", flush=True)
            same = {"table": "knowledge.py", "model": "", "cell": title, "title": title, "seed": ""}
            same |= {"commit": (source_commit() or "")[:7], "hardware": options.hardware}
            rows += [same | {"metric": metric, "value": value} for metric, value in columns.items()]
    if options.fit:
        print(f"steepness {steepness(every):.1f} on these pools")
    if options.csv is not None:
        add_rows(options.csv, rows)


if __name__ == "__main__":
    main()
