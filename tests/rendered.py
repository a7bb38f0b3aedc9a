"""Reports of made-up run folders, with what their method adds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from labelwright.methods.registry import METHODS
from labelwright.reporting.render import render as render_alone
from labelwright.run_folder import Run


def render(folder: Path, **how: Any) -> Path:
    """As `labelwright report` does; a folder that names no method is taken for one of the kind that its summary is."""
    summary = Run(folder).summary if (folder / "summary.json").is_file() else {}
    kinds = {"n_novel": "lps", "candidates": "coreg", "zero_shot": "cap", "pseudolabels": "cap"}
    name = summary.get("method") or next((name for key, name in kinds.items() if key in summary), "cvs")
    return render_alone(folder, sections=METHODS[name].sections, **how)
