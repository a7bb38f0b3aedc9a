"""`report`: the page of a finished run, written anew."""

from __future__ import annotations

from pathlib import Path

from labelwright.errors import DataError
from labelwright.methods.registry import method_named
from labelwright.pipeline.settings import command_of
from labelwright.reporting.render import render
from labelwright.run_folder import Run


def report(run: str | Path) -> Path:
    """Write report.html of a finished run anew; returns its path.

    Raises: DataError if the run has not finished, or has nothing to report: one of `pretrain`.
    """
    found = Run(run)
    if "n_classes" not in found.summary:
        raise DataError(f"{run} holds a pretrained backbone, of which there is no report", fix="give the run of a fit")
    sections = method_named(found.read("summary.json", "method")["method"]).sections
    with found.held():
        return render(found.path, sections=sections, command=command_of(found.config, path=found.path))
