"""Refuse a release whose tag, pyproject.toml, package, citation and changelog do not name one version.

    python scripts/check_version.py v0.1.0

Exits with 1 and says which file differs.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def versions(root: Path = ROOT) -> dict[str, str]:
    """File -> the version that it names, of the newest release that it lists."""

    def found(name: str, pattern: str) -> str:
        match = re.search(pattern, (root / name).read_text(encoding="utf-8"), re.MULTILINE)
        return match[1] if match else "none"

    return {
        "pyproject.toml": tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"],
        "src/labelwright/__init__.py": found("src/labelwright/__init__.py", r'^__version__ = "(.+)"$'),
        "CITATION.cff": found("CITATION.cff", r"^version: \"?([^\"\s]+)\"?$"),
        "CHANGELOG.md": found("CHANGELOG.md", r"^## (\S+)"),
    }


def main() -> None:
    """Compare with the tag."""
    if len(sys.argv) != 2 or not sys.argv[1].startswith("v"):
        sys.exit("usage: python scripts/check_version.py v1.2.3")
    wanted = sys.argv[1].removeprefix("v")
    wrong = [f"{name} says {version}" for name, version in versions().items() if version != wanted]
    if re.search(rf"^## {re.escape(wanted)} \(unreleased\)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE):
        wrong.append("CHANGELOG.md says (unreleased): give the date")
    if wrong:
        sys.exit(f"not released as {wanted}: " + "; ".join(wrong))
    print(f"{wanted} everywhere")


if __name__ == "__main__":
    main()
