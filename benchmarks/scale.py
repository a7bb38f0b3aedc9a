"""Time and memory of start, label and audit on stored features from 100,000 rows to 10,000,000, and their exponents.

    python benchmarks/scale.py [--rows 100000 1000000 10000000] [--features 32] [--classes 1000]
                               [--steps start label audit] [--folder FOLDER] [--csv FILE]

The features are made up: a random mean per class and noise, float16, in an .npz that is read in blocks. At most 20 rows
a class have a label for `start`; every row has one for `audit`, 2% of them wrong. Each step is a process of its own:
printed are its CPU seconds (user and system), which depend little on what else the machine does, its wall seconds, and
the most memory it held. The exponent is that of the CPU seconds between two sizes. `label` uses the model of `start`.
A step that is in --csv, a file of results, already is not run again.
"""

from __future__ import annotations

import argparse
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from labelwright.benchmarking.results import Row, add_rows, read_rows

TABLE = "scale.py"
BLOCK = 100_000
STEPS = ("start", "label", "audit")


def write(folder: Path, n: int, d: int, c: int) -> None:
    """Two files of the same features: with few labels, and with a label for every row, 2% of them wrong."""
    if (folder / "all.npz").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    means = np.random.default_rng(0).standard_normal((c, d)).astype(np.float32)
    draw = np.random.default_rng(1)
    truth = draw.integers(c, size=n)
    feats = np.lib.format.open_memmap(folder / "feats.npy", "w+", np.float16, (n, d))
    for first in range(0, n, BLOCK):
        own = truth[first : first + BLOCK]
        feats[first : first + BLOCK] = means[own] + 0.7 * draw.standard_normal((len(own), d), np.float32)
    feats.flush()
    order = np.argsort(truth, kind="stable")
    rank = np.empty(n, np.int64)
    rank[order] = np.arange(n) - np.repeat(np.searchsorted(truth[order], np.arange(c)), np.bincount(truth, minlength=c))
    few = np.where(rank < 20, truth, -1)
    wrong = draw.random(n) < 0.02
    given = np.where(wrong, (truth + draw.integers(1, c, n)) % c, truth)
    names = np.array([f"class {k:04d}" for k in range(c)])
    for name, labels in (("few", few), ("all", given)):
        np.savez(folder / f"{name}.npz", embeddings=feats, labels=labels.astype(np.int32), class_names=names)
    (folder / "feats.npy").unlink()


def command(step: str, folder: Path) -> list[str]:
    """The command of a step, with its output out of the way."""
    verb = {
        "start": ["fit", f"{folder}/few.npz", "--method", "beliefs", "--out", f"{folder}/run", "--no-refit"],
        "label": ["label", f"{folder}/run", f"{folder}/few.npz", "--out", f"{folder}/labels"],
        "audit": ["audit", f"{folder}/all.npz", "--out", f"{folder}/audit"],
    }[step]
    shutil.rmtree(folder / {"start": "run", "label": "labels", "audit": "audit"}[step], ignore_errors=True)
    return [sys.executable, "-m", "labelwright", *verb, *([] if step == "start" else ["--shard-rows", "65536"])]


def measured(words: list[str]) -> tuple[float, float, float]:
    """CPU seconds, wall seconds and peak memory in GB of a command."""
    code = (
        "import resource, subprocess, sys; done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL);"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN);"
        "print(used.ru_utime + used.ru_stime, used.ru_maxrss); sys.exit(done.returncode)"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code, *words], stdout=subprocess.PIPE, text=True, check=True)
    cpu, peak_kb = map(float, done.stdout.split())
    return cpu, time.monotonic() - began, peak_kb * 1024 / 1e9


def main() -> None:
    """Run what is asked, print it, add it to the CSV file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--features", type=int, default=32)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--folder", type=Path, default=Path("scale"))
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    note = f"{args.features} features, {args.classes:,} classes"
    found: dict[tuple[str, int], dict[str, float]] = {}
    for row in read_rows(args.csv) if args.csv is not None and args.csv.is_file() else []:
        if row["table"] == TABLE and row["note"] == note:
            step, n = row["cell"].split("-")
            found.setdefault((step, int(n)), {})[row["metric"]] = float(row["value"])
    for n in args.rows:
        folder = args.folder / str(n)
        for step in args.steps:
            if (step, n) in found:
                continue
            write(folder, n, args.features, args.classes)
            cpu, wall, peak = measured(command(step, folder))
            facts = {"cpu_s": cpu, "peak_gb": peak}
            if smaller := [m for each, m in found if each == step and m < n]:
                ratio = cpu / found[step, max(smaller)]["cpu_s"]
                facts["exponent"] = math.log(ratio) / math.log(n / max(smaller))
            found[step, n] = facts
            print(
                f"{step}, {n:,} rows:",
                *(f"{key} {value:.3g}" for key, value in facts.items()),
                f"({wall:.0f} s)",
                flush=True,
            )
            own = {"table": TABLE, "cell": f"{step}-{n}", "title": f"{step}, {n:,} rows", "n_seeds": "1", "note": note}
            rows: list[Row] = [own | {"metric": key, "value": f"{value:.3g}"} for key, value in facts.items()]
            if args.csv is not None:
                add_rows(args.csv, rows)


if __name__ == "__main__":
    main()
