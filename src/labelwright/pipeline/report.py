"""`report`: the page of a finished run, written anew; and what it says, for a terminal or a notebook."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Any

from labelwright.arguments import check_arguments
from labelwright.errors import DataError
from labelwright.methods.registry import method_named
from labelwright.pipeline.run_config import command_of
from labelwright.reporting.collect import collect
from labelwright.reporting.render import fragment_of, page_of
from labelwright.run_folder import Run, write_text_atomically


@check_arguments
def report(run: str | Path, *, title: str | None = None, open: bool = False) -> Path:
    """Write report.html of a finished run anew.

    Args:
      run: a finished run folder.
      title: of the page, kept with the run; None: the one given before, else the name of the data.
      open: show it in the browser.

    Returns: path of the page.

    Raises: DataError if the run has not finished, or has nothing to report: one of `pretrain`.
    """
    found = Run(run)
    _check(found)
    with found.held():
        if title is not None:
            found.summary["title"] = title
            found.write_json("summary.json", found.summary)
        write_text_atomically(found.report, page_of(content_of(found)))
    if open:
        webbrowser.open(found.report.resolve().as_uri())
    return found.report


def content_of(run: Run) -> dict[str, Any]:
    """What the report of a run says, as a dict; see reporting.collect.

    Raises: DataError if its files are not as a run writes them.
    """
    method = method_named(run.read("summary.json", "method")["method"])
    try:
        return collect(run, method.sections(run), command=command_of(run.config, path=run.path))
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise DataError(
            f"summary.json, data.json or gallery.json in {run.path} is not as a run writes it ({type(error).__name__}: "
            f"{error})",
            fix=f"`labelwright verify {run.path}` says which; restore it from a copy, or fit anew",
        ) from error


def notebook_html(run: Run) -> str:
    """Verdict, what to do next and the images to check, as a notebook shows them."""
    _check(run)
    return fragment_of(content_of(run))


def _check(run: Run) -> None:
    if "n_classes" not in run.summary:
        raise DataError(
            f"{run.path} holds a pretrained backbone, of which there is no report", fix="give the run of a fit"
        )
