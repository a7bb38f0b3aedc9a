"""TransCLIP on stored features: seconds and accuracy of ours beside those of the published solver's operations.

    python benchmarks/transduction.py MODEL POOL.npz … [--images 20000] [--rounds 3] [--csv FILE]

MODEL is a vision-language model by folder or id, for the texts of the class names; a POOL holds `embeddings`, `labels`
and `class_names`, as pool_features.py writes it, of which evenly spread images are taken. `published` is a loop of our
own over the operations that the authors' solver does, in float32 on the same threads: all similarities in one table and
their largest by `topk`, log-densities and variances by differences of every image and every class, a sparse matrix of
neighbours. `by products` is the same with the differences multiplied out, which needs no memory of N x C x D: what a
careful user would do next. Each is run in turn, --rounds times; seconds are medians of processor time. `neighbours_pct`
is the share of the three nearest neighbours of an image that ours finds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from labelwright.benchmarking.results import Row, add_rows
from labelwright.encoders.embed import concepts_of, load_encoder
from labelwright.labels.transduce import nearest_neighbours, transclip
from labelwright.train.environment import source_commit

CHUNK = 2500  # images whose differences to all classes are held at a time
K, OUTER, INNER, TEMPERATURE, CONFIDENT = 3, 10, 5, 50.0, 8


def published(feats: Tensor, text: Tensor, *, logit_scale: float, by_products: bool = False) -> Tensor:
    """Labels [N] by the steps of Zanella et al. 2024, Algorithm 1, with tables of N x N and N x C."""
    n = len(feats)
    zero_shot = (logit_scale * feats @ text.T).softmax(dim=1)
    z = zero_shot.clone()
    surest = z.topk(CONFIDENT, dim=0)
    means = F.normalize((feats[surest.indices] * surest.values[..., None]).mean(dim=0), dim=1)
    variances = torch.full_like(feats[0], 1 / feats.shape[1])
    sims = feats @ feats.T
    near = sims.topk(K + 1, dim=1).indices[:, 1:].flatten()
    own = torch.arange(n).repeat_interleave(K)
    graph = torch.sparse_coo_tensor(torch.stack([own, near]), sims[own, near], (n, n), check_invariants=False)
    del sims

    def gaps(part: Tensor) -> Tensor:
        return (part[:, None] - means) ** 2  # [B, C, D]

    def log_densities() -> Tensor:
        if by_products:
            return (
                feats @ (means / variances).T
                - 0.5 * (feats**2 @ (1 / variances))[:, None]
                - 0.5 * (means**2 @ (1 / variances))
            )
        parts = [torch.einsum("bcd,d->bc", gaps(part), 1 / variances) for part in feats.split(CHUNK)]
        return -0.5 * torch.cat(parts)

    for outer in range(OUTER + 1):
        densities = log_densities()
        for _ in range(INNER):
            pull = densities + TEMPERATURE / (2 * K) * (graph.T @ z + graph @ z)
            z = zero_shot * ((pull - pull.amax(dim=1, keepdim=True)) / TEMPERATURE).exp()
            z = z / z.sum(dim=1, keepdim=True)
        if outer == OUTER:
            break
        means = F.normalize(z.T @ feats, dim=1)
        if by_products:
            around = (feats**2).T @ z.sum(dim=1) - 2 * ((z.T @ feats) * means).sum(dim=0) + z.sum(dim=0) @ means**2
            variances = around / n
        else:
            parts = zip(z.split(CHUNK), feats.split(CHUNK), strict=True)
            variances = torch.stack([torch.einsum("bc,bcd->d", p, gaps(x)) for p, x in parts]).sum(dim=0) / n
    return z.argmax(dim=1)


def neighbours_found(feats: Tensor) -> float:
    """Percent of the nearest neighbours that `nearest_neighbours` finds, on a sample of 1,000 images."""
    sample = torch.arange(0, len(feats), max(1, len(feats) // 1000))
    sims = feats[sample] @ feats.T
    sims[torch.arange(len(sample)), sample] = -torch.inf
    least = sims.topk(K, dim=1).values[:, -1:]
    found = nearest_neighbours(feats, n_neighbours=K)[0][sample]
    return 100 * float((found >= least - 1e-6).float().mean())


def measured(file: Path, n_images: int, model: str, n_rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds and accuracy of each way."""
    with np.load(file) as pool:
        rows = np.unique(np.linspace(0, len(pool["labels"]) - 1, n_images).astype(int))
        feats = F.normalize(torch.from_numpy(pool["embeddings"][rows]).float(), dim=1)
        truth, names = torch.from_numpy(pool["labels"][rows]), tuple(map(str, pool["class_names"]))
    tower = load_encoder(model, device=torch.device("cpu"), precision="fp32").tower
    assert tower is not None
    concepts = concepts_of(tower, names, templates="mixed")
    scale, text = concepts.logit_scale, concepts.feats
    ways: dict[str, Callable[[], Tensor]] = {
        "published": lambda: published(feats, text, logit_scale=scale),
        "by products": lambda: published(feats, text, logit_scale=scale, by_products=True),
        "ours": lambda: transclip(feats, text, logit_scale=scale)[0],
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    accuracy = {}
    for _ in range(n_rounds):
        for name, way in ways.items():
            began = time.process_time()
            found = way()
            seconds[name].append(time.process_time() - began)
            accuracy[name] = 100 * float((found == truth).float().mean())
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    return {
        name: {
            "cpu_s": medians[name],
            "times_as_fast": medians["published"] / medians[name],
            "accuracy": accuracy[name],
            **({"neighbours_pct": neighbours_found(feats)} if name == "ours" else {}),
        }
        for name in ways
    }


def main() -> None:
    """Measure each pool, print it, add it to the CSV file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("pools", nargs="+", type=Path)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    rows: list[Row] = []
    for file in options.pools:
        pool = file.stem.split("-")[0]
        for way, figures in measured(file, options.images, options.model, options.rounds).items():
            print(pool, way, *(f"{key} {value:.3g}" for key, value in figures.items()), sep="  ", flush=True)
            rows += [
                {
                    "table": f"transduction.py {pool}",
                    "cell": way.replace(" ", "_"),
                    "title": way,
                    "metric": metric,
                    "value": f"{value:.3g}",
                    "n_seeds": "1",
                    "commit": source_commit(),
                    "hardware": f"cpu ({torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)})",
                }
                for metric, value in figures.items()
            ]
    if options.csv:
        add_rows(options.csv, rows)


if __name__ == "__main__":
    main()
