"""Classes that a model does not know by name: detection in one pass against the paper's algorithm, one k-means a class.

    python benchmarks/mismatch.py MODEL DATA [--datasets cifar10 gtsrb] [--templates one '{}'] [--seeds 3]

MODEL is a vision-language model by folder or id, DATA the folder of `labelwright bench`. The images are the target
pools of the tables of CAP. A class is truly mismatched if zero-shot is right on less than 5% of its images, with the
same prompt; the truth is used for nothing else. Seconds are those of the detection alone, from features in memory; the
paper's algorithm depends on the seed of k-means and runs once per seed, so its figures are means. The last columns say
how the evidence ranks the classes: its rank correlation with their accuracy, and how many of the k classes with the
least evidence are among the k least accurate ones, k being the number truly mismatched.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence

import torch
from scipy.stats import spearmanr
from torch import Tensor

from labelwright.benchmarking.runner import table_data
from labelwright.benchmarking.tables import TABLES
from labelwright.data.prepare import prepare
from labelwright.encoders.embed import Encoder, concepts_of, embed, load_encoder
from labelwright.encoders.pretrained import image_stats
from labelwright.labels.concepts import detect_by_clustering, detect_mismatched

ACCURACY_MAX = 0.05  # of zero-shot on a class that the model does not know by name
ROWS_AT_ONCE = 8192


def pool_feats(
    dataset: str, data: str, encoder: Encoder, *, is_test: bool = False
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Unit features [N, D] of the target pool, or of the test images, their labels [N], and the class names."""
    stats = image_stats(encoder.name)
    pool, test = table_data(TABLES[f"cap-{dataset}"], data)
    prepared = prepare(pool, test=test, test_frac=0, size_px=stats.size_px, stats=(stats.mean, stats.std))
    source = embed(
        prepared.test if is_test else prepared.train, encoder, prepared.view, n_views=0, device=torch.device("cpu")
    )
    views = source.views(prepared.view)
    feats = views.batch(torch.arange(views.n_rows), "clean", seed=0, device=torch.device("cpu"))
    return feats, torch.from_numpy((test if is_test else pool).labels).long(), pool.class_names


def accuracy_per_class(feats: Tensor, class_feats: Tensor, labels: Tensor) -> Tensor:
    """Recall [C] of zero-shot."""
    predicted = torch.cat([(some @ class_feats.T).argmax(1) for some in torch.split(feats, ROWS_AT_ONCE)])
    right = torch.bincount(labels[predicted == labels], minlength=len(class_feats))
    return right / torch.bincount(labels, minlength=len(class_feats)).clamp(min=1)


def figures(found: Sequence[Tensor], truth: Tensor, seconds: Sequence[float]) -> str:
    """Columns of one method: found, right, false, precision, recall, seconds; means over repeated detections."""
    n_found = statistics.mean(int(each.sum()) for each in found)
    n_right = statistics.mean(int((each & truth).sum()) for each in found)
    precision = f"{n_right / n_found:.2f}" if n_found else "-"
    recall = f"{n_right / int(truth.sum()):.2f}" if truth.any() else "-"
    shown = (f"{n_found:.1f}", f"{n_right:.1f}", f"{n_found - n_right:.1f}", precision, recall)
    return " | ".join([*shown, f"{statistics.mean(seconds):.3g}"])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or hub id of a vision-language model")
    parser.add_argument("data", help="folder with the data sets' Parquet files")
    parser.add_argument("--datasets", nargs="+", default=["cifar10", "gtsrb"], choices=["cifar10", "gtsrb"])
    parser.add_argument("--templates", nargs="+", default=["one", "{}"], help="prompts, see labelwright fit --help")
    parser.add_argument("--seeds", type=int, default=3, help="runs of the paper's algorithm")
    options = parser.parse_args()
    encoder = load_encoder(options.model, device=torch.device("cpu"), precision="auto")
    if encoder.tower is None:
        parser.error(f"{options.model} has no text side")
    print(f"{encoder.name}, {torch.get_num_threads()} threads, {options.seeds} seeds of the paper's algorithm")
    print("| pool | prompt | truly mismatched | by | found | right | false | precision | recall | s | rank | worst |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for dataset in options.datasets:
        feats, labels, names = pool_feats(dataset, options.data, encoder)
        for templates in options.templates:
            concepts = concepts_of(encoder.tower, names, templates=templates)
            t, scale = concepts.feats, concepts.logit_scale
            accuracy = accuracy_per_class(feats, t, labels)
            truth = accuracy < ACCURACY_MAX
            began = time.perf_counter()
            ours = detect_mismatched(feats, t, logit_scale=scale)
            ours_s = time.perf_counter() - began
            k = int(truth.sum())
            rank = float(spearmanr(ours.evidence.numpy(), accuracy.numpy()).statistic)
            least = set(ours.evidence.argsort()[:k].tolist()) & set(accuracy.argsort()[:k].tolist())
            lead = f"| {dataset} | {templates} | {k} of {len(names)}"
            print(f"{lead} | one pass | {figures([ours.is_mismatched], truth, [ours_s])} | {rank:.2f} | {len(least)} |")
            theirs, theirs_s = [], []
            for seed in range(options.seeds):
                began = time.perf_counter()
                theirs.append(detect_by_clustering(feats, t, logit_scale=scale, seed=seed))
                theirs_s.append(time.perf_counter() - began)
            print(f"{lead} | clustering | {figures(theirs, truth, theirs_s)} | | |", flush=True)


if __name__ == "__main__":
    main()
