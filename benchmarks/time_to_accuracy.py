"""How soon each method on stored features is where the best of the obvious ones ends, given the same, and its end.

    OMP_NUM_THREADS=1 python benchmarks/time_to_accuracy.py NAME=TRAIN.npz,TEST.npz [MORE ...]
        [--situations few-5 long candidates open-0.5 names] [--text-model MODEL] [--seeds 3] [--rounds 3] [--csv FILE]

Files as for choices.py, which arranges `few-5`, `long` and `open-0.5`. `candidates`: a set per image, of its class and
each other one with a chance of 0.3; `names`: class names alone, by --text-model, whose image features the files
hold. Every contender gets the same file and the settings of `fit`, and is scored after every epoch. Processor seconds
count from the data to the classifier, the choice of penalties included, those of scores left out; by turns, medians of
--rounds. Recorded: balanced accuracy on TEST (`open`: accuracy on the unlabelled images) in percent, that of
the obvious one that is best by it, and as multiples of the seconds of the latter `seconds_ratio`, of the whole
training, and `reached_ratio`, until the score was first no lower than its. A seed that --csv has is not run again.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from choices import arranged, read
from labelwright.benchmarking.results import add_rows, read_rows
from labelwright.encoders.embed import concepts_of, load_encoder
from labelwright.methods.recipe import State
from labelwright.methods.registry import METHODS
from labelwright.pipeline.evaluate import evaluator
from labelwright.pipeline.job import prepare_job
from labelwright.pipeline.resolve import resolve
from labelwright.pipeline.run_config import settings_of
from labelwright.train.environment import source_commit
from labelwright.train.loop import train

CONTENDERS = {  # methods, and the obvious ones
    "few-5": (("beliefs",), ("class_balanced", "nearest_mean")),
    "long": (("cross_validated", "cvs"), ("class_balanced", "nearest_mean", "kernel")),
    "candidates": (("coreg_frozen", "proden"), ("majority", "cc")),
    "open-0.5": (("lps",), ("ss_kmeans",)),
    "names": (("cap", "beliefs"), ("zero_shot", "pseudo_probe")),
}
Curve = list[tuple[float, float]]
"""Seconds of training, and the score then; the last is the end."""


def written(folder: Path, train: dict[str, Any], situation: str, seed: int, texts: dict[str, Any]) -> dict[str, Any]:
    """Write the training file of a situation; settings of `fit`."""
    path, labels = folder / "train.npz", train["labels"]
    classes = np.unique(labels)
    if situation == "names":
        np.savez(path, embeddings=train["embeddings"], labels=np.full_like(labels, ""), **texts)
        return {"data": path}
    if situation == "candidates":
        draws = np.random.default_rng(seed).random((len(labels), len(classes))) < 0.3
        sets = [sorted({str(label), *map(str, classes[row])}) for label, row in zip(labels, draws, strict=True)]
        path = path.with_suffix(".parquet")
        pq.write_table(pa.table({"embedding": list(train["embeddings"]), "candidates": sets}), path)
        return {"data": path, "classes": [str(name) for name in classes]}
    file, settings = arranged(train, situation, seed)
    np.savez(path, **file)
    return {"data": path, **settings}


def curve(settings: dict[str, Any], name: str, out: Path, seed: int) -> Curve:
    """Train once."""
    of_run = {**settings, "out": out, "method": name, "seed": seed, "evaluations": 100_000, "device": "cpu"}
    plan = resolve(settings_of(None, of_run))
    job = prepare_job(plan, {}, None)
    score_of = evaluator(plan, job)
    assert score_of is not None
    found: Curve = []
    scoring_s, began = 0.0, time.process_time()

    def score(state: State) -> Mapping[str, Any]:
        nonlocal scoring_s
        asked = time.process_time()
        values = score_of(state)
        found.append((asked - began - scoring_s, 100 * values["pool_all" if job.task.n_novel else "balanced_accuracy"]))
        scoring_s += time.process_time() - asked
        return values

    views = job.prepared.train.views(job.prepared.view)
    trained = train(plan.method.recipe, job.cfg, job.task, views, job.build, options=plan.options, evaluate=score)
    score(trained.state)
    return found


def compared(method: list[Curve], obvious: list[Curve]) -> dict[str, float]:
    """Seconds of a method by those of the best obvious one."""
    reference_s, reference = statistics.median(each[-1][0] for each in obvious), obvious[0][-1][1]
    reached = [next((s for s, score in each if score >= reference), None) for each in method]
    found = {"reference": reference, "seconds_ratio": statistics.median(each[-1][0] for each in method) / reference_s}
    known = [s for s in reached if s is not None]
    return found | ({"reached_ratio": statistics.median(known) / reference_s} if known else {})


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pools", nargs="+", help="NAME=TRAIN.npz,TEST.npz")
    parser.add_argument("--text-model", help="vision-language model whose image features the files hold")
    parser.add_argument("--model", default="", help="what the features are of, for the file of results")
    parser.add_argument("--images", type=int, default=5000, help="of TRAIN at most, drawn")
    parser.add_argument("--situations", nargs="+", default=list(CONTENDERS)[:-1], choices=list(CONTENDERS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--csv", type=Path, help="file of results to add rows to")
    options = parser.parse_args()
    machine = {"commit": source_commit() or "", "hardware": f"cpu ({torch.get_num_threads()} thread)"}
    there = read_rows(options.csv) if options.csv and options.csv.exists() else []
    done = {(row["table"], row["cell"], row["seed"]) for row in there}
    for each in options.pools:
        pool, _, paths = each.partition("=")
        train, test = (read(Path(path)) for path in paths.split(","))
        kept = np.sort(np.random.default_rng(0).permutation(len(train["labels"]))[: options.images])
        train, texts = {key: value[kept] for key, value in train.items()}, dict[str, Any]()
        if options.text_model:
            tower = load_encoder(options.text_model, device=torch.device("cpu"), precision="fp32").tower
            names = [str(name) for name in np.unique(train["labels"])]
            said = concepts_of(tower, names, templates="auto")
            texts = {"class_names": names, "class_embeddings": said.feats.numpy(), "logit_scale": said.logit_scale}
        for situation in options.situations:
            methods, obvious = CONTENDERS[situation]
            for seed in range(options.seeds):
                table = f"time_to_accuracy.py {pool}"
                if all((table, f"{situation}-{name}", str(seed)) in done for name in methods):
                    continue
                curves: dict[str, list[Curve]] = {name: [] for name in (*methods, *obvious)}
                with tempfile.TemporaryDirectory() as folder:
                    settings = written(Path(folder), train, situation, seed, texts)
                    if not situation.startswith("open"):
                        np.savez(f"{folder}/test.npz", **test)
                        settings["test"] = f"{folder}/test.npz"
                    for k in range(options.rounds):
                        for name, found in curves.items():
                            found.append(curve(settings, name, Path(folder) / f"{name}-{k}", seed))
                best = max(obvious, key=lambda name: curves[name][0][-1][1])
                metric = "pool_all" if situation.startswith("open") else "balanced_accuracy"
                for name in methods:
                    values = {metric: curves[name][0][-1][1], **compared(curves[name], curves[best])}
                    shown = ", ".join(f"{key} {value:.3g}" for key, value in values.items())
                    print(f"{pool} {situation} seed {seed}: {name} against {best}: {shown}", flush=True)
                    row = {"cell": f"{situation}-{name}", "title": f"{situation}: {METHODS[name].title}"}
                    row |= {"table": table, "model": options.model, "seed": str(seed), **machine}
                    if options.csv:
                        add_rows(options.csv, [{**row, "metric": m, "value": f"{v:.4g}"} for m, v in values.items()])


if __name__ == "__main__":
    main()
