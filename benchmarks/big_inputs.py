"""Many images, large ones and few: time and memory of `inspect`, and what decoding at reduced scale costs and saves.

    python benchmarks/big_inputs.py many [--files 200000] [--rows 1000000]
    python benchmarks/big_inputs.py few [--pairs 5]
    python benchmarks/big_inputs.py photos TRAIN.parquet TEST.parquet [--per-class 40]

`many` makes a folder of tiny images (links to 1,000 files) and a table of as many rows as asked for (its images are
not looked at), and inspects each in a process of its own, beside a tenth of it. `few` compares the processor time of
the command `inspect` on 40 images with that of `import torch`, in pairs, compiled files at hand. `photos` scales the
images of a set up to 2,048 px (4.2 megapixels, JPEG of quality 92), times decoding to 224 px with and without
`exact_decoding`, and scores balanced logistic regression on features of the ImageNet network (`pip install
'labelwright[imagenet]'`) both ways.
With --csv FILE the figures are written as rows of a file of docs/results.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from labelwright.benchmarking.results import add_rows

CODE = """
import resource, sys, time
import labelwright as lw
began = time.perf_counter()
found = lw.inspect(sys.argv[1], check_images=sys.argv[2] == "yes")
print(len(found.table), time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
LARGE_PX, SIZE_PX = 2048, 224
TITLES = {"exact": "decoded in full", "reduced": "at a quarter of the size"}


def inspected(data: Path, *, check: bool) -> dict[str, float]:
    """Seconds and peak memory of `inspect` in a fresh process."""
    command = [sys.executable, "-c", CODE, str(data), "yes" if check else "no"]
    n, seconds, peak_mb = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return {"n": float(n), "s": float(seconds), "peak_mb": float(peak_mb)}


def many(n_files: int, n_rows: int) -> dict[str, dict[str, float]]:
    """A folder of files and a table of rows, and a tenth of each."""
    rng, found = np.random.default_rng(0), {}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for n in (n_files // 10, n_files):
            folder = root / f"files-{n}"
            for c in range(10):
                (folder / f"class-{c}").mkdir(parents=True)
            for i in range(n):
                path = folder / f"class-{i % 10}" / f"{i:07d}.png"
                if i < 1000:
                    Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
                else:
                    os.link(folder / f"class-{i % 10}" / f"{i % 1000:07d}.png", path)
            found[f"folder of {n:,} files"] = inspected(folder, check=True)
        for n in (n_rows // 10, n_rows):
            table = root / f"{n}.csv"
            with table.open("w") as file:
                file.write("image,label\n")
                file.writelines(f"files/{i:07d}.png,class-{i % 10}\n" for i in range(n))
            found[f"table of {n:,} rows"] = inspected(table, check=False)
    return found


def photos(train: Path, test: Path, per_class: int) -> dict[str, dict[str, float]]:
    """Large JPEGs made of the first images of each class: speed of decoding, and scores on features."""
    import torch
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score

    from labelwright.data.cache import resize_to_square
    from labelwright.data.images import Decoding, decode
    from labelwright.data.read import load
    from labelwright.encoders import efficientnet
    from labelwright.encoders.pretrained import image_stats

    net, stats = efficientnet.load_pretrained().eval(), image_stats(efficientnet.NAME)
    ways = {"exact": Decoding(exact=True), "reduced": Decoding()}
    seconds, feats, labels = dict.fromkeys(ways, 0.0), {}, {}
    gaps = []
    for split, path in (("train", train), ("test", test)):
        table = load(path)
        rows = [row for c in range(len(table.class_names)) for row in np.flatnonzero(table.labels == c)[:per_class]]
        labels[split] = table.labels[rows]
        pixels: dict[str, list[np.ndarray]] = {way: [] for way in ways}
        for row in rows:
            file = io.BytesIO()
            table.image(int(row)).resize((LARGE_PX, LARGE_PX), Image.Resampling.BICUBIC).save(file, "JPEG", quality=92)
            for way, decoding in ways.items():
                began = time.process_time()
                image = decode(file.getvalue(), decoding, side_px=SIZE_PX).image
                pixels[way].append(resize_to_square(image, size_px=SIZE_PX))
                seconds[way] += time.process_time() - began
            gaps.append(np.abs(pixels["exact"][-1].astype(int) - pixels["reduced"][-1]).mean())
        for way, some in pixels.items():
            with torch.inference_mode():
                x = (torch.from_numpy(np.stack(some)).permute(0, 3, 1, 2) / 255 - stats.mean[0]) / stats.std[0]
                feats[split, way] = torch.cat([net(part) for part in x.split(32)]).numpy()
    found = {}
    for way in ways:
        model = LogisticRegression(class_weight="balanced", max_iter=2000)
        scale = feats["train", way].std()
        predicted = model.fit(feats["train", way] / scale, labels["train"]).predict(feats["test", way] / scale)
        accuracy = 100 * balanced_accuracy_score(labels["test"], predicted)
        found[way] = {"balanced_accuracy": accuracy, "ms_per_image": 1000 * seconds[way] / len(gaps)}
    found["reduced"] |= {"ratio": seconds["exact"] / seconds["reduced"], "grey_levels_apart": float(np.mean(gaps))}
    return found


def cpu_seconds(words: Sequence[str], env: Mapping[str, str]) -> float:
    """Processor time of a Python process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], env=dict(env), check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def few(n_pairs: int) -> dict[str, dict[str, float]]:
    """`inspect` of 40 images beside `import torch`: medians of processor seconds, and of their ratio in each pair."""
    rng, found = np.random.default_rng(0), {}
    with tempfile.TemporaryDirectory() as folder:
        env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        env |= {"PYTHONPYCACHEPREFIX": f"{folder}/compiled", "HF_HUB_CACHE": f"{folder}/none"}  # no model at hand
        for side_px in (32, 64):
            photos = Path(folder, f"{side_px}")
            for i in range(40):
                (photos / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
                pixels = rng.integers(0, 256, (side_px, side_px, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(photos / "ab"[i % 2] / f"{i}.png")
            both = ["-c", "import torch"], ["-m", "labelwright", "inspect", str(photos)]
            pairs = np.array([[cpu_seconds(words, env) for words in both] for _ in range(n_pairs + 1)][1:])
            ratio = float(np.median(pairs[:, 1] / pairs[:, 0]))
            torch_s, inspect_s = np.median(pairs, axis=0).tolist()
            found[f"40 images of {side_px} px"] = {"torch_cpu_s": torch_s, "inspect_cpu_s": inspect_s, "ratio": ratio}
    return found


def main() -> None:
    """Run one part and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("many", "few", "photos"))
    parser.add_argument("data", nargs="*", type=Path)
    parser.add_argument("--files", type=int, default=200_000)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--per-class", type=int, default=40)
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    if options.part == "photos":
        found, name = photos(*options.data, options.per_class), f"big_inputs.py {options.data[0].stem.split('-')[0]}"
    elif options.part == "few":
        found, name = few(options.pairs), "big_inputs.py few"
    else:
        found, name = many(options.files, options.rows), "big_inputs.py many"
    for cell, figures in found.items():
        print(cell, *(f"{key} {value:.4g}" for key, value in figures.items()), sep="  ")
    if options.csv:
        add_rows(
            options.csv,
            [
                {
                    "table": name,
                    "cell": cell,
                    "title": TITLES.get(cell, cell),
                    "metric": metric,
                    "value": f"{value:.4g}",
                    "n_seeds": "1",
                }
                for cell, figures in found.items()
                for metric, value in figures.items()
            ],
        )


if __name__ == "__main__":
    main()
