"""Hours, machines, bytes and money for many images, out of rates that you measured or assume: arithmetic alone.

    python benchmarks/scale_cost.py [--images 1e9] [--gpu-rate 2500] [--decode-rate 150] [--label-rate 9000] ...

Each line of the table is one product or quotient of the numbers above it; docs/scale.md shows it for the defaults.
"""

from __future__ import annotations

import argparse


def rows_of(given: argparse.Namespace) -> list[tuple[str, str, str]]:
    """(what, formula, value) of every line."""
    n = given.images
    gpu_h, cpu_h = n / given.gpu_rate / 3600, n / given.decode_rate / 3600
    label_h = n / given.label_rate / 3600
    cores_a_gpu = given.gpu_rate / given.decode_rate
    read_tb, feats_tb, labels_tb = n * given.image_kb / 1e9, n * given.features * 2 / 1e12, n * given.row_bytes / 1e12
    compute = gpu_h * given.gpu_price + (cpu_h + label_h) * given.core_price
    storage = (feats_tb + labels_tb) * 1000 * given.gb_month_price
    return [
        ("images read", "N x image size", f"{read_tb:,.0f} TB"),
        ("GPU hours, embedding", "N / GPU rate", f"{gpu_h:,.0f} h"),
        ("core hours, decoding", "N / decoding rate", f"{cpu_h:,.0f} h"),
        ("cores for one GPU", "GPU rate / decoding rate", f"{cores_a_gpu:,.0f}"),
        ("core hours, labelling", "N / labelling rate", f"{label_h:,.0f} h"),
        ("features", "N x D x 2 bytes", f"{feats_tb:,.2f} TB"),
        ("labels", "N x bytes of a row", f"{labels_tb:,.2f} TB"),
        (f"days with {given.gpus} GPUs", "GPU hours / GPUs / 24", f"{gpu_h / given.gpus / 24:,.1f}"),
        ("shards of 4,096 images", "N / 4,096", f"{n / 4096:,.0f}"),
        ("compute", "GPU hours x price + core hours x price", f"${compute:,.0f}"),
        ("storage, a month", "(features + labels) x price", f"${storage:,.0f}"),
    ]


def main() -> None:
    """Print the assumptions and what follows from them, as two Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value, text in (
        ("images", 1e9, "N"),
        ("image-kb", 100.0, "kilobytes of an encoded image"),
        ("gpu-rate", 2500.0, "images a second that one GPU embeds"),
        ("decode-rate", 150.0, "images a second that one core decodes and resizes"),
        ("label-rate", 9000.0, "stored features a second that one core labels"),
        ("features", 512.0, "D, numbers of a feature"),
        ("row-bytes", 60.0, "of a row of labels in Parquet"),
        ("gpu-price", 2.5, "dollars for a GPU hour"),
        ("core-price", 0.04, "dollars for a core hour"),
        ("gb-month-price", 0.023, "dollars for a gigabyte stored for a month"),
    ):
        parser.add_argument(f"--{name}", type=float, default=value, help=text)
    parser.add_argument("--gpus", type=int, default=8, help="GPUs side by side")
    given = parser.parse_args()
    print("| assumed | value |\n|---|---:|")
    for key, value in vars(given).items():
        print(f"| `--{key.replace('_', '-')}` | {value:,g} |")
    print("\n| follows | formula | value |\n|---|---|---:|")
    for row in rows_of(given):
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
