"""Print the oldest versions of our dependencies that pyproject.toml allows, as constraints for pip; nothing for newest.

python scripts/dependencies.py oldest|newest > wanted.txt
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def oldest(root: Path = ROOT) -> list[str]:
    """``name==version`` of every lower bound of the package and its extras."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *(each for extra in project["optional-dependencies"].values() for each in extra),
    ]
    return [
        f"{found[1]}=={found[2]}"
        for each in wanted
        if (found := re.fullmatch(r"([\w.-]+)(?:\[\w+\])?>=([\d.]+)", each))
    ]


def main() -> None:
    """Print what was asked for."""
    if sys.argv[1:] not in (["oldest"], ["newest"]):
        sys.exit("usage: python scripts/dependencies.py oldest|newest")
    print("\n".join(oldest()) if sys.argv[1] == "oldest" else "# whatever is newest")


if __name__ == "__main__":
    main()
