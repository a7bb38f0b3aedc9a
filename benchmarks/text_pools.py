"""Class names on pools that show some of the classes, with and without shots, and what names are put into.

    python benchmarks/text_pools.py MODEL DATA [--datasets cifar10 gtsrb] [--parts pools shots templates]
        [--draws 10] [--size 1000] [--methods zero_shot stata …] [--templates mixed] [--csv FILE.csv]

MODEL is a vision-language model by folder or id, DATA the folder of `labelwright bench`; images are the target pools of
the tables of CAP, embedded once, and every method gets the same features, texts and labels.

pools: --size images of 2 to 10, of 5 to 25 and of all classes, which the seed draws, and the whole pool once; nothing
is labelled, all class names are given. `worst loss` is by how many points the worst of these draws is below zero-shot.
shots: --size images of all classes beside 1, 2, 4, 8 and 16 labelled ones a class, five draws.
templates: zero-shot on the whole pool with the name alone and with each set of `encoders.templates`.

Accuracy on the unlabelled images in percent; seconds are those of a run without reading, embedding and report.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from labelwright.benchmarking.results import Row, add_rows
from labelwright.benchmarking.runner import table_data
from labelwright.benchmarking.tables import TABLES
from labelwright.data.prepare import prepare
from labelwright.data.splits import few_shot
from labelwright.data.stored import EmbeddingViews
from labelwright.encoders.embed import Encoder, concepts_of, embed, load_encoder
from labelwright.encoders.nets import EncoderNets
from labelwright.encoders.pretrained import image_stats
from labelwright.encoders.templates import TEMPLATES
from labelwright.methods.registry import METHODS, resolve_config
from labelwright.train.environment import source_commit
from labelwright.train.loop import LoopOptions, train
from labelwright.types import Concepts, Task

CPU = torch.device("cpu")
UNLABELLED = ("zero_shot", "stata", "transclip", "zlap", "beliefs", "cap")
SHOTS_TOO = ("zero_shot", "tip_adapter", "lp_pp", "clap", "stata", "transclip", "zlap", "beliefs", "cap")
POOLS = {"2 to 10 classes": (2, 10), "5 to 25 classes": (5, 25), "all classes": (10**6, 10**6)}
SHOTS, SHOT_DRAWS = (1, 2, 4, 8, 16), 5


@dataclass(frozen=True)
class Pool:
    """A target pool as every method gets it."""

    views: EmbeddingViews
    labels: Tensor  # [N] int64, for scores, and of shots
    names: tuple[str, ...]
    encoder: Encoder

    def texts(self, templates: str) -> Concepts:
        """Of the class names."""
        assert self.encoder.tower is not None
        return concepts_of(self.encoder.tower, self.names, templates=templates)


def read_pool(dataset: str, data: str, encoder: Encoder) -> Pool:
    """Embedded, with views for the methods that train."""
    stats = image_stats(encoder.name)
    table, _ = table_data(TABLES[f"cap-{dataset}"], data)
    prepared = prepare(table, test_frac=0, size_px=stats.size_px, stats=(stats.mean, stats.std))
    source = embed(prepared.train, encoder, prepared.view, n_views=2, device=CPU)
    assert source.stored is not None
    return Pool(EmbeddingViews(source.stored), torch.from_numpy(table.labels).long(), table.class_names, encoder)


def run(name: str, pool: Pool, texts: Concepts, rows: Tensor, labels: Tensor, seed: int) -> tuple[float, float]:
    """Accuracy in percent on the rows [n] whose label [n] is -1, and seconds."""
    views = EmbeddingViews(pool.views.stored, rows=rows)
    task = Task(labels, pool.names, concepts=texts)
    build = EncoderNets(views.n_features, texts, None, True, pool.names, "{}", seed)
    cfg = resolve_config(METHODS[name], {})
    began = time.perf_counter()
    options = LoopOptions(seed=seed, device="cpu", precision="fp32", show_progress=False)
    net = train(METHODS[name].recipe, cfg, task, views, build, options=options).state.nets["main"].eval()
    seconds = time.perf_counter() - began
    open_rows = (labels < 0).nonzero().flatten()
    with torch.no_grad():
        found = torch.cat([net(z).argmax(1) for z in views.feats(open_rows)])
    return 100 * float((found == pool.labels[rows[open_rows]]).float().mean()), seconds


def drawn(labels: Tensor, fewest: int, most: int, size: int, seed: int) -> Tensor:
    """[n] int64 rows, ascending: images of classes whose number is drawn from fewest to most, or of all there are."""
    draw, n_classes = np.random.default_rng(seed), int(labels.max()) + 1
    n = int(draw.integers(min(fewest, n_classes), min(most, n_classes) + 1))
    of = np.flatnonzero(np.isin(labels.numpy(), draw.permutation(n_classes)[:n]))
    return torch.from_numpy(np.sort(draw.permutation(of)[:size]))


class Scores:
    """What was measured in one table: method -> column -> numbers, printed as they come."""

    def __init__(self, table: str) -> None:
        self.table = table
        self.values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def add(self, method: str, column: str, accuracy: float, seconds: float) -> None:
        """One run."""
        self.values[method][column].append(accuracy)
        self.seconds[method].append(seconds)

    def print_table(self, worst: Sequence[str] = ()) -> None:
        """Means and deviations; of columns ``worst`` also the largest loss against zero-shot in one draw."""
        columns = list(next(iter(self.values.values())))
        print(f"\n{self.table}\n| | {' | '.join(columns)} | worst loss | s |\n|{'---|' * (len(columns) + 3)}")
        for method, found in self.values.items():
            cells = [f"{np.mean(v):.1f} ± {np.std(v, ddof=1) if len(v) > 1 else 0:.1f}" for v in found.values()]
            loss = f"{self.worst_loss(method, worst):.1f}" if worst else ""
            print(f"| {method} | {' | '.join(cells)} | {loss} | {np.mean(self.seconds[method]):.2f} |", flush=True)

    def worst_loss(self, method: str, columns: Sequence[str]) -> float:
        """Points below zero-shot in the worst draw; 0 if there is none below."""
        pairs = [(self.values[method][c], self.values["zero_shot"][c]) for c in columns]
        return max(0.0, *(z - own for mine, zero in pairs for own, z in zip(mine, zero, strict=True)))

    def rows(self, model: str, hardware: str, worst: Sequence[str]) -> Iterator[Row]:
        """For docs/results."""
        for method, found in self.values.items():
            title = METHODS[method].title if method in METHODS else method
            same = {"table": self.table, "model": Path(model).name, "cell": method, "title": title}
            same |= {"seconds": f"{np.mean(self.seconds[method]):.1f}", "hardware": hardware}
            same |= {"seed": "", "commit": (source_commit() or "")[:7]}
            for column, values in found.items():
                spread = {"sd": f"{np.std(values, ddof=1):.1f}", "n_seeds": str(len(values))} if len(values) > 1 else {}
                yield same | {"metric": column.replace(" ", "_"), "value": f"{np.mean(values):.1f}"} | spread
            if worst:
                yield same | {"metric": "worst_loss", "value": f"{self.worst_loss(method, worst):.1f}"}


def measure_pools(dataset: str, pool: Pool, texts: Concepts, methods: Sequence[str], draws: int, size: int) -> Scores:
    """Pools that show some classes."""
    scores = Scores(f"text_pools.py {dataset}")
    for name in methods:
        for column, (fewest, most) in POOLS.items():
            for seed in range(draws):
                rows = drawn(pool.labels, fewest, most, size, seed)
                scores.add(name, column, *run(name, pool, texts, rows, torch.full((len(rows),), -1), seed))
        every = torch.arange(len(pool.labels))
        scores.add(name, "whole pool", *run(name, pool, texts, every, torch.full((len(every),), -1), 0))
    scores.print_table(list(POOLS))
    return scores


def measure_shots(dataset: str, pool: Pool, texts: Concepts, methods: Sequence[str], size: int) -> Scores:
    """A few labelled images a class."""
    scores = Scores(f"text_pools.py {dataset}-shots")
    n_classes = len(pool.names)
    for name in methods:
        for k in SHOTS:
            for seed in range(SHOT_DRAWS):
                rows = drawn(pool.labels, n_classes, n_classes, size, seed)
                shots, _ = few_shot(pool.labels.numpy(), per_class=k, n_classes=n_classes, seed=seed)
                rows = torch.cat([torch.from_numpy(shots), rows[~torch.isin(rows, torch.from_numpy(shots))]])
                labels = torch.where(torch.arange(len(rows)) < len(shots), pool.labels[rows], -1)
                column = "1 shot" if k == 1 else f"{k} shots"
                scores.add(name, column, *run(name, pool, texts, rows, labels, seed))
    scores.print_table()
    return scores


def measure_templates(dataset: str, pool: Pool) -> Scores:
    """Zero-shot with every set of templates."""
    scores = Scores(f"text_pools.py {dataset}-templates")
    every = torch.arange(len(pool.labels))
    for templates in ("{}", *TEMPLATES):
        texts, unknown = pool.texts(templates), torch.full((len(every),), -1)
        scores.add(templates, "accuracy", *run("zero_shot", pool, texts, every, unknown, 0))
    scores.print_table()
    return scores


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or hub id of a vision-language model")
    parser.add_argument("data", help="folder with the data sets' Parquet files")
    parser.add_argument("--datasets", nargs="+", default=["cifar10", "gtsrb"], choices=["cifar10", "gtsrb"])
    parser.add_argument(
        "--parts", nargs="+", default=["pools", "shots", "templates"], choices=["pools", "shots", "templates"]
    )
    parser.add_argument("--draws", type=int, default=10, help="draws of each kind of pool")
    parser.add_argument("--size", type=int, default=1000, help="images of a draw")
    parser.add_argument("--methods", nargs="+", help="default: all that apply")
    parser.add_argument("--templates", default="mixed", help="what class names are put into")
    parser.add_argument("--csv", type=Path, help="file of results to add rows to")
    parser.add_argument("--hardware", default="cpu", help="what to write there")
    options = parser.parse_args()
    encoder = load_encoder(options.model, device=CPU, precision="auto")
    if encoder.tower is None:
        parser.error(f"{options.model} has no text side")
    for dataset in options.datasets:
        pool = read_pool(dataset, options.data, encoder)
        texts = pool.texts(options.templates)
        for part in options.parts:
            worst: Sequence[str] = ()
            if part == "pools":
                methods, worst = [m for m in UNLABELLED if m in (options.methods or UNLABELLED)], list(POOLS)
                scores = measure_pools(dataset, pool, texts, methods, options.draws, options.size)
            elif part == "shots":
                methods = [m for m in SHOTS_TOO if m in (options.methods or SHOTS_TOO)]
                scores = measure_shots(dataset, pool, texts, methods, options.size)
            else:
                scores = measure_templates(dataset, pool)
            if options.csv is not None:
                add_rows(options.csv, list(scores.rows(options.model, options.hardware, worst)))


if __name__ == "__main__":
    main()
