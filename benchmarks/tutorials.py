"""Run the tutorials as they are written, on photographs: what their commands print, and pictures of their reports.

    python benchmarks/tutorials.py DATA [--model openai/clip-vit-base-patch32=PATH] [--only few-labels]

DATA holds rsscn7-train.parquet, flowers12-train.parquet and cifar10-train.parquet (columns image and label). Images,
labels that are hidden and mistakes that are made on purpose are drawn with seed 0. A block of a page that is titled
"printed by fit" gets what that command printed; docs/tutorials/NAME.webp is the report, NAME-panel.webp a part of it.
docs/report.png is the report of `labelwright demo`, docs/review.png `labelwright review` of it (``--only demo``), which
need no data.
Needs the extras imagenet and dev, and Chromium. The tests run the same pages on handwritten digits.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from labelwright import cli, demo
from labelwright.data.read import load

PAGES = Path(__file__).parents[1] / "docs" / "tutorials"
Photos = Mapping[str, Sequence[bytes]]
"""Class -> its images, as files."""
Truth = dict[str, str]
"""Id of an image -> its class."""
N_NEW, N_LABELLED, RATIO = 3, 10, 15
WIDTH_PX, HEIGHT_PX, PANEL_PX = 960, 1240, 880
DEMO_PX, REVIEW_PX = (1150, 1180), (1100, 600)
N_ANSWERED, N_SELECTED = 8, 4  # images in the picture of the review


def placed(files: Sequence[bytes], folder: str, *, start: int = 0) -> list[str]:
    """Write images into a folder, numbered; their paths below the first part of it."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    paths = [Path(folder) / f"{i:03}.jpg" for i in range(start, start + len(files))]
    for path, content in zip(paths, files, strict=True):
        path.write_bytes(content)
    return [Path(*path.parts[1:]).as_posix() for path in paths]


def own_folder(photos: Photos) -> Truth:
    """photos/CLASS, and new-photos."""
    truth: Truth = {}
    for k, (name, files) in enumerate(photos.items()):
        truth |= dict.fromkeys(placed(files[N_NEW:], f"photos/{name}"), name)
        truth |= dict.fromkeys(placed(files[:N_NEW], "new-photos", start=k * N_NEW), name)
    return truth


def mixed(photos: Photos, folder: str, *, start: int = 0) -> Truth:
    """All images in one folder, in random order."""
    each = [(content, name) for name, files in photos.items() for content in files]
    order = np.random.default_rng(0).permutation(len(each))
    paths = placed([each[i][0] for i in order], folder, start=start)
    return {path: each[i][1] for path, i in zip(paths, order, strict=True)}


def class_names(photos: Photos) -> Truth:
    """photos/, without labels."""
    return mixed(photos, "photos")


def few_labels(photos: Photos) -> Truth:
    """photos/CLASS with ten images each, photos/unlabeled with the others."""
    for name, files in photos.items():
        placed(files[:N_LABELLED], f"photos/{name}")
    return mixed({name: files[N_LABELLED:] for name, files in photos.items()}, "photos/unlabeled", start=1000)


def answers(photos: Photos) -> Truth:
    """photos/ and answers.csv: three people, who are right 9, 7 and 5 times of 10, and each leave out a tenth."""
    truth, draw, names = mixed(photos, "photos"), np.random.default_rng(1), list(photos)
    with Path("answers.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "ann", "bob", "cyd"])
        for path, name in truth.items():
            given = [name if draw.random() < skill else str(draw.choice(names)) for skill in (0.9, 0.7, 0.5)]
            rows.writerow([f"photos/{path}", *("" if draw.random() < 0.1 else word for word in given)])
    return truth


def long_tail(photos: Photos) -> Truth:
    """photos/CLASS, from all that are not held out down to a fifteenth of these, and test-photos/CLASS, a third."""
    truth: Truth = {}
    for k, (name, files) in enumerate(photos.items()):
        n_test = len(files) // 3
        n = max(2, round((len(files) - n_test) * RATIO ** (-k / max(1, len(photos) - 1))))
        placed(files[:n_test], f"test-photos/{name}")
        truth |= dict.fromkeys(placed(files[n_test : n_test + n], f"photos/{name}"), name)
    return truth


def open_world(photos: Photos) -> Truth:
    """photos/CLASS with half of the images of the first four of seven classes, photos/unlabeled with all others."""
    named = list(photos)[: round(len(photos) * 4 / 7)]
    for name in named:
        placed(photos[name][::2], f"photos/{name}")
    return mixed({n: files[1::2] if n in named else files for n, files in photos.items()}, "photos/unlabeled")


def wrong_labels(photos: Photos) -> Truth:
    """photos/CLASS with every tenth image of a class in the folder of the next one."""
    truth, names = Truth(), list(photos)
    for k, (name, files) in enumerate(photos.items()):
        wrong, right = files[::10], [content for i, content in enumerate(files) if i % 10]
        truth |= dict.fromkeys(placed(wrong, f"photos/{names[(k + 1) % len(names)]}", start=100 * k), name)
        truth |= dict.fromkeys(placed(right, f"photos/{name}", start=100 * k + len(wrong)), name)
    return truth


LAYOUTS: Mapping[str, tuple[Callable[[Photos], Truth], str, int, str]] = {
    "own-folder": (own_folder, "flowers12", 23, "classes"),
    "class-names": (class_names, "cifar10", 100, "situation"),
    "few-labels": (few_labels, "rsscn7", 45, "classes"),
    "several-answers": (answers, "flowers12", 25, "situation"),
    "long-tail": (long_tail, "rsscn7", 45, "situation"),
    "new-classes": (open_world, "rsscn7", 40, "situation"),
    "correct-and-repeat": (wrong_labels, "flowers12", 20, "situation"),
}
"""Page -> what lies in the folder, of which set, how many images of a class, and the section of the report to show."""
PARTS = {"few-labels": ("check", "dialog"), "long-tail": ("trust",)}


def blocks(page: Path) -> Iterator[tuple[str, str, str]]:
    """(language, title, text) of each block of code of a page."""
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r'^```(\w*)(?: title="([^"]*)")?\n(.*?)^```', text, re.DOTALL | re.MULTILINE):
        yield found[1], found[2] or "", found[3]


def run_page(page: Path, truth: Truth, models: Mapping[str, str], of_fit: Sequence[str] = ()) -> dict[str, str]:
    """Do in the working folder what a page says: write its files, run its commands and its Python.

    Args:
      truth: what somebody who looks at the images writes into the file of `verify-sample`.
      models: name on the page -> what is used in its place.
      of_fit: flags that `fit` gets on top.

    Returns: verb -> what it printed the last time.

    Raises: RuntimeError with what was printed if a command does not exit with 0.
    """
    printed: dict[str, str] = {}
    for language, title, text in blocks(page):
        if language == "python":
            exec(compile(text, page.name, "exec", dont_inherit=True), {"__name__": page.stem})
        elif title and not title.startswith("printed by "):
            Path(title).write_text(text, encoding="utf-8")
        elif language == "sh":
            for line in text.replace("\\\n", " ").splitlines():
                words = [models.get(word, word) for word in shlex.split(line, comments=True)]
                if words[:2] == ["labelwright", "review"]:
                    cli.parse(words[1:])  # a page that is served until Ctrl-C
                elif words[:1] == ["labelwright"]:
                    printed[words[1]] = run_command([*words[1:], *(of_fit if words[1] == "fit" else ())])
                    if words[1] == "verify-sample":
                        fill_in(Path(words[words.index("--out") + 1]), truth)
    return printed


def run_command(words: Sequence[str]) -> str:
    """What a command prints. RuntimeError if it fails."""
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            code = cli.main(list(words))
        except SystemExit as stopped:
            code = stopped.code if isinstance(stopped.code, int) else 1
    if code:
        raise RuntimeError(f"labelwright {shlex.join(words)} exits with {code}:\n{out.getvalue()}{errors.getvalue()}")
    return out.getvalue()


def fill_in(path: Path, truth: Truth) -> None:
    """Write the true class of each image into the column `verified`."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows({**row, "verified": truth[row["id"]]} for row in rows)


def photos_of(path: Path, n: int) -> Photos:
    """n random images of each class of a Parquet file with images inside, no two at one place."""
    table = load(path)
    draw = np.random.default_rng(0)
    found = {}
    for c, name in enumerate(table.class_names):
        rows = draw.permutation(np.flatnonzero(table.labels == c))[:n]
        found[name] = [source for source in table.images.sources(rows) if isinstance(source, bytes)]
    return found


def as_written(text: str, instead: Mapping[str, str]) -> str:
    """A text with folders and models of this machine as the page names them."""
    for used, written in instead.items():
        text = text.replace(used, written)
    return text


def with_printed(page: str, printed: Mapping[str, str]) -> str:
    """A page whose blocks "printed by VERB" hold what it printed; of fit from its verdict on."""

    def changed(found: re.Match[str]) -> str:
        text = printed[found[2]]
        if found[2] == "fit":
            text = text.partition("\n\n")[2]
        lines = [textwrap.wrap(line, 110, subsequent_indent="    ") or [""] for line in text.rstrip().splitlines()]
        return found[1] + "".join(line.rstrip() + "\n" for group in lines for line in group) + "```"

    return re.sub(r'(^```text title="printed by ([\w-]+)"\n).*?^```', changed, page, flags=re.DOTALL | re.MULTILINE)


@contextlib.contextmanager
def opened(address: str, width_px: int, height_px: int) -> Iterator[Any]:
    """A page in a browser: Playwright's."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width_px, "height": height_px})
        page.goto(address)
        page.wait_for_timeout(500)
        yield page
        browser.close()


def picture_of_demo(out: Path) -> None:
    """The beginning of the report of `labelwright demo`, run in the working folder."""
    run_command(["demo"])
    with opened(Path("demo-run", "1", "report.html").resolve().as_uri(), *DEMO_PX) as page:
        Image.open(io.BytesIO(page.screenshot())).convert("RGB").quantize(64).save(out, optimize=True)
    print(f"{out}: {out.stat().st_size:,} bytes")


def picture_of_review(out: Path) -> None:
    """The page on which labels of the demo are reviewed; answers are what the digits are."""
    pool, _ = demo.digits()
    truth = {str(key): pool.truth_names[c] for key, c in zip(pool.ids.to_pylist(), pool.truth, strict=True)}
    Path("demo-run", "1").rename("digits")
    code = "from labelwright import demo, review; review('digits', data=demo.digits()[0], open=False)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().split()[-1]
        with opened(address, *REVIEW_PX) as page:
            while "spread over" not in (says := page.inner_text("#says")) or "being read" in says:
                page.wait_for_timeout(1000)
                page.reload()
                page.wait_for_selector("#tile-0 img")
            for place in range(N_ANSWERED):
                name, *_, key = page.get_attribute(f"#tile-{place}", "aria-label").split(", ")
                if name == truth[key]:
                    page.keyboard.press("Enter")
                else:
                    page.keyboard.press("/")
                    page.keyboard.type(truth[key])
                    page.keyboard.press("Enter")
            for _ in range(N_SELECTED - 1):
                page.keyboard.press("Shift+ArrowRight")
            page.wait_for_selector(f"#saved:has-text('{N_ANSWERED} of')")
            page.wait_for_timeout(500)
            Image.open(io.BytesIO(page.screenshot())).convert("RGB").quantize(64).save(out, optimize=True)
    finally:
        process.terminate()
        process.wait()
    print(f"{out}: {out.stat().st_size:,} bytes")


def pictures(report: Path, out: Path, section: str, parts: Sequence[str] = ()) -> None:
    """The beginning of a report and of a section as small files, and ``parts`` for docs/report.md."""
    with opened(report.resolve().as_uri(), WIDTH_PX, HEIGHT_PX) as page:

        def beginning(of: str) -> bytes:
            box = page.locator(f"#{of}").bounding_box()
            assert box, of
            clip = {"x": 0, "y": box["y"], "width": WIDTH_PX, "height": min(box["height"], PANEL_PX)}
            return page.screenshot(clip=clip, full_page=True)

        shots = {out: page.screenshot(), out.with_name(f"{out.stem}-panel.webp"): beginning(section)}
        docs = out.parents[1]
        shots |= {docs / f"report-{of}.webp": beginning(of) for of in parts if of != "dialog"}
        if "dialog" in parts:
            page.locator(".card .look").first.click()
            page.wait_for_timeout(300)
            shots[docs / "report-dialog.webp"] = page.locator("#dialog").screenshot()
    for path, content in shots.items():
        Image.open(io.BytesIO(content)).convert("RGB").save(path, quality=78, method=6)
        print(f"{path}: {path.stat().st_size:,} bytes")


def main() -> None:
    """Run them all, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", action="append", default=[], help="NAME=what is used in its place")
    parser.add_argument("--only", nargs="+", default=[*LAYOUTS, "demo"], choices=[*LAYOUTS, "demo"])
    parser.add_argument("--keep", type=Path, help="folder to keep data and runs in")
    options = parser.parse_args()
    models = dict(each.split("=", 1) for each in options.model)
    data = options.data.resolve()
    for name in options.only:
        with tempfile.TemporaryDirectory() as scratch:
            folder = options.keep.resolve() / name if options.keep else Path(scratch)
            folder.mkdir(parents=True, exist_ok=True)
            os.chdir(folder)
            if name == "demo":
                picture_of_demo(PAGES.parent / "report.png")
                picture_of_review(PAGES.parent / "review.png")
                continue
            lay_out, source, n, section = LAYOUTS[name]
            page = PAGES / f"{name}.md"
            printed = run_page(page, lay_out(photos_of(data / f"{source}-train.parquet", n)), models)
            print(*printed.values(), sep="\n", file=sys.stderr)
            instead = {f"{folder.resolve()}/": "", **{used: written for written, used in models.items()}}
            report = Path("run", "report.html").read_text(encoding="utf-8")
            shown = folder / "shown.html"
            shown.write_text(as_written(report, instead), encoding="utf-8")
            pictures(shown, PAGES / f"{name}.webp", section, PARTS.get(name, ()))
            printed = {verb: as_written(text, instead) for verb, text in printed.items()}
            page.write_text(with_printed(page.read_text(encoding="utf-8"), printed), encoding="utf-8")


if __name__ == "__main__":
    main()
