"""Reliability diagrams of a benchmark cell, overall and for many, medium and few, pooled over its seeds.

    python benchmarks/reliability.py BENCH/PLACE/ce BENCH/PLACE/cvs --out docs/reliability.svg

One row of panels per cell; bars are the accuracy of each confidence bin, darker with more test images in it, and the
dashed line is what a calibrated classifier shows. Also prints the calibration errors as Markdown.
"""

from __future__ import annotations

import argparse
import json
from html import escape
from pathlib import Path

GROUPS = ("all", "many", "medium", "few")
SIDE, GAP = 150, 34  # px


def pooled(cell: Path, group: str) -> tuple[list[dict[str, float]], float]:
    """Bins of all seeds together (lower, upper, count, confidence, accuracy), and their calibration error."""
    runs = [json.loads(p.read_text(encoding="utf-8"))["test"] for p in sorted(cell.glob("seed-*/summary.json"))]
    bins: list[dict[str, float]] = []
    for same in zip(*(run["reliability"][group] for run in runs), strict=True):
        n = sum(b["count"] for b in same)
        mean = {
            key: sum(b["count"] * b[key] for b in same if b["count"]) / n if n else 0.0
            for key in ("confidence", "accuracy")
        }
        bins.append({"lower": same[0]["lower"], "upper": same[0]["upper"], "count": n, **mean})
    total = sum(b["count"] for b in bins)
    return bins, sum(b["count"] * abs(b["confidence"] - b["accuracy"]) for b in bins) / max(total, 1)


def panel(bins: list[dict[str, float]], title: str, x0: float, y0: float) -> str:
    """One diagram as SVG."""
    most = max((b["count"] for b in bins), default=1) or 1
    parts = [f'<text x="{x0}" y="{y0 - 8}">{escape(title)}</text>']
    parts.append(f'<rect x="{x0}" y="{y0}" width="{SIDE}" height="{SIDE}" class="frame"/>')
    for b in bins:
        if not b["count"]:
            continue
        left, width = x0 + SIDE * b["lower"], SIDE * (b["upper"] - b["lower"]) - 1
        height = SIDE * b["accuracy"]
        opacity = 0.25 + 0.75 * b["count"] / most
        parts.append(
            f'<rect x="{left:.1f}" y="{y0 + SIDE - height:.1f}" width="{width:.1f}" height="{height:.1f}" '
            f'class="bar" fill-opacity="{opacity:.2f}"/>'
        )
    parts.append(f'<line x1="{x0}" y1="{y0 + SIDE}" x2="{x0 + SIDE}" y2="{y0}" class="ideal"/>')
    return "\n".join(parts)


def main() -> None:
    """Draw the cells named and print their calibration errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", nargs="+", type=Path, help="folders that hold seed-0, seed-1, …")
    parser.add_argument("--out", type=Path, default=Path("reliability.svg"))
    options = parser.parse_args()
    drawn: list[str] = []
    print("| ECE | " + " | ".join(GROUPS) + " |\n|---|" + "---|" * len(GROUPS))
    for i, cell in enumerate(options.cells):
        errors: dict[str, str] = {}
        for j, group in enumerate(GROUPS):
            bins, error = pooled(cell, group)
            errors[group] = f"{error:.3f}" if sum(b["count"] for b in bins) else ""
            if not errors[group]:
                continue
            title = f"{cell.name}, {group}: ECE {errors[group]}"
            drawn.append(panel(bins, title, GAP / 2 + j * (SIDE + GAP), GAP + i * (SIDE + GAP + 10)))
        print(f"| {cell.name} | " + " | ".join(errors[group] for group in GROUPS) + " |")
    width, height = len(GROUPS) * (SIDE + GAP), len(options.cells) * (SIDE + GAP + 10) + 10
    style = (
        "text{font:11px sans-serif;fill:#222}.frame{fill:#fff;stroke:#999}.bar{fill:#2a6f97}"
        ".ideal{stroke:#c1121f;stroke-dasharray:4 3}"
    )
    options.out.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" role="img" '
        f'aria-label="Reliability diagrams"><style>{style}</style>\n' + "\n".join(drawn) + "\n</svg>\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
