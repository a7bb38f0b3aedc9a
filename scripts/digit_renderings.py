"""Draws digits: from pen strokes with a shaky hand, and from the fonts that come with matplotlib.

Both end as the UCI digits are published (Alpaydin & Kaynak 1998, "Optical Recognition of Handwritten Digits"): a 32 px
bitmap filled top to bottom, then 8 x 8 counts of the ink in blocks of 4 x 4, 0 to 16. No real digit is used.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Counts = NDArray[np.uint8]
Stroke = tuple[tuple[float, float], ...]

EDGE_PX = 32  # of the bitmap
BLOCK_PX = 4  # of one count
MAX_WIDTH_PX = 25  # widest drawing: the outer columns stay nearly empty
POINTS_PER_SEGMENT = 8
DRAWINGS_AT_ONCE = 256

# Pen strokes in a unit square, x to the right and y down; a stroke is one smooth curve, a corner starts the next one.
PENS: dict[int, tuple[tuple[Stroke, ...], ...]] = {
    0: (
        (((0.55, 0.0), (0.15, 0.2), (0.08, 0.65), (0.4, 1.0), (0.82, 0.8), (0.9, 0.35), (0.55, 0.0)),),
        (((0.5, 0.0), (0.1, 0.3), (0.1, 0.7), (0.5, 1.0), (0.9, 0.7), (0.9, 0.3), (0.45, 0.01)),),
        (((0.7, 0.06), (0.35, 0.05), (0.1, 0.5), (0.35, 0.97), (0.75, 0.85), (0.88, 0.4), (0.55, 0.0)),),
    ),
    1: (
        (((0.5, 0.0), (0.5, 0.5), (0.5, 1.0)),),
        (((0.25, 0.28), (0.45, 0.12), (0.58, 0.0)), ((0.58, 0.0), (0.56, 0.5), (0.55, 1.0))),
        (
            ((0.22, 0.25), (0.4, 0.12), (0.52, 0.0)),
            ((0.52, 0.0), (0.52, 0.5), (0.52, 1.0)),
            ((0.15, 0.98), (0.5, 1.0), (0.88, 0.98)),
        ),
        (((0.5, 0.0), (0.52, 0.5), (0.5, 1.0)), ((0.22, 1.0), (0.5, 0.99), (0.8, 1.0))),
        (((0.62, 0.0), (0.52, 0.5), (0.38, 1.0)),),
    ),
    2: (
        (
            ((0.12, 0.25), (0.35, 0.02), (0.78, 0.08), (0.82, 0.4), (0.5, 0.7), (0.1, 0.98)),
            ((0.1, 0.98), (0.5, 0.95), (0.92, 0.97)),
        ),
        (
            ((0.15, 0.2), (0.45, 0.0), (0.8, 0.18), (0.7, 0.5), (0.35, 0.9), (0.12, 0.92), (0.2, 0.75), (0.5, 0.85),
             (0.92, 1.0)),
        ),
        (
            ((0.2, 0.12), (0.5, 0.0), (0.75, 0.15), (0.65, 0.5), (0.3, 0.85), (0.18, 1.0)),
            ((0.18, 1.0), (0.4, 0.93), (0.6, 1.0), (0.85, 0.93)),
        ),
    ),
    3: (
        (
            ((0.15, 0.1), (0.5, 0.0), (0.82, 0.18), (0.65, 0.42), (0.38, 0.47)),
            ((0.38, 0.47), (0.7, 0.52), (0.9, 0.73), (0.6, 0.98), (0.1, 0.9)),
        ),
        (
            ((0.12, 0.02), (0.5, 0.01), (0.85, 0.02)),
            ((0.85, 0.02), (0.6, 0.25), (0.4, 0.42)),
            ((0.4, 0.42), (0.75, 0.48), (0.88, 0.75), (0.55, 1.0), (0.12, 0.92)),
        ),
        (((0.2, 0.05), (0.65, 0.02), (0.75, 0.28), (0.5, 0.48), (0.8, 0.65), (0.7, 0.95), (0.2, 0.98)),),
    ),
    4: (
        (
            ((0.3, 0.0), (0.18, 0.3), (0.08, 0.6)),
            ((0.08, 0.6), (0.5, 0.58), (0.95, 0.56)),
            ((0.68, 0.25), (0.66, 0.6), (0.62, 1.0)),
        ),
        (
            ((0.62, 0.0), (0.35, 0.3), (0.05, 0.65)),
            ((0.05, 0.65), (0.5, 0.66), (0.95, 0.65)),
            ((0.62, 0.0), (0.63, 0.5), (0.62, 1.0)),
        ),
        (
            ((0.55, 0.0), (0.3, 0.25), (0.08, 0.6)),
            ((0.08, 0.6), (0.45, 0.68), (0.85, 0.55)),
            ((0.72, 0.38), (0.6, 0.7), (0.5, 1.0)),
        ),
        (
            ((0.15, 0.0), (0.12, 0.25), (0.15, 0.48)),
            ((0.15, 0.48), (0.5, 0.52), (0.82, 0.48)),
            ((0.82, 0.02), (0.82, 0.5), (0.78, 1.0)),
        ),
    ),
    5: (
        (
            ((0.85, 0.02), (0.55, 0.01), (0.25, 0.02)),
            ((0.25, 0.02), (0.2, 0.22), (0.18, 0.45)),
            ((0.18, 0.45), (0.5, 0.38), (0.85, 0.55), (0.75, 0.92), (0.4, 1.0), (0.1, 0.9)),
        ),
        (
            ((0.8, 0.0), (0.55, 0.05), (0.35, 0.08)),
            ((0.35, 0.08), (0.28, 0.25), (0.2, 0.42)),
            ((0.2, 0.42), (0.6, 0.45), (0.75, 0.7), (0.5, 0.95), (0.12, 0.98)),
        ),
        (((0.8, 0.03), (0.45, 0.02), (0.28, 0.2), (0.3, 0.42), (0.65, 0.52), (0.75, 0.8), (0.45, 1.0), (0.15, 0.92)),),
    ),
    6: (
        (
            ((0.72, 0.0), (0.35, 0.25), (0.14, 0.65), (0.4, 0.99), (0.82, 0.86), (0.8, 0.6), (0.5, 0.52),
             (0.2, 0.75)),
        ),
        (((0.4, 0.0), (0.22, 0.35), (0.18, 0.75), (0.45, 1.0), (0.78, 0.82), (0.65, 0.58), (0.35, 0.62), (0.2, 0.8)),),
        (((0.5, 0.0), (0.28, 0.4), (0.2, 0.8), (0.5, 1.0), (0.72, 0.78), (0.5, 0.66), (0.25, 0.85)),),
    ),
    7: (
        (((0.08, 0.04), (0.5, 0.02), (0.9, 0.03)), ((0.9, 0.03), (0.62, 0.45), (0.4, 1.0))),
        (
            ((0.1, 0.06), (0.5, 0.01), (0.88, 0.02)),
            ((0.88, 0.02), (0.65, 0.5), (0.5, 1.0)),
            ((0.3, 0.52), (0.6, 0.5), (0.92, 0.47)),
        ),
        (
            ((0.1, 0.2), (0.12, 0.1), (0.14, 0.02)),
            ((0.14, 0.02), (0.5, 0.06), (0.85, 0.0)),
            ((0.85, 0.0), (0.7, 0.5), (0.55, 1.0)),
        ),
        (
            ((0.12, 0.1), (0.4, 0.02), (0.72, 0.08), (0.78, 0.3), (0.55, 0.65), (0.35, 1.0)),
            ((0.2, 0.55), (0.5, 0.52), (0.85, 0.5)),
        ),
    ),
    8: (
        (
            ((0.8, 0.12), (0.5, 0.0), (0.2, 0.18), (0.5, 0.47), (0.82, 0.75), (0.5, 1.0), (0.16, 0.78), (0.48, 0.48),
             (0.8, 0.12)),
        ),
        (
            ((0.5, 0.0), (0.22, 0.2), (0.5, 0.45), (0.78, 0.22), (0.5, 0.0)),
            ((0.5, 0.45), (0.15, 0.72), (0.5, 1.0), (0.85, 0.72), (0.5, 0.45)),
        ),
        (
            ((0.68, 0.02), (0.35, 0.08), (0.35, 0.35), (0.6, 0.55), (0.65, 0.88), (0.4, 1.0), (0.25, 0.8), (0.5, 0.5),
             (0.75, 0.25), (0.68, 0.02)),
        ),
    ),
    9: (
        (
            ((0.8, 0.18), (0.5, 0.0), (0.18, 0.2), (0.35, 0.48), (0.7, 0.4), (0.8, 0.18)),
            ((0.8, 0.18), (0.78, 0.6), (0.68, 1.0)),
        ),
        (
            ((0.75, 0.12), (0.42, 0.0), (0.2, 0.25), (0.45, 0.48), (0.78, 0.28)),
            ((0.75, 0.12), (0.82, 0.6), (0.65, 0.95), (0.2, 0.95)),
        ),
        (((0.75, 0.2), (0.5, 0.0), (0.25, 0.2), (0.45, 0.42), (0.72, 0.25), (0.78, 0.6), (0.6, 1.0)),),
        (
            ((0.72, 0.1), (0.35, 0.02), (0.2, 0.3), (0.5, 0.5), (0.8, 0.42)),
            ((0.72, 0.1), (0.85, 0.55), (0.7, 0.9), (0.35, 1.0), (0.1, 0.88)),
        ),
    ),
}  # fmt: skip

FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "STIXGeneralBolIta",
    "cmr10",
    "cmb10",
    "cmss10",
    "cmti10",
    "cmtt10",
)


def draw_by_pen(digits: NDArray[np.int64], draws: np.random.Generator) -> Counts:
    """Handwritten-looking digits.

    Args:
      digits: [N] which digit to draw, 0 to 9.
      draws: where the shaking comes from.

    Returns: [N, 8, 8] ink counts, 0 to 16.

    Example:
      >>> draw_by_pen(np.array([4, 1]), np.random.default_rng(0)).shape
      (2, 8, 8)
    """
    pen = np.array([draws.integers(len(PENS[int(d)])) for d in digits])
    out = np.zeros((len(digits), 8, 8), dtype=np.uint8)
    for digit, variants in PENS.items():
        for variant, strokes in enumerate(variants):
            rows = np.flatnonzero((digits == digit) & (pen == variant))
            for start in range(0, len(rows), DRAWINGS_AT_ONCE):
                part = rows[start : start + DRAWINGS_AT_ONCE]
                points = _shaken(_traced(strokes, len(part), draws), draws)
                out[part] = _count_ink(_inked(points, draws))
    return out


def draw_by_font(digits: NDArray[np.int64], draws: np.random.Generator) -> Counts:
    """Printed digits in one of FONTS, bent and squeezed a little; arguments and result as `draw_by_pen`."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts = [ImageFont.truetype(str(folder / f"{name}.ttf"), 40) for name in FONTS]
    out = np.zeros((len(digits), 8, 8), dtype=np.uint8)
    for row, digit in enumerate(digits):
        image = Image.new("L", (72, 72))
        font = fonts[draws.integers(len(fonts))]
        width_px = int(draws.integers(0, 3))
        ImageDraw.Draw(image).text((20, 12), str(digit), fill=255, font=font, stroke_width=width_px)
        a, b, c, d = np.array([1.0, 0.0, 0.0, 1.0]) + draws.normal(0, (0.1, 0.15, 0.06, 0.1))
        shift = (36 - 36 * (a + b), 36 - 36 * (c + d))
        image = image.transform((72, 72), Image.Transform.AFFINE, (a, b, shift[0], c, d, shift[1]), Image.BILINEAR)
        box = image.point(lambda ink: 255 * (ink > 100)).getbbox()
        assert box is not None, "a font without digits"
        squeeze = draws.uniform(0.75, 1.15)
        width = int(np.clip((box[2] - box[0]) * EDGE_PX / (box[3] - box[1]) * squeeze, 4, MAX_WIDTH_PX))
        left = (EDGE_PX - width) // 2
        canvas = Image.new("L", (EDGE_PX, EDGE_PX))
        canvas.paste(image.crop(box).resize((width, EDGE_PX), Image.BILINEAR), (left, 0))
        out[row] = _count_ink(np.asarray(canvas)[None] > 110)[0]
    return out


def _traced(strokes: tuple[Stroke, ...], n: int, draws: np.random.Generator) -> NDArray[np.float32]:
    """Points along smooth curves (Catmull-Rom) through n jittered copies of the strokes' points, [n, M, 2]."""
    traced = []
    for stroke in strokes:
        knots = np.asarray(stroke)[None] + draws.normal(0, 0.022, (n, len(stroke), 2))
        padded = np.concatenate([2 * knots[:, :1] - knots[:, 1:2], knots, 2 * knots[:, -1:] - knots[:, -2:-1]], axis=1)
        t = np.linspace(0, 1, POINTS_PER_SEGMENT)[None, None, :, None]
        p0, p1, p2, p3 = (padded[:, k : k + len(stroke) - 1, None] for k in range(4))
        curve = (
            2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * (p1 - p2) + p3 - p0) * t**3
        ) / 2  # [n, segments, points, 2]
        traced.append(curve.reshape(n, -1, 2))
    return np.concatenate(traced, axis=1).astype(np.float32)


def _shaken(points: NDArray[np.float32], draws: np.random.Generator) -> NDArray[np.float32]:
    """Bend [n, M, 2] points smoothly, then slant, turn and stretch them; strokes that met still meet."""
    n = len(points)
    for _ in range(2):
        wave = draws.normal(0, 2.2, (n, 1, 2, 2))  # radians per unit: under half a wave over the digit
        phase = draws.uniform(0, 2 * np.pi, (n, 1, 2))
        points = points + draws.normal(0, 0.055, (n, 1, 2)) * np.sin((wave * points[:, :, None]).sum(-1) + phase)
    angle, slant, aspect = draws.normal(0, 0.1, n), draws.normal(0.08, 0.2, n), draws.uniform(0.55, 0.95, n)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]).transpose(2, 0, 1)
    stretch = np.zeros((n, 2, 2))
    stretch[:, 0, 0], stretch[:, 0, 1], stretch[:, 1, 1] = aspect, -slant, 1
    shaken: NDArray[np.float32] = np.einsum("nij,nmj->nmi", turn @ stretch, points).astype(np.float32)
    return shaken


def _inked(points: NDArray[np.float32], draws: np.random.Generator) -> NDArray[np.bool_]:
    """Bitmaps [n, 32, 32] of a round pen along [n, M, 2] points, filled from top to bottom and centred."""
    n = len(points)
    radius = draws.uniform(1.6, 3.1, (n, 1, 1)).astype(np.float32)
    low, high = points.min(1, keepdims=True), points.max(1, keepdims=True)
    scale = (EDGE_PX - 2 * radius) / (high - low)[:, :, 1:]
    width = (high - low)[:, :, :1] * scale
    wanted = draws.uniform(10, 16, (n, 1, 1))  # narrow drawings are stretched to that, ink included
    stretch = np.clip(wanted / (width + 2 * radius), 1, 2.2)
    stretch = np.minimum(stretch, MAX_WIDTH_PX / (width + 2 * radius))
    at = (points - (low + high) / 2) * np.concatenate([scale * stretch, scale], axis=2) + EDGE_PX / 2
    at[:, :, 0] += draws.normal(0, 0.6, (n, 1))
    grid = np.arange(EDGE_PX, dtype=np.float32) + 0.5
    across = ((grid[None, :, None] - at[:, None, :, 0]) / stretch) ** 2  # [n, 32, M]
    down = (grid[None, :, None] - at[:, None, :, 1]) ** 2
    nearest = np.full((n, EDGE_PX, EDGE_PX), np.inf, dtype=np.float32)
    for m in range(points.shape[1]):
        np.minimum(nearest, down[:, :, None, m] + across[:, None, :, m], out=nearest)
    inked: NDArray[np.bool_] = nearest < radius**2
    return inked


def _count_ink(bitmaps: NDArray[np.bool_]) -> Counts:
    blocks = bitmaps.reshape(-1, EDGE_PX // BLOCK_PX, BLOCK_PX, EDGE_PX // BLOCK_PX, BLOCK_PX)
    return blocks.sum((2, 4)).astype(np.uint8)
