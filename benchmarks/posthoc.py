"""What is left to adjust after training: a finished run on long-tailed labels, its logits minus tau times log prior.

    python benchmarks/posthoc.py RUN TEST [--csv FILE]

RUN is a finished run on pixels, such as a cell of `labelwright bench`; TEST its test images, with labels. Printed in
percent: balanced accuracy, and the mean recall of the classes in thirds from the most frequent to the rarest. The taus
are looked at with the test labels: a diagnosis of the training, not a result.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from labelwright.benchmarking.results import Row, add_rows
from labelwright.data.prepare import open_source
from labelwright.pipeline.saved_model import load_model
from labelwright.run_folder import Run
from labelwright.train.environment import source_commit

TAUS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
DEVICE = torch.device("cpu")


def place_of(run: Path) -> str:
    """Images, schedule, method and settings of a cell of `labelwright bench`."""
    return " ".join(run.resolve().parts[-3:-1])


def main() -> None:
    """Print a line per tau, and add rows to a CSV file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("test")
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    saved, run = load_model(options.run / "model", device=DEVICE), Run(options.run)
    source = open_source(options.test, classes=None, size_px=saved.size_px, on_bad="stop")
    views, net = source.views(saved.view), saved.net.eval()
    with torch.no_grad():
        batches = torch.split(torch.arange(len(source.table)), 500)
        logits = torch.cat([net(views.batch(rows, "clean", seed=0, device=DEVICE)).float() for rows in batches])
    number = torch.tensor([saved.class_names.index(name) for name in source.table.class_names])
    labels = number[torch.from_numpy(source.table.labels).long()]
    counts = torch.tensor(run.data["train_counts"]).float()
    order = counts.argsort(descending=True)
    rows: list[Row] = []
    for tau in TAUS:
        predicted = (logits - tau * (counts / counts.sum()).log()).argmax(1)
        recall = torch.stack([(predicted[labels == c] == c).float().mean() for c in range(len(counts))])
        found = {"balanced_accuracy": recall.mean()}
        found |= {f"third_{i}": each.mean() for i, each in enumerate(recall[order].tensor_split(3), 1)}
        print(f"tau {tau:g}", *(f"{name} {100 * float(value):.1f}" for name, value in found.items()), sep=" | ")
        row = {
            "table": f"posthoc.py {place_of(options.run)}",
            "cell": f"tau-{tau:g}",
            "title": f"tau {tau:g}",
        }
        row |= {"seed": str(run.config["seed"])}
        row |= {"model": "", "commit": source_commit() or "", "hardware": "cpu (AMD EPYC, 1 thread)"}
        rows += [row | {"metric": name, "value": f"{100 * float(value):.2f}"} for name, value in found.items()]
    if options.csv:
        add_rows(options.csv, rows)


if __name__ == "__main__":
    main()
