"""Features of the target pools and test images by a model's image tower, as the other scripts read them.

    python benchmarks/pool_features.py MODEL DATA OUT [--datasets cifar10 gtsrb]

MODEL is a vision-language model by folder or id, DATA the folder of `labelwright bench`. OUT/NAME-train.npz holds
`embeddings` [N, D] of the images of NAME that the model has not seen (benchmarking.pools), `labels`, `class_names`, and
where there are any `groups`; OUT/NAME-test.npz the test images. Any other network: `labelwright embed`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from labelwright.annotators.annotator import load_matching, views_of
from labelwright.benchmarking.runner import table_data
from labelwright.benchmarking.tables import TABLES
from labelwright.data.prepare import open_source


def main() -> None:
    """Embed and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("out", type=Path)
    parser.add_argument("--datasets", nargs="+", default=["cifar10", "gtsrb"])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    cpu = torch.device("cpu")
    encoder = load_matching(options.model, device=cpu, precision="auto")
    for dataset in options.datasets:
        for split, table in zip(("train", "test"), table_data(TABLES[f"cap-{dataset}"], options.data), strict=True):
            source = open_source(table, classes=None, size_px=encoder.tower.stats.size_px)
            feats = torch.cat([z.float().cpu() for z in views_of(source, encoder, cpu).feats()]).numpy()
            of = {} if table.groups is None else {"groups": np.unique(table.groups, return_inverse=True)[1]}
            file = options.out / f"{dataset}-{split}.npz"
            np.savez(file, embeddings=feats, labels=table.labels, class_names=np.array(table.class_names), **of)
            print(f"{file}: {feats.shape[0]:,} images, {feats.shape[1]} numbers each", flush=True)


if __name__ == "__main__":
    main()
