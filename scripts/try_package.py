"""Build wheel and sdist, and try the wheel in an environment of its own: the version, the demo, a run on a folder.

    python scripts/try_package.py [--out dist]

The environment gets the dependencies of constraints.txt, as a user's would. Exits with 1 at the first thing that fails.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
IN_WHEEL = (
    "labelwright/py.typed",
    "labelwright/cli.py",
    "labelwright/data/class_names.json",
    "labelwright/reporting/template.html",
)
"""Files that only package data brings, among others."""

PHOTOS = """
import numpy as np
from pathlib import Path
from PIL import Image
draws = np.random.default_rng(0)
for c, name in enumerate(("ant", "bee", "cow")):
    Path("photos", name).mkdir(parents=True)
    for i in range(12):
        pixels = draws.integers(0, 60, (16, 16, 3)) + 60 * c
        Image.fromarray(pixels.astype(np.uint8)).save(Path("photos", name, f"{i}.png"))
"""


def main() -> None:
    """Build, look inside, install, run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder that keeps wheel and sdist; none: a temporary one")
    given: Path | None = parser.parse_args().out
    with tempfile.TemporaryDirectory() as scratch:
        out = (given or Path(scratch, "dist")).resolve()
        out.mkdir(parents=True, exist_ok=True)
        wheel, sdist = build(out)
        look_inside(wheel, sdist)
        try_wheel(wheel, Path(scratch))
    print(f"{wheel.name} and {sdist.name} are sound")


def build(out: Path) -> tuple[Path, Path]:
    """The wheel, by way of the sdist, as `pip install` of the sdist makes it."""
    run(sys.executable, "-m", "build", "--outdir", str(out), str(ROOT))
    return newest(out, "*.whl"), newest(out, "*.tar.gz")


def newest(folder: Path, pattern: str) -> Path:
    """The file that was written last."""
    return max(folder.glob(pattern), key=lambda path: path.stat().st_mtime)


def look_inside(wheel: Path, sdist: Path) -> None:
    """Every file of the package is in the wheel, and what a packager needs in the sdist."""
    names = set(zipfile.ZipFile(wheel).namelist())
    package = ROOT / "src" / "labelwright"
    wanted = {f"labelwright/{path.relative_to(package).as_posix()}" for path in package.rglob("*.py")} | set(IN_WHEEL)
    assets = (path for path in (package / "assets").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    wanted |= {f"labelwright/{path.relative_to(package).as_posix()}" for path in assets}
    if missing := sorted(wanted - names):
        sys.exit(f"the wheel lacks {', '.join(missing)}")
    if stray := sorted(name for name in names if name.split("/")[0].startswith(("tests", "benchmarks", "docs"))):
        sys.exit(f"the wheel holds {', '.join(stray)}")
    with tarfile.open(sdist) as archive:
        inside = {name.split("/", 1)[-1] for name in archive.getnames()}
    if missing := sorted({"LICENSE", "README.md", "pyproject.toml"} - inside):
        sys.exit(f"the sdist lacks {', '.join(missing)}")


def try_wheel(wheel: Path, scratch: Path) -> None:
    """What a new user does first, away from the repository."""
    venv.create(scratch / "env", with_pip=True)
    bin_ = scratch / "env" / ("Scripts" if sys.platform == "win32" else "bin")
    python, command = str(bin_ / "python"), str(bin_ / "labelwright")
    quiet = ("--quiet", "--disable-pip-version-check")
    run(python, "-m", "pip", "install", *quiet, "--constraint", str(ROOT / "constraints.txt"), str(wheel))
    home = scratch / "home"
    home.mkdir()
    run(command, "--version", cwd=home)
    run(command, "demo", cwd=home)
    run(python, "-c", PHOTOS, cwd=home)
    run(command, "inspect", "photos", cwd=home)
    run(command, "fit", "photos", "--out", "run", "--model", "resnet32", "--epochs", "1", cwd=home)
    run(command, "label", "run", "photos", "--out", "labels.csv", cwd=home)
    for name in ("run/report.html", "run/model/model.safetensors", "labels.csv"):
        if not (home / name).stat().st_size:
            sys.exit(f"{name} is empty")


def run(*words: str, cwd: Path | None = None) -> None:
    """A command, whose output is shown if it fails."""
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(words)}\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    main()
